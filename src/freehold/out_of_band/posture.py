"""How open a BMC stands: services, accounts, lockout, vendor cloud connectors. Reading is apart from judging."""

from typing import Any

import msgspec

from freehold.model.findings import Finding, Severity
from freehold.out_of_band import resources as r
from freehold.out_of_band.errors import BmcError, NotSupported
from freehold.out_of_band.inventory import first_member
from freehold.out_of_band.redfish import Json, RedfishClient, link

_SERVICES = ("HTTP", "HTTPS", "IPMI", "SSH", "SNMP", "Telnet", "KVMIP", "VirtualMedia", "SSDP", "RDP", "RFB")


class AccountFact(msgspec.Struct, frozen=True, kw_only=True):
    uri: str
    username: str
    role: str
    enabled: bool
    locked: bool = False


class AccountPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """As the BMC says; None where it does not. A threshold of 0 means no lockout. Times are in seconds."""

    min_password_length: int | None = None
    max_password_length: int | None = None
    lockout_threshold: int | None = None
    lockout_duration: int | None = None
    lockout_counter_reset_after: int | None = None


class CloudConnector(msgspec.Struct, frozen=True, kw_only=True):
    """`name` is the vendor's word, `state` its value as read."""

    name: str
    state: str
    enabled: bool


