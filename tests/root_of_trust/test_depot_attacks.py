"""Every attack on TUF that the research names, against the controller's reader and against carried media.

Each one is refused by name, and the site goes on with what it had.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from depot_rig import DAYS, NOW, Attacker, Rig, content, day, tree, wanted
from tuf.api.metadata import Root, Snapshot

from freehold.evidence import Ed25519Signer, durable
from freehold.root_of_trust.depot import (
    DataEndless,
    DepotClient,
    DepotError,
    MetadataExpired,
    MetadataIncomplete,
    MetadataReplayed,
    MetadataUnsigned,
    Target,
    TargetChanged,
    TargetNotFound,
    mirror,
)
from freehold.root_of_trust.depot import metadata as roles
from freehold.root_of_trust.depot.errors import PeopleRefused
from freehold.root_of_trust.depot.files import Progress, open_beneath


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """Three published states: 1.0; 1.0 and 2.0; 2.0 alone (1.0 was withdrawn). The reader has seen all of them."""
    rig = Rig(tmp_path)
    rig.found()
    rig.release("1.0")
    rig.depot.client()
    rig.medium("first")
    rig.release("2.0")
    rig.depot.client()
    rig.medium("second")
    rig.depot.withdraw("firmware/bios-1.0.bin", NOW)
    rig.publish()
    rig.depot.client()
    rig.follow()
    mirror(rig.site, rig.medium())
    return rig


class Victim:
    """Reads from `attacked`; `look` uses it as the product does."""

    def __init__(self, rig: Rig, attacked: Path, look: Callable[[], object], state: Path) -> None:
        self.rig, self.attacker, self.look, self._state = rig, Attacker(attacked), look, state
        self.before = tree(state)

    def refuses(self, error: type[DepotError], words: str) -> None:
        with pytest.raises(error, match=words) as refused:
            self.look()
        assert refused.value.remedy

    def is_unchanged(self) -> None:
        assert tree(self._state) == self.before


@pytest.fixture(params=["reader", "medium"])
def victim(request: pytest.FixtureRequest, rig: Rig) -> Iterator[Victim]:
    """The controller's reader on its own repository, or a site that takes over a medium. The latter must not change."""
    if request.param == "reader":

        def read() -> None:
            client = rig.depot.client()
            client.open_verified(client.find(wanted("2.0"))).close()

        yield Victim(rig, rig.depot.repository.directory, read, rig.depot.directory / "staged")
        return
    medium = rig.medium()
    made = Victim(rig, medium, lambda: mirror(rig.site, medium), rig.site.directory)
    yield made
    made.is_unchanged()
    client = rig.site.client()
    with client.open_verified(client.find(wanted("2.0"))) as file:
        assert file.read() == content("2.0")


def test_the_rig_works_without_an_attack(rig: Rig) -> None:
    for depot in (rig.depot, rig.site):
        client = depot.client()
        target, data = client.fetch(wanted("2.0"))
        assert data == content("2.0")
        assert (client.seen.targets, target.length) == (3, len(content("2.0")))
    assert mirror(rig.site, rig.medium()).copied == ()


def flip_a_byte(repository: Path, name: str) -> None:
    (file,) = (repository / "targets/firmware").glob(f"*.{name}")
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)


def test_changed_byte(rig: Rig) -> None:
    client = rig.depot.client()
    flip_a_byte(rig.depot.repository.directory, "bios-2.0.bin")
    with pytest.raises(TargetChanged, match="not what the operators signed: it has SHA-256"):
        client.fetch(wanted("2.0"))


def test_changed_byte_on_a_medium(rig: Rig) -> None:
    rig.release("3.0")
    medium, before = rig.medium(), tree(rig.site.directory)
    flip_a_byte(medium, "bios-3.0.bin")
    with pytest.raises(MetadataIncomplete, match=r"medium/targets/firmware/.*bios-3.0.bin has 6500 bytes with SHA-256"):
        mirror(rig.site, medium)
    assert tree(rig.site.directory) == before
    flip_a_byte(medium, "bios-3.0.bin")
    assert [target.about.version for target in mirror(rig.site, medium).copied] == ["3.0"]


def test_changed_byte_in_the_site_is_repaired_by_the_next_medium(rig: Rig) -> None:
    flip_a_byte(rig.site.repository.directory, "bios-2.0.bin")
    with pytest.raises(TargetChanged, match="mirror the depot again"):
        rig.site.client().fetch(wanted("2.0"))
    assert mirror(rig.site, rig.medium()).copied
    rig.site.client().fetch(wanted("2.0"))


