"""A site made of real parts: store, vault and keys on disk, and BMCs of the lab on loopback with a server in memory."""

import dataclasses
import functools
import hashlib
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from orchestration_rig import Evidence

from freehold.model.documents import load_documents
from freehold.model.resources import NetworkSpec, Resource, ServerSpec, SiteSpec
from freehold.model.status import AgentSession, Facts, IntentKind, ServerState, ServerStatus
from freehold.orchestration.controller import make_site
from freehold.orchestration.engine import Engine
from freehold.orchestration.leases import Lease
from freehold.orchestration.ledger import Completion
from freehold.orchestration.measurements import BootedImage
from freehold.orchestration.opening import BootArtifacts, open_vault
from freehold.orchestration.site import OsImage, Site
from freehold.orchestration.step import StepContext, StepResult
from freehold.orchestration.steps.table import DOERS, guarded, steps_of
from freehold.orchestration.store import Event, Store
from freehold.orchestration.view import ServerView
from freehold.out_of_band import transport
from freehold.out_of_band.redfish import Credential, RedfishClient
from freehold.out_of_band.takeover_steps import OWN_ACCOUNT
from freehold.root_of_trust.keys import SiteKeys
from freehold_lab.bmc.context import BmcConfig
from freehold_lab.bmc.memory import MemoryHardware, example_info
from freehold_lab.bmc.service import serve

sys.path.append(str(Path(__file__).parents[1] / "root_of_trust"))
import attest_support as recorded

RACK = Path(__file__).parents[1] / "model" / "rack.yaml"
FACTORY_PASSWORD = "factory-pass"
SERVER = "server-1"
BOOT_FILES = ("agent.efi", "agent.iso", "stage2.img", "os.raw")


@functools.cache
def founded() -> tuple[Path, Path]:
    """(state directory of a site with keys, PEM of a BMC's factory key): RSA keys cost more than all else in a test."""
    root = Path(tempfile.mkdtemp(prefix="freehold-test-"))
    (root / "state").mkdir()
    vault = open_vault(root / "state")
    SiteKeys.create(root / "state", vault, "lab", ["127.0.0.1"], bmc_networks=["127.0.0.0/8"])
    return root / "state", root / "https.pem"


def forget_founded() -> None:
    if founded.cache_info().currsize:
        shutil.rmtree(founded()[0].parent)
        founded.cache_clear()


def booted(name: str) -> BootedImage:
    """An image whose measurements are those of the recorded boots."""
    pcr4 = {True: recorded.pcr4("secure-boot"), False: recorded.pcr4("setup-mode")}
    digest = hashlib.sha256(name.encode()).hexdigest()
    return BootedImage(
        name=name,
        sha256=digest,
        pcr4=pcr4,
        pcr11=bytes.fromhex(recorded.RECORDED["pcr11"]),
        authenticode=bytes.fromhex(recorded.RECORDED["uki_authenticode"]),
        signers=(recorded.certificate("db"),),
    )


def documents(**changes: Any) -> list[Resource]:
    """The rack's documents; server-1's BMC has the lab's factory credential. `changes` are fields of its spec."""
    whole = load_documents(RACK.read_text(), "rack.yaml")
    return [_changed(each, changes) if each.name == SERVER else each for each in whole]


def _changed(resource: Resource, changes: dict[str, Any]) -> Resource:
    assert isinstance(resource.spec, ServerSpec)
    credential = msgspec.structs.replace(resource.spec.bmc.credential, username="root", password=FACTORY_PASSWORD)
    bmc = msgspec.structs.replace(resource.spec.bmc, credential=credential)
    spec = msgspec.structs.replace(resource.spec, **({"bmc": bmc, "bios": {}} | changes))
    return msgspec.structs.replace(resource, spec=spec)


