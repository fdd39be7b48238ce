"""A server in memory: `Hardware` without QEMU, for tests and for people who develop a Redfish client.

It behaves as a real one where a client can tell: changes to firmware variables wait for the next power-on or reset, a
one-time boot override is used up by it, a new firmware is active after it.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Literal, get_args

from freehold_lab.hardware import (
    BootOption,
    BootOverride,
    DriveInfo,
    Faults,
    HardwareInfo,
    NicInfo,
    SecureBootDatabaseName,
)

Attributes = dict[str, str | int | bool]
DATABASES: tuple[SecureBootDatabaseName, ...] = get_args(SecureBootDatabaseName)

DEFAULT_BIOS: Attributes = {
    "BootMode": "Uefi",
    "NumLock": True,
    "HyperThreading": True,
    "ProcVirtualization": True,
    "SriovGlobalEnable": False,
    "TpmSecurity": True,
    "HttpBootEnable": True,
    "PostTimeoutSeconds": 5,
    "AdminContact": "",
}


def example_info(number: int = 1) -> HardwareInfo:
    """The made-up server `number` (1 to 99)."""
    return HardwareInfo(
        name=f"server-{number}",
        uuid=f"7c0a51e4-38f2-4b2a-9d11-5e2f00c3a1{number:02x}",
        serial=f"HX2B40{number:02d}",
        manufacturer="Halden Compute",
        model="HX2 R120",
        asset_tag=f"rack-1-u{number}",
        cpu_model="Halden Lab vCPU",
        cores=2,
        memory_mib=2048,
        bios_version="2.04.1",
        drives=(DriveInfo("nvme0", f"HXN0{number:02d}A1", "Halden NX100", 8 << 30, "NVMe"),),
        nics=(
            NicInfo("nic0", f"52:54:00:1e:00:{number:02x}", "provisioning"),
            NicInfo("nic1", f"52:54:00:1e:01:{number:02x}", "production"),
        ),
    )


@dataclasses.dataclass
class Firmware:
    """The state that a reset takes over: variables, BIOS setup, firmware image."""

    bios: Attributes
    boot_order: list[str]
    secure_boot: bool = False
    certificates: dict[SecureBootDatabaseName, list[bytes]] = dataclasses.field(default_factory=dict)
    signatures: dict[SecureBootDatabaseName, list[str]] = dataclasses.field(default_factory=dict)
    version: str = ""

    def copy(self) -> "Firmware":
        return Firmware(
            dict(self.bios),
            list(self.boot_order),
            self.secure_boot,
            {name: list(content) for name, content in self.certificates.items()},
            {name: list(content) for name, content in self.signatures.items()},
            self.version,
        )


class MemoryHardware:
    """`boots` lists what each power-on or reset booted; `erased` the drives whose erase command ran to its end."""

    def __init__(
        self, info: HardwareInfo | None = None, factory_keys: dict[SecureBootDatabaseName, bytes] | None = None
    ):
        self.info = info or example_info()
        self.faults = Faults()
        self.boots: list[BootOverride] = []
        self.erased: list[str] = []
        self.media: Path | None = None
        self._factory_keys = factory_keys or {}
        self._power: Literal["On", "Off"] = "Off"
        self._override = BootOverride()
        self._options = [
            BootOption("Boot0000", "UEFI HTTPv4 nic0", "PciRoot(0x0)/Pci(0x2,0x0)/MAC()/IPv4(0.0.0.0)/Uri()"),
            BootOption("Boot0001", "UEFI Halden NX100", "PciRoot(0x0)/Pci(0x4,0x0)/NVMe(0x1,00-00-00-00-00-00-00-00)"),
            BootOption("Boot0002", "UEFI Virtual CD", "PciRoot(0x0)/Pci(0x1F,0x2)/Sata(0x0,0xFFFF,0x0)"),
        ]
        order = [option.reference for option in self._options]
        self.active = Firmware(dict(DEFAULT_BIOS), order, version=self.info.bios_version)
        self._load_factory_keys(self.active)
        self.pending = self.active.copy()
        self._active_secure_boot = False

    def _load_factory_keys(self, firmware: Firmware) -> None:
        firmware.certificates = {name: [der] for name, der in self._factory_keys.items()}
        firmware.signatures = {}

    def _boot(self) -> None:
        """What the firmware does when it starts: take over what waited, choose the boot source."""
        self.active = self.pending.copy()
        self.info = dataclasses.replace(self.info, bios_version=self.active.version)
        self._active_secure_boot = self.active.secure_boot and bool(self.active.certificates.get("PK"))
        self.boots.append(self._override)
        if self._override.enabled == "Once":
            self._override = BootOverride()

    async def power_state(self) -> Literal["On", "Off"]:
        return self._power

    async def power_on(self) -> None:
        if self._power == "Off":
            self._power = "On"
            self._boot()

    async def power_off(self, *, force: bool) -> None:
        self._power = "Off"

    async def reset(self, *, force: bool) -> None:
        if self._power == "On":
            self._boot()

    async def boot_override(self) -> BootOverride:
        return self._override

    async def set_boot_override(self, override: BootOverride) -> None:
        self._override = override

    async def boot_options(self) -> list[BootOption]:
        return list(self._options)

    async def boot_order(self) -> list[str]:
        return list(self.pending.boot_order)

    async def set_boot_order(self, references: list[str]) -> None:
        self.pending.boot_order = list(references)

    async def insert_media(self, image: Path) -> None:
        self.media = image

    async def eject_media(self) -> None:
        self.media = None

    async def bios_attributes(self) -> Attributes:
        return dict(self.active.bios)

    async def pending_bios_attributes(self) -> Attributes:
        return dict(self.pending.bios)

    async def set_bios_attributes(self, attributes: Attributes) -> None:
        self.pending.bios.update(attributes)

    async def reset_bios(self) -> None:
        self.pending.bios = dict(DEFAULT_BIOS)

    async def secure_boot_enabled(self) -> bool:
        return self.pending.secure_boot

    async def set_secure_boot_enabled(self, enabled: bool) -> None:
        self.pending.secure_boot = enabled

    async def secure_boot_active(self) -> bool:
        return self._active_secure_boot

    async def secure_boot_certificates(self, database: SecureBootDatabaseName) -> list[bytes]:
        return list(self.pending.certificates.get(database, []))

    async def secure_boot_signatures(self, database: SecureBootDatabaseName) -> list[str]:
        return list(self.pending.signatures.get(database, []))

    async def set_secure_boot_database(
        self, database: SecureBootDatabaseName, certificates: list[bytes], signatures: list[str]
    ) -> None:
        self.pending.certificates[database] = list(certificates)
        self.pending.signatures[database] = list(signatures)

    async def reset_secure_boot_keys(self, mode: Literal["ResetAllKeysToDefault", "DeleteAllKeys", "DeletePK"]) -> None:
        if mode == "ResetAllKeysToDefault":
            self._load_factory_keys(self.pending)
            return
        for database in DATABASES if mode == "DeleteAllKeys" else DATABASES[:1]:
            self.pending.certificates[database] = []
            self.pending.signatures[database] = []

    async def secure_erase(self, drive_id: str) -> None:
        if drive_id not in [drive.id for drive in self.info.drives]:
            raise ValueError(f"{self.info.name} has no drive {drive_id}")
        if not self.faults.drive_skips_erase:
            self.erased.append(drive_id)

    async def install_firmware(self, image: bytes) -> str:
        """An image of this server starts with b"HALDEN-BIOS <version>\\n"."""
        header, _, _ = image.partition(b"\n")
        magic, _, version = header.partition(b" ")
        if magic != b"HALDEN-BIOS" or not version:
            digest = hashlib.sha256(image).hexdigest()[:16]
            raise ValueError(f"the image {digest}… is not a BIOS image for {self.info.model}")
        self.pending.version = version.decode()
        return self.pending.version


__all__ = ["DEFAULT_BIOS", "Firmware", "MemoryHardware", "example_info"]
