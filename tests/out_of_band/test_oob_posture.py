"""How open a BMC stands: what the vendors' data tells, and what it amounts to."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.model.findings import Severity
from freehold.out_of_band.connectors import CloudConnector, connectors_in, service_advisor_uri
from freehold.out_of_band.errors import BmcError
from freehold.out_of_band.external_accounts import ExternalProvider
from freehold.out_of_band.posture import (
    POSTURE_KINDS,
    AccountFact,
    AccountPolicy,
    HostInterfaceFact,
    Posture,
    ServiceFact,
    disproved,
    posture_findings,
    read_accounts,
    read_posture,
)
from freehold.out_of_band.redfish import Credential, RedfishClient
from freehold.out_of_band.snmp import Snmp, snmp_in
from freehold.out_of_band.transport import Answer, BmcIdentity, Call, HttpsTransport, Transport, fetch_identity
from freehold_lab.bmc.context import BmcConfig
from freehold_lab.bmc.memory import MemoryHardware
from freehold_lab.bmc.service import serve

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
CLOSED = Posture(
    services=(ServiceFact(name="IPMI", enabled=False, port=623), ServiceFact(name="HTTPS", enabled=True, port=443)),
    accounts=(AccountFact(uri="/a/2", username="freehold", role="Administrator", enabled=True),),
    policy=AccountPolicy(lockout_threshold=5),
    connectors=(CloudConnector(name="Call home", state="False", source="/c: Enabled", enabled=False),),
    snmp=Snmp(enabled=True, v1=False, v2c=False, defaults=("public",)),
    host_interfaces=(HostInterfaceFact(uri="/h/1", enabled=False, no_auth=True, bootstrapping=True),),
)


def kinds(posture: Posture) -> list[str]:
    found = [finding.kind for finding in posture_findings(posture, subject="s1")]
    assert set(found) <= POSTURE_KINDS  # else it would never be resolved
    return found


def connectors(manager: Any, **resources: Any) -> list[tuple[str, bool]]:
    parts = {"remote_support": {}, "dell_attributes": {}, "service_advisor": {}} | resources
    return [(each.name, each.enabled) for each in connectors_in(manager, **parts)]


def test_posture_findings_name_what_is_wrong_worst_first() -> None:
    posture = Posture(
        services=(ServiceFact(name="IPMI", enabled=True, port=623), ServiceFact(name="SSDP", enabled=True, port=1900)),
        accounts=(
            AccountFact(uri="/a/1", username="root", role="Administrator", enabled=True),
            AccountFact(uri="/a/2", username="freehold", role="Administrator", enabled=True),
            AccountFact(uri="/a/3", username="old", role="", enabled=False),
        ),
        policy=AccountPolicy(lockout_threshold=0),
        connectors=(CloudConnector(name="HPE COM", state="Connected", source="/m: Status", enabled=True),),
    )
    findings = posture_findings(posture, subject="s1")
    assert [finding.kind for finding in findings] == [
        "bmc-ipmi-enabled",
        "bmc-foreign-account",
        "bmc-cloud-connector",
        "bmc-no-lockout",
        "bmc-ssdp-enabled",
    ]
    assert findings[0].evidence == "NetworkProtocol.IPMI.ProtocolEnabled is true, port 623"
    assert "'root'" in findings[1].detail
    assert "Connected" in findings[2].detail
    assert findings[2].evidence == "/m: Status is Connected"
    assert all(finding.evidence.strip() for finding in findings)


def test_every_kind_of_finding_is_one_that_the_next_look_can_take_back() -> None:
    names = ("IPMI", "Telnet", "HTTP", "SSDP")
    everything = Posture(
        services=tuple(ServiceFact(name=name, enabled=True, port=1) for name in names),
        accounts=(AccountFact(uri="/a/1", username="root", role="Administrator", enabled=True),),
        policy=AccountPolicy(),
        connectors=(CloudConnector(name="Call home", state="True", source="/c: Enabled", enabled=True),),
        snmp=Snmp(enabled=True, v1=True, v2c=True, defaults=("public",)),
        host_interfaces=(HostInterfaceFact(uri="/h/1", enabled=True, no_auth=True, bootstrapping=True),),
        external_providers=(ExternalProvider(name="LDAP", uri="/a", addresses=("10.0.0.1",)),),
        services_told=False,
        unread={"/x": "500"},
    )
    assert set(kinds(everything)) == POSTURE_KINDS
    for finding in posture_findings(everything, subject="s1"):  # each with all that an audit lists
        assert finding.evidence.strip(), finding
        assert finding.remedy.strip(), finding


def test_what_could_not_be_read_takes_no_finding_back() -> None:
    assert disproved(CLOSED) == POSTURE_KINDS
    for change in ({"unread": {"/a": "500"}}, {"services_told": False}):
        assert disproved(msgspec.structs.replace(CLOSED, **change)) == {"bmc-unread", "bmc-services-unknown"}


def test_a_closed_bmc_has_no_findings() -> None:
    assert kinds(CLOSED) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"snmp": Snmp(enabled=True)}, ["bmc-snmp-enabled"]),
        ({"snmp": Snmp(enabled=True, v1=True, v2c=False)}, ["bmc-snmp-enabled"]),
        ({"snmp": Snmp(enabled=False, v1=True, defaults=("public",))}, []),
        (
            {"snmp": Snmp(enabled=True, v2c=True, defaults=("public",))},
            ["bmc-snmp-default-community", "bmc-snmp-enabled"],
        ),
    ],
)
def test_snmp_by_community_is_found(change: dict[str, Any], expected: list[str]) -> None:
    assert kinds(msgspec.structs.replace(CLOSED, **change)) == expected


@pytest.mark.parametrize(
    ("no_auth", "bootstrapping", "expected"),
    [
        (False, False, ["bmc-host-interface"]),
        (True, False, ["bmc-host-interface-no-auth", "bmc-host-interface"]),
        (False, True, ["bmc-host-interface-bootstrapping", "bmc-host-interface"]),
    ],
)
def test_a_host_interface_that_is_on_is_found(no_auth: bool, bootstrapping: bool, expected: list[str]) -> None:
    fact = HostInterfaceFact(uri="/h/1", enabled=True, no_auth=no_auth, bootstrapping=bootstrapping)
    findings = posture_findings(msgspec.structs.replace(CLOSED, host_interfaces=(fact,)), subject="s1")
    assert [finding.kind for finding in findings] == expected
    assert all(finding.evidence.startswith("/h/1: ") for finding in findings)


# ---- cloud connectors


@pytest.mark.parametrize(
    ("status", "enabled"),
    [("NotEnabled", False), ("DisabledByCOM", False), ("Connected", True), ("DNSResolutionError", True)],
)
def test_compute_ops_management_is_on_while_it_tries(status: str, enabled: bool) -> None:
    manager = {"Oem": {"Hpe": {"CloudConnect": {"CloudConnectStatus": status}}}}
    assert connectors(manager) == [("HPE Compute Ops Management", enabled)]


def test_support_assist_of_an_idrac() -> None:
    """Names and values as an iDRAC 9 has them; it is off from the factory."""
    attributes = {
        "SupportAssist.1.EmailOptIn": "Yes",
        "SupportAssist.1.EventBasedAutoCollection": "Disabled",
        "SupportAssist.1.SupportAssistEnableState": "Disabled",
        "SwitchConnectionView.1.Enable": "Enabled",
    }
    name = "Dell SupportAssist.1.SupportAssistEnableState"
    assert connectors({}, dell_attributes={"Attributes": attributes}) == [(name, False)]
    on = attributes | {"SupportAssist.1.SupportAssistEnableState": "Enabled"}
    assert connectors({}, dell_attributes={"Attributes": on}) == [(name, True)]


def test_call_home_of_lenovo_is_where_its_service_advisor_is() -> None:
    uri = "/redfish/v1/Managers/1/Oem/Lenovo/ServiceAdvisor"
    assert service_advisor_uri({"Oem": {"Lenovo": {"ServiceAdvisor": uri}}}) == uri
    assert service_advisor_uri({"Oem": {"Lenovo": {"ServiceAdvisor": {"@odata.id": uri}}}}) == uri
    assert service_advisor_uri({"Oem": {"Lenovo": {}}}) is None
    assert connectors({}, service_advisor={"CallHomeEnabled": True}) == [("Lenovo call home", True)]


@given(_JSON)
def test_strange_oem_data_has_no_connectors(value: Any) -> None:
    assert connectors({"Oem": value}) == []
    assert service_advisor_uri({"Oem": value, "Links": value}) is None


# ---- SNMP


def snmp(network: Any, **resources: Any) -> Snmp | None:
    return snmp_in(network, **({"hpe_snmp": {}, "dell_attributes": {}} | resources))


def test_snmp_as_the_standard_tells_it() -> None:
    network = {
        "SNMP": {
            "ProtocolEnabled": True,
            "EnableSNMPv1": True,
            "EnableSNMPv2c": False,
            "CommunityStrings": [
                {"CommunityString": "public"},
                {"CommunityString": "s3cret"},
                {"CommunityString": None},
            ],
        }
    }
    found = snmp(network)
    assert found == Snmp(enabled=True, v1=True, v2c=False, defaults=("public",), hidden=True)
    assert "s3cret" not in repr(found)
    assert snmp({}) is None


def test_snmp_of_an_ilo_is_told_by_its_own_service() -> None:
    network = {"SNMP": {"ProtocolEnabled": True, "Port": 161}}
    on = snmp(network, hpe_snmp={"SNMPv1RequestsEnabled": True, "ReadCommunities": ["public", "", ""]})
    assert on == Snmp(enabled=True, v1=True, defaults=("public",))
    off = snmp(network, hpe_snmp={"SNMPv1RequestsEnabled": False, "SNMPv1Enabled": True, "ReadCommunities": ["", ""]})
    assert off is not None
    assert not off.by_community


def test_snmp_of_an_idrac_is_told_by_its_attributes() -> None:
    network = {"SNMP": {"ProtocolEnabled": True}}
    attributes = {"SNMP.1.AgentCommunity": "public", "SNMP.1.AgentEnable": "Enabled", "SNMP.1.SNMPProtocol": "All"}
    found = snmp(network, dell_attributes={"Attributes": attributes})
    assert found == Snmp(enabled=True, v1=True, v2c=True, defaults=("public",))
    v3 = snmp(network, dell_attributes={"Attributes": attributes | {"SNMP.1.SNMPProtocol": "SNMPv3"}})
    assert v3 is not None
    assert not v3.by_community


@given(_JSON, _JSON, _JSON)
def test_strange_data_does_not_crash_snmp(protocol: Any, communities: Any, value: Any) -> None:
    network = {"SNMP": {"ProtocolEnabled": value, "CommunityStrings": communities, "EnableSNMPv1": value}}
    assert snmp(network, hpe_snmp={"ReadCommunities": communities}, dell_attributes={"Attributes": value}) is not None
    assert snmp({"SNMP": protocol}) is None or isinstance(protocol, dict)


# ---- what could not be read


class Refusing:
    """The lab's BMC; answers `status` for each of `paths`, and leaves `without` out of its Manager."""

    def __init__(
        self, inner: Transport, paths: tuple[str, ...] = (), status: int = 500, without: str = "", adding: Any = None
    ) -> None:
        self._adding: dict[str, Any] = adding or {}
        self._inner, self._paths, self._status, self._without = inner, paths, status, without

    async def close(self) -> None:
        await self._inner.close()

    async def request(self, call: Call) -> Answer:
        if call.path in self._paths:
            return Answer(status=self._status, body={"error": {"message": "internal error"}})
        answer = await self._inner.request(call)
        if call.path in self._adding and answer.status == 404:
            answer = Answer(status=200, body={})
        if call.path in self._adding and answer.body is not None:
            answer.body.update(self._adding[call.path])
        if call.path == MANAGER and answer.body is not None:
            answer.body.pop(self._without, None)
            answer.body["Oem"] = {"Hpe": {"Links": {"RemoteSupport": {"@odata.id": SUPPORT}}}}
        return answer


