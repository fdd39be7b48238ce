"""From a decision or a step's result to the next status: pure functions over frozen data, used by the engine."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from freehold.model.errors import FreeholdError
from freehold.model.findings import Finding, Severity
from freehold.model.status import Facts, ServerState, ServerStatus
from freehold.orchestration.decisions import Move
from freehold.orchestration.lifecycle import DEADLINES, forget, transition
from freehold.orchestration.planner import ROTATE, overdue
from freehold.orchestration.view import ServerView
from freehold.orchestration.waivers import ENDED

FIRST_RETRY, LAST_RETRY = 2.0, 300.0
"""Seconds between attempts: doubled each time, never more than the last."""


HOPELESS = 10
"""Failures in a row, a quarter of an hour by the back-off, after which a server without a deadline is stuck."""

STEP_FAILED = "step-failed"


def backoff(attempts: int) -> float:
    """Seconds to wait after the failure number `attempts` (from 1) in a row."""
    return min(LAST_RETRY, FIRST_RETRY * 2.0 ** min(attempts - 1, 20))


def with_facts(status: ServerStatus, changes: Mapping[str, Any]) -> ServerStatus:
    """Raises `TypeError` for a fact that does not exist or has the wrong type."""
    if not changes:
        return status
    changed = msgspec.structs.replace(status.facts, **changes)
    try:
        msgspec.convert(msgspec.to_builtins(changed), Facts)
    except (msgspec.ValidationError, TypeError) as error:
        raise TypeError(f"facts {', '.join(changes)}: {error}") from error
    return msgspec.structs.replace(status, facts=changed)


def with_findings(status: ServerStatus, new: Iterable[Finding], resolved: Iterable[str] = ()) -> ServerStatus:
    """`new` take the place of all of the same kind and subject; there may be several of them (two foreign accounts)."""
    fresh = tuple(dict.fromkeys(new))
    replaced, gone = {(each.kind, each.subject) for each in fresh}, set(resolved)
    kept = [each for each in status.findings if each.kind not in gone and (each.kind, each.subject) not in replaced]
    return msgspec.structs.replace(status, findings=(*kept, *fresh))


def moved(server: ServerView, move: Move, now: float) -> ServerStatus:
    """The status after a legal move. Raises `IllegalTransitionError`."""
    old = server.status
    state = transition(old.state, move.state, released=move.released)
    carried = msgspec.structs.replace(old.facts, **move.facts)
    if move.released:
        carried = msgspec.structs.replace(carried, released_at=now)
    entered = _entered(old, state, move.reason, now)
    return msgspec.structs.replace(
        entered,
        facts=forget(carried, state, released=move.released),
        retiring=old.retiring if move.retiring is None else move.retiring,
        quarantined_from=None,
    )


def quarantined(server: ServerView, reason: str, now: float) -> ServerStatus:
    old = server.status
    state = transition(old.state, ServerState.QUARANTINED)
    entered = msgspec.structs.replace(_entered(old, state, reason, now), quarantined_from=old.state)
    finding = Finding(
        severity=Severity.CRITICAL,
        kind="quarantined",
        subject=server.name,
        detail=reason,
        remedy=f"Find out why, then `freehold release {server.name}`.",
    )
    return with_findings(entered, [finding])


def failed(server: ServerView, step: str, error: Exception, now: float) -> ServerStatus:
    """Backed off, with a finding that tells all that the error knows: a person must be able to act on it."""
    attempts = server.status.attempts + 1
    status = msgspec.structs.replace(
        server.status,
        facts=_without_turn(server.facts) if step == ROTATE else server.facts,
        step=step,
        reason=in_words(error),
        waiting_for="",
        attempts=attempts,
        retry_at=now + backoff(attempts),
    )
    remedy = error.remedy if isinstance(error, FreeholdError) else None
    expected = error.expected if isinstance(error, FreeholdError) else None
    finding = Finding(
        severity=Severity.WARNING,
        kind=STEP_FAILED,
        subject=step or status.state,
        detail=status.reason + (f" (expected: {expected})" if expected else ""),
        remedy=remedy or "it is tried again by itself; if it stays, read the controller's log",
    )
    return with_findings(status, [finding], resolved=(STEP_FAILED,))


def _without_turn(facts: Facts) -> Facts:
    """A turn is for one attempt: the next one waits like everybody else's."""
    return msgspec.structs.replace(facts, rotation_turn=None)


def succeeded(status: ServerStatus) -> ServerStatus:
    """A step was done: what had failed before it is over. Where no deadline judges, being stuck is over too."""
    over = (STEP_FAILED,) if status.deadline is not None else (STEP_FAILED, "stuck")
    stuck = status.stuck and status.deadline is not None
    return msgspec.structs.replace(with_findings(status, (), resolved=over), stuck=stuck)


def in_words(error: Exception) -> str:
    return error.what if isinstance(error, FreeholdError) else f"{type(error).__name__}: {error}"


def judged(server: ServerView, status: ServerStatus, now: float) -> ServerStatus:
    """`status` with the deadline looked at: past it the server is stuck, and says so once with a remedy. A state that
    may last for ever has no deadline: there, a step that keeps failing is what makes a server stuck."""
    late = overdue(msgspec.structs.replace(server, status=status), now)
    hopeless = status.deadline is None and not server.paused and status.attempts >= HOPELESS
    if status.stuck or not (late or hopeless):
        return status
    doing = status.waiting_for or status.step or "nothing"
    finding = Finding(
        severity=Severity.WARNING,
        kind="stuck",
        subject=server.name,
        detail=f"{status.state} for {(now - status.state_since) / 60:.0f} minutes, at: {doing}; "
        f"last word: {status.reason}",
        remedy=f"`freehold describe server {server.name}`, mend what it names; work goes on by itself. "
        f"`freehold pause {server.name}` stops it.",
    )
    return msgspec.structs.replace(with_findings(status, [finding]), stuck=True)


def with_overlay(server: ServerView, now: float) -> ServerStatus:
    """Take over whether the server is paused. A pause stops the deadline's clock: resuming grants it anew, and an OS
    that was told to attest before is told again, with the time to do so."""
    status = server.status
    if status.paused == server.paused:
        return status
    limit = DEADLINES.get(status.state)
    deadline = None if server.paused or limit is None else now + limit
    facts = msgspec.structs.replace(status.facts, attestation_demanded=None)
    return msgspec.structs.replace(status, paused=server.paused, deadline=deadline, facts=facts)


def _entered(old: ServerStatus, state: ServerState, reason: str, now: float) -> ServerStatus:
    limit = DEADLINES.get(state)
    status = msgspec.structs.replace(
        old,
        state=state,
        state_since=now,
        reason=reason,
        step="",
        waiting_for="",
        attempts=0,
        retry_at=None,
        deadline=now + limit if limit is not None else None,
        stuck=False,
    )
    over = (ENDED,) if state is ServerState.DECOMMISSIONING else ()  # its tenant's: what comes next is told anew
    return with_findings(status, (), resolved=("stuck", "quarantined", STEP_FAILED, *over))
