"""TPM 2.0 structures, parsed strictly: unknown algorithms, wrong sizes and trailing bytes are refused.

Clauses are of the TPM 2.0 Library, Part 2. Names are computed here from the public area and never taken from a peer
(Part 1, 16).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntFlag

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from freehold.root_of_trust.attestation.reader import Reader

ALG_NULL, ALG_RSA, ALG_AES, ALG_ECC = 0x0010, 0x0001, 0x0006, 0x0023
ALG_RSASSA, ALG_RSAPSS, ALG_ECDSA = 0x0014, 0x0016, 0x0018
ALG_CFB = 0x0043
HASHES = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
CURVES: Mapping[int, ec.EllipticCurve] = {0x0003: ec.SECP256R1(), 0x0004: ec.SECP384R1()}
GENERATED_VALUE, ST_ATTEST_QUOTE = 0xFF544347, 0x8018


class Attributes(IntFlag):
    """TPMA_OBJECT (8.3)."""

    FIXED_TPM = 1 << 1
    ST_CLEAR = 1 << 2
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    USER_WITH_AUTH = 1 << 6
    ADMIN_WITH_POLICY = 1 << 7
    NO_DA = 1 << 10
    ENCRYPTED_DUPLICATION = 1 << 11
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Public:
    """TPMT_PUBLIC (12.2.4), RSA or ECC. `symmetric` is (algorithm, bits, mode) or None, `scheme` (algorithm, hash)."""

    raw: bytes
    type: int
    name_alg: str
    attributes: Attributes
    auth_policy: bytes
    symmetric: tuple[int, int, int] | None
    scheme: tuple[int, str] | None
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey

    @property
    def name(self) -> bytes:
        """nameAlg || H(public area) (Part 1, 16)."""
        algorithm = next(number for number, name in HASHES.items() if name == self.name_alg)
        return algorithm.to_bytes(2, "big") + hashlib.new(self.name_alg, self.raw).digest()


@dataclass(frozen=True, kw_only=True)
class ClockInfo:
    """TPMS_CLOCK_INFO (10.11.1): `clock` in milliseconds; `reset_count` goes back only by TPM2_Clear or another TPM."""

    clock: int
    reset_count: int
    restart_count: int
    safe: bool


@dataclass(frozen=True, kw_only=True)
class Attest:
    """TPMS_ATTEST (10.12.12) of a quote. `selection` maps bank to PCR indices as the TPM selected them."""

    raw: bytes
    qualified_signer: bytes
    extra_data: bytes
    clock: ClockInfo
    firmware_version: int
    selection: Mapping[str, tuple[int, ...]]
    pcr_digest: bytes


@dataclass(frozen=True, kw_only=True)
class Signature:
    """TPMT_SIGNATURE (11.3.4): `value` is the RSA signature, or (r, s) of ECDSA."""

    scheme: int
    hash: str
    value: bytes | tuple[int, int]


def parse_public(data: bytes) -> Public:
    """A whole TPMT_PUBLIC; raises MalformedEvidenceError."""
    reader = Reader(data, "TPMT_PUBLIC", "big")
    kind, name_alg, attributes = reader.u16(), _hash(reader), reader.u32()
    if attributes & ~sum(Attributes):
        raise reader.wrong(f"reserved attribute bits in {attributes:#x}")
    policy = reader.sized(64)
    if kind not in (ALG_RSA, ALG_ECC):
        raise reader.wrong(f"key type {kind:#06x} is neither RSA nor ECC")
    cipher = reader.u16()
    symmetric = None if cipher == ALG_NULL else (cipher, reader.u16(), reader.u16())
    signing = reader.u16()
    if signing not in (ALG_NULL, ALG_RSASSA, ALG_RSAPSS, ALG_ECDSA):
        raise reader.wrong(f"scheme {signing:#06x} is not a known signing scheme")
    scheme = None if signing == ALG_NULL else (signing, _hash(reader))
    key = _rsa_key(reader) if kind == ALG_RSA else _ecc_key(reader)
    reader.end()
    return Public(
        raw=data,
        type=kind,
        name_alg=name_alg,
        attributes=Attributes(attributes),
        auth_policy=policy,
        symmetric=symmetric,
        scheme=scheme,
        key=key,
    )


def parse_attest(data: bytes) -> Attest:
    """A whole TPMS_ATTEST that holds a quote: magic, then type, then the rest; raises MalformedEvidenceError."""
    reader = Reader(data, "TPMS_ATTEST", "big")
    if (magic := reader.u32()) != GENERATED_VALUE:
        raise reader.wrong(f"magic {magic:#010x} is not TPM_GENERATED: no TPM made this structure")
    if (kind := reader.u16()) != ST_ATTEST_QUOTE:
        raise reader.wrong(f"type {kind:#06x} is not a quote")
    signer, extra = reader.sized(68), reader.sized(68)
    clock, reset_count, restart_count, safe = reader.u64(), reader.u32(), reader.u32(), reader.u8()
    if safe > 1:
        raise reader.wrong(f"safe is {safe}, not a TPMI_YES_NO")
    firmware_version = reader.u64()
    selection = _selection(reader)
    digest = reader.sized(64)
    reader.end()
    return Attest(
        raw=data,
        qualified_signer=signer,
        extra_data=extra,
        clock=ClockInfo(clock=clock, reset_count=reset_count, restart_count=restart_count, safe=bool(safe)),
        firmware_version=firmware_version,
        selection=selection,
        pcr_digest=digest,
    )


def parse_signature(data: bytes) -> Signature:
    """A whole TPMT_SIGNATURE; raises MalformedEvidenceError."""
    reader = Reader(data, "TPMT_SIGNATURE", "big")
    scheme, name = reader.u16(), _hash(reader)
    value: bytes | tuple[int, int]
    if scheme == ALG_ECDSA:
        value = (int.from_bytes(reader.sized(66), "big"), int.from_bytes(reader.sized(66), "big"))
    elif scheme in (ALG_RSASSA, ALG_RSAPSS):
        value = reader.sized(512)
    else:
        raise reader.wrong(f"scheme {scheme:#06x} is not RSASSA, RSAPSS or ECDSA")
    reader.end()
    return Signature(scheme=scheme, hash=name, value=value)


def _hash(reader: Reader) -> str:
    number = reader.u16()
    if number not in HASHES:
        raise reader.wrong(f"hash algorithm {number:#06x} is unknown")
    return HASHES[number]


def _rsa_key(reader: Reader) -> rsa.RSAPublicKey:
    bits, exponent = reader.u16(), reader.u32() or 65537
    modulus = reader.sized(512)
    if bits not in (2048, 3072, 4096) or exponent != 65537 or len(modulus) * 8 != bits or not modulus[0] & 0x80:
        raise reader.wrong(f"RSA key of {bits} bits with exponent {exponent} and a modulus of {len(modulus)} bytes")
    return rsa.RSAPublicNumbers(exponent, int.from_bytes(modulus, "big")).public_key()


def _ecc_key(reader: Reader) -> ec.EllipticCurvePublicKey:
    curve, kdf = reader.u16(), reader.u16()
    x, y = reader.sized(66), reader.sized(66)
    if curve not in CURVES or kdf != ALG_NULL:
        raise reader.wrong(f"ECC curve {curve:#06x} with KDF {kdf:#06x} is not supported")
    try:
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), CURVES[curve])
        return numbers.public_key()
    except ValueError as error:
        raise reader.wrong("the ECC point is not on its curve") from error


def _selection(reader: Reader) -> Mapping[str, tuple[int, ...]]:
    """TPML_PCR_SELECTION (10.9.7); a bank may stand there once."""
    selection: dict[str, tuple[int, ...]] = {}
    if (count := reader.u32()) > len(HASHES):
        raise reader.wrong(f"{count} PCR banks")
    for _ in range(count):
        bank, size = _hash(reader), reader.u8()
        if size > 4 or bank in selection:
            raise reader.wrong(f"PCR selection of {size} bytes, or {bank} twice")
        bitmap = int.from_bytes(reader.take(size), "little")
        selection[bank] = tuple(index for index in range(size * 8) if bitmap & 1 << index)
    return selection
