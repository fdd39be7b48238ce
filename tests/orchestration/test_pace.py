"""How fast a fleet rotates: never faster than the Site says, whoever asks and whatever is changed meanwhile."""

from hypothesis import given
from hypothesis import strategies as st

from freehold.orchestration.pace import Pace

NOW = 1_000_000.0


def turn(pace: Pace, slot: int, spread: float = 0.0) -> float:
    at = pace.turn(slot, spread)
    assert at is not None
    return at


def test_whoever_comes_first_has_the_next_slot_and_the_others_those_after_it() -> None:
    pace = Pace(per_minute=6)
    turns = []
    for _ in range(4):
        slot, pace = pace.take(NOW)
        turns.append(turn(pace, slot) - NOW)
    assert 0 <= turns[0] <= 10
    assert [round(at - turns[0], 3) for at in turns] == [0, 10, 20, 30]


def test_the_rate_is_one_a_second_unless_the_site_says_otherwise() -> None:
    assert Pace().spacing == 1.0


def test_a_quiet_hour_saves_nothing_up() -> None:
    slot, pace = Pace(per_minute=6).take(NOW)
    later, pace = pace.take(NOW + 3600)
    assert later - slot == 360
    assert turn(pace, later) >= NOW + 3600
    assert turn(pace, pace.take(NOW + 3600)[0]) - turn(pace, later) == 10


def test_a_higher_rate_counts_at_once_and_keeps_the_order() -> None:
    pace = Pace(per_minute=1)
    slots = []
    for _ in range(100):
        slot, pace = pace.take(NOW)
        slots.append(slot)
    assert turn(pace, slots[-1]) > NOW + 98 * 60
    urgent = pace.at(6000, NOW + 5)
    turns = [turn(urgent, slot) for slot in slots]
    assert turns == sorted(turns)
    assert turns[-1] <= NOW + 5 + 1.01
    assert urgent.at(6000, NOW + 6) is urgent
    assert turn(urgent, urgent.take(NOW + 5)[0]) > turns[-1]


def test_what_had_its_turn_before_the_rate_was_changed_asks_again() -> None:
    slot, pace = Pace(per_minute=60).take(NOW)
    assert pace.at(600, NOW + 60).turn(slot) is None


steps = st.lists(st.tuples(st.floats(0.0, 100.0), st.one_of(st.none(), st.integers(1, 1000))), min_size=1, max_size=60)


@given(steps)
def test_no_two_rotations_have_the_same_slot_and_none_begins_in_the_past(
    history: list[tuple[float, int | None]],
) -> None:
    now, pace, given_out = NOW, Pace(), []
    for pause, rate in history:
        now += pause
        if rate is not None:
            pace = pace.at(rate, now)
            continue
        slot, pace = pace.take(now)
        assert turn(pace, slot) >= now - 1e-6
        given_out.append(slot)
    assert len(set(given_out)) == len(given_out)
    assert given_out == sorted(given_out)


@given(st.integers(1, 6000), st.lists(st.tuples(st.floats(0.0, 30.0), st.floats(0.0, 1.0)), min_size=2, max_size=80))
def test_in_no_minute_begin_more_than_the_site_allows(rate: int, asked: list[tuple[float, float]]) -> None:
    now, pace, turns = NOW, Pace().at(rate, NOW), []
    for pause, spread in asked:
        now += pause
        slot, pace = pace.take(now)
        turns.append(turn(pace, slot, spread))
    for first in turns:
        # A place within a slot may move two of them closer together: one more at most.
        assert sum(first <= each < first + 60.0 - 1e-3 for each in turns) <= rate + 1


def test_a_clock_that_was_years_ahead_once_holds_up_no_rotation() -> None:
    _, pace = Pace(per_minute=60).take(NOW + 5 * 365 * 86400.0)
    slot, pace = pace.take(NOW)
    assert 0 <= turn(pace, slot) - NOW <= 2.0
    assert turn(pace, pace.take(NOW)[0]) - turn(pace, slot) == 1
