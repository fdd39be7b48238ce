"""What all certificates of the site have in common.

Serial numbers are random (RFC 5280, 4.1.2.2). Validity starts a day before `now`, because the clock of a server that
was just switched on may be in another time zone.
"""

import hashlib
import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from freehold.model.errors import FreeholdError

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SKEW = timedelta(days=1)


class CertificateError(FreeholdError):
    """A certificate that cannot be issued as asked, or is not what it should be."""


def builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: PublicKey,
    now: datetime,
    not_after: datetime,
    *,
    skew: timedelta = SKEW,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - skew)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def site_name(site: str, role: str) -> x509.Name:
    if len(f"{site} {role}") > 64:
        raise CertificateError(f"the site's name {site!r} is too long for a certificate", expected="40 characters")
    return common_name(f"{site} {role}")


def common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def zone(ca: x509.Certificate) -> tuple[Network, ...]:
    """The networks that an issuing CA may speak for."""
    return permitted(ca.extensions.get_extension_for_class(x509.NameConstraints).value)


def require_zone(role: str, ca: x509.Certificate, served: Sequence[Address], remedy: str) -> None:
    """Raises `CertificateError` if the CA may not speak for one of the addresses."""
    if foreign := [str(each) for each in served if not any(each in network for network in zone(ca))]:
        raise CertificateError(
            f"the {role} may not speak for {', '.join(sorted(foreign))}",
            expected=f"an address in {', '.join(map(str, zone(ca)))}",
            remedy=remedy,
        )


def permitted(constraints: x509.NameConstraints) -> tuple[Network, ...]:
    trees = constraints.permitted_subtrees or []
    values = (tree.value for tree in trees if isinstance(tree, x509.IPAddress))
    return tuple(value for value in values if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network))


def needs_renewal(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether less than a third of its life is left."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now > end - (end - begin) / 3


def pem(item: x509.Certificate | x509.CertificateSigningRequest | x509.CertificateRevocationList) -> bytes:
    """The item in PEM."""
    return item.public_bytes(serialization.Encoding.PEM)


def der(certificate: x509.Certificate) -> bytes:
    """The certificate in DER."""
    return certificate.public_bytes(serialization.Encoding.DER)


def sha256(certificate: x509.Certificate) -> str:
    """Hex SHA-256 of the certificate in DER: the fingerprint that people compare."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def spki_sha256(item: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """Hex SHA-256 of the SubjectPublicKeyInfo."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(item.public_key().public_bytes(serialization.Encoding.DER, form)).hexdigest()


def utc_now() -> datetime:
    """The time, for callers at the edge."""
    return datetime.now(UTC)
