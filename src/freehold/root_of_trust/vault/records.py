"""One secret at rest. Pure but for the key-encryption key: bytes in, bytes out.

Format 2 (JSON): `kek_id`, `at`, `wrapped_key` (the data key under the KEK), `recovery` (the data key under the recovery
key, authenticated) or null, `nonce`, `sealed` (AES-256-GCM under the data key). Path, version and time are
authenticated data of both layers, so a record that is moved, renamed or mixed from two is refused.

Format 1 had neither `kek_id` nor `at` nor `recovery`. It is read, and no longer written.
"""

import hmac
import os
from dataclasses import dataclass
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from freehold.root_of_trust import recovery as age
from freehold.root_of_trust.kek import KeyEncryptionKey


class RecoveryWrap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`tag`: HMAC-SHA256 by the vault's authentication key over context and `wrapped`: age cannot say who wrapped."""

    wrapped: bytes
    tag: bytes


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Format 2."""

    kek_id: str
    at: int
    wrapped_key: bytes
    recovery: RecoveryWrap | None
    nonce: bytes
    sealed: bytes


class _Format1(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    wrapped_key: bytes
    nonce: bytes
    sealed: bytes


@dataclass(frozen=True, slots=True)
class Keys:
    """What opens and makes the records of one vault. `kek` or `opener` is there: a recovered vault has no KEK yet."""

    kek_id: str
    kek: KeyEncryptionKey | None
    opener: age.RecoveryKey | None
    authentication: bytes
    recipient: str | None

    def __repr__(self) -> str:
        return f"Keys({self.kek_id})"


def seal(keys: Keys, path: str, version: int, at: int, secret: bytes) -> bytes:
    """A new record, under a new data key."""
    assert keys.kek is not None
    context = _context(path, version, at)
    key, nonce = AESGCM.generate_key(256), os.urandom(12)
    wrapped = age.wrap(key, keys.recipient) if keys.recipient else None
    record = Record(
        kek_id=keys.kek_id,
        at=at,
        wrapped_key=keys.kek.wrap(key, context),
        recovery=RecoveryWrap(wrapped, _tag(keys, context, wrapped)) if wrapped else None,
        nonce=nonce,
        sealed=AESGCM(key).encrypt(nonce, secret, context),
    )
    return msgspec.json.encode(record)


def unseal(keys: Keys, path: str, version: int, data: bytes) -> tuple[bytes, int | None]:
    """The secret, and when it was written. Raises ValueError for whatever is not this vault's record of that name."""
    record = decode(data)
    if isinstance(record, _Format1):
        if keys.kek is None:
            raise ValueError("format 1 cannot be recovered")
        context = f"freehold-vault/1\0{path}\0{version}".encode()
        return _open(keys.kek.unwrap(record.wrapped_key, context), record, context), None
    context = _context(path, version, record.at)
    if record.kek_id != keys.kek_id:
        raise ValueError("wrapped by another key-encryption key")
    if (record.recovery is None) != (keys.recipient is None):
        raise ValueError("the recovery wrap is missing, or should not be there")
    if record.recovery and not hmac.compare_digest(record.recovery.tag, _tag(keys, context, record.recovery.wrapped)):
        raise ValueError("the recovery wrap is not this record's")
    if keys.kek is not None:
        key = keys.kek.unwrap(record.wrapped_key, context)
    elif keys.opener is not None and record.recovery is not None:
        key = keys.opener.unwrap(record.recovery.wrapped)
    else:
        raise ValueError("no key opens this record")
    return _open(key, record, context), record.at


def decode(data: bytes) -> Record | _Format1:
    """Raises ValueError unless `data` is the one spelling of a record."""
    for format_ in (Record, _Format1):
        try:
            record: Any = msgspec.json.decode(data, type=format_)
        except msgspec.MsgspecError:
            continue
        if msgspec.json.encode(record) == data:
            return record  # type: ignore[no-any-return]
    raise ValueError("not a record, or another spelling of one")


def _open(key: bytes, record: Record | _Format1, context: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(record.nonce, record.sealed, context)
    except InvalidTag:
        raise ValueError("the secret does not decrypt") from None


def _context(path: str, version: int, at: int) -> bytes:
    return f"freehold-vault/2\0{path}\0{version}\0{at}".encode()


def _tag(keys: Keys, context: bytes, wrapped: bytes) -> bytes:
    return hmac.digest(keys.authentication, b"wrap\0" + context + b"\0" + wrapped, "sha256")
