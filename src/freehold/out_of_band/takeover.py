"""Take a BMC over: from a factory credential to one that nobody else knows, without ever being locked out.

Two phases with a write-ahead record. The vault holds `current`, which works, and at times `pending`, which may work:

    stage pending in the vault -> put it on the BMC -> log in with it -> commit (it becomes current) -> retire the rest

At every crash point one of the two recorded passwords works. A resume tries each once, pending first, and if that is
refused while current works, puts the *same* pending on the BMC again: whatever a slow BMC carries out late then sets
what the vault holds. Only what a BMC said no to is replaced, and what is replaced is kept, to be tried when nothing
else works. Tries are counted in the vault *before* they are made, so that even a controller that crashes for ever stays
below the BMC's lockout threshold. `next_takeover_step` is the whole policy and does no I/O; `take_over` does one step
at a time.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import StrEnum

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
from freehold.out_of_band.posture import AccountFact, AccountPolicy
from freehold.out_of_band.redfish import Credential

OWN_ACCOUNT = "freehold"
_MAX_STEPS = 60
_PATIENCE = 3
"""So often a BMC may take a new password and refuse it at log-in, before a person has to look."""


class Login(StrEnum):
    UNTRIED = "untried"
    WORKS = "works"
    REFUSED = "refused"


class StepKind(StrEnum):
    LOGIN_PENDING = "log in with the pending credential"
    LOGIN_CURRENT = "log in with the current credential"
    LOGIN_KEPT = "log in with an earlier credential"
    READ = "read account policy and accounts"
    STAGE = "stage a new credential in the vault"
    CREATE = "create our account"
    APPLY = "set the account's password"
    COMMIT = "commit the pending credential"
    DISCARD = "set the pending credential aside"
    RETIRE = "retire another account"
    DONE = "done"
    STOP = "stop"


class Step(msgspec.Struct, frozen=True):
    """`target` is a user name (STAGE), an account's URI (APPLY, RETIRE) or the reason (STOP); `kept` what LOGIN_KEPT is
    to try. `wait`: seconds after which what stopped it is over by itself."""

    kind: StepKind
    target: str = ""
    remedy: str = ""
    wait: float | None = None
    kept: StagedCredential | None = None


class TakeoverState(msgspec.Struct, frozen=True, kw_only=True):
    """What one resume knows. `applied`: this resume put pending on the BMC. `staged_here`: this resume staged it.
    `rotate`: also replace a password of our own, once; `committed`: this resume made a new password current. `settle`:
    only end what was interrupted. `kept`, of which this resume has tried `kept_tried`; `recalled`: one of those works,
    and is pending."""

    now: float
    current: Credential | None
    pending: StagedCredential | None = None
    kept: tuple[StagedCredential, ...] = ()
    kept_tried: frozenset[Credential] = frozenset()
    recalled: bool = False
    current_login: Login = Login.UNTRIED
    pending_login: Login = Login.UNTRIED
    staged_here: bool = False
    applied: bool = False
    must_change: str | None = None
    forced_changes: int = 0
    policy: AccountPolicy | None = None
    accounts: tuple[AccountFact, ...] = ()
    can_add: bool = True
    keep: frozenset[str] = frozenset()
    unretirable: frozenset[str] = frozenset()
    rotate: bool = False
    committed: bool = False
    settle: bool = False


class TakeoverResult(msgspec.Struct, frozen=True, kw_only=True):
    """`steps` in words for the evidence; `remaining` are enabled accounts that the BMC does not let us retire."""

    username: str
    steps: tuple[str, ...]
    remaining: tuple[str, ...]


def next_takeover_step(state: TakeoverState) -> Step:
    """The one thing to do next. Total and pure; every path ends in DONE or STOP."""
    if state.pending is not None:
        return _with_pending(state, state.pending)
    if state.current is None:
        return Step(StepKind.STOP, "the vault holds no credential for this BMC", "add the factory credential")
    if state.current_login is Login.REFUSED:
        return _refused(state, state.current)
    if state.settle:
        return Step(StepKind.DONE)
    if state.current_login is Login.UNTRIED:
        return Step(StepKind.LOGIN_CURRENT)
    if state.must_change is not None:
        return _forced(state, state.current)
    if state.policy is None:
        return Step(StepKind.READ)
    own = OWN_ACCOUNT if state.can_add else state.current.username
    if state.rotate and state.committed:
        return Step(StepKind.DONE)  # other accounts are drift, not this rotation's business
    if state.rotate or state.current.username != own or not state.current.generated:
        if state.policy.lockout_threshold in (1, 2):
            return Step(
                StepKind.STOP,
                f"the BMC locks an account after {state.policy.lockout_threshold} wrong log-ins: a crash in the middle"
                " of the change could lock us out",
                "set AccountLockoutThreshold to 3 or more, or to 0",
            )
        return Step(StepKind.STAGE, own)
    for account in foreign_accounts(state.accounts, state.current.username, state.keep):
        if account.uri not in state.unretirable:
            return Step(StepKind.RETIRE, account.uri)
    return Step(StepKind.DONE)


def _refused(state: TakeoverState, current: Credential) -> Step:
    """Current does not work any more: perhaps the BMC has carried out, late, a change to one of those that were kept.
    Each is tried once, the fewest times tried first, and no more than the BMC's lockout bears."""
    others = [each for each in state.kept if each.credential != current]
    left = [each for each in others if each.credential not in state.kept_tried]
    if left:
        spent = sum(each.recent(state.now) for each in others if each.credential.username == current.username)
        for each in sorted(left, key=lambda each: each.recalls):
            if each.threshold == 0 or spent < each.threshold - 2:
                return Step(StepKind.LOGIN_KEPT, each.credential.username, kept=each)
        if any(each.recalls == 0 for each in left):
            wait = max(each.wait(state.now) for each in others)
            return Step(
                StepKind.STOP,
                "the BMC refuses the recorded credential; earlier ones are still to be tried",
                f"resume in {wait:.0f} s, when the BMC has forgotten the log-ins that it refused",
                wait,
            )
    return Step(
        StepKind.STOP,
        "the BMC refuses the recorded credential",
        "`freehold credential set` the right one; each further attempt counts against the BMC's lockout",
    )


