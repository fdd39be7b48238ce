"""How open a BMC stands: services, accounts, lockout, SNMP, host interface, vendor cloud connectors. Reading is apart
from judging."""

import msgspec

from freehold.model.findings import Finding, Severity
from freehold.out_of_band import resources as r
from freehold.out_of_band.connectors import (
    CloudConnector,
    connectors_in,
    dell_attributes_uri,
    note_unread,
    optional,
    service_advisor_uri,
)
from freehold.out_of_band.errors import BmcAnswerUnreadable, BmcError, NotSupported
from freehold.out_of_band.external_accounts import ExternalProvider, external_providers
from freehold.out_of_band.inventory import first_member
from freehold.out_of_band.redfish import Json, RedfishClient, link
from freehold.out_of_band.snmp import Snmp, snmp_in

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


class ServiceFact(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    enabled: bool
    port: int | None


class HostInterfaceFact(msgspec.Struct, frozen=True, kw_only=True):
    """A network between the server's OS and its BMC (DSP0270). `no_auth`: the OS needs no credential on it.
    `bootstrapping`: whoever is root in the OS may have an account of the BMC made (DSP0270, 9)."""

    uri: str
    enabled: bool
    no_auth: bool
    bootstrapping: bool


class Posture(msgspec.Struct, frozen=True, kw_only=True):
    services: tuple[ServiceFact, ...]
    accounts: tuple[AccountFact, ...]
    policy: AccountPolicy
    connectors: tuple[CloudConnector, ...]
    basic_auth: str = ""
    snmp: Snmp | None = None
    host_interfaces: tuple[HostInterfaceFact, ...] = ()
    external_providers: tuple[ExternalProvider, ...] = ()
    services_told: bool = True
    """False: the BMC has no NetworkProtocol, so nobody knows what it serves."""
    unread: dict[str, str] = {}
    """What is there and could not be read, by URI, with why."""
    findings: tuple[Finding, ...] = ()
    """Oddities met while reading; judgements come from `posture_findings`."""

    def enabled(self, service: str) -> bool:
        return any(fact.enabled for fact in self.services if fact.name == service)

    def service(self, name: str) -> ServiceFact | None:
        """None if the BMC does not tell of it."""
        return next((fact for fact in self.services if fact.name == name), None)


async def read_accounts(
    client: RedfishClient, findings: list[Finding] | None = None, missing: list[str] | None = None
) -> tuple[AccountFact, ...]:
    """All accounts. Some BMCs list empty slots as accounts: what has no name is one only if it is enabled.
    Accounts that the BMC lists and does not have go to `missing`."""
    service = r.read(r.AccountService, await client.get(_account_service(client)), [])
    if service.accounts.uri is None:
        raise NotSupported("the AccountService has no Accounts", server=client.server)
    oddities = [] if findings is None else findings
    listed = await client.members(service.accounts.uri, missing=missing)
    members = [r.read(r.Account, raw, oddities) for raw in listed]
    return tuple(
        AccountFact(
            uri=account.uri or "",
            username=account.user_name or "",
            role=account.role_id or "",
            enabled=account.enabled is not False,
            locked=account.locked is True,
        )
        for account in members
        if account.user_name or account.enabled is True
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
    unread: dict[str, str] = {}
    manager = await first_member(client, "Managers")
    network = await _network(client, manager)
    services = {name: r.read(r.Service, network[name], findings) for name in _SERVICES if network.get(name)}
    dell = await optional(client, dell_attributes_uri(manager), unread)
    account_service = await client.get(_account_service(client))
    auth = r.read(r.AccountService, account_service, findings).http_basic_auth
    missing: list[str] = []
    accounts = await read_accounts(client, findings, missing)
    unread |= dict.fromkeys(missing, "listed, and not there")
    return Posture(
        services=tuple(
            ServiceFact(name=name, enabled=service.protocol_enabled is True, port=service.port)
            for name, service in services.items()
        ),
        accounts=accounts,
        policy=await read_account_policy(client),
        connectors=connectors_in(
            manager,
            remote_support=await optional(client, link(manager, "Oem", "Hpe", "Links", "RemoteSupport"), unread),
            dell_attributes=dell,
            service_advisor=await optional(client, service_advisor_uri(manager), unread),
        ),
        basic_auth=auth or "",
        snmp=snmp_in(
            network,
            hpe_snmp=await optional(client, link(manager, "Oem", "Hpe", "Links", "SNMPService"), unread),
            dell_attributes=dell,
        ),
        host_interfaces=await _host_interfaces(client, manager, findings, unread),
        external_providers=await external_providers(client, account_service, unread),
        services_told=bool(network),
        unread=unread,
        findings=tuple(findings),
    )


async def _network(client: RedfishClient, manager: Json) -> Json:
    """NetworkProtocol; empty if the BMC has none. One that cannot be read is an error: too much rests on it."""
    path = link(manager, "NetworkProtocol")
    try:
        return await client.get(path) if path else {}
    except NotSupported as error:
        if error.status in (404, 410):
            return {}
        raise


async def _host_interfaces(
    client: RedfishClient, manager: Json, findings: list[Finding], unread: dict[str, str]
) -> tuple[HostInterfaceFact, ...]:
    path = link(manager, "HostInterfaces")
    missing: list[str] = []
    try:
        members = await client.members(path, missing=missing) if path else []
    except (NotSupported, BmcError, BmcAnswerUnreadable) as error:
        members = []
        note_unread(unread, path or "", error)
    unread |= dict.fromkeys(missing, "listed, and not there")
    read = [r.read(r.HostInterface, raw, findings) for raw in members]
    return tuple(
        HostInterfaceFact(
            uri=each.uri or "",
            enabled=each.interface_enabled is True,
            no_auth="AuthNone" in each.authentication_modes,
            bootstrapping=each.credential_bootstrapping.enabled is True,
        )
        for each in read
    )


_OPEN_SERVICES = {
    "IPMI": (Severity.CRITICAL, "IPMI 2.0 hands out password hashes before log-in (CVE-2013-4786)"),
    "Telnet": (Severity.CRITICAL, "Telnet carries passwords in the clear"),
    "HTTP": (Severity.WARNING, "plain HTTP invites credentials in the clear"),
    "SSDP": (Severity.INFO, "SSDP announces the BMC to the whole segment"),
}
POSTURE_KINDS = frozenset(
    {
        "bmc-ipmi-enabled", "bmc-telnet-enabled", "bmc-http-enabled", "bmc-ssdp-enabled", "bmc-snmp-enabled",
        "bmc-snmp-default-community", "bmc-foreign-account", "bmc-external-accounts", "bmc-services-unknown",
        "bmc-unread", "bmc-cloud-connector", "bmc-host-interface", "bmc-host-interface-no-auth",
        "bmc-host-interface-bootstrapping", "bmc-no-lockout",
    }
)  # fmt: skip
"""Every kind that `posture_findings` may give."""
_ORDER = (Severity.CRITICAL, Severity.WARNING, Severity.INFO)


def worst_first(findings: list[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: _ORDER.index(finding.severity))


def posture_findings(
    posture: Posture, *, subject: str, expected_accounts: frozenset[str] = frozenset({"freehold"})
) -> list[Finding]:
    """What is not as it should be, worst first. `subject` is the server's name. Pure."""
    found: list[Finding] = []

    def note(severity: Severity, kind: str, detail: str, remedy: str, evidence: str) -> None:
        found.append(
            Finding(severity=severity, kind=kind, subject=subject, detail=detail, remedy=remedy, evidence=evidence)
        )

    for name, (severity, why) in _OPEN_SERVICES.items():
        service = posture.service(name)
        if service is not None and service.enabled:
            read = f"NetworkProtocol.{name}.ProtocolEnabled is true, port {service.port}"
            note(severity, f"bmc-{name.lower()}-enabled", why, f"turn {name} off in the BMC's network protocols", read)
    if posture.snmp is not None:
        found += _snmp_findings(posture.snmp, subject)
    for account in posture.accounts:
        if account.enabled and account.username not in expected_accounts:
            note(
                Severity.CRITICAL,
                "bmc-foreign-account",
                f"account {account.username!r} ({account.role or 'no role'}) is enabled and not one of ours"
                if account.username
                else f"an account without a name ({account.role or 'no role'}) is enabled",
                "delete or disable it on the BMC; one that has to stay needs a Waiver of bmc-account",
                f"{account.uri}: Enabled is true",
            )
    if posture.external_providers:
        names = [f"{each.name} ({', '.join(each.addresses) or 'no address'})" for each in posture.external_providers]
        note(
            Severity.CRITICAL,
            "bmc-external-accounts",
            f"whoever a directory vouches for may log in to the BMC: {', '.join(names)}",
            "turn it off in the BMC's AccountService; one that has to stay needs a Waiver of bmc-directory",
            "; ".join(f"{each.name}: ServiceEnabled is true" for each in posture.external_providers),
        )
    if not posture.services_told:
        note(
            Severity.WARNING,
            "bmc-services-unknown",
            "the BMC does not tell which network services it has on",
            "update its firmware, and look at its own web interface meanwhile",
            "its Manager has no NetworkProtocol",
        )
    if posture.unread:
        note(
            Severity.WARNING,
            "bmc-unread",
            f"could not be read, so nobody knows how it stands: {', '.join(posture.unread)}",
            "audit it again; if it stays, restart the BMC or update its firmware",
            "; ".join(f"{path}: {why}" for path, why in posture.unread.items()),
        )
    for connector in posture.connectors:
        if connector.enabled:
            note(
                Severity.CRITICAL,
                "bmc-cloud-connector",
                f"{connector.name} is {connector.state}: the BMC talks to its vendor",
                "turn it off in the BMC",
                f"{connector.source} is {connector.state}",
            )
    for interface in posture.host_interfaces:
        found += _host_interface_findings(interface, subject)
    if not posture.policy.lockout_threshold:
        note(
            Severity.WARNING,
            "bmc-no-lockout",
            "the BMC reports no account lockout: passwords can be guessed without end",
            "set AccountLockoutThreshold to 5 where the BMC has it",
            f"AccountLockoutThreshold is {'absent' if posture.policy.lockout_threshold is None else 0}",
        )
    return worst_first(found)


def disproved(posture: Posture) -> frozenset[str]:
    """The kinds that do not hold any more if `posture_findings` does not give them. What could not be read disproves
    nothing but that it could not be read."""
    if posture.unread or not posture.services_told:
        return frozenset({"bmc-unread", "bmc-services-unknown"})
    return POSTURE_KINDS


def _snmp_findings(snmp: Snmp, subject: str) -> list[Finding]:
    found = []
    read = f"NetworkProtocol.SNMP.ProtocolEnabled is true; v1 {_said(snmp.v1)}, v2c {_said(snmp.v2c)}"
    read += ", communities set that the BMC does not show" if snmp.hidden else ""
    if snmp.by_community:
        found.append(
            Finding(
                severity=Severity.WARNING,
                kind="bmc-snmp-enabled",
                subject=subject,
                detail="SNMP v1 and v2c carry their community in the clear",
                remedy="turn SNMP off, or leave v3 only",
                evidence=read,
            )
        )
    if snmp.by_community and snmp.defaults:
        found.append(
            Finding(
                severity=Severity.CRITICAL,
                kind="bmc-snmp-default-community",
                subject=subject,
                detail=f"SNMP answers to the factory's community {' and '.join(map(repr, snmp.defaults))}",
                remedy="turn SNMP off, or leave v3 only",
                evidence=read,
            )
        )
    return found


def _said(value: bool | None) -> str:
    return {True: "on", False: "off", None: "not told"}[value]


def _host_interface_findings(interface: HostInterfaceFact, subject: str) -> list[Finding]:
    """The OS is the tenant's: what it can do to the BMC, a tenant can."""
    rows = [
        (
            True,
            Severity.WARNING,
            "bmc-host-interface",
            "the server's OS reaches its BMC by the host interface",
            "InterfaceEnabled is true",
        ),
        (
            interface.no_auth,
            Severity.CRITICAL,
            "bmc-host-interface-no-auth",
            "the host interface takes the server's OS without a credential",
            "AuthenticationModes holds AuthNone",
        ),
        (
            interface.bootstrapping,
            Severity.CRITICAL,
            "bmc-host-interface-bootstrapping",
            "root in the server's OS can have the BMC make it an account",
            "CredentialBootstrapping.Enabled is true",
        ),
    ]
    return [
        Finding(
            severity=severity,
            kind=kind,
            subject=subject,
            detail=detail,
            remedy="turn InterfaceEnabled and CredentialBootstrapping of the host interface off",
            evidence=f"{interface.uri}: {read}",
        )
        for holds, severity, kind, detail, read in rows
        if holds and interface.enabled
    ]
