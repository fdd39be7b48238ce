"""One run of QEMU: its command line (pure) and its control socket (QMP).

All file names are relative to the machine's directory, which is QEMU's working directory: socket names stay short and
no path of the host gets into an option string.
"""

import asyncio
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freehold_lab.errors import LabError
from freehold_lab.hardware import HardwareInfo

OVMF = Path("/usr/share/OVMF")
CODE = OVMF / "OVMF_CODE_4M.fd"  # enforces Secure Boot; without SMM, which costs no safety that a lab claims
OTHER_CODE = OVMF / "OVMF_CODE_4M.secboot.fd"  # wants SMM
VARS_TEMPLATE = OVMF / "OVMF_VARS_4M.fd"  # no keys: setup mode
CPU = "qemu64"
CPU_MODEL = "QEMU Virtual CPU version 2.5+"  # what -cpu tells the guest

STORE, FIRMWARE, QMP_SOCKET = "vars.fd", "code.fd", "qmp.sock"
NVME_IMAGE, DISK_IMAGE = "nvme0.raw", "disk0.raw"
NVME_BYTES, DISK_BYTES = 2 << 30, 128 << 20
NVME_ID, DISK_ID = "nvme0", "disk0"

# Fixed slots: device paths in boot options stay valid from one launch to the next.
PROVISIONING_SLOT, PRODUCTION_SLOT, NVME_SLOT, DISK_SLOT, CD_SLOT, RNG_SLOT = range(2, 8)
NIC_SLOTS = {"provisioning": PROVISIONING_SLOT, "production": PRODUCTION_SLOT}


@dataclass(frozen=True)
class Launch:
    """What may differ from one launch of a machine to the next."""

    bios_version: str
    media: Path | None = None
    network_boot: bool = False  # try PXE over IPv4; off, because a blank machine would wait for minutes
    skip_erase: bool = False
    tpm: bool = True
    kvm: bool = False
    smm: bool = False  # the one build of OVMF does not start without; emulated, it costs seconds
    taps: dict[str, str] = field(default_factory=dict)  # network -> tap in the fabric; none: no cable


