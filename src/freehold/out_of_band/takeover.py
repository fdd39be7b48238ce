"""Take a BMC over: from a factory credential to one that nobody else knows, without ever being locked out.

Two phases with a write-ahead record. The vault holds `current`, which works, and at times `pending`, which may work:

    stage pending in the vault -> put it on the BMC -> log in with it -> commit (it becomes current) -> retire the rest

At every crash point one of the two recorded passwords works. A resume tries each at most once, pending first, and
counts its tries in the vault *before* it makes them, so that even a controller that crashes for ever stays below the
BMC's lockout threshold. `next_takeover_step` is the whole policy and does no I/O; `take_over` does one step at a time.
"""

import secrets
import string
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

import msgspec

from freehold.out_of_band.errors import TakeoverStopped, WrongCredential
from freehold.out_of_band.posture import AccountFact, AccountPolicy
from freehold.out_of_band.redfish import Credential

OWN_ACCOUNT = "freehold"
_LETTERS = "".join(sorted(set(string.ascii_letters) - set("Il O".replace(" ", ""))))
_DIGITS = "23456789"
_MARKS = "-_."  # the marks that no vendor's web form, IPMI tool or shell stumbles over
_LENGTH = 16  # IPMI 1.5 and older BMCs keep 16 characters; 16 of 61 are 94 bits
_ASSUMED_THRESHOLD = 3
_ASSUMED_WINDOW_SECONDS = 1800
_MAX_STEPS = 60


class StagedCredential(msgspec.Struct, frozen=True, kw_only=True):
    """The write-ahead record. `tries` guesses were started, the last at `last_try` (UNIX seconds), that are not known
    to have worked; `threshold` (0: no lockout) and `window` (seconds) are the BMC's lockout policy."""

    credential: Credential
    tries: int = 0
    last_try: float = 0.0
    threshold: int = _ASSUMED_THRESHOLD
    window: float = _ASSUMED_WINDOW_SECONDS

    def may_try(self, now: float) -> bool:
        """One try is kept for `current`, which may be the same account, and one so as not to reach the threshold."""
        return self.threshold == 0 or now - self.last_try > self.window or self.tries < self.threshold - 2

    def wait(self, now: float) -> float:
        return max(0.0, self.window - (now - self.last_try))


class CredentialSlots(Protocol):
    """Two durable slots of one server in the vault. Each call is atomic and durable when it returns."""

    async def current(self) -> Credential | None: ...
    async def pending(self) -> StagedCredential | None: ...
    async def stage(self, staged: StagedCredential) -> None:
        """Set or replace pending."""

    async def commit(self) -> None:
        """Pending becomes current; the old current is gone."""

    async def discard(self) -> None:
        """Forget pending."""


class AccountDoor(Protocol):
    """What a take-over needs of a BMC; `freehold.out_of_band.accounts.RedfishDoor` is the real one."""

    async def login(self, credential: Credential) -> str | None:
        """One attempt. The account that must change its password ("" if unnamed), or None. `WrongCredential`."""

    async def read(self) -> tuple[AccountPolicy, tuple[AccountFact, ...]]: ...
    async def create(self, credential: Credential) -> bool:
        """Add an administrator; False if this BMC cannot add accounts."""

    async def set_password(self, account: str, password: str, *, restore: bool) -> None:
        """`restore` also enables and unlocks the account and makes it administrator."""

    async def retire(self, account: str) -> bool:
        """Disable, or else delete, another account; False if the BMC lets us do neither."""

    async def close(self) -> None: ...


class Login(StrEnum):
    UNTRIED = "untried"
    WORKS = "works"
    REFUSED = "refused"


class StepKind(StrEnum):
    LOGIN_PENDING = "log in with the pending credential"
    LOGIN_CURRENT = "log in with the current credential"
    READ = "read account policy and accounts"
    STAGE = "stage a new credential in the vault"
    CREATE = "create our account"
    APPLY = "set the account's password"
    COMMIT = "commit the pending credential"
    DISCARD = "discard the pending credential"
    RETIRE = "retire another account"
    DONE = "done"
    STOP = "stop"


