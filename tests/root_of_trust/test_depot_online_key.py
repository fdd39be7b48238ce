"""The depot's online key is replaced: by two people, cut short at every step, and after a thief used up its numbers."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from depot_rig import DAYS, NOW, Attacker, Rig, day, tree, wanted
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Snapshot
from tuf.ngclient import Updater

from freehold.evidence import Ed25519Signer
from freehold.root_of_trust import online_key
from freehold.root_of_trust.depot import (
    BelowSecurityFloor,
    Depot,
    DepotError,
    MetadataIncomplete,
    MetadataReplayed,
    MetadataUnsigned,
    mirror,
)
from freehold.root_of_trust.depot import metadata as roles
from freehold.root_of_trust.depot.errors import NotPublishable
from freehold.root_of_trust.depot.fetcher import METADATA, DirectoryFetcher
from freehold.root_of_trust.depot.metadata import online_key_of
from freehold.root_of_trust.kek import FileKek
from freehold.root_of_trust.keys import SiteKeysError, depot_key, make_depot_key
from freehold.root_of_trust.online_key import online_keys
from freehold.root_of_trust.vault import EmbeddedVault, Vault

sys.path.insert(0, str(Path(__file__).parents[1] / "evidence"))
from crash_points import crashes

CURRENT, NEXT = "site/keys/depot", "site/keys/depot-next"


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


class Kept(Rig):
    """A rig whose online key is in a vault beside the depot. `home` holds both: what a crash can tear apart."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.home = directory / "home"
        self.depot = Depot(self.home / "depot")
        self.kek = FileKek.create(directory / "vault.key")
        EmbeddedVault.create(self.home / "vault", self.kek)
        self.online = make_depot_key(self.vault)

    @property
    def vault(self) -> Vault:
        """As a new process opens it."""
        return EmbeddedVault.open(self.home / "vault", self.kek)

    def rotate(self, replace: bool = True) -> str:
        return online_key.rotate(self.depot, self.vault, None, DAYS, NOW, replace_online_key=replace)

    def bring_out(self, *names: str) -> online_key.Publication:
        self.sign(*names)
        return online_key.publish(self.depot, self.vault, NOW)

    def replace(self) -> Ed25519Signer:
        """Everything that people do; the former key, as a thief has it."""
        former = depot_key(self.vault)
        self.rotate()
        self.bring_out("alice", "bob")
        self.online = depot_key(self.vault)
        return former

    @property
    def held(self) -> dict[str, str]:
        """Vault path to key id."""
        signers = {CURRENT: online_key._signer(self.vault, CURRENT), NEXT: online_key._signer(self.vault, NEXT)}
        return {path: signer.key_id for path, signer in signers.items() if signer is not None}

    @property
    def named(self) -> str:
        return self.depot.online_key()


class PlainClient:
    """Any TUF client: python-tuf alone, without our memory beside it."""

    def __init__(self, directory: Path, root: bytes) -> None:
        self._directory, self._root = directory, root
        directory.mkdir()

    def update(self, repository: Path) -> None:
        fetcher = DirectoryFetcher(repository)
        Updater(str(self._directory), METADATA, fetcher=fetcher, bootstrap=self._root).refresh()


@pytest.fixture
def rig(tmp_path: Path) -> Kept:
    """Three states were published, the site has all of them."""
    rig = Kept(tmp_path)
    rig.found()
    rig.release("1.0", security_floor="0.9")
    rig.depot.client()
    rig.follow()
    mirror(rig.site, rig.medium("first"))
    rig.release("2.0", security_floor="1.5")
    rig.release("3.0")
    rig.depot.client()
    mirror(rig.site, rig.medium())
    return rig


@pytest.fixture
def plain(rig: Kept, tmp_path: Path) -> PlainClient:
    """It knows what the site knows."""
    client = PlainClient(tmp_path / "plain", (rig.depot.repository.directory / "metadata/1.root.json").read_bytes())
    client.update(rig.depot.repository.directory)
    return client