class ServiceFact(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    enabled: bool
    port: int | None


class Posture(msgspec.Struct, frozen=True, kw_only=True):
    services: tuple[ServiceFact, ...]
    accounts: tuple[AccountFact, ...]
    policy: AccountPolicy
    connectors: tuple[CloudConnector, ...]
    basic_auth: str = ""
    findings: tuple[Finding, ...] = ()
    """Oddities met while reading; judgements come from `posture_findings`."""

    def enabled(self, service: str) -> bool:
        return any(fact.enabled for fact in self.services if fact.name == service)


async def read_accounts(client: RedfishClient, findings: list[Finding] | None = None) -> tuple[AccountFact, ...]:
    """All accounts with a name: some BMCs list empty slots as accounts."""
    service = r.read(r.AccountService, await client.get(_account_service(client)), [])
    if service.accounts.uri is None:
        raise NotSupported("the AccountService has no Accounts", server=client.server)
    oddities = [] if findings is None else findings
    members = [r.read(r.Account, raw, oddities) for raw in await client.members(service.accounts.uri)]
    return tuple(
        AccountFact(
            uri=account.uri or "",
            username=account.user_name,
            role=account.role_id or "",
            enabled=account.enabled is not False,
            locked=account.locked is True,
        )
        for account in members
        if account.user_name
    )


async def read_account_policy(client: RedfishClient) -> AccountPolicy:
    service = r.read(r.AccountService, await client.get(_account_service(client)), [])
    return AccountPolicy(
        min_password_length=service.min_password_length,
        max_password_length=service.max_password_length,
        lockout_threshold=service.account_lockout_threshold,
        lockout_duration=service.account_lockout_duration,
        lockout_counter_reset_after=service.account_lockout_counter_reset_after,
    )


def _account_service(client: RedfishClient) -> str:
    path = link(client.root, "AccountService")
    if path is None:
        raise NotSupported("the BMC has no AccountService", server=client.server)
    return path


async def read_posture(client: RedfishClient) -> Posture:
    """Everything that `posture_findings` judges. Reads only."""
    findings: list[Finding] = []
    manager = await first_member(client, "Managers")
    protocol = link(manager, "NetworkProtocol")
    network = await client.get(protocol) if protocol else {}
    services = {name: r.read(r.Service, network[name], findings) for name in _SERVICES if network.get(name)}
    auth = r.read(r.AccountService, await client.get(_account_service(client)), findings).http_basic_auth
    return Posture(
        services=tuple(
            ServiceFact(name=name, enabled=service.protocol_enabled is True, port=service.port)
            for name, service in services.items()
        ),
        accounts=await read_accounts(client, findings),
        policy=await read_account_policy(client),
        connectors=connectors_in(
            manager,
            await _optional(client, _remote_support(manager)),
            await _optional(client, _dell_attributes(manager)),
        ),
        basic_auth=auth or "",
        findings=tuple(findings),
    )


def _remote_support(manager: Json) -> str | None:
    return link(manager, "Oem", "Hpe", "Links", "RemoteSupport")


def _dell_attributes(manager: Json) -> str | None:
    """iDRAC's attribute group of the manager itself; `Links.Oem.Dell.DellAttributes` lists several groups."""
    groups = _at(manager, "Links", "Oem", "Dell", "DellAttributes")
    uris = [link(group) or "" for group in groups] if isinstance(groups, list) else []
    return next((uri for uri in uris if "/iDRAC." in uri), None)


async def _optional(client: RedfishClient, path: str | None) -> Json:
    if path is None:
        return {}
    try:
        return await client.get(path)
    except (NotSupported, BmcError):
        return {}


def connectors_in(manager: Json, remote_support: Json, dell_attributes: Json) -> tuple[CloudConnector, ...]:
    """The vendors' ways home that a manager's OEM data tells of: HPE Compute Ops Management and Insight Remote Support,
    Dell's SupportAssist and CloudIQ plug-ins, Lenovo's call home. Pure."""
    found = []
    status = _at(manager, "Oem", "Hpe", "CloudConnect", "CloudConnectStatus")
    if isinstance(status, str):
        found.append(_connector("HPE Compute Ops Management", status, off=("NotEnabled", "Disabled")))
    enabled = remote_support.get("RemoteSupportEnabled")
    if isinstance(enabled, bool):
        found.append(_connector("HPE Insight Remote Support", str(enabled), off=("False",)))
    attributes = dell_attributes.get("Attributes")
    if isinstance(attributes, dict):
        for name, value in sorted(attributes.items()):
            if name.startswith(("SupportAssist.1.", "CloudIQ.1.")) and name.endswith(("Enable", "Enabled")):
                found.append(_connector(f"Dell {name}", str(value), off=("Disabled", "False", "0")))
    call_home = _at(manager, "Oem", "Lenovo", "ServiceDataForward", "Enabled")
    if isinstance(call_home, bool):
        found.append(_connector("Lenovo call home", str(call_home), off=("False",)))
    return tuple(found)


def _connector(name: str, state: str, *, off: tuple[str, ...]) -> CloudConnector:
    return CloudConnector(name=name, state=state, enabled=state not in off)


def _at(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


_OPEN_SERVICES = {
    "IPMI": (Severity.CRITICAL, "IPMI 2.0 hands out password hashes before log-in (CVE-2013-4786)"),
    "Telnet": (Severity.CRITICAL, "Telnet carries passwords in the clear"),
    "SNMP": (Severity.WARNING, "SNMP v1 and v2c carry their community in the clear"),
    "HTTP": (Severity.WARNING, "plain HTTP invites credentials in the clear"),
    "SSDP": (Severity.INFO, "SSDP announces the BMC to the whole segment"),
}


def posture_findings(
    posture: Posture, *, subject: str, expected_accounts: frozenset[str] = frozenset({"freehold"})
) -> list[Finding]:
    """What is not as it should be, worst first. `subject` is the server's name. Pure."""
    findings = [
        _finding(
            severity, f"bmc-{name.lower()}-enabled", subject, why, f"turn {name} off in the BMC's network protocols"
        )
        for name, (severity, why) in _OPEN_SERVICES.items()
        if posture.enabled(name)
    ]
    findings += [
        _finding(
            Severity.CRITICAL,
            "bmc-foreign-account",
            subject,
            f"account {account.username!r} ({account.role or 'no role'}) is enabled and not one of ours",
            "remove it, or declare it with a waiver",
        )
        for account in posture.accounts
        if account.enabled and account.username not in expected_accounts
    ]
    findings += [
        _finding(
            Severity.CRITICAL,
            "bmc-cloud-connector",
            subject,
            f"{connector.name} is {connector.state}: the BMC talks to its vendor",
            "turn it off in the BMC",
        )
        for connector in posture.connectors
        if connector.enabled
    ]
    if not posture.policy.lockout_threshold:
        findings.append(
            _finding(
                Severity.WARNING,
                "bmc-no-lockout",
                subject,
                "the BMC reports no account lockout: passwords can be guessed without end",
                "set AccountLockoutThreshold to 5 where the BMC has it",
            )
        )
    order = (Severity.CRITICAL, Severity.WARNING, Severity.INFO)
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def _finding(severity: Severity, kind: str, subject: str, detail: str, remedy: str) -> Finding:
    return Finding(severity=severity, kind=kind, subject=subject, detail=detail, remedy=remedy)
