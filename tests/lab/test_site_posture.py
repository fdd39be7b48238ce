"""`freehold audit` on the lab: clean after `securing`, and what was opened again behind our back is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from site_rig import SiteRig, site_rig

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

PROTOCOLS = "/redfish/v1/Managers/1/NetworkProtocol"
ACCOUNT = {"UserName": "mallory", "Password": "some-Password-1", "RoleId": "Administrator"}


def test_audit_names_what_was_opened_behind_our_back(tmp_path: Path) -> None:
    """The controller is stopped first, so that nothing is put right before it is seen."""
    with site_rig(tmp_path, "posture") as rig:
        rig.declare(referenceValues="learned")
        rig.serve()
        rig.wait("secured", lambda status: status.get("facts", {}).get("posture_recorded"), seconds=120)
        rig.stop()
        code, clean = audited(rig)
        assert (code, clean["clean"]) == (0, True), clean

        rig.redfish("POST", "/redfish/v1/AccountService/Accounts", ACCOUNT)
        rig.redfish("PATCH", PROTOCOLS, {"IPMI": {"ProtocolEnabled": True}, "SNMP": {"ProtocolEnabled": True}})
        code, found = audited(rig)
        assert (code, found["server"], found["clean"]) == (3, "server-1", False)
        named = {each["kind"]: each for each in found["findings"]}
        for kind, severity, evidence in (
            ("bmc-foreign-account", "critical", "Enabled is true"),
            ("bmc-ipmi-enabled", "critical", "NetworkProtocol.IPMI.ProtocolEnabled is true, port 623"),
            ("bmc-snmp-enabled", "warning", "SNMP on"),
        ):
            assert (named[kind]["subject"], named[kind]["severity"]) == ("server-1", severity)
            assert evidence in named[kind]["evidence"]
            assert named[kind]["remedy"]
        assert "'mallory'" in named["bmc-foreign-account"]["detail"]
        table = rig.freehold("audit", "--lab", str(rig.lab), check=False).stdout
        assert all(word in table for word in ("SEVERITY", "EVIDENCE", "REMEDY", "server-1", *named)), table

        rig.in_lab("fault", "factory-certificate", "server-1")
        code, refused = audited(rig)
        assert (code, refused["clean"], refused["findings"]) == (1, False, [])
        assert "certificate" in refused["error"]["what"], refused


def audited(rig: SiteRig) -> tuple[int, dict[str, Any]]:
    """Exit code and report on server-1."""
    done = rig.freehold("audit", "--lab", str(rig.lab), "-o", "json", check=False)
    (report,) = json.loads(done.stdout)["servers"]
    return done.returncode, report
