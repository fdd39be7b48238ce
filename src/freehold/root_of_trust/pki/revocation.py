"""The certificate revocation list of an issuing CA (RFC 5280, 5). The list itself is the record: the next one is the
last one with more entries, so nothing that was revoked is forgotten."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from freehold.root_of_trust.pki.building import SKEW, CertificateError

CRL_LIFETIME = timedelta(days=30)


def revocation_list(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    last: x509.CertificateRevocationList | None,
    revoked: Iterable[int],
    now: datetime,
) -> x509.CertificateRevocationList:
    """The list after `last` with these serial numbers added. Raises `CertificateError` if `last` is not this CA's."""
    number, entries = 1, {}
    if last is not None:
        entries = {entry.serial_number: entry.revocation_date_utc for entry in _verified(last, ca)}
        number = last.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number + 1
    for serial in revoked:
        entries.setdefault(serial, now)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(now - SKEW)
        .next_update(now + CRL_LIFETIME)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    for serial, at in sorted(entries.items()):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(ca_key, hashes.SHA256())


def revoked_serials(crl: x509.CertificateRevocationList, ca: x509.Certificate) -> dict[int, datetime]:
    """Serial number -> when it was revoked. Raises `CertificateError` if the list is not this CA's."""
    return {entry.serial_number: entry.revocation_date_utc for entry in _verified(crl, ca)}


def is_stale(crl: x509.CertificateRevocationList, now: datetime) -> bool:
    """Whether less than half of its life is left: then it is signed anew, long before anybody would refuse it."""
    end = crl.next_update_utc
    return end is None or now > end - CRL_LIFETIME / 2


def _verified(crl: x509.CertificateRevocationList, ca: x509.Certificate) -> x509.CertificateRevocationList:
    key = ca.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or crl.issuer != ca.subject or not crl.is_signature_valid(key):
        raise CertificateError(
            f"the revocation list is not of {ca.subject.rfc4514_string()}",
            remedy="restore the vault from a copy; a crash cannot cause this",
        )
    return crl
