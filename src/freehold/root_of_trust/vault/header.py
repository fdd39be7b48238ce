"""`vault/vault.json`: which key-encryption key, which people can recover, and which folder has the records.

The header of format 2 is authenticated: `tag` is an HMAC-SHA256 over all other fields, by a key that the KEK unwraps
from `authentication` and that two people together can derive. So nobody without one of them can add a person to the
recovery, or have the next secret encrypted to a recovery key of their own. Format 1 had `format` and `kek_id` only.
"""

import hmac
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from freehold.evidence import durable
from freehold.root_of_trust.kek import KeyEncryptionKey
from freehold.root_of_trust.recovery import Recovery, RecoveryKey, combine, share
from freehold.root_of_trust.vault.interface import TamperedRecord, VaultError, WrongKeyEncryptionKey
from freehold.root_of_trust.vault.records import Keys

FORMAT = 2
_CONTEXT = b"freehold-vault/2\0authentication"
_RECORDS = re.compile(r"records(\.[0-9a-f]{8})?\Z")


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`records`: the name of the folder. `authentication`: the authentication key under the KEK."""

    format: int
    kek_id: str
    records: str = "records"
    recovery: Recovery | None = None
    authentication: bytes = b""
    tag: bytes = b""


def read_header(directory: Path) -> Header:
    """Not authenticated yet. Raises `VaultError` if there is no vault, `TamperedRecord` for nonsense."""
    path = directory / "vault.json"
    try:
        header = msgspec.json.decode(path.read_bytes(), type=Header)
    except FileNotFoundError:
        raise VaultError(f"{directory} holds no vault", remedy="create one") from None
    except msgspec.MsgspecError as error:
        raise TamperedRecord(f"{path} is not a vault's header: {error}") from error
    if header.format not in (1, FORMAT):
        raise VaultError(f"the vault {directory} has format {header.format}", expected=f"format 1 or {FORMAT}")
    if not _RECORDS.match(header.records) or (header.format == 1 and header != Header(1, header.kek_id)):
        raise TamperedRecord(f"{path} is not a vault's header: fields that do not belong together")
    return header


def new_header(kek: KeyEncryptionKey, people: Mapping[str, str], records: str) -> tuple[Header, Keys]:
    """A header with a new recovery key for `people` (name -> age recipient); no people, no recovery."""
    key = RecoveryKey.generate() if people else None
    recovery = share(key, people) if key else None
    authentication = key.authentication if key else os.urandom(32)
    header = Header(FORMAT, kek.key_id, records, recovery, kek.wrap(authentication, _CONTEXT))
    keys = Keys(kek.key_id, kek, None, authentication, recovery.recipient if recovery else None)
    return msgspec.structs.replace(header, tag=_tag(header, authentication)), keys


def write_header(directory: Path, header: Header) -> None:
    durable.replace(directory / "vault.json", msgspec.json.encode(header), 0o600)


def keys_by_kek(directory: Path, header: Header, kek: KeyEncryptionKey) -> Keys:
    """Raises `WrongKeyEncryptionKey`, or `TamperedRecord` for a header that the vault did not write."""
    if header.kek_id != kek.key_id:
        raise WrongKeyEncryptionKey(
            f"the vault {directory} cannot be opened with this key-encryption key or passphrase",
            expected=f"key {header.kek_id}",
            remedy="give the key that the vault was made with",
        )
    if header.format == 1:
        return Keys(header.kek_id, kek, None, b"", None)
    try:
        authentication = kek.unwrap(header.authentication, _CONTEXT)
    except ValueError:
        raise _tampered(directory) from None
    return _authenticated(directory, header, authentication, kek=kek, opener=None)


def keys_by_people(directory: Path, header: Header, identities: Sequence[str]) -> Keys:
    """Raises `RecoveryRefused` for the wrong people, `VaultError` if the vault has no recovery, `TamperedRecord`."""
    if header.recovery is None:
        raise VaultError(
            f"the vault {directory} was made without recovery",
            remedy="open it with its key-encryption key, then give it people: `freehold vault rekey --recovery …`",
        )
    key = combine(header.recovery, identities)
    return _authenticated(directory, header, key.authentication, kek=None, opener=key)


def _authenticated(directory: Path, header: Header, authentication: bytes, **who: Any) -> Keys:
    if not hmac.compare_digest(header.tag, _tag(header, authentication)):
        raise _tampered(directory)
    recipient = header.recovery.recipient if header.recovery else None
    return Keys(header.kek_id, authentication=authentication, recipient=recipient, **who)


def _tag(header: Header, authentication: bytes) -> bytes:
    body = msgspec.json.encode(msgspec.structs.replace(header, tag=b""))
    return hmac.digest(authentication, b"header\0" + body, "sha256")


def _tampered(directory: Path) -> TamperedRecord:
    return TamperedRecord(
        f"{directory / 'vault.json'} was changed by somebody who has neither the key nor two people",
        remedy="restore the vault from a copy; a crash cannot cause this",
    )
