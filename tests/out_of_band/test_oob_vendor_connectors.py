"""Dell's and Lenovo's ways home, and iDRAC's SNMP, read from a served tree and judged.

The names, the links and the values of a BMC as it came are those of a dump of an iDRAC 9 (5.10.00.00, 15G) and of
Lenovo's own Redfish examples (XClarity Controller). CloudIQ's attribute was seen nowhere: its name here is a guess.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from oob_support import Keys, running, tree_handler

from freehold.model.findings import Finding, Severity
from freehold.out_of_band.connectors import dell_attributes_uri
from freehold.out_of_band.posture import Posture, posture_findings, read_posture
from freehold.out_of_band.redfish import Credential, RedfishClient
from freehold.out_of_band.transport import BmcIdentity, fetch_identity

ROOT = "/redfish/v1"
IDRAC, XCC = f"{ROOT}/Managers/iDRAC.Embedded.1", f"{ROOT}/Managers/1"
GROUPS = [
    f"{IDRAC}/Oem/Dell/DellAttributes/{name}"
    for name in ("iDRAC.Embedded.1", "System.Embedded.1", "LifecycleController.Embedded.1")
]
ADVISOR = f"{XCC}/Oem/Lenovo/ServiceAdvisor"
FACTORY = {
    "SNMP.1.AgentCommunity": "public",
    "SNMP.1.AgentEnable": "Enabled",
    "SNMP.1.SNMPProtocol": "All",
    "SNMP.1.TrapFormat": "SNMPv1",
    "SupportAssist.1.DefaultPassword": None,
    "SupportAssist.1.EmailOptIn": "Yes",
    "SupportAssist.1.EventBasedAutoCollection": "Disabled",
    "SupportAssist.1.HostOSProxyConfigured": "No",
    "SupportAssist.1.SupportAssistEnableState": "Disabled",
    "SwitchConnectionView.1.Enable": "Enabled",
}
CALL_HOME = {
    "AgreementAccepted": False,
    "CallHomeEnabled": False,
    "CallHomeSettings": {"ContactName": ""},
    "CountryCode": "US",
    "HTTPProxy": {"ProxyEnabled": False},
}


def tree_of(manager: str, vendor: dict[str, Any], snmp: bool = False) -> dict[str, Any]:
    """URI to body: as much of a BMC as its posture is read from."""
    account = f"{ROOT}/AccountService/Accounts/2"
    return {
        ROOT: {
            "Managers": {"@odata.id": f"{ROOT}/Managers"},
            "AccountService": {"@odata.id": f"{ROOT}/AccountService"},
            "Links": {"Sessions": {"@odata.id": f"{ROOT}/SessionService/Sessions"}},
        },
        f"{ROOT}/Managers": {"Members": [{"@odata.id": manager}]},
        manager: {"NetworkProtocol": {"@odata.id": f"{manager}/NetworkProtocol"}, **vendor},
        f"{manager}/NetworkProtocol": {
            "HTTPS": {"ProtocolEnabled": True, "Port": 443},
            "SNMP": {"ProtocolEnabled": snmp, "Port": 161},
        },
        f"{ROOT}/AccountService": {"AccountLockoutThreshold": 5, "Accounts": {"@odata.id": f"{account[:-2]}"}},
        account[:-2]: {"Members": [{"@odata.id": account}]},
        account: {"UserName": "freehold", "RoleId": "Administrator", "Enabled": True},
    }


def idrac(
    changes: dict[str, Any] | None = None, groups: list[str] | None = None, snmp: bool = False
) -> dict[str, dict[str, Any]]:
    """An iDRAC 9 as it came, with `changes` of its attributes. The other groups must not be taken for the manager's."""
    listed = GROUPS if groups is None else groups
    other = {"SupportAssist.1.SupportAssistEnableState": "not of this group"}
    own = FACTORY | (changes or {})
    bodies = {uri: {"Attributes": own if of_the_manager(uri) else other} for uri in listed}
    return tree_of(IDRAC, links_to(listed), snmp) | bodies


def links_to(groups: list[str]) -> dict[str, Any]:
    return {"Links": {"Oem": {"Dell": {"DellAttributes": [{"@odata.id": uri} for uri in groups]}}}}


def of_the_manager(uri: str) -> bool:
    return uri.removesuffix("/Attributes").endswith("/iDRAC.Embedded.1")


def xcc(link: Any = ADVISOR, **changes: Any) -> dict[str, dict[str, Any]]:
    return tree_of(XCC, {"Oem": {"Lenovo": {"ServiceAdvisor": link}}}) | {ADVISOR: CALL_HOME | changes}


@asynccontextmanager
async def served(directory: Path, tree: dict[str, dict[str, Any]], refused: str = "") -> AsyncIterator[RedfishClient]:
    """The tree over TLS; `refused` is a URI that answers 403."""
    for uri, body in tree.items():
        folder = directory / "tree" / uri.removeprefix(ROOT).strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.json").write_text(json.dumps({"@odata.id": uri, **body}))
    serve = tree_handler(directory / "tree")

    async def handle(request: web.Request) -> web.StreamResponse:
        return web.json_response({}, status=403) if request.path == refused else await serve(request)

    async with running(Keys(directory, "bmc"), handle) as bmc:
        identity = BmcIdentity(spki_sha256=(await fetch_identity(bmc.address)).spki_sha256)
        async with RedfishClient.connect(bmc.address, identity, Credential("root", "x")) as client:
            yield client


