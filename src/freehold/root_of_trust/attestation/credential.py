"""TPM2_MakeCredential in software (TPM 2.0 Library, Part 1, 24, annexes B.10.4 and C.6).

Only the TPM that holds both the EK and the AK of this name can recover the secret, so the EK certificate of one TPM
cannot vouch for the AK of another (CVE-2021-3406).
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from freehold.root_of_trust.attestation.errors import EndorsementKeyError
from freehold.root_of_trust.attestation.structures import ALG_AES, ALG_CFB, Public

HASHES: Mapping[str, hashes.HashAlgorithm] = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384()}


@dataclass(frozen=True, kw_only=True)
class Credential:
    """A whole TPM2B_ID_OBJECT and a whole TPM2B_ENCRYPTED_SECRET, as TPM2_ActivateCredential takes them."""

    blob: bytes
    encrypted_secret: bytes


def make_credential(ek: Public, ak_name: bytes, secret: bytes) -> Credential:
    """Encrypt `secret` (<= 32 bytes) to an EK of one of `ek.TEMPLATES` for the AK of this name."""
    symmetric = ek.symmetric
    if ek.name_alg not in HASHES or symmetric is None or symmetric[::2] != (ALG_AES, ALG_CFB) or len(secret) > 32:
        raise EndorsementKeyError("credential activation needs an endorsement key of a standard template")
    seed, encrypted_seed = _rsa_seed(ek.key, ek.name_alg) if isinstance(ek.key, rsa.RSAPublicKey) else _ecc_seed(ek)
    # The seed is fresh, so the key is used once and the zero IV that Part 1, 24.5 asks for repeats nothing.
    key = _kdfa(ek.name_alg, seed, b"STORAGE", ak_name, symmetric[1] // 8)
    cipher = Cipher(algorithms.AES(key), CFB(bytes(16))).encryptor()
    identity = cipher.update(_sized(secret)) + cipher.finalize()
    integrity_key = _kdfa(ek.name_alg, seed, b"INTEGRITY", b"", HASHES[ek.name_alg].digest_size)
    integrity = hmac.digest(integrity_key, identity + ak_name, ek.name_alg)
    return Credential(blob=_sized(_sized(integrity) + identity), encrypted_secret=_sized(encrypted_seed))


def _rsa_seed(key: rsa.RSAPublicKey, name_alg: str) -> tuple[bytes, bytes]:
    """A random seed, and it encrypted by OAEP (B.10.4)."""
    algorithm = HASHES[name_alg]
    seed = secrets.token_bytes(algorithm.digest_size)
    return seed, key.encrypt(seed, padding.OAEP(padding.MGF1(algorithm), algorithm, label=b"IDENTITY\0"))


def _ecc_seed(ek: Public) -> tuple[bytes, bytes]:
    """The seed that an ephemeral key and the EK agree on, and the ephemeral key's TPMS_ECC_POINT (C.6)."""
    assert isinstance(ek.key, ec.EllipticCurvePublicKey)
    size = (ek.key.key_size + 7) // 8
    ephemeral = ec.generate_private_key(ek.key.curve)
    ours, theirs = ephemeral.public_key().public_numbers(), ek.key.public_numbers()
    x, y = ours.x.to_bytes(size, "big"), ours.y.to_bytes(size, "big")
    shared = ephemeral.exchange(ec.ECDH(), ek.key)
    # KDFe (Part 1, 11.4.10.3), one block: the output is as long as the digest.
    message = (1).to_bytes(4, "big") + shared + b"IDENTITY\0" + x + theirs.x.to_bytes(size, "big")
    return hashlib.new(ek.name_alg, message).digest(), _sized(x) + _sized(y)


def _kdfa(algorithm: str, key: bytes, label: bytes, context: bytes, size: int) -> bytes:
    """KDFa (Part 1, 11.4.10.2) for at most one block of output; `size` in bytes."""
    message = (1).to_bytes(4, "big") + label + b"\0" + context + (size * 8).to_bytes(4, "big")
    return hmac.digest(key, message, algorithm)[:size]


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
