"""Key-encryption keys: what stands between a stolen disk and the vault.

    memory.py    a file beside the vault, or a passphrase: for development, and they say so
    pkcs11.py    an AES key that never leaves its PKCS#11 token
    tpm.py       32 random bytes sealed in the controller's TPM, released only while PCR 7 is as it was
    transit.py   a key that never leaves OpenBao's transit engine

The last three are imported by whoever needs them: each brings a library or a tool of its own.
"""

from typing import Protocol

from freehold.model.errors import FreeholdError
from freehold.root_of_trust.kek.memory import DEVELOPMENT_ONLY, FileKek, MemoryKek, PassphraseKek
from freehold.root_of_trust.private_file import KeyFileRefused

__all__ = [
    "DEVELOPMENT_ONLY",
    "CustodyUnavailable",
    "FileKek",
    "KeyEncryptionKey",
    "KeyFileRefused",
    "MemoryKek",
    "PassphraseKek",
]


class CustodyUnavailable(FreeholdError):
    """What keeps the secrets is out of reach: a token, a TPM, a server. No record was changed, none is lost."""


class KeyEncryptionKey(Protocol):
    """Wraps 32-byte data keys. `context` is authenticated: unwrapping with another raises ValueError.

    A key that is not in this process can be out of reach: then each call raises `CustodyUnavailable`, never ValueError.
    """

    @property
    def key_id(self) -> str:
        """Names the key without helping to guess it; 32 hex digits."""

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """The key, encrypted."""

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """The key again, or ValueError."""
