"""A protocol between controller and BMC, cut off at every one of its points, a fresh site and a fresh BMC for each.

    points = await cut_off_everywhere(Cut.KILL, prepared_site, tmp_path, done=…, check=…)

A clean run counts the points; then there is a run for each of them. Controller, store, vault, evidence log and TLS are
the product's, on disk; the BMC is the lab's Redfish service with a server in memory. Nothing here needs root.

Which points there are, and what is shared because it cannot differ:

    KILL     after each write: a request that is no GET, a change of the vault, of the store, of the log. What a killed
             controller leaves is what is durable, so "sent, answer lost" and "answered, nothing recorded" are one
             point, and a read is one only if the BMC had moved on by itself since the last one. Who works on a server
             is forgotten with the process, so leases and claims are none.
    REBOOT   before each request: refused from then on, for `REFUSALS` attempts; after each write: its answer is lost.
    FLAP     before each read, and the BMC is back for this very attempt, without its sessions and tasks.
    SEAL     before each call of the vault, until the engine has failed; after each change in it: done, answer lost.
             For these three, reads are one point while nothing is written and the BMC does not move on: a step that
             cannot read has changed nothing, whichever read it was.

A killed controller stays dead: no request, write or `finally` of it comes through. What it left is opened anew.
"""

import asyncio
import logging
import shutil
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import site_support
from aiohttp import web

from freehold.evidence import Envelope, EvidenceLog, Statement
from freehold.model.status import Facts, ServerState
from freehold.orchestration.controller import recorder, tls_context
from freehold.orchestration.database import Database
from freehold.orchestration.engine import Engine
from freehold.orchestration.ledger import Completion
from freehold.orchestration.opening import open_log
from freehold.orchestration.passwords import PasswordIndex
from freehold.orchestration.site import Site
from freehold.orchestration.steps import securing
from freehold.orchestration.steps.table import steps_of
from freehold.orchestration.store import Store
from freehold.orchestration.view import ServerView
from freehold.out_of_band import transport, update
from freehold.out_of_band.redfish import RedfishClient
from freehold.out_of_band.transport import HttpsTransport
from freehold.root_of_trust.openbao import OpenBaoSealed, OpenBaoUnreachable
from freehold.root_of_trust.vault import Vault
from freehold_lab.bmc import accounts
from freehold_lab.bmc.context import Bmc, BmcConfig
from freehold_lab.bmc.memory import MemoryHardware, example_info
from freehold_lab.bmc.service import BMC, serve

SERVER = site_support.SERVER
REFUSALS = 7
"""More than a client tries a read: a step that reads fails. Fewer than twice that: an update waits it out."""

AT_ONCE = 8
"""Runs at the same time: most of a run is waiting for the disk."""
WHO_WORKS = ("Ledger.disown_others", "Ledger.enter", "Ledger.renew", "Ledger.claim")
SENDS_FIRMWARE = ("/redfish/v1/UpdateService/update-multipart", "/UpdateService.SimpleUpdate")
_exchange, _write, _fetch_identity = HttpsTransport._exchange, Database.write, transport.fetch_identity


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
    sent: list[str] = field(default_factory=list)  # POSTs that send firmware
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
        self.happened = self.happened or hit
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

    async def exchange(self, life: "Life", over: HttpsTransport, call: transport.Call, path: str) -> Any:
        what, writes = f"{call.method} {path}", call.method != "GET"
        life.alive()
        if (self.here if writes else self.at_read)(Cut.REBOOT, f"before {what}"):
            await self.reboot()
            self.refusals = REFUSALS
        if not writes and self.at_read(Cut.FLAP, f"before {what}"):
            await self.reboot()
        if path.endswith(SENDS_FIRMWARE):
            self.sent.append(path)
            if any(not task.ended for task in self.bmc.tasks.tasks.values()):
                self.wrong.append(f"{what} while a task runs")
        host, port = self.address
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