def test_one_of_two_signatures(victim: Victim) -> None:
    forged = victim.attacker.targets([], [victim.rig.people["alice"]], 4)
    victim.attacker.with_online_key(victim.rig.online, forged, 4)
    victim.refuses(MetadataUnsigned, "targets was signed by 1/2 keys")


def test_same_signature_twice(victim: Victim) -> None:
    forged = json.loads(victim.attacker.targets([], [victim.rig.people["alice"]], 4))
    forged["signatures"] *= 2
    victim.attacker.with_online_key(victim.rig.online, json.dumps(forged).encode(), 4)
    victim.refuses(MetadataIncomplete, "Multiple signatures found for keyid")


def test_one_signature_under_two_key_ids(victim: Victim) -> None:
    forged = json.loads(victim.attacker.targets([], [victim.rig.people["alice"]], 4))
    twin = {**forged["signatures"][0], "keyid": victim.rig.people["bob"].key_id}
    forged["signatures"].append(twin)
    victim.attacker.with_online_key(victim.rig.online, json.dumps(forged).encode(), 4)
    victim.refuses(MetadataUnsigned, "1/2 keys")


def test_signed_by_strangers(victim: Victim) -> None:
    forged = victim.attacker.targets([], [Ed25519Signer.generate(), Ed25519Signer.generate()], 4)
    victim.attacker.with_online_key(victim.rig.online, forged, 4)
    victim.refuses(MetadataUnsigned, "0/2 keys")


def test_withdrawn_target(rig: Rig) -> None:
    """Its file is still there, and so are the lists that named it."""
    assert list((rig.depot.repository.directory / "targets/firmware").glob("*.bios-1.0.bin"))
    for depot in (rig.depot, rig.site):
        with pytest.raises(TargetNotFound, match=r"the depot has no firmware ACME bios 1\.0"):
            depot.client().find(wanted("1.0"))


def test_target_of_another_client_is_not_handed_out(rig: Rig) -> None:
    rig.release("3.0")
    newer = rig.depot.client().find(wanted("3.0"))
    with pytest.raises(TargetNotFound, match="not in the metadata that was verified"):
        rig.site.client().open_verified(newer)


def test_replayed_old_timestamp(victim: Victim) -> None:
    shutil.copy(victim.rig.directory / "second/metadata/timestamp.json", victim.attacker.repository / "metadata")
    victim.refuses(MetadataReplayed, "New timestamp version 2 must be >= 3")


def test_replayed_old_medium(rig: Rig) -> None:
    before = tree(rig.site.directory)
    for name in ("first", "second"):
        with pytest.raises(MetadataReplayed, match="timestamp"):
            mirror(rig.site, rig.directory / name)
    assert tree(rig.site.directory) == before


def test_rollback_of_targets_by_the_online_key(victim: Victim) -> None:
    old = (victim.rig.directory / "first/metadata/1.targets.json").read_bytes()
    victim.attacker.with_online_key(victim.rig.online, old, 1)
    victim.refuses(MetadataReplayed, "Expected targets.json version 1, got 3")


def test_rollback_of_targets_is_noticed_even_without_the_librarys_own_memory(rig: Rig) -> None:
    """python-tuf takes a broken local file for a missing one: our own record is the second memory."""
    attacker = Attacker(rig.depot.repository.directory)
    old = (rig.directory / "first/metadata/1.targets.json").read_bytes()
    attacker.with_online_key(rig.online, old, 1)
    for name in ("timestamp.json", "snapshot.json", "targets.json"):
        (rig.depot.directory / "trusted" / name).write_bytes(b"")
    with pytest.raises(MetadataReplayed, match="targets is version 1, and 3 was seen before"):
        rig.depot.client()


def test_expired_timestamp_is_a_freeze(rig: Rig) -> None:
    rig.depot.publish([rig.online], day(-31))
    with pytest.raises(MetadataExpired, match=r"timestamp.json is expired") as refused:
        rig.depot.client()
    assert "freehold depot publish" in str(refused.value)
    before = tree(rig.site.directory)
    with pytest.raises(MetadataExpired, match=r"timestamp\.json"):
        mirror(rig.site, rig.medium())
    assert tree(rig.site.directory) == before
    rig.depot.publish([rig.online], NOW)
    rig.depot.client()