class Step(msgspec.Struct, frozen=True):
    """`target` is a user name (STAGE), an account's URI (APPLY, RETIRE) or the reason (STOP). `wait`: seconds after
    which what stopped it is over by itself."""

    kind: StepKind
    target: str = ""
    remedy: str = ""
    wait: float | None = None


class TakeoverState(msgspec.Struct, frozen=True, kw_only=True):
    """What one resume knows. `applied`: this resume put pending on the BMC. `staged_here`: this resume staged it.
    `rotate`: also replace a password of our own, once; `committed`: this resume made a new password current. `settle`:
    only find out which of the two recorded credentials the BMC has."""

    now: float
    current: Credential | None
    pending: StagedCredential | None = None
    current_login: Login = Login.UNTRIED
    pending_login: Login = Login.UNTRIED
    staged_here: bool = False
    applied: bool = False
    must_change: str | None = None
    forced_changes: int = 0
    discarded: StagedCredential | None = None
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
    if state.settle:
        return Step(StepKind.DONE)
    if state.current_login is Login.UNTRIED:
        return Step(StepKind.LOGIN_CURRENT)
    if state.current_login is Login.REFUSED:
        return Step(
            StepKind.STOP,
            "the BMC refuses the recorded credential",
            "`freehold credential set` the right one; each further attempt counts against the BMC's lockout",
        )
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


def _with_pending(state: TakeoverState, pending: StagedCredential) -> Step:
    if state.pending_login is Login.WORKS:
        return Step(StepKind.COMMIT)
    if state.pending_login is Login.REFUSED:
        if state.applied:
            return Step(
                StepKind.STOP,
                "the BMC accepted the new password and refuses it at log-in",
                "look at the BMC's password rules, then resume: both recorded credentials are tried again",
            )
        if state.current_login is Login.WORKS:
            return Step(StepKind.DISCARD)  # it never reached the BMC
        if state.current_login is Login.REFUSED or state.current is None:
            return Step(
                StepKind.STOP,
                "the BMC refuses the current and the pending credential: somebody changed its accounts",
                "find out who did; then `freehold credential set` the right one",
            )
        return Step(StepKind.LOGIN_CURRENT)
    if state.applied:
        return Step(StepKind.LOGIN_PENDING)
    if state.staged_here:
        return _apply(state, pending)
    if pending.may_try(state.now):
        return Step(StepKind.LOGIN_PENDING)
    # Out of tries. If the two are different accounts, current is known to work and lets us start again. If they are one
    # account, either may be right, and a wrong guess would count: wait until the BMC has forgotten.
    if state.current is not None and state.current.username != pending.credential.username:
        if state.current_login is Login.UNTRIED:
            return Step(StepKind.LOGIN_CURRENT)
        if state.current_login is Login.WORKS:
            return Step(StepKind.DISCARD)
    return Step(
        StepKind.STOP,
        f"{pending.tries} interrupted log-ins: one more could lock the account",
        f"resume in {pending.wait(state.now):.0f} s, when the BMC has forgotten them",
        pending.wait(state.now),
    )


def _apply(state: TakeoverState, pending: StagedCredential) -> Step:
    if state.must_change is not None:
        return Step(StepKind.APPLY, state.must_change)
    for account in state.accounts:
        if account.username == pending.credential.username:
            return Step(StepKind.APPLY, account.uri)
    return Step(StepKind.CREATE) if state.can_add else Step(StepKind.DISCARD)


def _forced(state: TakeoverState, current: Credential) -> Step:
    """The account may do nothing but change its own password; that is done first, then everything else."""
    if not state.must_change:
        return Step(
            StepKind.STOP,
            f"the BMC wants the password of {current.username!r} changed and does not say which account that is",
            "change it by hand, `freehold credential set` the new one, and resume",
        )
    if state.forced_changes > 1:
        return Step(StepKind.STOP, "the BMC wants the password changed again and again", "update its firmware")
    return Step(StepKind.STAGE, current.username)


def foreign_accounts(
    accounts: tuple[AccountFact, ...], own: str, keep: frozenset[str] = frozenset()
) -> tuple[AccountFact, ...]:
    """Enabled accounts, neither ours nor declared. The `Enabled` flag is the proof; we never guess a log-in."""
    return tuple(account for account in accounts if account.enabled and account.username not in keep | {own})


