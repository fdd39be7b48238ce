"""The index of password digests: what it says, and what a crash at any moment may leave behind."""

import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from freehold.model.errors import FreeholdError
from freehold.orchestration.passwords import (
    COMPLETE,
    INDEX,
    KEY,
    ChangedMeanwhile,
    PasswordIndex,
    VaultSlots,
    recorded,
    set_aside,
)
from freehold.out_of_band.credential_slots import StagedCredential
from freehold.out_of_band.redfish import Credential
from freehold.root_of_trust.kek import FileKek
from freehold.root_of_trust.vault import DestroyedKey, EmbeddedVault, TamperedRecord

OLD, NEW, OTHER = (Credential("freehold", f"password-{name}-1", generated=True) for name in ("old", "new", "other"))


class View(msgspec.Struct, frozen=True):
    name: str


class Killed(Exception):
    """The controller ends here."""


class CountingVault(EmbeddedVault):
    """Counts what is read, and is killed before the write that `writes_left` says."""

    reads = 0
    writes_left: int | None = None

    def get(self, path: str) -> bytes | None:
        self.reads += 1
        return super().get(path)

    def put(self, path: str, secret: bytes) -> None:
        self._count()
        super().put(path, secret)

    def update(self, path: str, change: Callable[[bytes | None], bytes]) -> None:
        self._count()
        super().update(path, change)

    def destroy(self, prefix: str) -> list[DestroyedKey]:
        self._count()
        return super().destroy(prefix)

    def _count(self) -> None:
        if self.writes_left is not None:
            if self.writes_left == 0:
                raise Killed
            self.writes_left -= 1


@pytest.fixture
def vault(tmp_path: Path) -> CountingVault:
    kek = FileKek.create(tmp_path / "vault.key")
    EmbeddedVault.create(tmp_path / "vault", kek)
    return CountingVault.open(tmp_path / "vault", kek)  # type: ignore[return-value]


def slots(vault: EmbeddedVault, server: str = "s1") -> VaultSlots:
    return VaultSlots(vault, View(server))  # type: ignore[arg-type]


def entries(vault: EmbeddedVault) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in vault.paths(INDEX):
        found |= msgspec.json.decode(vault.get(path) or b"") if path != COMPLETE else {}
    return found


async def test_a_password_is_shared_by_who_has_it_and_its_own_server_does_not_count(vault: CountingVault) -> None:
    await slots(vault, "s1").replace(OLD)
    await slots(vault, "s2").replace(OLD)
    await slots(vault, "s3").replace(OTHER)
    index = PasswordIndex(vault)
    assert index.shared_with("s1", OLD.password) == ("s2",)
    assert index.shared_with("s3", OTHER.password) == ()
    assert index.shared_with("s3", OLD.password) == ("s1", "s2")


async def test_a_password_that_is_only_pending_elsewhere_counts(vault: CountingVault) -> None:
    await slots(vault, "s2").stage(StagedCredential(credential=NEW))
    assert PasswordIndex(vault).shared_with("s1", NEW.password) == ("s2",)


async def test_a_rotation_leaves_one_entry_and_no_password_in_it(vault: CountingVault) -> None:
    one = slots(vault)
    await one.replace(OLD)
    await one.stage(StagedCredential(credential=NEW))
    await one.commit(StagedCredential(credential=NEW))
    index = PasswordIndex(vault)
    assert entries(vault) == {index.digest(NEW.password): ["s1"]}
    await one.stage(StagedCredential(credential=OTHER))
    await one.discard(StagedCredential(credential=OTHER))
    assert entries(vault) == {index.digest(NEW.password): ["s1"]}


async def test_a_discarded_password_that_is_the_current_one_keeps_its_entry(vault: CountingVault) -> None:
    one = slots(vault)
    await one.replace(NEW)
    await one.stage(StagedCredential(credential=NEW))
    await one.discard(StagedCredential(credential=NEW))
    assert PasswordIndex(vault).shared_with("s2", NEW.password) == ("s1",)


