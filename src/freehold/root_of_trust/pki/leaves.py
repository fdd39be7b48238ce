"""TLS certificates of the controller, of BMCs and of agents, by the site's CAs; and the Secure Boot certificates."""

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from freehold.root_of_trust.pki.building import (
    Address,
    CertificateError,
    PublicKey,
    builder,
    common_name,
    require_zone,
    sha256,
    site_name,
    spki_sha256,
    usage,
)

CONTROLLER_LIFETIME = timedelta(days=90)
BMC_LIFETIME = timedelta(days=397)
AGENT_LIFETIME = timedelta(hours=24)
SECURE_BOOT_LIFETIME = timedelta(days=7300)


def addresses(words: Sequence[str]) -> tuple[Address, ...]:
    """The controller's addresses, each once. Raises `CertificateError`."""
    try:
        found = tuple(dict.fromkeys(ipaddress.ip_address(word) for word in words))
    except ValueError as error:
        raise CertificateError(f"the controller's address is malformed: {error}", expected="IP addresses") from error
    if not found:
        raise CertificateError("the controller has no address", expected="at least one IP address")
    return found


def controller_certificate(
    key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    site: str,
    served: Sequence[Address],
    now: datetime,
) -> x509.Certificate:
    """A TLS server certificate for the addresses. Raises `CertificateError` for one that the CA may not speak for."""
    remedy = "keep the controller's address, or make new site keys and rebuild the agent image"
    require_zone("agent CA", ca, served, remedy)
    subject, end = site_name(site, "controller"), now + CONTROLLER_LIFETIME
    return _tls_server(key.public_key(), subject, served, ca, ca_key, now, end)


def bmc_certificate(
    key: PublicKey, ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, address: str, now: datetime
) -> x509.Certificate:
    """A TLS server certificate for the BMC at `address`. Name and extensions are ours; of the BMC's request only the
    key goes in. Raises `CertificateError` for an address outside the CA's zone."""
    at = ipaddress.ip_address(address)
    remedy = "correct the BMC's address, or have the BMC CA issued for more (`freehold pki request bmc`)"
    require_zone("BMC CA", ca, [at], remedy)
    # OpenSSL takes a common name that looks like a DNS name for one, and the CA may speak for none: hence the space.
    return _tls_server(key, common_name(f"BMC {address}"), [at], ca, ca_key, now, now + BMC_LIFETIME)


def agent_key(der: bytes) -> ec.EllipticCurvePublicKey:
    """The public key that an agent made for its session. Raises `CertificateError` for anything but P-256."""
    try:
        key = serialization.load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateError(
            "the agent's public key is not one of P-256",
            expected="a SubjectPublicKeyInfo in DER",
            remedy="use an agent of the same release as the controller",
        )
    return key


def agent_certificate(
    key: ec.EllipticCurvePublicKey,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    server: str,
    session: str,
    now: datetime,
    lifetime: timedelta,
) -> x509.Certificate:
    """A TLS client certificate for the agent of `server` in one session, for `lifetime` and never more than a day. Who
    checks it is who issued it, so it begins now and not a day ago."""
    not_after = min(now + min(lifetime, AGENT_LIFETIME), ca.not_valid_after_utc)
    named = x509.UniformResourceIdentifier(f"urn:freehold:server:{server}:session:{session}")
    return (
        builder(common_name(f"agent {session}"), ca.subject, key, now, not_after, skew=timedelta(0))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
        .add_extension(x509.SubjectAlternativeName([named]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def secure_boot_certificate(key: rsa.RSAPrivateKey, site: str, role: str, now: datetime) -> x509.Certificate:
    """Self-signed, RSA-2048 with SHA-256, which every firmware reads; `role` is PK, KEK or db."""
    name = site_name(site, f"Secure Boot {role}")
    return (
        builder(name, name, key.public_key(), now, now + SECURE_BOOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )


def served_addresses(certificate: x509.Certificate) -> tuple[Address, ...]:
    """The IP addresses of a certificate's subjectAltName; none if it has no such extension."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    found = names.get_values_for_type(x509.IPAddress)
    return tuple(a for a in found if isinstance(a, ipaddress.IPv4Address | ipaddress.IPv6Address))


def claim(certificate: x509.Certificate, purpose: str, **more: Any) -> dict[str, Any]:
    """What the evidence log says of a certificate that was issued. Numbers are hex, times ISO 8601 in UTC."""
    return {
        "event": "issued",
        "purpose": purpose,
        "serial": f"{certificate.serial_number:x}",
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "addresses": [str(address) for address in served_addresses(certificate)],
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "sha256": sha256(certificate),
        "spki_sha256": spki_sha256(certificate),
        **more,
    }


def _tls_server(
    key: PublicKey,
    subject: x509.Name,
    served: Sequence[Address],
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    not_after: datetime,
) -> x509.Certificate:
    encipherment = isinstance(key, rsa.RSAPublicKey)  # old BMCs know no key exchange but RSA
    return (
        builder(subject, ca.subject, key, now, min(not_after, ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage(digital_signature=True, key_encipherment=encipherment), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(address) for address in served]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
