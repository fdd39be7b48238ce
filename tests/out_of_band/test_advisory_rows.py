"""Each row of advisories.toml, met by a BMC that speaks as its vendor has it speak, and not met by any other.

Where the row gives a range, the fixed version is clean. Where a person must compare, because the version shown decides
nothing, the fixed version of the research is told as well: a clean bill would be a guess.
"""

from typing import Any

import msgspec
import pytest

from freehold.model.findings import Severity
from freehold.out_of_band.advisories import Advisory, advisories, advisory_findings
from freehold.out_of_band.audit import firmware_of

ROWS = {row.cve: row for row in advisories()}
BY_HAND, KNOWN = ("bmc-advisory-by-hand", Severity.WARNING), ("bmc-known-vulnerability", Severity.CRITICAL)


class Bmc(msgspec.Struct, frozen=True):
    """What service root, System and Manager say of themselves; `on`: its services."""

    root: dict[str, Any]
    system: dict[str, Any]
    manager: dict[str, Any]
    on: tuple[str, ...] = ("HTTPS",)

    @property
    def named(self) -> tuple[object, ...]:
        return self.root, self.system, self.manager.get("Model")

    def with_version(self, version: str) -> "Bmc":
        return msgspec.structs.replace(self, manager=self.manager | {"FirmwareVersion": version})


GIGABYTE = Bmc(
    {"Product": "AMI Redfish Server", "Vendor": "AMI"}, {"Manufacturer": "Giga Computing"}, {"Model": "AST2600"}
)
AMI_UNDER_ANOTHER_NAME = Bmc({"Oem": {"Ami": {}}}, {"Manufacturer": "Lenovo"}, {"Model": "AST2600"})
SUPERMICRO = Bmc({"Vendor": "Supermicro"}, {"Manufacturer": "Supermicro"}, {"Model": "X13SEM-F"})
ILO = Bmc({"Product": "ProLiant DL380 Gen9", "Vendor": "HPE"}, {"Manufacturer": "HPE"}, {"Model": "iLO 4"})
IDRAC = Bmc(
    {"Product": "Integrated Dell Remote Access Controller", "Vendor": "Dell"},
    {"Manufacturer": "Dell Inc."},
    {"Model": "13G Monolithic"},
)
ASPEED = Bmc({}, {"Manufacturer": "Quanta"}, {"Model": "AST2500"})
ILO_5 = Bmc({"Product": "ProLiant DL365 Gen10 Plus"}, {"Manufacturer": "HPE"}, {"Model": "iLO 5"}).with_version("2.50")
IDRAC_9 = Bmc(IDRAC.root, IDRAC.system, {"Model": "15G Monolithic"}).with_version("2.41.40.40")
IPMI_ON = Bmc({}, {"Manufacturer": "Anybody"}, {}, ("HTTPS", "IPMI"))

AMI_ROWS = ("CVE-2024-54085", "CVE-2023-34329", "CVE-2023-34330", "CVE-2022-40259, CVE-2022-40242, CVE-2022-2827")
SUPERMICRO_ROWS = ("CVE-2024-10237, CVE-2025-7937", "CVE-2025-6198", "CVE-2024-36435")
RANGES = {
    "CVE-2017-12542": (ILO, "iLO 4 v2.50", "iLO 4 v2.53"),
    "CVE-2018-1207": (IDRAC, "2.50.50.50", "2.52.52.52"),
}
"""CVE: a BMC of the row, a version that has it, the one that mended it."""
AMI_FIXED = ("12.7", "13.5", "12.4", "13.2", "6.00", "4.00")
"""AMI's own numbers, as the research names them. Another vendor's 12.41 is not AMI's 12.4."""
MET = {
    **{cve: (GIGABYTE.with_version("12.41.11"), BY_HAND) for cve in AMI_ROWS},
    **{cve: (SUPERMICRO.with_version("01.03.47"), BY_HAND) for cve in SUPERMICRO_ROWS},
    **{cve: (bmc.with_version(has), KNOWN) for cve, (bmc, has, _) in RANGES.items()},
    "CVE-2019-6260": (ASPEED, BY_HAND),
    "CVE-2013-4786": (IPMI_ON, KNOWN),
}
"""Of each row: a BMC that it speaks of, and the finding."""


