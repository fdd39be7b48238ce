"""The vault of a state directory: which key it asks for, and the change of that key, cut off at every point."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from custody_support import PEOPLE, identities, write_format_1

from freehold.root_of_trust import custody, site_vault
from freehold.root_of_trust.custody import CUSTODY, NEXT, Choice, CustodyRefused, FilePlace, Pkcs11Place
from freehold.root_of_trust.kek import FileKek, KeyFileRefused, PassphraseKek
from freehold.root_of_trust.vault import EmbeddedVault, VaultError

sys.path.insert(0, str(Path(__file__).parents[1] / "evidence"))
from crash_points import run_until_crash

SECRET = b"correct horse"
PR_GET_DUMPABLE = 3


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def file_choice(state: Path) -> Choice:
    return Choice(FilePlace, lambda: custody.new_file(state))


def key_file(state: Path) -> Path:
    place = custody.read_place(state / CUSTODY)
    assert isinstance(place, FilePlace)
    return state / place.file


def never() -> custody.Made:
    raise AssertionError("no key is to be made")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    vault = site_vault.found(tmp_path / "state", file_choice(tmp_path / "state"), PEOPLE)
    vault.put("bmc/r1/current", SECRET)
    return tmp_path / "state"


def test_a_fresh_site_gets_a_key_file_and_is_warned_at_each_opening(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.joinpath("state").mkdir()
    for _ in range(3):
        caplog.clear()
        site_vault.open_vault(tmp_path / "state")
        assert "development only: the vault's key lies in a file beside the vault" in caplog.text


def test_a_passphrase_warns_too_and_comes_from_a_private_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PassphraseKek.create.__func__.__kwdefaults__, "cost", 1 << 10)  # type: ignore[attr-defined]
    words = tmp_path / "words"
    words.write_text("correct horse battery\n")
    words.chmod(0o600)
    monkeypatch.setenv("FREEHOLD_VAULT_PASSPHRASE_FILE", str(words))
    state = tmp_path / "state"
    site_vault.found(state, Choice(custody.PassphrasePlace, lambda: custody.new_passphrase(state)), {})
    caplog.clear()
    site_vault.open_vault(state).put("x", b"1")
    assert "development only: a passphrase" in caplog.text
    assert "horse" not in caplog.text
    words.chmod(0o644)
    with pytest.raises(KeyFileRefused, match=r"others can read the passphrase of the vault file"):
        site_vault.open_vault(state)
    monkeypatch.delenv("FREEHOLD_VAULT_PASSPHRASE_FILE")
    with pytest.raises(KeyFileRefused, match=r"nobody said where the passphrase[\s\S]*FREEHOLD_VAULT_PASSPHRASE_FILE"):
        site_vault.open_vault(state)


def test_a_systemd_credential_is_a_secret_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "freehold-vault-pin").write_text("1234\n")
    (tmp_path / "freehold-vault-pin").chmod(0o440)  # what systemd does with an ACL
    assert custody.given_pin() == "1234"
    for empty in ("", "\n", "x" * 5000):
        (tmp_path / "freehold-vault-pin").write_text(empty)
        with pytest.raises(KeyFileRefused, match="holds no PIN"):
            custody.given_pin()
    (tmp_path / "freehold-vault-pin").write_bytes(b"\xff\xfe")
    with pytest.raises(KeyFileRefused, match="not UTF-8"):
        custody.given_pin()


@pytest.mark.parametrize("kind", [Pkcs11Place, custody.TpmPlace, custody.TransitPlace])
@pytest.mark.parametrize("people", [{}, {"alice": PEOPLE["alice"]}])
def test_a_key_that_can_be_lost_needs_two_people_before_it_is_made(
    tmp_path: Path, state: Path, kind: type[custody.KekPlace], people: dict[str, str]
) -> None:
    with pytest.raises(VaultError, match=r"two people who can recover together[\s\S]*--recovery"):
        site_vault.found(tmp_path / "other", Choice(kind, never), people)
    vault = site_vault.open_embedded(state)
    with pytest.raises(VaultError, match="two people"):
        site_vault.rekey(state, vault, Choice(kind, never), people)
    assert not (tmp_path / "other").exists()


def test_a_second_vault_is_refused(state: Path) -> None:
    with pytest.raises(VaultError, match="has a vault already"):
        site_vault.found(state, Choice(FilePlace, never), {})


def test_a_creation_that_was_cut_off_is_repeated_and_never_becomes_a_development_vault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for dies_at in range(100):
        at = tmp_path / f"crash{dies_at}"
        died = run_until_crash(monkeypatch, dies_at, lambda at=at: site_vault.found(at, file_choice(at), PEOPLE))
        if not died:
            break
        if (at / CUSTODY).exists() and not (at / "vault/vault.json").exists():
            with pytest.raises(CustodyRefused, match="repeat `freehold vault init`"):
                site_vault.open_vault(at)
        if not (at / "vault/vault.json").exists():
            site_vault.found(at, file_choice(at), PEOPLE)
        vault = site_vault.open_embedded(at)
        vault.put("x", SECRET)
        assert EmbeddedVault.recover(at / "vault", identities("alice", "bob")).get("x") == SECRET
    assert dies_at > 10


def test_at_every_crash_point_of_a_rekey_the_next_opening_finishes_or_forgets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Path
) -> None:
    old = custody.read_place(state / CUSTODY)
    seen = set()
    for dies_at in range(400):
        at = shutil.copytree(state, tmp_path / f"crash{dies_at}")

        def work(at: Path = at) -> None:
            site_vault.rekey(at, site_vault.open_embedded(at), file_choice(at), None)

        died = run_until_crash(monkeypatch, dies_at, work)
        vault = site_vault.open_embedded(at)
        assert vault.get("bmc/r1/current") == SECRET
        place = custody.read_place(at / CUSTODY)
        assert isinstance(place, FilePlace)
        assert place.key_id == vault.header.kek_id
        seen.add(place == old)
        if place != old:
            assert not (at / key_file(state).name).exists()
            assert not (at / NEXT).exists()
        work()
        assert site_vault.open_embedded(at).get("bmc/r1/current") == SECRET
        stale = site_vault.stale_key_files(at)
        assert {path.name for path in at.glob("vault*.key")} - {*stale} == {key_file(at).name}
        shutil.rmtree(at)
        if not died:
            break
    assert dies_at > 30
    assert seen == {True, False}


def test_a_site_of_the_days_before_custody_json_is_opened_and_rekeyed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    write_format_1(state / "vault", FileKek.create(state / "vault.key"), {"bmc/r1/current": SECRET})
    vault = site_vault.open_embedded(state)
    assert vault.get("bmc/r1/current") == SECRET
    site_vault.rekey(state, vault, file_choice(state), PEOPLE)
    assert not (state / "vault.key").exists()
    assert site_vault.open_vault(state).get("bmc/r1/current") == SECRET
    assert site_vault.stale_key_files(state) == []


def test_two_people_recover_a_site_whose_key_file_is_lost(state: Path) -> None:
    key_file(state).unlink()
    (state / CUSTODY).write_text("{")
    with pytest.raises(CustodyRefused, match="does not say where the vault's key is"):
        site_vault.open_vault(state)
    recovered = site_vault.recover(state, identities("bob", "carol"))
    site_vault.rekey(state, recovered, file_choice(state), None)
    assert site_vault.open_vault(state).get("bmc/r1/current") == SECRET


def test_a_recovery_after_a_cut_off_rekey_shreds_no_key_that_is_in_use(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header has switched, custody.json has not: custody.next.json names the key in use."""
    with monkeypatch.context() as patch:
        patch.setattr(site_vault, "_finish", lambda *_: None)
        site_vault.rekey(state, site_vault.open_embedded(state), file_choice(state), None)
    assert (state / NEXT).exists()

    def fails() -> custody.Made:
        raise VaultError("no such token")

    recovered = site_vault.recover(state, identities("alice", "bob"))
    with pytest.raises(VaultError, match="no such token"):
        site_vault.rekey(state, recovered, Choice(FilePlace, fails), None)
    assert site_vault.open_vault(state).get("bmc/r1/current") == SECRET


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "does not say where the vault's key is"),
        ('{"kind":"file","key_id":"0"}', "speak of another key"),
        ('{"kind":"smoke-signals","key_id":"0"}', "does not say"),
    ],
)
def test_a_custody_file_that_says_nothing_useful_is_refused(state: Path, content: str, message: str) -> None:
    (state / CUSTODY).write_text(content)
    with pytest.raises(CustodyRefused, match=message):
        site_vault.open_vault(state)


