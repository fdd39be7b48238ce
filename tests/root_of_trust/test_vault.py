import os
import shutil
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.evidence import durable
from freehold.root_of_trust.kek import FileKek, KeyFileRefused, PassphraseKek
from freehold.root_of_trust.vault import Credential, EmbeddedVault, TamperedRecord, VaultError, WrongKeyEncryptionKey

sys.path.insert(0, str(Path(__file__).parents[1] / "evidence"))
from crash_points import run_until_crash

BMC = "servers/r1/bmc"
SECRET = b"correct horse battery staple"


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page cache survives whatever these tests do; waiting for the disk would only make them slow."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def kek(tmp_path: Path) -> FileKek:
    return FileKek.create(tmp_path / "vault.key")


@pytest.fixture
def vault(tmp_path: Path, kek: FileKek) -> EmbeddedVault:
    return EmbeddedVault.create(tmp_path / "vault", kek)


def record(vault: EmbeddedVault, path: str = BMC) -> Path:
    (file,) = (vault.directory / "records").glob(f"{path}@*")
    return file


def test_a_secret_comes_back_after_reopening(vault: EmbeddedVault, kek: FileKek) -> None:
    assert vault.get(BMC) is None
    vault.put(BMC, SECRET)
    vault.put("site/token", b"")
    again = EmbeddedVault.open(vault.directory, kek)
    assert again.get(BMC) == SECRET
    assert again.get("site/token") == b""
    assert again.paths() == [BMC, "site/token"]
    assert again.paths("servers/r1") == [BMC]
    assert again.paths("servers/r") == []


def test_nothing_secret_lies_on_the_disk_or_is_readable_to_others(vault: EmbeddedVault, tmp_path: Path) -> None:
    vault.put(BMC, SECRET)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert SECRET not in path.read_bytes()
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        elif path.name != "vault":
            assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_every_version_has_its_own_key_and_replaces_the_last(vault: EmbeddedVault) -> None:
    vault.put(BMC, SECRET)
    first = record(vault).read_bytes()
    vault.put(BMC, SECRET)
    assert record(vault).name == "bmc@2"
    assert record(vault).read_bytes() != first


def test_any_changed_byte_of_a_record_is_refused_without_the_secret(vault: EmbeddedVault) -> None:
    vault.put(BMC, SECRET)
    file = record(vault)
    good = file.read_bytes()
    for at in range(len(good)):
        file.write_bytes(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
        with pytest.raises(TamperedRecord, match=r"servers/r1/bmc \(version 1\)") as refused:
            vault.get(BMC)
        assert SECRET.decode() not in repr(refused.value)
    for cut in range(len(good)):
        file.write_bytes(good[:cut])
        with pytest.raises(TamperedRecord):
            vault.get(BMC)


@pytest.mark.parametrize("target", ["servers/r2/bmc@1", "servers/r1/bmc@2"])
def test_a_record_that_is_moved_or_given_another_version_is_refused(vault: EmbeddedVault, target: str) -> None:
    vault.put(BMC, SECRET)
    moved = vault.directory / "records" / target
    moved.parent.mkdir(exist_ok=True)
    shutil.move(record(vault), moved)
    with pytest.raises(TamperedRecord, match="changed, moved or cut"):
        vault.get(target.partition("@")[0])


def test_another_key_encryption_key_is_refused_in_words(vault: EmbeddedVault, tmp_path: Path) -> None:
    vault.put(BMC, SECRET)
    other = FileKek.create(tmp_path / "other.key")
    with pytest.raises(WrongKeyEncryptionKey, match="cannot be opened with this key-encryption key or passphrase"):
        EmbeddedVault.open(vault.directory, other)
    header = vault.directory / "vault.json"
    header.write_bytes(header.read_bytes().replace(vault.header.kek_id.encode(), other.key_id.encode()))
    with pytest.raises(TamperedRecord, match=r"vault\.json was changed by somebody"):
        EmbeddedVault.open(vault.directory, other)


def test_a_passphrase_opens_the_vault_and_another_does_not(tmp_path: Path) -> None:
    made = PassphraseKek.create(tmp_path / "key", "a long passphrase", cost=1 << 10)
    EmbeddedVault.create(tmp_path / "vault", made).put(BMC, SECRET)
    again = PassphraseKek.open(tmp_path / "key", "a long passphrase")
    assert EmbeddedVault.open(tmp_path / "vault", again).get(BMC) == SECRET
    with pytest.raises(WrongKeyEncryptionKey):
        EmbeddedVault.open(tmp_path / "vault", PassphraseKek.open(tmp_path / "key", "a long passphrasE"))
    with pytest.raises(KeyFileRefused, match="too short"):
        PassphraseKek.create(tmp_path / "key2", "short")


@pytest.mark.parametrize("parameters", [b"", b"{}", b'{"salt":"AA==","n":3}', b'{"salt":"AA==","n":1099511627776}'])
def test_malformed_or_hostile_scrypt_parameters_are_refused(tmp_path: Path, parameters: bytes) -> None:
    durable.replace(tmp_path / "key", parameters, 0o600)
    with pytest.raises(KeyFileRefused, match="does not hold scrypt parameters"):
        PassphraseKek.open(tmp_path / "key", "a long passphrase")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o777])
