"""What publishing writes. Pure but for the signature of the online key: nothing is read and nothing is stored.

Rules, in order: a new root follows on the old one and is signed by enough people of both; it keeps the rules about
people and names an online key of ours; new targets follow on the old ones and are signed by enough people of the root
that is to hold; neither has expired. Snapshot and timestamp are always new.

Which online key signs is said by the root that is to hold, not by the vault: repeated after a crash, a publication ends
with the key that it began with.
"""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from tuf.api.metadata import Metadata, Root, Signed, T, Targets

from freehold.evidence import Signer
from freehold.root_of_trust.depot.errors import NotPublishable
from freehold.root_of_trust.depot.metadata import (
    days_of,
    lacking,
    new_snapshot,
    new_timestamp,
    online_key_of,
    people_of,
    sign,
)
from freehold.root_of_trust.depot.repository import Published


def assemble(
    published: Published | None,
    staged_root: Metadata[Root] | None,
    staged_targets: Metadata[Targets] | None,
    online: Collection[Signer],
    now: datetime,
) -> dict[str, bytes]:
    """File name to content, in the order in which they are to be written. `online`: the keys in the vault.

    Raises `NotPublishable`, `PeopleRefused`.
    """
    old_root = published.root if published else None
    old_targets = published.targets if published else None
    new_root = _unless_published("root", staged_root, old_root)
    targets = _unless_published("targets", staged_targets, old_targets)
    root = new_root or old_root
    if root is None or (targets or old_targets) is None:
        raise NotPublishable("nothing is published and nothing is staged", remedy="begin with `freehold depot init`")
    people_of(root.signed)
    signer = _named(root.signed, online)
    files: dict[str, bytes] = {}
    if new_root is not None:
        judges = [old_root.signed, root.signed] if old_root else [root.signed]
        _refuse_unless(lacking("root", root, judges), root.signed, now)
        files[f"{root.signed.version}.root.json"] = root.to_bytes()
    if targets is not None:
        _refuse_unless(lacking("targets", targets, [root.signed]), targets.signed, now)
        listed, version = targets.to_bytes(), targets.signed.version
        files[f"{version}.targets.json"] = listed
    else:
        assert published is not None
        _refuse_unless(lacking("targets", published.targets, [root.signed]), published.targets.signed, now)
        listed, version = published.targets_bytes, published.targets.signed.version
    days = days_of(root.signed)
    number = _next_version(published.snapshot if published else None, signer)
    snapshot = sign(new_snapshot(listed, version, days, now, number), signer).to_bytes()
    files[f"{number}.snapshot.json"] = snapshot
    count = _next_version(published.timestamp if published else None, signer)
    files["timestamp.json"] = sign(new_timestamp(snapshot, number, days, now, count), signer).to_bytes()
    return files


def needs_renewal(published: Published, now: datetime, expired: Mapping[str, int]) -> bool:
    """Whether half of the timestamp's life is over, or half of the snapshot's; or the root names another online key
    than signed them, since a crash cut its publication short; or a client has seen them expired (`Seen.expired`), by a
    clock that was ahead."""
    named = online_key_of(published.root.signed)
    if named not in published.timestamp.signatures or named not in published.snapshot.signatures:
        return True
    versions = {"timestamp": published.timestamp.signed.version, "snapshot": published.snapshot.signed.version}
    if any(version <= expired.get(role, 0) for role, version in versions.items()):
        return True
    half = days_of(published.root.signed).online * 86400 / 2
    soonest = min(published.timestamp.signed.expires, published.snapshot.signed.expires)
    return (soonest - now).total_seconds() < half


def _named(root: Root, online: Collection[Signer]) -> Signer:
    """The one of the keys that the root names."""
    wanted = online_key_of(root)
    for each in online:
        if each.key_id == wanted:
            return each
    raise NotPublishable(
        f"the root names the online key {wanted}, and the vault holds {', '.join(each.key_id for each in online)}",
        remedy="publish where the vault has that key, or name one of this vault: `freehold depot rotate`, "
        "with --online-key for a new one",
    )


def _next_version(before: Metadata[Any] | None, signer: Signer) -> int:
    """Versions go on as long as one key signs. Another key begins with 1: clients forget what the former one signed
    (TUF 5.3.11), and a thief may have used up its numbers."""
    if before is None or signer.key_id not in before.signatures:
        return 1
    return int(before.signed.version) + 1


def _unless_published(role: str, staged: Metadata[T] | None, old: Metadata[T] | None) -> Metadata[T] | None:
    """What is staged, unless a publication that was cut short has brought just that out already."""
    if staged is None or (old is not None and staged.signed_bytes == old.signed_bytes):
        return None
    wanted = old.signed.version + 1 if old is not None else 1
    if staged.signed.version != wanted:
        raise NotPublishable(
            f"the staged {role} is version {staged.signed.version}",
            expected=f"version {wanted}, which follows on what is published",
            remedy="stage it again: somebody published in between",
        )
    return staged


def _refuse_unless(problem: str | None, signed: Signed, now: datetime) -> None:
    if problem:
        raise NotPublishable(problem, remedy="let them sign with `freehold depot sign`, then publish again")
    if signed.is_expired(now):
        raise NotPublishable(
            f"{signed.type} version {signed.version} expired at {signed.expires:%Y-%m-%d %H:%M:%SZ}",
            remedy="stage it anew with `freehold depot rotate`, and let the operators sign",
        )
