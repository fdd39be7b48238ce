"""A site whose Secure Boot keys change under its server: enrolled by the image, then by the BMC, never quarantined."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from site_rig import SiteRig, site_rig

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]
WHY = ("--reason", "test")


def declare(rig: SiteRig, hostname: str | None) -> None:
    """The lab's inventory, with an assignment under this host name, or without one."""
    documents = list(yaml.safe_load_all((rig.lab / "inventory.yaml").read_text()))
    for document in documents:
        if document["kind"] == "Assignment":
            document["spec"]["hostname"] = hostname
    wanted = [document for document in documents if hostname or document["kind"] != "Assignment"]
    path = rig.lab / "declared.yaml"
    path.write_text(yaml.safe_dump_all(wanted))
    rig.freehold("apply", "-f", str(path))


def agents(rig: SiteRig) -> dict[str, Path]:
    return {path.parent.name: path for path in rig.state.glob("images/*/agent.efi")}


def built(agent: Path) -> float:
    return agent.with_name("content.json").stat().st_mtime


def wait_generation(rig: SiteRig, number: int) -> None:
    def carried(status: dict[str, Any]) -> bool:
        assert status["state"] != "quarantined", status["reason"]
        facts = status["facts"]
        return facts.get("secure_boot_generation") == number and not facts.get("secure_boot_changing")

    rig.wait(f"generation {number}", carried)


def restart(rig: SiteRig) -> None:
    """The controller builds and signs anew, with the keys that there are now."""
    rig.stop()
    rig.serve()


def attested_again(rig: SiteRig, since: float) -> None:
    rig.wait("new proof", lambda status: status["state"] == "active" and rig.attested() > since)


def test_keys_change_under_a_server_and_nothing_is_quarantined(tmp_path: Path) -> None:
    with site_rig(tmp_path, "keys") as rig:
        declare(rig, None)
        rig.in_lab("fault", "secure-boot-hidden", "server-1", "on")
        rig.serve()
        rig.found_operators()
        rig.approve_firmware()
        rig.wait_state("available")
        wait_generation(rig, 1)
        assert any("started into the enrolment image" in event for event in rig.events())
        rig.in_lab("fault", "secure-boot-hidden", "server-1", "off")
        (first,) = agents(rig)
        bad = tmp_path / "bad.efi"
        bad.write_bytes(agents(rig)[first].read_bytes().replace(b"console=ttyS0", b"console=ttyS1"))

        # A second key in db, while the agent bears a signature of the first one only; then the agent bears both.
        rig.freehold("secureboot", "rotate", "db", *WHY)
        wait_generation(rig, 2)
        restart(rig)
        declare(rig, "web-1")
        rig.wait_state("active")

        # What happens to the keys does not reach the server while it is in use.
        refused = rig.freehold("secureboot", "revoke", str(max(agents(rig).values(), key=built)), *WHY, check=False)
        assert "what this site boots now" in refused.stderr
        rig.freehold("secureboot", "revoke", str(bad), *WHY)
        rig.freehold("secureboot", "rotate", "db", "--finish", *WHY)
        since = rig.attested()
        rig.in_lab("power", "server-1", "reset")
        attested_again(rig, since)
        since = rig.attested()
        restart(rig)
        attested_again(rig, since)
        wait_generation(rig, 2)
        assert len(agents(rig)) == 3

        # Given back, it gets the newest, by an agent that its old keys and its new ones admit; and it boots by them.
        rig.freehold("decommission", "server-1", "--yes", *WHY)
        rig.wait_state("available", seconds=600)
        wait_generation(rig, 4)
        declare(rig, "web-2")
        rig.wait_state("attesting")
        assert not any("quarantined" in event for event in rig.events())
        with pytest.raises(AssertionError, match="is in dbx already"):
            rig.freehold("secureboot", "revoke", str(bad), *WHY)
