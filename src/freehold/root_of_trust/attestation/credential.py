"""TPM2_MakeCredential in software (TPM 2.0 Library, Part 1, 24 and annex B.10.4).

Only the TPM that holds both the EK and the AK of this name can recover the secret, so the EK certificate of one TPM
cannot vouch for the AK of another (CVE-2021-3406).
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from freehold.root_of_trust.attestation.errors import EndorsementKeyError
from freehold.root_of_trust.attestation.structures import Public


@dataclass(frozen=True, kw_only=True)
class Credential:
    """A whole TPM2B_ID_OBJECT and a whole TPM2B_ENCRYPTED_SECRET, as TPM2_ActivateCredential takes them."""

    blob: bytes
    encrypted_secret: bytes


def make_credential(ek: Public, ak_name: bytes, secret: bytes) -> Credential:
    """Encrypt `secret` (<= 32 bytes) to an RSA EK of template L-1 (SHA-256, AES-128-CFB) for the AK of this name."""
    if not isinstance(ek.key, rsa.RSAPublicKey) or ek.name_alg != "sha256" or len(secret) > 32:
        raise EndorsementKeyError("credential activation needs an RSA endorsement key of template L-1")
    seed = secrets.token_bytes(32)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=b"IDENTITY\0")
    # The seed is fresh, so the key is used once and the zero IV that Part 1, 24.5 asks for repeats nothing.
    cipher = Cipher(algorithms.AES(_kdfa(seed, b"STORAGE", ak_name, 16)), CFB(bytes(16))).encryptor()
    identity = cipher.update(_sized(secret)) + cipher.finalize()
    integrity = hmac.digest(_kdfa(seed, b"INTEGRITY", b"", 32), identity + ak_name, hashlib.sha256)
    return Credential(blob=_sized(_sized(integrity) + identity), encrypted_secret=_sized(ek.key.encrypt(seed, oaep)))


def _kdfa(key: bytes, label: bytes, context: bytes, size: int) -> bytes:
    """KDFa with SHA-256 (Part 1, 11.4.10.2) for at most one block of output, in bytes."""
    message = (1).to_bytes(4, "big") + label + b"\0" + context + (size * 8).to_bytes(4, "big")
    return hmac.digest(key, message, hashlib.sha256)[:size]


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
