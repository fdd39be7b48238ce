"""Operators and approvals as a person meets them: keys on their own media, two signatures, and what is refused."""

import time
from pathlib import Path

import pytest
from cli_support import Shell

from freehold.root_of_trust.operators import Act, Request

NAMES = ("alice", "bob", "carol")


@pytest.fixture
def people(site: Shell, tmp_path: Path) -> Path:
    """The folder with the people's keys; they are the site's operators."""
    for name in (*NAMES, "mallory"):
        assert site("operator", "keygen", tmp_path / f"{name}.key", "--no-passphrase").code == 0
    enrolled = site("operator", "found", *(f"{name}={tmp_path}/{name}.key.pub" for name in NAMES))
    assert enrolled.code == 0, enrolled
    return tmp_path


def asked(site: Shell) -> str:
    request = Request(
        act=Act.WAIVER,
        subject="server-1",
        details={"why": "test"},
        requested_by="ops",
        at=1.0,
        expires=time.time() + 60,
    )
    return site.store(lambda store: store.approvals.ask(request))


def test_two_people_sign_one_of_them_on_another_machine(site: Shell, people: Path) -> None:
    request = asked(site)
    assert site("approval", "sign", request, "--key", people / "alice.key").out == f"{request}: signed (alice)\n"
    assert site("approval", "show", request, "--raw", people / "request.json").code == 0
    signed = site("approval", "sign", people / "request.json", "--key", people / "bob.key", "--out", people / "bob.sig")
    assert signed.code == 0, signed
    assert site("approval", "list", "-o", "json").json()["items"][0]["approved_by"] == ["alice"]
    assert site("approval", "add", request, people / "bob.sig").out == f"{request}: signed (bob)\n"
    assert site("approval", "list", "-o", "json").json()["items"][0]["approved_by"] == ["alice", "bob"]
    assert site.store(lambda store: store.approvals.require(request, time.time())) == ("alice", "bob")


def test_operators_are_listed_page_by_page(site: Shell, people: Path) -> None:
    first = site("operator", "list", "--limit", "2", "-o", "json").json()
    assert ([each["name"] for each in first["items"]], first["next"]) == (["alice", "bob"], "bob")
    rest = site("operator", "list", "--limit", "2", "--after", first["next"], "-o", "json").json()
    assert ([each["name"] for each in rest["items"]], rest["next"]) == (["carol"], None)
    table = site("operator", "list", "--limit", "2")
    assert [line.split()[0] for line in table.out.splitlines()] == ["OPERATOR", "alice", "bob"]
    assert table.err == "there is more: go on with --after bob\n"
    assert site("operator", "list").err == ""


def test_the_founding_is_told_with_the_keys(site: Shell, people: Path) -> None:
    ids = {each["name"]: each["key_id"] for each in site("operator", "list", "-o", "json").json()["items"]}
    said = [each for each in site("events").out.splitlines() if "founded the site's operators" in each]
    assert len(said) == 1
    assert all(f"{name} (key {key})" in said[0] for name, key in ids.items())
    (due,) = site.store(lambda store: store.site.due())
    assert (due.predicate, due.subject, due.facts["event"]) == ("approval", "operators", "founded")
    assert {each["name"]: each["key_id"] for each in due.facts["operators"]} == ids
    again = site("operator", "found", *(f"{name}={people}/{name}.key.pub" for name in NAMES))
    assert "compares the SHA-256 of their key" in again.err
    assert all(key in again.out for key in ids.values())
    assert len(site.store(lambda store: store.site.due())) == 1  # nothing new was founded


def test_a_signature_by_a_new_key_takes_the_place_of_the_one_by_the_old(site: Shell, people: Path) -> None:
    request = asked(site)
    site("approval", "sign", request, "--key", people / "alice.key")
    site("operator", "keygen", people / "new.key", "--no-passphrase")
    wanted = [f"{name}={people}/{key}.key.pub" for name, key in (("alice", "new"), ("bob", "bob"), ("carol", "carol"))]
    change = site("operator", "replace", *wanted, "-o", "json").json()["request"]
    for name in ("bob", "carol"):
        site("approval", "sign", change, "--key", people / f"{name}.key")
    assert site("operator", "replace", "--approved", change).code == 0
    assert site("approval", "show", request, "-o", "json").json()["approved_by"] == []
    site("approval", "sign", request, "--key", people / "new.key")
    assert site("approval", "show", request, "-o", "json").json()["approved_by"] == ["alice"]


