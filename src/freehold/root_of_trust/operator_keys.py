"""An operator's own key: Ed25519 in PKCS #8 PEM, encrypted under a passphrase unless they refuse one."""

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from freehold.evidence import Ed25519Signer
from freehold.model.errors import FreeholdError


class OperatorKeyRefused(FreeholdError):
    """A key file that cannot be used, or must not be overwritten."""


def create(path: Path, passphrase: str | None) -> Ed25519Signer:
    """A new key at `path` (mode 0600), its public half beside it as `path.pub`. Raises `OperatorKeyRefused` if either
    exists: an overwritten key is a person who cannot approve any more."""
    key = Ed25519PrivateKey.generate()
    encryption: serialization.KeySerializationEncryption = (
        serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    signer = Ed25519Signer(key)
    for target, data, mode in ((path, pem, 0o600), (public_half(path), signer.public_key_pem, 0o644)):
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            raise OperatorKeyRefused(f"{target} exists", remedy="choose another file") from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    return signer


def public_half(path: Path) -> Path:
    return path.with_name(path.name + ".pub")


def is_encrypted(path: Path) -> bool:
    return b"ENCRYPTED" in path.read_bytes().partition(b"\n")[0]


def load(path: Path, passphrase: str | None) -> Ed25519Signer:
    """Raises `OperatorKeyRefused`; what it says never contains the passphrase."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), passphrase.encode() if passphrase else None)
    except (ValueError, TypeError) as error:
        wrong = "the passphrase is wrong, or the file is no key" if is_encrypted(path) else "the file is no private key"
        raise OperatorKeyRefused(f"{path} cannot be read: {wrong}", expected="PKCS #8 in PEM") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise OperatorKeyRefused(f"{path} holds a {type(key).__name__}", expected="an Ed25519 key")
    return Ed25519Signer(key)
