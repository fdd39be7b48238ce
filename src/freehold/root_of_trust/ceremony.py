"""The root of a site, on a machine that is not the site's: made once, opened by any two of its custodians to issue.

    DIR/root.pem            the certificate, public
    DIR/root.key.sealed     the private key (PKCS #8), encrypted under a random key that is nowhere
    DIR/root.crl            the issuing CAs that do not count any more, public
    DIR/NAME.share          that random key, as one custodian's share (`freehold.root_of_trust.custodians`)

The private key is in the clear only in the memory of this process, while it signs.
"""

import os
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from freehold.evidence import durable
from freehold.root_of_trust import custodians, pki

CERTIFICATE, SEALED_KEY, SHARE, CRL = "root.pem", "root.key.sealed", ".share", "root.crl"
_CONTEXT = b"freehold-root-key/1"


def make_root(
    directory: Path, site: str, passphrases: Mapping[str, str], now: datetime, *, cost: int = custodians.COST
) -> x509.Certificate:
    """A new root in an empty directory, and a share for each custodian. Raises `CustodyRefused`, `CertificateError`."""
    _require_empty(directory)
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = pki.root_ca(key, site, now)
    _seal(directory, key, passphrases, cost)
    durable.replace(directory / CERTIFICATE, pki.pem(certificate))
    return certificate


def reshare(
    directory: Path,
    into: Path,
    shares: Sequence[tuple[bytes, str]],
    passphrases: Mapping[str, str],
    *,
    cost: int = custodians.COST,
) -> None:
    """The same root for other custodians, in an empty directory: two of today's open it. What was sealed before still
    opens with the shares of before, so both are to be destroyed. Raises `CustodyRefused`."""
    root = root_certificate(directory)
    _require_empty(into)
    _seal(into, _open(directory, root, custodians.join(shares)), passphrases, cost)
    durable.replace(into / CERTIFICATE, pki.pem(root))
    if (directory / CRL).exists():
        durable.replace(into / CRL, (directory / CRL).read_bytes())


def root_certificate(directory: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate((directory / CERTIFICATE).read_bytes())
    except FileNotFoundError:
        raise custodians.CustodyRefused(
            f"{directory} holds no root", remedy="make one with `freehold pki ceremony init`, or give its directory"
        ) from None


def issue(
    directory: Path, request: x509.CertificateSigningRequest, shares: Sequence[tuple[bytes, str]], now: datetime
) -> x509.Certificate:
    """An issuing CA for the request, under two custodians' shares. Raises `CustodyRefused`, `CertificateError`."""
    root = root_certificate(directory)
    pki.requested_zone(request)  # before anybody's share is opened
    return pki.issue_authority(request, root, _open(directory, root, custodians.join(shares)), now)


def revoke(
    directory: Path, serials: Sequence[int], shares: Sequence[tuple[bytes, str]], now: datetime
) -> x509.CertificateRevocationList:
    """The root's next list, with these issuing CAs on it, under two custodians' shares; kept in the directory. Raises
    `CustodyRefused`, `CertificateError`."""
    root, path = root_certificate(directory), directory / CRL
    last = x509.load_pem_x509_crl(path.read_bytes()) if path.exists() else None
    key = _open(directory, root, custodians.join(shares))
    made = pki.revocation_list(root, key, last, serials, now, lifetime=pki.ROOT_CRL_LIFETIME)
    durable.replace(path, pki.pem(made))
    return made


def _require_empty(directory: Path) -> None:
    if directory.exists() and any(directory.iterdir()):
        raise custodians.CustodyRefused(f"{directory} is not empty", remedy="give a new directory")


def _seal(directory: Path, key: ec.EllipticCurvePrivateKey, passphrases: Mapping[str, str], cost: int) -> None:
    """The key under a random one, and that one in shares."""
    sealing, nonce = secrets.token_bytes(32), os.urandom(12)
    shares = custodians.split(sealing, passphrases, cost=cost)
    private = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    durable.make_directory(directory, 0o700)
    durable.replace(directory / SEALED_KEY, nonce + AESGCM(sealing).encrypt(nonce, private, _CONTEXT), 0o600)
    for name, share in shares.items():
        durable.replace(directory / f"{name}{SHARE}", share, 0o600)


def _open(directory: Path, root: x509.Certificate, sealing: bytes) -> ec.EllipticCurvePrivateKey:
    sealed = (directory / SEALED_KEY).read_bytes()
    try:
        private = AESGCM(sealing).decrypt(sealed[:12], sealed[12:], _CONTEXT)
    except InvalidTag:
        raise custodians.CustodyRefused(
            f"the shares do not open {directory / SEALED_KEY}", expected="the shares that were made with this root"
        ) from None
    key = serialization.load_der_private_key(private, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != root.public_key():
        raise custodians.CustodyRefused(f"the key in {directory} is not that of {CERTIFICATE}")
    return key
