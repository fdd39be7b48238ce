"""Keeper of the site's issuing CAs: their certificates, what they issued and revoked, and what the log still lacks.

    vault   site/keys/agent-ca, site/keys/bmc-ca    key and certificate
            site/pki/root                           the root's certificate, if a ceremony was held
            site/pki/bmc-ca-crl                     the signed revocation list of the BMC CA
            site/pki/recorded                       digests of the claims that are in the evidence log

The log is written by the running controller alone. So what is done elsewhere (an installation, a revocation) is found
by comparing what there is with what is recorded, and a crash between the two only makes a statement twice.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509

from freehold.evidence import canonical
from freehold.root_of_trust import pki
from freehold.root_of_trust.keys import ROOT_CERTIFICATE, CertifiedKey, SiteKeys, certified, recertify
from freehold.root_of_trust.vault import Vault

NAMES = {"agent": "agent-ca", "bmc": "bmc-ca"}
"""The issuing CAs by the word that people use -> name of the key."""

NO_ROOT = "none"
"""What the evidence says of an issuing CA that is self-signed: its key vouches for itself."""

_CRL = "site/pki/bmc-ca-crl"
_RECORDED = "site/pki/recorded"


def request(vault: Vault, role: str, zone: Sequence[pki.Network]) -> bytes:
    """A request (PEM) for the root to certify the CA's present key for this zone."""
    ca = certified(vault, NAMES[role])
    return pki.pem(pki.authority_request(ca.private_key, ca.certificate.subject, zone))


def install(state_dir: Path, vault: Vault, role: str, certificate_pem: bytes, root_pem: bytes, now: datetime) -> None:
    """Take in what the root issued. The key stays, so what the CA has issued stays valid. Raises `CertificateError` if
    the certificate is not of this CA's key and name, or not of this root."""
    ca = certified(vault, NAMES[role])
    try:
        issued, root = (x509.load_pem_x509_certificate(pem) for pem in (certificate_pem, root_pem))
    except ValueError as error:
        raise pki.CertificateError(f"this is not a certificate: {error}", expected="two in PEM") from error
    if (pki.spki_sha256(issued), issued.subject) != (pki.spki_sha256(ca.certificate), ca.certificate.subject):
        raise pki.CertificateError(
            f"the certificate is of {issued.subject.rfc4514_string()}, or of another key",
            expected=f"{ca.certificate.subject.rfc4514_string()} with the key in the vault",
            remedy=f"make the request anew with `freehold pki request {role}`",
        )
    pki.require_authority(issued, root, now)
    if role == "agent":
        served = pki.served_addresses(certified(vault, "controller-tls").certificate)
        pki.require_zone("agent CA", issued, served, "make the request anew with `freehold pki request agent`")
    known = vault.get(ROOT_CERTIFICATE)
    if known is not None and known != root_pem:
        raise pki.CertificateError(
            "the site has another root",
            expected=f"root {pki.sha256(x509.load_pem_x509_certificate(known))}",
            remedy="issue it under that root; a root is not replaced while CAs depend on it",
        )
    vault.put(ROOT_CERTIFICATE, root_pem)
    recertify(state_dir, vault, NAMES[role], issued)
    SiteKeys.load(state_dir, vault, lambda: now)  # writes the files


def bmc_ca(vault: Vault) -> CertifiedKey:
    """Raises `SiteKeysError` in a vault that was made before there was one, until `SiteKeys.create` completes it."""
    return certified(vault, NAMES["bmc"])


def issue_bmc_certificate(vault: Vault, key: pki.PublicKey, address: str, now: datetime) -> x509.Certificate:
    """For the BMC at `address`. Raises `CertificateError`."""
    ca = bmc_ca(vault)
    return pki.bmc_certificate(key, ca.certificate, ca.private_key, address, now)


def bmc_revocation_list(vault: Vault, now: datetime) -> bytes:
    """The BMC CA's list (PEM), signed anew when half of its life is over."""
    stored = vault.get(_CRL)
    if stored is None or pki.is_stale(x509.load_pem_x509_crl(stored), now):
        return revoke(vault, (), now)
    return stored


def revoke(vault: Vault, serials: Sequence[int], now: datetime) -> bytes:
    """The next list of the BMC CA (PEM), with these serial numbers on it."""
    ca = bmc_ca(vault)

    def change(stored: bytes | None) -> bytes:
        last = x509.load_pem_x509_crl(stored) if stored is not None else None
        return pki.pem(pki.revocation_list(ca.certificate, ca.private_key, last, serials, now))

    vault.update(_CRL, change)
    found = vault.get(_CRL)
    assert found is not None
    return found


def revoked(vault: Vault) -> dict[int, datetime]:
    """The serial numbers that the BMC CA revoked, and when."""
    stored = vault.get(_CRL)
    if stored is None:
        return {}
    return pki.revoked_serials(x509.load_pem_x509_crl(stored), bmc_ca(vault).certificate)


def own_claims(vault: Vault) -> list[dict[str, Any]]:
    """What there is to say of the site's own certificates: the root, the issuing CAs, the controller's."""
    stored = vault.get(ROOT_CERTIFICATE)
    root = x509.load_pem_x509_certificate(stored) if stored is not None else None
    claims = [pki.claim(root, "root")] if root is not None else []
    for role, name in (("agent CA", "agent-ca"), ("BMC CA", "bmc-ca")):
        ca = certified(vault, name).certificate
        trusted = NO_ROOT if root is None or pki.is_self_signed(ca) else pki.sha256(root)
        claims.append(pki.claim(ca, role, root=trusted, zone=[str(network) for network in pki.zone(ca)]))
    return [*claims, pki.claim(certified(vault, "controller-tls").certificate, "controller")]


def unrecorded(vault: Vault) -> list[dict[str, Any]]:
    """The claims of own certificates and of revocations that are not marked as recorded."""
    done = _recorded(vault)
    revocations = [
        {"event": "revoked", "issuer": "BMC CA", "serial": f"{serial:x}", "at": at.isoformat()}
        for serial, at in revoked(vault).items()
    ]
    return [claim for claim in (*own_claims(vault), *revocations) if _digest(claim) not in done]


def mark_recorded(vault: Vault, claim: dict[str, Any]) -> None:
    vault.update(_RECORDED, lambda stored: msgspec.json.encode([*_decode(stored), _digest(claim)]))


def _recorded(vault: Vault) -> frozenset[str]:
    return frozenset(_decode(vault.get(_RECORDED)))


def _decode(stored: bytes | None) -> list[str]:
    return msgspec.json.decode(stored, type=list[str]) if stored is not None else []


def _digest(claim: dict[str, Any]) -> str:
    return hashlib.sha256(canonical.dumps(claim)).hexdigest()
