"""A protocol between controller and BMC, cut off at every one of its points, a fresh site and a fresh BMC for each.

    points = await cut_off_everywhere(Cut.KILL, prepared_site, tmp_path, done=…, check=…)

A clean run counts the points; then there is a run for each of them. Controller, store, vault, evidence log and TLS are
the product's, on disk; the BMC is the lab's Redfish service with a server in memory. Nothing here needs root.

Which points there are, and what is shared because it cannot differ:

    KILL     after each write: a request that is no GET, a change of the vault, of the store, of the log. What a killed
             controller leaves is what is durable, so "sent, answer lost" and "answered, nothing recorded" are one
             point, and a read is one only if the BMC had moved on by itself since the last one. Who works on a server
             is forgotten with the process, so leases and claims are none.
    REBOOT   before each request: refused from then on, for `REFUSALS` attempts. After each write: its answer is lost.
    FLAP     before each read, and the BMC is back for this very attempt, without its sessions and tasks.
    SEAL     before each call of the vault, until the engine has failed; after each change in it: done, answer lost.
             For these three, reads are one point while nothing is written and the BMC does not move on: a step that
             cannot read has changed nothing, whichever read it was.

A killed controller stays dead: no request, write or `finally` of it comes through. What it left is opened anew.
"""

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import msgspec
import pytest
import site_support
from aiohttp import web
from cut_off_bmc import REFUSALS, Course, Cut, Killed, course_at

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

__all__ = ["SERVER", "Course", "Cut", "Life", "controller", "course_at", "cut_off_everywhere", "wired"]
SERVER = site_support.SERVER
AT_ONCE = 8
"""Runs at the same time: most of a run is waiting for the disk."""

WHO_WORKS = ("Ledger.disown_others", "Ledger.enter", "Ledger.renew", "Ledger.claim")
_write, _fetch_identity = Database.write, transport.fetch_identity


async def any_time(_seconds: float) -> None:
    """In place of a lease: nobody else works on the server."""


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


async def kept(name: str, make: Callable[[Path], Awaitable[None]]) -> Path:
    """The directory that `make` filled, once for all tests."""
    directory = site_support.founded()[0].parent / name
    if not directory.exists():
        await make(directory.with_suffix(".new"))
        directory.with_suffix(".new").rename(directory)
    return directory


async def prepare(directory: Path, **declared: Any) -> None:
    """A site that has just had server-1 declared, with its BMC as it left the factory."""
    await asyncio.to_thread(site_support.lay_out, directory / "state")
    documents = [each for each in site_support.documents(**declared) if each.kind != "Assignment"]
    async with course_at(directory) as course, controller(course) as life:
        await life.store.apply([each for each in documents if each.kind != "Server" or each.name == SERVER])


async def go_on(
    directory: Path, *, origin: Path, done: Callable[[Facts], bool], state: ServerState | None = None, **changed: Any
) -> None:
    """A copy of the site at `origin`, brought to where it is `done`; then its server's state and facts change. What is
    callable is given the facts."""
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
