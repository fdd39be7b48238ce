"""Operators' keys in files: Ed25519, PKCS #8 in PEM for the private half, with or without a passphrase."""

from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from freehold.evidence import Ed25519Signer
from freehold.root_of_trust.depot.errors import KeyRefusedHere

_MAKE = "make one with `openssl genpkey -algorithm ed25519 -aes256 -out NAME.pem`"


def read_private_key(path: Path, passphrase: Callable[[], str]) -> Ed25519Signer:
    """`passphrase` is asked only if the key is encrypted. Raises `KeyRefusedHere`."""
    data = path.read_bytes()
    try:
        try:
            key = serialization.load_pem_private_key(data, None)
        except TypeError:  # it is encrypted
            key = serialization.load_pem_private_key(data, passphrase().encode())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyRefusedHere(
            f"{path} cannot be read as a private key: wrong passphrase, or not PKCS #8 in PEM", remedy=_MAKE
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyRefusedHere(f"{path} holds a {type(key).__name__}", expected="an Ed25519 private key", remedy=_MAKE)
    return Ed25519Signer(key)
