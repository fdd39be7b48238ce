"""Endorsement keys as TPM vendors make and certify them (TCG EK Credential Profile 2.7, 2.2.1.4 and annex B)."""

import struct

ALG_NULL, ALG_RSA, ALG_AES, ALG_ECC, ALG_CFB = 0x0010, 0x0001, 0x0006, 0x0023, 0x0043
SHA256, SHA384 = 0x000B, 0x000C
P256, P384 = 0x0003, 0x0004
LOW_RANGE, HIGH_RANGE = 0x000300B2, 0x000300F2  # attributes: the high range may be used by password too
POLICY_A = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
POLICY_B = {
    SHA256: bytes.fromhex("ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0"),
    SHA384: bytes.fromhex(
        "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
    ),
}


def _public(kind: int, name_alg: int, attributes: int, policy: bytes, cipher_bits: int, rest: bytes) -> bytes:
    """A TPMT_PUBLIC; `rest` is what only this kind of key has, and its unique field."""
    start = struct.pack(">HHIH", kind, name_alg, attributes, len(policy)) + policy
    return start + struct.pack(">HHHH", ALG_AES, cipher_bits, ALG_CFB, ALG_NULL) + rest


def _rsa(bits: int, unique: bytes) -> bytes:
    return struct.pack(">HIH", bits, 0, len(unique)) + unique


def _ecc(curve: int, unique: bytes) -> bytes:
    return struct.pack(">HH", curve, ALG_NULL) + (struct.pack(">H", len(unique)) + unique) * 2


EK_TEMPLATE = _public(ALG_RSA, SHA256, LOW_RANGE, POLICY_A, 128, _rsa(2048, bytes(256)))
TEMPLATES = {
    0x01C00002: EK_TEMPLATE,
    0x01C0000A: _public(ALG_ECC, SHA256, LOW_RANGE, POLICY_A, 128, _ecc(P256, bytes(32))),
    0x01C00012: _public(ALG_RSA, SHA256, HIGH_RANGE, POLICY_B[SHA256], 128, _rsa(2048, b"")),
    0x01C00014: _public(ALG_ECC, SHA256, HIGH_RANGE, POLICY_B[SHA256], 128, _ecc(P256, b"")),
    0x01C00016: _public(ALG_ECC, SHA384, HIGH_RANGE, POLICY_B[SHA384], 256, _ecc(P384, b"")),
    0x01C0001C: _public(ALG_RSA, SHA384, HIGH_RANGE, POLICY_B[SHA384], 256, _rsa(3072, b"")),
    0x01C0001E: _public(ALG_RSA, SHA384, HIGH_RANGE, POLICY_B[SHA384], 256, _rsa(4096, b"")),
}
"""TPMT_PUBLIC to create the key from, by the NV index of its certificate: L-1, L-2, H-1, H-2, H-3, H-6, H-7. The first
that a TPM has a certificate for is its endorsement key; without any, L-1."""


def used_by_policy(public: bytes) -> bool:
    """The key is of the low range: every use needs a session that PolicySecret(endorsement) has opened."""
    return public[4:8] == struct.pack(">I", LOW_RANGE)
