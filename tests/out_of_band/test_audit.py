"""The audit of one BMC: the pure verdict, and a whole one against the lab's BMC with a foreign IPMI port beside it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from ipmi_support import free_port, weak
from oob_support import TREES, Keys, running, tree_handler, unpack_trees

from freehold.model.findings import Finding, Severity
from freehold.out_of_band import server
from freehold.out_of_band.advisories import Firmware
from freehold.out_of_band.audit import Observed, audit, audit_bmc, firmware_of
from freehold.out_of_band.ipmi.probe import IpmiPosture
from freehold.out_of_band.posture import AccountFact, AccountPolicy, Posture, ServiceFact
from freehold.out_of_band.redfish import Credential, RedfishClient
from freehold.out_of_band.tls_versions import Outcome, TlsTrial
from freehold.out_of_band.transport import BmcIdentity, fetch_identity
from freehold_lab.bmc.context import BmcConfig
from freehold_lab.bmc.memory import MemoryHardware
from freehold_lab.bmc.service import serve

PROTOCOLS = "/redfish/v1/Managers/1/NetworkProtocol"
HOST_INTERFACE = "/redfish/v1/Managers/1/HostInterfaces/1"
CLOSED = Observed(
    posture=Posture(
        services=(ServiceFact(name="IPMI", enabled=False, port=623),),
        accounts=(AccountFact(uri="/a/2", username="freehold", role="Administrator", enabled=True),),
        policy=AccountPolicy(lockout_threshold=5),
        connectors=(),
    ),
    ipmi=IpmiPosture(address="172.30.1.11", silence="no answer"),
    tls=(TlsTrial(version="TLS 1.3", outcome=Outcome.ACCEPTED),),
    firmware=Firmware(vendors=("Halden Compute",), version="1.0"),
)


def test_a_closed_bmc_is_clean() -> None:
    report = audit("server-1", CLOSED, own_account="freehold")
    assert report.findings == ()
    assert report.clean


def test_what_redfish_says_and_what_the_port_answers_are_held_against_each_other() -> None:
    answers = msgspec.structs.replace(CLOSED, ipmi=IpmiPosture(address="172.30.1.11", present=True))
    report = audit("server-1", answers, own_account="freehold")
    assert [finding.kind for finding in report.findings] == ["ipmi-still-answers"]
    assert not report.clean


def test_a_password_that_another_bmc_has_too_is_critical_and_not_shown() -> None:
    report = audit("server-1", CLOSED, own_account="freehold", password_shared_with=("server-2",))
    (found,) = report.findings
    assert (found.kind, found.severity) == ("bmc-password-shared", Severity.CRITICAL)
    assert "server-2" in found.detail


def test_our_account_is_the_one_that_we_log_in_with() -> None:
    report = audit("server-1", CLOSED, own_account="Administrator")
    assert [finding.kind for finding in report.findings] == ["bmc-foreign-account"]


def test_a_remark_leaves_a_server_clean() -> None:
    on = msgspec.structs.replace(CLOSED.posture, services=(ServiceFact(name="SSDP", enabled=True, port=1900),))
    report = audit("server-1", msgspec.structs.replace(CLOSED, posture=on), own_account="freehold")
    assert [finding.severity for finding in report.findings] == [Severity.INFO]
    assert report.clean


def test_oddities_met_while_reading_are_told() -> None:
    oddity = Finding(severity=Severity.INFO, kind="redfish-oddity", subject="/a", detail="d", remedy="r")
    odd = msgspec.structs.replace(CLOSED, posture=msgspec.structs.replace(CLOSED.posture, findings=(oddity,)))
    assert audit("server-1", odd, own_account="freehold").findings == (oddity,)


def test_how_a_bmc_names_itself() -> None:
    manager = {"Model": "iLO 5", "FirmwareVersion": "iLO 5 v3.14"}
    named = firmware_of({"Product": "ProLiant", "Vendor": "HPE"}, {"Manufacturer": "HPE "}, manager, ["IPMI"])
    assert named == Firmware(
        vendors=("HPE",), product="ProLiant", bmc="iLO 5", version="iLO 5 v3.14", services=frozenset({"IPMI"})
    )
    assert firmware_of({"Oem": {"Ami": {}}}, {"Manufacturer": "Lenovo"}, {}, []).product == "AMI"
    assert firmware_of({"Oem": None, "Vendor": None}, {}, {}, []) == Firmware()


@asynccontextmanager
async def lab_bmc(directory: Path) -> AsyncIterator[tuple[RedfishClient, str]]:
    """Factory-new, over TLS on loopback: the client and the address."""
    runner = await serve(MemoryHardware(), BmcConfig("factory-pass", directory, port=0))
    address = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        identity = BmcIdentity(spki_sha256=(await fetch_identity(address)).spki_sha256)
        async with RedfishClient.connect(address, identity, Credential("root", "factory-pass")) as client:
            yield client, address
    finally:
        await runner.cleanup()


@pytest.mark.host
async def test_a_factory_bmc_shows_all_that_is_wrong_with_it(tmp_path: Path) -> None:
    async with weak(tmp_path / "ipmi") as port, lab_bmc(tmp_path / "bmc") as (client, address):
        await client.patch(PROTOCOLS, {"IPMI": {"Port": port}})
        report = audit("server-1", await audit_bmc(client, address), own_account="freehold")
    found = {finding.kind for finding in report.findings if finding.severity is not Severity.INFO}
    assert found == {
        "bmc-ipmi-enabled",
        "bmc-snmp-default-community",
        "bmc-snmp-enabled",
        "bmc-foreign-account",
        "bmc-host-interface",
        "bmc-host-interface-bootstrapping",
        "bmc-known-vulnerability",  # CVE-2013-4786, while IPMI is on
        "ipmi-answers",
        "ipmi-cipher-zero",
        "ipmi-anonymous",
        "ipmi-auth-none",
        "ipmi-weak-auth",
        "ipmi-hash-disclosed",
        "ipmi-default-user",
        "ipmi-weak-cipher-suites",
    }
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities, key=[Severity.CRITICAL, Severity.WARNING, Severity.INFO].index)
    assert all(finding.subject == "server-1" for finding in report.findings)
    assert all(finding.evidence.strip() and finding.remedy.strip() for finding in report.findings)
    text = msgspec.json.encode(report).decode()
    assert "a-long-password" not in text
    assert "factory-pass" not in text


async def test_a_bmc_that_was_closed_is_clean(tmp_path: Path) -> None:
    async with lab_bmc(tmp_path / "bmc") as (client, address):
        off = {name: {"ProtocolEnabled": False} for name in ("IPMI", "SNMP", "SSDP")}
        off["IPMI"]["Port"] = free_port()
        await client.patch(PROTOCOLS, off)
        await client.patch(HOST_INTERFACE, {"InterfaceEnabled": False, "CredentialBootstrapping": {"Enabled": False}})
        observed = await audit_bmc(client, address)
        report = audit("server-1", observed, own_account="root")
    assert report.clean
    assert {finding.kind for finding in report.findings} <= {"bmc-tls-untested"}  # of an OpenSSL without TLS 1.0
    assert {trial.outcome for trial in observed.tls if trial.version in ("TLS 1.2", "TLS 1.3")} == {Outcome.ACCEPTED}
    assert observed.ipmi.silence == "port unreachable (ICMP)"


async def test_snmp_with_version_3_only_and_a_host_interface_without_bootstrapping(tmp_path: Path) -> None:
    async with lab_bmc(tmp_path / "bmc") as (client, _):
        await client.patch(PROTOCOLS, {"SNMP": {"EnableSNMPv1": False, "EnableSNMPv2c": False}})
        await client.patch(HOST_INTERFACE, {"CredentialBootstrapping": {"Enabled": False}})
        posture = await server.read_posture(client)
    kinds = {finding.kind for finding in server.posture_findings(posture, subject="s1")}
    assert "bmc-host-interface" in kinds
    assert not kinds & {"bmc-snmp-enabled", "bmc-snmp-default-community", "bmc-host-interface-bootstrapping"}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.slow
async def test_the_real_trees_are_audited_as_far_as_they_go(tmp_path: Path, name: str) -> None:
    """The HPE tree is of an iLO 5 3.14, of which the file knows nothing bad; DMTF's says that its IPMI is on."""
    trees = unpack_trees(tmp_path)
    async with running(Keys(tmp_path, "bmc"), tree_handler(trees / name)) as bmc:
        identity = BmcIdentity(spki_sha256=(await fetch_identity(bmc.address)).spki_sha256)
        async with RedfishClient.connect(bmc.address, identity, Credential("root", "x")) as client:
            observed = await audit_bmc(client, bmc.address)
    report = audit("s1", observed, own_account="Administrator")
    assert report.findings
    assert all(finding.evidence.strip() and finding.remedy.strip() for finding in report.findings)
    kinds = [finding.kind for finding in report.findings]
    hpe = name.startswith("hpe")
    assert observed.firmware.vendors[0] == ("HPE" if hpe else "Contoso")
    assert ("ipmi-silent" in kinds) is not hpe
    assert ("bmc-known-vulnerability" in kinds) is not hpe
    assert "bmc-snmp-enabled" in kinds