class Life:
    """One controller process on the course's state directory."""

    def __init__(self, course: Course, site: Site, store: Store, log: EvidenceLog) -> None:
        self.course, self.site, self.store, self.log, self.dead = course, site, store, log, False
        record = recorder(log)

        async def recording(name: str, server: str, predicate: dict[str, Any]) -> int:
            self.alive()
            index = await record(name, server, predicate)
            self.may_die(f"after statement {name}")
            return index

        clock = course.clock
        self.engine = Engine(store, steps_of(site), recording, clock=clock, monotonic=clock, alone=True)

    def alive(self) -> None:
        if self.dead:
            raise Killed

    def may_die(self, what: str) -> None:
        self.course._reading.clear()
        self.dead = self.dead or self.course.here(Cut.KILL, what)
        self.alive()

    @property
    def index(self) -> PasswordIndex:
        return PasswordIndex(self.site.vault)

    def claims(self, kind: str) -> list[dict[str, Any]]:
        """What the evidence log says of this kind, oldest first."""
        said = [Statement.from_bytes(Envelope.from_bytes(each.envelope).payload) for each in self.log.entries()]
        return [claim.predicate for claim in said if claim.kind == kind]

    async def view(self) -> ServerView:
        view = await self.store.ledger.view(SERVER)
        assert view is not None
        return view

    async def work(self, done: Callable[[Facts], bool]) -> None:
        """Rounds of the engine until it is done; time passes between them."""
        course = self.course
        await self.store.ledger.disown_others()
        for _ in range(60):
            status = (await self.view()).status
            course.said.append(status.reason)
            assert status.state is not ServerState.QUARANTINED, status.reason
            if done(status.facts):
                return
            was_sealed = course.sealed
            taken = await self.engine.round()
            course.sealed = course.sealed and not was_sealed  # for a whole round after the one that it happened in
            course.refusals = 0
            await course.time_passes()
            if taken == 0:
                due = await self.store.ledger.next_due()
                assert due is not None
                course.ahead += max(due - course.clock(), 0.001)
        raise AssertionError(f"it never got there: {course.said[-3:]}")


HERE: ContextVar[Life | None] = ContextVar("HERE", default=None)
"""The controller that the running code belongs to: its tasks and threads inherit it."""


class WatchedVault:
    """The site's vault, for one controller."""

    def __init__(self, vault: Vault, life: Callable[[], Life]) -> None:
        self._vault, self._life = vault, life

    def __getattr__(self, name: str) -> Any:
        whole = getattr(self._vault, name)
        if name not in ("get", "put", "update", "paths", "destroy"):
            return whole

        def call(*args: Any) -> Any:
            life = self._life()
            course, what = life.course, f"vault {name} {args[0]}"
            life.alive()
            writes = name in ("put", "update", "destroy")
            if (course.here if writes else course.at_read)(Cut.SEAL, f"before {what}"):
                course.sealed = True
            if course.sealed:
                raise OpenBaoSealed("OpenBao is sealed")
            result = whole(*args)
            if writes:
                if course.here(Cut.SEAL, f"after {what}"):
                    course.sealed = True
                    raise OpenBaoUnreachable("OpenBao does not answer")
                life.may_die(f"after {what}")
            return result

        return call


