"""One boot of a machine: QEMU, the TPM beside it and the console that listens, from power-on or reset to the next."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from freehold_lab import qemu, tpm
from freehold_lab.console import Console
from freehold_lab.errors import LabError
from freehold_lab.hardware import HardwareInfo
from freehold_lab.processes import DIE_WITH_PARENT, end, start, tail

QEMU_LOG, TPM_LOG = "qemu.log", "swtpm.log"


@dataclass
class Boot:
    process: asyncio.subprocess.Process
    tpm: asyncio.subprocess.Process | None
    qmp: qemu.Qmp
    follow: asyncio.Task[None]

    @classmethod
    async def start(
        cls, info: HardwareInfo, launch: qemu.Launch, directory: Path, console: Console, enter: tuple[str, ...]
    ) -> "Boot":
        """Returns when QEMU can be spoken to. `enter`: see `Cabling`."""
        for name in (qemu.QMP_SOCKET, tpm.SOCKET):
            (directory / name).unlink(missing_ok=True)
        chip = await _start_tpm(info, directory) if launch.tpm else None
        command = (*DIE_WITH_PARENT, *enter, *qemu.command(info, launch))
        process = await start(*command, directory=directory, log=QEMU_LOG, talks=True)
        assert process.stdout is not None
        assert process.stdin is not None
        follow = asyncio.create_task(console.follow(process.stdout, process.stdin))
        try:
            qmp = await qemu.Qmp.connect(directory / qemu.QMP_SOCKET, process)
        except (LabError, ConnectionError) as exc:
            await end(process, chip)
            await follow
            raise LabError(
                f"QEMU does not start: {tail(directory / QEMU_LOG)}",
                server=info.name,
                remedy="Correct that and power on.",
            ) from exc
        return cls(process, chip, qmp, follow)

    async def ended(self) -> str:
        """Wait for the end; returns the reason that QEMU gave, "" if it gave none."""
        await self.process.wait()
        await self.qmp.ended
        return self.qmp.shutdown_reason

    async def stop(self) -> None:
        """Off, now."""
        await end(self.process, self.tpm)
        await self.qmp.ended
        await self.follow


async def _start_tpm(info: HardwareInfo, directory: Path) -> asyncio.subprocess.Process:
    process = await start(*DIE_WITH_PARENT, *tpm.daemon_command(), directory=directory, log=TPM_LOG)
    while not (directory / tpm.SOCKET).exists():
        if process.returncode is not None:
            raise LabError(f"the TPM does not start: {tail(directory / TPM_LOG)}", server=info.name)
        await asyncio.sleep(0.02)
    return process
