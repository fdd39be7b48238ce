"""A server made of QEMU, OVMF and swtpm: implements `Hardware`.

One launch of QEMU is one boot. A guest that reboots ends QEMU (`-action reboot=shutdown`), and the machine applies
what was queued (boot override, Secure Boot databases, BIOS attributes, firmware) before it starts QEMU and the TPM
again, as a real server's firmware does between reset and boot.
"""

import asyncio
import contextlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from freehold_lab import console, device_path, firmware_package, firmware_vars, qemu, tpm
from freehold_lab.boot import QEMU_LOG, Boot
from freehold_lab.errors import LabError
from freehold_lab.firmware_vars import Edit, Variables
from freehold_lab.hardware import (
    BootOption,
    BootOverride,
    BootTarget,
    Faults,
    HardwareInfo,
    NicInfo,
    SecureBootDatabaseName,
)
from freehold_lab.machine_state import BIOS_DEFAULTS, BiosAttributes, MachineState, checked_bios
from freehold_lab.processes import tail

PowerState = Literal["On", "Off"]


@dataclass(frozen=True)
class Cabling:
    """How a machine is wired to the world: the namespace that holds its taps, and tap names by network."""

    enter: tuple[str, ...] = ()  # command prefix, e.g. ("ip", "netns", "exec", "fh-lab-fabric")
    taps: dict[str, str] | None = None


