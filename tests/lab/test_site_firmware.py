"""Attack path 4 and its opposite: a BIOS out of the depot really swaps the firmware, by upload and by download; what it
then measures counts once two people have said so; other code under the same version string is quarantined."""

from pathlib import Path

import pytest
from site_rig import SiteRig, site_rig

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1200)]

BASELINE = """apiVersion: freehold/v1
kind: FirmwareBaseline
metadata: {name: hx-100-bios}
spec: {vendor: Halden Compute, model: HX-100, component: bios, version: "1.1.0"}
"""


def signed_by_two(rig: SiteRig) -> None:
    for name in ("alice", "bob"):
        rig.freehold("depot", "sign", "--key", str(rig.lab / "operators" / f"{name}.key"), "--yes")
    rig.freehold("depot", "publish")


def fill_depot(rig: SiteRig) -> None:
    people = [f"{name}={rig.lab}/operators/{name}.key.pub" for name in ("alice", "bob", "carol")]
    rig.freehold("depot", "init", *(word for each in people for word in ("--operator", each)))
    signed_by_two(rig)
    firmware = rig.lab / "firmware"
    rig.freehold(
        *("depot", "import", str(firmware / "HX-100-1.1.0.fwpkg")),
        *("--signature", str(firmware / "HX-100-1.1.0.fwpkg.p7s"), "--trust", str(firmware / "vendor.pem")),
        *("--by", "alice", "--vendor", "Halden Compute", "--component", "bios", "--version", "1.1.0"),
        *("--model", "HX-100"),
    )
    signed_by_two(rig)


def test_firmware_comes_out_of_the_depot_and_what_it_measures_is_what_counts(tmp_path: Path) -> None:
    with site_rig(tmp_path, "fw") as rig:
        rig.in_lab("fault", "no-uploads", "server-1", "on")
        rig.declare()
        (tmp_path / "baseline.yaml").write_text(BASELINE)
        rig.freehold("apply", "-f", str(tmp_path / "baseline.yaml"))
        rig.serve()
        rig.found_operators()
        rig.artifact("agent.efi")  # the site has its keys
        fill_depot(rig)
        rig.in_lab("fault", "bmc-slow", "server-1", "0.5")
        rig.approve_firmware()  # of 1.0.0, with which it came
        rig.kill_during("apply_firmware", after=2.0)
        rig.in_lab("fault", "bmc-slow", "server-1", "0")
        rig.serve()
        rig.wait_event("BIOS 1.0.0 -> 1.1.0")
        rig.approve_firmware()
        status = rig.wait_state("available")
        assert status["facts"]["firmware"]["version"] == "1.1.0"
        sent = [each["predicate"]["sent_by"] for each in rig.statements("firmware")]
        assert sent == ["SimpleUpdate, by HTTPS from the controller"]

        # The same version string, other code: nobody but the TPM tells.
        rig.in_lab("fault", "tampered-firmware", "server-1")
        rig.declare(assigned=["server-1"])
        status = rig.wait_state("quarantined")
        assert "PCR 0" in status["reason"], status["reason"]
