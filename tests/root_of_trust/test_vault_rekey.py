"""Header, recovery by two people, and another key: at every crash point the vault opens with one of the two keys."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pyrage
import pytest
from custody_support import PEOPLE, identities, write_format_1

from freehold.root_of_trust.kek import MemoryKek
from freehold.root_of_trust.recovery import RecoveryRefused
from freehold.root_of_trust.vault import (
    EmbeddedVault,
    Header,
    TamperedRecord,
    VaultError,
    WrongKeyEncryptionKey,
    read_header,
)
from freehold.root_of_trust.vault.audit import findings

sys.path.insert(0, str(Path(__file__).parents[1] / "evidence"))
from crash_points import run_until_crash

SECRETS = {"bmc/r1/current": b"correct horse", "site/keys/evidence": b"battery staple", "tenants/a": b""}
OLD, NEW = MemoryKek(os.urandom(32)), MemoryKek(os.urandom(32))


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def vault(tmp_path: Path) -> EmbeddedVault:
    made = EmbeddedVault.create(tmp_path / "vault", OLD, PEOPLE, now=lambda: 1000.0)
    for path, secret in SECRETS.items():
        made.put(path, secret)
    made.put("tenants/gone", b"forget me")
    made.destroy("tenants/gone")
    return made


def contents(vault: EmbeddedVault) -> dict[str, bytes | None]:
    return {path: vault.get(path) for path in vault.paths()}


def folders(vault: EmbeddedVault) -> list[str]:
    return sorted(path.name for path in vault.directory.glob("records*"))


def change_header(vault: EmbeddedVault, change: Callable[[Header], Header]) -> None:
    file = vault.directory / "vault.json"
    file.write_bytes(msgspec.json.encode(change(read_header(vault.directory))))


def opens_by(directory: Path) -> tuple[MemoryKek, EmbeddedVault]:
    """The one key of the two that opens it."""
    found = []
    for kek in (OLD, NEW):
        try:
            found.append((kek, EmbeddedVault.open(directory, kek)))
        except WrongKeyEncryptionKey:
            continue
    assert len(found) == 1
    return found[0]


# ---- recovery


def test_two_people_read_everything_without_the_key(vault: EmbeddedVault) -> None:
    recovered = EmbeddedVault.recover(vault.directory, identities("carol", "alice"))
    assert contents(recovered) == SECRETS
    with pytest.raises(VaultError, match="rekey it first"):
        recovered.put("x", b"")
    with pytest.raises(VaultError, match="rekey it first"):
        recovered.destroy("bmc")
    recovered.rekey(NEW)
    assert contents(EmbeddedVault.open(vault.directory, NEW)) == SECRETS
    recovered.put("after", b"works")
    assert EmbeddedVault.open(vault.directory, NEW).get("after") == b"works"
    with pytest.raises(WrongKeyEncryptionKey):
        EmbeddedVault.open(vault.directory, OLD)


def test_one_person_is_refused_and_so_is_a_vault_without_people(vault: EmbeddedVault, tmp_path: Path) -> None:
    with pytest.raises(RecoveryRefused, match=r"of alice[\s\S]*two of: alice, bob, carol"):
        EmbeddedVault.recover(vault.directory, identities("alice", "alice"))
    alone = EmbeddedVault.create(tmp_path / "alone", OLD)
    with pytest.raises(VaultError, match="made without recovery"):
        EmbeddedVault.recover(alone.directory, identities("alice", "bob"))


def test_a_new_recovery_key_comes_with_every_rekey_and_the_old_halves_open_nothing(vault: EmbeddedVault) -> None:
    before = vault.header.recovery
    assert before is not None
    vault.rekey(NEW)
    after = vault.header.recovery
    assert after is not None
    assert after.people == PEOPLE
    assert after.recipient != before.recipient
    change_header(vault, lambda header: msgspec.structs.replace(header, recovery=before))
    with pytest.raises(TamperedRecord):
        EmbeddedVault.recover(vault.directory, identities("alice", "bob"))


def test_people_are_replaced_by_a_rekey(vault: EmbeddedVault) -> None:
    vault.rekey(NEW, {name: PEOPLE[name] for name in ("alice", "bob")})
    with pytest.raises(RecoveryRefused, match="nobody who can recover"):
        EmbeddedVault.recover(vault.directory, identities("carol"))
    assert contents(EmbeddedVault.recover(vault.directory, identities("alice", "bob"))) == SECRETS


# ---- a thief who may write, but has neither the key nor two people


def test_any_changed_field_of_the_header_is_refused(vault: EmbeddedVault) -> None:
    good = (vault.directory / "vault.json").read_bytes()
    thief = EmbeddedVault.create(vault.directory.parent / "thief", MemoryKek(os.urandom(32)), PEOPLE).header
    changes: dict[str, object] = {
        "records": "records.00000000",
        "recovery": thief.recovery,
        "authentication": thief.authentication,
        "tag": thief.tag,
    }
    assert set(changes) == set(Header.__struct_fields__) - {"format", "kek_id"}
    for name, value in changes.items():
        change_header(vault, lambda header, n=name, v=value: msgspec.structs.replace(header, **{n: v}))  # type: ignore[misc]
        with pytest.raises(TamperedRecord, match="somebody who has neither the key nor two people"):
            EmbeddedVault.open(vault.directory, OLD)
        (vault.directory / "vault.json").write_bytes(good)
    assert contents(EmbeddedVault.open(vault.directory, OLD)) == SECRETS


def test_a_header_made_anew_for_the_thiefs_recovery_is_not_taken_by_the_running_vault(vault: EmbeddedVault) -> None:
    """Otherwise the next secret would be encrypted to the thief."""
    thief = EmbeddedVault.create(vault.directory.parent / "thief", MemoryKek(os.urandom(32)), PEOPLE).header
    change_header(vault, lambda header: msgspec.structs.replace(header, recovery=thief.recovery))
    with pytest.raises(VaultError, match="given another key by somebody else"):
        vault.put("bmc/r2/current", b"x")
    assert not list(vault.directory.rglob("r2/*"))


def test_a_recovery_wrap_from_elsewhere_is_refused_by_key_and_by_people(vault: EmbeddedVault) -> None:
    """Anybody can encrypt a data key of their own to the recovery key: it must not be believed."""
    file = vault.directory / "records/bmc/r1/current@1"
    record = msgspec.json.decode(file.read_bytes())
    assert vault.header.recovery is not None
    to = pyrage.x25519.Recipient.from_str(vault.header.recovery.recipient)
    other = msgspec.json.decode((vault.directory / "records/site/keys/evidence@1").read_bytes())["recovery"]
    forged = {"wrapped": msgspec.to_builtins(pyrage.encrypt(bytes(32), [to])), "tag": record["recovery"]["tag"]}
    for recovery in (forged, other, None):
        file.write_bytes(msgspec.json.encode(record | {"recovery": recovery}))
        for opened in (vault, EmbeddedVault.recover(vault.directory, identities("alice", "bob"))):
            with pytest.raises(TamperedRecord, match="the recovery wrap is"):
                opened.get("bmc/r1/current")


def test_the_time_of_a_secret_cannot_be_changed(vault: EmbeddedVault) -> None:
    file = vault.directory / "records/bmc/r1/current@1"
    file.write_bytes(file.read_bytes().replace(b'"at":1000', b'"at":2000'))
    with pytest.raises(TamperedRecord):
        vault.get("bmc/r1/current")


# ---- another key


def test_after_a_rekey_the_old_records_are_shredded_and_the_old_key_opens_nothing(vault: EmbeddedVault) -> None:
    gone = vault.destroy("tenants/gone")
    kept = os.open(vault.directory / "records/bmc/r1/current@1", os.O_RDONLY)
    sealed = os.pread(kept, 10_000, 0)
    vault.rekey(NEW)
    assert os.pread(kept, 10_000, 0) != sealed
    os.close(kept)
    assert folders(vault) == [vault.header.records]
    assert contents(vault) == SECRETS
    assert {report.at for report in vault.audit()} == {1000}
    assert vault.destroy("tenants/gone") == gone  # the note of its destruction came along
    with pytest.raises(WrongKeyEncryptionKey):
        EmbeddedVault.open(vault.directory, OLD)


@pytest.mark.slow
def test_at_every_crash_point_of_a_rekey_the_vault_opens_whole_with_one_of_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vault: EmbeddedVault
) -> None:
    seen = set()
    for dies_at in range(400):
        directory = shutil.copytree(vault.directory, tmp_path / f"crash{dies_at}")
        died = run_until_crash(
            monkeypatch, dies_at, lambda at=directory: EmbeddedVault.open(at, OLD).rekey(NEW, PEOPLE)
        )
        kek, resumed = opens_by(directory)
        seen.add(kek)
        assert contents(resumed) == SECRETS
        assert contents(EmbeddedVault.recover(directory, identities("bob", "carol"))) == SECRETS
        resumed.sweep()
        assert folders(resumed) == [resumed.header.records]
        resumed.rekey(NEW, PEOPLE)  # and it can be repeated
        assert contents(EmbeddedVault.open(directory, NEW)) == SECRETS
        shutil.rmtree(directory)
        if not died:
            break
    assert dies_at > 40
    assert seen == {OLD, NEW}


def test_a_record_that_cannot_be_read_stops_the_rekey_and_nothing_is_changed(vault: EmbeddedVault) -> None:
    file = vault.directory / "records/bmc/r1/current@1"
    good = file.read_bytes()
    file.write_bytes(good[:-2])
    with pytest.raises(TamperedRecord, match="bmc/r1/current"):
        vault.rekey(NEW)
    file.write_bytes(good)
    assert contents(EmbeddedVault.open(vault.directory, OLD)) == SECRETS
    vault.rekey(NEW)
    assert folders(vault) == [vault.header.records]


def test_a_key_that_does_not_give_back_what_it_took_never_replaces_one_that_does(vault: EmbeddedVault) -> None:
    class Forgetful(MemoryKek):
        def wrap(self, key: bytes, context: bytes) -> bytes:
            return super().wrap(bytes(32), context) if b"tenants/a" in context else super().wrap(key, context)

    with pytest.raises(VaultError):
        vault.rekey(Forgetful(os.urandom(32)))
    assert contents(EmbeddedVault.open(vault.directory, OLD)) == SECRETS


def test_a_vault_that_was_open_during_a_rekey_says_so_and_never_says_there_is_nothing(vault: EmbeddedVault) -> None:
    other = EmbeddedVault.open(vault.directory, OLD)
    vault.rekey(NEW)
    calls: list[Callable[[], object]] = [
        lambda: other.get("bmc/r1/current"),
        other.paths,
        other.audit,
        lambda: other.put("x", b""),
        lambda: other.destroy("bmc"),
        lambda: other.update("x", lambda _: b""),
        lambda: other.rekey(OLD),
    ]
    for call in calls:
        with pytest.raises(VaultError, match=r"given another key[\s\S]*nothing was lost"):
            call()
    assert contents(vault) == SECRETS


# ---- format 1


def test_a_vault_of_format_1_is_read_written_and_migrated_by_a_rekey(tmp_path: Path) -> None:
    directory = tmp_path / "vault"
    write_format_1(directory, OLD, SECRETS)
    vault = EmbeddedVault.open(directory, OLD)
    assert contents(vault) == SECRETS
    vault.put("bmc/r1/current", b"new")
    assert EmbeddedVault.open(directory, OLD).get("bmc/r1/current") == b"new"
    assert [report.at is None for report in vault.audit()] == [False, True, True]
    vault.rekey(NEW, PEOPLE)
    assert read_header(directory).format == 2
    wanted = SECRETS | {"bmc/r1/current": b"new"}
    assert contents(EmbeddedVault.recover(directory, identities("alice", "carol"))) == wanted
    assert all(report.recoverable and report.at for report in vault.audit())


def test_a_record_of_format_1_that_was_moved_is_refused(tmp_path: Path) -> None:
    write_format_1(tmp_path / "vault", OLD, SECRETS)
    shutil.move(tmp_path / "vault/records/tenants/a@3", tmp_path / "vault/records/tenants/b@3")
    with pytest.raises(TamperedRecord, match="changed, moved or cut"):
        EmbeddedVault.open(tmp_path / "vault", OLD).get("tenants/b")


# ---- audit


def test_the_audit_names_what_was_changed_moved_or_put_there(vault: EmbeddedVault) -> None:
    assert {report.path: report.problem for report in vault.audit()} == dict.fromkeys(SECRETS)
    records = vault.directory / "records"
    shutil.copy(records / "bmc/r1/current@1", records / "bmc/r1/pending@1")
    changed = records / "site/keys/evidence@1"
    changed.write_bytes(changed.read_bytes()[:-2])
    (records / "notes.txt").write_text("x")
    (records / "bmc/r1/current@2.aside").write_text("what a crash left")
    problems = {report.path: report.problem for report in vault.audit() if report.problem}
    assert sorted(problems) == ["bmc/r1/pending", "notes.txt", "site/keys/evidence"]
    found = list(findings("tpm", 3, vault.audit(), []))
    assert {finding.kind for finding in found} == {"tampered-record"}
    assert "horse" not in repr(vault.audit()) + repr(found)


def test_findings_say_what_a_vault_lacks() -> None:
    kinds = [finding.kind for finding in findings("file", 0, [], ["vault-00000000.key"])]
    assert kinds == ["development-key", "no-recovery", "stale-key-file"]
    assert list(findings("openbao-kv", None, [], [])) == []
