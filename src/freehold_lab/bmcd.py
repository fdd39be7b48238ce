"""The process of one machine: its hardware, its BMC and its control socket. Runs in the namespace of that BMC.

    python -m freehold_lab.bmcd --lab-dir DIR --server NAME

QEMU and the TPM are its children and die with it, as a server dies with its power supply.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from freehold_lab import control, faults, layout, network
from freehold_lab.bmc.context import BmcConfig
from freehold_lab.bmc.service import BMC, serve
from freehold_lab.bmc.tls import forget_certificates, restore_factory_certificate
from freehold_lab.errors import LabError
from freehold_lab.ipmi import IpmiServer, IpmiUser
from freehold_lab.machine import Cabling, Machine
from freehold_lab.tpm import TpmVendor


class Chassis:
    """One machine with its BMC."""

    def __init__(self, machine: Machine, config: BmcConfig) -> None:
        self.machine, self._config = machine, config
        self._runner: web.AppRunner | None = None
        self._reboot: asyncio.Task[None] | None = None

    async def start_bmc(self) -> None:
        self._runner = await serve(self.machine, self._config)

    async def stop_bmc(self) -> None:
        runner, self._runner = self._runner, None
        if runner:
            await runner.cleanup()

    async def close(self) -> None:
        if self._reboot:
            self._reboot.cancel()
        await self.stop_bmc()
        await self.machine.close()

    def operations(self) -> dict[str, control.Operation]:
        return {
            "status": self._status,
            "fault-set": self._fault_set,
            "fault-clear": self._fault_clear,
            "power-loss": self._power_loss,
            "tampered-firmware": self._tampered_firmware,
            "bmc-reboot": self._bmc_reboot,
            "factory-certificate": self._factory_certificate,
            "bmc-certificate": self._bmc_certificate,
            "power": self._power,
        }

    async def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        machine = self.machine
        override = await machine.boot_override()
        return {
            "power": await machine.power_state(),
            "bmc": "up" if self._runner else "rebooting",
            "secure_boot": await machine.secure_boot_active(),
            "override": f"{override.target} ({override.enabled})",
            "bios_version": machine.info.bios_version,
            "faults": faults.active(machine.faults),
        }

    async def _fault_set(self, request: dict[str, Any]) -> dict[str, Any]:
        faults.switch(self.machine.faults, request["name"], request["value"])
        await self._settle()
        return faults.active(self.machine.faults)

    async def _fault_clear(self, _: dict[str, Any]) -> dict[str, Any]:
        faults.clear(self.machine.faults)
        await self._settle()
        return {}

    async def _settle(self) -> None:
        """A fault that is a process begins or ends at once; a BMC that starts looks by itself."""
        if self._runner:
            await self._runner.app[BMC].settle_ipmi()

    async def _power_loss(self, _: dict[str, Any]) -> dict[str, Any]:
        await self.machine.lose_power()
        return {"power": "Off"}

    async def _tampered_firmware(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"bios_version": await self.machine.tamper_firmware()}

    async def _power(self, request: dict[str, Any]) -> dict[str, Any]:
        match request["to"]:
            case "on":
                await self.machine.power_on()
            case "off":
                await self.machine.power_off(force=True)
            case "reset":
                await self.machine.reset(force=True)
            case other:
                raise LabError(f"there is no power action {other!r}", remedy="Use on, off or reset.")
        return {"power": await self.machine.power_state()}

    async def _bmc_reboot(self, request: dict[str, Any]) -> dict[str, Any]:
        """The BMC answers nothing for a while and forgets its sessions; the machine runs on."""
        try:
            seconds = faults.seconds(request["seconds"])
        except ValueError as exc:
            raise LabError(f"fault bmc-reboot does not take {request['seconds']!r}", remedy=f"It takes {exc}.") from exc
        if self._reboot and not self._reboot.done():
            raise LabError("the BMC is rebooting already")
        await self.stop_bmc()
        self._reboot = asyncio.create_task(self._come_back(seconds))
        return {"seconds": seconds}

    async def _factory_certificate(self, _: dict[str, Any]) -> dict[str, Any]:
        """Somebody sets the BMC's certificate back: it serves the key that it left the factory with."""
        return await self._with_certificate(restore_factory_certificate)

    async def _bmc_certificate(self, _: dict[str, Any]) -> dict[str, Any]:
        """Somebody swaps the board: the BMC at this address has a key that nobody has seen."""
        return await self._with_certificate(forget_certificates)

    async def _with_certificate(self, change: Callable[[Path], None]) -> dict[str, Any]:
        await self.stop_bmc()
        change(self._config.state_dir)
        await self.start_bmc()
        return {}

    async def _come_back(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.start_bmc()


async def run(directory: Path, name: str) -> None:
    value = layout.load(directory)
    plan, facts = layout.plan_of(value), layout.server(value, name)
    here = plan.server_directory(name).resolve()
    here.mkdir(parents=True, exist_ok=True)
    os.chdir(here)  # names of sockets stay short, wherever the lab is
    number = facts["number"]
    machine = Machine(
        layout.hardware_info(plan, number),
        Path(),
        TpmVendor(plan.directory.resolve() / layout.TPM_VENDOR),
        cabling=Cabling(network.inside(plan.layout.namespace("fabric")), network.taps(number)),
        kvm=plan.kvm,
    )
    factory = IpmiUser(facts["factory_user"], facts["factory_password"])
    config = BmcConfig(
        factory_password=factory.password,
        state_dir=here / "bmc",
        address=facts["bmc_address"],
        factory_user=factory.name,
        ipmi=IpmiServer(here / "ipmi", facts["bmc_address"], factory, machine.info.uuid),
    )
    chassis = Chassis(machine, config)
    stop = asyncio.Event()
    for number_of_signal in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number_of_signal, stop.set)
    try:
        await machine.open()
        await chassis.start_bmc()
        # Last of all: whoever reaches the control socket finds a machine that is complete.
        server = await control.serve(Path(layout.CONTROL_SOCKET), chassis.operations())
        async with server:
            await stop.wait()
    finally:
        await chassis.close()
        with contextlib.suppress(FileNotFoundError):
            Path(layout.CONTROL_SOCKET).unlink()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m freehold_lab.bmcd", description="One machine of a lab with its BMC."
    )
    parser.add_argument("--lab-dir", type=Path, required=True)
    parser.add_argument("--server", required=True)
    options = parser.parse_args()
    try:
        asyncio.run(run(options.lab_dir, options.server))
    except (LabError, OSError) as exc:
        sys.stderr.write(f"bmcd {options.server}: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
