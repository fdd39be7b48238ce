"""Endorsement keys: a server's identity is the SHA-256 of its EK's public area, never a name that the server sends.

A certificate is accepted if a chain of directly issued certificates leads from it to a self-issued one, all of them
pinned by the operator, and if it certifies exactly this EK, of one of the standard templates (TCG EK Credential
Profile 2.7, 3 and annex B). Nothing is fetched: AIA addresses are ignored.
"""

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from freehold.root_of_trust.attestation.certificate import (
    BASIC_CONSTRAINTS,
    EXTENDED_KEY_USAGE,
    KEY_USAGE,
    Certificate,
    name_text,
    read_certificate,
)
from freehold.root_of_trust.attestation.errors import EndorsementKeyError, MalformedEvidenceError
from freehold.root_of_trust.attestation.structures import ALG_AES, ALG_CFB, Public

EK_CERTIFICATE_USAGE = "2.23.133.8.1"
KEY_ENCIPHERMENT, KEY_AGREEMENT, KEY_CERT_SIGN = 0x20, 0x08, 0x04  # RFC 5280, 4.2.1.3
# subjectAltName names the TPM's model and certificatePolicies the vendor's: no decision rests on them.
UNDERSTOOD = {KEY_USAGE, BASIC_CONSTRAINTS, EXTENDED_KEY_USAGE, "2.5.29.17", "2.5.29.32"}
LOW_RANGE, HIGH_RANGE = 0x000300B2, 0x000300F2  # attributes: the high range adds userWithAuth
POLICY_A = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
POLICY_B = {
    "sha256": bytes.fromhex("ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0"),
    "sha384": bytes.fromhex(
        "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
    ),
}
LONGEST_CHAIN = 6
SUFFIXES = {".pem", ".crt", ".cer", ".der"}
PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True)
class Template:
    """An EK's public area but for the key itself (EK Credential Profile, B.3 and B.4)."""

    name: str
    key: str
    name_alg: str
    cipher_bits: int
    attributes: int
    policy: bytes


TEMPLATES = (
    Template("L-1", "RSA 2048", "sha256", 128, LOW_RANGE, POLICY_A),
    Template("L-2", "ECC secp256r1", "sha256", 128, LOW_RANGE, POLICY_A),
    Template("H-1", "RSA 2048", "sha256", 128, HIGH_RANGE, POLICY_B["sha256"]),
    Template("H-2", "ECC secp256r1", "sha256", 128, HIGH_RANGE, POLICY_B["sha256"]),
    Template("H-3", "ECC secp384r1", "sha384", 256, HIGH_RANGE, POLICY_B["sha384"]),
    Template("H-6", "RSA 3072", "sha384", 256, HIGH_RANGE, POLICY_B["sha384"]),
    Template("H-7", "RSA 4096", "sha384", 256, HIGH_RANGE, POLICY_B["sha384"]),
)


@dataclass(frozen=True, kw_only=True)
class TpmRoots:
    """CA certificates of TPM vendors that the operator trusts, roots and intermediates; `unreadable` names files."""

    certificates: tuple[Certificate, ...]
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EkIdentity:
    """A certified EK: `identity` is the hex SHA-256 of its public area, `issuers` the subjects up to the root,
    `lapsed` that its own certificate's dates were forgiven."""

    identity: str
    issuers: tuple[str, ...]
    lapsed: bool = False


def ek_identity(ek_public: bytes) -> str:
    """SHA-256 of the TPMT_PUBLIC, in hex: the key of a server's record."""
    return hashlib.sha256(ek_public).hexdigest()


