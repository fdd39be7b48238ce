"""Two people, two keys: what counts as an approval, and what does not."""

import msgspec
import pytest

from freehold.evidence import Ed25519Signer
from freehold.root_of_trust.operators import (
    Act,
    NotApproved,
    Operators,
    OperatorsRefused,
    Request,
    approve,
    require_approval,
)

ALICE, BOB, CAROL, STRANGER = (Ed25519Signer.generate() for _ in range(4))
PEOPLE = Operators.of({"alice": ALICE.public_key, "bob": BOB.public_key, "carol": CAROL.public_key})
REQUEST = Request(
    act=Act.REFERENCE_VALUES, subject="acme/r1/1.0", details={"pcr0": "aa"}, requested_by="bob", at=1.0, expires=100.0
)


def signed(request: Request, *signers: Ed25519Signer) -> list[bytes]:
    return [approve(request, signer).to_bytes() for signer in signers]


def test_two_people_approve_and_are_named() -> None:
    assert require_approval(REQUEST, signed(REQUEST, CAROL, ALICE), PEOPLE, 50.0) == ("alice", "carol")


@pytest.mark.parametrize(
    ("signers", "who"),
    [((), "nobody"), ((ALICE,), "alice"), ((ALICE, ALICE), "alice"), ((ALICE, STRANGER), "alice")],
    ids=["nobody", "one", "one twice", "one and a stranger"],
)
def test_fewer_than_two_people_approve_nothing(signers: tuple[Ed25519Signer, ...], who: str) -> None:
    with pytest.raises(NotApproved, match=f"was approved by {who}") as refused:
        require_approval(REQUEST, signed(REQUEST, *signers), PEOPLE, 50.0)
    assert f"freehold approval sign {REQUEST.id} --key FILE" in (refused.value.remedy or "")


def test_a_signature_of_another_request_does_not_count() -> None:
    other = msgspec.structs.replace(REQUEST, details={"pcr0": "bb"})
    with pytest.raises(NotApproved, match="approved by alice"):
        require_approval(REQUEST, signed(REQUEST, ALICE) + signed(other, BOB), PEOPLE, 50.0)


def test_a_changed_envelope_counts_for_nobody() -> None:
    envelope = bytearray(signed(REQUEST, BOB)[0])
    envelope[len(envelope) // 2] ^= 1
    with pytest.raises(NotApproved, match="approved by alice"):
        require_approval(REQUEST, [*signed(REQUEST, ALICE), bytes(envelope), b"{}"], PEOPLE, 50.0)


def test_an_expired_request_approves_nothing() -> None:
    with pytest.raises(NotApproved, match="has expired"):
        require_approval(REQUEST, signed(REQUEST, ALICE, BOB), PEOPLE, 100.0)


def test_one_key_under_two_names_is_refused() -> None:
    with pytest.raises(OperatorsRefused, match="alice and bob have the same key"):
        Operators.of({"bob": ALICE.public_key, "alice": ALICE.public_key})


@pytest.mark.parametrize("name", ["", "Alice", "a/b", "a" * 33, "1st"])
def test_a_name_that_could_be_mistaken_is_refused(name: str) -> None:
    with pytest.raises(OperatorsRefused, match="not a name for an operator"):
        Operators.of({name: ALICE.public_key})


def test_a_request_reads_back_only_in_its_one_spelling() -> None:
    assert Request.from_bytes(REQUEST.to_bytes()) == REQUEST
    with pytest.raises(NotApproved, match="not a request"):
        Request.from_bytes(REQUEST.to_bytes() + b"\n")