def found(row: Advisory, bmc: Bmc) -> list[tuple[str, Severity]]:
    firmware = firmware_of(bmc.root, bmc.system, bmc.manager, bmc.on)
    findings = advisory_findings(firmware, (row,), subject="s1")
    assert all(row.source in each.evidence and each.remedy == row.remedy for each in findings)
    return [(each.kind, each.severity) for each in findings]


def test_every_row_of_the_file_has_a_bmc_here() -> None:
    assert set(MET) == set(ROWS)
    assert set(RANGES) == {cve for cve, row in ROWS.items() if row.affected}


@pytest.mark.parametrize("cve", MET)
def test_a_row_speaks_of_the_bmc_that_it_is_about(cve: str) -> None:
    bmc, expected = MET[cve]
    assert found(ROWS[cve], bmc) == [expected]


@pytest.mark.parametrize("cve", MET)
def test_a_row_speaks_of_no_other_bmc(cve: str) -> None:
    about, _ = MET[cve]
    others = (GIGABYTE, SUPERMICRO, ILO.with_version("2.50"), IDRAC.with_version("2.50.50.50"), ASPEED, ILO_5, IDRAC_9)
    strangers = [bmc for bmc in others if bmc.named != about.named]
    assert len(strangers) >= 6
    for bmc in strangers:
        assert found(ROWS[cve], bmc) == [], bmc


@pytest.mark.parametrize("cve", RANGES)
def test_a_range_ends_with_the_fixed_version(cve: str) -> None:
    bmc, has, mended = RANGES[cve]
    row = ROWS[cve]
    assert found(row, bmc.with_version(has)) == [KNOWN]
    assert found(row, bmc.with_version(mended)) == []
    assert found(row, bmc.with_version("")) == [BY_HAND]  # not told


@pytest.mark.parametrize("cve", AMI_ROWS)
@pytest.mark.parametrize("bmc", [GIGABYTE, AMI_UNDER_ANOTHER_NAME], ids=["by-product", "by-oem-data"])
def test_a_row_of_megarac_is_for_a_person_to_compare_whatever_version_is_shown(cve: str, bmc: Bmc) -> None:
    for version in ("12.1", *AMI_FIXED, "1.27", ""):
        assert found(ROWS[cve], bmc.with_version(version)) == [BY_HAND]
    titled = ROWS[cve].title
    assert any(fixed in titled for fixed in AMI_FIXED), titled  # the person reads what to compare with


@pytest.mark.parametrize("cve", SUPERMICRO_ROWS)
@pytest.mark.parametrize("manufacturer", ["Supermicro", "SUPERMICRO", " Supermicro "])
def test_a_row_of_supermicro_is_met_however_it_writes_its_name(cve: str, manufacturer: str) -> None:
    assert found(ROWS[cve], Bmc({}, {"Manufacturer": manufacturer}, {})) == [BY_HAND]


@pytest.mark.parametrize("chip", ["AST2400", "AST2500", "ASPEED"])
def test_cve_2019_6260_is_met_by_the_chips_that_it_names(chip: str) -> None:
    assert found(ROWS["CVE-2019-6260"], Bmc({}, {}, {"Model": chip})) == [BY_HAND]
    assert found(ROWS["CVE-2019-6260"], Bmc({}, {}, {"Model": "AST2600"})) == []


def test_cve_2013_4786_ends_when_ipmi_is_off() -> None:
    assert found(ROWS["CVE-2013-4786"], msgspec.structs.replace(IPMI_ON, on=("HTTPS",))) == []
