"""A depot's life: founded, filled, signed, published, renewed, rotated, mirrored; and cut short at every step."""

import os
import shutil
import sys
from io import BytesIO
from pathlib import Path

import pytest
from depot_rig import NOW, Attacker, Rig, about, content, day, tree, wanted

from freehold.evidence import Ed25519Signer
from freehold.root_of_trust.depot import (
    Depot,
    DepotClient,
    DepotError,
    DepotMissing,
    MetadataReplayed,
    MetadataUnsigned,
    PackageForAnotherModel,
    TrustedStateLost,
    mirror,
)
from freehold.root_of_trust.depot.errors import KeyRefusedHere, NotPublishable, PackageRefused, PeopleRefused
from freehold.root_of_trust.depot.metadata import Days, days_of, people_of
from freehold.root_of_trust.depot.staging import Staging, sign_staged

sys.path.insert(0, str(Path(__file__).parents[1] / "evidence"))
from crash_points import crashes


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    rig.found()
    return rig


def test_what_two_operators_signed_can_be_used(rig: Rig) -> None:
    target = rig.add("1.0", security_floor="0.9")
    with pytest.raises(DepotMissing, match="no published depot"):
        rig.depot.client()
    rig.publish()
    assert rig.depot.client().fetch(wanted("1.0")) == (target, content("1.0"))
    assert rig.depot.staged().waiting == {}


@pytest.mark.parametrize("signers", [(), ("alice",), ("alice", "alice")])
def test_nothing_is_published_without_two_people(rig: Rig, signers: tuple[str, ...]) -> None:
    rig.add("1.0")
    rig.sign(*signers)
    with pytest.raises(NotPublishable, match=rf"root version 1 has {len(set(signers))} of 2 signatures") as refused:
        rig.depot.publish([rig.online], NOW)
    assert "bob" in refused.value.what
    assert rig.depot.repository.read() is None


def test_a_package_added_behind_a_signature_voids_it(rig: Rig) -> None:
    rig.release("1.0")
    rig.add("2.0")
    rig.sign("alice")
    rig.add("3.0")
    rig.sign("bob")
    with pytest.raises(NotPublishable, match=r"targets version 2 has 1 of 2 signatures \(bob\); 1 more of alice"):
        rig.depot.publish([rig.online], NOW)
    rig.publish("alice")
    assert [each.about.version for each in rig.depot.client().view.packages] == ["1.0", "2.0", "3.0"]


def test_a_strangers_key_signs_nothing(rig: Rig) -> None:
    rig.add("1.0")
    with pytest.raises(KeyRefusedHere, match="has nothing to sign") as refused:
        sign_staged(rig.depot.staging, rig.depot.staged(), Ed25519Signer.generate())
    assert "alice, bob, carol" in str(refused.value)


def test_what_was_shown_is_what_is_signed(rig: Rig) -> None:
    rig.add("1.0")
    shown = rig.depot.staged()
    rig.add("6.6.6")
    with pytest.raises(NotPublishable, match="changed while it was being read"):
        sign_staged(rig.depot.staging, shown, rig.people["alice"])
    assert not any(metadata.signatures for metadata in rig.depot.staged().waiting.values())


def test_the_staged_directory_is_carried_to_two_operators_at_once(rig: Rig, tmp_path: Path) -> None:
    rig.add("1.0")
    for name in ("alice", "bob"):
        shutil.copytree(rig.depot.staging.directory, tmp_path / name)
        assert sign_staged(Staging(tmp_path / name), rig.depot.staged(), rig.people[name]) == ["root", "targets"]
    rig.depot.publish([rig.online], NOW, [tmp_path / "alice", tmp_path / "bob"])
    assert rig.depot.client().find(wanted("1.0"))


def test_a_carried_copy_of_something_else_is_refused(rig: Rig, tmp_path: Path) -> None:
    rig.release("1.0")
    rig.add("2.0")
    shutil.copytree(rig.depot.staging.directory, tmp_path / "carried")
    sign_staged(Staging(tmp_path / "carried"), rig.depot.staged(), rig.people["alice"])
    rig.add("3.0")
    rig.sign("bob", "carol")
    with pytest.raises(NotPublishable, match="is not the one that is staged here"):
        rig.depot.publish([rig.online], NOW, [tmp_path / "carried"])
    rig.depot.publish([rig.online], NOW)


