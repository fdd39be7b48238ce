"""Two people together have the recovery key; one person, or a changed half, has nothing."""

import itertools

import msgspec
import pyrage
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.root_of_trust.recovery import (
    Pair,
    Recovery,
    RecoveryKey,
    RecoveryRefused,
    combine,
    read_identity,
    share,
    wrap,
)

NAMES = ("alice", "bob", "carol", "dave")
IDENTITIES = {name: pyrage.x25519.Identity.generate() for name in NAMES}
PEOPLE = {name: str(identity.to_public()) for name, identity in IDENTITIES.items()}
KEY = RecoveryKey.generate()
RECOVERY = share(KEY, PEOPLE)


def secret(name: str) -> str:
    return str(IDENTITIES[name])


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(NAMES, 2)))
def test_any_two_people_have_the_key_in_any_order(first: str, second: str) -> None:
    found = combine(RECOVERY, [secret(first), secret(second)])
    assert found.recipient == KEY.recipient
    assert found.authentication == KEY.authentication
    assert found.unwrap(wrap(b"k" * 32, KEY.recipient)) == b"k" * 32


@pytest.mark.parametrize("name", NAMES)
def test_one_person_has_nothing_however_often_they_come(name: str) -> None:
    stranger = str(pyrage.x25519.Identity.generate())
    for who in ([secret(name)], [secret(name)] * 2, [secret(name), stranger]):
        with pytest.raises(RecoveryRefused, match=rf"of {name}\n  expected: two of: alice, bob, carol, dave"):
            combine(RECOVERY, who)
    with pytest.raises(RecoveryRefused, match="nobody who can recover"):
        combine(RECOVERY, [stranger])


def test_what_one_person_can_decrypt_is_no_part_of_the_key() -> None:
    """Each half is a one-time pad or the key under one: no run of four bytes of the key is in it."""
    key = KEY._secret
    for pair in RECOVERY.pairs:
        for name, half in zip(pair.people, pair.halves, strict=True):
            plain = pyrage.decrypt(half, [IDENTITIES[name]])
            assert len(plain) == len(key)
            assert not any(key[at : at + 4] in plain for at in range(len(key) - 3))
        with pytest.raises(pyrage.DecryptError):
            pyrage.decrypt(pair.halves[0], [IDENTITIES[pair.people[1]]])
    pads = [pyrage.decrypt(pair.halves[0], [IDENTITIES[pair.people[0]]]) for pair in RECOVERY.pairs]
    assert len(set(pads)) == len(pads)


@given(pair=st.integers(0, 5), half=st.integers(0, 1), at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_changed_half_is_refused_and_another_pair_still_recovers(pair: int, half: int, at: int, bit: int) -> None:
    pairs = list(RECOVERY.pairs)
    halves = [bytearray(each) for each in pairs[pair].halves]
    halves[half][at % len(halves[half])] ^= 1 << bit
    pairs[pair] = Pair(pairs[pair].people, (bytes(halves[0]), bytes(halves[1])))
    changed = msgspec.structs.replace(RECOVERY, pairs=tuple(pairs))
    with pytest.raises(RecoveryRefused, match="do not make the recovery key"):
        combine(changed, [secret(name) for name in pairs[pair].people])
    other = pairs[(pair + 1) % 6]
    assert combine(changed, [secret(name) for name in other.people]).recipient == KEY.recipient


def test_halves_of_another_key_are_refused() -> None:
    other = share(RecoveryKey.generate(), PEOPLE)
    mixed = Recovery(KEY.recipient, PEOPLE, other.pairs)
    with pytest.raises(RecoveryRefused, match="the vault's header was changed"):
        combine(mixed, [secret("alice"), secret("bob")])


@pytest.mark.parametrize(
    ("people", "message"),
    [
        ({}, "recovery needs two people"),
        ({"alice": PEOPLE["alice"]}, "recovery needs two people"),
        ({"alice": PEOPLE["alice"], "bob": PEOPLE["alice"]}, "one person could recover alone"),
        ({"alice": PEOPLE["alice"], "Bob!": PEOPLE["bob"]}, "is no name"),
        ({"alice": PEOPLE["alice"], "bob": "age1nonsense"}, "this is no age recipient"),
    ],
)
def test_people_who_would_not_be_two_are_refused(people: dict[str, str], message: str) -> None:
    with pytest.raises(RecoveryRefused, match=message):
        share(KEY, people)


def test_a_secret_key_given_for_a_recipient_is_not_repeated() -> None:
    with pytest.raises(RecoveryRefused) as refused:
        share(KEY, {"alice": PEOPLE["alice"], "bob": secret("bob")})
    assert "SECRET" not in str(refused.value)
    assert "SECRET" not in repr([KEY, RECOVERY])


def test_an_identity_file_as_age_keygen_writes_it() -> None:
    text = f"# created: 2026-11-25T12:00:00Z\n# public key: {PEOPLE['alice']}\n{secret('alice')}\n"
    assert read_identity(text) == secret("alice")
    for bad in ("", "# only\n", f"{secret('alice')}\n{secret('bob')}\n", PEOPLE["alice"], "AGE-SECRET-KEY-1\n"):
        with pytest.raises(RecoveryRefused, match="no age identity file"):
            read_identity(bad)


def test_a_wrap_for_another_key_does_not_open() -> None:
    with pytest.raises(ValueError, match="not for this identity"):
        RecoveryKey.generate().unwrap(wrap(b"k" * 32, KEY.recipient))
