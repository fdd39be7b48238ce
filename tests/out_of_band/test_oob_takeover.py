"""The take-over: never locked out, never an unknown password, wherever the controller dies."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oob_support import LATER, Crash, Crashes, MemorySlots, ModelAccount, ModelBmc, no_sleep

from freehold.out_of_band.accounts import RedfishDoor
from freehold.out_of_band.credential_slots import KEPT, StagedCredential, keeping
from freehold.out_of_band.errors import BmcUnreachable, ChangeRefused, TakeoverStopped
from freehold.out_of_band.generated_password import generate_password
from freehold.out_of_band.posture import AccountPolicy
from freehold.out_of_band.redfish import Credential, RedfishClient
from freehold.out_of_band.takeover import TakeoverResult, take_over
from freehold.out_of_band.takeover_steps import Login, StepKind, TakeoverState, next_takeover_step


class WaitForTheBmc(Exception):
    """The take-over waits until the BMC has forgotten its interrupted log-ins."""


FACTORY = Credential("root", "factory-pass")


def _bmc(crashes: Crashes, **options: object) -> ModelBmc:
    must_change = bool(options.pop("must_change", False))
    accounts = {"1": ModelAccount("root", "factory-pass", must_change=must_change), "2": ModelAccount("guest", "guest")}
    return ModelBmc(crashes, accounts, **options)  # type: ignore[arg-type]


async def _resume(
    bmc: ModelBmc, slots: MemorySlots, crashes: Crashes, at: int | None, **how: bool
) -> TakeoverResult | None:
    """One life of the controller. None if it died."""
    crashes.at, crashes.passed = at, 0
    bmc.tokens.clear()

    async def sleep(seconds: float) -> None:
        bmc.clock += seconds

    door = RedfishDoor(lambda credential: RedfishClient(bmc, credential, sleep=sleep))
    before = len(bmc.attempts)
    try:
        return await take_over(door, slots, **how, now=lambda: bmc.clock)
    except Crash:
        return None
    except TakeoverStopped as stopped:
        if stopped.wait is not None:
            raise WaitForTheBmc from stopped
        raise
    finally:
        tried = [(name, word) for name, word, _ in bmc.attempts[before:]]
        again = {credential for credential in tried if tried.count(credential) > 1}
        assert len(again) <= 1, "one attempt per credential and resume, and one after it was put on the BMC"
        assert all(tried.count(credential) == 2 for credential in again)


def _recorded(slots: MemorySlots) -> list[Credential]:
    two = [c for c in (slots.now, slots.next and slots.next.credential) if c is not None]
    return [*two, *(each.credential for each in slots.before)]


def _check(bmc: ModelBmc, slots: MemorySlots) -> None:
    assert any(bmc.works(credential) for credential in _recorded(slots)), "a recorded credential works"
    known = {c.password for c in _recorded(slots)} | {"factory-pass", "guest"}
    current = slots.now
    assert current is not None
    own = [a for a in bmc.accounts.values() if a.username == current.username]
    assert all(a.password in known for a in own), "no unknown password on the account that is in use"
    assert "root" not in bmc.ever_locked
    assert current.username not in bmc.ever_locked


OPTIONS = st.fixed_dictionaries(
    {
        "can_add": st.booleans(),
        "threshold": st.sampled_from([None, 0, 3, 5]),
        "must_change": st.booleans(),
        "longest": st.sampled_from([None, 12, 20, 40]),
        "retirable": st.booleans(),
    }
)


@settings(max_examples=150, deadline=None)
@given(options=OPTIONS, lives=st.lists(st.integers(1, 70), max_size=6), quick=st.booleans())
async def test_wherever_it_crashes_it_is_never_locked_out(
    options: dict[str, object], lives: list[int], quick: bool
) -> None:
    crashes = Crashes()
    bmc, slots = _bmc(crashes, **options), MemorySlots(crashes, FACTORY)
    for at in lives:
        with contextlib.suppress(WaitForTheBmc):
            await _resume(bmc, slots, crashes, at)
        bmc.clock += 1 if quick else 5000
        _check(bmc, slots)
    try:
        result = await _resume(bmc, slots, crashes, None)
    except WaitForTheBmc:
        bmc.clock += 5000
        result = await _resume(bmc, slots, crashes, None)
    _check(bmc, slots)
    assert result is not None
    assert slots.next is None
    assert slots.now is not None
    assert slots.now.generated
    assert bmc.works(slots.now)
    assert slots.now.username == ("freehold" if options["can_add"] else "root")
    left = {a.username for a in bmc.accounts.values() if a.enabled} - {slots.now.username}
    assert left == set(result.remaining)
    assert bool(left) is not bool(options["retirable"])


SLOW = st.lists(st.sampled_from(["at once", "task", "fails", "late", "dropped", "says so"]), max_size=6)


async def _end(bmc: ModelBmc, slots: MemorySlots, crashes: Crashes) -> TakeoverResult:
    """A controller that lives on: the engine tries again, and a person lets the server go on."""
    for _ in range(4 + KEPT):
        try:
            result = await _resume(bmc, slots, crashes, None)
            assert result is not None
            return result
        except (WaitForTheBmc, TakeoverStopped, BmcUnreachable, ChangeRefused):
            bmc.clock += 5000
    raise AssertionError("it does not end")


@settings(max_examples=300, deadline=None)
@given(
    options=OPTIONS,
    slow=SLOW,
    lives=st.lists(st.tuples(st.none() | st.integers(1, 70), st.sampled_from(["", "rotate", "settle"])), max_size=6),
    pause=st.sampled_from([1, 40, 5000]),
    ends_sessions=st.booleans(),
    no_repeats=st.booleans(),
)
@pytest.mark.slow
async def test_a_bmc_that_makes_the_change_late_or_never_does_not_leave_an_unknown_password(
    options: dict[str, object],
    slow: list[str],
    lives: list[tuple[int | None, str]],
    pause: int,
    ends_sessions: bool,
    no_repeats: bool,
) -> None:
    crashes = Crashes()
    bmc, slots = _bmc(crashes, **options), MemorySlots(crashes, FACTORY)
    bmc.slow, bmc.ends_sessions, bmc.no_repeats = slow, ends_sessions, no_repeats
    for at, how in lives:
        with contextlib.suppress(WaitForTheBmc, TakeoverStopped, BmcUnreachable, ChangeRefused):
            await _resume(bmc, slots, crashes, at, **({how: True} if how else {}))
        bmc.clock += pause
        _check(bmc, slots)
    bmc.slow = []
    await _end(bmc, slots, crashes)
    bmc.clock += 5000  # whatever the BMC is still at happens now
    await _end(bmc, slots, crashes)
    _check(bmc, slots)
    assert slots.next is None
    assert slots.now is not None
    assert bmc.works(slots.now)


async def _ours(**options: object) -> tuple[ModelBmc, MemorySlots, Crashes]:
    crashes = Crashes()
    bmc, slots = _bmc(crashes, **options), MemorySlots(crashes, FACTORY)
    await _resume(bmc, slots, crashes, None)
    return bmc, slots, crashes


@pytest.mark.parametrize("wait", [2.0, LATER + 1])
async def test_a_change_that_the_bmc_makes_after_the_timeout_is_to_the_password_in_the_vault(wait: float) -> None:
    bmc, slots, crashes = await _ours()
    bmc.slow = ["late"]
    with pytest.raises(BmcUnreachable):
        await _resume(bmc, slots, crashes, None, rotate=True)
    assert slots.next is not None
    sent = slots.next.credential
    bmc.clock += wait
    await _resume(bmc, slots, crashes, None, settle=True)
    bmc.clock += 2 * LATER
    await _resume(bmc, slots, crashes, None)
    assert (slots.now, slots.next) == (sent, None)
    assert bmc.works(sent)


async def test_a_bmc_that_says_no_because_it_made_the_change_late_is_believed_to_have_it() -> None:
    bmc, slots, crashes = await _ours()
    for _ in range(3):
        await _resume(bmc, slots, crashes, None, rotate=True)
    bmc.slow, bmc.no_repeats, before = ["late"], True, slots.before
    with pytest.raises(BmcUnreachable):
        await _resume(bmc, slots, crashes, None, rotate=True)
    assert slots.next is not None
    sent, read = slots.next.credential, RedfishDoor.read

    async def meanwhile(door: RedfishDoor) -> object:
        bmc.clock += LATER  # between the log-in with the old password and the change, the BMC makes the first one
        return await read(door)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RedfishDoor, "read", meanwhile)
        with pytest.raises(ChangeRefused):
            await _resume(bmc, slots, crashes, None, settle=True)
    assert [each.credential for each in slots.before] == [sent, *(each.credential for each in before)]
    bmc.clock += 5000
    tried = len(bmc.attempts)
    await _resume(bmc, slots, crashes, None, settle=True, refused=True)
    assert (slots.now, slots.next) == (sent, None)
    assert [right for *_, right in bmc.attempts[tried:]] == [True]


@pytest.mark.parametrize("ends_sessions", [False, True])
async def test_the_task_of_a_change_is_waited_for(ends_sessions: bool) -> None:
    bmc, slots, crashes = await _ours()
    bmc.slow, bmc.ends_sessions = ["task"], ends_sessions
    refused = [right for *_, right in bmc.attempts].count(False)
    assert await _resume(bmc, slots, crashes, None, rotate=True) is not None
    assert slots.now is not None
    assert bmc.works(slots.now)
    assert [right for *_, right in bmc.attempts].count(False) == refused


async def test_a_bmc_that_says_done_before_it_is_done_is_waited_for_and_then_a_person_looks() -> None:
    bmc, slots, crashes = await _ours()
    bmc.slow = ["says so"] * 9
    for _ in range(2):
        with pytest.raises(WaitForTheBmc):
            await _resume(bmc, slots, crashes, None, rotate=True)
    bmc.clock += 5000
    assert await _resume(bmc, slots, crashes, None, settle=True) is not None
    assert slots.now is not None
    assert bmc.works(slots.now)


async def test_a_password_that_the_bmc_says_no_to_is_replaced_and_kept() -> None:
    bmc, slots, crashes = await _ours()
    before, bmc.slow = slots.now, ["fails"]
    with pytest.raises(ChangeRefused, match="ended as Exception"):
        await _resume(bmc, slots, crashes, None, rotate=True)
    assert (slots.now, slots.next) == (before, None)
    assert [each.refused for each in slots.before] == [True]
    assert await _resume(bmc, slots, crashes, None, rotate=True) is not None
    assert slots.now not in (before, slots.before[-1].credential)


@pytest.mark.parametrize("threshold", [3, 5])
async def test_an_earlier_password_that_came_back_is_found_among_those_that_were_kept(threshold: int) -> None:
    bmc, slots, crashes = await _ours(threshold=threshold)
    first = slots.now
    await _resume(bmc, slots, crashes, None, rotate=True)
    await _resume(bmc, slots, crashes, None, rotate=True)
    assert first is not None
    assert slots.now is not None
    assert [each.credential for each in slots.before][-1] == first
    bmc.accounts["3"].password = first.password  # the BMC carried out a change of long ago
    try:
        await _resume(bmc, slots, crashes, None, settle=True, refused=True)
    except WaitForTheBmc:
        assert threshold == 3  # one guess, and current, were all that it could bear
        bmc.clock += 5000
        await _resume(bmc, slots, crashes, None, settle=True, refused=True)
    assert (slots.now, slots.next) == (first, None)
    assert not bmc.ever_locked
    assert await _resume(bmc, slots, crashes, None, rotate=True) is not None
    assert slots.now != first


async def test_where_neither_current_nor_pending_works_what_was_kept_is_tried() -> None:
    bmc, slots, crashes = await _ours()
    first = slots.now
    assert first is not None
    await _resume(bmc, slots, crashes, None, rotate=True)
    bmc.accounts["3"].password = first.password
    slots.next = StagedCredential(credential=Credential("freehold", "never-set-1A", generated=True), threshold=5)
    await _resume(bmc, slots, crashes, None, settle=True)
    assert (slots.now, slots.next) == (first, None)
    assert not bmc.ever_locked


async def test_kept_passwords_of_another_account_do_not_lock_that_one_either() -> None:
    bmc, slots, crashes = await _ours()
    for _ in range(KEPT):
        await _resume(bmc, slots, crashes, None, rotate=True)
    bmc.accounts["3"].password = "changed-by-a-stranger"
    slots.now = Credential("root", "what-a-person-mistyped")
    for _ in range(2 * KEPT):
        with pytest.raises((TakeoverStopped, WaitForTheBmc)):
            await _resume(bmc, slots, crashes, None, settle=True, refused=True)
        bmc.clock += bmc.window + 1
    assert not bmc.ever_locked
    assert {word for name, word, _ in bmc.attempts if name == "freehold"} >= {
        e.credential.password for e in slots.before
    }


def test_what_is_kept_is_generated_and_what_the_bmc_refused_goes_first() -> None:
    made = [StagedCredential(credential=Credential("freehold", str(n), generated=True)) for n in range(KEPT + 2)]
    refused = StagedCredential(credential=Credential("freehold", "no", generated=True), refused=True)
    kept = keeping((), StagedCredential(credential=FACTORY), refused, made[0])
    assert kept == (made[0], refused)
    for each in made:
        kept = keeping(kept, each)
    assert kept == tuple(reversed(made))[:KEPT]


@pytest.mark.parametrize("options", [{}, {"can_add": False}, {"must_change": True}], ids=["add", "no-add", "change"])
async def test_every_single_crash_point(options: dict[str, object]) -> None:
    at, finished = 1, False
    while not finished:
        crashes = Crashes()
        bmc, slots = _bmc(crashes, **options), MemorySlots(crashes, FACTORY)
        finished = await _resume(bmc, slots, crashes, at) is not None
        _check(bmc, slots)
        assert await _resume(bmc, slots, crashes, None) is not None
        _check(bmc, slots)
        assert [a.username for a in bmc.accounts.values() if a.enabled] == [slots.now.username if slots.now else ""]
        at += 1
    assert at > 30


async def test_a_takeover_tells_its_steps_and_a_second_one_does_nothing() -> None:
    crashes = Crashes()
    bmc, slots = _bmc(crashes), MemorySlots(crashes, FACTORY)
    first = await _resume(bmc, slots, crashes, None)
    assert first is not None
    assert [step.split(":")[0] for step in first.steps] == [
        StepKind.LOGIN_CURRENT,
        StepKind.READ,
        StepKind.STAGE,
        StepKind.CREATE,
        StepKind.LOGIN_PENDING,
        StepKind.COMMIT,
        StepKind.READ,
        StepKind.RETIRE,
        StepKind.RETIRE,
    ]
    password = slots.now
    second = await _resume(bmc, slots, crashes, None)
    assert second is not None
    assert [step.split(":")[0] for step in second.steps] == [StepKind.LOGIN_CURRENT, StepKind.READ]
    assert slots.now == password


async def _rotating(bmc: ModelBmc, slots: MemorySlots, crashes: Crashes, at: int | None) -> TakeoverResult | None:
    return await _resume(bmc, slots, crashes, at, rotate=True)


@pytest.mark.parametrize("can_add", [True, False])
async def test_a_rotation_replaces_our_own_password_and_touches_nobody_else(can_add: bool) -> None:
    crashes = Crashes()
    bmc, slots = _bmc(crashes, can_add=can_add), MemorySlots(crashes, FACTORY)
    await _resume(bmc, slots, crashes, None)
    before = slots.now
    bmc.accounts["9"] = ModelAccount("intruder", "x")
    assert await _rotating(bmc, slots, crashes, None) is not None
    assert slots.now is not None
    assert before is not None
    assert slots.now.username == before.username
    assert slots.now.password != before.password
    assert bmc.works(slots.now)
    assert not bmc.works(before)
    assert bmc.accounts["9"].enabled  # that is drift, and for policy to answer


@pytest.mark.parametrize("can_add", [True, False])
async def test_a_rotation_at_every_single_crash_point(can_add: bool) -> None:
    at, finished = 1, False
    while not finished:
        crashes = Crashes()
        bmc, slots = _bmc(crashes, can_add=can_add), MemorySlots(crashes, FACTORY)
        await _resume(bmc, slots, crashes, None)
        before = slots.now
        finished = await _rotating(bmc, slots, crashes, at) is not None
        _check(bmc, slots)
        assert await _rotating(bmc, slots, crashes, None) is not None
        _check(bmc, slots)
        assert slots.next is None
        assert slots.now is not None
        assert slots.now != before
        assert bmc.works(slots.now)
        at += 1
    assert at > 10


async def test_a_wrong_factory_credential_is_tried_once() -> None:
    crashes = Crashes()
    bmc, slots = _bmc(crashes), MemorySlots(crashes, Credential("root", "wrong"))
    with pytest.raises(TakeoverStopped, match="refuses the recorded credential"):
        await _resume(bmc, slots, crashes, None)
    assert len(bmc.attempts) == 1


async def test_when_both_are_refused_nothing_is_forgotten() -> None:
    crashes = Crashes()
    bmc, slots = _bmc(crashes, can_add=False), MemorySlots(crashes, Credential("root", "wrong"))
    slots.next = StagedCredential(credential=Credential("root", "also wrong", generated=True), threshold=5)
    with pytest.raises(TakeoverStopped, match="somebody changed its accounts"):
        await _resume(bmc, slots, crashes, None)
    assert len(_recorded(slots)) == 2
    assert len(bmc.attempts) == 2


async def test_declared_accounts_stay() -> None:
    crashes = Crashes()
    bmc, slots = _bmc(crashes), MemorySlots(crashes, FACTORY)
    door = RedfishDoor(lambda credential: RedfishClient(bmc, credential, sleep=no_sleep))
    await take_over(door, slots, keep=frozenset({"guest"}), now=lambda: bmc.clock)
    assert {a.username for a in bmc.accounts.values() if a.enabled} == {"freehold", "guest"}


async def test_a_bmc_with_a_fixed_table_of_accounts_gets_ours_in_a_free_slot() -> None:
    crashes = Crashes()
    bmc, slots = _bmc(crashes, can_add=False), MemorySlots(crashes, FACTORY)
    bmc.accounts["3"] = ModelAccount("", "", role="None", enabled=False)
    result = await _resume(bmc, slots, crashes, None)
    assert result is not None
    assert result.username == bmc.accounts["3"].username == "freehold"
    assert {a.username for a in bmc.accounts.values() if a.enabled} == {"freehold"}


@pytest.mark.parametrize("threshold", [1, 2])
async def test_a_lockout_policy_that_leaves_no_room_stops_before_any_change(threshold: int) -> None:
    crashes = Crashes()
    bmc, slots = _bmc(crashes, threshold=threshold), MemorySlots(crashes, FACTORY)
    with pytest.raises(TakeoverStopped, match="set AccountLockoutThreshold to 3 or more"):
        await _resume(bmc, slots, crashes, None)
    assert slots.next is None
    assert bmc.works(FACTORY)


@pytest.mark.parametrize("threshold", [3, 5])
async def test_a_controller_that_dies_after_every_refused_login_does_not_lock_the_account(threshold: int) -> None:
    crashes = Crashes()
    bmc, slots = _bmc(crashes, can_add=False, threshold=threshold), MemorySlots(crashes, FACTORY)
    slots.next = StagedCredential(credential=Credential("root", "never set", generated=True), threshold=threshold)
    for _ in range(threshold + 3):
        with contextlib.suppress(WaitForTheBmc):
            # The points passed: the record of the try (2), the service root (2), the log-in (1 before, 1 after).
            assert await _resume(bmc, slots, crashes, 6) is None
        bmc.clock += 1
        _check(bmc, slots)
    assert len(bmc.attempts) == threshold - 2
    bmc.clock += 5000
    assert await _resume(bmc, slots, crashes, None) is not None


def test_out_of_tries_on_one_account_waits_instead_of_guessing() -> None:
    pending = StagedCredential(
        credential=Credential("root", "new", generated=True), tries=3, last_try=100.0, threshold=5, window=60
    )
    state = TakeoverState(now=110.0, current=FACTORY, pending=pending)
    assert next_takeover_step(state).kind is StepKind.STOP
    assert "resume in 50 s" in next_takeover_step(state).remedy
    later = TakeoverState(now=161.0, current=FACTORY, pending=pending)
    assert next_takeover_step(later).kind is StepKind.LOGIN_PENDING


def test_a_pending_credential_that_the_bmc_refuses_is_put_on_it_again_only_if_current_works() -> None:
    pending = StagedCredential(credential=Credential("freehold", "new", generated=True))
    refused = TakeoverState(now=0, current=FACTORY, pending=pending, pending_login=Login.REFUSED)
    assert next_takeover_step(refused).kind is StepKind.LOGIN_CURRENT
    works = TakeoverState(
        now=0,
        current=FACTORY,
        pending=pending,
        pending_login=Login.REFUSED,
        current_login=Login.WORKS,
        policy=AccountPolicy(),
    )
    assert next_takeover_step(works).kind is StepKind.CREATE


@given(st.integers(0, 64), st.none() | st.integers(0, 64))
def test_passwords_keep_to_the_bmcs_policy(shortest: int, longest: int | None) -> None:
    policy = AccountPolicy(min_password_length=shortest, max_password_length=longest)
    if longest and (longest < 8 or shortest > longest):
        with pytest.raises(TakeoverStopped, match="allows passwords of"):
            generate_password(policy)
        return
    password = generate_password(policy)
    assert shortest <= len(password) <= (longest or 64)
    assert len(password) >= min(16, longest or 16)
    assert password[0].isalpha()
    assert any(c.islower() for c in password)
    assert any(c.isupper() for c in password)
    assert any(c.isdigit() for c in password)
    assert set(password) & set("-_.")


def test_passwords_are_unique() -> None:
    assert len({generate_password(None) for _ in range(200)}) == 200
