"""The running BMC: what the handlers of all services share."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from freehold_lab.bmc.accounts import Accounts
from freehold_lab.bmc.events import EventHub
from freehold_lab.bmc.messages import EVENT, EVENT_MESSAGES, fill
from freehold_lab.bmc.sessions import Sessions
from freehold_lab.bmc.state import LogRecord, Store
from freehold_lab.bmc.tasks import TaskBoard
from freehold_lab.bmc.tls import TlsIdentity
from freehold_lab.hardware import Hardware
from freehold_lab.ipmi import IpmiServer

LOG_LIMIT = 1000  # records that a log keeps


@dataclass(frozen=True)
class BmcConfig:
    """One BMC. `reset_seconds` is how long Manager.Reset makes it unreachable; `trusted_ca` is a PEM file of CAs that
    the BMC trusts when it downloads images and delivers events by https (None: the host's); `ipmi` answers over LAN
    while Redfish says that IPMI is on (None: it is a switch that moves nothing)."""

    factory_password: str
    state_dir: Path
    address: str = "127.0.0.1"
    port: int = 443
    factory_user: str = "root"
    manufacturer: str = "Halden Compute"
    model: str = "HMC-4 Management Controller"
    bmc_firmware_version: str = "4.12.03"
    service_name: str = "Halden Redfish Service"
    reset_seconds: float = 3.0
    trusted_ca: Path | None = None
    ipmi: IpmiServer | None = None


class Bmc:
    """Everything that lives as long as the BMC runs. Reads and writes its state directory when made."""

    def __init__(self, hardware: Hardware, config: BmcConfig, clock: Callable[[], float] = time.time) -> None:
        self.hardware = hardware
        self.config = config
        self.clock = clock
        self.store = Store(config.state_dir)
        self.tls = TlsIdentity(config.state_dir, hardware.info.serial, config.manufacturer)
        self.accounts = Accounts(self.store, clock)
        self.accounts.ensure_factory(config.factory_user, config.factory_password)
        self.sessions = Sessions(clock)
        self.tasks = TaskBoard(self.now)
        self.events = EventHub(config.trusted_ca)
        self.lock = asyncio.Lock()  # one change at a time, as on a BMC
        self.restart: Callable[[], Awaitable[None]] | None = None  # set by the server
        self._works: set[asyncio.Task[None]] = set()
        data = self.store.data
        data.service_uuid = data.service_uuid or str(uuid.uuid4())
        data.host_name = data.host_name or f"hmc-{hardware.info.serial.lower()}"
        self.store.save()

    @property
    def version(self) -> str:
        """Of the BMC's own firmware."""
        return self.store.data.bmc_version or self.config.bmc_firmware_version

    def restart_soon(self) -> bool:
        """Start anew, a moment after the answer is out. False: this BMC cannot."""
        if (restart := self.restart) is None:
            return False

        async def soon() -> None:
            await asyncio.sleep(0.2)
            await restart()

        self.background(soon())
        return True

    async def settle_ipmi(self) -> None:
        """IPMI over LAN answers if Redfish says so, and if the fault `ipmi-stays-on` does, whatever Redfish says."""
        service = self.store.data.protocols["IPMI"]
        if self.config.ipmi is None:
            return
        if service.enabled or self.hardware.faults.ipmi_stays_on:
            await self.config.ipmi.listen(service.port)
        else:
            await self.config.ipmi.silence()

    def background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` beside the requests; it logs its own failures."""
        task = asyncio.create_task(work)
        self._works.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._works.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as seen

    async def stop(self) -> None:
        """End all that runs in the background."""
        for work in list(self._works):
            work.cancel()
        await asyncio.gather(*self._works, return_exceptions=True)
        await self.tasks.stop()
        await self.events.stop()
        if self.config.ipmi is not None:
            await self.config.ipmi.silence()

    def now(self) -> str:
        """The time as Redfish writes it, in UTC."""
        return datetime.fromtimestamp(int(self.clock()), UTC).isoformat().replace("+00:00", "Z")

    def record(self, key: str, *arguments: object, origin: str = "", log: str = "Manager") -> None:
        """Log an event of the vendor's registry and send it to the subscribers. `log` is "Manager" or "System"."""
        texts = tuple(str(argument) for argument in arguments)
        message = EVENT_MESSAGES[key]
        entry = LogRecord(
            id=self.store.new_id(),
            created=self.now(),
            severity=message.severity,
            message_id=f"{EVENT}.{key}",
            message=fill(message.text, texts),
            arguments=list(texts),
            origin=origin,
        )
        records = self.store.data.logs.setdefault(log, [])
        records.append(entry)
        del records[:-LOG_LIMIT]
        self.store.save()
        self.events.publish(entry, list(self.store.data.subscriptions.values()))