def test_a_bad_signature_in_a_carried_copy_does_not_replace_a_good_one(rig: Rig, tmp_path: Path) -> None:
    rig.add("1.0")
    shutil.copytree(rig.depot.staging.directory, tmp_path / "carried")
    carried = Staging(tmp_path / "carried")
    sign_staged(carried, carried.read(), rig.people["alice"])
    staged = carried.read()
    for metadata in staged.waiting.values():
        metadata.signatures[rig.people["alice"].key_id].signature = "00" * 64
    carried.put(root=staged.root, targets=staged.targets)
    rig.sign("alice", "bob")
    rig.depot.publish([rig.online], NOW, [tmp_path / "carried"])


def test_the_same_package_again_changes_nothing(rig: Rig) -> None:
    first = rig.release("1.0")
    before = tree(rig.depot.directory)
    assert rig.add("1.0", now=day(1)) == first
    assert tree(rig.depot.directory) == before


def test_a_name_means_one_package(rig: Rig) -> None:
    rig.release("1.0")
    with pytest.raises(PackageRefused, match="in the depot already, with other content"):
        rig.add("1.0", data=b"other")
    with pytest.raises(PackageRefused, match="in the depot already, with other content or another description"):
        rig.add("1.0", security_floor="0.1")
    with pytest.raises(PackageRefused, match=r"bios-1.0.bin is bios 1.0 for the same model already"):
        rig.add("1.0", name="again.bin", models=("M2", "M1"))
    rig.add("1.0", name="for-m2.bin", models=("M2",))


def test_a_package_refused_leaves_nothing_behind(rig: Rig) -> None:
    rig.release("1.0")
    before = tree(rig.depot.directory)
    with pytest.raises(PackageRefused), rig.depot.receiving(BytesIO(b"x")) as received:
        rig.depot.add(received, "../x", about("2.0"), NOW)
    with pytest.raises(ZeroDivisionError), rig.depot.receiving(BytesIO(b"x")):
        _ = 1 / 0
    assert tree(rig.depot.directory) == before


def test_the_package_for_another_model_is_refused_by_name(rig: Rig) -> None:
    rig.add("1.0", models=("M1", "M1 Gen2"))
    rig.release("1.0", name="m3.bin", models=("M3",), data=b"for M3")
    client = rig.depot.client()
    assert client.find(wanted("1.0", "M3")).path == "firmware/m3.bin"
    for model in ("M2", "m1", "M1 ", "M1 Gen", ""):
        with pytest.raises(PackageForAnotherModel, match="is not for model") as refused:
            client.find(wanted("1.0", model))
        assert "M1, M1 Gen2, M3" in str(refused.value)


def test_a_depot_is_founded_once(rig: Rig) -> None:
    with pytest.raises(DepotError, match="holds a depot already"):
        rig.found()
    rig.release("1.0")
    with pytest.raises(DepotError, match="holds a depot already"):
        rig.found()


def test_the_online_key_must_be_the_one_that_the_root_names(rig: Rig) -> None:
    rig.sign("alice", "bob")
    with pytest.raises(NotPublishable, match=r"names the online key .* and the vault holds"):
        rig.depot.publish([Ed25519Signer.generate()], NOW)


def test_the_timestamp_is_renewed_when_half_of_its_life_is_over(rig: Rig) -> None:
    rig.release("1.0")
    rig.add("2.0")
    assert not rig.depot.refresh_timestamp([rig.online], day(14.9))
    assert rig.depot.client().seen.timestamp == 1
    assert rig.depot.refresh_timestamp([rig.online], day(15.1))
    client = rig.depot.client()
    assert (client.seen.timestamp, client.seen.snapshot, client.seen.targets) == (2, 2, 1)
    assert client.view.expiries["timestamp"] == day(45.1).replace(microsecond=0)
    assert rig.depot.staged().targets is not None
    rig.follow()
    mirror(rig.site, rig.medium())
    assert not rig.site.refresh_timestamp([rig.online], day(50))


