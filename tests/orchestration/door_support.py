"""The agents' door behind real TLS, and machines with real software TPMs that come to it on recorded boots."""

import asyncio
import hashlib
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from site_support import Place, recorded

from freehold.agent.client import NO_TPM_AFTER, Agent, Controller, Refused
from freehold.orchestration.agent_door import AgentDoor
from freehold.orchestration.controller import tls_context
from freehold.provisioning.agent_api import create_agent_app
from freehold.root_of_trust.attestation.event_log import parse_event_log

sys.path.append(str(Path(__file__).parents[1] / "agent"))
from swtpm_support import Vendor, connect, running

MAC = "52:54:00:12:34:10"


class Door:
    """A door behind real TLS, and machines that come to it."""

    def __init__(self, place: Place, root: Path) -> None:
        self.place, self.root = place, root
        self.door = self.fresh()
        self.url = ""

    def fresh(self) -> AgentDoor:
        site = self.place.site
        self.door = AgentDoor(site, self.place.store, self.place.evidence, site.keys.controller_tls.certificate_der)
        return self.door

    # The app's backend: whatever door stands now, so that a test can restart the controller.
    def __getattr__(self, name: str) -> Any:
        return getattr(self.door, name)

    def agent(self, tpm: Any, *, mac: str = MAC, mode: str = "ramdisk", log: str = "setup-mode") -> Agent:
        machine = self.root / f"machine-{mac.replace(':', '')}"
        net = machine / "sys/class/net/eth0"
        (net / "device").mkdir(parents=True, exist_ok=True)
        (net / "address").write_text(mac + "\n")
        events = machine / "sys/kernel/security/tpm0/binary_bios_measurements"
        events.parent.mkdir(parents=True, exist_ok=True)
        events.write_bytes(recorded.log_bytes(log))
        (machine / "proc/sys/kernel/random").mkdir(parents=True, exist_ok=True)
        (machine / "proc/sys/kernel/random/boot_id").write_text("boot-1\n")

        def open_tpm(_: str) -> Any:
            if isinstance(tpm, Exception):
                raise tpm
            return tpm() if callable(tpm) else tpm

        made = Agent(Controller(self.url, self.trust), mode, root=str(machine), open_tpm=open_tpm)
        made._tpm_failures = NO_TPM_AFTER  # it has tried before: a TPM that fails is told of at once
        return made

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.place.site.keys.agent_ca.certificate_pem.decode())

    def certificates(self) -> list[dict[str, Any]]:
        """What the log says of certificates of agents, oldest first."""
        return [claim for name, _, claim in self.place.evidence.statements if name == "certificate"]

    async def comes(self, tpm: Any, **how: Any) -> Agent:
        agent = self.agent(tpm, **how)
        try:
            await asyncio.to_thread(agent.attest)
        except BaseException:
            agent.controller.close()
            raise
        return agent

    async def refused(self, tpm: Any, **how: Any) -> str:
        """The words on the console of a machine that was not let in."""
        with pytest.raises(Refused) as refusal:
            await self.comes(tpm, **how)
        assert refusal.value.status == 403
        return str(refusal.value)


@pytest.fixture
async def door(owned: Place, tmp_path: Path) -> AsyncIterator[Door]:
    made = Door(owned, tmp_path)
    tls = owned.site.keys.controller_tls
    digest = hashlib.sha256(tls.certificate_der).digest()
    runner = web.AppRunner(create_agent_app(made, digest), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(
        runner, "127.0.0.1", 0, ssl_context=tls_context(tls, clients=owned.site.keys.agent_ca.certificate_pem)
    ).start()
    made.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Vendor:
    made = Vendor(tmp_path_factory.mktemp("vendor") / "v")
    for name in ("own", "other"):
        made.make(name)
    made.make("uncertified", certificate=False)
    return made


@contextmanager
def booted_tpm(vendor: Vendor, name: str, log: str = "setup-mode") -> Iterator[Any]:
    """The TPM after a recorded boot; a function that connects to it."""
    with running(vendor.directory / name) as path:
        with connect(path) as tpm:
            for event in parse_event_log(recorded.log_bytes(log)).events:
                if event.type != 3:
                    tpm.pcr_extend(event.pcr, dict(event.digests))
        yield lambda: connect(path)


@pytest.fixture
def own(vendor: Vendor) -> Iterator[Any]:
    with booted_tpm(vendor, "own") as tpm:
        yield tpm


@pytest.fixture
def trusting(door: Door, vendor: Vendor) -> Door:
    """A door of a site that trusts the TPM vendor."""
    for path in vendor.roots().iterdir():
        (door.place.site.directory / "tpm-roots" / path.name).write_bytes(path.read_bytes())
    return door


def ek_of(tpm: Any) -> str:
    with tpm() as opened:
        return hashlib.sha256(opened.create_ek().public).hexdigest()


async def agent_events(door: Door) -> list[str]:
    return [event.message for event in await door.place.events() if event.kind == "agent-refused"]
