"""What firmware verifies: Authenticode signatures of images (Windows Authenticode PE Format; UEFI 2.10, 32.2.4) and
authenticated variables (UEFI 2.10, 8.2.2). Both are PKCS #7 SignedData over SHA-256, by an RSA key.

The key may be anything that `cryptography` takes for an RSA private key: one in memory, or one that never leaves its
token (`secure_boot_token`). An image may bear several signatures: while db changes, one of the old and one of the new
key, so that it starts wherever either is enrolled.
"""

import hashlib
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from freehold.model.errors import FreeholdError
from freehold.root_of_trust.attestation.pe import authenticode, parse_image
from freehold.root_of_trust.secure_boot import VARIABLE_VENDOR

ATTRIBUTES = 0x27
"""NON_VOLATILE | BOOTSERVICE_ACCESS | RUNTIME_ACCESS | TIME_BASED_AUTHENTICATED_WRITE_ACCESS."""

_CERT_TYPE_PKCS7 = UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")
_WIN_CERTIFICATE = struct.Struct("<IHH")  # dwLength, wRevision, wCertificateType
_REVISION, _PKCS_SIGNED_DATA, _UEFI_GUID = 0x0200, 0x0002, 0x0EF1
_SEQUENCE, _SET, _OCTETS, _INTEGER, _OID, _NULL = 0x30, 0x31, 0x04, 0x02, 0x06, b"\x05\0"


class NotSignable(FreeholdError):
    """An image that cannot be signed, or whose signatures cannot be read."""


