"""Another online key for the depot, in the place of the one that signs snapshot and timestamp.

    vault   site/keys/depot         the key that counts
            site/keys/depot-next    the next one, until it has taken its place

The vault does not say which of the two signs: the depot's root names one, and two operators sign the root. So a crash
at any moment leaves a depot that can be published. The next key is made before a root names it; the former one is
destroyed when the root that names the other is out, and was verified as clients verify it.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric import ed25519

from freehold.evidence import Ed25519Signer, PublicKey
from freehold.root_of_trust.depot import Depot, DepotClient
from freehold.root_of_trust.depot.metadata import Days, online_key_of
from freehold.root_of_trust.depot.repository import Published
from freehold.root_of_trust.keys import StoredKey, depot_key, encode_key, key_path, make_depot_key
from freehold.root_of_trust.vault import Vault

_CURRENT, _NEXT = key_path("depot"), key_path("depot-next")


class Publication(NamedTuple):
    """What came out. `replaced`: whether the online key is another one since."""

    published: Published
    client: DepotClient
    replaced: bool


def online_keys(vault: Vault) -> tuple[Ed25519Signer, ...]:
    """The keys that the root may name: the present one and the next. Raises `SiteKeysError` if there is none."""
    found = tuple(signer for path in (_CURRENT, _NEXT) if (signer := _signer(vault, path)) is not None)
    return found or (depot_key(vault),)


def rotate(
    depot: Depot,
    vault: Vault,
    people: Mapping[str, PublicKey] | None,
    days: Days,
    now: datetime,
    *,
    replace_online_key: bool = False,
) -> str:
    """Stages the next root and list; the id of the online key that the root names. Can be repeated.

    A key that was made for an earlier attempt and never published is destroyed, whichever key is named now: a thief may
    have had the time to take it. Raises what `Depot.rotate` raises.
    """
    settle(vault, depot.online_key())  # first: the next key may be the one that the published root names
    if replace_online_key:
        key = ed25519.Ed25519PrivateKey.generate()
        vault.put(_NEXT, encode_key(key, None))
        online = Ed25519Signer(key)
    else:
        online = make_depot_key(vault)
    depot.rotate(people, online.public_key, days, now)
    if not replace_online_key:
        vault.destroy(_NEXT)  # last: until now a staged root may have named it
    return online.key_id


def publish(depot: Depot, vault: Vault, now: datetime, carried: Iterable[Path] = ()) -> Publication:
    """`Depot.publish`, then a look as clients look, then the vault: the key that the root names becomes the present
    one, and the former one is destroyed. Can be repeated. Raises `NotPublishable`, `MetadataRefused`."""
    published = depot.publish(online_keys(vault), now, carried)
    client = depot.client()
    return Publication(published, client, settle(vault, online_key_of(client.view.root)))


def settle(vault: Vault, named: str) -> bool:
    """The next key takes its place if it is the one that the published root names; whether it did."""
    record = vault.get(_NEXT)
    if record is None or _decoded(record).key_id != named:
        return False
    vault.put(_CURRENT, record)
    vault.destroy(_NEXT)  # last: a crash between the two leaves it twice
    return True


def _signer(vault: Vault, path: str) -> Ed25519Signer | None:
    record = vault.get(path)
    return _decoded(record) if record is not None else None


def _decoded(record: bytes) -> Ed25519Signer:
    return Ed25519Signer.from_private_pem(msgspec.json.decode(record, type=StoredKey).private_key.encode())