@pytest.mark.parametrize("writes", range(8))
async def test_a_crash_anywhere_leaves_no_password_unknown_and_no_entry_that_blocks(
    vault: CountingVault, writes: int
) -> None:
    one = slots(vault)
    await one.replace(OLD)
    PasswordIndex(vault).complete()
    vault.writes_left = writes
    try:
        await one.stage(StagedCredential(credential=NEW))
        await one.commit(StagedCredential(credential=NEW))
        done = True
    except Killed:
        done = False
    assert done == (writes >= 6)  # entry, pending; kept, current, pending destroyed, the old entry
    vault.writes_left = None
    index, current, pending = PasswordIndex(vault), await one.current(), await one.pending()
    held = {each.password for each in (current, pending.credential if pending else None) if each is not None}
    for password in (OLD.password, NEW.password):
        assert index.shared_with("s2", password) == (("s1",) if password in held else ())
    assert current == NEW or pending is not None or writes < 2
    if pending is not None:  # the resumed take-over finds that it works
        await one.commit(StagedCredential(credential=NEW))
        assert index.shared_with("s2", NEW.password) == ("s1",)
        assert index.shared_with("s2", OLD.password) == ()


async def test_a_vault_of_before_is_entered_once(vault: CountingVault) -> None:
    vault.put("bmc/s1/current", msgspec.json.encode(OLD))
    vault.put("bmc/s2/current", msgspec.json.encode(OLD))
    vault.put("bmc/s2/pending", msgspec.json.encode(StagedCredential(credential=NEW)))
    assert PasswordIndex(vault).shared_with("s1", OLD.password) == ("s2",)
    assert PasswordIndex(vault).shared_with("s1", NEW.password) == ("s2",)
    vault.put("bmc/s3/current", msgspec.json.encode(OTHER))  # not by way of the slots: it is not looked for again
    assert PasswordIndex(vault).shared_with("s1", OTHER.password) == ()


async def test_an_entering_that_was_cut_off_is_made_again(vault: CountingVault) -> None:
    for number, credential in enumerate((OLD, NEW, OTHER)):
        vault.put(f"bmc/s{number}/current", msgspec.json.encode(credential))
    index = PasswordIndex(vault)
    index.digest("")  # the key is there
    vault.writes_left = 2
    with pytest.raises(Killed):
        index.complete()
    vault.writes_left = None
    assert [index.shared_with("new", each.password) for each in (OLD, NEW, OTHER)] == [("s0",), ("s1",), ("s2",)]


async def test_what_is_read_for_one_rotation_does_not_grow_with_the_fleet(vault: CountingVault) -> None:
    async def reads() -> int:
        before = vault.reads
        one = slots(vault)
        await one.stage(StagedCredential(credential=NEW))
        await one.commit(StagedCredential(credential=NEW))
        assert PasswordIndex(vault).shared_with("s1", NEW.password) == ()
        return vault.reads - before

    await slots(vault).replace(OLD)
    PasswordIndex(vault).complete()
    alone = await reads()
    await slots(vault).replace(OLD)
    for number in range(2, 40):
        await slots(vault, f"s{number}").replace(Credential("freehold", f"password-{number}", generated=True))
    assert await reads() == alone


async def test_a_record_that_cannot_be_read_can_be_replaced_by_a_person(vault: CountingVault) -> None:
    await slots(vault).replace(OLD)
    (record,) = (vault.directory / "records" / "bmc" / "s1").glob("current@*")
    record.write_bytes(b"{}")
    with pytest.raises(TamperedRecord):
        PasswordIndex(vault).shared_with("s2", OLD.password)  # fails closed: nobody says that it is unique
    await slots(vault).replace(NEW)
    assert PasswordIndex(vault).shared_with("s2", OLD.password) == ()


async def test_what_another_has_changed_meanwhile_is_neither_committed_nor_set_aside_nor_written_over(
    vault: CountingVault,
) -> None:
    one, mine, another = slots(vault), StagedCredential(credential=NEW), StagedCredential(credential=OTHER)
    await one.replace(OLD)
    for change in (one.commit, one.discard):
        with pytest.raises(FreeholdError, match="server s1: somebody else changed the credential"):
            await change(mine)
    await one.stage(another)
    for change in (one.commit, one.discard, one.stage):
        with pytest.raises(FreeholdError, match="somebody else changed the credential"):
            await change(mine)
    assert (await one.current(), await one.pending()) == (OLD, another)


