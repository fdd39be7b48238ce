from collections.abc import Callable
from pathlib import Path
from typing import Any

from freehold.model.documents import load_documents
from freehold.model.resources import Resource
from freehold.model.status import ServerState, ServerStatus
from freehold.orchestration.engine import Engine
from freehold.orchestration.simulated import World
from freehold.orchestration.store import Store

RACK = Path(__file__).parents[1] / "model" / "rack.yaml"


class Clock:
    """Time that only the test moves, and a hair with every look so that no two moments are the same."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        self.now += 1e-4
        return self.now


class Evidence:
    def __init__(self) -> None:
        self.statements: list[tuple[str, str, dict[str, Any]]] = []

    async def __call__(self, name: str, subject: str, predicate: dict[str, Any]) -> int:
        self.statements.append((name, subject, predicate))
        return len(self.statements) - 1

    def path(self, server: str) -> list[str]:
        """The states that a server entered, by the evidence; a repetition after a crash counts once."""
        states = [p["to"] for name, subject, p in self.statements if (name, subject) == ("transition", server)]
        return [state for at, state in enumerate(states) if at == 0 or states[at - 1] != state]


class Rig:
    """A store on a file, a world, and engines on them."""

    def __init__(self, path: Path, store: Store, clock: Clock) -> None:
        self.path, self.store, self.clock = path, store, clock
        self.world, self.evidence = World(), Evidence()

    def engine(self, **options: Any) -> Engine:
        defaults = {"clock": self.clock, "monotonic": self.clock, "alone": True}
        return Engine(self.store, self.world.steps(), self.evidence, **(defaults | options))

    async def status(self, name: str = "server-1") -> ServerStatus:
        status = (await self.store.get("Server", name)).status
        assert status is not None
        return status

    async def drive(
        self, engine: Engine, until: Callable[[ServerStatus], bool], name: str = "server-1"
    ) -> ServerStatus:
        """Rounds of the engine until the server's status is as wanted; time passes when nothing is due."""
        for _ in range(400):
            status = await self.status(name)
            if until(status):
                return status
            if await engine.round() == 0:
                due = await self.store.ledger.next_due()
                self.clock.now = max(self.clock.now, due or self.clock.now + 3.0)
        raise AssertionError(f"{name} never got there: {await self.status(name)}")

    async def drive_to(self, engine: Engine, state: ServerState, name: str = "server-1") -> ServerStatus:
        return await self.drive(engine, lambda status: status.state is state, name)


def rack(*servers: str) -> list[Resource]:
    """The documents of the rack, or of some of its servers only."""
    whole = load_documents(RACK.read_text(), "rack.yaml")
    return [each for each in whole if not servers or _server(each) in (None, *servers)]


def _server(resource: Resource) -> str | None:
    return resource.name if resource.kind == "Server" else getattr(resource.spec, "server", None)
