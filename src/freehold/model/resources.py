"""The kinds that people declare: `apiVersion: freehold/v1`, `kind`, `metadata`, `spec`.

Every spec is a frozen struct that forbids unknown fields; YAML names are camelCase. Structs check types only; formats
and references are checked by `freehold.model.validation`, which can say what is wrong in words.
"""

import re
from enum import StrEnum
from typing import Any, Literal

import msgspec

API_VERSION = "freehold/v1"


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True):
    """Base of everything below `spec`."""


class ControllerAddresses(Spec, frozen=True, kw_only=True):
    """The controller's own addresses, one leg in each network."""

    oob: str
    provisioning: str


class SiteNetworks(Spec, frozen=True, kw_only=True):
    """Names of the `Network` documents that play the two roles."""

    oob: str = "oob"
    provisioning: str = "provisioning"


ROTATIONS_PER_MINUTE = 60
"""Unless the Site says otherwise: a thousand BMCs in a quarter of an hour."""


class SiteSpec(Spec, frozen=True, kw_only=True):
    """`rotations_per_minute`: BMC passwords of the whole site that are changed in a minute at most, whoever wants them
    changed. A change counts at once. `images`: what servers are given and started into. `depot`: only what two
    operators signed in the depot; `built`: also what this controller built itself, for which nobody signs."""

    controller: ControllerAddresses
    networks: SiteNetworks = SiteNetworks()
    rotations_per_minute: int = ROTATIONS_PER_MINUTE
    images: Literal["built", "depot"] = "built"


class DhcpRange(Spec, frozen=True, kw_only=True):
    start: str
    end: str


class NetworkSpec(Spec, frozen=True, kw_only=True):
    role: Literal["oob", "provisioning", "production"]
    prefix: str
    gateway: str | None = None
    dhcp_range: DhcpRange | None = None
    dns: tuple[str, ...] = ()
    ntp: tuple[str, ...] = ()


FACTORY = "factory"
"""What a Server document may name in the vault lies below it, and nothing else of the vault does: every BMC that
somebody declares may be sent it, so no password that a BMC keeps, and no key of the site, may be there."""

_FACTORY_REF = re.compile(FACTORY + r"(/[A-Za-z0-9][A-Za-z0-9._:-]{0,99}){1,7}")


def is_factory_ref(path: str) -> bool:
    """Whether a document may name this path of the vault as the credential that a BMC was delivered with."""
    return _FACTORY_REF.fullmatch(path) is not None


ERASED = "erased after the take-over"
"""What the store has in place of a factory password that stood in a Server document, once the BMC has one of ours."""


class Credential(Spec, frozen=True, kw_only=True):
    """The credential that the BMC was delivered with: in words (factory label), or as a reference into the vault below
    `FACTORY`. Servers that were delivered with the same may name the same reference."""

    username: str | None = None
    password: str | None = None
    vault_ref: str | None = None

    def __repr__(self) -> str:
        shown = f"vault_ref={self.vault_ref!r}" if self.vault_ref else f"username={self.username!r}, password=…"
        return f"Credential({shown})"


class Bmc(Spec, frozen=True, kw_only=True):
    """`expected_fingerprint`: SHA-256 of the certificate's SubjectPublicKeyInfo in hex, if it is known beforehand."""

    address: str
    credential: Credential
    expected_fingerprint: str | None = None


class Nic(Spec, frozen=True, kw_only=True):
    mac: str
    network: str
    address: str | None = None


class RootDisk(Spec, frozen=True, kw_only=True):
    """The disk that bears the OS, by serial number; without one: the smallest NVMe namespace."""

    serial: str | None = None


class Firmware(Spec, frozen=True, kw_only=True):
    """Versions as `ComputerSystem.BiosVersion` and `Manager.FirmwareVersion` tell them."""

    bios: str | None = None
    bmc: str | None = None


class ServerSpec(Spec, frozen=True, kw_only=True):
    bmc: Bmc
    nics: tuple[Nic, ...]
    boot_method: Literal["http", "virtualMedia"] = "http"
    firmware: Firmware = Firmware()
    bios: dict[str, str | int | bool] = {}
    policy: str | None = None
    root_disk: RootDisk = RootDisk()


