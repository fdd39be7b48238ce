"""The root and the two issuing CAs. An issuing CA has path length 0 and critical name constraints (RFC 5280, 4.2.1.10):
it speaks for IP addresses of its zone and for no DNS name, whoever holds its key."""

import ipaddress
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from freehold.root_of_trust.pki.building import (
    Address,
    CertificateError,
    Network,
    PublicKey,
    builder,
    permitted,
    site_name,
    usage,
)

ROOT_LIFETIME = timedelta(days=7300)
AUTHORITY_LIFETIME = timedelta(days=3650)
WIDEST = {4: 8, 6: 32}
"""IP version -> the shortest prefix that a root signs: no site's out-of-band network is wider."""


def networks(prefixes: Iterable[str]) -> tuple[Network, ...]:
    """Raises `CertificateError`."""
    try:
        return tuple(ipaddress.ip_network(prefix) for prefix in prefixes)
    except ValueError as error:
        raise CertificateError(f"a network's prefix is malformed: {error}", expected="such as 172.30.1.0/24") from error


def root_ca(key: ec.EllipticCurvePrivateKey, site: str, now: datetime) -> x509.Certificate:
    """The offline root: it signs issuing CAs (path length 1), and they sign no further CA."""
    name = site_name(site, "root CA")
    return (
        builder(name, name, key.public_key(), now, now + ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA384())
    )


def agent_ca(key: ec.EllipticCurvePrivateKey, site: str, allowed: Sequence[Address], now: datetime) -> x509.Certificate:
    """The CA that the agent trusts, self-signed; it can speak for these addresses only."""
    return self_signed_authority(key, site, "agent CA", [ipaddress.ip_network(each) for each in allowed], now)


def bmc_ca(key: ec.EllipticCurvePrivateKey, site: str, allowed: Sequence[Network], now: datetime) -> x509.Certificate:
    """The CA of the site's BMCs, self-signed; it can speak for addresses of the out-of-band networks only."""
    return self_signed_authority(key, site, "BMC CA", allowed, now)


def self_signed_authority(
    key: ec.EllipticCurvePrivateKey, site: str, title: str, allowed: Sequence[Network], now: datetime
) -> x509.Certificate:
    """An issuing CA that vouches for itself. Two keys never have the same `title`: people tell them apart by it."""
    name = site_name(site, title)
    return _authority(key.public_key(), name, name, allowed, now).sign(key, hashes.SHA256())


def authority_request(
    key: ec.EllipticCurvePrivateKey, subject: x509.Name, allowed: Sequence[Network]
) -> x509.CertificateSigningRequest:
    """What the site carries to the root: the CA's present name and key, and the zone that it wants to speak for."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(_constraints(allowed), critical=True)
        .sign(key, hashes.SHA256())
    )


def requested_zone(request: x509.CertificateSigningRequest) -> tuple[Network, ...]:
    """The zone that a request asks for. Raises `CertificateError` for a request that a root must not sign: a bad
    signature, no zone, a zone that is not the addresses of a site, or another wish than a zone."""
    if not request.is_signature_valid:
        raise CertificateError("the request's signature does not verify", remedy="carry it over again")
    if not isinstance(request.public_key(), ec.EllipticCurvePublicKey):
        raise CertificateError("the request's key is not an EC key", expected="what `freehold pki request` writes")
    try:
        (extension,) = request.extensions
        constraints = extension.value
    except ValueError:
        constraints = None
    if not isinstance(constraints, x509.NameConstraints) or constraints != _constraints(permitted(constraints)):
        raise CertificateError(
            "the request asks for something else than IP networks",
            expected="name constraints with IP networks and without any DNS name, and no other extension",
            remedy="make it with `freehold pki request`",
        )
    asked = permitted(constraints)
    wide = [str(network) for network in asked if network.prefixlen < WIDEST[network.version]]
    if wide:
        raise CertificateError(
            f"the request asks to speak for {', '.join(wide)}",
            expected=f"prefixes of /{WIDEST[4]} (IPv4) or /{WIDEST[6]} (IPv6) and longer",
        )
    return asked


def issue_authority(
    request: x509.CertificateSigningRequest,
    root: x509.Certificate,
    root_key: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> x509.Certificate:
    """The issuing CA that the request asks for: its name, key and zone; everything else is ours."""
    allowed = requested_zone(request)
    key = request.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return (
        _authority(key, request.subject, root.subject, allowed, now, root.not_valid_after_utc)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
        .sign(root_key, hashes.SHA384())
    )


def require_authority(issued: x509.Certificate, root: x509.Certificate, now: datetime) -> None:
    """Raises `CertificateError` unless `issued` is an issuing CA of this root: signed by it, valid now, path length 0,
    and limited to IP networks by a critical extension."""
    try:
        issued.verify_directly_issued_by(root)
        limits = issued.extensions.get_extension_for_class(x509.NameConstraints)
        basic = issued.extensions.get_extension_for_class(x509.BasicConstraints).value
        if not (limits.critical and limits.value == _constraints(permitted(limits.value))):
            raise ValueError("its name constraints are not those of an issuing CA")
        if not (basic.ca and basic.path_length == 0):
            raise ValueError("it is not a CA of path length 0")
        if not all(each.not_valid_before_utc <= now < each.not_valid_after_utc for each in (issued, root)):
            raise ValueError("it, or its root, is not valid today")
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise CertificateError(
            f"{issued.subject.rfc4514_string()} is not an issuing CA of {root.subject.rfc4514_string()}: "
            f"{str(error) or type(error).__name__}",
            remedy="issue it with `freehold pki ceremony issue`, and give the root that did",
        ) from error


def is_issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether this CA's key signed it, under this CA's name."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def key_id(ca: x509.Certificate) -> str:
    """What the certificates that a CA issues call its key (authorityKeyIdentifier, RFC 5280, 4.2.1.1), in hex."""
    return ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()


def issuer_key_id(certificate: x509.Certificate) -> str | None:
    """The `key_id` of the CA that it says it is of. A claim: it verifies nothing."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return None
    return found.hex() if found is not None else None


def is_self_signed(certificate: x509.Certificate) -> bool:
    return certificate.issuer == certificate.subject


def _authority(
    key: PublicKey,
    subject: x509.Name,
    issuer: x509.Name,
    allowed: Sequence[Network],
    now: datetime,
    latest: datetime | None = None,
) -> x509.CertificateBuilder:
    end = now + AUTHORITY_LIFETIME
    return (
        builder(subject, issuer, key, now, min(end, latest or end))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(_constraints(allowed), critical=True)
    )


def _constraints(allowed: Sequence[Network]) -> x509.NameConstraints:
    if not allowed:
        raise CertificateError("an issuing CA needs a zone", expected="at least one IP network")
    return x509.NameConstraints(
        permitted_subtrees=[x509.IPAddress(network) for network in allowed],
        excluded_subtrees=[x509.DNSName("")],
    )
