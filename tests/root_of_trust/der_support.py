"""Certificates as vendors make them: signed properly over bytes that break DER."""

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

PARTS = ("version", "serial", "algorithm", "issuer", "validity", "subject", "key", "extensions")


def element(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    size = len(content)
    length = bytes([size]) if size < 0x80 else bytes([0x82]) + size.to_bytes(2, "big")
    return bytes([tag]) + length + content


def elements(content: bytes) -> list[bytes]:
    """The elements that stand one after the other in `content`."""
    found = []
    while content:
        head, size = 2, content[1]
        if size & 0x80:
            head = 2 + (size & 0x7F)
            size = int.from_bytes(content[2:head], "big")
        found.append(content[: head + size])
        content = content[head + size :]
    return found


def inside(whole: bytes) -> bytes:
    return whole[2 + (whole[1] & 0x7F if whole[1] & 0x80 else 0) :]


def reissue(
    certificate: x509.Certificate, signer: ec.EllipticCurvePrivateKey, outer: bytes | None = None, **parts: bytes
) -> bytes:
    """The same certificate with these parts of its TBSCertificate (DER elements) instead, signed anew."""
    tbs, algorithm, _ = elements(inside(certificate.public_bytes(Encoding.DER)))
    named = dict(zip(PARTS, elements(inside(tbs)), strict=True))
    signed = element(0x30, *(named | parts).values())
    signature = signer.sign(signed, ec.ECDSA(hashes.SHA256()))
    return element(0x30, signed, outer or parts.get("algorithm", algorithm), element(0x03, b"\0", signature))


def muddled_name(text: str) -> bytes:
    """A Name of one SET whose parts are not in DER's order, as Nuvoton writes it."""
    oids = {"2.5.4.3": "550403", "2.5.4.10": "55040a", "2.5.4.6": "550406"}
    parts = [(oids["2.5.4.3"], 0x0C, text), (oids["2.5.4.10"], 0x0C, "Vendor"), (oids["2.5.4.6"], 0x13, "TW")]
    made = [element(0x30, element(6, bytes.fromhex(oid)), element(tag, value.encode())) for oid, tag, value in parts]
    assert made != sorted(made)
    return element(0x30, element(0x31, *made))
