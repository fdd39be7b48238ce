"""The audit of one BMC: what it says over Redfish, what its ports really answer, and what that amounts to."""

from collections.abc import Sequence

import msgspec

from freehold.model.findings import Finding, Severity
from freehold.out_of_band import transport
from freehold.out_of_band.advisories import Firmware, advisories, advisory_findings
from freehold.out_of_band.connectors import at
from freehold.out_of_band.errors import NotSupported
from freehold.out_of_band.inventory import first_member
from freehold.out_of_band.ipmi.findings import ipmi_findings
from freehold.out_of_band.ipmi.probe import PORT, IpmiPosture, probe_ipmi
from freehold.out_of_band.posture import Posture, posture_findings, read_posture, worst_first
from freehold.out_of_band.redfish import Json, RedfishClient
from freehold.out_of_band.secure_boot import KeyDatabases, SecureBootState, secure_boot_state
from freehold.out_of_band.secure_boot_posture import secure_boot_findings
from freehold.out_of_band.tls_versions import TlsTrial, probe_tls, tls_findings


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """All that `audit` judges."""

    posture: Posture
    ipmi: IpmiPosture
    tls: tuple[TlsTrial, ...]
    firmware: Firmware
    secure_boot: SecureBootState | None = None


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """The report on one server, worst finding first."""

    server: str
    findings: tuple[Finding, ...]

    @property
    def clean(self) -> bool:
        """Nothing worse than a remark."""
        return all(finding.severity is Severity.INFO for finding in self.findings)

    def and_also(self, more: Sequence[Finding]) -> "Audit":
        """With what others know of the server."""
        return Audit(server=self.server, findings=tuple(worst_first([*self.findings, *more])))


def audit(
    server: str,
    observed: Observed,
    *,
    own_account: str,
    waived_accounts: frozenset[str] = frozenset(),
    keys: KeyDatabases | None = None,
    password_shared_with: Sequence[str] = (),
) -> Audit:
    """The verdict on what was observed. `keys`: the Secure Boot keys that the server was given, if any;
    `password_shared_with`: servers whose BMC has the same password. Pure."""
    ipmi = observed.posture.service("IPMI")
    findings = [
        *posture_findings(observed.posture, subject=server, expected_accounts=waived_accounts | {own_account}),
        *observed.posture.findings,
        *ipmi_findings(observed.ipmi, subject=server, declared=None if ipmi is None else ipmi.enabled),
        *tls_findings(observed.tls, subject=server),
        *advisory_findings(observed.firmware, advisories(), subject=server),
    ]
    if keys is not None:
        findings += secure_boot_findings(observed.secure_boot, keys, subject=server)
    if password_shared_with:
        findings.append(
            Finding(
                severity=Severity.CRITICAL,
                kind="bmc-password-shared",
                subject=server,
                detail=f"the BMC has the password of {', '.join(password_shared_with)}: who takes one takes all",
                remedy="rotate the credential of each of them",
                evidence="the keyed digests of the vaulted passwords are equal",
            )
        )
    return Audit(server=server, findings=tuple(worst_first(findings)))


async def audit_bmc(client: RedfishClient, address: str) -> Observed:
    """Gather what `audit` judges: read the BMC at `address` (`host` or `host:port`) by its logged-in client, and probe
    its ports. Changes nothing; the probes send no credential and attempt no log-in."""
    posture = await read_posture(client)
    ipmi = posture.service("IPMI")
    port = (ipmi.port if ipmi is not None else None) or PORT
    return Observed(
        posture=posture,
        ipmi=await probe_ipmi(transport.split_address(address)[0], port=port),
        tls=await probe_tls(address),
        secure_boot=await _secure_boot(client),
        firmware=await read_firmware(client, posture),
    )


async def read_firmware(client: RedfishClient, posture: Posture) -> Firmware:
    return firmware_of(
        client.root,
        await first_member(client, "Systems"),
        await first_member(client, "Managers"),
        [fact.name for fact in posture.services if fact.enabled],
    )


async def _secure_boot(client: RedfishClient) -> SecureBootState | None:
    try:
        return await secure_boot_state(client)
    except NotSupported:
        return None


def firmware_of(root: Json, system: Json, manager: Json, services: Sequence[str]) -> Firmware:
    """How the BMC names itself. Some of AMI's servers say so only by their OEM data. Pure."""
    product = str(root.get("Product") or "")
    if not product and at(root, "Oem", "Ami") is not None:
        product = "AMI"
    vendors = (system.get("Manufacturer"), root.get("Vendor"))
    return Firmware(
        vendors=tuple(dict.fromkeys(str(vendor).strip() for vendor in vendors if vendor)),
        product=product,
        bmc=str(manager.get("Model") or ""),
        version=str(manager.get("FirmwareVersion") or ""),
        services=frozenset(services),
    )
