"""The vault: named secrets, each replaced and destroyed as a whole.

    EmbeddedVault    files of the state directory, under a key-encryption key (`embedded.py`)
    OpenBaoVault     the KV engine of an OpenBao server (`openbao.py`; imported by whoever needs it)

Both are a `Vault`; nothing above this package knows which.
"""

from freehold.root_of_trust.vault.credentials import Credential, CredentialSlots
from freehold.root_of_trust.vault.embedded import EmbeddedVault
from freehold.root_of_trust.vault.header import Header, read_header
from freehold.root_of_trust.vault.interface import (
    DestroyedKey,
    RecordReport,
    TamperedRecord,
    Vault,
    VaultError,
    WrongKeyEncryptionKey,
)

__all__ = [
    "Credential",
    "CredentialSlots",
    "DestroyedKey",
    "EmbeddedVault",
    "Header",
    "RecordReport",
    "TamperedRecord",
    "Vault",
    "VaultError",
    "WrongKeyEncryptionKey",
    "read_header",
]
