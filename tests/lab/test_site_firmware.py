"""Attack path 4 and its opposite: a BIOS out of the depot really swaps the firmware, by download, as this BMC refuses
uploads; what it then measures counts once two people have said so; other code under the same version string is
quarantined. And a site that takes nothing but the depot's boots the agent and writes the OS image that two people
signed."""

import json
from pathlib import Path

import msgspec
import pytest
import yaml
from site_rig import SiteRig, site_rig

from freehold.root_of_trust.attestation.reference import ReferenceValues

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
        other_code_was_measured(rig)

        images_of_the_depot(rig)
        rig.wait_state("active")
        (written,) = (each["predicate"] for each in rig.statements("image"))
        assert (written["origin"], written["target"], written["read_back"]) == ("depot", "os-image/os-12.raw", True)

        # The same version string, other code: nobody but the TPM tells.
        rig.in_lab("fault", "tampered-firmware", "server-1")
        rig.in_lab("power", "server-1", "reset")
        status = rig.wait_state("quarantined")
        assert "it booted something else: PCR 0: " in status["reason"], status["reason"]
        rig.in_lab("fault", "tampered-firmware", "server-1")  # and the right one back
        rig.in_lab("power", "server-1", "reset")
        rig.freehold("release", "server-1", "--reason", "the flash chip was replaced", "--wait", "--timeout", "60")
        rig.wait("new proof", lambda status: status["facts"]["released_at"] < rig.attested())


def measured(rig: SiteRig, version: str) -> ReferenceValues:
    """What the operators approved as what the BIOS of this version measures."""
    items = json.loads(rig.freehold("baseline", "list", "-o", "json").stdout)["items"]
    (known,) = (each for each in items if each["version"] == version)
    return msgspec.convert({name: known[name] for name in ReferenceValues.__struct_fields__}, ReferenceValues)


def other_code_was_measured(rig: SiteRig) -> None:
    """By the TPM's word, not the BMC's: the quotes before the update have one PCR 0, those after it another one, and
    the digests behind it differ in the code and not only in the version's name, which is the first event."""
    old, new = measured(rig, "1.0.0"), measured(rig, "1.1.0")
    assert old.digests["0"][1:] != new.digests["0"][1:], (old, new)
    rows = sorted(rig.statements("attestation"), key=lambda row: int(row["index"]))
    claims = [row["predicate"] for row in rows if row["predicate"]["trusted"]]
    quoted = list(dict.fromkeys((claim["firmware"], claim["pcrs"]["0"]["value"]) for claim in claims))
    assert [firmware for firmware, _ in quoted] == [old.firmware, new.firmware], quoted
    assert len({value for _, value in quoted}) == 2, quoted


def images_of_the_depot(rig: SiteRig) -> None:
    """The site takes nothing else from now on: first it does not start, then two people have signed what it built."""
    rig.stop()
    rig.declare(assigned=["server-1"])
    declared = rig.lab / "declared.yaml"
    documents = list(yaml.safe_load_all(declared.read_text()))
    for document in documents:
        if document["kind"] == "Site":
            document["spec"]["images"] = "depot"
        if document["kind"] == "Image":
            document["spec"] = {"version": "12", "depot": {"vendor": "Lab", "component": "debian-12"}}
    declared.write_text(yaml.safe_dump_all(documents))
    rig.freehold("apply", "-f", str(declared))
    rig.serve()
    assert rig.controller is not None
    assert rig.controller.wait(120) == 1
    assert "the depot lists no agent for this site" in rig.log.read_text()
    ours = ("--site", rig.name, "--by", "alice", "--vendor", "Lab", "--unsigned-because", "built by this site")
    image, agent = str(rig.artifact("os.raw")), str(rig.artifact("agent.efi"))
    rig.freehold(
        *("depot", "import", image, "--kind", "os-image", "--component", "debian-12", "--version", "12", *ours),
        *("--name", "os-12.raw"),
    )
    rig.freehold("depot", "import", agent, "--kind", "agent", "--component", "agent", "--version", "1", *ours)
    signed_by_two(rig)
    rig.serve()
