"""Secure Boot keys for tests: RSA keys cost more than all else, so a few are made once and shared."""

import functools
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

from freehold.root_of_trust import pki
from freehold.root_of_trust.secure_boot_signing import Signer

NOW = datetime(2026, 11, 23, tzinfo=UTC)
LOADER = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
"""An unsigned PE image that every host of ours has (Debian package systemd-boot-efi)."""


@functools.cache
def signer(name: str) -> Signer:
    key = rsa.generate_private_key(65537, 2048)
    return Signer(pki.secure_boot_certificate(key, "lab", name, NOW), key)


def der(name: str) -> bytes:
    return pki.der(signer(name).certificate)
