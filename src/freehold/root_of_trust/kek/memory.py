"""Key-encryption keys in the memory of this process: from a file or from a passphrase, both for development only."""

import hashlib
import os
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from freehold.evidence import durable
from freehold.root_of_trust.private_file import KeyFileRefused, read_private

DEVELOPMENT_ONLY = (
    "development only: the vault's key lies in a file beside the vault; whoever copies both reads every secret. "
    "Use a PKCS#11 token or a TPM on a real site: `freehold vault rekey`."
)
GUESSABLE = (
    "development only: a passphrase opens the vault; whoever copies the vault can guess at leisure, and the passphrase "
    "lies in a file for every unattended start. Use a PKCS#11 token or a TPM on a real site: `freehold vault rekey`."
)


class MemoryKek:
    """AES-256-GCM under a key in this process."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._key_id = hashlib.sha256(b"freehold-kek-id\0" + key).hexdigest()[:32]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._key_id})"

    @property
    def key_id(self) -> str:
        """A digest of the key."""
        return self._key_id

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """96-bit random nonce and ciphertext with tag."""
        nonce = os.urandom(12)
        return nonce + self._cipher.encrypt(nonce, key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Raises ValueError if the key, the context or a byte is another."""
        try:
            return self._cipher.decrypt(wrapped[:12], wrapped[12:], context)
        except InvalidTag:
            raise ValueError("the wrapped key does not unwrap") from None


class FileKek(MemoryKek):
    """32 random bytes in a file of mode 0600. `warning` is to be shown to the operator."""

    warning = DEVELOPMENT_ONLY

    @classmethod
    def create(cls, path: Path) -> "FileKek":
        """A new key at `path`, which must not exist."""
        _refuse_existing(path)
        durable.replace(path, os.urandom(32), 0o600)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> "FileKek":
        """Raises `KeyFileRefused` if the file is readable to others, a link, missing, or not 32 bytes."""
        key = read_private(path)
        if len(key) != 32:
            raise KeyFileRefused(f"{path} has {len(key)} bytes", expected="a key of 32 bytes")
        return cls(key)


class _ScryptParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """RFC 7914 parameters; memory is 128·r·n bytes."""

    salt: bytes
    n: int
    r: int = 8
    p: int = 1


class PassphraseKek(MemoryKek):
    """A key derived from a passphrase by scrypt; the file keeps salt and cost only. `warning` is to be shown."""

    warning = GUESSABLE

    @classmethod
    def create(cls, path: Path, passphrase: str, *, cost: int = 1 << 17) -> "PassphraseKek":
        """New parameters at `path`, which must not exist. The default cost takes 128 MiB and about half a second."""
        _refuse_existing(path)
        if len(passphrase) < 12:
            raise KeyFileRefused("the passphrase is too short", expected="at least 12 characters")
        parameters = _ScryptParameters(os.urandom(32), cost)
        durable.replace(path, msgspec.json.encode(parameters), 0o600)
        return cls.open(path, passphrase)

    @classmethod
    def open(cls, path: Path, passphrase: str) -> "PassphraseKek":
        """Derives the key. A wrong passphrase gives another key, which `Vault.open` refuses."""
        try:
            parameters = msgspec.json.decode(read_private(path), type=_ScryptParameters)
            if parameters.n > 1 << 20 or parameters.r > 16 or parameters.p > 4:
                raise ValueError("a cost beyond 2 GiB of memory")
            kdf = Scrypt(salt=parameters.salt, length=32, n=parameters.n, r=parameters.r, p=parameters.p)
        except (msgspec.MsgspecError, ValueError) as error:
            raise KeyFileRefused(f"{path} does not hold scrypt parameters: {error}") from error
        return cls(kdf.derive(passphrase.encode("utf-8")))


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise KeyFileRefused(f"{path} exists", remedy="open it; a new key would make the vault unreadable")