@pytest.fixture
def wired(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The product's ways out lead through the course of whoever takes them."""
    logging.disable()  # a traceback for each death costs more than the death

    async def exchange(over: HttpsTransport, call: transport.Call, path: str) -> Any:
        life = HERE.get()
        assert life is not None
        return await life.course.exchange(life, over, call, path)

    async def look(address: str, **rest: Any) -> Any:
        life = HERE.get()
        assert life is not None
        life.alive()
        if life.course.at_read(Cut.REBOOT, "before a look at the certificate"):
            await life.course.reboot()
            life.course.refusals = REFUSALS
        return await _fetch_identity(address, **rest)

    async def write(database: Database, work: Any) -> Any:
        life = HERE.get()
        if life is None:
            return await _write(database, work)
        life.alive()
        result = await _write(database, work)
        if (name := work.__qualname__.partition(".<")[0]) not in WHO_WORKS:
            life.may_die(f"after store {name}")
        return result

    def address(_declared: str) -> tuple[str, int]:
        life = HERE.get()
        assert life is not None
        return life.course.address

    async def sleep(_seconds: float) -> None:
        life = HERE.get()
        assert life is not None
        await life.course.time_passes()

    async def moment(_seconds: float) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(accounts, "SCRYPT_N", 2)  # the BMC's; nobody attacks it here
    monkeypatch.setattr(HttpsTransport, "_exchange", exchange)
    monkeypatch.setattr(Database, "write", write)
    monkeypatch.setattr(transport, "split_address", address)
    for module in (transport, securing):
        monkeypatch.setattr(module, "fetch_identity", look)
    monkeypatch.setattr(update, "_POLL_SECONDS", 0.0)
    monkeypatch.setitem(RedfishClient.__init__.__kwdefaults__, "sleep", sleep)
    monkeypatch.setitem(HttpsTransport.__init__.__kwdefaults__, "sleep", moment)
    yield
    logging.disable(logging.NOTSET)


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


@asynccontextmanager
async def controller(course: Course) -> AsyncIterator[Life]:
    """A controller that starts on what lies in the course's directory."""
    state = course.directory / "state"
    site = await asyncio.to_thread(site_support.opened, state)
    async with AsyncExitStack() as stack:
        log = stack.enter_context(await asyncio.to_thread(open_log, state, "lab", site.keys))
        store = await Store.open(course.directory / "freehold.db", clock=course.clock)
        stack.push_async_callback(store.close)
        site.store, site.agents = store, store.agents
        runner = web.AppRunner(site.shelf.create_app(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        tls = tls_context(site.keys.controller_tls, chain=site.keys.agent_ca.certificate_pem)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        site.shelf._base = f"https://127.0.0.1:{runner.addresses[0][1]}"
        life = Life(course, site, store, log)
        site.vault = WatchedVault(site.vault, lambda: life)  # type: ignore[assignment]
        token = HERE.set(life)
        try:
            yield life
        finally:
            HERE.reset(token)


async def prepare(directory: Path, **declared: Any) -> Path:
    """A site that has just had server-1 declared, with its BMC as it left the factory."""
    await asyncio.to_thread(site_support.lay_out, directory / "state")
    documents = [each for each in site_support.documents(**declared) if each.kind != "Assignment"]
    async with course_at(directory) as course, controller(course) as life:
        await life.store.apply([each for each in documents if each.kind != "Server" or each.name == SERVER])
    return directory


async def go_on(
    origin: Path, directory: Path, done: Callable[[Facts], bool], state: ServerState | None = None, **changed: Any
) -> Path:
    """A copy of the site at `origin`, brought to where it is `done`; its server's state and facts are then changed.
    What is callable is given the facts."""
    shutil.copytree(origin, directory)
    async with course_at(directory) as course, controller(course) as life:
        await life.work(done)
        status, now = (await life.view()).status, course.clock()
        values = {name: each(status.facts) if callable(each) else each for name, each in changed.items()}
        facts = msgspec.structs.replace(status.facts, **values)
        status = msgspec.structs.replace(status, state=state or status.state, facts=facts, deadline=None)
        await life.engine.heartbeat()  # and as the engine does it: claim, then complete
        await life.store.ledger.wake([SERVER])
        (claim,) = await life.store.ledger.claim(life.engine.lease.epoch, now + 1, 1)
        assert await life.store.ledger.complete(claim, Completion(status=status, next_due=now), now)
    return directory


async def cut_off_everywhere(
    cut: Cut,
    origin: Path,
    tmp_path: Path,
    done: Callable[[Facts], bool],
    check: Callable[[Life], Awaitable[None]],
    ready: Callable[[Course], None] = lambda _course: None,
) -> list[str]:
    """Run the protocol once for each of its points of this kind, on a copy of `origin` each. Its points, in order."""

    async def run(name: str, number: int | None) -> list[str]:
        directory = tmp_path / f"{cut.name}-{name}"
        await asyncio.to_thread(shutil.copytree, origin, directory)
        async with course_at(directory, None if number is None else (cut, number)) as course:
            ready(course)
            while True:
                async with controller(course) as life:
                    try:
                        await life.work(done)
                    except Killed:
                        continue
                    assert course.happened == (number is not None), "the point was not reached"
                    points, course.over = list(course.passed[cut]), True
                    await check(life)
                    assert course.wrong == []
                    break
        await asyncio.to_thread(shutil.rmtree, directory)
        return points

    points = await run("clean", None)
    print(cut.name, len(points), *points, sep="\n  ")
    turns, failed = asyncio.Semaphore(AT_ONCE), []

    async def attempt(number: int, what: str) -> None:
        async with turns:
            try:
                await run(str(number), number)
            except Exception as error:
                error.add_note(f"{cut.value}, point {number} of {len(points)}: {what}")
                failed.append(error)

    await asyncio.gather(*(attempt(number, what) for number, what in enumerate(points)))
    if failed:
        raise ExceptionGroup(f"{len(failed)} of {len(points)} points", failed)
    return points