class Signer(NamedTuple):
    """A certificate, and the RSA key of it."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey


def sign_image(image: bytes, signers: Sequence[Signer]) -> bytes:
    """The unsigned PE image with a signature by each signer, in this order. Raises `NotSignable` if it has one already:
    padding and digest of what somebody else signed are not ours to change."""
    padded = image + bytes(-len(image) % 8)
    parsed = parse_image(padded)
    if parsed.certificates_size:
        raise NotSignable("the image is signed already", remedy="sign the unsigned image, by all its signers at once")
    content = _spc_indirect_data(authenticode(padded))
    table = b""
    for signer in signers:
        signed = _signed_data(signer, _SPC_INDIRECT_DATA, content, attributes=True)
        wrapped = _der(_SEQUENCE, _PKCS7_SIGNED_DATA, _der(0xA0, signed))
        wrapped += bytes(-len(wrapped) % 8)
        table += _WIN_CERTIFICATE.pack(8 + len(wrapped), _REVISION, _PKCS_SIGNED_DATA) + wrapped
    out = bytearray(padded + table)
    struct.pack_into("<II", out, parsed.skips[1][0], len(padded), len(table))
    return bytes(out)


def signers_of(image: bytes) -> tuple[bytes, ...]:
    """The certificates (DER) that the signatures of an image bear, in the order in which firmware tries them. Nothing
    is verified. Raises `NotSignable` for a signature that does not bear exactly one."""
    parsed = parse_image(image)
    at, size = struct.unpack_from("<II", image, parsed.skips[1][0])
    end, found = at + size, []
    while at < end:
        length, _, kind = _WIN_CERTIFICATE.unpack_from(image, at)
        if kind != _PKCS_SIGNED_DATA or length <= 8 or at + length > len(image):
            raise NotSignable(f"the image has an attribute certificate of type {kind:#06x} and {length} bytes")
        try:
            certificates = pkcs7.load_der_pkcs7_certificates(_first_element(image[at + 8 : at + length]))
        except ValueError as error:
            raise NotSignable(f"a signature of the image cannot be read: {error}") from error
        if len(certificates) != 1:
            raise NotSignable(f"a signature of the image bears {len(certificates)} certificates, not one")
        found.append(certificates[0].public_bytes(Encoding.DER))
        at += length + (-length % 8)
    return tuple(found)


def authenticated_variable(name: str, content: bytes, signer: Signer, at: datetime) -> bytes:
    """What SetVariable takes, with `ATTRIBUTES`, to replace a Secure Boot variable by `content`:
    EFI_VARIABLE_AUTHENTICATION_2 and the content. PK and KEK are signed by the platform key, db and dbx by a KEK; a
    variable only takes what is later than its present timestamp. In setup mode only a PK is verified, by itself."""
    when = at.astimezone(UTC)
    time = struct.pack(
        "<HBBBBBBIhBB", when.year, when.month, when.day, when.hour, when.minute, when.second, 0, 0, 0, 0, 0
    )
    signed = (
        name.encode("utf-16-le") + VARIABLE_VENDOR[name].bytes_le + ATTRIBUTES.to_bytes(4, "little") + time + content
    )
    data = _signed_data(signer, _DATA, None, signed=signed)
    head = _WIN_CERTIFICATE.pack(24 + len(data), _REVISION, _UEFI_GUID) + _CERT_TYPE_PKCS7.bytes_le
    return time + head + data + content


def _signed_data(
    signer: Signer, content_type: bytes, content: bytes | None, *, attributes: bool = False, signed: bytes = b""
) -> bytes:
    """SignedData (RFC 2315, 9.1) with one signer. With `attributes` the signature covers them, and they name type and
    digest of the content (RFC 2315, 9.3); else it covers `signed`, which is not inside."""
    certificate = signer.certificate
    tail = b""
    if attributes:
        digest = hashlib.sha256(_contents(content or b"")).digest()
        stated = (
            _der(_SEQUENCE, _CONTENT_TYPE, _der(_SET, content_type)),
            _der(_SEQUENCE, _MESSAGE_DIGEST, _der(_SET, _der(_OCTETS, digest))),
        )
        signed = _der(_SET, *sorted(stated))
        tail = b"\xa0" + signed[1:]  # the same bytes under the tag [0]
    signature = signer.key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
    serial = certificate.serial_number
    number = _der(_INTEGER, serial.to_bytes(serial.bit_length() // 8 + 1, "big"))
    info = _der(
        _SEQUENCE,
        *(_der(_INTEGER, b"\1"), _der(_SEQUENCE, certificate.issuer.public_bytes(), number)),
        *(_SHA256, tail, _RSA, _der(_OCTETS, signature)),
    )
    return _der(
        _SEQUENCE,
        *(_der(_INTEGER, b"\1"), _der(_SET, _SHA256)),
        _der(_SEQUENCE, content_type, *([_der(0xA0, content)] if content is not None else [])),
        *(_der(0xA0, certificate.public_bytes(Encoding.DER)), _der(_SET, info)),
    )


def _spc_indirect_data(digest: bytes) -> bytes:
    """SpcIndirectDataContent of a PE image: no page hashes, and the file name that everybody writes there."""
    file = _der(0xA0, _der(0xA2, _der(0x80, "<<<Obsolete>>>".encode("utf-16-be"))))
    data = _der(_SEQUENCE, _SPC_PE_IMAGE_DATA, _der(_SEQUENCE, _der(0x03, b"\0"), file))
    return _der(_SEQUENCE, data, _der(_SEQUENCE, _SHA256, _der(_OCTETS, digest)))


def _der(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    size = len(content)
    count = (size.bit_length() + 7) // 8
    length = bytes([size]) if size < 0x80 else bytes([0x80 | count]) + size.to_bytes(count, "big")
    return bytes([tag]) + length + content


def _contents(element: bytes) -> bytes:
    """Without its tag and length: what a message digest covers (RFC 2315, 9.3)."""
    return element[2 + (element[1] & 0x7F if element[1] & 0x80 else 0) :]


def _first_element(data: bytes) -> bytes:
    """The DER element that `data` begins with: signatures are padded to 8 bytes."""
    head = 2 + (data[1] & 0x7F if data[1] & 0x80 else 0)
    size = int.from_bytes(data[2:head], "big") if head > 2 else data[1]
    return data[: head + size]


def _oid(hexadecimal: str) -> bytes:
    return _der(_OID, bytes.fromhex(hexadecimal))


_DATA = _oid("2a864886f70d010701")  # 1.2.840.113549.1.7.1
_PKCS7_SIGNED_DATA = _oid("2a864886f70d010702")  # 1.2.840.113549.1.7.2
_CONTENT_TYPE = _oid("2a864886f70d010903")  # 1.2.840.113549.1.9.3
_MESSAGE_DIGEST = _oid("2a864886f70d010904")  # 1.2.840.113549.1.9.4
_SPC_INDIRECT_DATA = _oid("2b060104018237020104")  # 1.3.6.1.4.1.311.2.1.4
_SPC_PE_IMAGE_DATA = _oid("2b06010401823702010f")  # 1.3.6.1.4.1.311.2.1.15
_SHA256 = _der(_SEQUENCE, _oid("608648016503040201"), _NULL)  # 2.16.840.1.101.3.4.2.1
_RSA = _der(_SEQUENCE, _oid("2a864886f70d010101"), _NULL)  # 1.2.840.113549.1.1.1