def test_the_online_key_is_replaced(rig: Kept, plain: PlainClient) -> None:
    former = depot_key(rig.vault)
    made = rig.rotate()
    assert rig.held == {CURRENT: former.key_id, NEXT: made}
    assert rig.named == former.key_id
    published, client, replaced = rig.bring_out("alice", "bob")
    assert replaced
    assert made != former.key_id
    assert rig.held == {CURRENT: made}
    assert (rig.named, client.seen.online_key) == (made, made)
    assert former.key_id not in published.root.signed.keys
    assert (client.seen.root, client.seen.targets, client.seen.snapshot, client.seen.timestamp) == (2, 4, 1, 1)
    mirror(rig.site, rig.medium())
    plain.update(rig.medium())
    rig.online = depot_key(rig.vault)
    rig.release("4.0")
    assert rig.depot.client().seen.timestamp == 2
    mirror(rig.site, rig.medium())
    assert rig.site.client().find(wanted("4.0"))
    assert not online_key.publish(rig.depot, rig.vault, NOW).replaced


@pytest.mark.parametrize("signers", [(), ("alice",), ("alice", "alice")])
def test_one_person_replaces_no_online_key(rig: Kept, signers: tuple[str, ...]) -> None:
    former = depot_key(rig.vault)
    rig.rotate()
    with pytest.raises(NotPublishable, match=rf"root version 2 has {len(set(signers))} of 2 signatures"):
        rig.bring_out(*signers)
    assert (rig.named, rig.held[CURRENT]) == (former.key_id, former.key_id)
    assert rig.depot.refresh_timestamp(online_keys(rig.vault), day(20))
    assert rig.depot.client().seen.online_key == former.key_id


def test_what_the_former_key_signs_is_refused(rig: Kept, plain: PlainClient) -> None:
    """By the depot's own reader, by a site that takes over media, and by any TUF client."""
    former = rig.replace()
    mirror(rig.site, rig.medium())
    plain.update(rig.medium())
    before = tree(rig.site.directory)
    attacker = Attacker(rig.medium("forged"))
    attacker.with_online_key(former, attacker.targets_file().to_bytes(), 4, ahead=1_000_000)
    with pytest.raises(MetadataUnsigned, match="timestamp was signed by 0/1 keys"):
        mirror(rig.site, attacker.repository)
    assert tree(rig.site.directory) == before
    with pytest.raises(UnsignedMetadataError):
        plain.update(attacker.repository)
    own = Attacker(rig.depot.repository.directory)
    own.with_online_key(former, own.targets_file().to_bytes(), 4, ahead=1_000_000)
    with pytest.raises(MetadataUnsigned, match="timestamp was signed by 0/1 keys"):
        rig.depot.client()
    # what the thief wrote counts for nothing when the site publishes the next time
    online_key.publish(rig.depot, rig.vault, NOW)
    assert rig.depot.client().seen.timestamp == 1


def test_a_medium_without_the_new_root_is_refused_where_that_is_known(rig: Kept, plain: PlainClient) -> None:
    """The thief leaves it out, and offers a state that was good."""
    rig.medium("old")
    former = rig.replace()
    mirror(rig.site, rig.medium())
    plain.update(rig.medium())
    attacker = Attacker(rig.directory / "old")
    attacker.with_online_key(former, attacker.targets_file().to_bytes(), 3)
    with pytest.raises(MetadataUnsigned):
        mirror(rig.site, attacker.repository)
    with pytest.raises(UnsignedMetadataError):
        plain.update(attacker.repository)


