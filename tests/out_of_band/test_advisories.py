"""Known-vulnerable firmware: a version is compared or not, but never guessed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.model.findings import Severity
from freehold.out_of_band.advisories import (
    Advisory,
    Firmware,
    Range,
    Verdict,
    advisories,
    advisory_findings,
    judge,
    matches,
    version_numbers,
    within,
)

ROWS = {row.cve: row for row in advisories()}


def found(firmware: Firmware) -> dict[str, tuple[str, Severity]]:
    findings = advisory_findings(firmware, advisories(), subject="s1")
    return {each.detail.partition(":")[0]: (each.kind, each.severity) for each in findings}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("iLO 5 v3.14", (3, 14)),
        ("3.14 Jun 16 2025", (3, 14)),
        ("A42 v3.72 (05/16/2025)", (3, 72)),
        ("2.52.52.52", (2, 52, 52, 52)),
        ("7.00.00.171", (7, 0, 0, 171)),
        ("1.45.455b66-rev4", None),
        ("1.2-rc1", None),
        ("12", None),
        ("", None),
        ("BMC 1.2 on board 3.4", None),
        ("2.14.0-dev-123-gabcdef", None),
    ],
)
def test_a_version_is_read_or_it_is_not(text: str, numbers: tuple[int, ...] | None) -> None:
    assert version_numbers(text) == numbers


@pytest.mark.parametrize(
    ("version", "verdict"),
    [
        ("1.9", Verdict.NOT_AFFECTED),
        ("2.0", Verdict.AFFECTED),
        ("2", Verdict.UNKNOWN),
        ("2.52.9", Verdict.AFFECTED),
        ("2.53", Verdict.NOT_AFFECTED),
        ("2.53.0", Verdict.NOT_AFFECTED),
        ("2.100", Verdict.NOT_AFFECTED),  # numbers, not text
        ("2.x", Verdict.UNKNOWN),
    ],
)
def test_a_range_holds_its_beginning_and_not_its_end(version: str, verdict: Verdict) -> None:
    assert within(version, (Range(start="2.0", before="2.53"),)) is verdict


@given(st.text(max_size=20), st.lists(st.integers(0, 99), min_size=2, max_size=4))
@pytest.mark.slow
def test_nothing_that_a_bmc_says_crashes_the_comparison(text: str, numbers: list[int]) -> None:
    before = ".".join(map(str, numbers))
    assert within(text, (Range(before=before),)) in Verdict
    assert within(before, (Range(before=before),)) is Verdict.NOT_AFFECTED


@pytest.mark.parametrize(
    "cve",
    [
        "CVE-2024-54085", "CVE-2023-34329", "CVE-2023-34330", "CVE-2024-10237", "CVE-2025-7937", "CVE-2025-6198",
        "CVE-2013-4786", "CVE-2022-40259", "CVE-2022-40242", "CVE-2022-2827", "CVE-2019-6260", "CVE-2017-12542",
        "CVE-2024-36435",
    ],
)  # fmt: skip
def test_the_research_is_in_the_file(cve: str) -> None:
    assert any(cve in row.cve for row in advisories())


@pytest.mark.parametrize("row", advisories(), ids=lambda row: row.cve)
def test_every_row_can_be_met_and_says_no_more_than_it_knows(row: Advisory) -> None:
    assert row.vendor or row.product or row.bmc or row.service
    assert not (row.affected and row.by_hand)
    assert all(version_numbers(each.before) for each in row.affected)
    assert all(not each.start or version_numbers(each.start) for each in row.affected)
    assert row.source
    assert row.remedy


def test_cve_2017_12542_is_decided_by_the_version() -> None:
    old = Firmware(vendors=("HPE",), bmc="iLO 4", version="iLO 4 v2.50")
    assert found(old) == {"CVE-2017-12542": ("bmc-known-vulnerability", Severity.CRITICAL)}
    assert found(Firmware(vendors=("HPE",), bmc="iLO 4", version="iLO 4 v2.53")) == {}
    assert found(Firmware(vendors=("HPE",), bmc="iLO 5", version="iLO 5 v2.50")) == {}
    unreadable = Firmware(vendors=("HPE",), bmc="iLO 4", version="latest")
    assert found(unreadable) == {"CVE-2017-12542": ("bmc-advisory-by-hand", Severity.WARNING)}


def test_cve_2018_1207_is_of_idrac_7_and_8() -> None:
    def idrac(generation: int, version: str) -> dict[str, tuple[str, Severity]]:
        product = "Integrated Dell Remote Access Controller"
        return found(
            Firmware(vendors=("Dell Inc.", "Dell"), product=product, bmc=f"{generation}G Monolithic", version=version)
        )

    assert "CVE-2018-1207" in idrac(13, "2.50.50.50")
    assert idrac(13, "2.52.52.52") == {}
    assert idrac(14, "2.41.40.40") == {}


@pytest.mark.parametrize("version", ["12.41.11", "12.61.35", "13.06.10", "1.27"])
def test_cve_2024_54085_is_never_decided_by_a_server_vendors_number(version: str) -> None:
    """12.61 of one vendor has AMI's fix of 12.7; as numbers it could be either."""
    found_here = found(Firmware(vendors=("GIGABYTE", "AMI"), product="AMI Redfish Server", version=version))
    assert found_here["CVE-2024-54085"] == ("bmc-advisory-by-hand", Severity.WARNING)
    assert found(Firmware(vendors=("Dell Inc.",), product="Integrated Dell Remote Access Controller")) == {}


def test_supermicro_is_for_a_person_to_compare() -> None:
    found_here = found(Firmware(vendors=("Supermicro",), bmc="ASPEED", version="01.06.17"))
    assert {kind for kind, _ in found_here.values()} == {"bmc-advisory-by-hand"}
    assert {"CVE-2024-10237, CVE-2025-7937", "CVE-2025-6198", "CVE-2024-36435", "CVE-2019-6260"} == set(found_here)


def test_cve_2013_4786_goes_with_the_service() -> None:
    row = ROWS["CVE-2013-4786"]
    on = Firmware(vendors=("Anybody",), services=frozenset({"IPMI", "HTTPS"}))
    assert matches(row, on)
    assert judge(row, on) is Verdict.AFFECTED
    assert found(on) == {"CVE-2013-4786": ("bmc-known-vulnerability", Severity.CRITICAL)}
    assert found(Firmware(vendors=("Anybody",), services=frozenset({"HTTPS"}))) == {}


def test_a_row_from_memory_says_so() -> None:
    firmware = Firmware(vendors=("Supermicro",), bmc="ASPEED")
    findings = advisory_findings(firmware, (ROWS["CVE-2019-6260"],), subject="s1")
    assert "this row is from memory" in findings[0].evidence
    assert "Supermicro / ASPEED, firmware not told" in findings[0].evidence
    findings = advisory_findings(firmware, (ROWS["CVE-2025-6198"],), subject="s1")
    assert "memory" not in findings[0].evidence