@pytest.mark.parametrize("role", ["snapshot", "targets", "root"])
def test_every_role_expires(tmp_path: Path, role: str) -> None:
    rig = Rig(tmp_path)
    rig.found(now=day(-3))
    rig.release("1.0", now=day(-3))
    rig.depot.client()
    attacker = Attacker(rig.depot.repository.directory)
    listed = (attacker.repository / "metadata/1.targets.json").read_bytes()
    if role == "snapshot":
        snapshot = roles.new_snapshot(listed, 1, roles.Days(online=1), day(-2), 2)
        data = roles.sign(snapshot, rig.online).to_bytes()
        attacker.put("2.snapshot.json", data)
        attacker.put("timestamp.json", roles.sign(roles.new_timestamp(data, 2, DAYS, NOW, 2), rig.online).to_bytes())
    elif role == "targets":
        made = roles.new_targets([], roles.Days(targets=1), day(-2), 2)
        for name in ("alice", "bob"):
            roles.sign(made, rig.people[name])
        attacker.with_online_key(rig.online, made.to_bytes(), 2)
    else:
        people = {name: signer.public_key for name, signer in rig.people.items()}
        made_root = roles.new_root(people, rig.online.public_key, roles.Days(root=1), day(-2), attacker.root().signed)
        for name in ("alice", "bob"):
            roles.sign(made_root, rig.people[name])
        attacker.put("2.root.json", made_root.to_bytes())
    with pytest.raises(MetadataExpired, match=f"{role}.* is expired"):
        rig.depot.client()


def test_mix_and_match_of_two_states(victim: Victim) -> None:
    """The snapshot of one state with the targets of another, both well signed, under one version number."""
    attacker, rig = victim.attacker, victim.rig
    people = [rig.people["alice"], rig.people["bob"]]
    (target,) = rig.depot.packages()
    attacker.with_online_key(rig.online, attacker.targets([target], people, 4), 4)
    attacker.put("4.targets.json", attacker.targets([], people, 4))
    victim.refuses(MetadataIncomplete, "Observed length [0-9]+ does not match")


def test_mix_and_match_of_snapshots(victim: Victim) -> None:
    attacker = victim.attacker
    attacker.with_online_key(victim.rig.online, attacker.targets_file().to_bytes(), 3)
    other = roles.new_snapshot(b"{}", 3, DAYS, NOW, attacker.newest(Snapshot).signed.version)
    attacker.put("4.snapshot.json", roles.sign(other, victim.rig.online).to_bytes())
    victim.refuses(MetadataIncomplete, "Observed (length|hash)")


@pytest.mark.parametrize("name", ["timestamp.json", "2.root.json"])
def test_endless_metadata(victim: Victim, name: str) -> None:
    path = victim.attacker.repository / "metadata" / name
    path.touch()
    os.truncate(path, 1 << 40)
    victim.refuses(DataEndless, r"exceeding the maximum allowed length of (16384|512000)")


@pytest.mark.parametrize("role", ["targets", "snapshot"])
def test_endless_targets_metadata_and_snapshot(victim: Victim, role: str) -> None:
    attacker = victim.attacker
    forged = attacker.targets([], [victim.rig.people["alice"], victim.rig.people["bob"]], 4)
    attacker.with_online_key(victim.rig.online, forged, 4)
    number = 4 if role == "targets" else attacker.newest(Snapshot).signed.version
    name = f"{number}.{role}.json"
    os.truncate(attacker.repository / "metadata" / name, 1 << 40)
    victim.refuses(DataEndless, f"{re.escape(name)}.* exceeding")


def test_endless_target(rig: Rig) -> None:
    (file,) = (rig.depot.repository.directory / "targets/firmware").glob("*.bios-2.0.bin")
    os.truncate(file, 1 << 40)
    client = rig.depot.client()
    with pytest.raises(DataEndless, match="goes on behind its 6500 bytes"):
        client.open_verified(client.find(wanted("2.0")))


def test_endless_target_on_a_medium(rig: Rig) -> None:
    rig.release("3.0")
    medium, before = rig.medium(), tree(rig.site.directory)
    (file,) = (medium / "targets/firmware").glob("*.bios-3.0.bin")
    os.truncate(file, 1 << 40)
    with pytest.raises(DataEndless, match="more than the 6500 bytes"):
        mirror(rig.site, medium)
    assert tree(rig.site.directory) == before


