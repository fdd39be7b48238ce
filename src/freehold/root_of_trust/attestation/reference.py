"""Reference values of firmware: which events PCR 0 and 2 of a model at a firmware version may hold (RATS: reference
values; TCG RIM). Pure.

They are digests of events in order, not PCR values, so that a difference has a name. One (vendor, model, version) may
have several, its *variants*: the same board with another option ROM. A server is held against the variant that it was
staged with.
"""

import hashlib
from collections.abc import Iterable, Sequence
from enum import StrEnum

import msgspec

from freehold.evidence import canonical
from freehold.model.errors import FreeholdError

PCRS = (0, 2)
"""Firmware code, and the code of option ROMs (PC Client Platform Firmware Profile 1.06, 2.3.4)."""


class ReferenceState(StrEnum):
    PENDING = "pending"
    APPROVED = "approved"
    SUPERSEDED = "superseded"
    REVOKED = "revoked"


NEXT: dict[ReferenceState, tuple[ReferenceState, ...]] = {
    ReferenceState.PENDING: (ReferenceState.APPROVED, ReferenceState.REVOKED),
    ReferenceState.APPROVED: (ReferenceState.SUPERSEDED, ReferenceState.REVOKED),
    ReferenceState.SUPERSEDED: (ReferenceState.REVOKED,),
    ReferenceState.REVOKED: (),
}
"""`superseded` still vouches for servers that run it, but no server joins the pool with it; `revoked` for nobody."""


class IllegalReferenceStateError(FreeholdError):
    """Reference values that cannot become what was asked."""


class ReferenceValues(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`digests` has for each of `PCRS` ("0", "2") the SHA-256 digests of its events in order, in hex."""

    vendor: str
    model: str
    version: str
    digests: dict[str, tuple[str, ...]]

    @property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of its canonical JSON: the same values have the same name."""
        return hashlib.sha256(canonical.dumps(msgspec.to_builtins(self))).hexdigest()[:16]

    @property
    def firmware(self) -> str:
        """Names the measurements alone, whoever's they are: what an attestation statement says that it saw."""
        return firmware_id(self.digests)

    @property
    def title(self) -> str:
        return f"{self.vendor} {self.model} BIOS {self.version}"


def firmware_id(digests: dict[str, tuple[str, ...]]) -> str:
    """SHA-256 over the digests of `PCRS` in order, in hex."""
    listed = {pcr: list(found) for pcr, found in digests.items()}
    return hashlib.sha256(canonical.dumps(listed)).hexdigest()


def become(state: ReferenceState, wanted: ReferenceState) -> ReferenceState:
    """`wanted`, if `state` may become it. Raises `IllegalReferenceStateError`."""
    if wanted in NEXT[state]:
        return wanted
    raise IllegalReferenceStateError(
        f"reference values that are {state} cannot become {wanted}", expected=", ".join(NEXT[state]) or "nothing"
    )


def leading(one: Sequence[str], other: Sequence[str]) -> int:
    """How many events from the start the two share."""
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)


def in_common(one: ReferenceValues, other: ReferenceValues) -> int:
    """How many events from the start of each PCR the two share."""
    return sum(leading(one.digests.get(pcr, ()), other.digests.get(pcr, ())) for pcr in map(str, PCRS))


def closest(observed: ReferenceValues, known: Iterable[ReferenceValues]) -> ReferenceValues | None:
    """Of `known` the one that shares most with `observed`: of the same board at the same version if there is one."""
    return max(known, key=lambda each: (in_common(observed, each), each.title == observed.title, each.id), default=None)


def diff(expected: ReferenceValues, observed: ReferenceValues) -> tuple[str, ...]:
    """What differs, a sentence for each PCR; empty if the measurements are the same."""
    sentences = []
    for pcr in map(str, PCRS):
        wanted, found = expected.digests.get(pcr, ()), observed.digests.get(pcr, ())
        at = next((n for n, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), None)
        if at is not None:
            sentences.append(f"PCR {pcr}: event {at} is {found[at]}, in {expected.id} it is {wanted[at]}")
        elif len(wanted) != len(found):
            sentences.append(f"PCR {pcr}: {len(found)} events, in {expected.id} there are {len(wanted)}")
    return tuple(sentences)
