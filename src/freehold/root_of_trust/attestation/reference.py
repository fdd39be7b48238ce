"""Reference values of firmware (RFC 9334, 8.3): the digests of PCR 0 and 2 for a model at one firmware version.

Nobody can predict them from files, so they are learned from a boot at staging, or come from the vendor. One version has
as many *variants* as there are machines that measure differently with it: another option ROM, another CPU stepping.
Everything here is pure; who keeps them and whose approvals they need is decided above.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

import msgspec

from freehold.model.errors import FreeholdError

FIRMWARE_PCRS = (0, 2)
"""Firmware code and option ROMs (PC Client Platform Firmware Profile, 3.3.4)."""
DIGEST = re.compile("[0-9a-f]{64}")

Digests = Mapping[int, Sequence[str]]
"""By PCR: the SHA-256 digests of its events in order, in hex."""


class ReferenceState(StrEnum):
    PENDING = "pending"
    APPROVED = "approved"
    SUPERSEDED = "superseded"
    REVOKED = "revoked"


NEXT: Mapping[ReferenceState, frozenset[ReferenceState]] = {
    ReferenceState.PENDING: frozenset({ReferenceState.APPROVED, ReferenceState.REVOKED}),
    ReferenceState.APPROVED: frozenset({ReferenceState.SUPERSEDED, ReferenceState.REVOKED}),
    # Back to approved: firmware that people go back to needs the same approvals as the first time.
    ReferenceState.SUPERSEDED: frozenset({ReferenceState.APPROVED, ReferenceState.REVOKED}),
    ReferenceState.REVOKED: frozenset(),
}


class ReferenceValuesError(FreeholdError):
    """Reference values that cannot be what is asked of them."""


class ReferenceValues(msgspec.Struct, frozen=True, kw_only=True):
    """One variant. `vendor` and `model` as the BMC names the system, `version` of its BIOS.

    `digests` has PCR 0 and 2, both, or nothing would be said about one of them. `origin` says where they are from:
    "learned at staging of SERVER, leaf N", "vendor RIM", "depot target NAME".
    """

    vendor: str
    model: str
    version: str
    variant: str
    digests: dict[int, tuple[str, ...]]
    origin: str

    def __post_init__(self) -> None:
        if sorted(self.digests) != sorted(FIRMWARE_PCRS):
            raise ValueError(f"reference values are of PCR 0 and 2, not of {sorted(self.digests)}")
        if wrong := [digest for listed in self.digests.values() for digest in listed if not DIGEST.fullmatch(digest)]:
            raise ValueError(f"{wrong[0]!r} is not a SHA-256 digest in lower-case hex")

    @property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 of the content. Not of the origin: what two machines measure alike is
        the same variant."""
        content = {name: getattr(self, name) for name in ("vendor", "model", "version", "variant", "digests")}
        return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()[:16]

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"BIOS {self.version}" + (f" ({self.variant})" if self.variant else "")


def approved_for(
    known: Iterable[tuple[ReferenceValues, ReferenceState]], vendor: str, model: str, version: str
) -> tuple[ReferenceValues, ...]:
    """The approved variants of this model at this version."""
    wanted = tuple(map(_plain, (vendor, model, version)))
    return tuple(
        values
        for values, state in known
        if state is ReferenceState.APPROVED
        and tuple(map(_plain, (values.vendor, values.model, values.version))) == wanted
    )


def closest(observed: Digests, known: Iterable[ReferenceValues]) -> tuple[ReferenceValues, dict[int, int]] | None:
    """The variant with the most leading events in common, and how many, by PCR; None if none is known."""
    scored = [
        (values, {pcr: _common(digests, values.digests[pcr]) for pcr, digests in observed.items()}) for values in known
    ]
    return max(scored, key=lambda found: sum(found[1].values()), default=None)


def diff(a: ReferenceValues, b: ReferenceValues) -> tuple[str, ...]:
    """What differs from `a` to `b`, in sentences; none if they allow the same."""
    sentences = [
        f"{what}: {old or 'none'} became {new or 'none'}"
        for what, old, new in (
            ("vendor", a.vendor, b.vendor), ("model", a.model, b.model), ("BIOS version", a.version, b.version),
            ("variant", a.variant, b.variant),
        )
        if old != new
    ]  # fmt: skip
    for pcr in FIRMWARE_PCRS:
        old, new = a.digests[pcr], b.digests[pcr]
        sentences += [
            f"PCR {pcr}: measurement {number} was {was}, and is {now}"
            for number, (was, now) in enumerate(zip(old, new, strict=False), 1)
            if was != now
        ]
        if len(old) != len(new):
            sentences.append(f"PCR {pcr}: {len(old)} measurements became {len(new)}")
    return tuple(sentences)


def change_state(state: ReferenceState, target: ReferenceState) -> ReferenceState:
    """`target`, if `state` may become it."""
    if target not in NEXT[state]:
        raise ReferenceValuesError(
            f"reference values that are {state} cannot become {target}",
            expected=f"one of: {', '.join(sorted(NEXT[state])) or 'nothing, they are revoked for good'}",
            remedy="learn or import them anew",
        )
    return target


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    return next((n for n, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))


def _plain(text: str) -> str:
    """Vendors vary blanks and case between firmware versions."""
    return " ".join(text.split()).casefold()