def test_who_approved_stays_known_when_the_operators_are_others(site: Shell, people: Path) -> None:
    request = asked(site)
    for name in ("alice", "bob"):
        site("approval", "sign", request, "--key", people / f"{name}.key")
    site.store(lambda store: store.approvals.spend(request, time.time()))
    closed = site("approval", "sign", request, "--key", people / "carol.key")
    assert "is closed" in closed.err
    wanted = (f"carol={people}/carol.key.pub", f"mallory={people}/mallory.key.pub")
    change = site("operator", "replace", *wanted, "-o", "json").json()["request"]
    for name in ("alice", "carol"):
        site("approval", "sign", change, "--key", people / f"{name}.key")
    assert site("operator", "replace", "--approved", change).code == 0
    assert site.store(lambda store: store.approvals.granted(request)).names == ("alice", "bob")
    assert site.store(lambda store: store.approvals.granted(change)).names == ("alice", "carol")
    assert site("approval", "show", request, "-o", "json").json()["approved_by"] == ["alice", "bob"]
    told = [due.facts for due in site.store(lambda store: store.site.due())]
    assert [each["event"] for each in told] == ["founded", "operators"]
    assert [each["name"] for each in told[1]["approved_by"]] == ["alice", "carol"]
    assert [each["name"] for each in told[1]["operators"]] == ["carol", "mallory"]


def test_a_stranger_and_an_unknown_request_are_refused(site: Shell, people: Path) -> None:
    request = asked(site)
    refused = site("approval", "sign", request, "--key", people / "mallory.key")
    assert refused.code == 1
    assert f"this is no operator's signature of request {request}" in refused.err
    assert "the key of one of: alice, bob, carol" in refused.err
    unknown = site("approval", "sign", "0" * 16, "--key", people / "alice.key")
    assert "nobody has asked for an approval 0000000000000000" in unknown.err


def test_operators_are_replaced_by_two_of_them_only(site: Shell, people: Path) -> None:
    again = site("operator", "found", f"mallory={people}/mallory.key.pub", f"bob={people}/bob.key.pub")
    assert "this site has operators: alice, bob, carol" in again.err
    wanted = (f"alice={people}/alice.key.pub", f"mallory={people}/mallory.key.pub")
    request = site("operator", "replace", *wanted, "-o", "json").json()["request"]
    site("approval", "sign", request, "--key", people / "alice.key")
    refused = site("operator", "replace", "--approved", request)
    assert refused.code == 1
    assert "operators for site was approved by alice" in refused.err
    site("approval", "sign", request, "--key", people / "carol.key")
    assert site("operator", "replace", "--approved", request).code == 0
    names = [each["name"] for each in site("operator", "list", "-o", "json").json()["items"]]
    assert names == ["alice", "mallory"]
    assert site("operator", "replace", "--approved", request).code == 1  # closed


def test_one_person_or_one_key_is_not_two_people(site: Shell, tmp_path: Path) -> None:
    site("operator", "keygen", tmp_path / "a.key", "--no-passphrase")
    public = f"{tmp_path}/a.key.pub"
    assert "one person cannot approve for two" in site("operator", "found", f"alice={public}").err
    assert "alice and bob have the same key" in site("operator", "found", f"alice={public}", f"bob={public}").err


def test_a_key_has_a_passphrase_and_is_never_overwritten(shell: Shell, tmp_path: Path) -> None:
    key, words = tmp_path / "a.key", tmp_path / "words"
    words.write_text("short\n")
    assert "the passphrase is too short" in shell("operator", "keygen", key, "--passphrase-file", words).err
    words.write_text("correct horse battery\n")
    assert shell("operator", "keygen", key, "--passphrase-file", words).code == 0
    assert key.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in key.read_bytes()
    assert f"{key} exists" in shell("operator", "keygen", key, "--passphrase-file", words).err
    request = tmp_path / "request.json"
    request.write_bytes(
        Request(act=Act.WAIVER, subject="s", details={}, requested_by="o", at=1.0, expires=2.0).to_bytes()
    )
    sign = ("approval", "sign", request, "--key", key, "--out", tmp_path / "sig", "--passphrase-file", words)
    assert shell(*sign).code == 0
    words.write_text("wrong horse battery\n")
    refused = shell(*sign)
    assert "the passphrase is wrong, or the file is no key" in refused.err
    assert "wrong horse" not in refused.err