async def posture_of(directory: Path, tree: dict[str, dict[str, Any]], refused: str = "") -> Posture:
    async with served(directory, tree, refused) as client:
        return await read_posture(client)


def found_in(posture: Posture) -> list[Finding]:
    found = posture_findings(posture, subject="s1")
    assert all(each.evidence.strip() and each.remedy.strip() for each in found)
    return found


async def test_a_dell_that_calls_home_is_found_with_the_attribute_that_says_so(tmp_path: Path) -> None:
    name = "SupportAssist.1.SupportAssistEnableState"
    posture = await posture_of(tmp_path, idrac({name: "Enabled"}))
    (found,) = found_in(posture)
    assert (found.kind, found.severity) == ("bmc-cloud-connector", Severity.CRITICAL)
    assert f"Dell {name} is Enabled" in found.detail
    assert found.evidence == f"{GROUPS[0]}: Attributes.{name} is Enabled"


async def test_a_dell_as_it_came_does_not_call_home(tmp_path: Path) -> None:
    posture = await posture_of(tmp_path, idrac())
    assert [(each.name, each.enabled) for each in posture.connectors] == [
        ("Dell SupportAssist.1.SupportAssistEnableState", False)
    ]
    assert found_in(posture) == []


@pytest.mark.parametrize(("state", "kinds"), [("Enabled", ["bmc-cloud-connector"]), ("Disabled", [])])
async def test_cloudiq_of_a_dell(tmp_path: Path, state: str, kinds: list[str]) -> None:
    posture = await posture_of(tmp_path, idrac({"CloudIQ.1.Enable": state}))
    found = found_in(posture)
    assert [each.kind for each in found] == kinds
    assert all(each.evidence == f"{GROUPS[0]}: Attributes.CloudIQ.1.Enable is Enabled" for each in found)
    assert ("Dell CloudIQ.1.Enable", state) in [(each.name, each.state) for each in posture.connectors]


async def test_the_snmp_of_a_dell_is_told_by_its_attributes(tmp_path: Path) -> None:
    as_it_came = await posture_of(tmp_path / "all", idrac(snmp=True))
    assert [each.kind for each in found_in(as_it_came)] == ["bmc-snmp-default-community", "bmc-snmp-enabled"]
    own = {"SNMP.1.AgentCommunity": "s3cret"}
    (clear,) = found_in(await posture_of(tmp_path / "own", idrac(own, snmp=True)))
    assert clear.kind == "bmc-snmp-enabled"
    assert clear.evidence == "NetworkProtocol.SNMP.ProtocolEnabled is true; v1 on, v2c on"
    assert "s3cret" not in repr(clear)
    v3 = await posture_of(tmp_path / "v3", idrac({"SNMP.1.SNMPProtocol": "SNMPv3"}, snmp=True))
    assert found_in(v3) == []


@pytest.mark.parametrize(
    "groups",
    [
        GROUPS,
        GROUPS[::-1],  # nothing says that the iDRAC's own stands first
        [f"{ROOT}/Managers/{uri.rpartition('/')[2]}/Attributes" for uri in GROUPS[::-1]],  # iDRAC 8 and early 9
    ],
)
async def test_of_all_groups_of_a_dell_its_manager_s_own_is_read(tmp_path: Path, groups: list[str]) -> None:
    (own,) = [uri for uri in groups if of_the_manager(uri)]
    assert dell_attributes_uri(links_to(groups)) == own
    posture = await posture_of(tmp_path, idrac({"SupportAssist.1.SupportAssistEnableState": "Enabled"}, groups))
    (found,) = found_in(posture)
    assert found.evidence == f"{own}: Attributes.SupportAssist.1.SupportAssistEnableState is Enabled"


@pytest.mark.parametrize("manager", [{}, links_to(GROUPS[1:])])
def test_a_bmc_without_the_group_has_no_uri_of_it(manager: dict[str, Any]) -> None:
    assert dell_attributes_uri(manager) is None


@pytest.mark.parametrize("link", [ADVISOR, {"@odata.id": ADVISOR}])
async def test_a_lenovo_that_calls_home_is_found(tmp_path: Path, link: Any) -> None:
    posture = await posture_of(tmp_path, xcc(link, CallHomeEnabled=True, AgreementAccepted=True))
    (found,) = found_in(posture)
    assert (found.kind, found.severity) == ("bmc-cloud-connector", Severity.CRITICAL)
    assert "Lenovo call home is True" in found.detail
    assert found.evidence == f"{ADVISOR}: CallHomeEnabled is True"


async def test_a_lenovo_as_it_came_does_not_call_home(tmp_path: Path) -> None:
    posture = await posture_of(tmp_path, xcc())
    assert [(each.name, each.enabled) for each in posture.connectors] == [("Lenovo call home", False)]
    assert found_in(posture) == []


@pytest.mark.parametrize(("tree", "uri"), [(idrac(), GROUPS[0]), (xcc(), ADVISOR)], ids=["dell", "lenovo"])
async def test_a_vendor_s_resource_that_is_refused_is_not_taken_for_off(
    tmp_path: Path, tree: dict[str, Any], uri: str
) -> None:
    posture = await posture_of(tmp_path, tree, refused=uri)
    assert posture.connectors == ()
    (found,) = found_in(posture)
    assert found.kind == "bmc-unread"
    assert found.evidence.startswith(f"{uri}: ")
