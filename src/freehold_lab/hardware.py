"""What a lab machine offers to its BMC: the contract between the Redfish service and the emulated hardware.

The Redfish service (`freehold_lab.bmc`) is written against `Hardware`; `freehold_lab.machine` implements it with QEMU,
OVMF and swtpm, and `freehold_lab.bmc.memory` implements it in memory for tests without root.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol


class BootTarget(StrEnum):
    """Values of Redfish `BootSource` that a lab machine bears."""

    NONE = "None"
    UEFI_HTTP = "UefiHttp"
    CD = "Cd"
    PXE = "Pxe"
    HDD = "Hdd"
    BIOS_SETUP = "BiosSetup"


@dataclass(frozen=True)
class BootOverride:
    target: BootTarget = BootTarget.NONE
    enabled: Literal["Disabled", "Once", "Continuous"] = "Disabled"
    http_uri: str = ""


@dataclass(frozen=True)
class BootOption:
    """One `Boot####` variable. `device_path` is its text form."""

    reference: str  # "Boot0003"
    name: str
    device_path: str


@dataclass(frozen=True)
class DriveInfo:
    id: str  # "nvme0"
    serial: str
    model: str
    capacity_bytes: int
    protocol: Literal["NVMe", "SATA", "SAS"]
    media: Literal["SSD", "HDD"] = "SSD"


@dataclass(frozen=True)
class NicInfo:
    id: str  # "nic0"
    mac: str
    network: Literal["provisioning", "production"]


@dataclass(frozen=True)
class HardwareInfo:
    name: str  # "server-1"
    uuid: str  # SMBIOS UUID
    serial: str
    manufacturer: str
    model: str
    asset_tag: str
    cpu_model: str
    cores: int
    memory_mib: int
    bios_version: str
    drives: tuple[DriveInfo, ...] = ()
    nics: tuple[NicInfo, ...] = ()
    has_tpm: bool = True


@dataclass
class Faults:
    """Faults switched on now. The Redfish service and the machine read this object; `freehold lab fault` writes it."""

    bmc_slow_seconds: float = 0.0  # delay before every Redfish answer
    bmc_errors: int = 0  # so many next requests are answered 503
    bmc_html: bool = False  # answers HTML instead of JSON
    connection_resets: int = 0  # so many next connections are reset
    drive_skips_erase: bool = False  # erase commands report success and leave the data
    firmware_version: str = ""  # if set, the BIOS version that the BMC reports
    secure_boot_hidden: bool = False  # the BMC shows no Secure Boot databases, and writes none
    uploads_refused: bool = False  # the BMC takes firmware by download alone
    csr_subject: str = ""  # if set, the common name that the BMC puts into its certificate requests
    certificate_waits: bool = False  # a replaced certificate is served from the BMC's next start on only
    ipmi_stays_on: bool = False  # the BMC answers IPMI over LAN although Redfish says that it is off
    extra: dict[str, str] = field(default_factory=dict)


SecureBootDatabaseName = Literal["PK", "KEK", "db", "dbx"]


class Hardware(Protocol):
    """One server. Coroutines return when the hardware has done it. Firmware variables are edited only while the
    machine is off; edits made while it runs are queued and applied at the next power-on or reset, as real BMCs do."""

    info: HardwareInfo
    faults: Faults

    async def power_state(self) -> Literal["On", "Off"]: ...
    async def power_on(self) -> None: ...
    async def power_off(self, *, force: bool) -> None: ...
    async def reset(self, *, force: bool) -> None: ...

    # boot
    async def boot_override(self) -> BootOverride: ...
    async def set_boot_override(self, override: BootOverride) -> None: ...
    async def boot_options(self) -> list[BootOption]: ...
    async def boot_order(self) -> list[str]: ...
    async def set_boot_order(self, references: list[str]) -> None: ...

    # virtual media
    async def insert_media(self, image: Path) -> None: ...
    async def eject_media(self) -> None: ...

    # BIOS: attributes that are active, and those that become active at the next reset
    async def bios_attributes(self) -> dict[str, str | int | bool]: ...
    async def pending_bios_attributes(self) -> dict[str, str | int | bool]: ...
    async def set_bios_attributes(self, attributes: dict[str, str | int | bool]) -> None: ...
    async def reset_bios(self) -> None: ...

    # Secure Boot: certificates are DER; signatures are SHA-256 digests in hex
    async def secure_boot_enabled(self) -> bool: ...  # what the firmware would do at the next boot
    async def set_secure_boot_enabled(self, enabled: bool) -> None: ...
    async def secure_boot_active(self) -> bool: ...  # what the firmware did at the last boot
    async def secure_boot_certificates(self, database: SecureBootDatabaseName) -> list[bytes]: ...
    async def secure_boot_signatures(self, database: SecureBootDatabaseName) -> list[str]: ...
    async def set_secure_boot_database(
        self, database: SecureBootDatabaseName, certificates: list[bytes], signatures: list[str]
    ) -> None: ...
    async def reset_secure_boot_keys(
        self, mode: Literal["ResetAllKeysToDefault", "DeleteAllKeys", "DeletePK"]
    ) -> None: ...

    # drives, firmware
    async def secure_erase(self, drive_id: str) -> None: ...
    async def install_firmware(self, image: bytes) -> str: ...  # returns the version; active at the next reset
