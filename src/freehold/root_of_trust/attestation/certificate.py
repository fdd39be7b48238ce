"""X.509 certificates of TPM vendors (RFC 5280), read as they are: only the fields that an EK's chain is judged by.

`cryptography` refuses certificates that break DER, and vendors have burned such ones into chips by the million: names
whose SETs are out of order (Nuvoton, Nationz), serial numbers that are negative or padded (ST), ECDSA with a NULL
parameter (Intel's OnDie CA), a BasicConstraints that spells out its default, RSA keys marked for OAEP (ST), padding
behind the certificate in its NV index. None of it touches what a signature covers: that is verified over the bytes as
they came, and by `cryptography`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import load_der_public_key

from freehold.root_of_trust.attestation.errors import MalformedEvidenceError
from freehold.root_of_trust.attestation.reader import Reader, printable

MOST_BYTES = 8192
BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, OID, SEQUENCE, SET = 0x01, 0x02, 0x03, 0x04, 0x06, 0x30, 0x31
UTC_TIME, GENERALIZED_TIME, VERSION, UNIQUE_IDS, EXTENSIONS = 0x17, 0x18, 0xA0, (0x81, 0x82), 0xA3
STRINGS = {0x0C: "utf-8", 0x13: "ascii", 0x16: "ascii", 0x14: "latin-1", 0x1E: "utf-16-be"}
SIGNATURES: Mapping[str, tuple[type, hashes.HashAlgorithm]] = {
    "1.2.840.113549.1.1.5": (rsa.RSAPublicKey, hashes.SHA1()),  # noqa: S303 - see `Certificate.is_issued_by`
    "1.2.840.113549.1.1.11": (rsa.RSAPublicKey, hashes.SHA256()),
    "1.2.840.113549.1.1.12": (rsa.RSAPublicKey, hashes.SHA384()),
    "1.2.840.113549.1.1.13": (rsa.RSAPublicKey, hashes.SHA512()),
    "1.2.840.10045.4.3.2": (ec.EllipticCurvePublicKey, hashes.SHA256()),
    "1.2.840.10045.4.3.3": (ec.EllipticCurvePublicKey, hashes.SHA384()),
    "1.2.840.10045.4.3.4": (ec.EllipticCurvePublicKey, hashes.SHA512()),
}
ATTRIBUTES = {"2.5.4.3": "CN", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST", "2.5.4.10": "O", "2.5.4.11": "OU"}
KEY_USAGE, BASIC_CONSTRAINTS, EXTENDED_KEY_USAGE = "2.5.29.15", "2.5.29.19", "2.5.29.37"

Name = tuple[frozenset[tuple[str, str]], ...]
"""RelativeDistinguishedNames of (attribute's OID, text), in the certificate's order."""


@dataclass(frozen=True)
class Certificate:
    """`signed` is the TBSCertificate as it came; `serial` is in hex, as it came. `spki` is the DER of the key's
    SubjectPublicKeyInfo and `key_bits` what its BIT STRING holds: an RSAPublicKey, or a point.

    `path_length` counts the CAs that may follow (None: any number); usages are None where they are not restricted.
    """

    signed: bytes
    algorithm: str
    signature: bytes
    serial: str
    issuer: Name
    subject: Name
    not_before: datetime
    not_after: datetime
    spki: bytes
    key_bits: bytes
    is_authority: bool
    path_length: int | None
    key_usage: int | None  # the first 8 bits of KeyUsage: digitalSignature is 0x80
    extended_key_usage: frozenset[str] | None
    critical: frozenset[str]  # OIDs of the critical extensions

    @cached_property
    def key(self) -> PublicKeyTypes | None:
        """None where `cryptography` cannot load it."""
        try:
            return load_der_public_key(self.spki)
        except (ValueError, UnsupportedAlgorithm):
            return None

    def is_issued_by(self, issuer: "Certificate") -> bool:
        """The issuer's name stands in it and the issuer's key signed it; SHA-1 counts, so look at `uses_sha1`."""
        if self.issuer != issuer.subject or self.algorithm not in SIGNATURES:
            return False
        kind, algorithm = SIGNATURES[self.algorithm]
        key = issuer.key
        try:
            if kind is rsa.RSAPublicKey and isinstance(key, rsa.RSAPublicKey):
                key.verify(self.signature, self.signed, padding.PKCS1v15(), algorithm)
            elif kind is ec.EllipticCurvePublicKey and isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(self.signature, self.signed, ec.ECDSA(algorithm))
            else:
                return False
        except (InvalidSignature, ValueError, UnsupportedAlgorithm):
            return False
        return True

    @property
    def uses_sha1(self) -> bool:
        return self.algorithm in SIGNATURES and SIGNATURES[self.algorithm][1].name == "sha1"


def name_text(name: Name) -> str:
    """For people, in the order of RFC 4514: the most specific part first."""
    parts = (sorted(f"{ATTRIBUTES.get(oid, oid)}={text}" for oid, text in relative) for relative in reversed(name))
    return printable(",".join("+".join(part) for part in parts))


def read_certificate(data: bytes) -> Certificate:
    """The certificate at the front of `data`; what stands behind it is not looked at. Raises MalformedEvidenceError."""
    if len(data) > MOST_BYTES:
        raise MalformedEvidenceError(f"certificate: {len(data)} bytes, at most {MOST_BYTES} are read")
    whole = _Der(_Der(data).take_content(SEQUENCE))
    signed = whole.take_element(SEQUENCE)
    algorithm, signature = whole.algorithm(), whole.bits()
    whole.end()
    fields = _Der(_Der(signed).take_content(SEQUENCE))
    if fields.next == VERSION:
        fields.take_content(VERSION)
    serial = fields.take_content(INTEGER)
    if fields.algorithm() != algorithm:
        raise fields.wrong("it names two algorithms for one signature")
    issuer = fields.name()
    validity = _Der(fields.take_content(SEQUENCE))
    not_before, not_after = validity.time(), validity.time()
    subject = fields.name()
    spki = fields.take_element(SEQUENCE)
    key = _Der(_Der(spki).take_content(SEQUENCE))
    key.take_content(SEQUENCE)
    while fields.next in UNIQUE_IDS:
        fields.take_content(fields.next)
    extensions = _extensions(_Der(fields.take_content(EXTENSIONS))) if fields.left else {}
    fields.end()
    is_authority, path_length = _basic_constraints(extensions)
    return Certificate(
        signed=signed,
        algorithm=algorithm,
        signature=signature,
        serial=serial.hex(),
        issuer=issuer,
        subject=subject,
        not_before=not_before,
        not_after=not_after,
        spki=spki,
        key_bits=key.bits(),
        is_authority=is_authority,
        path_length=path_length,
        key_usage=(_Der(extensions[KEY_USAGE][1]).bits() or b"\0")[0] if KEY_USAGE in extensions else None,
        extended_key_usage=_extended_key_usage(extensions),
        critical=frozenset(oid for oid, (critical, _) in extensions.items() if critical),
    )


class _Der(Reader):
    """Elements with definite lengths, one after the other (X.690). Nothing here recurses."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, "certificate", "big")

    @property
    def next(self) -> int:
        """The tag of the next element, 0 at the end."""
        return self.data[self.at] if self.left else 0

    def take_element(self, tag: int) -> bytes:
        begin = self.at
        self.take_content(tag)
        return self.data[begin : self.at]

    def take_content(self, tag: int) -> bytes:
        if (found := self.u8()) != tag:
            raise self.wrong(f"an element {found:#04x} at offset {self.at - 1} where {tag:#04x} belongs")
        size = self.u8()
        if size & 0x80:
            if not 0x81 <= size <= 0x83:
                raise self.wrong(f"a length of {size & 0x7F} bytes at offset {self.at - 1}")
            size = int.from_bytes(self.take(size & 0x7F), "big")
        return self.take(size)

    def bits(self) -> bytes:
        return self.take_content(BIT_STRING)[1:]

    def oid(self) -> str:
        content = self.take_content(OID)
        if not 1 <= len(content) <= 32:
            raise self.wrong(f"an object identifier of {len(content)} bytes")
        first, *rest = content
        parts, number = [first // 40, first % 40], 0
        for byte in rest:
            number = number << 7 | byte & 0x7F
            if not byte & 0x80:
                parts.append(number)
                number = 0
        return ".".join(map(str, parts))

    def algorithm(self) -> str:
        """AlgorithmIdentifier; parameters are not looked at (NULL or nothing for all that are known here)."""
        return _Der(self.take_content(SEQUENCE)).oid()

    def name(self) -> Name:
        name, relatives = [], _Der(self.take_content(SEQUENCE))
        while relatives.left:
            parts, attributes = _Der(relatives.take_content(SET)), set()
            while parts.left:
                part = _Der(parts.take_content(SEQUENCE))
                oid, tag = part.oid(), part.next
                text = part.take_content(tag).decode(STRINGS.get(tag, "latin-1"), "replace")
                attributes.add((oid, text))
            name.append(frozenset(attributes))
        return tuple(name)

    def time(self) -> datetime:
        tag = self.next
        if tag not in (UTC_TIME, GENERALIZED_TIME):
            raise self.wrong(f"a time of type {tag:#04x}")
        text = self.take_content(tag).decode("ascii", "replace")
        if tag == UTC_TIME:  # RFC 5280, 4.1.2.5.1
            text = ("20" if text[:2] < "50" else "19") + text
        try:
            if len(text) != 15 or text[14] != "Z":
                raise ValueError
            return datetime.fromisoformat(f"{text[:8]}T{text[8:14]}+00:00")
        except ValueError as error:
            raise self.wrong(f"a time that cannot be read: {text!r}") from error


def _extensions(outer: _Der) -> dict[str, tuple[bool, bytes]]:
    """(critical, value) by OID."""
    extensions: dict[str, tuple[bool, bytes]] = {}
    listed = _Der(outer.take_content(SEQUENCE))
    outer.end()
    while listed.left:
        one = _Der(listed.take_content(SEQUENCE))
        oid = one.oid()
        critical = one.next == BOOLEAN and any(one.take_content(BOOLEAN))
        if oid in extensions:
            raise listed.wrong(f"the extension {oid} stands there twice")
        extensions[oid] = (critical, one.take_content(OCTET_STRING))
        one.end()
    return extensions


def _basic_constraints(extensions: Mapping[str, tuple[bool, bytes]]) -> tuple[bool, int | None]:
    if BASIC_CONSTRAINTS not in extensions:
        return False, None
    value = _Der(_Der(extensions[BASIC_CONSTRAINTS][1]).take_content(SEQUENCE))
    authority = value.next == BOOLEAN and any(value.take_content(BOOLEAN))
    length = int.from_bytes(value.take_content(INTEGER), "big") if value.left else None
    value.end()
    return authority, length


def _extended_key_usage(extensions: Mapping[str, tuple[bool, bytes]]) -> frozenset[str] | None:
    if EXTENDED_KEY_USAGE not in extensions:
        return None
    value, usages = _Der(_Der(extensions[EXTENDED_KEY_USAGE][1]).take_content(SEQUENCE)), set()
    while value.left:
        usages.add(value.oid())
    return frozenset(usages)
