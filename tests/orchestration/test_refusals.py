"""Refused agents become events that people can read, however many there are."""

from hypothesis import given
from hypothesis import strategies as st

from freehold.orchestration.refusals import MOST, WINDOW, Refusals


def test_a_reason_is_told_once_a_minute_and_the_rest_is_counted() -> None:
    refusals = Refusals()
    told = [refusals.tell("s1", "no TPM", float(second)) for second in range(121)]
    assert [(at, words) for at, words in enumerate(told) if words is not None] == [
        (0, "no TPM"),
        (60, "no TPM (59 more refusals before this one were not told)"),
        (120, "no TPM (59 more refusals before this one were not told)"),
    ]


def test_another_reason_and_another_server_are_told_at_once() -> None:
    refusals = Refusals()
    assert refusals.tell("s1", "no TPM", 0.0) == "no TPM"
    assert refusals.tell("s1", "another TPM", 1.0) == "another TPM"
    assert refusals.tell("s2", "no TPM", 2.0) == "no TPM"


@given(st.lists(st.tuples(st.text(max_size=3), st.floats(0.0, 5.0)), max_size=200))
def test_whoever_invents_reasons_is_bounded_too_and_none_is_lost(refused: list[tuple[str, float]]) -> None:
    refusals, now, told = Refusals(), 0.0, 0
    for reason, later in refused:
        now += later
        told += refusals.tell("s1", reason, now) is not None
    assert told <= MOST * (now // WINDOW + 1)
    last = refusals.tell("s1", "last", now + WINDOW)
    assert last is not None
    assert last.startswith("last")
