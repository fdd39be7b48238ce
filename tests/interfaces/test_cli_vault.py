"""`freehold vault` as a person meets it: a key is chosen, changed and lost; two people come; records are looked at."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pyrage
import pytest
from cli_support import Answer, Shell

from freehold.orchestration.opening import open_vault, serving

sys.path.insert(0, str(Path(__file__).parents[1] / "root_of_trust"))
from softhsm_support import MODULE, PIN, WRONG_PIN, SoftHsm

NAMES = ("alice", "bob", "carol")
SECRET = b"correct horse battery staple"


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def people(tmp_path: Path) -> list[str]:
    """`--recovery` of three people, whose identity files lie in tmp_path as `age-keygen` makes them."""
    options = []
    for name in NAMES:
        identity = pyrage.x25519.Identity.generate()
        (tmp_path / f"{name}.age").write_text(f"# public key: {identity.to_public()}\n{identity}\n")
        options += ["--recovery", f"{name}={identity.to_public()}"]
    return options


def identity(tmp_path: Path, *names: str) -> list[str]:
    return [word for name in names for word in ("--identity", str(tmp_path / f"{name}.age"))]


def test_a_vault_is_made_looked_at_and_given_another_key(
    shell: Shell, people: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert "there is no vault in" in shell("vault", "status").err
    assert not shell.state.exists()  # looking makes nothing
    made = shell("vault", "init", "--kek", "file", *people)
    assert made.code == 0, made
    assert "any two of alice, bob, carol" in made.out
    assert "write it down" in made.out
    assert "development only" in caplog.text
    open_vault(shell.state).put("bmc/r1/current", SECRET)
    before = shell("vault", "status", "-o", "json").json()
    assert (before["opens"], before["secrets"], before["kind"], before["format"]) == (True, 1, "file", 2)
    assert "has a vault already" in shell("vault", "init", "--kek", "file").err
    assert shell("vault", "rekey", "--kek", "file").code == 0
    after = shell("vault", "status", "-o", "json").json()
    assert after["key_id"] != before["key_id"]
    assert after["recovery"]["key"] != before["recovery"]["key"]
    assert after["recovery"]["people"] == before["recovery"]["people"]
    assert open_vault(shell.state).get("bmc/r1/current") == SECRET


def test_two_people_recover_and_compare_the_key_first(
    shell: Shell, people: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = shell("vault", "init", "--kek", "file", *people, "-o", "json").json()
    open_vault(shell.state).put("bmc/r1/current", SECRET)
    (shell.state / made["file"]).unlink()
    lost = shell("vault", "status")
    assert lost.code == 3
    assert "NO" in lost.out
    assert f"there is no key file {shell.state}/{made['file']}" in lost.err
    alone = shell("vault", "recover", *identity(tmp_path, "alice", "alice"), "--yes", "--kek", "file")
    assert alone.code == 1
    assert "two of: alice, bob, carol" in alone.err
    answers = iter([False, True])
    monkeypatch.setattr("click.confirm", lambda *_, **__: next(answers))
    recover = ("vault", "recover", *identity(tmp_path, "carol", "alice"), "--kek", "file")
    refused = shell(*recover)
    assert made["recovery"]["key"] in refused.err
    assert "not the one that was written down; nothing was done" in refused.err
    assert shell("vault", "status").code == 3
    assert shell(*recover).code == 0
    assert open_vault(shell.state).get("bmc/r1/current") == SECRET
    assert shell("vault", "status", "-o", "json").json()["recovery"]["key"] != made["recovery"]["key"]


def test_an_audit_lists_records_without_secrets_and_finds_what_was_moved(shell: Shell, people: list[str]) -> None:
    shell("vault", "init", "--kek", "file", *people)
    vault = open_vault(shell.state)
    vault.put("bmc/r1/current", SECRET)
    vault.put("site/keys/evidence", SECRET)
    audited = shell("vault", "audit", "-o", "json")
    assert audited.code == 3  # a key for development is a finding
    assert [each["kind"] for each in audited.json()["findings"]] == ["development-key"]
    record = audited.json()["records"][0]
    assert (record["path"], record["version"], record["recoverable"]) == ("bmc/r1/current", 1, True)
    assert abs(record["at"] - time.time()) < 60
    records = shell.state / "vault" / "records"
    (records / "bmc/r1/current@1").rename(records / "bmc/r1/pending@1")
    moved = shell("vault", "audit")
    assert moved.code == 3
    assert "CRITICAL tampered-record (bmc/r1/pending): version 1: changed, moved or cut" in moved.out
    assert "horse" not in moved.out + moved.err + audited.out


def test_the_controller_must_stop_first(shell: Shell, people: list[str]) -> None:
    shell("vault", "init", "--kek", "file", *people)
    with serving(shell.state):
        assert "another controller" in shell("vault", "rekey", "--kek", "file").err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--kek", "pkcs11", "--token", "t"), "--kek pkcs11 needs --module"),
        (("--kek", "pkcs11", "--module", "m"), "--kek pkcs11 needs --token"),
        (("--kek", "openbao"), "--kek openbao needs --ca"),
        (("--kek", "file", "--recovery", "alice"), "give a name and the public half"),
        (("--kek", "file", "--recovery", "a=age1x", "--recovery", "a=age1y"), "a name stands there twice"),
    ],
)
def test_what_is_missing_is_wrong_usage(shell: Shell, words: tuple[str, ...], message: str) -> None:
    answer = shell("vault", "init", *words)
    assert answer.code == 2
    assert message in answer.err


def test_a_secret_key_that_was_given_for_a_recipient_is_not_repeated(shell: Shell) -> None:
    answer = shell("vault", "init", "--kek", "file", "--recovery", f"alice={pyrage.x25519.Identity.generate()}")
    assert answer.code == 2
    assert "AGE-SECRET-KEY" not in answer.out + answer.err


# ---- with a real token, each command a process of its own


class Site:
    def __init__(self, tmp_path: Path) -> None:
        self.hsm, self.state, self.pin = SoftHsm(tmp_path / "hsm"), tmp_path / "state", tmp_path / "pin"
        self.hsm.token("freehold")
        self.set_pin(PIN)
        self.said = ""

    def set_pin(self, value: str) -> None:
        self.pin.write_text(value + "\n")
        self.pin.chmod(0o600)

    def __call__(self, *words: object) -> Answer:
        command = [sys.executable, "-m", "freehold.interfaces.cli.main", "vault", *map(str, words)]
        environment = self.hsm.environment | {
            "FREEHOLD_STATE": str(self.state),
            "FREEHOLD_VAULT_PIN_FILE": str(self.pin),
        }
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
        self.said += " ".join(command) + done.stdout + done.stderr
        return Answer(done.returncode, done.stdout, done.stderr)


@pytest.mark.host
@pytest.mark.slow
def test_a_site_moves_into_a_token_survives_wrong_pins_and_the_loss_of_the_token(
    tmp_path: Path, people: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path)
    site.state.mkdir()
    open_vault(site.state).put("bmc/r1/current", SECRET)  # a site that began without thinking of keys
    token = ("--kek", "pkcs11", "--module", MODULE, "--token", "freehold")
    lonely = site("rekey", *token)
    assert "two people who can recover together" in lonely.err
    moved = site("rekey", *token, *people)
    assert moved.code == 0, moved
    assert "development only" in moved.err  # said loudly, for the last time
    assert "kind pkcs11" in moved.out
    assert not list(site.state.glob("vault*.key"))
    status = site("status", "-o", "json")
    assert status.code == 0
    assert status.json()["secrets"] == 1
    assert status.err == ""  # nothing to be warned of any more
    assert site("audit").code == 0

    site.set_pin(WRONG_PIN)
    once = site("status")
    assert once.code == 3
    assert "refused the PIN (PinIncorrect); it was tried once" in once.err
    for _ in range(2):
        assert "was not asked to log in: a wrong PIN was given since the last right one" in site("status").err
    site.set_pin(PIN)
    assert site("status").code == 3  # not even the right one, until a person has looked
    login = ["pkcs11-tool", "--module", MODULE, "--token-label", "freehold", "--login", "--list-objects"]
    subprocess.run([*login, "--pin", PIN], check=True, capture_output=True, env=site.hsm.environment, timeout=30)
    assert site("status").code == 0

    site.hsm.tokens.rename(tmp_path / "lost")
    site.hsm.tokens.mkdir()
    missing = site("audit")
    assert missing.code == 1
    assert f"the PKCS#11 token 'freehold' (module {MODULE}) is not there" in missing.err
    assert "freehold vault recover" in missing.err
    recovered = site("recover", *identity(tmp_path, "bob", "carol"), "--yes", "--kek", "file")
    assert recovered.code == 0, recovered
    assert open_vault(site.state).get("bmc/r1/current") == SECRET

    keys = [(tmp_path / f"{name}.age").read_text().splitlines()[1] for name in NAMES]
    for secret in (SECRET.decode(), WRONG_PIN, *keys):
        assert secret not in site.said
    for file in site.state.rglob("*"):
        if file.is_file():
            assert SECRET not in file.read_bytes()