def command(info: HardwareInfo, launch: Launch) -> list[str]:
    """The QEMU command line. Boot order is what the variable store says: no bootindex, as on a real server."""
    options: list[str] = ["qemu-system-x86_64", "-name", info.name, "-nodefaults", "-display", "none"]
    options += ["-machine", f"q35,smm={'on' if launch.smm else 'off'}"]
    options += ["-accel", "kvm" if launch.kvm else "tcg,thread=multi", "-cpu", CPU]
    options += ["-m", str(info.memory_mib), "-smp", str(info.cores), "-uuid", info.uuid]
    options += ["-action", "reboot=shutdown", "-monitor", "none"]
    options += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
    options += ["-qmp", f"unix:{QMP_SOCKET},server=on,wait=off"]
    options += ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE}"]
    options += ["-drive", f"if=pflash,format=raw,unit=1,file={STORE}"]
    options += _smbios(info, launch)
    options += _firmware_switches(launch)
    options += _nics(info, launch)
    options += _drives(info, launch)
    options += ["-device", f"virtio-rng-pci,addr={RNG_SLOT:#x}"]
    if launch.tpm:
        options += ["-chardev", "socket,id=tpm,path=tpm.sock", "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
        options += ["-device", "tpm-crb,tpmdev=tpm0"]
    return options


def _smbios(info: HardwareInfo, launch: Launch) -> list[str]:
    who = f"manufacturer={_value(info.manufacturer)}"
    serial, asset = f"serial={_value(info.serial)}", f"asset={_value(info.asset_tag)}"
    product = f"product={_value(info.model)}"
    tables = (
        f"type=0,vendor={_value(info.manufacturer)},version={_value(launch.bios_version)},uefi=on",
        f"type=1,{who},{product},{serial},uuid={info.uuid}",
        f"type=2,{who},{product},{serial},{asset}",
        f"type=3,{who},{serial},{asset}",
    )
    return [part for table in tables for part in ("-smbios", table)]


def _firmware_switches(launch: Launch) -> list[str]:
    switches = {"IPv4PXESupport": launch.network_boot, "IPv6PXESupport": False, "IPv6Support": False}
    return [
        part
        for name, on in switches.items()
        for part in ("-fw_cfg", f"name=opt/org.tianocore/{name},string={'y' if on else 'n'}")
    ]


def _nics(info: HardwareInfo, launch: Launch) -> list[str]:
    options = []
    for nic in info.nics:
        tap = launch.taps.get(nic.network)
        backend = f"tap,id={nic.id},ifname={tap},script=no,downscript=no" if tap else f"user,id={nic.id},restrict=on"
        # romfile= keeps the unsigned iPXE option ROM out, which would run even under Secure Boot.
        device = f"virtio-net-pci,netdev={nic.id},mac={nic.mac},romfile=,addr={NIC_SLOTS[nic.network]:#x}"
        options += ["-netdev", backend, "-device", device]
    return options


def _drives(info: HardwareInfo, launch: Launch) -> list[str]:
    serials = {drive.id: drive.serial for drive in info.drives}
    discard = "ignore" if launch.skip_erase else "unmap"
    media = f",file={_value(str(launch.media))}" if launch.media else ""
    return [
        *("-drive", f"if=none,id={NVME_ID},format=raw,file={NVME_IMAGE},cache=unsafe,discard=unmap"),
        *("-device", f"nvme,serial={_value(serials[NVME_ID])},drive={NVME_ID},addr={NVME_SLOT:#x}"),
        *("-drive", f"if=none,id={DISK_ID},format=raw,file={DISK_IMAGE},cache=unsafe,discard={discard}"),
        *("-device", f"virtio-blk-pci,serial={_value(serials[DISK_ID])},drive={DISK_ID},addr={DISK_SLOT:#x}"),
        *("-device", f"virtio-scsi-pci,id=scsi,addr={CD_SLOT:#x}"),
        *("-drive", f"if=none,id=cd0,media=cdrom,readonly=on{',format=raw' if media else ''}{media}"),
        *("-device", "scsi-cd,id=cd,bus=scsi.0,scsi-id=0,lun=0,drive=cd0"),
    ]


def _value(text: str) -> str:
    return text.replace(",", ",,")  # QEMU's way to write a comma inside a value


def blank(image: Path, size: int) -> None:
    """A drive that was never written: a sparse file, made new so that no old block can remain."""
    partial = image.with_suffix(".blank")
    with partial.open("wb") as file:
        os.truncate(file.fileno(), size)
    partial.replace(image)


class Qmp:
    """The control socket of one QEMU. `shutdown_reason` is known when `ended` is done."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._one = asyncio.Lock()
        self.shutdown_reason = ""
        self.ended: asyncio.Task[None] = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, socket: Path, process: asyncio.subprocess.Process, *, seconds: float = 20.0) -> "Qmp":
        for _ in range(int(seconds / 0.05)):
            if process.returncode is not None:
                break
            try:
                reader, writer = await asyncio.open_unix_connection(socket)
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(0.05)
                continue
            qmp = cls(reader, writer)
            await qmp.execute("qmp_capabilities")
            return qmp
        raise LabError("QEMU does not open its control socket")

    async def execute(self, name: str, **arguments: Any) -> Any:
        """Run one QMP command; ConnectionError if QEMU ends meanwhile."""
        async with self._one:
            self._writer.write(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
            await self._writer.drain()
            answer = await self._answers.get()
        if "error" in answer:
            raise LabError(f"QEMU refuses {name}: {answer['error']['desc']}")
        if "return" not in answer:
            raise ConnectionResetError("QEMU has ended")
        return answer["return"]

    async def _read(self) -> None:
        try:
            async for line in self._reader:
                message = json.loads(line)
                if message.get("event") == "SHUTDOWN":
                    self.shutdown_reason = message["data"]["reason"]
                elif "return" in message or "error" in message:
                    self._answers.put_nowait(message)
        except ConnectionError:
            pass  # QEMU was killed: the end of the conversation, not an error of ours
        finally:
            self._answers.put_nowait({})
            self._writer.close()