class Machine:
    """See `Hardware` for the meaning of each method. `open` before use, `close` at the end."""

    def __init__(
        self,
        info: HardwareInfo,
        directory: Path,
        vendor: tpm.TpmVendor,
        *,
        cabling: Cabling | None = None,
        kvm: bool = False,
        patience: float = 90.0,
    ) -> None:
        self.info, self.directory = info, directory
        self.faults = Faults()
        self.console = console.Console(directory)
        self._vendor, self._cabling, self._kvm, self._patience = vendor, cabling or Cabling(), kvm, patience
        self._state = MachineState()
        self._lock = asyncio.Lock()
        self._boot: Boot | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._off = asyncio.Event()
        self._off.set()

    # ---- life
    async def open(self) -> None:
        """Put the machine into the rack: blank drives, a TPM, a firmware without keys. What exists is kept."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for name, size in ((qemu.NVME_IMAGE, qemu.NVME_BYTES), (qemu.DISK_IMAGE, qemu.DISK_BYTES)):
            if not (self.directory / name).exists():
                qemu.blank(self.directory / name, size)
        for name, source in ((qemu.STORE, qemu.VARS_TEMPLATE), (qemu.FIRMWARE, qemu.CODE)):
            if not (self.directory / name).exists():
                shutil.copyfile(source, self.directory / name)
        await asyncio.to_thread(self._vendor.manufacture, self.directory, self.info.serial)
        self._state = MachineState.load(self.directory)
        self._show_version()
        await self.console.open()

    async def close(self) -> None:
        async with self._lock:
            await self._stop()
        await self.console.close()

    # ---- power
    async def power_state(self) -> PowerState:
        return "On" if self._boot else "Off"

    async def power_on(self) -> None:
        async with self._lock:
            if not self._boot:
                self.console.powered_on()
                await self._start("power on")

    async def power_off(self, *, force: bool) -> None:
        if force:
            async with self._lock:
                await self._stop()
                self.console.note("power off (forced)")
        elif self._boot:
            await self._press_power_button()

    async def reset(self, *, force: bool) -> None:
        if not force and self._boot:
            await self._press_power_button()
        async with self._lock:
            await self._stop()
            self.console.powered_on()
            await self._start("reset")

    async def lose_power(self) -> None:
        """Somebody pulls the plug: QEMU and the TPM die at once."""
        await self.power_off(force=True)

    async def _press_power_button(self) -> None:
        if boot := self._boot:
            with contextlib.suppress(ConnectionError):
                await boot.qmp.execute("system_powerdown")
        try:
            await asyncio.wait_for(self._off.wait(), self._patience)
        except TimeoutError:
            raise LabError(
                f"the operating system did not shut down within {self._patience:.0f} s of the power button",
                server=self.info.name,
                remedy="Use a forced power off.",
            ) from None

    # ---- boot
    async def boot_override(self) -> BootOverride:
        return self._state.override

    async def set_boot_override(self, override: BootOverride) -> None:
        uri = override.http_uri
        by_http = override.target is BootTarget.UEFI_HTTP and override.enabled != "Disabled"
        if by_http and not (uri.startswith(("http://", "https://")) and uri.isascii()):
            raise LabError(f"{uri!r} is no http or https URI to boot from", server=self.info.name)
        self._state.override = override
        self._save()

    async def boot_options(self) -> list[BootOption]:
        return self._variables().boot_options()

    async def boot_order(self) -> list[str]:
        return [firmware_vars.reference(number) for number in self._variables().boot_order()]

    async def set_boot_order(self, references: list[str]) -> None:
        order = tuple(firmware_vars.number_of(name) for name in references)
        await self._edit(firmware_vars.SetBootOrder(order))

    # ---- virtual media
    async def insert_media(self, image: Path) -> None:
        if not image.is_file():
            raise LabError(f"there is no image {image} to insert", server=self.info.name)
        self._state.media = str(image.resolve())
        self._save()
        if self._boot:
            await self._boot.qmp.execute(
                "blockdev-change-medium",
                id="cd",
                filename=self._state.media,
                format="raw",
                **{"read-only-mode": "read-only"},
            )

    async def eject_media(self) -> None:
        self._state.media = ""
        self._save()
        if self._boot:
            await self._boot.qmp.execute("eject", id="cd", force=True)

    # ---- BIOS
    async def bios_attributes(self) -> BiosAttributes:
        return dict(self._state.bios)

    async def pending_bios_attributes(self) -> BiosAttributes:
        return self._state.bios | self._state.pending_bios

    async def set_bios_attributes(self, attributes: BiosAttributes) -> None:
        self._state.pending_bios |= checked_bios(attributes)
        self._save()

    async def reset_bios(self) -> None:
        self._state.pending_bios = dict(BIOS_DEFAULTS)
        self._save()

    # ---- Secure Boot
    async def secure_boot_enabled(self) -> bool:
        return self._variables().secure_boot_enabled()

    async def set_secure_boot_enabled(self, enabled: bool) -> None:
        await self._edit(firmware_vars.SetSecureBoot(enabled))

    async def secure_boot_active(self) -> bool:
        return self._state.secure_boot_active

    async def secure_boot_certificates(self, database: SecureBootDatabaseName) -> list[bytes]:
        return self._variables().certificates(database)

    async def secure_boot_signatures(self, database: SecureBootDatabaseName) -> list[str]:
        return self._variables().signatures(database)

    async def set_secure_boot_database(
        self, database: SecureBootDatabaseName, certificates: list[bytes], signatures: list[str]
    ) -> None:
        await self._edit(firmware_vars.set_database(database, certificates, signatures))

    async def reset_secure_boot_keys(self, mode: firmware_vars.ResetMode) -> None:
        await self._edit(firmware_vars.ResetKeys(mode))

    # ---- drives, firmware
    async def secure_erase(self, drive_id: str) -> None:
        images = {qemu.NVME_ID: (qemu.NVME_IMAGE, qemu.NVME_BYTES), qemu.DISK_ID: (qemu.DISK_IMAGE, qemu.DISK_BYTES)}
        if drive_id not in images:
            raise LabError(f"there is no drive {drive_id}", server=self.info.name)
        async with self._lock:
            if self._boot:
                raise LabError(
                    f"drive {drive_id} is in use", server=self.info.name, remedy="Power the server off first."
                )
            if not self.faults.drive_skips_erase:
                name, size = images[drive_id]
                qemu.blank(self.directory / name, size)

    async def install_firmware(self, image: bytes) -> str:
        version, code = firmware_package.unpack(image)
        (self.directory / f"{qemu.FIRMWARE}.next").write_bytes(code)
        self._state.pending_bios_version = version
        self._save()
        return version

    async def tamper_firmware(self) -> str:
        """Somebody with a programmer puts other code into the flash chip, from the next start on. The version string
        stays, so the BMC tells of nothing."""
        now, other = self.directory / qemu.FIRMWARE, self.directory / f"{qemu.FIRMWARE}.tampered"
        source = next(build for build in (qemu.CODE, qemu.OTHER_CODE) if build.read_bytes() != now.read_bytes())
        shutil.copyfile(source, other)
        other.replace(now)  # a running QEMU keeps the chip that it started with
        return self._state.bios_version

    # ---- within
    def _variables(self) -> Variables:
        return firmware_vars.read(self.directory / qemu.STORE, self._state.edits)

    async def _edit(self, edit: Edit) -> None:
        """Queue a change of the variable store; on a machine that is off it is applied at once."""
        async with self._lock:
            self._variables().apply(edit)  # refuses here what would fail at the next boot
            self._state.edits.append(edit)
            if not self._boot:
                self._apply_edits()
            self._save()

    def _save(self) -> None:
        self._state.save(self.directory)

    def _show_version(self) -> None:
        self.info = replace(self.info, bios_version=self._state.bios_version)

    def _apply_edits(self) -> None:
        store = self.directory / qemu.STORE
        variables = self._variables()
        variables.remove_spent_override()
        firmware_vars.write(store, variables)
        self._state.edits.clear()

    def _apply_queued(self) -> qemu.Launch:
        """Between reset and boot: make what was asked for true, and say how to launch."""
        state = self._state
        if state.pending_bios_version:
            (self.directory / f"{qemu.FIRMWARE}.next").replace(self.directory / qemu.FIRMWARE)
            state.bios_version, state.pending_bios_version = state.pending_bios_version, ""
            self._show_version()
        state.bios, state.pending_bios = state.bios | state.pending_bios, {}
        variables = self._variables()
        variables.remove_spent_override()
        override = state.override
        if override.enabled != "Disabled":
            self._point(variables, override)
        if override.enabled == "Once":
            state.override = BootOverride()
        state.secure_boot_active = variables.secure_boot_enabled()
        firmware_vars.write(self.directory / qemu.STORE, variables)
        state.edits.clear()
        self._save()
        return qemu.Launch(
            bios_version=state.bios_version,
            media=Path(state.media) if state.media else None,
            network_boot=override.enabled != "Disabled" and override.target is BootTarget.PXE,
            skip_erase=self.faults.drive_skips_erase,
            tpm=self.info.has_tpm and state.bios["TpmDevice"] == "Enabled",
            kvm=self._kvm,
            smm=(self.directory / qemu.FIRMWARE).read_bytes() == qemu.OTHER_CODE.read_bytes(),
            taps=self._cabling.taps or {},
        )

    def _point(self, variables: Variables, override: BootOverride) -> None:
        nic = self._provisioning_nic()
        slot = qemu.PROVISIONING_SLOT
        match override.target:
            case BootTarget.UEFI_HTTP:
                variables.set_override_entry("BMC: UEFI HTTP", device_path.http(slot, nic.mac, override.http_uri))
            case BootTarget.PXE:
                variables.set_override_entry("BMC: PXE", device_path.pxe(slot, nic.mac))
            case BootTarget.CD:
                variables.set_override_entry("BMC: virtual CD", device_path.scsi(qemu.CD_SLOT))
            case BootTarget.HDD if (number := variables.first_disk(qemu.CD_SLOT)) is not None:
                variables.set_boot_next(number)
            case BootTarget.BIOS_SETUP:
                variables.request_firmware_ui()

    def _provisioning_nic(self) -> NicInfo:
        return next(nic for nic in self.info.nics if nic.network == "provisioning")

    async def _start(self, why: str) -> None:
        """Boot once. Under the lock."""
        launch = self._apply_queued()
        self.console.note(f"{why}; Secure Boot {'on' if self._state.secure_boot_active else 'off'}")
        boot = self._boot = await Boot.start(self.info, launch, self.directory, self.console, self._cabling.enter)
        self._off.clear()
        self._watcher = asyncio.create_task(self._watch(boot))

    async def _watch(self, boot: Boot) -> None:
        """Wait for the end of this boot; a guest that rebooted gets the next one."""
        reason = await boot.ended()
        async with self._lock:
            if self._boot is not boot:
                return  # stopped from outside
            await self._stop()
            if reason == "guest-reset":
                try:
                    await self._start("the machine rebooted")
                except (LabError, OSError) as exc:  # nobody awaits this task: the console is where it is read
                    self.console.note(f"power off: {exc}")
            else:
                self.console.note(f"power off ({reason or 'QEMU ended: ' + tail(self.directory / QEMU_LOG)})")

    async def _stop(self) -> None:
        """Off, now. Under the lock; the watcher then finds that this boot is no longer its own."""
        if boot := self._boot:
            self._boot = None
            await boot.stop()
            self._off.set()
