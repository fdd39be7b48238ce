"""Who signs evidence: an Ed25519 key, named by the SHA-256 of its public half."""

import hashlib
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from freehold.model.errors import FreeholdError


class KeyRefused(FreeholdError):
    """A key that is not an Ed25519 key in PEM."""


class Signer(Protocol):
    """Signs bytes with a key that need not be in this process (a PKCS#11 token can stand behind it)."""

    @property
    def key_id(self) -> str:
        """SHA-256 of the DER SubjectPublicKeyInfo, 64 lower-case hex digits."""

    @property
    def public_key_pem(self) -> bytes:
        """SubjectPublicKeyInfo in PEM."""

    def sign(self, message: bytes) -> bytes:
        """An Ed25519 signature (64 bytes, RFC 8032) over `message`."""


class PublicKey:
    """The half that verifies."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self.raw = key.public_bytes_raw()
        self.pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.key_id = hashlib.sha256(der).hexdigest()

    @classmethod
    def from_pem(cls, pem: bytes) -> "PublicKey":
        """Raises `KeyRefused` for anything but an Ed25519 public key."""
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise KeyRefused("this is not a public key in PEM", expected="-----BEGIN PUBLIC KEY-----") from error
        if not isinstance(key, Ed25519PublicKey):
            raise KeyRefused(f"this is a {type(key).__name__}", expected="an Ed25519 public key")
        return cls(key)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` over `message` is this key's."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


class Ed25519Signer:
    """A `Signer` whose private half is in memory."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = PublicKey(key.public_key())

    @classmethod
    def generate(cls) -> "Ed25519Signer":
        """A new random key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_private_pem(cls, pem: bytes) -> "Ed25519Signer":
        """Reads an unencrypted PKCS #8 PEM."""
        key = serialization.load_pem_private_key(pem, None)
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyRefused(f"this is a {type(key).__name__}", expected="an Ed25519 private key")
        return cls(key)

    @property
    def key_id(self) -> str:
        """SHA-256 of the DER SubjectPublicKeyInfo, hex."""
        return self.public_key.key_id

    @property
    def public_key_pem(self) -> bytes:
        """SubjectPublicKeyInfo in PEM."""
        return self.public_key.pem

    def sign(self, message: bytes) -> bytes:
        """RFC 8032 Ed25519 over `message`."""
        return self._key.sign(message)
