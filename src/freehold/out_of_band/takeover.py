"""Take a BMC over: from a factory credential to one that nobody else knows, without ever being locked out.

Two phases with a write-ahead record. The vault holds `current`, which works, and at times `pending`, which may work:

    stage pending in the vault -> put it on the BMC -> log in with it -> commit (it becomes current) -> retire the rest

At every crash point one of the two recorded passwords works. A resume tries each once, pending first, and if that is
refused while current works, puts the *same* pending on the BMC again: whatever a slow BMC carries out late then sets
what the vault holds. Only what a BMC said no to is replaced, and what is replaced is kept, to be tried when nothing
else works. Tries are counted in the vault *before* they are made, so that even a controller that crashes for ever stays
below the BMC's lockout threshold. `takeover_steps.next_takeover_step` is the whole policy and does no I/O; `take_over`
does one step at a time.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec

from freehold.out_of_band.accounts import AccountDoor
from freehold.out_of_band.credential_slots import (
    ASSUMED_THRESHOLD,
    ASSUMED_WINDOW_SECONDS,
    CredentialSlots,
    StagedCredential,
)
from freehold.out_of_band.errors import ChangeRefused, TakeoverStopped, WrongCredential
from freehold.out_of_band.generated_password import generate_password
from freehold.out_of_band.redfish import Credential
from freehold.out_of_band.takeover_steps import (
    Login,
    Step,
    StepKind,
    TakeoverState,
    foreign_accounts,
    next_takeover_step,
)

_MAX_STEPS = 60


class TakeoverResult(msgspec.Struct, frozen=True, kw_only=True):
    """`steps` in words for the evidence; `remaining` are enabled accounts that the BMC does not let us retire."""

    username: str
    steps: tuple[str, ...]
    remaining: tuple[str, ...]


async def take_over(
    door: AccountDoor,
    slots: CredentialSlots,
    *,
    server: str | None = None,
    keep: frozenset[str] = frozenset(),
    rotate: bool = False,
    settle: bool = False,
    refused: bool = False,
    now: Callable[[], float] = time.time,
) -> TakeoverResult:
    """Start or resume the take-over of one BMC, until it is done. `keep` are declared accounts that stay. `rotate` puts
    a new password in place of our own; one that an interrupted rotation left pending counts as the new one. `settle`
    only ends what was interrupted, and finds out which credential the BMC has. `refused`: it has just refused current.

    Safe to call again at any time; done means nothing to do. Raises `TakeoverStopped` when going on would risk a
    lockout, and whatever the BMC raised in a step; the state is then in the vault and the next call resumes.
    """
    state = TakeoverState(
        now=now(),
        current=await slots.current(),
        pending=await slots.pending(),
        kept=await slots.kept(),
        current_login=Login.REFUSED if refused else Login.UNTRIED,
        keep=keep,
        rotate=rotate,
        settle=settle,
    )
    done: list[str] = []
    try:
        for _ in range(_MAX_STEPS):
            step = next_takeover_step(state)
            if step.kind is StepKind.DONE and state.current is not None:
                remaining = foreign_accounts(state.accounts, state.current.username, keep)
                return TakeoverResult(
                    username=state.current.username,
                    steps=tuple(done),
                    remaining=tuple(account.username for account in remaining),
                )
            if step.kind is StepKind.STOP:
                raise TakeoverStopped(step.target, server=server, remedy=step.remedy, wait=step.wait)
            state = await _do(step, state, door, slots)
            done.append(f"{step.kind.value}{f': {step.target}' if step.target else ''}")
    finally:
        await door.close()
    raise TakeoverStopped(f"the take-over did not end after {_MAX_STEPS} steps: {done[-4:]}", server=server)


async def _do(step: Step, state: TakeoverState, door: AccountDoor, slots: CredentialSlots) -> TakeoverState:
    """One side effect, and the state after it."""
    change = msgspec.structs.replace
    pending, current = state.pending, state.current
    match step.kind:
        case StepKind.LOGIN_CURRENT if current is not None:
            login, must_change = await _login(door, current)
            return change(state, current_login=login, must_change=must_change)
        case StepKind.LOGIN_PENDING if pending is not None:
            # Counted before it is made, so that a crash does not make it free; but where the BMC has just taken a new
            # one, it is expected to work, and to count it would only keep a resume waiting.
            expected = state.applied and state.staged_here
            pending = change(pending.tried(state.now), accepted=pending.accepted + state.applied)
            if not expected:
                await slots.stage(pending)
            login, must_change = await _login(door, pending.credential)
            if expected and login is Login.REFUSED:
                await slots.stage(pending)
            return change(state, pending=pending, pending_login=login, must_change=must_change)
        case StepKind.LOGIN_KEPT if step.kept is not None:
            tried = change(step.kept.tried(state.now), recalls=step.kept.recalls + 1)
            await slots.count(tried)
            kept = tuple(tried if each.credential == tried.credential else each for each in state.kept)
            state = change(state, kept=kept, kept_tried=state.kept_tried | {tried.credential})
            login, must_change = await _login(door, tried.credential)
            if login is Login.REFUSED:
                return state
            await slots.stage(tried)
            return change(state, pending=tried, pending_login=login, must_change=must_change, recalled=True)
        case StepKind.READ:
            policy, accounts = await door.read()
            return change(state, policy=policy, accounts=accounts)
        case StepKind.STAGE:
            credential = Credential(step.target, generate_password(state.policy), generated=True)
            staged = _staged(credential, state)
            await slots.stage(staged)
            return change(
                state,
                pending=staged,
                pending_login=Login.UNTRIED,
                staged_here=True,
                applied=False,
                forced_changes=state.forced_changes + (state.must_change is not None),
            )
        case StepKind.CREATE if pending is not None:
            async with _set_aside_if_refused(slots, pending, first=state.staged_here):
                created = await door.create(pending.credential)
            login = Login.UNTRIED if created else state.pending_login
            return change(state, applied=created, can_add=created, pending_login=login)
        case StepKind.APPLY if pending is not None:
            restore = state.must_change is None and current is not None
            restore = restore and current is not None and current.username != pending.credential.username
            async with _set_aside_if_refused(slots, pending, first=state.staged_here):
                await door.set_password(step.target, pending.credential.password, restore=restore)
            return change(state, applied=True, pending_login=Login.UNTRIED)
        case StepKind.COMMIT if pending is not None:
            await slots.commit(pending)
            return change(
                state,
                current=pending.credential,
                current_login=Login.WORKS,
                pending=None,
                policy=None,
                applied=False,
                committed=not state.recalled,
                recalled=False,
            )
        case StepKind.DISCARD if pending is not None:
            await slots.discard(pending)
            just_refused = frozenset({pending.credential} if state.pending_login is Login.REFUSED else ())
            return change(
                state,
                pending=None,
                pending_login=Login.UNTRIED,
                staged_here=False,
                kept=(pending, *state.kept),
                kept_tried=state.kept_tried | just_refused,
            )
        case StepKind.RETIRE:
            if not await door.retire(step.target):
                return change(state, unretirable=state.unretirable | {step.target})
            gone = tuple(account for account in state.accounts if account.uri != step.target)
            return change(state, accounts=gone)
    raise AssertionError(f"step {step} does not fit {state}")


async def _login(door: AccountDoor, credential: Credential) -> tuple[Login, str | None]:
    try:
        return Login.WORKS, await door.login(credential)
    except WrongCredential:
        return Login.REFUSED, None


@asynccontextmanager
async def _set_aside_if_refused(
    slots: CredentialSlots, pending: StagedCredential, *, first: bool
) -> AsyncIterator[None]:
    """What the BMC says no to is not sent again: the next attempt makes another password. Unless it was sent for the
    `first` time, the BMC may say no because it has just made the change: then it is the first to be tried."""
    try:
        yield
    except ChangeRefused:
        await slots.discard(msgspec.structs.replace(pending, refused=first))
        raise


def _staged(credential: Credential, state: TakeoverState) -> StagedCredential:
    """A fresh record. What was tried of others of the same account still counts."""
    policy = state.policy
    threshold = policy.lockout_threshold if policy else None
    window = policy.lockout_counter_reset_after if policy else None
    same = [each for each in state.kept if each.credential.username == credential.username and each.recent(state.now)]
    before = max(same, key=lambda each: each.tries, default=None)
    return StagedCredential(
        credential=credential,
        tries=before.tries if before is not None else 0,
        last_try=before.last_try if before is not None else 0.0,
        threshold=ASSUMED_THRESHOLD if threshold is None else threshold,
        window=float(window or ASSUMED_WINDOW_SECONDS),
    )
