"""People with age identities, and vaults as they were written before."""

import os
from pathlib import Path

import msgspec
import pyrage
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from freehold.root_of_trust.kek import KeyEncryptionKey

IDENTITIES = {name: pyrage.x25519.Identity.generate() for name in ("alice", "bob", "carol")}
PEOPLE = {name: str(identity.to_public()) for name, identity in IDENTITIES.items()}


def identities(*names: str) -> list[str]:
    return [str(IDENTITIES[name]) for name in names]


def write_format_1(directory: Path, kek: KeyEncryptionKey, secrets: dict[str, bytes]) -> None:
    """A vault as Freehold 0.1 wrote it, spelt out here so that the code may change and the test may not."""
    (directory / "records").mkdir(parents=True, mode=0o700)
    (directory / "vault.json").write_text(f'{{"format":1,"kek_id":"{kek.key_id}"}}')
    for path, secret in secrets.items():
        file = directory / "records" / f"{path}@3"
        file.parent.mkdir(parents=True, exist_ok=True)
        context = f"freehold-vault/1\0{path}\0{3}".encode()
        key, nonce = AESGCM.generate_key(256), os.urandom(12)
        sealed = AESGCM(key).encrypt(nonce, secret, context)
        file.write_bytes(msgspec.json.encode({"wrapped_key": kek.wrap(key, context), "nonce": nonce, "sealed": sealed}))