def test_targets_signed_with_a_revoked_operator_key_after_rotation(victim: Victim) -> None:
    rig = victim.rig
    rig.people["dave"] = Ed25519Signer.generate()
    people = {name: rig.people[name].public_key for name in ("alice", "carol", "dave")}
    root = roles.new_root(people, rig.online.public_key, DAYS, NOW, victim.attacker.root().signed)
    for name in ("alice", "bob", "carol"):
        roles.sign(root, rig.people[name])
    victim.attacker.put("2.root.json", root.to_bytes())
    forged = victim.attacker.targets([], [rig.people["alice"], rig.people["bob"]], 4)
    victim.attacker.with_online_key(rig.online, forged, 4)
    victim.refuses(MetadataUnsigned, "1/2 keys")


@pytest.mark.parametrize("signers", [("mallory", "oscar"), ("alice", "mallory", "oscar"), ("alice", "bob")])
def test_a_root_needs_two_of_the_old_and_two_of_the_new_operators(victim: Victim, signers: tuple[str, ...]) -> None:
    rig = victim.rig
    rig.people |= {name: Ed25519Signer.generate() for name in ("mallory", "oscar", "trudy")}
    people = {name: rig.people[name].public_key for name in ("mallory", "oscar", "trudy")}
    root = roles.new_root(people, rig.online.public_key, DAYS, NOW, victim.attacker.root().signed)
    for name in signers:
        roles.sign(root, rig.people[name])
    victim.attacker.put("2.root.json", root.to_bytes())
    victim.refuses(MetadataUnsigned, "root was signed by [01]/2 keys")


def two_keys_for_alice(root: Root, rig: Rig) -> None:
    key = Ed25519Signer.generate()
    bob = rig.people["bob"].key_id
    made = roles.new_root(
        {"alice": key.public_key, "x": rig.people["bob"].public_key, "y": rig.people["carol"].public_key},
        rig.online.public_key, DAYS, NOW,
    ).signed  # fmt: skip
    root.keys[key.key_id] = made.keys[key.key_id]
    for role in ("root", "targets"):
        root.roles[role].keyids = [each for each in root.roles[role].keyids if each != bob] + [key.key_id]


def one_key_under_two_names(root: Root, rig: Rig) -> None:
    root.keys["ab" * 32] = type(root.keys[rig.people["alice"].key_id]).from_dict(
        "ab" * 32, {**root.keys[rig.people["alice"].key_id].to_dict(), roles.PERSON: "zoe"}
    )
    for role in ("root", "targets"):
        root.roles[role].keyids.append("ab" * 32)


def one_signature_is_enough(root: Root, rig: Rig) -> None:
    root.roles["targets"].threshold = 1


def nobodys_key(root: Root, rig: Rig) -> None:
    del root.keys[rig.people["alice"].key_id].unrecognized_fields[roles.PERSON]


def the_online_key_as_an_operator(root: Root, rig: Rig) -> None:
    root.keys[rig.online.key_id].unrecognized_fields[roles.PERSON] = "robot"
    for role in ("root", "targets"):
        root.roles[role].keyids.append(rig.online.key_id)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (two_keys_for_alice, "gives 'alice' two keys"),
        (one_key_under_two_names, "goes by another id than its own"),
        (one_signature_is_enough, "lets one person alone sign"),
        (nobodys_key, "does not say whose the key"),
        (the_online_key_as_an_operator, "does not say whose the key"),
    ],
)
def test_a_well_signed_root_that_breaks_the_rules_about_people(
    victim: Victim, change: Callable[[Root, Rig], None], words: str
) -> None:
    rig = victim.rig
    people = {name: signer.public_key for name, signer in rig.people.items()}
    root = roles.new_root(people, rig.online.public_key, DAYS, NOW, victim.attacker.root().signed)
    change(root.signed, rig)
    for signer in rig.people.values():
        roles.sign(root, signer)
    victim.attacker.put("2.root.json", root.to_bytes())
    listed = victim.attacker.targets([], rig.people.values(), 4)
    victim.attacker.with_online_key(rig.online, listed, 4)
    victim.refuses(PeopleRefused, words)