def test_a_key_file_that_others_can_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    FileKek.create(tmp_path / "vault.key")
    (tmp_path / "vault.key").chmod(mode)
    with pytest.raises(KeyFileRefused, match=rf"mode {mode:04o}[\s\S]*chmod 600"):
        FileKek.open(tmp_path / "vault.key")


def make_link(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to("real")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "there is no key file"),
        (lambda path: path.write_bytes(b"short"), "has 5 bytes"),
        (make_link, "cannot be read"),
        (lambda path: (path.unlink(), os.mkfifo(path, 0o600)), "not a regular file"),
        (lambda path: (path.unlink(), path.mkdir(0o700)), "not a regular file"),
    ],
)
def test_a_key_file_that_is_none_is_refused(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    FileKek.create(tmp_path / "vault.key")
    change(tmp_path / "vault.key")
    with pytest.raises(KeyFileRefused, match=message):
        FileKek.open(tmp_path / "vault.key")


def test_a_key_file_is_never_overwritten_and_is_marked_for_development(tmp_path: Path) -> None:
    kek = FileKek.create(tmp_path / "vault.key")
    assert "development only" in kek.warning
    with pytest.raises(KeyFileRefused, match="exists"):
        FileKek.create(tmp_path / "vault.key")
    with pytest.raises(KeyFileRefused, match="exists"):
        PassphraseKek.create(tmp_path / "vault.key", "a long passphrase")


def test_a_vault_is_not_made_twice_and_must_exist_to_be_opened(
    vault: EmbeddedVault, kek: FileKek, tmp_path: Path
) -> None:
    with pytest.raises(VaultError, match="already holds a vault"):
        EmbeddedVault.create(vault.directory, kek)
    with pytest.raises(VaultError, match="holds no vault"):
        EmbeddedVault.open(tmp_path / "nowhere", kek)
    (vault.directory / "vault.json").write_text('{"format":9,"kek_id":"x"}')
    with pytest.raises(VaultError, match="format 9"):
        EmbeddedVault.open(vault.directory, kek)
    (vault.directory / "vault.json").write_text("{")
    with pytest.raises(TamperedRecord, match="not a vault's header"):
        EmbeddedVault.open(vault.directory, kek)


@pytest.mark.parametrize("path", ["", "/a", "a/", "../a", "a/../b", "a//b", "a@1", ".a", "a b", "a\0", "a/" * 9 + "a"])
def test_a_path_that_could_leave_the_vault_is_refused(vault: EmbeddedVault, path: str) -> None:
    for call in (vault.get, vault.destroy, lambda path: vault.put(path, b""), vault.slots):
        with pytest.raises(VaultError, match="not a path of the vault"):
            call(path)


def test_a_credential_goes_through_its_phases(vault: EmbeddedVault) -> None:
    slots = vault.slots(BMC)
    assert (slots.current(), slots.pending(), slots.previous()) == (None, None, None)
    with pytest.raises(VaultError, match="no credential is staged"):
        slots.commit()
    slots.stage("freehold", "one")
    slots.commit()
    slots.stage("freehold", "two", {"tries": 1})
    assert slots.current() == Credential("freehold", "one")
    assert slots.pending() == Credential("freehold", "two", {"tries": 1})
    slots.stage("freehold", "two", {"tries": 2})
    with pytest.raises(VaultError, match=r"already staged[\s\S]*commit or discard"):
        slots.stage("freehold", "three")
    assert slots.pending() == Credential("freehold", "two", {"tries": 2})
    slots.commit()
    assert (slots.current().password, slots.previous().password) == ("two", "one")  # type: ignore[union-attr]
    slots.drop_previous()
    slots.stage("freehold", "three")
    slots.stage("freehold", "four", replace=True)
    slots.discard()
    assert (slots.current().password, slots.pending(), slots.previous()) == ("two", None, None)  # type: ignore[union-attr]


def test_no_repr_and_no_error_shows_a_secret(vault: EmbeddedVault) -> None:
    slots = vault.slots(BMC)
    slots.stage("freehold", "hunter2")
    with pytest.raises(VaultError) as refused:
        slots.stage("freehold", "hunter3")
    shown = [
        slots,
        slots.pending(),
        vault,
        vault._keys,
        vault._keys.kek,
        refused.value,
        refused.value.to_dict(),
        vars(vault),
    ]
    assert "hunter" not in "".join(map(repr, shown)) + "".join(map(str, shown))


STEPS: dict[str, Callable[[EmbeddedVault], object]] = {
    "stage": lambda vault: vault.slots(BMC).stage("freehold", "new"),
    "commit": lambda vault: vault.slots(BMC).commit(),
    "discard": lambda vault: vault.slots(BMC).discard(),
    "drop_previous": lambda vault: vault.slots(BMC).drop_previous(),
}


def state(vault: EmbeddedVault) -> tuple[Credential | None, ...]:
    slots = vault.slots(BMC)
    return slots.current(), slots.pending(), slots.previous()


@pytest.mark.parametrize("step", STEPS)
def test_at_every_crash_point_the_credential_is_as_before_or_as_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kek: FileKek, step: str
) -> None:
    start = EmbeddedVault.create(tmp_path / "start", kek)
    slots = start.slots(BMC)
    slots.stage("root", "factory")
    slots.commit()
    if step != "stage":
        slots.stage("freehold", "new")
    if step == "drop_previous":
        slots.commit()
    before = state(start)
    after = None
    for dies_at in range(100):
        directory = shutil.copytree(start.directory, tmp_path / f"crash{dies_at}")
        died = run_until_crash(monkeypatch, dies_at, lambda at=directory: STEPS[step](EmbeddedVault.open(at, kek)))
        resumed = EmbeddedVault.open(directory, kek)
        if not died:
            after = state(resumed)
            break
        (tmp_path / "states").open("a").write(repr(found := state(resumed)) + "\n")
        assert Credential("root", "factory") in found or found[0] == Credential("freehold", "new")
        if found == before:
            STEPS[step](resumed)
        resumed.put("other", b"x")
        final = state(resumed)
        assert len(list((directory / "records").rglob("bmc@*"))) <= 2
    else:
        pytest.fail("the step never ended")
    assert dies_at > 8
    assert after is not None
    assert after != before
    assert final == after


