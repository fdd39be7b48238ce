"""Checks that types cannot make: formats, references, and things used twice. Every problem is reported at once."""

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from freehold.model.resources import (
    FACTORY,
    AssignmentSpec,
    ImageSpec,
    NetworkSpec,
    PolicySpec,
    Resource,
    ServerSpec,
    SiteSpec,
    Waivable,
    WaiverSpec,
    is_factory_ref,
    parse_duration,
)
from freehold.model.yaml_text import DocumentError

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123, 2.1
_MAC = re.compile(r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_SSH_KEY = re.compile(r"(ssh-|ecdsa-|sk-)[a-z0-9@.-]+ [A-Za-z0-9+/]+=*( .*)?")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network
Report = Callable[[str, str], None]
"""(path, what is wrong)"""


def canonical_mac(mac: str) -> str:
    return mac.lower()


def validate_set(resources: Iterable[Resource]) -> None:
    """Check a whole set of resources, each alone and against the others. Raises `DocumentError` with every problem."""
    checker = _Checker(list(resources))
    checker.run()
    if checker.problems:
        raise DocumentError(checker.problems)


class _Checker:
    def __init__(self, resources: list[Resource]) -> None:
        self.resources = resources
        self.problems: list[str] = []
        self.known: dict[tuple[str, str], Resource] = {}
        self.used: dict[tuple[str, str], str] = {}

    def run(self) -> None:
        for resource in self.resources:
            report = self._reporter(resource)
            if not _NAME.fullmatch(resource.name):
                report("metadata.name", f"{resource.name!r} is not a name: use a-z, 0-9 and -, at most 63 of them")
            first = self.known.setdefault(resource.key, resource)
            if first is not resource:
                where = first.source.at("") if first.source else "the store"
                report("metadata.name", f"{resource.kind} {resource.name!r} is declared twice (first in {where})")
        for resource in self.known.values():
            self._check(resource, self._reporter(resource))

    def _reporter(self, resource: Resource) -> Report:
        def report(path: str, what: str) -> None:
            source = resource.source
            where = source.at(path) if source and source.file else f"{resource.kind} {resource.name}"
            self.problems.append(f"{where}: {path}: {what}")

        return report

    def _check(self, resource: Resource, report: Report) -> None:
        match resource.spec:
            case SiteSpec() as site:
                self._site(site, report)
            case NetworkSpec() as network:
                _network(network, report)
            case PolicySpec() as policy:
                _policy(policy, report)
            case ImageSpec() as image:
                _image(image, report)
            case ServerSpec() as server:
                self._server(resource.name, server, report)
            case AssignmentSpec() as assignment:
                self._assignment(assignment, report)
            case WaiverSpec() as waiver:
                self._refer("Server", waiver.server, "spec.server", report)
                _expiry(waiver.expires, report)
                _account(waiver, report)

    def _site(self, site: SiteSpec, report: Report) -> None:
        if not 1 <= site.rotations_per_minute <= 100_000:
            report("spec.rotationsPerMinute", "must be between 1 and 100000")
        for role in ("oob", "provisioning"):
            network = self._refer("Network", getattr(site.networks, role), f"spec.networks.{role}", report)
            address = getattr(site.controller, role)
            self._address(address, network, f"spec.controller.{role}", "the controller", report)

    def _server(self, name: str, server: ServerSpec, report: Report) -> None:
        credential = server.bmc.credential
        in_words = (credential.username is not None, credential.password is not None)
        if in_words != ((credential.vault_ref is None,) * 2):
            report("spec.bmc.credential", "give either username and password, or vaultRef")
        if credential.vault_ref is not None and not is_factory_ref(credential.vault_ref):
            what = f"{credential.vault_ref!r} is not below {FACTORY}/: no document may name anything else of the vault"
            report("spec.bmc.credential.vaultRef", f"{what}; see `freehold credential set --ref {FACTORY}/NAME`")
        expected = server.bmc.expected_fingerprint
        if expected is not None and not _SHA256.fullmatch(expected):
            report("spec.bmc.expectedFingerprint", "must be a SHA-256 digest: 64 hexadecimal digits")
        oob = next((each for each in self.known.values() if _role(each) == "oob"), None)
        self._address(server.bmc.address, oob, "spec.bmc.address", f"the BMC of {name}", report)
        if not server.nics:
            report("spec.nics", "must name at least the network card that boots")
        for index, nic in enumerate(server.nics):
            path = f"spec.nics[{index}]"
            if _MAC.fullmatch(nic.mac):
                self._once("MAC", canonical_mac(nic.mac), f"{path}.mac", f"a network card of {name}", report)
            else:
                report(f"{path}.mac", f"{nic.mac!r} is not a MAC address such as 52:54:00:12:34:56")
            network = self._refer("Network", nic.network, f"{path}.network", report)
            if nic.address is not None:
                self._address(nic.address, network, f"{path}.address", f"a network card of {name}", report)
        if server.policy is not None:
            self._refer("Policy", server.policy, "spec.policy", report)

    def _assignment(self, assignment: AssignmentSpec, report: Report) -> None:
        if self._refer("Server", assignment.server, "spec.server", report):
            self._once("Assignment of server", assignment.server, "spec.server", "another assignment", report)
        self._refer("Image", assignment.image, "spec.image", report)
        if assignment.workload_class is not None:
            self._refer("WorkloadClass", assignment.workload_class, "spec.workloadClass", report)
        if not all(_NAME.fullmatch(label) for label in assignment.hostname.split(".")):
            report("spec.hostname", f"{assignment.hostname!r} is not a host name")
        for index, user in enumerate(assignment.users):
            if not _USER.fullmatch(user.name):
                report(f"spec.users[{index}].name", f"{user.name!r} is not a user name")
            for at, key in enumerate(user.ssh_keys):
                if not _SSH_KEY.fullmatch(key):
                    report(f"spec.users[{index}].sshKeys[{at}]", "is not a public SSH key (a line of a .pub file)")

    def _refer(self, kind: str, name: str, path: str, report: Report) -> Resource | None:
        found = self.known.get((kind, name))
        if found is None:
            known = ", ".join(sorted(each for of, each in self.known if of == kind)[:5])
            report(path, f"there is no {kind} named {name!r}" + (f" (known: {known})" if known else ""))
        return found

    def _address(self, text: str, network: Resource | None, path: str, user: str, report: Report) -> None:
        address = _parsed_address(text, path, report)
        if address is None:
            return
        self._once("address", str(address), path, user, report)
        if network is not None and isinstance(network.spec, NetworkSpec):
            prefix = _parsed_prefix(network.spec.prefix)
            if prefix is not None and address not in prefix:
                report(path, f"{address} is outside network {network.name} ({prefix})")

    def _once(self, what: str, value: str, path: str, user: str, report: Report) -> None:
        if (what, value) in self.used:
            report(path, f"{what} {value} is used twice: it already belongs to {self.used[what, value]}")
        self.used.setdefault((what, value), user)


def _role(resource: Resource) -> str | None:
    return resource.spec.role if isinstance(resource.spec, NetworkSpec) else None


def _parsed_address(text: str, path: str, report: Report) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        report(path, f"{text!r} is not an IP address")
        return None


def _parsed_prefix(text: str) -> Prefix | None:
    try:
        return ip_network(text)
    except ValueError:
        return None


def _network(network: NetworkSpec, report: Report) -> None:
    prefix = _parsed_prefix(network.prefix)
    if prefix is None:
        report("spec.prefix", f"{network.prefix!r} is not a network such as 172.30.2.0/24 (no host bits)")
    inside = {"gateway": network.gateway}
    if network.dhcp_range is not None:
        inside |= {"dhcpRange.start": network.dhcp_range.start, "dhcpRange.end": network.dhcp_range.end}
    for name, text in inside.items():
        address = _parsed_address(text, f"spec.{name}", report) if text is not None else None
        if address is not None and prefix is not None and address not in prefix:
            report(f"spec.{name}", f"{address} is outside the network's prefix {prefix}")
    for name in ("dns", "ntp"):
        for index, text in enumerate(getattr(network, name)):
            _parsed_address(text, f"spec.{name}[{index}]", report)


def _policy(policy: PolicySpec, report: Report) -> None:
    for path, text in (
        ("spec.attestationInterval", policy.attestation_interval),
        ("spec.driftInterval", policy.drift_interval),
        ("spec.rotationInterval", policy.rotation_interval),
    ):
        try:
            parse_duration(text)
        except ValueError as error:
            report(path, str(error))
    if not 1 <= policy.sanitization.samples <= 1_000_000:
        report("spec.sanitization.samples", "must be between 1 and 1000000")
    if not policy.sanitization.techniques:
        report("spec.sanitization.techniques", "must allow at least one of purge and clear")


def _image(image: ImageSpec, report: Report) -> None:
    if [image.builtin, image.depot, image.path].count(None) != 2:
        report("spec", "give one of builtin, depot and path")
    if image.path is not None and image.digest is None:
        report("spec.digest", "is missing: an image from a file needs its SHA-256")
    if image.digest is not None and not _SHA256.fullmatch(image.digest):
        report("spec.digest", "must be a SHA-256 digest: 64 hexadecimal digits")


def _account(waiver: WaiverSpec, report: Report) -> None:
    if (waiver.finding is Waivable.BMC_ACCOUNT) != (waiver.account is not None):
        report("spec.account", f"is the user name that a waiver of {Waivable.BMC_ACCOUNT} lets stay, and of no other")
    if waiver.account == "":
        report("spec.account", "is empty")


def _expiry(text: str, report: Report) -> None:
    try:
        datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        report("spec.expires", f"{text!r} is not a date such as 2027-01-31 or 2027-01-31T12:00:00Z")
