"""The contract between the engine and the doers: a step is `async (StepContext) -> StepResult`.

A step makes one idempotent side effect and says what it established. It may be cut off at any point and is then run
again, with `context.resumed` set: look before you act. What fails raises; the engine backs off and tries again.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from freehold.model.errors import FreeholdError
from freehold.model.findings import Finding
from freehold.model.status import Facts, Order, OrderState
from freehold.orchestration.agents import AgentLedger
from freehold.orchestration.leases import Lease
from freehold.orchestration.view import ServerView

Record = Callable[[str, str, dict[str, Any]], Awaitable[int]]
"""(statement name, subject, predicate) -> index of the leaf in the evidence log. Names: see docs/architecture.md."""


class OrderFailedError(FreeholdError):
    """The agent could not carry out an order; `order.result` has what it found all the same."""

    def __init__(self, server: str, order: Order) -> None:
        error = order.error or {}
        super().__init__(
            f"the agent's {order.kind} failed: {error.get('what', 'no reason given')}",
            server=server,
            remedy=error.get("remedy"),
        )
        self.order = order


@dataclass(frozen=True)
class StepResult:
    """What a step came to.

    `done`: the step's goal holds now; otherwise it is run again after `retry_after` seconds (30 if None), or as soon as
    the agent reports. `facts`: fields of `Facts` that change. `statements`: (name, predicate) to record as evidence.
    `events`: sentences for people. `quarantine`: a trust failure, in words. `findings` replace those of the same kind
    and subject; `resolved` names kinds of findings that no longer hold.
    """

    done: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)
    events: tuple[str, ...] = ()
    statements: tuple[tuple[str, dict[str, Any]], ...] = ()
    retry_after: float | None = None
    waiting_for: str = ""
    quarantine: str | None = None
    findings: tuple[Finding, ...] = ()
    resolved: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepContext:
    """What a step knows: the server as it was decided upon, and which piece of work this is."""

    server: ServerView
    step: str
    key: str
    now: float  # when the step began, UNIX seconds
    fence: int
    resumed: bool  # an earlier attempt at this key was cut off at an unknown point
    lease: Lease
    agents: AgentLedger
    record_statement: Record

    @property
    def name(self) -> str:
        return self.server.name

    @property
    def facts(self) -> Facts:
        return self.server.facts

    @property
    def subject(self) -> str:
        """`SERIAL` of the key `sanitize/SERIAL`; empty if the step has no subject."""
        return self.key.partition("/")[2]

    async def ensure_lease(self, timeout: float) -> None:
        """Call before every command that changes something, with the command's timeout in seconds. Raises
        `LeaseTooShortError`: then the command must not be sent."""
        await self.lease.ensure(timeout, self.name)

    async def order(self, kind: str, args: dict[str, Any]) -> Order:
        """The agent's order of this key, given now if it was not yet. Pending: return `StepResult(done=False)`; the
        planner waits for its result and runs the step again. Raises `OrderFailedError`."""
        order = await self.agents.order(self.name, self.key, kind, args)
        if order.state is OrderState.FAILED:
            raise OrderFailedError(self.name, order)
        return order

    async def record(self, name: str, predicate: dict[str, Any]) -> int:
        """Record a statement about this server now; returns its index in the evidence log."""
        return await self.record_statement(name, self.name, predicate)


StepFn = Callable[[StepContext], Awaitable[StepResult]]
