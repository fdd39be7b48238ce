"""The four TUF roles, built and judged with python-tuf: bytes and objects in, objects out. No I/O, no clock.

Root and targets belong to the operators: two of at least three people have to sign, and each person has one key, which
the root names as theirs. Snapshot and timestamp belong to one key in the site's vault. What can be done with the online
key alone is to withhold news until the metadata expires; it can neither add a package nor bring an older list back.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.signer import Key, Signature, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Role, Root, Snapshot, T, Targets, Timestamp

from freehold.evidence import PublicKey, Signer
from freehold.root_of_trust.depot.errors import MetadataIncomplete, PeopleRefused
from freehold.root_of_trust.depot.package import Target, to_tuf

THRESHOLD = 2
PEOPLE = 3
PERSON = "x-freehold-person"
DAYS = "x-freehold-days"
_ASK = "do not use it; ask the operators what they signed, and when"
ROLES = ("root", "targets", "snapshot", "timestamp")


class Days(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long metadata is valid, in days. `online` is for snapshot and timestamp. The root carries it."""

    root: int = 730
    targets: int = 365
    online: int = 30


def new_root(
    people: Mapping[str, PublicKey], online: PublicKey, days: Days, now: datetime, previous: Root | None = None
) -> Metadata[Root]:
    """The unsigned root that follows `previous`, or the first one. Raises `PeopleRefused`."""
    check_people(people, online)
    keys = {key.key_id: _tuf_key(key, {PERSON: name}) for name, key in people.items()}
    root = Root(
        version=previous.version + 1 if previous else 1,
        expires=_expiry(now, days.root),
        keys={**keys, online.key_id: _tuf_key(online, {})},
        roles={
            **{role: Role(sorted(keys), THRESHOLD) for role in ("root", "targets")},
            **{role: Role([online.key_id], 1) for role in ("snapshot", "timestamp")},
        },
        consistent_snapshot=True,
        unrecognized_fields={DAYS: msgspec.to_builtins(days)},
    )
    return Metadata(root)


def new_targets(targets: Iterable[Target], days: Days, now: datetime, version: int) -> Metadata[Targets]:
    """The unsigned list of packages."""
    files = {target.path: to_tuf(target) for target in targets}
    return Metadata(Targets(version=version, expires=_expiry(now, days.targets), targets=files))


def new_snapshot(targets: bytes, targets_version: int, days: Days, now: datetime, version: int) -> Metadata[Snapshot]:
    """The unsigned statement of which targets metadata is the current one."""
    meta = {"targets.json": MetaFile.from_data(targets_version, targets, ["sha256"])}
    return Metadata(Snapshot(version=version, expires=_expiry(now, days.online), meta=meta))


def new_timestamp(
    snapshot: bytes, snapshot_version: int, days: Days, now: datetime, version: int
) -> Metadata[Timestamp]:
    """The unsigned statement of which snapshot is the current one."""
    meta = MetaFile.from_data(snapshot_version, snapshot, ["sha256"])
    return Metadata(Timestamp(version=version, expires=_expiry(now, days.online), snapshot_meta=meta))


def sign(metadata: Metadata[Any], signer: Signer) -> Metadata[Any]:
    """`metadata` with one more signature; the object is changed."""
    signature = signer.sign(metadata.signed_bytes)
    metadata.signatures[signer.key_id] = Signature(signer.key_id, signature.hex())
    return metadata


def parse(kind: type[T], data: bytes, name: str) -> Metadata[T]:
    """Decodes metadata without verifying it. Raises `MetadataIncomplete` if `name` is not metadata of that role."""
    try:
        found = Metadata[T].from_bytes(data)
    except RepositoryError as error:
        raise MetadataIncomplete(
            f"{name} is not TUF metadata: {error}", remedy="copy it again from where it is whole"
        ) from error
    if not isinstance(found.signed, kind):
        raise MetadataIncomplete(f"{name} is {found.signed.type} metadata", expected=f"{kind.type} metadata")
    return found


