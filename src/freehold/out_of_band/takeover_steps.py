"""What to do next in a take-over (`takeover.py`): the whole policy, pure. What is known in, one step out."""

from collections import Counter
from enum import StrEnum

import msgspec

from freehold.out_of_band.credential_slots import StagedCredential
from freehold.out_of_band.posture import AccountFact, AccountPolicy
from freehold.out_of_band.redfish import Credential

OWN_ACCOUNT = "freehold"
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
        spent = Counter[str]()
        for each in others:
            spent[each.credential.username] += each.recent(state.now)
        for each in sorted(left, key=lambda each: each.recalls):
            if each.threshold == 0 or spent[each.credential.username] < each.threshold - 2:
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
        tried = state.kept_tried | {pending.credential, state.current}
        if state.current is not None and any(each.credential not in tried for each in state.kept):
            return Step(StepKind.DISCARD)  # it is kept, and those that were kept before it have their turn
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