def test_fast_forward_by_the_online_key_is_recovered_from_by_a_new_one(rig: Rig) -> None:
    attacker = Attacker(rig.depot.repository.directory)
    honest = rig.medium("honest")
    attacker.with_online_key(rig.online, attacker.targets_file().to_bytes(), 3, ahead=1_000_000)
    assert rig.depot.client().seen.timestamp > 1_000_000
    shutil.rmtree(rig.depot.repository.directory)
    shutil.copytree(honest, rig.depot.repository.directory)
    with pytest.raises(MetadataReplayed):
        rig.depot.client()
    rig.online = Ed25519Signer.generate()
    rig.depot.rotate(None, rig.online.public_key, None, NOW)
    rig.publish()
    seen = rig.depot.client().seen
    assert (seen.root, seen.targets, seen.snapshot, seen.timestamp) == (2, 4, 1, 1)


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "link", "fifo", "folder"])
def test_half_copied_media_are_refused_whichever_file_it_is(rig: Rig, damage: str) -> None:
    """A new state on the medium; each of its files in turn is not what it should be."""
    known = tree(rig.medium())
    rig.release("3.0")
    whole = rig.medium("whole")
    before = tree(rig.site.directory)
    news = sorted(name for name in tree(whole) if name not in known)
    assert [name.partition("/")[2][:10] for name in news] == ["4.snapshot", "4.targets.", "firmware/1"], news
    news.append("metadata/timestamp.json")
    for name in news:
        medium = rig.medium()
        path = medium / name
        data = path.read_bytes()
        path.unlink()
        if damage in ("cut", "empty"):
            path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
        elif damage == "link":
            path.symlink_to(whole / name)
        elif damage == "fifo":
            os.mkfifo(path)
        elif damage == "folder":
            path.mkdir()
        with pytest.raises(MetadataIncomplete) as refused:
            mirror(rig.site, medium)
        assert path.name in str(refused.value)
        after = tree(rig.site.directory)
        assert {name: after[name] for name in before} == before
        assert rig.site.client().seen.targets == 3
    mirror(rig.site, whole)
    assert rig.site.client().find(wanted("3.0"))


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc/passwd", "a//b", ".hidden", "a/.", "", "a\nb"])
def test_no_name_leads_out_of_a_medium(tmp_path: Path, name: str) -> None:
    (tmp_path / "medium/a").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(MetadataIncomplete, match="is not a name of a file in a depot"):
        open_beneath(tmp_path / "medium", name)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "folder"):
        with pytest.raises(MetadataIncomplete, match="a link, a device or a folder"):
            open_beneath(tmp_path, name)


def test_no_linked_folder_leads_out_of_a_medium(tmp_path: Path) -> None:
    (tmp_path / "medium").mkdir()
    (tmp_path / "medium/targets").symlink_to("/etc")
    with pytest.raises(MetadataIncomplete, match="a link, a device or a folder"):
        open_beneath(tmp_path / "medium", "targets/passwd")


def test_a_signed_path_that_leads_out_is_refused(victim: Victim) -> None:
    """Even if two operators were made to sign it."""
    made = roles.new_targets(victim.rig.depot.packages(), DAYS, NOW, 4)
    (path,) = made.signed.targets
    file = made.signed.targets.pop(path)
    file.path = "firmware/../../../etc/cron.d/x"
    made.signed.targets[file.path] = file
    for name in ("alice", "bob"):
        roles.sign(made, victim.rig.people[name])
    victim.attacker.with_online_key(victim.rig.online, made.to_bytes(), 4)
    victim.refuses(DepotError, "the path is not KIND/FILE")


BIG = bytes(range(256)) * 4096 * 3 + b"tail"  # three chunks and a bit


def big(rig: Rig) -> tuple[DepotClient, Target, Path]:
    rig.release("3.0", data=BIG)
    client = rig.depot.client()
    target = client.find(wanted("3.0"))
    return client, target, rig.depot.repository.directory / "targets" / target.stored_name


@pytest.mark.parametrize("at", [0, 1, (1 << 20) - 1, 1 << 20, len(BIG) - 1])
def test_a_file_that_is_changed_between_check_and_use_is_not_handed_out(rig: Rig, at: int) -> None:
    client, target, stored = big(rig)
    with client.open_verified(target) as file:
        with stored.open("r+b") as attacker:
            attacker.seek(at)
            attacker.write(b"!")
        first = at // (1 << 20) * (1 << 20)
        assert file.read(first) == BIG[:first]
        with pytest.raises(TargetChanged, match=f"changed at byte {first} or behind"):
            file.read()
        if at < 1 << 20:
            file.seek(1 << 20)
            assert file.read() == BIG[1 << 20 :]
    with pytest.raises(TargetChanged):
        client.open_verified(target)


def test_a_file_that_is_cut_between_check_and_use_is_not_handed_out(rig: Rig) -> None:
    client, target, stored = big(rig)
    with client.open_verified(target) as file:
        os.truncate(stored, 2 << 20)
        assert file.read(2 << 20) == BIG[: 2 << 20]
        with pytest.raises(TargetChanged, match="it ends at byte 2097152"):
            file.read(1)