def check_people(people: Mapping[str, PublicKey], online: PublicKey | None = None) -> None:
    """One key per person, one person per key, and the key in the vault is nobody's. Raises `PeopleRefused`."""
    if len(people) < PEOPLE:
        raise PeopleRefused(
            f"the depot would have {len(people)} operators",
            expected=f"at least {PEOPLE}, so that {THRESHOLD} can still sign when one key is lost",
        )
    names: dict[str, str] = {}
    keys: dict[bytes, str] = {online.raw: "the depot's online key"} if online else {}
    for name, key in people.items():
        if not name or name != name.strip() or not name.isprintable():
            raise PeopleRefused(f"{name!r} is not a person's name", expected="printable characters, no outer spaces")
        if other := names.get(name.casefold()):
            raise PeopleRefused(f"{other!r} and {name!r} are one person with two keys", expected="one key per person")
        if holder := keys.get(key.raw):
            raise PeopleRefused(
                f"the key of {name!r} is also that of {holder!r}",
                expected="a key of their own for each person",
                remedy="two signatures must mean two people: let each make a key, on a machine or token of their own",
            )
        names[name.casefold()], keys[key.raw] = name, name


def people_of(root: Root) -> dict[str, str]:
    """Key id to person, of everyone who may sign root or targets.

    Raises `PeopleRefused` for a root that breaks the rules of this module, whoever signed it.
    """
    found: dict[str, PublicKey] = {}
    people: dict[str, str] = {}
    online = {key_id for role in ("snapshot", "timestamp") for key_id in root.roles[role].keyids}
    for key_id in sorted({*root.roles["root"].keyids, *root.roles["targets"].keyids}):
        key = root.keys.get(key_id)
        name = key.unrecognized_fields.get(PERSON) if key else None
        if key is None or not isinstance(name, str) or key_id in online:
            raise _bad_root(root, f"does not say whose the key {key_id} is")
        if name in found:
            raise _bad_root(root, f"gives {name!r} two keys")
        found[name], people[key_id] = _public_key(key), name
    if any(root.roles[role].threshold < THRESHOLD for role in ("root", "targets")):
        raise _bad_root(root, "lets one person alone sign")
    check_people(found)
    return people


def public_keys_of(root: Root) -> dict[str, PublicKey]:
    """Person to public key."""
    return {name: _public_key(root.keys[key_id]) for key_id, name in people_of(root).items()}


def online_key_of(root: Root) -> str:
    """Id of the key that signs the timestamp."""
    return ",".join(sorted(root.roles["timestamp"].keyids))


def days_of(root: Root) -> Days:
    """How long the operators want metadata to be valid."""
    return msgspec.convert(root.unrecognized_fields.get(DAYS, {}), Days)


def signed_by(role: str, metadata: Metadata[Any], roots: Collection[Root]) -> list[str]:
    """The people whose valid signatures are on it, by any of the roots."""
    found = set()
    for root in roots:
        result = root.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
        found |= {str(key.unrecognized_fields.get(PERSON, key_id)) for key_id, key in result.signed.items()}
    return sorted(found)


def lacking(role: str, metadata: Metadata[Any], roots: Collection[Root]) -> str | None:
    """What is missing for `metadata` to be accepted by each of the roots, in words."""
    for root in roots:
        result = root.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
        if not result:
            have = ", ".join(signed_by(role, metadata, [root])) or "nobody"
            others = sorted(str(key.unrecognized_fields.get(PERSON, key_id)) for key_id, key in result.unsigned.items())
            return (
                f"{role} version {metadata.signed.version} has {len(result.signed)} of {result.threshold} signatures "
                f"({have}); {result.missing} more of {', '.join(others)} must sign"
            )
    return None


def _tuf_key(key: PublicKey, fields: dict[str, str]) -> SSlibKey:
    """Freehold's key id is TUF's too: a person has one fingerprint everywhere."""
    made = SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(key.raw), key.key_id)
    made.unrecognized_fields.update(fields)
    return made


def _bad_root(root: Root, what: str) -> PeopleRefused:
    return PeopleRefused(f"root version {root.version} {what}", expected="two people, each with one key", remedy=_ASK)


def _public_key(key: Key) -> PublicKey:
    """Raises `PeopleRefused` for a key whose id is not that of its public half: one key could count twice."""
    try:
        found = PublicKey(Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.keyval["public"])))
    except (ValueError, KeyError, TypeError) as error:
        raise PeopleRefused(f"the key {key.keyid} is not an Ed25519 key", remedy=_ASK) from error
    if found.key_id != key.keyid:
        raise PeopleRefused(f"the key {key.keyid} goes by another id than its own", expected=found.key_id, remedy=_ASK)
    return found


def _expiry(now: datetime, days: int) -> datetime:
    return now.astimezone(UTC).replace(microsecond=0) + timedelta(days=days)
