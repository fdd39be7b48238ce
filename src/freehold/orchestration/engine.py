"""The engine: level-triggered. It takes what is due, asks the planner, does one thing, and writes down what came of it.

Order of one reconcile: claim (the fence grows) -> view -> decide -> journal the intent -> the step -> evidence -> one
transaction with status, outcome and events. A crash anywhere leaves a journal row open; whoever claims the server next
runs the same step again. Nothing of an idle server is kept in memory.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from freehold.model.errors import FreeholdError
from freehold.model.status import RotationTurn, ServerState, ServerStatus
from freehold.orchestration import outcomes
from freehold.orchestration.decisions import Do, Idle, Move, Quarantine, Refuse, Settle, TakeTurn, Wait
from freehold.orchestration.leases import Lease
from freehold.orchestration.ledger import Claim, Completion, Note
from freehold.orchestration.planner import next_step
from freehold.orchestration.step import Record, StepContext, StepFn, StepResult
from freehold.orchestration.store import Store
from freehold.orchestration.view import ServerView

logger = logging.getLogger(__name__)

POLL = 1.0
"""Seconds between two looks at what is due. Wake-ups only make it sooner."""

GATHER = 0.005
"""Seconds to let more work become due before a claim: claims and commits are cheap in batches."""

STEP_AGAIN = 30.0

LONGEST_ATTEMPT = 4 * 3600.0
"""Seconds for one attempt at a step: no BMC that answers slowly for ever holds a server, and a slot, for longer. What
takes hours (an erase) is done by the agent, and each attempt only looks at it; the longest of all sends firmware."""


class Engine:
    """`steps` has a function for every name in `planner.STEPS`. `alone`: the caller holds the site's lock, so no other
    replica lives and what a killed one held is free at once. `entering` is called with a server as it will be in the
    state that it enters, before that is written."""

    def __init__(
        self,
        store: Store,
        steps: Mapping[str, StepFn],
        record: Record,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        ttl: float = 30.0,
        slots: int = 200,
        alone: bool = False,
        entering: Callable[[ServerView], Awaitable[None]] | None = None,
    ) -> None:
        self._store, self._steps, self._record, self._clock = store, steps, record, clock
        self._slots, self._alone, self._entering = slots, alone, entering
        self.lease = Lease(store.ledger, ttl=ttl, clock=clock, monotonic=monotonic)
        self._in_flight: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Work until cancelled; then let go of everything in good order."""
        if self._alone:
            await self._store.ledger.disown_others()
        heartbeat = asyncio.create_task(self._beat(), name="lease-heartbeat")
        try:
            while True:
                if heartbeat.done():
                    await heartbeat
                self._woken.clear()
                pause = POLL
                try:
                    await self._take_on()
                    pause = await self._pause()
                except FreeholdError as error:
                    logger.error("%s", error)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), pause)
                await asyncio.sleep(GATHER)
        finally:
            heartbeat.cancel()
            await self._give_up()
            await asyncio.gather(heartbeat, return_exceptions=True)
            with suppress(FreeholdError):
                await self.lease.end()

    async def wake(self, *servers: str) -> None:
        """Look at these servers now: something about them has changed."""
        await self._store.ledger.wake(servers)
        self._woken.set()

    def nudge(self) -> None:
        """Look at what is due now, because somebody has woken a server in the store."""
        self._woken.set()

    async def round(self) -> int:
        """Take on what is due, once, and wait until it is done. Returns how many servers that were."""
        taken = await self._take_on()
        for task in taken:
            await task
        return len(taken)

    async def heartbeat(self) -> None:
        """Renew the lease. A lapsed one is never renewed: what is in flight is given up, and a fresh epoch begins."""
        if not await self.lease.renew():
            await self._give_up()
            await self.lease.take()

    async def _beat(self) -> None:
        while True:
            try:
                await self.heartbeat()
            except FreeholdError as error:
                logger.error("cannot renew the lease: %s", error)
            await asyncio.sleep(self.lease.ttl / 4)

    async def _give_up(self) -> None:
        tasks = [task for task in self._in_flight if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pause(self) -> float:
        """Seconds until there may be something to do, at most `POLL`."""
        if len(self._in_flight) >= self._slots:
            return POLL
        due = await self._store.ledger.next_due()
        return POLL if due is None else min(POLL, max(due - self._clock(), 0.01))

    async def _take_on(self) -> list[asyncio.Task[None]]:
        if self.lease.remaining() <= 0:
            await self.heartbeat()
        free = self._slots - len(self._in_flight)
        claims = await self._store.ledger.claim(self.lease.epoch, self._clock(), free) if free > 0 else []
        if not claims:
            return []
        reading = asyncio.create_task(self._store.ledger.views([claim.server for claim in claims]))
        tasks = [
            asyncio.create_task(self._work_on(claim, reading), name=f"reconcile-{claim.server}") for claim in claims
        ]
        for task in tasks:
            self._in_flight.add(task)
            task.add_done_callback(self._landed)
        return tasks

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._woken.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed", task.get_name(), exc_info=error)

    async def _work_on(self, claim: Claim, reading: "asyncio.Task[dict[str, ServerView]]") -> None:
        """Reconcile, and never leave a server in the hands of a replica that no longer works on it."""
        try:
            server = (await asyncio.shield(reading)).get(claim.server)
            if server is not None:
                await self._reconcile(claim, server)
        except Exception as error:
            logger.error("server %s: %s", claim.server, error, exc_info=not isinstance(error, FreeholdError))
            while True:
                with suppress(FreeholdError):
                    return await self._store.ledger.let_go(claim, self._clock() + outcomes.FIRST_RETRY)
                await asyncio.sleep(POLL)

    async def _reconcile(self, claim: Claim, server: ServerView) -> None:
        now = self._clock()
        server = msgspec.structs.replace(server, status=outcomes.with_overlay(server, now))
        decision = next_step(server, now)
        try:
            completion = await self._carry_out(claim, server, decision, now)
        except Exception as error:
            # Evidence or status could not be made: nothing has moved, and it is tried again later.
            logger.exception("%s: %s", server.name, decision)
            status = outcomes.failed(server, server.status.step, error, now)
            completion = Completion(status=status, next_due=status.retry_at, notes=(Note("failed", status.reason),))
        if completion is None:
            return
        now = self._clock()
        status = outcomes.judged(server, completion.status, now)
        if status.stuck and not completion.status.stuck:
            completion = msgspec.structs.replace(
                completion, notes=(*completion.notes, Note("stuck", status.findings[-1].detail))
            )
        status = msgspec.structs.replace(status, observed_generation=server.generation)
        if self._entering is not None and status.state is not server.status.state:
            await self._entering(msgspec.structs.replace(server, status=status))
        await self._store.ledger.complete(claim, msgspec.structs.replace(completion, status=status), now)

    async def _carry_out(self, claim: Claim, server: ServerView, decision: Any, now: float) -> Completion | None:
        match decision:
            case Do():
                return await self._do(claim, server, decision, now)
            case TakeTurn():
                turn = RotationTurn(slot=await self._store.ledger.take_turn(now), taken=now)
                return Completion(status=outcomes.with_facts(server.status, {"rotation_turn": turn}), next_due=now)
            case Move():
                status = outcomes.moved(server, decision, now)
                for name, predicate in decision.statements:
                    await self._record(name, server.name, predicate)
                entered = await self._enter(claim, server, status, decision.intent, now)
                return msgspec.structs.replace(entered, spent=decision.approval)
            case Quarantine():
                status = outcomes.quarantined(server, decision.reason, now)
                return await self._enter(claim, server, status, decision.intent, now)
            case Refuse():
                note = Note("refused", decision.reason)
                return Completion(
                    status=server.status, next_due=now, notes=(note,), handled=(decision.intent, decision.reason)
                )
            case Settle():
                note = Note("settled", decision.outcome)
                return Completion(
                    status=server.status, next_due=now, notes=(note,), handled=(decision.intent, decision.outcome)
                )
            case Wait():
                waiting = server.status.waiting_for if server.status.retry_at else decision.reason
                status = msgspec.structs.replace(server.status, waiting_for=waiting)
                return Completion(status=status, next_due=_sooner(decision.until, status.deadline, now))
            case Idle():
                status = msgspec.structs.replace(server.status, waiting_for=decision.waiting_for, retry_at=None)
                if not decision.waiting_for:  # else what failed goes on when its turn comes, and backs off further
                    status = msgspec.structs.replace(status, step="", attempts=0)
                return Completion(status=status, next_due=decision.until)
        raise AssertionError(decision)

    async def _enter(
        self, claim: Claim, server: ServerView, status: ServerStatus, intent: int | None, now: float
    ) -> Completion:
        """A state is never entered without evidence: recorded first, then written. `fence` tells a repetition."""
        old = server.status.state
        predicate = {"from": old.value, "to": status.state.value, "reason": status.reason, "at": now}
        await self._record("transition", server.name, predicate | {"fence": claim.fence})
        kind = "quarantined" if status.state is ServerState.QUARANTINED else "moved"
        return Completion(
            status=status,
            next_due=now,
            notes=(Note(kind, f"{old} -> {status.state}: {status.reason}"),),
            handled=(intent, f"-> {status.state}") if intent is not None else None,
            dropped_orders=None,
        )

    async def _do(self, claim: Claim, server: ServerView, decision: Do, now: float) -> Completion | None:
        opened = await self._store.ledger.open_journal(claim, decision.step, decision.key, now)
        if opened is None:
            return None
        row, resumed = opened
        context = StepContext(
            server, decision.step, decision.key, now, claim.fence, resumed, self.lease, self._store.agents, self._record
        )
        try:
            result = await self._attempt(context)
            for name, predicate in result.statements:
                await self._record(name, server.name, predicate)
            if result.quarantine is not None:
                return await self._step_quarantined(claim, server, result, result.quarantine, row)
            return self._stepped(server, decision, result, row)
        except Exception as error:
            if not isinstance(error, FreeholdError):
                logger.exception("%s: %s", server.name, decision.key)
            return self._step_failed(server, decision, error, row)

    async def _attempt(self, context: StepContext) -> StepResult:
        limit = asyncio.timeout(LONGEST_ATTEMPT)
        try:
            async with limit:
                return await self._steps[context.step](context)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise FreeholdError(
                f"{context.key} did not end within {LONGEST_ATTEMPT / 3600:g} h and was broken off",
                server=context.name,
                remedy="it is tried again by itself; see whether its BMC answers, and restart it if it is slow",
            ) from error

    def _stepped(self, server: ServerView, decision: Do, result: StepResult, row: int) -> Completion:
        now = self._clock()
        status = outcomes.with_findings(
            outcomes.with_facts(server.status, result.facts), result.findings, result.resolved
        )
        status = msgspec.structs.replace(
            status,
            step=decision.key,
            waiting_for=result.waiting_for or ("" if result.done else f"the agent: {decision.step}"),
            attempts=0 if result.done else status.attempts,  # an order given anew is no success: back-off goes on
            retry_at=None,
        )
        status = outcomes.succeeded(status) if result.done else status
        notes = tuple(Note("step", text) for text in result.events)
        if not result.done:
            again = _sooner(now + (result.retry_after or STEP_AGAIN), status.deadline, now)
            return Completion(status=status, next_due=again, notes=notes, journal=(row, "not yet"))
        after = next_step(msgspec.structs.replace(server, status=status, orders={}), now)
        if isinstance(after, Do) and after.key == decision.key:
            raise FreeholdError(f"step {decision.key} says that it is done, but its goal does not hold")
        return Completion(
            status=status, next_due=now, notes=notes, journal=(row, "done"), dropped_orders=(decision.key,)
        )

    async def _step_quarantined(
        self, claim: Claim, server: ServerView, result: StepResult, reason: str, row: int
    ) -> Completion:
        now = self._clock()
        status = outcomes.with_findings(
            outcomes.with_facts(server.status, result.facts), result.findings, result.resolved
        )
        observed = msgspec.structs.replace(server, status=status)
        entered = await self._enter(claim, server, outcomes.quarantined(observed, reason, now), None, now)
        notes = (*(Note("step", text) for text in result.events), *entered.notes)
        return msgspec.structs.replace(entered, notes=notes, journal=(row, "quarantined"))

    def _step_failed(self, server: ServerView, decision: Do, error: Exception, row: int) -> Completion:
        """Failures back off. A failed order goes, so that the next attempt gives a new one; a pending one stays."""
        now = self._clock()
        status = outcomes.failed(server, decision.key, error, now)
        remedy = status.findings[-1].remedy
        order = server.orders.get(decision.key)
        return Completion(
            status=status,
            next_due=_sooner(status.retry_at or now, status.deadline, now),
            notes=(Note("failed", f"{decision.key}, attempt {status.attempts}: {status.reason}; {remedy}"),),
            journal=(row, f"failed: {status.reason}"),
            dropped_orders=(decision.key,) if order is not None else (),
        )


def _sooner(when: float, deadline: float | None, now: float) -> float:
    """Not later than just after the deadline, so that a stuck server is found in time."""
    return min(when, deadline + 0.001) if deadline is not None and deadline > now else when
