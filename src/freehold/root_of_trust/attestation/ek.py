"""Endorsement keys: a server's identity is the SHA-256 of its EK's public area, never a name that the server sends.

A certificate is accepted if a chain of directly issued certificates leads from it to a self-signed one that the
operator pinned, and if it certifies exactly this EK (TCG EK Credential Profile 2.5, 3.2). Nothing is fetched: AIA
addresses are ignored. `cryptography.x509.verification` cannot be used, as it refuses the profile's critical
directoryName in subjectAltName.
"""

import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from freehold.root_of_trust.attestation.errors import EndorsementKeyError
from freehold.root_of_trust.attestation.structures import ALG_AES, ALG_CFB, ALG_RSA, Public

EK_CERTIFICATE_USAGE = x509.ObjectIdentifier("2.23.133.8.1")
EK_ATTRIBUTES = 0x000300B2
EK_POLICY = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
LONGEST_CHAIN = 6
Extension = TypeVar("Extension", bound=x509.ExtensionType)
SUFFIXES = {".pem", ".crt", ".cer", ".der"}


@dataclass(frozen=True, kw_only=True)
class TpmRoots:
    """CA certificates of TPM vendors that the operator trusts, roots and intermediates; `unreadable` names files."""

    certificates: tuple[x509.Certificate, ...]
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EkIdentity:
    """A certified EK: `identity` is the hex SHA-256 of its public area, `issuers` the subjects up to the root."""

    identity: str
    serial: str
    issuers: tuple[str, ...]


def ek_identity(ek_public: bytes) -> str:
    """SHA-256 of the TPMT_PUBLIC, in hex: the key of a server's record."""
    return hashlib.sha256(ek_public).hexdigest()


def load_roots(directory: Path) -> TpmRoots:
    """Every certificate of the PEM (one or more each) and DER files in `directory`."""
    certificates: list[x509.Certificate] = []
    unreadable = []
    for path in sorted(directory.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            data = path.read_bytes()
            try:
                certificates += (
                    x509.load_pem_x509_certificates(data)
                    if b"-----BEGIN" in data
                    else [x509.load_der_x509_certificate(data)]
                )
            except ValueError:  # cryptography refuses some vendors' roots; said when a chain does not end
                unreadable.append(path.name)
    return TpmRoots(certificates=tuple(certificates), unreadable=tuple(unreadable))


def check_ek_template(ek: Public) -> None:
    """Refuse an EK that is not of template L-1: only that one can do nothing but activate credentials."""
    wrong = [
        what
        for what, right in {
            "type": ek.type == ALG_RSA,
            "name algorithm": ek.name_alg == "sha256",
            f"attributes {ek.attributes:#x}": ek.attributes == EK_ATTRIBUTES,
            "policy": ek.auth_policy == EK_POLICY,
            "symmetric algorithm": ek.symmetric == (ALG_AES, 128, ALG_CFB),
            "scheme": ek.scheme is None,
            "key size": ek.key.key_size == 2048,
        }.items()
        if not right
    ]
    if wrong:
        raise EndorsementKeyError(
            f"the endorsement key differs from template L-1 in its {', '.join(wrong)}",
            expected="RSA 2048, template L-1",
        )


def verify_ek(
    certificate: bytes, ek: Public, roots: TpmRoots, *, now: datetime, allow_expired: bool = False
) -> EkIdentity:
    """The identity of an EK whose DER `certificate` leads to a pinned root; raises EndorsementKeyError.

    `allow_expired` forgives the dates of the EK certificate only, for vendors that let them lapse on working machines.
    """
    check_ek_template(ek)
    try:
        leaf = x509.load_der_x509_certificate(certificate)
        _check_leaf(leaf)
        spki = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, UnsupportedAlgorithm) as error:
        raise EndorsementKeyError(f"the EK certificate cannot be read: {error}") from error
    if not hmac.compare_digest(spki, ek.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)):
        raise EndorsementKeyError("the EK certificate is of another key than the TPM's endorsement key")
    if not allow_expired:
        _check_dates(leaf, now)
    chain = _chain(leaf, roots)
    for authority in chain:
        _check_authority(authority)
        _check_dates(authority, now)
    return EkIdentity(
        identity=ek_identity(ek.raw),
        serial=f"{leaf.serial_number:x}",
        issuers=tuple(authority.subject.rfc4514_string() for authority in chain),
    )


def _chain(leaf: x509.Certificate, roots: TpmRoots) -> list[x509.Certificate]:
    """Issuers from the leaf's up to a self-signed one, all pinned."""
    chain: list[x509.Certificate] = []
    at = leaf
    while len(chain) < LONGEST_CHAIN:
        issuer = next((candidate for candidate in roots.certificates if _issued(at, candidate)), None)
        if issuer is None:
            break
        chain.append(issuer)
        if issuer.subject == issuer.issuer:
            return chain
        at = issuer
    unread = f" (these files there cannot be read: {', '.join(roots.unreadable)})" if roots.unreadable else ""
    raise EndorsementKeyError(
        f"unknown EK issuer {at.issuer.rfc4514_string()}",
        expected=f"a chain to one of the {len(roots.certificates)} CA certificates in tpm-roots{unread}",
        remedy="if you trust this TPM vendor, put its CA certificates into the site's tpm-roots folder",
    )


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _check_leaf(leaf: x509.Certificate) -> None:
    usage = _extension(leaf, x509.ExtendedKeyUsage)
    if usage is None or EK_CERTIFICATE_USAGE not in usage:
        raise EndorsementKeyError("the certificate is not an EK certificate: usage 2.23.133.8.1 is missing")
    constraints, key_usage = _extension(leaf, x509.BasicConstraints), _extension(leaf, x509.KeyUsage)
    if constraints is not None and constraints.ca:
        raise EndorsementKeyError("the EK certificate is a CA certificate")
    if key_usage is None or not key_usage.key_encipherment:
        raise EndorsementKeyError("the EK certificate does not allow key encipherment")


def _check_authority(authority: x509.Certificate) -> None:
    constraints, usage = _extension(authority, x509.BasicConstraints), _extension(authority, x509.KeyUsage)
    if constraints is None or not constraints.ca or (usage is not None and not usage.key_cert_sign):
        raise EndorsementKeyError(f"{authority.subject.rfc4514_string()} may not issue certificates")


def _check_dates(certificate: x509.Certificate, now: datetime) -> None:
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise EndorsementKeyError(
            f"the certificate of {certificate.subject.rfc4514_string() or 'the EK'} is valid from"
            f" {certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d} only",
            remedy="check the controller's clock, or let policy forgive lapsed EK certificates",
        )


def _extension(certificate: x509.Certificate, kind: type[Extension]) -> Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