MANAGER, SUPPORT = "/redfish/v1/Managers/1", "/redfish/v1/RemoteSupport"
ACCOUNTS = "/redfish/v1/AccountService"
INTERFACES, NETWORK = f"{MANAGER}/HostInterfaces", f"{MANAGER}/NetworkProtocol"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bmc")


@asynccontextmanager
async def refusing(directory: Path, *paths: str, **how: Any) -> AsyncIterator[RedfishClient]:
    runner = await serve(MemoryHardware(), BmcConfig("factory-pass", directory, port=0))
    address = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        identity = BmcIdentity(spki_sha256=(await fetch_identity(address)).spki_sha256)
        transport = Refusing(HttpsTransport(address, identity), paths, **how)
        async with RedfishClient(transport, Credential("root", "factory-pass")) as client:
            yield client
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("status", [500, 403, 405])
@pytest.mark.parametrize("path", [INTERFACES, f"{INTERFACES}/1", SUPPORT])
async def test_what_could_not_be_read_is_not_taken_for_absent(lab: Path, path: str, status: int) -> None:
    async with refusing(lab, path, status=status) as client:
        posture = await read_posture(client)
    (found,) = [each for each in posture_findings(posture, subject="s1") if each.kind == "bmc-unread"]
    assert found.severity is Severity.WARNING
    assert (INTERFACES if path != SUPPORT else SUPPORT) in found.detail
    assert f"HTTP {status}" in found.evidence or (path, status) == (f"{INTERFACES}/1", 405)


