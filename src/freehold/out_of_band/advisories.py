"""Known-vulnerable BMC firmware, from the file that comes with Freehold (`advisories.toml`). Nothing is fetched.

A version is compared only where the row's source gives a range in the numbers that the BMC shows; all else is for a
person to compare, and is said so.
"""

import re
import tomllib
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec

from freehold.model.findings import Finding, Severity


class Range(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Versions from `start` (inclusive; the beginning if empty) to `before` (exclusive)."""

    start: str = msgspec.field(name="from", default="")
    before: str


class Advisory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row; its fields are explained at the top of the file."""

    cve: str
    title: str
    severity: Severity
    remedy: str
    source: str
    confidence: Literal["read", "memory"]
    vendor: tuple[str, ...] = ()
    product: tuple[str, ...] = ()
    bmc: tuple[str, ...] = ()
    service: str = ""
    affected: tuple[Range, ...] = ()
    by_hand: str = ""


class Firmware(msgspec.Struct, frozen=True, kw_only=True):
    """What a BMC says it is. `vendors`: manufacturer of the system, vendor of the service root. `product`: of the
    service root. `bmc`: model of the manager. `services`: those that are on."""

    vendors: tuple[str, ...] = ()
    product: str = ""
    bmc: str = ""
    version: str = ""
    services: frozenset[str] = frozenset()


class Verdict(StrEnum):
    AFFECTED = "affected"
    NOT_AFFECTED = "not affected"
    UNKNOWN = "unknown"


@cache
def advisories() -> tuple[Advisory, ...]:
    """The rows of the file. Raises `msgspec.ValidationError` for one that is not as it should be."""
    text = files("freehold.out_of_band").joinpath("advisories.toml").read_text()
    return msgspec.convert(tomllib.loads(text)["advisory"], tuple[Advisory, ...])


def version_numbers(text: str) -> tuple[int, ...] | None:
    """The one dotted version in `text` (`iLO 5 v3.14`, `2.52.52.52`); None if there is none, several, or one that goes
    on in letters (`1.45.455b66-rev4`): no guess is made."""
    found = re.findall(r"(?<![\w.-])[vV]?(\d+(?:\.\d+)+)(?![\w.-])", text)
    return tuple(int(part) for part in found[0].split(".")) if len(found) == 1 else None


def within(version: str, ranges: tuple[Range, ...]) -> Verdict:
    """Whether `version` lies in one of the ranges. Missing numbers count as 0; what cannot be read is unknown."""
    known = version_numbers(version)
    if known is None:
        return Verdict.UNKNOWN
    for each in ranges:
        start, before = version_numbers(each.start) or (), version_numbers(each.before)
        assert before is not None, f"advisory: {each.before!r} is no version"
        width = max(len(known), len(start), len(before))
        padded = [numbers + (0,) * (width - len(numbers)) for numbers in (start, known, before)]
        if padded[0] <= padded[1] < padded[2]:
            return Verdict.AFFECTED
    return Verdict.NOT_AFFECTED


def matches(row: Advisory, firmware: Firmware) -> bool:
    """Every part that the row gives is a prefix of what the BMC says."""
    parts = ((row.vendor, firmware.vendors), (row.product, (firmware.product,)), (row.bmc, (firmware.bmc,)))
    if any(wanted and not _starts(said, wanted) for wanted, said in parts):
        return False
    return not row.service or row.service in firmware.services


def _starts(said: tuple[str, ...], prefixes: tuple[str, ...]) -> bool:
    return any(value.strip().lower().startswith(prefix.lower()) for value in said for prefix in prefixes)


def judge(row: Advisory, firmware: Firmware) -> Verdict:
    """Of a row that matches."""
    if row.by_hand:
        return Verdict.UNKNOWN
    return within(firmware.version, row.affected) if row.affected else Verdict.AFFECTED


def advisory_findings(firmware: Firmware, rows: tuple[Advisory, ...], *, subject: str) -> list[Finding]:
    """What is known of this firmware. A verdict of unknown is a warning: it is not a clean bill. Pure."""
    found = []
    read = f"{' / '.join(filter(None, (*firmware.vendors, firmware.product, firmware.bmc))) or 'no vendor'}, firmware"
    read = f"{read} {firmware.version or 'not told'}"
    for row in rows:
        verdict = judge(row, firmware) if matches(row, firmware) else Verdict.NOT_AFFECTED
        if verdict is Verdict.NOT_AFFECTED:
            continue
        affected = verdict is Verdict.AFFECTED
        why = row.by_hand or "the version that the BMC shows cannot be compared"
        memory = "; this row is from memory" if row.confidence == "memory" else ""
        found.append(
            Finding(
                severity=row.severity if affected else Severity.WARNING,
                kind="bmc-known-vulnerability" if affected else "bmc-advisory-by-hand",
                subject=subject,
                detail=f"{row.cve}: {row.title}" + ("" if affected else f"; check by hand: {why}"),
                remedy=row.remedy,
                evidence=f"{read} (source: {row.source}{memory})",
            )
        )
    return found
