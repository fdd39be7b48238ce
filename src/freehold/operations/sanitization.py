"""Sanitization: what the agent did to one medium, judged against NIST SP 800-88 before anybody may call it clean.

Pure. The judgement never rests on a drive's word: a medium is clean only if the read-back samples and every planted
canary say so.
"""

from typing import Any

import msgspec

from freehold.model.errors import FreeholdError

# Technique as the agent names it -> (SP 800-88r1 category, words for the certificate).
TECHNIQUES: dict[str, tuple[str, str]] = {
    "nvme-sanitize-crypto": ("Purge", "NVMe Sanitize, crypto erase (SANACT 4)"),
    "nvme-sanitize-block": ("Purge", "NVMe Sanitize, block erase (SANACT 2)"),
    "nvme-format-crypto": ("Purge", "NVMe Format NVM, cryptographic erase (SES 2)"),
    "nvme-format-user": ("Clear", "NVMe Format NVM, user data erase (SES 1)"),
    "secure-discard": ("Clear", "secure discard of every block"),
    "discard": ("Clear", "discard of every block"),
    "overwrite": ("Clear", "one overwrite with zeros"),
}
MINIMUM_SAMPLES = 32


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


def judge(
    serial: str,
    disk: dict[str, Any],
    planted: dict[str, Any],
    erased: dict[str, Any],
    verified: dict[str, Any],
    seed: str,
) -> MediumStatement:
    """The statement about one medium, from the agent's raw results. Anything missing or odd makes it not clean."""
    technique = str(erased.get("technique", ""))
    category, words = TECHNIQUES.get(technique, ("", f"unknown technique {technique!r}"))
    canaries, hits = _count(planted.get("count")), _count(verified.get("canary_hits"))
    samples, dirty = _count(verified.get("samples")), _count(verified.get("nonzero_samples"))
    reasons: list[str] = []
    if not category:
        reasons.append(words)
    if canaries is None or canaries < 1:
        reasons.append("no canary was planted before the erase, so the verification has nothing to find")
    if hits is None or hits > 0:
        reasons.append(f"{_number(hits)} planted canaries are still readable: the drive did not erase")
    if samples is None or samples < MINIMUM_SAMPLES:
        reasons.append(f"only {samples or 0} samples were read back; at least {MINIMUM_SAMPLES} are needed")
    if dirty is None or dirty > 0:
        reasons.append(f"{_number(dirty)} samples are not uniform: old data may be readable")
    if verified.get("clean") is not True:
        reasons.append("the agent does not call the medium clean")
    return MediumStatement(
        serial=serial,
        model=str(disk.get("model", "")),
        size_bytes=_count(disk.get("size_bytes")) or 0,
        category=category,
        technique=words,
        command=str(erased.get("command", "")),
        raw_status=str(erased.get("raw_status", "")),
        started=str(erased.get("started", "")),
        finished=str(erased.get("finished", "")),
        verification_method="seeded read-back samples and planted canaries",
        sample_seed=seed,
        samples=samples or 0,
        canaries_planted=canaries or 0,
        canaries_found=hits if hits is not None else -1,
        clean=not reasons,
        reasons=tuple(reasons),
    )


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