@pytest.mark.parametrize("replaced", ["timestamp.json", "snapshot"])
def test_a_list_under_the_former_key_on_a_medium_with_the_new_root(
    rig: Kept, replaced: str, plain: PlainClient
) -> None:
    """The root is new to the site. What the former key signed beside it is refused all the same; nothing changes."""
    before, former = tree(rig.site.directory), rig.replace()
    attacker = Attacker(rig.medium())
    if replaced == "timestamp.json":
        attacker.with_online_key(former, attacker.targets_file().to_bytes(), 4)
    else:
        listed = (attacker.repository / "metadata/4.targets.json").read_bytes()
        forged = roles.sign(roles.new_snapshot(listed, 4, DAYS, NOW, 1), former).to_bytes()
        attacker.put("1.snapshot.json", forged)
        stamp = roles.sign(roles.new_timestamp(forged, 1, DAYS, NOW, 1), depot_key(rig.vault))
        attacker.put("timestamp.json", stamp.to_bytes())
    with pytest.raises(MetadataUnsigned, match=f"{replaced.partition('.')[0]} was signed by 0/1 keys"):
        mirror(rig.site, attacker.repository)
    with pytest.raises(UnsignedMetadataError):
        plain.update(attacker.repository)
    assert tree(rig.site.directory) == before
    assert rig.site.client().find(wanted("3.0"))
    online_key.publish(rig.depot, rig.vault, NOW)  # a plain client has kept that timestamp, signed by the new key
    mirror(rig.site, rig.medium("good"))
    plain.update(rig.medium("good"))


@pytest.mark.parametrize("ahead", [1_000_000, 10**60])
@pytest.mark.parametrize("where", ["depot", "medium"])
def test_fast_forward_is_recovered_from(rig: Kept, plain: PlainClient, where: str, ahead: int) -> None:
    """TUF 5.3.11. The thief used up the version numbers: in the depot itself, or on a medium that reached the site."""
    attacker = Attacker(rig.depot.repository.directory if where == "depot" else rig.medium("forged"))
    attacker.with_online_key(rig.online, attacker.targets_file().to_bytes(), 3, ahead=ahead)
    mirror(rig.site, rig.medium() if where == "depot" else attacker.repository)
    plain.update(attacker.repository)
    recorded = rig.site.client().seen
    assert recorded.timestamp > ahead
    if where == "medium":
        online_key.publish(rig.depot, rig.vault, NOW)
        with pytest.raises(MetadataReplayed):
            mirror(rig.site, rig.medium())
    rig.replace()
    mirror(rig.site, rig.medium())
    plain.update(rig.medium())
    for depot in (rig.depot, rig.site):
        seen = depot.client(recorded).seen
        assert (seen.root, seen.targets, seen.snapshot, seen.timestamp) == (2, 4, 1, 1)
    rig.release("4.0")
    mirror(rig.site, rig.medium())
    plain.update(rig.medium())
    assert rig.site.client(recorded).find(wanted("4.0"))


@pytest.mark.parametrize("when", ["with the new root", "after the new root"])
def test_the_list_does_not_go_back_with_the_new_key(rig: Kept, when: str) -> None:
    """Numbers that begin anew are those of snapshot and timestamp. Whoever has the next key, too, brings no list back;
    python-tuf alone would take it, as its memory of the list hung on the former key."""
    rig.replace()
    if when == "after the new root":
        mirror(rig.site, rig.medium())
    before = tree(rig.site.directory)
    attacker = Attacker(rig.medium())
    old = (rig.directory / "first/metadata/1.targets.json").read_bytes()
    attacker.with_online_key(rig.online, old, 1)
    found = "targets is version 1, and 3 was seen" if when == "with the new root" else "Expected targets.json version"
    with pytest.raises(MetadataReplayed, match=found):
        mirror(rig.site, attacker.repository)
    assert tree(rig.site.directory) == before


def test_security_floors_outlive_the_key(rig: Kept) -> None:
    rig.depot.withdraw("firmware/bios-2.0.bin", NOW)
    rig.publish()
    rig.replace()
    mirror(rig.site, rig.medium())
    for depot in (rig.depot, rig.site):
        with pytest.raises(BelowSecurityFloor, match=r"below the security floor 1\.5"):
            depot.client().find(wanted("1.0"))