class DepotImage(Spec, frozen=True, kw_only=True):
    """An OS image as `freehold depot list` names it; its version is that of the Image."""

    vendor: str
    component: str


class ImageSpec(Spec, frozen=True, kw_only=True):
    """A disk image: one that Freehold builds (`builtin`), one of the `depot`, which two operators signed, or a file
    (`path`) with its SHA-256 (`digest`, hex)."""

    version: str
    depot: DepotImage | None = None
    builtin: Literal["debian-12"] | None = None
    path: str | None = None
    digest: str | None = None


class DriftKind(StrEnum):
    SECURE_BOOT = "secure-boot"
    BOOT_ORDER = "boot-order"
    BMC_ACCOUNT = "bmc-account"
    BIOS_ATTRIBUTE = "bios-attribute"
    FIRMWARE_VERSION = "firmware-version"
    SECURE_BOOT_KEYS = "secure-boot-keys"
    IPMI = "ipmi"
    BMC_SERVICE = "bmc-service"


class Reaction(StrEnum):
    """What a drift leads to. `report` leaves the server active, with a finding."""

    REMEDIATE = "remediate"
    QUARANTINE = "quarantine"
    REPORT = "report"


# What is done when the Policy says nothing. Firmware, accounts and Secure Boot that change by themselves mean that
# somebody else holds the machine: nothing that could be written to it would make it trustworthy, so a person decides.
DEFAULT_REACTIONS = {
    DriftKind.SECURE_BOOT: Reaction.QUARANTINE,
    DriftKind.SECURE_BOOT_KEYS: Reaction.QUARANTINE,
    DriftKind.FIRMWARE_VERSION: Reaction.QUARANTINE,
    DriftKind.BMC_ACCOUNT: Reaction.QUARANTINE,
    DriftKind.BOOT_ORDER: Reaction.REMEDIATE,
    DriftKind.BIOS_ATTRIBUTE: Reaction.REMEDIATE,
    DriftKind.IPMI: Reaction.REMEDIATE,
    DriftKind.BMC_SERVICE: Reaction.REMEDIATE,
}


class Sanitization(Spec, frozen=True, kw_only=True):
    """`techniques`: NIST SP 800-88 methods that may be used, best first; `samples` places of a medium are read back."""

    techniques: tuple[Literal["purge", "clear"], ...] = ("purge", "clear")
    samples: int = 256


class PolicySpec(Spec, frozen=True, kw_only=True):
    """`rotation_interval`: no BMC password gets older.

    `first_contact`: `pin` trusts and records the BMC key seen first; `confirm` wants `bmc.expectedFingerprint`, or
    a person's `freehold confirm`.
    `reference_values`: `approved` wants two operators to approve what a server's firmware measures before it joins the
    pool; `learned` takes what it measured first, and every report says so. It is for trying things out: it counts only
    as long as the site has no operators.
    `revoked_image`: what becomes of an active server whose OS image stands in dbx of the newest Secure Boot keys: it is
    quarantined, or it runs on with a critical finding (`report`).
    `lapsed_ek_certificates`: some vendors let them end while the TPM still works; `accept` forgives the date of that
    certificate, not of the vendor's CAs, and each attestation says so."""

    remediation: dict[DriftKind, Reaction] = {}
    attestation_interval: str = "24h"
    drift_interval: str = "5m"
    rotation_interval: str = "30d"
    sanitization: Sanitization = Sanitization()
    first_contact: Literal["pin", "confirm"] = "pin"
    reference_values: Literal["approved", "learned"] = "approved"
    revoked_image: Literal["report", "quarantine"] = "quarantine"
    lapsed_ek_certificates: Literal["refuse", "accept"] = "refuse"

    def reaction(self, kind: DriftKind) -> Reaction:
        return self.remediation.get(kind, DEFAULT_REACTIONS[kind])


class User(Spec, frozen=True, kw_only=True):
    name: str
    ssh_keys: tuple[str, ...]


class AssignmentSpec(Spec, frozen=True, kw_only=True):
    """Gives a server to a workload: which image it boots, and who may log in."""

    server: str
    image: str
    hostname: str
    users: tuple[User, ...] = ()
    workload_class: str | None = None


class Requirements(Spec, frozen=True, kw_only=True):
    min_cores: int = 0
    min_memory_gib: int = msgspec.field(default=0, name="minMemoryGiB")
    gpus: int = 0
    requires: tuple[Literal["attestation", "destructionCertificate"], ...] = ()


