"""What the planner can decide. Frozen data; the engine carries it out."""

from dataclasses import dataclass, field

from freehold.model.status import ServerState


@dataclass(frozen=True)
class Do:
    """Run step `step`. `key` names this one piece of work within the state: `sanitize/SERIAL`."""

    step: str
    key: str

    @property
    def subject(self) -> str:
        """`SERIAL` of `sanitize/SERIAL`; empty if the step has no subject."""
        return self.key.partition("/")[2]


@dataclass(frozen=True)
class Wait:
    """Nothing to do until somebody else did something, or until the time `until`."""

    reason: str
    until: float


@dataclass(frozen=True)
class Move:
    state: ServerState
    reason: str
    intent: int | None = None
    released: bool = False
    retiring: bool | None = None
    facts: dict[str, object] = field(default_factory=dict)
    statements: tuple[tuple[str, dict[str, object]], ...] = ()
    """(name, predicate) to record as evidence beside the transition."""
    approval: str | None = None
    """The request of two people that this carries out: it is closed then."""


@dataclass(frozen=True)
class Quarantine:
    reason: str
    intent: int | None = None


@dataclass(frozen=True)
class Refuse:
    """An intent that makes no sense now; it is dropped, with an event that says why."""

    intent: int
    reason: str


@dataclass(frozen=True)
class Settle:
    """An intent that asks for nothing more: what it wanted holds."""

    intent: int
    outcome: str


@dataclass(frozen=True)
class Idle:
    """As declared, or nothing to do before its turn comes. Look again at `until`; None: only when something changes."""

    until: float | None
    waiting_for: str = ""


@dataclass(frozen=True)
class TakeTurn:
    """A rotation is due and has no turn yet: one is taken, and the server is looked at again."""


Decision = Do | TakeTurn | Wait | Move | Quarantine | Refuse | Settle | Idle