@dataclasses.dataclass
class Place:
    """`step` runs one doer as the engine would, and keeps the facts it established."""

    site: Site
    store: Store
    evidence: Evidence
    hardware: MemoryHardware
    lease: Lease
    number: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    async def view(self) -> ServerView:
        view = await self.store.ledger.view(SERVER)
        assert view is not None
        return view

    async def declare(self, **changes: Any) -> None:
        await self.store.apply(documents(**changes))

    async def set_status(self, status: ServerStatus) -> None:
        """As the engine does it: claim, then complete."""
        await self.store.ledger.wake([SERVER])
        now = time.time()
        claims = {each.server: each for each in await self.store.ledger.claim(self.lease.epoch, now + 1, 100)}
        assert await self.store.ledger.complete(claims[SERVER], Completion(status=status, next_due=None), now)
        for other in claims.values():
            await self.store.ledger.let_go(other, now)

    async def establish(self, state: ServerState = ServerState.ENROLLED, **facts: Any) -> None:
        old = (await self.view()).status
        changed = msgspec.structs.replace(old.facts, **facts)
        await self.set_status(msgspec.structs.replace(old, state=state, facts=changed))

    async def context(self, key: str, **view: Any) -> StepContext:
        server = msgspec.structs.replace(await self.view(), **view)
        step = key.partition("/")[0]
        return StepContext(server, step, key, time.time(), 1, False, self.lease, self.store.agents, self.evidence)

    async def step(self, key: str, **view: Any) -> StepResult:
        ctx = await self.context(key, **view)
        result = await guarded(DOERS[ctx.step], self.site, ctx)
        status = ctx.server.status
        await self.set_status(msgspec.structs.replace(status, facts=replaced(status.facts, result)))
        return result

    async def finish(self, step: str, **view: Any) -> StepResult:
        """The step, again and again until its goal holds, as the engine does it."""
        for _ in range(20):
            result = await self.step(step, **view)
            if result.done or result.quarantine is not None:
                return result
        raise AssertionError(result)

    @asynccontextmanager
    async def own_bmc(self) -> AsyncIterator[RedfishClient]:
        async with self.site.bmc(await self.view(), (await self.context("check_drift")).ensure_lease) as client:
            yield client

    async def secured(self) -> None:
        """The BMC is ours, without the steps in between that a test does not look at."""
        for step in ("pin_identity", "take_over_credential", "disable_factory_accounts", "disable_ipmi"):
            assert (await self.step(step)).done, step

    def engine(self) -> Engine:
        return Engine(self.store, steps_of(self.site), self.evidence, alone=True)

    async def events(self) -> list[Event]:
        return await self.store.events(server=SERVER)

    async def said(self) -> str:
        return "\n".join(event.message for event in await self.events())

    async def intents(self) -> list[tuple[IntentKind, str]]:
        return [(intent.kind, intent.reason) for intent in (await self.view()).intents]

    async def speak(self, mode: str, **fields: Any) -> AgentSession:
        """An attested session for the server."""
        now = time.time()
        given = {"id": "s", "mode": mode, "boot_id": "b", "started": now, "last_seen": now, "attested_at": now}
        session = AgentSession(**(given | fields))
        await self.store.agents.put_session(SERVER, session)
        return session

    async def answer(self, key: str, result: dict[str, Any]) -> dict[str, Any]:
        """The step gives its order; the agent answers it. Returns the order's arguments."""
        assert not (await self.step(key)).done
        order = await self.store.agents.next_order(SERVER)
        assert order is not None
        assert await self.store.agents.finish(SERVER, order.id, ok=True, result=result, error=None)
        return order.args


def replaced(facts: Facts, result: StepResult) -> Facts:
    return msgspec.structs.replace(facts, **result.facts)


def make(state: Path) -> Site:
    """A site whose images measure what the recorded boots measured, under the keys that the recorded machine had."""
    lay_out(state)
    return opened(state)


def lay_out(state: Path) -> None:
    """The state directory of such a site."""
    shutil.copytree(founded()[0], state, dirs_exist_ok=True)
    vault = open_vault(state)
    for name, variable in (("pk", "PK"), ("kek", "KEK"), ("db", "db")):
        stored = msgspec.json.decode(vault.get(f"site/keys/{name}") or b"")
        pem = (recorded.DATA / f"{variable}.pem").read_text()
        vault.put(f"site/keys/{name}", msgspec.json.encode(stored | {"certificate": pem}))
        (state / "keys" / f"{name}.pem").unlink()
    for name in BOOT_FILES:
        (state / name).write_bytes(b"boot file")
    (state / "tpm-roots").mkdir(exist_ok=True)


