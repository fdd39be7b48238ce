"""Credentials: into the vault without an argument that `ps` could show, and out of it with two people's word only."""

import io
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cli_support import Shell

from freehold.orchestration.opening import open_vault
from freehold.orchestration.store import Store
from freehold.out_of_band.credential_slots import StagedCredential
from freehold.out_of_band.redfish import Credential

PASSWORD = "Vault-word-7"


def put(site: Shell, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(PASSWORD + "\n"))
    assert site("credential", "set", *words, "--username", "ops", "--password-stdin").code == 0


def at_work(site: Shell, step: str, ttl: float) -> None:
    """A controller took the server on, and is not done."""

    async def begin(store: Store) -> None:
        await store.ledger.enter("e", time.time(), ttl)
        (claim,) = await store.ledger.claim("e", time.time(), 1)
        assert await store.ledger.open_journal(claim, step, step, time.time()) is not None

    site.store(begin)


def events(site: Shell) -> str:
    return site("events", "server-1").out


def test_a_credential_goes_into_the_vault_and_an_older_pending_one_goes(
    site: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = open_vault(site.state)
    vault.put("bmc/server-1/pending", b"of an interrupted change")
    put(site, monkeypatch, "server-1")
    stored = vault.get("bmc/server-1/current")
    assert stored is not None
    assert msgspec.json.decode(stored) == {"username": "ops", "password": PASSWORD, "generated": False}
    assert vault.get("bmc/server-1/pending") is None
    assert "put a credential into the vault for server server-1" in events(site)
    assert PASSWORD not in events(site)


def test_a_credential_is_not_set_while_the_controller_is_at_work_on_the_server(
    site: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(PASSWORD + "\n"))
    at_work(site, "rotate_credential", 60.0)
    refused = site("credential", "set", "server-1", "--username", "ops", "--password-stdin")
    assert refused.code == 1
    assert "the controller is at work on it (rotate_credential)" in refused.err
    assert "freehold pause server-1" in refused.err
    assert open_vault(site.state).get("bmc/server-1/current") is None


def test_a_controller_that_died_at_work_does_not_keep_a_person_from_setting_a_credential(
    site: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work(site, "rotate_credential", 0.05)
    time.sleep(0.06)
    put(site, monkeypatch, "server-1")


def test_a_generated_password_that_was_pending_is_kept(
    site: Shell, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = StagedCredential(credential=Credential("freehold", "New-word-1", generated=True))
    open_vault(site.state).put("bmc/server-1/pending", msgspec.json.encode(staged))
    put(site, monkeypatch, "server-1")
    assert open_vault(site.state).get("bmc/server-1/pending") is None
    assert broken_glass(site, people, "server-1")["or"] == [{"username": "freehold", "password": "New-word-1"}]


def test_a_reference_is_for_servers_that_are_not_ours_yet(site: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    put(site, monkeypatch, "--ref", "factory/rack-7")
    assert open_vault(site.state).get("factory/rack-7") is not None
    assert site("credential", "set", "--username", "x").code == 2


@pytest.mark.parametrize(
    "ref", ["site/keys/bmc-ca", "bmc/server-1/current", "factory", "factory/../site", "factoryx/a"]
)
def test_a_reference_cannot_overwrite_what_is_not_a_factory_credential(
    site: Shell, monkeypatch: pytest.MonkeyPatch, ref: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(PASSWORD + "\n"))
    refused = site("credential", "set", "--ref", ref, "--username", "ops", "--password-stdin")
    assert refused.code == 2
    assert "is not a path below factory/" in refused.err
    assert PASSWORD.encode() not in (open_vault(site.state).get("site/keys/bmc-ca") or b"")


def test_a_reference_is_not_overwritten_silently(site: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    put(site, monkeypatch, "--ref", "factory/rack-7")
    put(site, monkeypatch, "--ref", "factory/rack-7")  # the same again is no change
    monkeypatch.setattr(sys, "stdin", io.StringIO("Other-word-8\n"))
    other = ("credential", "set", "--ref", "factory/rack-7", "--username", "ops", "--password-stdin")
    refused = site(*other)
    assert refused.code == 1
    assert "the vault holds another credential at factory/rack-7" in refused.err
    assert PASSWORD.encode() in (open_vault(site.state).get("factory/rack-7") or b"")
    monkeypatch.setattr(sys, "stdin", io.StringIO("Other-word-8\n"))
    assert site(*other, "--replace").code == 0
    assert b"Other-word-8" in (open_vault(site.state).get("factory/rack-7") or b"")


def test_two_people_break_the_glass_once(site: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(site, monkeypatch, "server-1")
    for name in ("ann", "bob"):
        site("operator", "keygen", tmp_path / f"{name}.key", "--no-passphrase")
    site("operator", "found", *(f"{name}={tmp_path}/{name}.key.pub" for name in ("ann", "bob")))
    request = site("credential", "break-glass", "server-1", "--reason", "fire", "-o", "json").json()["request"]
    site("approval", "sign", request, "--key", tmp_path / "ann.key")
    refused = site("credential", "break-glass", "server-1", "--approved", request)
    assert refused.code == 1
    assert "break-glass for bmc/server-1 was approved by ann" in refused.err
    assert PASSWORD not in refused.out + refused.err
    site("approval", "sign", request, "--key", tmp_path / "bob.key")
    put(site, monkeypatch, "server-2")
    assert (
        "is about break-glass for bmc/server-1"
        in site("credential", "break-glass", "server-2", "--approved", request).err
    )
    shown = site("credential", "break-glass", "server-1", "--approved", request)
    assert shown.out == f"account ops\npassword {PASSWORD}\n"
    assert "the BMC's password was shown to" in events(site)
    assert "approved by ann, bob" in events(site)
    assert site("credential", "break-glass", "server-1", "--approved", request).code == 1
    founded, due = site.store(lambda store: store.site.due())  # the controller will state it
    assert founded.facts["event"] == "founded"
    assert [each["name"] for each in due.facts["approved_by"]] == ["ann", "bob"]
    assert PASSWORD not in str(due)


def broken_glass(site: Shell, people: Path, server: str) -> dict[str, Any]:
    request = site("credential", "break-glass", server, "--reason", "fire", "-o", "json").json()["request"]
    for name in ("ann", "bob"):
        site("approval", "sign", request, "--key", people / f"{name}.key")
    shown: dict[str, Any] = site("credential", "break-glass", server, "--approved", request, "-o", "json").json()
    return shown


@pytest.fixture
def people(site: Shell, tmp_path: Path) -> Path:
    for name in ("ann", "bob"):
        site("operator", "keygen", tmp_path / f"{name}.key", "--no-passphrase")
    site("operator", "found", *(f"{name}={tmp_path}/{name}.key.pub" for name in ("ann", "bob")))
    return tmp_path


def test_behind_the_glass_are_both_passwords_of_a_change_that_was_interrupted(
    site: Shell, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(site, monkeypatch, "server-1")
    staged = StagedCredential(credential=Credential("freehold", "New-word-1"))
    open_vault(site.state).put("bmc/server-1/pending", msgspec.json.encode(staged))
    shown = broken_glass(site, people, "server-1")
    assert (shown["password"], shown["or"]) == (PASSWORD, [{"username": "freehold", "password": "New-word-1"}])


def test_a_server_that_is_no_longer_declared_leaves_its_password_to_break_glass_and_to_no_other_server(
    site: Shell, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(site, monkeypatch, "server-1")
    declared = site("get", "server", "server-1", "-o", "yaml").out
    for kind, name in (("assignment", "web-1"), ("server", "server-1")):
        assert site("delete", kind, name).code == 0
    vault = open_vault(site.state)
    assert vault.paths("bmc/server-1") == []
    assert broken_glass(site, people, "server-1")["password"] == PASSWORD
    again = people / "again.yaml"
    again.write_text(declared.replace("********", "factory-word"))
    site("apply", "-f", again)
    assert vault.get("bmc/server-1/current") is None