def test_a_key_that_was_replaced_does_not_come_back(rig: Kept) -> None:
    """Who missed the change would hold its old numbers against the new ones."""
    former = rig.replace()
    with pytest.raises(DepotError, match="was replaced before") as refused:
        rig.depot.rotate(None, former.public_key, None, NOW)
    assert "freehold depot rotate --online-key" in str(refused.value)
    assert rig.depot.staged().waiting == {}
    rig.rotate(replace=False)
    assert not rig.bring_out("alice", "bob").replaced
    assert rig.depot.client().seen.timestamp == 2


def test_an_abandoned_replacement_is_begun_again_with_another_key(rig: Kept) -> None:
    first = rig.rotate()
    rig.sign("alice")
    shutil.copytree(rig.depot.staging.directory, rig.directory / "carried")
    second = rig.rotate()
    assert first not in rig.held.values()
    with pytest.raises(NotPublishable, match="is not the one that is staged here"):
        rig.depot.publish(online_keys(rig.vault), NOW, [rig.directory / "carried"])
    assert rig.bring_out("bob", "carol").replaced
    assert rig.held == {CURRENT: second}


def test_an_abandoned_replacement_ends_with_another_rotation(rig: Kept) -> None:
    former = depot_key(rig.vault).key_id
    rig.rotate()
    assert rig.rotate(replace=False) == former
    assert rig.held == {CURRENT: former}
    assert not rig.bring_out("alice", "bob").replaced
    assert rig.depot.client().seen.online_key == former


def test_a_root_that_names_neither_key_is_not_published(rig: Kept) -> None:
    former = rig.named
    rig.rotate()
    rig.vault.destroy(NEXT)
    with pytest.raises(NotPublishable, match=f"and the vault holds {former}") as refused:
        rig.bring_out("alice", "bob")
    assert "--online-key" in str(refused.value)
    rig.replace()
    assert rig.depot.client().seen.root == 2


def test_a_vault_without_a_key_publishes_nothing(rig: Kept) -> None:
    rig.vault.destroy(CURRENT)
    with pytest.raises(SiteKeysError, match="lacks the site's depot key"):
        online_key.publish(rig.depot, rig.vault, NOW)
    rig.rotate()
    assert rig.bring_out("alice", "bob").client.seen.timestamp == 1  # two people help


def test_a_follower_takes_over_with_a_new_key(rig: Kept) -> None:
    shutil.rmtree(rig.depot.directory)
    rig.depot = rig.site
    rig.vault.destroy(CURRENT)
    made = rig.rotate()
    assert rig.bring_out("alice", "carol").replaced
    assert rig.held == {CURRENT: made}
    assert rig.depot.client().find(wanted("3.0"))


def test_a_root_of_strangers_destroys_no_key(rig: Kept) -> None:
    """Written beside the published ones, and signed by those whom it names itself."""
    made, former = rig.rotate(), rig.named
    strangers = {name: Ed25519Signer.generate() for name in ("mallory", "oscar", "trudy")}
    attacker = Attacker(rig.depot.repository.directory)
    public = online_key._signer(rig.vault, NEXT)
    assert public is not None
    forged = roles.new_root(
        {name: signer.public_key for name, signer in strangers.items()}, public.public_key, DAYS, NOW,
        attacker.root().signed,
    )  # fmt: skip
    for signer in strangers.values():
        roles.sign(forged, signer)
    attacker.put("2.root.json", forged.to_bytes())
    for work in (rig.rotate, rig.bring_out):
        with pytest.raises(MetadataUnsigned, match="root version 2 has 0 of 2 signatures"):
            work()
    assert rig.held == {CURRENT: former, NEXT: made}


def renewed(rig: Kept) -> int:
    """What the controller does at any time, whatever was cut short: a timestamp by the key that the root names."""
    assert rig.depot.refresh_timestamp(online_keys(rig.vault), day(20))
    seen = rig.depot.client().seen
    assert seen.online_key == rig.named
    return seen.root