async def test_a_change_that_begins_while_a_person_sets_a_credential_is_stopped_before_its_password_is_lost(
    vault: CountingVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, destroy = slots(vault), vault.destroy
    await one.replace(OLD)

    def after_a_change_began(prefix: str) -> list[DestroyedKey]:
        if prefix == "bmc/s1/pending":
            with pytest.raises(ChangedMeanwhile):
                slots(vault)._stage(StagedCredential(credential=NEW))
        return destroy(prefix)

    monkeypatch.setattr(vault, "destroy", after_a_change_began)
    await one.replace(Credential("root", "by-hand-1"))
    assert NEW in recorded(vault, "s1")


async def test_a_credential_that_a_person_sets_while_a_change_is_committed_stays(
    vault: CountingVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, by_a_person, add = slots(vault), Credential("root", "by-hand-1"), PasswordIndex.add
    await one.replace(OLD)
    await one.stage(StagedCredential(credential=NEW))

    def with_a_person_beside(index: PasswordIndex, server: str, password: str) -> None:
        monkeypatch.setattr(PasswordIndex, "add", add)
        slots(vault)._replace(by_a_person)
        add(index, server, password)

    monkeypatch.setattr(PasswordIndex, "add", with_a_person_beside)
    with pytest.raises(ChangedMeanwhile):
        await one.commit(StagedCredential(credential=NEW))
    assert recorded(vault, "s1") == [by_a_person, NEW, OLD]


async def test_no_generated_password_is_forgotten_that_a_bmc_may_have(vault: CountingVault) -> None:
    one, staged = slots(vault), StagedCredential(credential=NEW)
    await one.replace(OLD)
    await one.stage(staged)
    by_a_person = Credential("root", "by-hand-1")
    await one.replace(by_a_person)
    assert [each.credential for each in await one.kept()] == [NEW, OLD]
    await one.stage(StagedCredential(credential=OTHER))
    await one.discard(StagedCredential(credential=OTHER))
    assert [each.credential for each in await one.kept()] == [OTHER, NEW, OLD]
    assert recorded(vault, "s1") == [by_a_person, OTHER, NEW, OLD]
    set_aside(vault, "s1", 7.0)
    assert vault.paths("bmc/s1") == []
    assert set(recorded(vault, "s1")) == {by_a_person, OTHER, NEW, OLD}


async def test_kept_passwords_that_cannot_be_read_do_not_keep_a_person_from_setting_one(
    vault: CountingVault,
) -> None:
    vault.put("bmc/s1/kept", b"?")
    await slots(vault).replace(OLD)
    assert await slots(vault).kept() == ()


def test_a_digest_is_keyed_by_its_vault(tmp_path: Path, vault: CountingVault) -> None:
    """Whoever has the evidence of a site, and not its vault, cannot try passwords against the digests in it."""
    kek = FileKek.create(tmp_path / "other.key")
    EmbeddedVault.create(tmp_path / "other", kek)
    other = EmbeddedVault.open(tmp_path / "other", kek)
    here, there = PasswordIndex(vault).digest(OLD.password), PasswordIndex(other).digest(OLD.password)
    assert here != there
    assert PasswordIndex(vault).digest(OLD.password) == here  # the key is kept
    text = OLD.password.encode()
    for unkeyed in ("sha256", "sha512", "sha3_256", "blake2s", "sha1", "md5"):
        plain = hashlib.new(unkeyed, text).hexdigest()
        assert plain not in (here, there)
    assert hmac.digest(b"", text, "sha256").hex() not in (here, there)


def test_a_digest_is_hmac_sha_256_under_the_key_of_the_vault(vault: CountingVault) -> None:
    digest = PasswordIndex(vault).digest(OLD.password)
    key = vault.get(KEY)
    assert key is not None
    assert len(key) == 32
    assert digest == hmac.new(key, OLD.password.encode(), "sha256").hexdigest()
    assert PasswordIndex(vault).digest(NEW.password) != digest