async def test_an_account_that_is_listed_and_not_there_is_said(lab: Path) -> None:
    account = "/redfish/v1/AccountService/Accounts/1"
    async with refusing(lab, account, status=404) as client:
        posture = await read_posture(client)
    assert posture.unread == {account: "listed, and not there"}


async def test_what_is_not_there_is_not_there(lab: Path) -> None:
    async with refusing(lab, INTERFACES, SUPPORT, status=404) as client:
        posture = await read_posture(client)
    assert posture.unread == {}
    assert "bmc-unread" not in kinds(posture)


@pytest.mark.parametrize("how", [{"paths": (NETWORK,), "status": 404}, {"without": "NetworkProtocol"}])
async def test_a_bmc_that_does_not_tell_its_services_is_found(lab: Path, how: dict[str, Any]) -> None:
    paths = how.pop("paths", ())
    async with refusing(lab, *paths, **how) as client:
        posture = await read_posture(client)
    assert "bmc-services-unknown" in kinds(posture)


async def test_services_that_cannot_be_read_stop_the_audit(lab: Path) -> None:
    async with refusing(lab, NETWORK, status=500) as client:
        with pytest.raises(BmcError, match="HTTP 500"):
            await read_posture(client)


def test_an_enabled_account_without_a_name_is_found() -> None:
    anonymous = AccountFact(uri="/a/1", username="", role="Administrator", enabled=True)
    (found,) = posture_findings(msgspec.structs.replace(CLOSED, accounts=(anonymous,)), subject="s1")
    assert (found.kind, found.severity) == ("bmc-foreign-account", Severity.CRITICAL)
    assert found.detail == "an account without a name (Administrator) is enabled"
    assert found.evidence == "/a/1: Enabled is true"