class WorkloadClassSpec(Spec, frozen=True, kw_only=True):
    requirements: Requirements = Requirements()


class Waivable(StrEnum):
    """The findings that may be waived. Everything else is not skipped, whoever signs."""

    BMC_CERTIFICATE = "bmc-certificate"
    BMC_ACCOUNT = "bmc-account"
    BMC_DIRECTORY = "bmc-directory"
    IPMI = "ipmi"
    SECURE_BOOT_DATABASES = "secure-boot-databases"
    TPM = "missing-tpm"
    MISSING_MEDIUM = "missing-medium"
    DELETION_WITHOUT_CERTIFICATE = "deletion-without-certificate"


class WaiverSpec(Spec, frozen=True, kw_only=True):
    """An exception that expires (`expires`: RFC 3339 date or time) and that counts once two operators have signed it.
    Nothing is ever skipped silently. `account`: for `bmc-account`, the user name on the BMC that may stay."""

    server: str
    finding: Waivable
    expires: str
    reason: str
    account: str | None = None


class FirmwareBaselineSpec(Spec, frozen=True, kw_only=True):
    vendor: str
    model: str
    component: str
    version: str


KINDS: dict[str, type[Spec]] = {
    "Site": SiteSpec,
    "Network": NetworkSpec,
    "Policy": PolicySpec,
    "Image": ImageSpec,
    "WorkloadClass": WorkloadClassSpec,
    "FirmwareBaseline": FirmwareBaselineSpec,
    "Server": ServerSpec,
    "Assignment": AssignmentSpec,
    "Waiver": WaiverSpec,
}


class Source(msgspec.Struct, frozen=True):
    """Where a document was read: the file, its first line, and the line of each path (`spec.nics[0].mac`)."""

    file: str = ""
    line: int = 0
    lines: dict[str, int] = {}

    def at(self, path: str) -> str:
        """`servers.yaml:12` for a path; a path without a line of its own takes its parent's."""
        probe = path
        while probe and probe not in self.lines:
            probe = re.sub(r"(\.[^.\[\]]+|\[[^\]]*\]|^[^.\[\]]+)$", "", probe)
        return f"{self.file}:{self.lines.get(probe, self.line)}"


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """One declared document. `source` is where it was read; it is not stored and does not count for equality."""

    kind: str
    name: str
    spec: Spec
    labels: dict[str, str] = {}
    source: Source | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.name

    def same_as(self, other: "Resource") -> bool:
        return (self.key, self.spec, self.labels) == (other.key, other.spec, other.labels)

    @property
    def has_password(self) -> bool:
        """A factory password stands in this document, in words."""
        return isinstance(self.spec, ServerSpec) and self.spec.bmc.credential.password not in (None, ERASED)

    def erased(self) -> "Resource":
        """The same without the factory password, if it has one."""
        if not self.has_password:
            return self
        assert isinstance(self.spec, ServerSpec)
        credential = msgspec.structs.replace(self.spec.bmc.credential, password=ERASED)
        bmc = msgspec.structs.replace(self.spec.bmc, credential=credential)
        return msgspec.structs.replace(self, spec=msgspec.structs.replace(self.spec, bmc=bmc))

    @property
    def is_erased(self) -> bool:
        return isinstance(self.spec, ServerSpec) and self.spec.bmc.credential.password == ERASED

    def to_document(self, *, reveal: bool = False) -> dict[str, Any]:
        """The document as YAML or JSON shows it. Passwords are masked unless `reveal`."""
        spec = msgspec.to_builtins(self.spec)
        if not reveal and self.kind == "Server" and "password" in spec["bmc"]["credential"]:
            spec["bmc"]["credential"]["password"] = "********"  # noqa: S105
        metadata: dict[str, Any] = {"name": self.name} | ({"labels": dict(self.labels)} if self.labels else {})
        return {"apiVersion": API_VERSION, "kind": self.kind, "metadata": metadata, "spec": spec}


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> float:
    """Seconds of `30s`, `5m`, `24h` or `7d`. Raises `ValueError` on anything else."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as 30s, 5m, 24h or 7d")
    return float(int(match[1]) * _UNITS[match[2]])
