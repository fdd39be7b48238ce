"""Sanitization: what the agent did to one medium, judged against NIST SP 800-88 before anybody may call it clean.

Pure. The judgement never rests on a drive's word: a medium is clean only if the read-back samples and every planted
canary say so.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from freehold.model.errors import FreeholdError

# Technique as the agent names it -> (SP 800-88r1 category, words for the certificate).
TECHNIQUES: dict[str, tuple[str, str]] = {
    "nvme-sanitize-block-erase": ("Purge", "NVMe Sanitize, block erase (SANACT 2)"),
    "nvme-sanitize-crypto-erase": ("Purge", "NVMe Sanitize, crypto erase (SANACT 4)"),
    "nvme-format-crypto-erase": ("Purge", "NVMe Format NVM, cryptographic erase (SES 2)"),
    "nvme-format-user-data-erase": ("Clear", "NVMe Format NVM, user data erase (SES 1)"),
    "secure-discard": ("Clear", "secure discard of every block"),
    "discard": ("Clear", "discard of every block"),
    "overwrite": ("Clear", "one overwrite with zeros"),
}
# What a cryptographic erase leaves reads as noise, which reading back cannot tell from data; so it is never asked for.
UNVERIFIABLE = frozenset({"nvme-sanitize-crypto-erase", "nvme-format-crypto-erase"})
MINIMUM_SAMPLES = 32


def allowed(categories: Sequence[str]) -> list[str]:
    """The techniques that a policy's categories (`purge`, `clear`) admit, strongest first. A drive that can Purge is
    purged; Clear is what remains for one that cannot, if policy admits it."""
    wanted = {category.capitalize() for category in categories}
    return [name for name, (category, _) in TECHNIQUES.items() if category in wanted and name not in UNVERIFIABLE]


class MediumStatement(msgspec.Struct, frozen=True, kw_only=True):
    """One medium of a destruction certificate (SP 800-88r1, appendix G)."""

    serial: str
    model: str
    size_bytes: int
    category: str
    technique: str
    command: str
    raw_status: str
    started: str
    finished: str
    verification_method: str
    sample_seed: str
    samples: int
    canaries_planted: int
    canaries_found: int
    clean: bool
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in evidence."""
        return dict(msgspec.to_builtins(self))


def judge(
    serial: str,
    disk: Mapping[str, Any],
    planted: Mapping[str, Any],
    erased: Mapping[str, Any],
    verified: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> MediumStatement:
    """The statement about one medium, from the agent's raw results and what the verification was `asked` to read (seed,
    samples). Anything missing or odd makes it not clean."""
    technique = str(erased.get("technique", ""))
    category, words = TECHNIQUES.get(technique, ("", f"unknown technique {technique!r}"))
    canaries = len(planted.get("canaries") or ())
    hits, looked = _count(verified.get("canary_hits")), _count(verified.get("canaries"))
    samples, dirty = _count(verified.get("samples")), _count(verified.get("non_uniform_samples"))
    reasons: list[str] = []
    if not category:
        reasons.append(words)
    if erased.get("status") != 0:
        reasons.append(f"the erase ended with status {erased.get('status')!r}")
    if canaries < 1 or looked != canaries:
        reasons.append(f"{canaries} canaries were planted and {looked} looked for: the verification could not fail")
    if hits != 0:
        reasons.append(f"{_number(hits)} planted canaries are still readable: the drive did not erase")
    if samples is None or samples < MINIMUM_SAMPLES:
        reasons.append(f"only {samples or 0} samples were read back; at least {MINIMUM_SAMPLES} are needed")
    if dirty != 0:
        reasons.append(f"{_number(dirty)} samples are not uniform: old data may be readable")
    if verified.get("edges_uniform") is not True:
        reasons.append("its first or last MiB is not uniform: old data may be readable")
    if verified.get("seed") != asked.get("seed") or samples != asked.get("samples"):
        reasons.append("the verification did not read the samples that were asked for")
    sizes = {_count(disk.get("size_bytes")), _count(erased.get("disk_bytes")), _count(verified.get("disk_bytes"))}
    if len(sizes) != 1 or None in sizes:
        reasons.append("its size differs between inventory, erase and read-back: part of it may be hidden")
    if verified.get("clean") is not True or verified.get("device_serial") != serial:
        reasons.append("the agent does not call this medium clean")
    return MediumStatement(
        serial=serial,
        model=str(disk.get("model") or ""),
        size_bytes=_count(erased.get("disk_bytes")) or 0,
        category=category,
        technique=words,
        command=str(erased.get("command", "")),
        raw_status=f"status {erased.get('status')}: {erased.get('output', '')}",
        started=timestamp(erased.get("started")),
        finished=timestamp(erased.get("ended")),
        verification_method="seeded read-back samples, first and last MiB, and every planted canary",
        sample_seed=str(asked.get("seed", "")),
        samples=samples or 0,
        canaries_planted=canaries,
        canaries_found=hits if hits is not None else -1,
        clean=not reasons,
        reasons=tuple(reasons),
    )


def timestamp(seconds: object) -> str:
    """RFC 3339 in UTC of UNIX seconds; empty if there are none."""
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return ""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _number(count: int | None) -> str:
    return "an unknown number of" if count is None else str(count)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


class DataRemains(FreeholdError):
    """A medium was not proven clean. The server must not go back to the pool."""


def require_clean(server: str, media: list[MediumStatement]) -> None:
    """Refuse unless there is at least one medium and every one is clean."""
    if not media:
        raise DataRemains(
            "no medium was sanitized",
            server=server,
            remedy="look at `freehold describe server`: the inventory lists no disk",
        )
    if dirty := [medium for medium in media if not medium.clean]:
        detail = "; ".join(f"{medium.model} serial {medium.serial}: {', '.join(medium.reasons)}" for medium in dirty)
        raise DataRemains(
            f"{len(dirty)} of {len(media)} media are not proven clean: {detail}",
            server=server,
            remedy="destroy or replace the medium; then `freehold release` the server and decommission it again",
        )
