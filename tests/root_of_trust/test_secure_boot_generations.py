"""Generations of Secure Boot keys: what a change may do, and that no order of changes leaves a server behind that could
not start what is built."""

import itertools
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secure_boot_support import der

from freehold.root_of_trust.attestation import uefi
from freehold.root_of_trust.secure_boot_generations import (
    Generation,
    GenerationRefused,
    KeySet,
    first,
    revoking,
    rotating,
    without_old_db,
)

DIGEST = "ab" * 32
FIRST = first(1.0)
OWNER = uuid.UUID(int=7)


def test_revoking_appends_to_dbx_and_changes_nothing_else() -> None:
    second = revoking(FIRST, DIGEST, "CVE-2026-1", 2.0)
    assert second == Generation(number=2, pk="pk", kek="kek", db=("db",), dbx=(DIGEST,), reason="CVE-2026-1", at=2.0)
    assert revoking(second, "cd" * 32, "again", 3.0).dbx == (DIGEST, "cd" * 32)


@pytest.mark.parametrize("digest", ["", "ab", DIGEST.upper(), DIGEST + "\n", "g" * 64])
def test_what_is_no_digest_is_not_revoked(digest: str) -> None:
    with pytest.raises(GenerationRefused, match="no SHA-256 digest"):
        revoking(FIRST, digest, "", 2.0)


def test_nothing_is_revoked_twice() -> None:
    with pytest.raises(GenerationRefused, match="in dbx already"):
        revoking(revoking(FIRST, DIGEST, "", 2.0), DIGEST, "", 3.0)


def test_pk_and_kek_are_replaced_and_db_is_joined() -> None:
    assert rotating(FIRST, "pk", "pk-1", "", 2.0).keys == ("pk-1", "kek", "db")
    assert rotating(FIRST, "kek", "kek-1", "", 2.0).keys == ("pk", "kek-1", "db")
    assert rotating(FIRST, "db", "db-1", "", 2.0).keys == ("pk", "kek", "db", "db-1")


def test_a_rotation_of_db_is_finished_before_the_next_and_only_when_every_server_has_the_new_key() -> None:
    second = rotating(FIRST, "db", "db-1", "", 2.0)
    third = revoking(second, DIGEST, "", 3.0)
    with pytest.raises(GenerationRefused, match="the last rotation is not finished"):
        rotating(third, "db", "db-2", "", 4.0)
    with pytest.raises(GenerationRefused, match="on 1 servers yet: late") as refused:
        without_old_db([FIRST, second, third], {"late": 1, "there": 2, "newest": 3}, "", 4.0)
    assert "decommission the others" in (refused.value.remedy or "")
    done = without_old_db([FIRST, second, third], {"there": 2, "newest": 3}, "", 4.0)
    assert (done.number, done.db, done.dbx) == (4, ("db-1",), (DIGEST,))
    with pytest.raises(GenerationRefused, match="no rotation to finish"):
        without_old_db([FIRST], {}, "", 2.0)


def test_a_server_of_a_generation_that_nobody_knows_is_behind() -> None:
    second = rotating(FIRST, "db", "db-1", "", 2.0)
    with pytest.raises(GenerationRefused, match="lost"):
        without_old_db([FIRST, second], {"lost": 9}, "", 3.0)


CHANGES = st.lists(
    st.sampled_from(["revoke", "pk", "kek", "db", "finish", "enrol 0", "enrol 1", "enrol 2"]), max_size=30
)


@given(CHANGES)
def test_in_any_order_what_is_built_starts_on_every_server(changes: list[str]) -> None:
    """Three servers, re-enrolled now and then; images are signed by all keys of the newest db."""
    known, carried = [FIRST], {str(each): 1 for each in range(3)}
    for number, change in enumerate(changes):
        newest, at = known[-1], float(number)
        try:
            if change == "revoke":
                known.append(revoking(newest, f"{number:064x}", "", at))
            elif change == "finish":
                known.append(without_old_db(known, carried, "", at))
            elif change.startswith("enrol"):
                carried[change[-1]] = newest.number
            else:
                known.append(rotating(newest, change, f"{change}-{number}", "", at))  # type: ignore[arg-type]
        except GenerationRefused:
            continue
        signed_by = known[-1].db
        for server in carried.values():
            assert set(known[server - 1].db) & set(signed_by), (changes, known)
    assert [each.number for each in known] == list(range(1, len(known) + 1))
    for older, newer in itertools.pairwise(known):
        assert newer.dbx[: len(older.dbx)] == older.dbx


def key_set(*db: str, dbx: tuple[bytes, ...] = ()) -> KeySet:
    return KeySet(generation=3, owner=OWNER, pk=der("PK"), kek=der("KEK"), db=tuple(map(der, db)), dbx=dbx)


def test_the_variables_hold_what_the_generation_says() -> None:
    variables = key_set("db", "db-new", dbx=(b"\1" * 32,)).variables()
    read = uefi.parse_signature_lists
    assert [entry.data for entry in read(variables.db)] == [der("db"), der("db-new")]
    assert [(entry.type, entry.data) for entry in read(variables.dbx)] == [(uefi.CERT_SHA256, b"\1" * 32)]
    assert [entry.data for entry in read(variables.pk) + read(variables.kek)] == [der("PK"), der("KEK")]
    assert key_set("db").variables().dbx == b""


def test_the_authority_is_the_first_signature_that_db_trusts() -> None:
    both = (der("db"), der("db-new"))
    for enrolled, expected in ((("db",), "db"), (("db", "db-new"), "db"), (("db-new",), "db-new")):
        found = key_set(*enrolled).authority(both)
        assert found is not None
        assert (found.data, found.owner) == (der(expected), OWNER)
    assert key_set("db-new").authority((der("db"),)) is None
    assert key_set("db").authority(()) is None
