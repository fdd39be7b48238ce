"""The audit of a lab: not ours, clean once it is, and then each thing that somebody does to its BMC behind our back is
named, as a table and as JSON, while the controller undoes what policy lets it undo."""

import json
import re
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from site_rig import SiteRig, site_rig

from freehold.orchestration.opening import open_vault

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]
ROOT = "/redfish/v1"
ACCOUNTS, PROTOCOLS = f"{ROOT}/AccountService/Accounts", f"{ROOT}/Managers/1/NetworkProtocol"
DB = f"{ROOT}/Systems/1/SecureBoot/SecureBootDatabases/db/Certificates"
TOLD = ("kind", "severity", "subject", "detail", "evidence", "remedy")


def table_rows(table: str) -> list[tuple[str, str, str, str]]:
    """(server, severity, kind, remedy) of each row that has all five cells. The table cuts and wraps nothing; its
    columns are at least three spaces apart, and an empty cell leaves none behind."""
    rows = [re.split(" {3,}", line) for line in table.splitlines()[1:]]
    return [(row[0], row[1], row[2].partition(":")[0], row[4]) for row in rows if len(row) == 5]


def audited(rig: SiteRig, code: int) -> dict[str, dict[str, Any]]:
    """The findings by kind, once the table has named each of them with all that belongs to it."""
    command = ("audit", "server-1", "--lab", str(rig.lab))
    table = rig.freehold(*command, check=False)
    assert table.returncode == code, table.stdout + table.stderr
    told = rig.freehold(*command, "-o", "json", check=False)
    answer = json.loads(told.stdout)
    (server,) = answer["servers"]
    assert server["clean"] is (code == 0)
    for found in (*answer["site"], *server["findings"]):
        assert all(found[field].strip() for field in TOLD), found
    rows = table_rows(table.stdout)
    for found in server["findings"]:
        assert ("server-1", found["severity"], found["kind"], found["remedy"]) in rows, (found, table.stdout)
    return {found["kind"]: found for found in server["findings"] if found["severity"] != "info"}


def recorded(rig: SiteRig) -> str:
    stored = open_vault(rig.state).get("bmc/server-1/current")
    assert stored is not None
    return str(json.loads(stored)["password"])


def rotated_in_spite_of(rig: SiteRig, killed_after: float | None) -> str:
    """The new password of a rotation in which the controller is killed so many seconds after it began, or else the BMC
    starts anew. The BMC answers slowly, so that it happens in the middle. Nobody is locked out, and nothing is
    quarantined."""
    asked = time.time()
    rig.in_lab("fault", "bmc-slow", "server-1", "0.4")
    rig.freehold("rotate", "server-1", "--reason", "test")
    if killed_after is not None:
        rig.kill_during("rotate_credential", killed_after)
    else:
        time.sleep(2.0)
        rig.in_lab("fault", "bmc-reboot", "server-1", "2")
    rig.in_lab("fault", "bmc-slow", "server-1", "0")
    if killed_after is not None:
        rig.serve()

    def rotated(status: dict[str, Any]) -> bool:
        assert status["state"] == "available", status["reason"]
        return bool(status["facts"]["bmc_credential_since"] > asked)

    rig.wait("new password", rotated)
    return recorded(rig)


def killed_while_it_secures(rig: SiteRig) -> None:
    """In the first change of the password and in that of the certificate, by a BMC that answers slowly."""
    rig.in_lab("fault", "bmc-slow", "server-1", "0.4")
    rig.serve()
    rig.found_operators()
    for step, seconds in (("take_over_credential", 0.8), ("install_certificate", 0.4)):
        rig.kill_during(step, seconds)
        rig.serve()
    rig.in_lab("fault", "bmc-slow", "server-1", "0")


def ipmi_is_probed_before_anything_goes_on(rig: SiteRig) -> None:
    """The BMC says that its IPMI is off, and lies: nothing goes on until its port is silent."""
    status = rig.wait("a probe of UDP 623", lambda status: "port 623 to be silent" in status["waiting_for"])
    assert (status["state"], status["step"]) == ("securing", "disable_ipmi")
    protocols = rig.redfish("GET", PROTOCOLS)
    assert protocols["IPMI"]["ProtocolEnabled"] is False
    (lie,) = [found for found in rig.server()["status"]["findings"] if found["kind"] == "ipmi-still-answers"]
    assert lie["severity"] == "critical"
    rig.in_lab("fault", "clear")


def foreign_certificate() -> str:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "somebody else's db")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    made = made.not_valid_before(datetime(2026, 1, 1)).not_valid_after(datetime(2036, 1, 1))
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def test_the_audit_names_what_is_wrong_and_is_clean_after_securing(tmp_path: Path) -> None:
    with site_rig(tmp_path, "audit") as rig:
        rig.declare()
        not_ours = rig.freehold("audit", "--lab", str(rig.lab), check=False)
        assert (not_ours.returncode, "not audited" in not_ours.stdout) == (1, True)
        rig.in_lab("fault", "ipmi-stays-on", "server-1", "on")
        killed_while_it_secures(rig)
        ipmi_is_probed_before_anything_goes_on(rig)
        rig.approve_firmware()
        rig.wait_state("available")
        assert audited(rig, 0) == {}

        passwords = [recorded(rig)]
        for seconds in (0.0, 0.8, 1.6, None):
            passwords.append(rotated_in_spite_of(rig, seconds))
        assert len(set(passwords)) == len(passwords)
        assert audited(rig, 0) == {}

        rig.stop()  # nobody undoes it meanwhile
        intruder = {"UserName": "mallory", "Password": "Mallory-2026-x", "RoleId": "Administrator", "Enabled": True}
        rig.redfish("POST", ACCOUNTS, intruder)
        rig.redfish("PATCH", PROTOCOLS, {"IPMI": {"ProtocolEnabled": True}})
        rig.redfish("POST", DB, {"CertificateString": foreign_certificate(), "CertificateType": "PEM"})
        found = audited(rig, 3)
        assert {"bmc-foreign-account", "bmc-ipmi-enabled", "secure-boot-foreign-key"} <= set(found), sorted(found)
        spoken = {kind: each["evidence"] for kind, each in found.items() if kind.startswith("ipmi-")}
        assert {"ipmi-answers", "ipmi-cipher-zero", "ipmi-auth-none", "ipmi-hash-disclosed"} <= set(spoken)
        assert all(spoken.values())
        assert "port 623 answered, IPMI 1.5 and 2.0" in spoken["ipmi-answers"]
        assert "root" in found["ipmi-hash-disclosed"]["detail"]
        assert "mallory" in found["bmc-foreign-account"]["detail"]
        assert found["secure-boot-foreign-key"]["severity"] == "critical"

        rig.in_lab("fault", "factory-certificate", "server-1")
        (stranger,) = audited(rig, 3).values()
        assert (stranger["kind"], stranger["severity"]) == ("bmc-identity", "critical")
        assert "nothing was sent to it" in stranger["evidence"]