def test_at_every_crash_point_of_a_destruction_the_rest_is_finished_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kek: FileKek
) -> None:
    start = EmbeddedVault.create(tmp_path / "start", kek)
    for path in (BMC, "servers/r1/disk", "servers/r2/bmc"):
        start.put(path, SECRET)
    expected = start.paths("servers/r1")
    for dies_at in range(100):
        directory = shutil.copytree(start.directory, tmp_path / f"crash{dies_at}")
        died = run_until_crash(
            monkeypatch, dies_at, lambda at=directory: EmbeddedVault.open(at, kek).destroy("servers/r1")
        )
        vault = EmbeddedVault.open(directory, kek)
        for path in expected:
            assert vault.get(path) in (SECRET, None)
        keys = vault.destroy("servers/r1")
        assert [key.path for key in keys] == expected
        assert vault.paths() == ["servers/r2/bmc"]
        assert not [file for file in (directory / "records/servers/r1").iterdir() if "destroyed" not in file.name]
        assert vault.get("servers/r2/bmc") == SECRET
        if not died:
            break
    assert dies_at > 20


def test_destroyed_keys_are_named_overwritten_and_gone(vault: EmbeddedVault, monkeypatch: pytest.MonkeyPatch) -> None:
    vault.put(BMC, SECRET)
    vault.put("servers/r10/bmc", SECRET)
    keep = os.open(record(vault), os.O_RDONLY)
    sealed = os.pread(keep, 10_000, 0)
    (key,) = vault.destroy("servers/r1")
    assert (key.path, key.version, len(key.key_id)) == (BMC, 1, 64)
    assert os.pread(keep, 10_000, 0) != sealed  # the file that was there, not only its name
    os.close(keep)
    assert vault.get(BMC) is None
    assert vault.paths() == ["servers/r10/bmc"]
    assert vault.destroy("servers/r1") == [key]
    vault.put(BMC, b"new life")
    assert vault.get(BMC) == b"new life"
    assert [again.version for again in vault.destroy("servers/r1")] == [2]


def test_an_old_record_put_back_after_its_destruction_stays_destroyed(vault: EmbeddedVault) -> None:
    vault.put(BMC, SECRET)
    file = record(vault)
    copy = file.read_bytes()
    vault.destroy(BMC)
    file.write_bytes(copy)
    assert vault.get(BMC) is None
    vault.destroy(BMC)
    assert not file.exists()


def test_what_a_crashed_put_left_aside_is_shredded_too(vault: EmbeddedVault) -> None:
    vault.put(BMC, SECRET)
    aside = record(vault).with_name("bmc@2.aside")
    aside.write_bytes(b"a wrapped key")
    vault.destroy("servers")
    assert not aside.exists()


def test_threads_do_not_lose_each_others_changes(vault: EmbeddedVault) -> None:
    def count() -> None:
        for _ in range(20):
            vault.update("counter", lambda old: str(int(old or b"0") + 1).encode())

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert vault.get("counter") == b"80"