def test_the_staging_of_a_new_key_cut_short_anywhere_can_be_repeated(
    rig: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = rig.named

    def check() -> None:
        assert renewed(rig) == 1
        assert rig.named == rig.held[CURRENT] == former
        made = rig.rotate()
        assert rig.bring_out("alice", "bob").replaced
        assert rig.held == {CURRENT: made}

    assert crashes(rig.home, monkeypatch, rig.rotate, check) > 15


@pytest.mark.parametrize(
    ("used_up", "after"),
    [
        (False, "repeated"),
        (True, "repeated"),
        (False, "renewed by the controller"),
        (True, "another key"),
        (False, "another rotation"),
    ],
)
def test_the_publication_of_a_new_key_cut_short_anywhere_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used_up: bool, after: str
) -> None:
    """From the first write to the last one in the vault. `used_up`: by a thief, before; and else the new snapshot has
    the number, and the file, of the one that is still in force."""
    rig = Kept(tmp_path)
    rig.found()
    rig.release("1.0")
    attacker, former = Attacker(rig.depot.repository.directory), rig.online.key_id
    if used_up:
        attacker.with_online_key(rig.online, attacker.targets_file().to_bytes(), 1, ahead=1_000_000)
    rig.depot.client()
    assert (attacker.newest(Snapshot).signed.version > 1) == used_up
    made = rig.rotate()
    rig.sign("alice", "bob")
    outcomes = set()

    def check() -> None:
        try:
            outcomes.add((rig.depot.client().seen.root, tuple(rig.held)))
        except (MetadataUnsigned, MetadataIncomplete):
            outcomes.add((0, tuple(rig.held)))
        assert rig.named in rig.held.values()
        key = made
        if after == "renewed by the controller":
            assert renewed(rig) == rig.depot.client().seen.root
        elif after != "repeated":
            key = rig.rotate(replace=after == "another key")
            rig.sign("bob", "carol")
        online_key.publish(rig.depot, rig.vault, NOW)
        seen = rig.depot.client().seen
        assert rig.held == {CURRENT: key}
        assert seen.online_key == key == rig.named
        assert seen.timestamp < 10 or key == former
        assert rig.depot.staged().waiting == {}
        assert rig.depot.client().find(wanted("1.0"))

    assert crashes(rig.home, monkeypatch, lambda: online_key.publish(rig.depot, rig.vault, NOW), check) > 30
    both, one = (CURRENT, NEXT), (CURRENT,)
    assert outcomes == {(1, both), (0, both), (2, both), (2, one)}


def test_a_mirror_of_a_new_key_cut_short_anywhere_can_be_repeated(rig: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.replace()
    medium, outcomes = rig.medium(), set()

    def check() -> None:
        try:
            outcomes.add(rig.site.client().seen.root)
        except (MetadataUnsigned, MetadataIncomplete):
            outcomes.add(0)
        mirror(rig.site, medium)
        assert rig.site.client().seen.online_key == rig.online.key_id

    assert crashes(rig.site.directory, monkeypatch, lambda: mirror(rig.site, medium), check) > 10
    assert outcomes == {0, 1, 2}


def test_every_published_root_names_the_key_that_signed_beside_it(rig: Kept) -> None:
    """Again and again: each change begins with 1, and everybody who follows gets over each."""
    for number in range(2, 5):
        rig.replace()
        rig.release(f"{number}.5")
        mirror(rig.site, rig.medium())
        seen = rig.site.client().seen
        assert (seen.root, seen.timestamp, seen.online_key) == (number, 2, rig.online.key_id)
    late = Depot(rig.directory / "late")
    late.follow((rig.medium() / "metadata/1.root.json").read_bytes())
    assert online_key_of(mirror(late, rig.medium()).view.root) == rig.online.key_id
