"""The certificate revocation list of an issuing CA (RFC 5280, 5). The list itself is the record: the next one is the
last one with more entries, so nothing that was revoked is forgotten."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from freehold.root_of_trust.pki.building import SKEW, CertificateError

CRL_LIFETIME = timedelta(days=30)
ROOT_CRL_LIFETIME = timedelta(days=400)
"""Of the root's list: the root is opened by people who come together for it."""


def revocation_list(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    last: x509.CertificateRevocationList | None,
    revoked: Iterable[int],
    now: datetime,
    *,
    lifetime: timedelta = CRL_LIFETIME,
    carried: Mapping[int, datetime] | None = None,
) -> x509.CertificateRevocationList:
    """The list after `last` with these serial numbers added. Raises `CertificateError` if `last` is not this CA's.
    `carried`: what the CA before this one had revoked; its certificates go on to be judged by this list."""
    number, entries = 1, dict(carried or {})
    if last is not None:
        entries |= listed(_verified(last, ca))
        number = last.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number + 1
    for serial in revoked:
        entries.setdefault(serial, now)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(now - SKEW)
        .next_update(now + lifetime)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    for serial, at in sorted(entries.items()):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(ca_key, hashes.SHA256())


def revoked_serials(crl: x509.CertificateRevocationList, ca: x509.Certificate) -> dict[int, datetime]:
    """Serial number -> when it was revoked. Raises `CertificateError` if the list is not this CA's."""
    return listed(_verified(crl, ca))


def listed(crl: x509.CertificateRevocationList) -> dict[int, datetime]:
    """Serial number -> when it was revoked, of a list whose origin is known otherwise."""
    return {entry.serial_number: entry.revocation_date_utc for entry in crl}


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
