"""What the tests of the PKI share: keys that are made once, and a verifier that is not ours."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from freehold.root_of_trust import pki

NOW = datetime(2026, 11, 23, tzinfo=UTC)
OOB = [ip_network("172.30.1.0/24")]
CA_KEY, ROOT_KEY, KEY = (
    ec.generate_private_key(curve) for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP256R1())
)  # fmt: skip


def refused(ca: x509.Certificate, leaf: x509.Certificate, address: str, now: datetime = NOW) -> str:
    """Why the leaf is not the server at `address`; empty if it is. The issuing CA is the only thing that is trusted."""
    policy = verification.PolicyBuilder().store(verification.Store([ca])).time(now)
    try:
        policy.build_server_verifier(x509.IPAddress(ip_address(address))).verify(leaf, [])
    except verification.VerificationError as error:
        return str(error)
    return ""


def forged(names: list[x509.GeneralName], ca: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """What somebody who has the CA's key makes, without asking our code."""
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forged")]))
        .issuer_name(ca.subject)
        .public_key(KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def a_root() -> x509.Certificate:
    return pki.root_ca(ROOT_KEY, "lab", NOW)


def bmc_ca(*, rooted: bool = False) -> x509.Certificate:
    """The BMC CA of the test's key, self-signed or under the root."""
    self_signed = pki.bmc_ca(CA_KEY, "lab", OOB, NOW)
    if not rooted:
        return self_signed
    return pki.issue_authority(pki.authority_request(CA_KEY, self_signed.subject, OOB), a_root(), ROOT_KEY, NOW)