def _with_pending(state: TakeoverState, pending: StagedCredential) -> Step:
    if state.pending_login is Login.WORKS:
        return Step(StepKind.COMMIT)
    if state.applied:
        return _after_apply(state, pending)
    if state.staged_here:
        return _apply(state, pending)
    if state.pending_login is Login.UNTRIED:
        if pending.may_try(state.now):
            return Step(StepKind.LOGIN_PENDING)
        # Out of tries. If the two are different accounts, current is known to work and lets us go on. If they are one
        # account, either may be right, and a wrong guess would count: wait until the BMC has forgotten.
        if state.current is None or state.current.username == pending.credential.username:
            return _out_of_tries(state, pending)
    if state.current is None or state.current_login is Login.REFUSED:
        return Step(
            StepKind.STOP,
            "the BMC refuses the current and the pending credential: somebody changed its accounts",
            "find out who did; then `freehold credential set` the right one",
        )
    if state.current_login is Login.UNTRIED:
        return Step(StepKind.LOGIN_CURRENT)
    # It never reached the BMC, or the BMC is still at it: the same once more, so that both come to the same.
    if state.must_change is None and state.policy is None:
        return Step(StepKind.READ)
    return _apply(state, pending)


def _after_apply(state: TakeoverState, pending: StagedCredential) -> Step:
    if state.pending_login is Login.UNTRIED:
        return Step(StepKind.LOGIN_PENDING) if pending.may_check(state.now) else _out_of_tries(state, pending)
    return Step(
        StepKind.STOP,
        "the BMC accepted the new password and refuses it at log-in",
        "look at the BMC's password rules, then resume: both recorded credentials are tried again",
        pending.wait(state.now) if pending.accepted < _PATIENCE else None,
    )


def _out_of_tries(state: TakeoverState, pending: StagedCredential) -> Step:
    return Step(
        StepKind.STOP,
        f"{pending.tries} interrupted log-ins: one more could lock the account",
        f"resume in {pending.wait(state.now):.0f} s, when the BMC has forgotten them",
        pending.wait(state.now),
    )


def _apply(state: TakeoverState, pending: StagedCredential) -> Step:
    if state.must_change is not None and state.current is not None:
        if state.current.username != pending.credential.username:
            return Step(StepKind.DISCARD)  # first the account that we are in
        return Step(StepKind.APPLY, state.must_change) if state.must_change else _unnamed(state.current)
    for account in state.accounts:
        if account.username == pending.credential.username:
            return Step(StepKind.APPLY, account.uri)
    return Step(StepKind.CREATE) if state.can_add else Step(StepKind.DISCARD)


def _unnamed(current: Credential) -> Step:
    return Step(
        StepKind.STOP,
        f"the BMC wants the password of {current.username!r} changed and does not say which account that is",
        "change it by hand, `freehold credential set` the new one, and resume",
    )


def _forced(state: TakeoverState, current: Credential) -> Step:
    """The account may do nothing but change its own password; that is done first, then everything else."""
    if not state.must_change:
        return _unnamed(current)
    if state.forced_changes > 1:
        return Step(StepKind.STOP, "the BMC wants the password changed again and again", "update its firmware")
    return Step(StepKind.STAGE, current.username)


def foreign_accounts(
    accounts: tuple[AccountFact, ...], own: str, keep: frozenset[str] = frozenset()
) -> tuple[AccountFact, ...]:
    """Enabled accounts, neither ours nor declared. The `Enabled` flag is the proof; we never guess a log-in."""
    return tuple(account for account in accounts if account.enabled and account.username not in keep | {own})


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
            async with _set_aside_if_refused(slots, pending):
                created = await door.create(pending.credential)
            login = Login.UNTRIED if created else state.pending_login
            return change(state, applied=created, can_add=created, pending_login=login)
        case StepKind.APPLY if pending is not None:
            restore = state.must_change is None and current is not None
            restore = restore and current is not None and current.username != pending.credential.username
            async with _set_aside_if_refused(slots, pending):
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
            kept = (pending, *state.kept)
            return change(state, pending=None, pending_login=Login.UNTRIED, staged_here=False, kept=kept)
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
async def _set_aside_if_refused(slots: CredentialSlots, pending: StagedCredential) -> AsyncIterator[None]:
    """What the BMC says no to is not sent again: the next attempt makes another password."""
    try:
        yield
    except ChangeRefused:
        await slots.discard(msgspec.structs.replace(pending, refused=True))
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