def test_days_are_the_operators_choice(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.found(Days(root=100, targets=50, online=200))
    rig.release("1.0")
    expiries = rig.depot.client().view.expiries
    assert expiries == {"root": day(100), "targets": day(50), "snapshot": day(200), "timestamp": day(200)}
    rig.depot.rotate(None, rig.online.public_key, Days(online=10), NOW)
    rig.publish()
    assert rig.depot.client().view.expiries["timestamp"] == day(10)
    assert days_of(rig.depot.client().view.root) == Days(online=10)


def test_an_operator_is_replaced(rig: Rig) -> None:
    rig.release("1.0")
    rig.people["dave"] = Ed25519Signer.generate()
    people = {name: rig.people[name].public_key for name in ("alice", "carol", "dave")}
    rig.depot.rotate(people, rig.online.public_key, None, NOW)
    rig.sign("alice", "dave")
    with pytest.raises(NotPublishable, match=r"root version 2 has 1 of 2 signatures \(alice\); 1 more of bob, carol"):
        rig.depot.publish([rig.online], NOW)
    rig.publish("carol")
    client = rig.depot.client()
    assert sorted(people_of(client.view.root).values()) == ["alice", "carol", "dave"]
    rig.add("2.0")
    with pytest.raises(KeyRefusedHere):
        rig.sign("bob")
    rig.publish("dave", "carol")
    assert rig.depot.client().find(wanted("2.0"))


def test_two_keys_of_one_person_are_refused_at_rotation(rig: Rig) -> None:
    rig.release("1.0")
    people = {name: signer.public_key for name, signer in rig.people.items()}
    with pytest.raises(PeopleRefused, match="one person with two keys"):
        rig.depot.rotate({**people, "Alice": Ed25519Signer.generate().public_key}, rig.online.public_key, None, NOW)
    with pytest.raises(PeopleRefused, match="the key of 'zoe' is also that of 'alice'"):
        rig.depot.rotate({**people, "zoe": people["alice"]}, rig.online.public_key, None, NOW)
    assert rig.depot.staged().root is None


def test_a_site_follows_and_does_not_publish(rig: Rig) -> None:
    rig.release("1.0")
    rig.follow()
    with pytest.raises(DepotMissing, match="no published depot"):
        rig.site.client()
    assert [each.path for each in mirror(rig.site, rig.medium()).copied] == ["firmware/bios-1.0.bin"]
    assert tree(rig.site.repository.directory) == tree(rig.depot.repository.directory)
    with pytest.raises(DepotMissing, match="no depot publishes"):
        rig.site.publish([rig.online], NOW)
    with pytest.raises(DepotMissing, match="no depot publishes"), rig.site.receiving(BytesIO(b"x")):
        pass
    with pytest.raises(DepotError, match="publishes itself"):
        mirror(rig.depot, rig.medium())


def test_a_follower_takes_over_with_its_operators_signatures(rig: Rig) -> None:
    """The origin burnt down; its last medium and the operators' keys are left."""
    rig.release("1.0")
    rig.follow()
    mirror(rig.site, rig.medium())
    shutil.rmtree(rig.depot.directory)
    rig.depot, rig.online = rig.site, Ed25519Signer.generate()
    rig.depot.rotate(None, rig.online.public_key, None, NOW)
    rig.publish("bob", "carol")
    rig.release("2.0")
    assert rig.depot.client().find(wanted("2.0"))


def test_a_medium_of_strangers_is_refused(rig: Rig, tmp_path: Path) -> None:
    rig.release("1.0")
    rig.follow()
    other = Rig(tmp_path / "other")
    other.found()
    other.release("6.6.6")
    with pytest.raises(MetadataUnsigned, match="timestamp was signed by 0/1 keys"):
        mirror(rig.site, other.medium())
    with pytest.raises(DepotError, match="trusts another root already"):
        rig.site.follow((other.depot.repository.directory / "metadata/1.root.json").read_bytes())


def test_root_rotations_are_followed_one_by_one(rig: Rig) -> None:
    rig.release("1.0")
    rig.follow()
    for _ in range(3):
        rig.depot.rotate(None, rig.online.public_key, None, NOW)
        rig.publish("bob", "carol")
    assert mirror(rig.site, rig.medium()).view.root.version == 4
    medium = rig.medium("gap")
    rig.depot.rotate(None, rig.online.public_key, None, NOW)
    rig.publish()
    (medium / "metadata/4.root.json").unlink()
    late = Depot(rig.directory / "late")
    late.follow((medium / "metadata/1.root.json").read_bytes())
    assert mirror(late, rig.site.repository.directory).view.root.version == 4


def test_trusted_state_that_is_gone_stops_the_reader(rig: Rig) -> None:
    rig.release("1.0")
    seen = rig.depot.client().seen
    shutil.rmtree(rig.depot.directory / "trusted")
    for recorded in (None, seen):
        with pytest.raises(TrustedStateLost, match="trusted state is not there") as refused:
            rig.depot.client(recorded)
        assert "evidence log" in str(refused.value)
    rig.depot.publish([rig.online], NOW)
    assert not (rig.depot.directory / "trusted").exists()
    shutil.rmtree(rig.depot.directory)
    with pytest.raises(TrustedStateLost):
        rig.depot.client(seen)
    with pytest.raises(DepotMissing):
        rig.depot.client()


@pytest.mark.parametrize("name", ["pinned.root.json", "seen.json"])
def test_half_of_the_trusted_state_is_none(rig: Rig, name: str) -> None:
    rig.release("1.0")
    rig.depot.client()
    (rig.depot.directory / "trusted" / name).unlink()
    with pytest.raises(TrustedStateLost, match=name):
        rig.depot.client()


def test_a_record_that_cannot_be_read_is_lost(rig: Rig) -> None:
    rig.release("1.0")
    (rig.depot.directory / "trusted/seen.json").write_bytes(b'{"root":1,"targets":')
    with pytest.raises(TrustedStateLost, match="cannot be read"):
        rig.depot.client()


def test_an_old_state_directory_put_back_is_noticed_by_the_evidence_log(rig: Rig) -> None:
    rig.release("1.0", security_floor="1.0")
    rig.depot.client()
    shutil.copytree(rig.depot.directory, rig.directory / "old")
    rig.release("2.0", security_floor="1.9")
    recorded = rig.depot.client().seen
    shutil.rmtree(rig.depot.directory)
    shutil.copytree(rig.directory / "old", rig.depot.directory)
    assert rig.depot.client().seen.targets == 1  # without the log's record nobody could tell
    with pytest.raises(TrustedStateLost, match="targets is version 1, and 2 was seen before") as refused:
        rig.depot.client(recorded)
    assert "the security floor of ACME bios M1 is 1.0, and 1.9 was seen before" in refused.value.what


def test_a_lost_state_is_pinned_anew_by_hand_and_the_record_still_counts(rig: Rig) -> None:
    rig.release("1.0")
    rig.release("2.0")
    recorded = rig.depot.client().seen
    shutil.rmtree(rig.depot.directory / "trusted")
    rig.depot.follow((rig.depot.repository.directory / "metadata/1.root.json").read_bytes())
    with pytest.raises(TrustedStateLost, match="targets is version 0, and 2 was seen before"):
        rig.depot.client(recorded)
    assert rig.depot.client().seen == recorded
    assert rig.depot.client(recorded)


def test_looking_remembers_nothing(rig: Rig) -> None:
    rig.release("1.0")
    rig.depot.client()
    rig.release("2.0")
    before = tree(rig.depot.directory)
    assert DepotClient.look(rig.depot.directory).seen.targets == 2
    assert DepotClient.look(rig.depot.directory, rig.medium()).find(wanted("2.0"))
    assert tree(rig.depot.directory) == before


def test_a_medium_can_be_looked_at_before_the_first_one_is_taken_over(rig: Rig) -> None:
    rig.release("1.0")
    medium = rig.medium()
    with pytest.raises(DepotMissing):
        DepotClient.look(rig.site.directory, medium)
    rig.follow()
    assert DepotClient.look(rig.site.directory, medium).find(wanted("1.0"))
    with pytest.raises(DepotMissing):
        rig.site.client()


def test_a_published_depot_that_was_changed_is_not_built_upon(rig: Rig) -> None:
    rig.release("1.0")
    attacker = Attacker(rig.depot.repository.directory)
    attacker.put("1.targets.json", attacker.targets([], [], 1))
    with pytest.raises(MetadataUnsigned, match="targets version 1 has 0 of 2 signatures"):
        rig.add("2.0")


@pytest.fixture
def home(tmp_path: Path) -> Rig:
    """A depot that has published once."""
    rig = Rig(tmp_path)
    rig.found()
    rig.release("1.0")
    rig.depot.client()
    return rig


def usable(depot: Depot, *versions: str) -> str:
    """The newest of these versions that can be had now, byte for byte."""
    client = depot.client()
    listed = {each.about.version for each in client.view.packages}
    newest = next(version for version in reversed(versions) if version in listed)
    _, data = client.fetch(wanted(newest))
    assert data == content(newest)
    return newest


def test_a_publication_cut_short_anywhere_shows_the_old_or_the_new_state(
    home: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = set()

    def prepare() -> None:
        home.add("2.0")
        home.sign("alice", "bob")

    def check() -> None:
        outcomes.add(usable(home.depot, "1.0", "2.0"))
        home.depot.publish([home.online], NOW)
        assert usable(home.depot, "1.0", "2.0") == "2.0"
        assert home.depot.staged().waiting == {}

    def work() -> None:
        home.depot.publish([home.online], NOW)

    prepare()
    assert crashes(home.depot.directory, monkeypatch, work, check) > 15
    assert outcomes == {"1.0", "2.0"}


def test_a_first_publication_cut_short_anywhere_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)

    def prepare() -> None:
        rig.found()
        rig.add("1.0")
        rig.sign("alice", "bob")

    def check() -> None:
        rig.depot.publish([rig.online], NOW)
        assert usable(rig.depot, "1.0") == "1.0"

    prepare()
    assert crashes(rig.depot.directory, monkeypatch, lambda: rig.depot.publish([rig.online], NOW), check) > 15


def test_founding_cut_short_anywhere_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)
    rig.depot.directory.mkdir()

    def check() -> None:
        if not rig.depot.people():
            rig.found()
        rig.publish()
        rig.depot.client()

    assert crashes(rig.depot.directory, monkeypatch, rig.found, check) > 5


