"""The BMC of one run of a protocol, and the points at which it or its controller is cut off (see `cut_off`)."""

import asyncio
import shutil
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import site_support

from freehold.out_of_band import transport
from freehold.out_of_band.transport import HttpsTransport
from freehold_lab.bmc.context import Bmc, BmcConfig
from freehold_lab.bmc.memory import MemoryHardware, example_info
from freehold_lab.bmc.service import BMC, serve

REFUSALS = 7
"""More than a client tries a read: a step that reads fails. Fewer than twice that: an update waits it out."""

SENDS_FIRMWARE = ("/redfish/v1/UpdateService/update-multipart", "/UpdateService.SimpleUpdate")
_exchange = HttpsTransport._exchange


class Mortal(Protocol):
    """A controller: once dead, it does nothing any more."""

    def alive(self) -> None: ...
    def may_die(self, what: str) -> None: ...


class Killed(BaseException):
    """kill -9 of the controller."""


class Cut(Enum):
    KILL = "the controller is killed"
    REBOOT = "the BMC reboots"
    FLAP = "the BMC reboots and is back at once"
    SEAL = "the vault is sealed"


@dataclass
class Course:
    """One run: a BMC, and controllers one after the other until the protocol is done. `cut`: what happens, and at the
    point of which number. `passed`: the points of each kind, in order."""

    directory: Path
    bmc: Bmc
    port: int
    closed: int
    cut: tuple[Cut, int] | None = None
    passed: dict[Cut, list[str]] = field(default_factory=lambda: {cut: [] for cut in Cut})
    happened: bool = False
    over: bool = False  # the protocol is done: nothing is cut off any more
    refusals: int = 0  # attempts that a rebooting BMC refuses still
    sealed: bool = False
    sent: list[str] = field(default_factory=list)  # POSTs that sent firmware
    sent_at_the_cut: int = 0
    wrong: list[str] = field(default_factory=list)  # what must never happen
    said: list[str] = field(default_factory=list)  # the server's reason after each round
    ahead: float = 0.0  # seconds that the engine's clock was put forward
    _gate: asyncio.Event = field(default_factory=asyncio.Event)
    _restarts: bool = False
    _reading: set[Cut] = field(default_factory=set)  # whose last point was a read, with no write since
    _looked: object = None

    @property
    def hardware(self) -> MemoryHardware:
        assert isinstance(self.bmc.hardware, MemoryHardware)
        return self.bmc.hardware

    @property
    def address(self) -> tuple[str, int]:
        """Where the BMC is: while it reboots, at a port that refuses."""
        if self.refusals > 0:
            self.refusals -= 1
            return "127.0.0.1", self.closed
        return "127.0.0.1", self.port

    def cut_was(self, cut: Cut) -> bool:
        return self.happened and self.cut is not None and self.cut[0] is cut

    def clock(self) -> float:
        return time.time() + self.ahead

    def here(self, cut: Cut, what: str) -> bool:
        """Count a point; whether it is the one."""
        self.passed[cut].append(what)
        hit = not self.over and self.cut == (cut, len(self.passed[cut]) - 1)
        if hit:
            self.happened, self.sent_at_the_cut = True, len(self.sent)
        return hit

    def at_read(self, cut: Cut, what: str) -> bool:
        """Likewise, for a read: one point as long as nothing is written."""
        if cut in self._reading:
            return False
        self._reading.add(cut)
        return self.here(cut, what)

    def moved_on(self) -> bool:
        """Whether the BMC has changed by itself since the last look at it."""
        tasks = sorted((task.id, task.state) for task in self.bmc.tasks.tasks.values())
        before, self._looked = self._looked, (tasks, self.bmc.version, self.hardware.pending.version)
        return before is not None and before != self._looked

    def prepare_bmc(self) -> None:
        """It works on a task, and starts anew if it wants to, while the controller sleeps: the same in every run."""
        start = self.bmc.tasks.start

        def gated(name: str, operation: str, work: Callable[[Any], Awaitable[None]], failed: Any) -> Any:
            async def waits(task: Any) -> None:
                await self._gate.wait()
                await work(task)

            return start(name, operation, waits, failed)

        def restart_soon() -> bool:
            self._restarts = True
            return True

        self.bmc.tasks.start = gated  # type: ignore[method-assign]
        self.bmc.restart_soon = restart_soon  # type: ignore[method-assign]

    async def time_passes(self) -> None:
        self._gate.set()
        works = [task.work for task in self.bmc.tasks.tasks.values() if task.work is not None]
        await asyncio.gather(*works, return_exceptions=True)
        self._gate.clear()
        if self._restarts:
            self._restarts = False
            await self.reboot()

    async def reboot(self) -> None:
        assert self.bmc.restart is not None
        await self.bmc.restart()

    def look_at_accounts(self) -> None:
        """At most one log-in is ever refused in a row, and none is locked."""
        for account in self.bmc.accounts.all().values():
            if account.failures > 1 or account.locked_until:
                self.wrong.append(f"{account.failures} refused log-ins of {account.user_name}")

    # the way to the BMC

    async def exchange(self, life: Mortal, over: HttpsTransport, call: transport.Call, path: str) -> Any:
        what, writes = f"{call.method} {path}", call.method != "GET"
        life.alive()
        if (self.here if writes else self.at_read)(Cut.REBOOT, f"before {what}"):
            await self.reboot()
            self.refusals = REFUSALS
        if not writes and self.at_read(Cut.FLAP, f"before {what}"):
            await self.reboot()
        host, port = self.address
        if port == self.port and path.endswith(SENDS_FIRMWARE):
            self.sent.append(path)
            if any(not task.ended for task in self.bmc.tasks.tasks.values()):
                self.wrong.append(f"{what} while a task runs")
        over._origin = f"https://{host}:{port}"
        answer = await _exchange(over, call, path)
        self.look_at_accounts()
        if writes and self.here(Cut.REBOOT, f"after {what}"):
            await self.reboot()
            self.refusals = REFUSALS
            raise aiohttp.ServerDisconnectedError
        if self.moved_on() or writes:
            life.may_die(f"after {what}")
        return answer


@asynccontextmanager
async def course_at(directory: Path, cut: tuple[Cut, int] | None = None) -> AsyncIterator[Course]:
    """A BMC on what lies in `directory`/bmc."""
    factory, place = site_support.founded()[1], directory / "bmc"
    place.mkdir(parents=True, exist_ok=True)
    if factory.exists() and not (place / "https.pem").exists():
        shutil.copy(factory, place / "https.pem")
    config = BmcConfig(site_support.FACTORY_PASSWORD, place, port=0, reset_seconds=0.0)
    runner = await serve(MemoryHardware(example_info()), config)
    shutil.copy(place / "https-factory.pem", factory)
    try:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            course = Course(directory, runner.app[BMC], runner.addresses[0][1], closed.getsockname()[1], cut)
            course.prepare_bmc()
            yield course
    finally:
        await runner.cleanup()