def load_roots(directory: Path) -> TpmRoots:
    """Every certificate of the PEM (one or more each) and DER files in `directory`."""
    certificates: list[Certificate] = []
    unreadable = []
    for path in sorted(directory.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            try:
                certificates += map(read_certificate, load_pem(path.read_bytes()))
            except (MalformedEvidenceError, ValueError):
                unreadable.append(path.name)  # said when a chain does not end
    return TpmRoots(certificates=tuple(certificates), unreadable=tuple(unreadable))


class RootsDirectory:
    """The roots in a directory as they are now; read again only when a file came, went or changed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: tuple[frozenset[tuple[str, int, int]], TpmRoots] | None = None

    def __call__(self) -> TpmRoots:
        files = ((path.name, path.stat()) for path in self._directory.iterdir())
        seen = frozenset((name, found.st_mtime_ns, found.st_size) for name, found in files)
        if self._known is None or self._known[0] != seen:
            self._known = seen, load_roots(self._directory)
        return self._known[1]


def load_pem(data: bytes) -> list[bytes]:
    """The DER of each certificate in PEM; `data` itself if it is DER already. Raises ValueError."""
    return [base64.b64decode(one) for one in PEM.findall(data)] if b"-----BEGIN" in data else [data]


def check_ek_template(ek: Public) -> None:
    """Refuse an EK of no standard template: only such a one can do nothing but activate credentials."""
    kind = f"RSA {ek.key.key_size}" if isinstance(ek.key, rsa.RSAPublicKey) else f"ECC {ek.key.curve.name}"
    differences = [
        (template.name, wrong)
        for template in TEMPLATES
        if template.key == kind and (wrong := _differences(ek, template))
    ]
    candidates = sum(template.key == kind for template in TEMPLATES)
    if candidates and len(differences) < candidates:
        return
    expected = ", ".join(f"{template.key} ({template.name})" for template in TEMPLATES)
    if not candidates:
        raise EndorsementKeyError(f"there is no template for an endorsement key of {kind}", expected=expected)
    name, wrong = min(differences, key=lambda found: len(found[1]))
    raise EndorsementKeyError(
        f"the endorsement key differs from template {name} in its {', '.join(wrong)}", expected=expected
    )


def _differences(ek: Public, template: Template) -> list[str]:
    checks = {
        "name algorithm": ek.name_alg == template.name_alg,
        f"attributes {ek.attributes:#x}": ek.attributes == template.attributes,
        "policy": ek.auth_policy == template.policy,
        "symmetric algorithm": ek.symmetric == (ALG_AES, template.cipher_bits, ALG_CFB),
        "scheme": ek.scheme is None,
    }
    return [what for what, right in checks.items() if not right]


def verify_ek(
    certificate: bytes, ek: Public, roots: TpmRoots, *, now: datetime, allow_expired: bool = False
) -> EkIdentity:
    """The identity of an EK whose DER `certificate` leads to a pinned root; raises EndorsementKeyError.

    `allow_expired` forgives the end of the EK certificate only, for vendors that let them lapse on working machines.
    """
    check_ek_template(ek)
    try:
        leaf = read_certificate(certificate)
    except MalformedEvidenceError as error:
        raise EndorsementKeyError(f"the EK certificate cannot be read: {error.what}") from error
    _check_leaf(leaf, ek)
    lapsed = leaf.not_after < now
    if not (lapsed and allow_expired):
        _check_dates(leaf, now)
    chain = _chain(leaf, roots)
    for below, authority in enumerate(chain):
        _check_authority(authority, below)
        _check_dates(authority, now)
    issuers = tuple(name_text(authority.subject) for authority in chain)
    return EkIdentity(identity=ek_identity(ek.raw), issuers=issuers, lapsed=lapsed)


def _chain(leaf: Certificate, roots: TpmRoots) -> list[Certificate]:
    """Issuers from the leaf's up to a self-issued one, all pinned."""
    longest: list[Certificate] = []
    ways = [[issuer] for issuer in roots.certificates if leaf.is_issued_by(issuer)]
    while ways:
        way = ways.pop()
        last = way[-1]
        if last.subject == last.issuer:
            return way
        longest = max(longest, way, key=len)
        if len(way) < LONGEST_CHAIN:
            ways += [[*way, issuer] for issuer in roots.certificates if last.is_issued_by(issuer)]
    unread = f" (these files there cannot be read: {', '.join(roots.unreadable)})" if roots.unreadable else ""
    raise EndorsementKeyError(
        f"unknown EK issuer {name_text((longest or [leaf])[-1].issuer)}",
        expected=f"a chain to one of the {len(roots.certificates)} CA certificates in tpm-roots{unread}",
        remedy="if you trust this TPM vendor, put its CA certificates into the site's tpm-roots folder",
    )


def _check_leaf(leaf: Certificate, ek: Public) -> None:
    """A certificate of exactly this key, for an EK and nothing else (EK Credential Profile, 3.2)."""
    if isinstance(ek.key, rsa.RSAPublicKey):
        needed, bits, words = (
            KEY_ENCIPHERMENT,
            ek.key.public_bytes(Encoding.DER, PublicFormat.PKCS1),
            "key encipherment",
        )
    else:
        needed, bits, words = KEY_AGREEMENT, _point(ek.key), "key agreement"
    if EK_CERTIFICATE_USAGE not in (leaf.extended_key_usage or ()):
        raise EndorsementKeyError("the certificate is not an EK certificate: usage 2.23.133.8.1 is missing")
    if leaf.is_authority:
        raise EndorsementKeyError("the EK certificate is a CA certificate")
    if not (leaf.key_usage or 0) & needed:
        raise EndorsementKeyError(f"the EK certificate does not allow {words}")
    if not hmac.compare_digest(leaf.key_bits, bits):
        raise EndorsementKeyError("the EK certificate is of another key than the TPM's endorsement key")
    if leaf.uses_sha1:
        raise EndorsementKeyError("the EK certificate is signed over SHA-1", expected="SHA-256 or more")
    _check_critical(leaf)


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _check_authority(authority: Certificate, below: int) -> None:
    """A CA that may stand above `below` other CAs. Its own signature may be over SHA-1: it is pinned itself."""
    who, usage = name_text(authority.subject), authority.key_usage
    if not authority.is_authority or (usage is not None and not usage & KEY_CERT_SIGN):
        raise EndorsementKeyError(f"{who} may not issue certificates")
    if authority.path_length is not None and authority.path_length < below:
        raise EndorsementKeyError(f"{who} may stand above {authority.path_length} other CAs, not above {below}")
    _check_critical(authority)


def _check_critical(certificate: Certificate) -> None:
    if unknown := sorted(certificate.critical - UNDERSTOOD):
        raise EndorsementKeyError(
            f"the certificate of {name_text(certificate.subject) or 'the EK'} has critical extensions that nobody here"
            f" understands: {', '.join(unknown)}"
        )


def _check_dates(certificate: Certificate, now: datetime) -> None:
    if not certificate.not_before <= now <= certificate.not_after:
        raise EndorsementKeyError(
            f"the certificate of {name_text(certificate.subject) or 'the EK'} is valid from"
            f" {certificate.not_before:%Y-%m-%d} to {certificate.not_after:%Y-%m-%d} only",
            remedy="check the controller's clock, or declare `lapsedEkCertificates: accept` in the Policy",
        )
