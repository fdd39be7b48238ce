"""X.509 for the site: the agent CA, the controller's TLS certificate, and self-signed Secure Boot certificates.

Pure: keys and the time come in, certificates go out. Serial numbers are random (RFC 5280, 4.1.2.2). Validity starts a
day before `now`, because the clock of a server that was just switched on may be in another time zone.
"""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from freehold.model.errors import FreeholdError

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

SKEW = timedelta(days=1)
CA_LIFETIME = timedelta(days=3650)
CONTROLLER_LIFETIME = timedelta(days=90)
SECURE_BOOT_LIFETIME = timedelta(days=7300)


class CertificateError(FreeholdError):
    """A certificate that cannot be issued as asked."""


def addresses(words: Sequence[str]) -> tuple[Address, ...]:
    """The controller's addresses, each once. Raises `CertificateError`."""
    try:
        found = tuple(dict.fromkeys(ipaddress.ip_address(word) for word in words))
    except ValueError as error:
        raise CertificateError(f"the controller's address is malformed: {error}", expected="IP addresses") from error
    if not found:
        raise CertificateError("the controller has no address", expected="at least one IP address")
    return found


def agent_ca(key: ec.EllipticCurvePrivateKey, site: str, allowed: Sequence[Address], now: datetime) -> x509.Certificate:
    """The CA that the agent trusts; it can speak for these addresses and for no DNS name (RFC 5280, 4.2.1.10)."""
    constraints = x509.NameConstraints(
        permitted_subtrees=[x509.IPAddress(ipaddress.ip_network(address)) for address in allowed],
        excluded_subtrees=[x509.DNSName("")],
    )
    name = _name(site, "agent CA")
    return (
        _builder(name, name, key, now, CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(constraints, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def controller_certificate(
    key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    site: str,
    served: Sequence[Address],
    now: datetime,
) -> x509.Certificate:
    """A TLS server certificate for the addresses. Raises `CertificateError` for one that the CA may not speak for."""
    if foreign := set(served) - set(constrained_addresses(ca)):
        raise CertificateError(
            f"the agent CA may not speak for {', '.join(sorted(map(str, foreign)))}",
            expected=", ".join(map(str, constrained_addresses(ca))),
            remedy="keep the controller's address, or make new site keys and rebuild the agent image",
        )
    return (
        _builder(_name(site, "controller"), ca.subject, key, now, CONTROLLER_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(address) for address in served]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def secure_boot_certificate(key: rsa.RSAPrivateKey, site: str, role: str, now: datetime) -> x509.Certificate:
    """Self-signed, RSA-2048 with SHA-256, which every firmware reads; `role` is PK, KEK or db."""
    name = _name(site, f"Secure Boot {role}")
    return (
        _builder(name, name, key, now, SECURE_BOOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def constrained_addresses(ca: x509.Certificate) -> tuple[Address, ...]:
    """The addresses that `agent_ca` allowed."""
    trees = ca.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or []
    networks = [tree.value for tree in trees if isinstance(tree, x509.IPAddress)]
    return tuple(n.network_address for n in networks if isinstance(n, ipaddress.IPv4Network | ipaddress.IPv6Network))


def served_addresses(certificate: x509.Certificate) -> tuple[Address, ...]:
    """The IP addresses of a certificate's subjectAltName."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = names.get_values_for_type(x509.IPAddress)
    return tuple(a for a in found if isinstance(a, ipaddress.IPv4Address | ipaddress.IPv6Address))


def needs_renewal(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether less than a third of its life is left."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now > end - (end - begin) / 3


def pem(certificate: x509.Certificate) -> bytes:
    """The certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def der(certificate: x509.Certificate) -> bytes:
    """The certificate in DER."""
    return certificate.public_bytes(serialization.Encoding.DER)


def utc_now() -> datetime:
    """The time, for callers at the edge."""
    return datetime.now(UTC)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + lifetime)
    )


def _name(site: str, role: str) -> x509.Name:
    common_name = f"{site} {role}"
    if len(common_name) > 64:
        raise CertificateError(f"the site's name {site!r} is too long for a certificate", expected="40 characters")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