def opened(state: Path) -> Site:
    """The site that was laid out there, as a controller opens it when it starts."""
    vault = open_vault(state)
    keys = SiteKeys.load(state, vault)
    files = {name: state / name for name in BOOT_FILES}
    image = OsImage(
        name="debian",
        version="12.11",
        path=files["os.raw"],
        manifest_envelope={"payload": "…"},
        manifest_sha256="ab" * 32,
        sha256="cd" * 32,
        booted=booted("debian"),
        size=1 << 30,
        chunks=256,
    )
    boot = BootArtifacts(files["agent.efi"], files["agent.iso"], files["stage2.img"], booted("agent"), image)
    declared = {each.key: each.spec for each in documents()}
    spec = declared["Site", "lab"]
    assert isinstance(spec, SiteSpec)
    networks = {name: each for (_, name), each in declared.items() if isinstance(each, NetworkSpec)}
    return make_site(state, spec, networks, vault, keys, boot)


@asynccontextmanager
async def bmc(directory: Path, hardware: MemoryHardware, user: str = "root", port: int = 0) -> AsyncIterator[int]:
    """The lab's Redfish service over TLS on loopback; its port."""
    directory.mkdir(exist_ok=True)
    factory = founded()[1]
    if factory.exists() and not (directory / "https.pem").exists():
        (directory / "https.pem").write_bytes(factory.read_bytes())
    runner = await serve(
        hardware, BmcConfig(FACTORY_PASSWORD, directory, port=port, factory_user=user, reset_seconds=0.1)
    )
    factory.write_bytes((directory / "https-factory.pem").read_bytes())
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def https_with(directory: Path, app: web.Application) -> AsyncIterator[str]:
    """Something else than a BMC, under a BMC's key; its address."""
    from freehold_lab.bmc.tls import TlsIdentity

    directory.mkdir(exist_ok=True)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    identity = TlsIdentity(directory, "HX2B4001", "Halden Compute")
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=identity.context).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def place_at(tmp_path: Path, hardware: MemoryHardware, address: str) -> AsyncIterator[Place]:
    """A site whose server-1 finds its BMC at `address`, whatever address in the oob network it was declared with."""
    found = transport.split_address(address)
    site = make(tmp_path / "state")
    store = await Store.open(tmp_path / "freehold.db")
    lease = Lease(store.ledger, ttl=600.0)
    await lease.take()
    site.store, site.agents = store, store.agents
    place = Place(site, store, Evidence(), hardware, lease)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transport, "split_address", lambda _declared: found)
            await place.declare()
            yield place
    finally:
        await store.close()


@asynccontextmanager
async def a_place(tmp_path: Path) -> AsyncIterator[Place]:
    """server-1 with a factory-new BMC."""
    hardware = MemoryHardware(example_info())
    async with bmc(tmp_path / "bmc", hardware) as port, place_at(tmp_path, hardware, f"127.0.0.1:{port}") as place:
        yield place


_secured: list[tuple[bytes, Facts]] = []
"""What the BMC holds, and what is known of the server, once `an_owned_place` was made: the next ones begin there."""


@asynccontextmanager
async def an_owned_place(tmp_path: Path) -> AsyncIterator[Place]:
    """server-1 as `securing` leaves it, for tests of what comes later."""
    hardware, settings = MemoryHardware(example_info()), tmp_path / "bmc" / "bmc.json"
    if _secured:
        settings.parent.mkdir()
        settings.write_bytes(_secured[0][0])
    async with bmc(tmp_path / "bmc", hardware, OWN_ACCOUNT) as port:
        async with place_at(tmp_path, hardware, f"127.0.0.1:{port}") as place:
            credential = Credential(OWN_ACCOUNT, FACTORY_PASSWORD, generated=True)
            place.site.vault.put(f"bmc/{SERVER}/current", msgspec.json.encode(credential))
            if _secured:
                status = (await place.view()).status
                await place.set_status(msgspec.structs.replace(status, facts=_secured[0][1]))
            else:
                for step in ("pin_identity", "disable_ipmi", "close_services"):
                    assert (await place.step(step)).done, step
                _secured.append((settings.read_bytes(), (await place.view()).status.facts))
            yield place