def test_a_rotation_cut_short_anywhere_can_be_repeated(home: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """In between it may refuse itself, as the new operators have signed no list that is out yet; it never lies."""
    home.people |= {name: Ed25519Signer.generate() for name in ("dave", "erin")}
    people = {name: home.people[name].public_key for name in ("carol", "dave", "erin")}
    outcomes = set()

    def prepare() -> None:
        home.depot.rotate(people, home.online.public_key, None, NOW)
        home.sign("bob", "carol", "dave")

    def check() -> None:
        try:
            outcomes.add(home.depot.client().seen.root)
        except MetadataUnsigned:
            outcomes.add(0)
        home.depot.publish([home.online], NOW)
        assert home.depot.client().seen.root == 2
        assert usable(home.depot, "1.0") == "1.0"

    prepare()
    crashes(home.depot.directory, monkeypatch, lambda: home.depot.publish([home.online], NOW), check)
    assert outcomes == {0, 1, 2}


def test_an_import_cut_short_anywhere_loses_nothing(home: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        assert usable(home.depot, "1.0") == "1.0"
        home.release("2.0")
        assert usable(home.depot, "1.0", "2.0") == "2.0"
        assert not (home.depot.directory / "incoming").exists()

    assert crashes(home.depot.directory, monkeypatch, lambda: home.add("2.0"), check) > 8


@pytest.mark.slow
def test_a_mirror_cut_short_anywhere_shows_the_old_or_the_new_state(home: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = set()

    def prepare() -> None:
        home.follow()
        mirror(home.site, home.medium())
        home.release("2.0")
        home.medium()

    def check() -> None:
        outcomes.add(usable(home.site, "1.0", "2.0"))
        mirror(home.site, home.directory / "medium")
        assert usable(home.site, "1.0", "2.0") == "2.0"

    def work() -> None:
        mirror(home.site, home.directory / "medium")

    prepare()
    assert crashes(home.site.directory, monkeypatch, work, check) > 15
    assert outcomes == {"1.0", "2.0"}


def test_seen_is_never_led_back(rig: Rig) -> None:
    rig.release("1.0")
    rig.depot.client()
    (rig.depot.directory / "trusted/seen.json").write_bytes(b'{"root":1,"targets":7}')
    with pytest.raises(MetadataReplayed, match="targets is version 1, and 7 was seen before"):
        rig.depot.client()