@pytest.mark.parametrize(("enabled", "counts"), [(True, True), (False, False), (None, False)])
async def test_an_empty_slot_is_an_account_only_if_it_is_enabled(lab: Path, enabled: Any, counts: bool) -> None:
    async with refusing(lab) as client:
        slot = {"@odata.id": "/a/9", "UserName": "", "RoleId": "Administrator", "Enabled": enabled}
        client.members = AsyncMock(return_value=[slot])  # type: ignore[method-assign]
        found = await read_accounts(client)
    assert [each.uri for each in found] == (["/a/9"] if counts else [])


# ---- directories


DIRECTORY = {"ServiceEnabled": True, "ServiceAddresses": ["ldaps://10.0.0.1"]}


async def test_a_directory_that_may_log_people_in_is_found(lab: Path) -> None:
    more = f"{ACCOUNTS}/ExternalAccountProviders"
    adding = {
        ACCOUNTS: {
            "LDAP": DIRECTORY,
            "ActiveDirectory": {"ServiceEnabled": False},
            "OAuth2": None,
            "AdditionalExternalAccountProviders": {"@odata.id": more},
        },
        more: {"Members": [{"@odata.id": f"{more}/1", "ServiceEnabled": True}]},
    }
    async with refusing(lab, adding=adding) as client:
        posture = await read_posture(client)
    assert [each.name for each in posture.external_providers] == ["LDAP", f"{more}/1"]
    (found,) = [each for each in posture_findings(posture, subject="s1") if each.kind == "bmc-external-accounts"]
    assert found.severity is Severity.CRITICAL
    assert "LDAP (ldaps://10.0.0.1)" in found.detail


async def test_directories_that_cannot_be_read_are_said(lab: Path) -> None:
    more = f"{ACCOUNTS}/ExternalAccountProviders"
    adding = {ACCOUNTS: {"AdditionalExternalAccountProviders": {"@odata.id": more}}}
    async with refusing(lab, more, status=403, adding=adding) as client:
        posture = await read_posture(client)
    assert list(posture.unread) == [more]
    assert posture.external_providers == ()