def test_a_custody_file_that_others_can_write_is_refused(state: Path) -> None:
    assert stat.S_IMODE((state / CUSTODY).stat().st_mode) == 0o600
    (state / CUSTODY).chmod(0o666)
    with pytest.raises(CustodyRefused, match=r"others can write .*custody\.json"):
        site_vault.open_vault(state)


@pytest.mark.parametrize("name", ["../vault.key", "/etc/passwd", "", ".", "a/b"])
def test_a_key_file_outside_the_state_directory_is_refused(state: Path, name: str) -> None:
    place = custody.read_place(state / CUSTODY)
    assert isinstance(place, FilePlace)
    custody.write_place(state / CUSTODY, FilePlace(key_id=place.key_id, file=name))
    with pytest.raises(CustodyRefused, match="not the name of a file in the state directory"):
        site_vault.open_vault(state)


def test_a_process_that_opened_a_vault_leaves_no_core_file(state: Path, tmp_path: Path) -> None:
    code = (
        "import ctypes, pathlib, sys\nfrom freehold.root_of_trust import site_vault\n"
        "site_vault.open_vault(pathlib.Path(sys.argv[1]))\n"
        f"print(ctypes.CDLL(None).prctl({PR_GET_DUMPABLE}, 0, 0, 0, 0))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(state)], capture_output=True, check=True, timeout=60)
    assert done.stdout == b"0\n"
