"""Reference values: named by what they hold, compared event by event, and moved through their states one way."""

import msgspec
import pytest

from freehold.root_of_trust.attestation.reference import (
    NEXT,
    IllegalReferenceStateError,
    ReferenceState,
    ReferenceValues,
    become,
    closest,
    diff,
    leading,
)

A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
ONE = ReferenceValues(vendor="Halden", model="HX2", version="1.0", digests={"0": (A, B), "2": (C,)})
ROM = msgspec.structs.replace(ONE, digests={"0": (A, B), "2": (D,)})
NEW = msgspec.structs.replace(ONE, version="1.1", digests={"0": (A, D), "2": (C,)})


def test_the_same_values_have_the_same_name_and_every_part_counts() -> None:
    assert ONE.id == msgspec.structs.replace(ONE).id
    others = [ROM, NEW, *(msgspec.structs.replace(ONE, **{field: "x"}) for field in ("vendor", "model", "version"))]
    assert len({each.id for each in [ONE, *others]}) == 6
    assert ONE.firmware == msgspec.structs.replace(ONE, version="renamed").firmware
    assert ONE.firmware != ROM.firmware


def test_a_difference_names_the_pcr_and_the_event() -> None:
    assert diff(ONE, ONE) == ()
    assert diff(ONE, ROM) == (f"PCR 2: event 0 is {D}, in {ONE.id} it is {C}",)
    longer = msgspec.structs.replace(ONE, digests={"0": (A, B, C), "2": (C,)})
    assert diff(ONE, longer) == (f"PCR 0: 3 events, in {ONE.id} there are 2",)


def test_what_two_lists_have_in_common_ends_where_they_differ() -> None:
    assert [leading((A, B), other) for other in ((A, B), (A, B, C), (A,), (B, B), (A, C, B), ())] == [2, 2, 1, 0, 1, 0]


def test_the_closest_shares_most_events() -> None:
    assert closest(ROM, [NEW, ONE]) is ONE
    assert closest(ONE, []) is None
    elsewhere = msgspec.structs.replace(ONE, vendor="Other")
    assert closest(ROM, [elsewhere, ONE]) is ONE  # as much in common: the same board wins


@pytest.mark.parametrize("state", ReferenceState)
@pytest.mark.parametrize("wanted", ReferenceState)
def test_states_go_one_way(state: ReferenceState, wanted: ReferenceState) -> None:
    if wanted in NEXT[state]:
        assert become(state, wanted) is wanted
    else:
        with pytest.raises(IllegalReferenceStateError, match=f"that are {state} cannot become {wanted}"):
            become(state, wanted)
    assert not NEXT[ReferenceState.REVOKED]