def test_a_file_that_changes_while_it_is_checked(rig: Rig) -> None:
    client, target, stored = big(rig)

    def change(at: int) -> Progress:
        def progress(done: int, _total: int) -> None:
            if done == 1 << 20:
                with stored.open("r+b") as attacker:
                    attacker.seek(at)
                    attacker.write(b"!")

        return progress

    with client.open_verified(target, change(0)) as file, pytest.raises(TargetChanged):
        file.read(1)
    stored.write_bytes(BIG)
    with pytest.raises(TargetChanged):
        client.open_verified(target, change(2 << 20))


def test_a_file_that_is_replaced_or_removed_after_the_check_does_not_matter(rig: Rig) -> None:
    client, target, stored = big(rig)
    with client.open_verified(target) as file:
        (stored.parent / "other").write_bytes(b"evil")
        (stored.parent / "other").rename(stored)
        assert file.read() == BIG
    stored.unlink()
    with pytest.raises(TargetChanged, match=r"the file of firmware/bios-3.0.bin is missing"):
        client.open_verified(target)


def test_a_verified_file_reads_like_a_file_and_has_no_way_round_the_check(rig: Rig) -> None:
    client, target, _ = big(rig)
    with client.open_verified(target) as file:
        for at, length in ((0, 10), (5, 1 << 20), ((1 << 20) - 3, 6), (len(BIG) - 2, 10), (len(BIG) + 5, 1)):
            assert file.seek(at) == at
            assert file.read(length) == BIG[at : at + length]
        assert file.seek(-4, os.SEEK_END) == len(BIG) - 4
        assert (file.read(), file.tell()) == (b"tail", len(BIG))
        with pytest.raises(OSError, match="fileno"):
            file.fileno()


def test_an_empty_package(rig: Rig) -> None:
    rig.release("3.0", data=b"")
    assert rig.depot.client().fetch(wanted("3.0"))[1] == b""


def test_media_errors_are_named(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    medium, before = rig.medium(), tree(rig.site.directory)

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("freehold.root_of_trust.depot.fetcher.open_beneath", broken)
    with pytest.raises(MetadataIncomplete, match="cannot be read: Input/output error"):
        mirror(rig.site, medium)
    assert tree(rig.site.directory) == before


def test_a_full_disk_loses_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.release("3.0")
    medium, before = rig.medium(), tree(rig.site.directory)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "move", full)
        with pytest.raises(MetadataIncomplete, match="No space left on device"):
            mirror(rig.site, medium)
    assert tree(rig.site.directory) == before
    assert mirror(rig.site, medium).copied


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = day(0)
        clock = self

        class Time(datetime):
            @classmethod
            def now(cls, tz: object = None) -> "datetime":  # type: ignore[override]
                return clock.now

        monkeypatch.setattr("tuf.ngclient._internal.trusted_metadata_set.datetime.datetime", Time)
        monkeypatch.setattr("freehold.root_of_trust.depot.trusted.pki.utc_now", lambda: clock.now)


def test_a_clock_set_forward_fails_closed_and_one_set_back_brings_nothing_to_life_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    before = rig.depot.client().seen.timestamp
    clock.now = day(40)  # the timestamp's 30 days are over, nobody looks, and the clock is set back
    clock.now = day(1)
    rig.depot.client()
    clock.now = day(40)
    with pytest.raises(MetadataExpired):
        rig.depot.client()
    clock.now = day(1)
    for _ in range(2):
        with pytest.raises(
            MetadataExpired, match=f"timestamp {before} had expired when this site looked before: the clock"
        ):
            rig.depot.client()
    with pytest.raises(MetadataExpired):
        DepotClient.look(rig.depot.directory)
    assert rig.depot.refresh_timestamp([rig.online], day(1))
    assert not rig.depot.refresh_timestamp([rig.online], day(1))
    assert rig.depot.client().seen.timestamp == before + 1


def test_what_a_clock_that_was_far_ahead_took_for_expired_is_signed_anew(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    clock.now = day(4000)
    with pytest.raises(MetadataExpired):
        rig.depot.client()
    clock.now = day(0)
    with pytest.raises(MetadataExpired, match="root 1 had expired"):
        rig.depot.client()
    people = {name: signer.public_key for name, signer in rig.people.items()}
    rig.depot.rotate(people, rig.online.public_key, None, day(0))
    rig.publish("alice", "bob")
    assert rig.depot.client().view.packages
