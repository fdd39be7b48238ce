"""`freehold depot rotate --online-key`: what people see and do when the depot's online key is replaced."""

import hashlib
import shutil
from pathlib import Path

import pytest
from cli_support import Answer, Shell
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from freehold.orchestration.opening import open_vault
from freehold.root_of_trust.depot import Depot
from freehold.root_of_trust.depot import metadata as roles
from freehold.root_of_trust.keys import depot_key
from freehold.root_of_trust.online_key import online_keys
from freehold.root_of_trust.pki import utc_now

PEOPLE = ("alice", "bob", "carol")
PUBLIC = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
PRIVATE = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir()
    for name in PEOPLE:
        key = ed25519.Ed25519PrivateKey.generate()
        (folder / f"{name}.pem").write_bytes(key.private_bytes(*PRIVATE))
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(*PUBLIC))
    return folder


def sign(shell: Shell, keys: Path, name: str) -> Answer:
    return shell("depot", "sign", "--key", keys / f"{name}.pem", "--yes")


@pytest.fixture
def published(shell: Shell, keys: Path) -> Shell:
    """An empty list is out."""
    people = [word for name in PEOPLE for word in ("--operator", f"{name}={keys / f'{name}.pub'}")]
    assert shell("depot", "init", *people).code == 0
    for name in ("alice", "bob"):
        assert sign(shell, keys, name).code == 0
    assert shell("depot", "publish").code == 0
    return shell


def held(shell: Shell) -> list[str]:
    return [path for path in open_vault(shell.state).paths("site/keys") if "depot" in path]


def test_a_stolen_online_key_is_replaced_and_its_signatures_are_refused(
    published: Shell, keys: Path, tmp_path: Path
) -> None:
    repository = published.state / "depot/repository"
    first = (repository / "metadata/1.root.json").read_bytes()
    stolen = depot_key(open_vault(published.state))
    answer = published("depot", "rotate", "--online-key")
    assert answer.code == 0, answer
    assert f"until this is published it is {stolen.key_id}\n" in answer.out
    assert "two of the old and two of the new operators sign it: freehold depot sign --key FILE" in answer.out
    assert f"this online key takes the place of {stolen.key_id}, which then counts no more" in (
        sign(published, keys, "carol").out
    )
    answer = published("depot", "publish")
    assert answer.code == 1
    assert "root version 2 has 1 of 2 signatures (carol)" in answer.err
    assert sign(published, keys, "bob").code == 0
    answer = published("depot", "publish")
    assert answer.code == 0, answer
    made = depot_key(open_vault(published.state))
    assert f"online key {made.key_id}; the former one is destroyed: carry this root to every site" in answer.out
    assert held(published) == ["site/keys/depot"]
    assert made.key_id != stolen.key_id
    assert "online key" not in published("depot", "publish").out
    assert published("depot", "verify", "-o", "json").json()["seen"]["online_key"] == made.key_id

    medium = tmp_path / "medium"
    shutil.copytree(repository, medium)
    listed = (medium / "metadata/2.targets.json").read_bytes()
    snapshot = roles.sign(roles.new_snapshot(listed, 2, roles.Days(), utc_now(), 9), stolen).to_bytes()
    stamp = roles.sign(roles.new_timestamp(snapshot, 9, roles.Days(), utc_now(), 9), stolen)
    (medium / "metadata/9.snapshot.json").write_bytes(snapshot)
    (medium / "metadata/timestamp.json").write_bytes(stamp.to_bytes())
    assert published("depot", "verify", medium).code == 3
    published.state = tmp_path / "site"
    (tmp_path / "root").write_bytes(first)
    digest = hashlib.sha256(first).hexdigest()
    assert published("depot", "init", "--root", tmp_path / "root", "--sha256", digest).code == 0
    answer = published("depot", "mirror", medium)
    assert answer.code == 1
    assert "timestamp was signed by 0/1 keys" in answer.err
    assert published("depot", "mirror", repository).code == 0


def test_a_publication_that_was_killed_before_the_vault_changed_is_finished(published: Shell, keys: Path) -> None:
    """All is out, and the vault has both keys still: `publish`, or the next `rotate`, ends it."""
    made = published("depot", "rotate", "--online-key", "-o", "json").json()["online_key"]
    for name in ("alice", "bob"):
        sign(published, keys, name)
    vault = open_vault(published.state)
    Depot(published.state / "depot").publish(online_keys(vault), utc_now())
    assert held(published) == ["site/keys/depot", "site/keys/depot-next"]
    assert published("depot", "verify").code == 0
    assert published("depot", "publish", "-o", "json").json()["online_key_replaced"]
    assert held(published) == ["site/keys/depot"]
    assert depot_key(open_vault(published.state)).key_id == made
    assert published("depot", "rotate", "-o", "json").json()["online_key"] == made
    assert "online key" not in published("depot", "rotate").out


def test_where_nothing_is_published_no_key_is_replaced(shell: Shell) -> None:
    answer = shell("depot", "rotate", "--online-key")
    assert answer.code == 1
    assert "nothing is published" in answer.err
    assert not (shell.state / "vault").exists()
