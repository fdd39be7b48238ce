"""A real machine without a rack: QEMU, OVMF and swtpm, with no cables. Needs no root."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from freehold_lab import layout
from freehold_lab.layout import LabPlan
from freehold_lab.machine import Machine
from freehold_lab.tpm import TpmVendor


@asynccontextmanager
async def real_machine(directory: Path) -> AsyncIterator[Machine]:
    vendor = TpmVendor(directory / "tpm-vendor")
    vendor.establish()
    machine = Machine(layout.hardware_info(LabPlan("test", directory), 1), directory / "server-1", vendor)
    await machine.open()
    try:
        yield machine
    finally:
        await machine.close()


async def says(machine: Machine, text: str, seconds: float = 90) -> None:
    """Wait until the console has said it."""
    for _ in range(int(seconds / 0.2)):
        if text in machine.console.log.read_text():
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"the console never said {text!r}: {machine.console.log.read_text()}")
