"""Faults while Freehold works: it gets to its goal all the same, and says what happened to whoever asks."""

import json
from pathlib import Path

import pytest
from site_rig import SiteRig, site_rig

from freehold.provisioning.images import uki

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1500)]

SYSTEM = "/redfish/v1/Systems/1"


def test_faults_on_the_way_to_active_and_afterwards(tmp_path: Path) -> None:
    """server-1 suffers one fault after the other; server-2 is offered an image that its firmware must refuse."""
    with site_rig(tmp_path, "faults", servers=2) as rig:
        a_bad_start(rig)
        unsigned_agent(rig)
        rig.declare(assigned=["server-1", "server-2"], by_http=["server-2"], referenceValues="learned")
        loses_power_while_it_writes(rig)
        drifts_are_remediated_and_the_machine_attests_again(rig)
        the_firmware_refused_and_a_person_is_told(rig)
        another_board(rig)


def a_bad_start(rig: SiteRig) -> None:
    """Both BMCs fail while they are secured, and a stranger answers DHCP while both machines boot by network."""
    rig.in_lab("fault", "bmc-errors", "server-1", "12")
    rig.in_lab("fault", "bmc-slow", "server-2", "0.3")  # so that it is still being secured when its BMC restarts
    rig.in_lab("fault", "rogue-dhcp", "on")
    rig.declare(by_http=["server-1", "server-2"], referenceValues="learned")
    rig.serve()
    rig.wait_state("securing", name="server-2")
    rig.in_lab("fault", "bmc-reboot", "server-2", "15")
    rig.in_lab("fault", "bmc-slow", "server-2", "0")
    for name, words in (("server-1", "HTTP 503"), ("server-2", "Cannot connect to host 172.30.1.12:443")):
        rig.wait_state("available", name=name)
        failed = [event for event in rig.events(name) if event.startswith("failed: ")]
        assert any(words in event for event in failed), rig.events(name)
        assert words in rig.freehold("describe", name).stdout
        assert rig.status(name).get("findings", []) == []  # over, and said to be over
    rogue = next(event for event in rig.events() if event.startswith("rogue-dhcp: "))
    assert "from 172.30.2.66" in rogue
    assert "http://172.30.2.66/rogue.efi" in rogue
    rig.in_lab("fault", "rogue-dhcp", "off")


def unsigned_agent(rig: SiteRig) -> None:
    """From now on the boot server offers the agent as it was before anybody signed it."""
    offered = rig.artifact("agent.efi")
    sections = uki.sections_of(offered.read_bytes())
    cmdline = sections[".cmdline"].rstrip(b"\0").decode()
    offered.write_bytes(uki.assemble(sections[".linux"], cmdline, sections[".osrel"], sections[".initrd"]))


def loses_power_while_it_writes(rig: SiteRig) -> None:
    rig.wait("writing", lambda status: status.get("step") == "write_image", seconds=120)
    rig.in_lab("fault", "power-loss", "server-1")
    rig.wait_event("the agent fell silent", "the machine is started into it anew")
    assert "the agent fell silent" in rig.freehold("describe", "server-1").stdout
    rig.wait_state("active")


def drifts_are_remediated_and_the_machine_attests_again(rig: SiteRig) -> None:
    rig.wait("first check", lambda status: status["facts"].get("baseline"))
    rig.redfish("PATCH", f"{SYSTEM}/SecureBoot", {"SecureBootEnable": False})
    rig.wait_event("Secure Boot is off", "declared on")
    remediated(rig, "secure-boot")
    assert rig.redfish("GET", f"{SYSTEM}/SecureBoot")["SecureBootCurrentBoot"] == "Enabled"

    rig.redfish("PATCH", f"{SYSTEM}/Bios/Settings", {"Attributes": {"LogicalProc": "Disabled"}})
    rig.in_lab("power", "server-1", "reset")
    remediated(rig, "bios-attribute")
    assert rig.redfish("GET", f"{SYSTEM}/Bios")["Attributes"]["LogicalProc"] == "Enabled"
    assert rig.events("server-1").count("moved: remediating -> active: drift remediated and checked again") == 2


def remediated(rig: SiteRig, kind: str) -> None:
    """The machine was restarted, and what it then booted has proved itself."""
    rig.wait_event(f"remediated {kind}")
    at = rig.status()["facts"]["last_remediation"]
    assert "--- reset" in rig.console()
    rig.wait("new proof", lambda status: status["state"] == "active" and rig.attested() > at)


def the_firmware_refused_and_a_person_is_told(rig: SiteRig) -> None:
    """Secure Boot with our keys is on since `preparing`: an image without our signature is not started."""
    said = rig.console("server-2")
    assert 'BdsDxe: failed to load Boot0F00 "BMC: UEFI HTTP"' in said
    assert "Access Denied" in said
    assert "Linux version" not in said
    rig.wait("hint", lambda status: "nothing was heard for" in status.get("waiting_for", ""), name="server-2")
    shown = rig.freehold("describe", "server-2").stdout
    assert "its firmware may have refused the image (Secure Boot)" in shown
    assert "look at its console" in shown


def another_board(rig: SiteRig) -> None:
    """The BMC of an active server has another key: nothing is sent to it. The BMC itself counts what it was asked."""
    rig.in_lab("fault", "bmc-errors", "server-1", "1000")
    rig.in_lab("fault", "bmc-certificate", "server-1")
    before = requests_left(rig)
    status = rig.wait_state("quarantined")
    assert "is not recognised: its certificate (key " in status["reason"], status["reason"]
    assert "nothing was sent to it" in status["reason"]
    assert requests_left(rig) == before
    assert status["quarantined_from"] == "active"


def requests_left(rig: SiteRig) -> int:
    """How many requests the BMC will still answer with an error: each that it gets is one less."""
    found = json.loads(rig.in_lab("status", "-o", "json").stdout)["servers"][0]
    return int(found["faults"]["bmc-errors"])
