"""What publishing writes. Pure but for the signature of the online key: nothing is read and nothing is stored.

Rules, in order: a new root follows on the old one and is signed by enough people of both; it keeps the rules about
people and names our online key; new targets follow on the old ones and are signed by enough people of the root that
is to hold; neither has expired. Snapshot and timestamp are always new.
"""

from datetime import datetime

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
    online: Signer,
    now: datetime,
) -> dict[str, bytes]:
    """File name to content, in the order in which they are to be written. Raises `NotPublishable`, `PeopleRefused`."""
    old_root = published.root if published else None
    old_targets = published.targets if published else None
    new_root = _unless_published("root", staged_root, old_root)
    targets = _unless_published("targets", staged_targets, old_targets)
    root = new_root or old_root
    if root is None or (targets or old_targets) is None:
        raise NotPublishable("nothing is published and nothing is staged", remedy="begin with `freehold depot init`")
    people_of(root.signed)
    if online_key_of(root.signed) != online.key_id:
        raise NotPublishable(
            f"the root names the online key {online_key_of(root.signed)}, and the vault holds {online.key_id}",
            remedy="publish where the vault has that key, or name this one by `freehold depot rotate`",
        )
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
    number = published.snapshot.signed.version + 1 if published else 1
    snapshot = sign(new_snapshot(listed, version, days, now, number), online).to_bytes()
    files[f"{number}.snapshot.json"] = snapshot
    count = published.timestamp.signed.version + 1 if published else 1
    files["timestamp.json"] = sign(new_timestamp(snapshot, number, days, now, count), online).to_bytes()
    return files


def needs_renewal(published: Published, now: datetime) -> bool:
    """Whether half of the timestamp's life is over, or half of the snapshot's."""
    half = days_of(published.root.signed).online * 86400 / 2
    soonest = min(published.timestamp.signed.expires, published.snapshot.signed.expires)
    return (soonest - now).total_seconds() < half


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