def generate_password(policy: AccountPolicy | None) -> str:
    """A random password within the BMC's own limits, with a letter of each case, a digit and a mark; letter first."""
    shortest = (policy.min_password_length if policy else None) or 0
    longest = (policy.max_password_length if policy else None) or max(_LENGTH, shortest)
    length = min(max(_LENGTH, shortest), longest)
    if length < 8 or shortest > longest:
        raise TakeoverStopped(
            f"the BMC allows passwords of {shortest} to {longest} characters",
            expected="at least 8",
            remedy="set MinPasswordLength and MaxPasswordLength of its AccountService",
        )
    alphabet = _LETTERS + _DIGITS + _MARKS
    classes = (string.ascii_lowercase, string.ascii_uppercase, string.digits, _MARKS)
    while True:
        password = secrets.choice(_LETTERS) + "".join(secrets.choice(alphabet) for _ in range(length - 1))
        if all(set(password) & set(wanted) for wanted in classes):
            return password


async def take_over(
    door: AccountDoor,
    slots: CredentialSlots,
    *,
    server: str | None = None,
    keep: frozenset[str] = frozenset(),
    rotate: bool = False,
    settle: bool = False,
    now: Callable[[], float] = time.time,
) -> TakeoverResult:
    """Start or resume the take-over of one BMC, until it is done. `keep` are declared accounts that stay. `rotate` puts
    a new password in place of our own; one that an interrupted rotation left pending counts as the new one. `settle`
    only ends what was interrupted: it finds out which of the two recorded credentials the BMC has, and keeps that.

    Safe to call again at any time; done means nothing to do. Raises `TakeoverStopped` when going on would risk a
    lockout, and whatever the BMC raised in a step; the state is then in the vault and the next call resumes.
    """
    current, pending = await slots.current(), await slots.pending()
    state = TakeoverState(now=now(), current=current, pending=pending, keep=keep, rotate=rotate, settle=settle)
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
            if not state.applied:  # a guess: counted before it is made, so that a crash does not make it free
                forgotten = state.now - pending.last_try > pending.window
                pending = change(pending, tries=1 if forgotten else pending.tries + 1, last_try=state.now)
                await slots.stage(pending)
            login, must_change = await _login(door, pending.credential)
            return change(state, pending=pending, pending_login=login, must_change=must_change)
        case StepKind.READ:
            policy, accounts = await door.read()
            return change(state, policy=policy, accounts=accounts)
        case StepKind.STAGE:
            credential = Credential(step.target, generate_password(state.policy), generated=True)
            staged = _staged(credential, state.policy, state.discarded)
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
            created = await door.create(pending.credential)
            return change(state, applied=created, can_add=created)
        case StepKind.APPLY if pending is not None:
            restore = state.must_change is None and current is not None
            restore = restore and current is not None and current.username != pending.credential.username
            await door.set_password(step.target, pending.credential.password, restore=restore)
            return change(state, applied=True)
        case StepKind.COMMIT if pending is not None:
            await slots.commit()
            return change(
                state,
                current=pending.credential,
                current_login=Login.WORKS,
                pending=None,
                policy=None,
                applied=False,
                committed=True,
            )
        case StepKind.DISCARD:
            await slots.discard()
            return change(state, pending=None, pending_login=Login.UNTRIED, staged_here=False, discarded=pending)
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


def _staged(credential: Credential, policy: AccountPolicy | None, before: StagedCredential | None) -> StagedCredential:
    """A fresh record. Failed tries of a discarded credential of the same account still count."""
    threshold = policy.lockout_threshold if policy else None
    window = policy.lockout_counter_reset_after if policy else None
    same = before is not None and before.credential.username == credential.username
    return StagedCredential(
        credential=credential,
        tries=before.tries if before is not None and same else 0,
        last_try=before.last_try if before is not None and same else 0.0,
        threshold=_ASSUMED_THRESHOLD if threshold is None else threshold,
        window=float(window or _ASSUMED_WINDOW_SECONDS),
    )
