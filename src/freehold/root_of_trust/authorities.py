"""Keeper of the site's issuing CAs: their certificates, what they issued and revoked, and what the log still lacks.

    vault   site/keys/agent-ca, site/keys/bmc-ca    key and certificate
            site/pki/root, site/pki/root-crl        the root's certificate, if a ceremony was held; what it revoked
            site/pki/bmc-ca-crl, bmc-ca-crl-2, …    the signed revocation list of the BMC CA, by generation
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
from freehold.root_of_trust import pki, succession
from freehold.root_of_trust.keys import (
    ROOT_CERTIFICATE,
    ROOT_CRL,
    CertifiedKey,
    SiteKeys,
    certified,
    recertify,
    stored_key,
)
from freehold.root_of_trust.vault import Vault

NAMES = {"agent": "agent-ca", "bmc": "bmc-ca"}
"""The issuing CAs by the word that people use -> name of the key."""

NO_ROOT = "none"
"""What the evidence says of an issuing CA that is self-signed: its key vouches for itself."""

_RECORDED = "site/pki/recorded"


def request(vault: Vault, role: str, zone: Sequence[pki.Network]) -> bytes:
    """A request (PEM) for the root to certify the CA's present key for this zone."""
    ca = certified(vault, NAMES[role])
    return pki.pem(pki.authority_request(ca.private_key, ca.certificate.subject, zone))


def install(
    state_dir: Path,
    vault: Vault,
    role: str,
    certificate_pem: bytes,
    root_pem: bytes,
    now: datetime,
    crl_pem: bytes | None = None,
) -> None:
    """Take in what the root issued: for the key that the CA has, so what it has issued stays valid; or for the next key
    (`succession.stage`), which takes its place. Then `crl_pem` is the root's list, with the CA that goes. Raises
    `CertificateError` if the certificate is of neither key, or not of this root."""
    name = NAMES[role]
    ca = certified(vault, name)
    try:
        issued, root = (x509.load_pem_x509_certificate(pem) for pem in (certificate_pem, root_pem))
        crl = x509.load_pem_x509_crl(crl_pem) if crl_pem is not None else None
    except ValueError as error:
        raise pki.CertificateError(f"this is not a certificate: {error}", expected="PEM") from error
    kept = (pki.spki_sha256(issued), issued.subject) == (pki.spki_sha256(ca.certificate), ca.certificate.subject)
    replaces = not kept and succession.is_staged(vault, name, issued)
    if not (replaces or kept):
        raise pki.CertificateError(
            f"the certificate is of {issued.subject.rfc4514_string()}, or of another key",
            expected=f"{ca.certificate.subject.rfc4514_string()} with the key in the vault",
            remedy=f"make the request anew with `freehold pki request {role}`, or `freehold pki replace {role}`",
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
    if replaces and known is None:  # else one person could bring a root of their own, and with it a CA
        raise pki.CertificateError(
            "the site has no root, so none can vouch for another key",
            remedy=f"two operators approve it: `freehold pki replace {role} --reason TEXT`",
        )
    if crl is not None or replaces:
        _take_root_crl(state_dir, vault, crl, root, ca.certificate if replaces else None)
    if replaces:
        succession.install(state_dir, vault, name, issued, now)
        return
    vault.put(ROOT_CERTIFICATE, root_pem)
    recertify(state_dir, vault, name, issued)
    succession.forget_staged(vault, name)
    SiteKeys.load(state_dir, vault, lambda: now)  # writes the files


def _take_root_crl(
    state_dir: Path,
    vault: Vault,
    crl: x509.CertificateRevocationList | None,
    root: x509.Certificate,
    going: x509.Certificate | None,
) -> None:
    """Keep the root's list, which forgets nothing. If the root certified the CA that is `going`, it has to be on it."""
    gone = pki.revoked_serials(crl, root) if crl is not None else {}
    wanted = set(_root_revoked(vault)) if crl is not None else set()
    if going is not None and pki.is_issued_by(going, root):
        wanted.add(going.serial_number)
    if lacking := sorted(f"{serial:x}" for serial in wanted - set(gone)):
        raise pki.CertificateError(
            f"the root's list does not revoke {', '.join(lacking)}",
            expected="every issuing CA of that root that does not count any more",
            remedy=f"`freehold pki ceremony revoke root {' '.join(lacking)} …`; then give its list with --crl",
        )
    if crl is not None:
        (state_dir / "keys" / "root.crl").unlink(missing_ok=True)  # first: no file may disagree with the vault
        vault.put(ROOT_CRL, pki.pem(crl))


def _root_revoked(vault: Vault) -> dict[int, datetime]:
    stored = vault.get(ROOT_CRL)
    return pki.listed(x509.load_pem_x509_crl(stored)) if stored is not None else {}


def bmc_ca(vault: Vault) -> CertifiedKey:
    """Raises `SiteKeysError` in a vault that was made before there was one, until `SiteKeys.create` completes it."""
    return certified(vault, NAMES["bmc"])


def issue_bmc_certificate(vault: Vault, key: pki.PublicKey, address: str, now: datetime) -> x509.Certificate:
    """For the BMC at `address`. Raises `CertificateError`."""
    ca = bmc_ca(vault)
    return pki.bmc_certificate(key, ca.certificate, ca.private_key, address, now)


def bmc_revocation_list(vault: Vault, now: datetime) -> bytes:
    """The BMC CA's list (PEM), signed anew when half of its life is over."""
    stored = vault.get(_crl_path(bmc_ca(vault).generation))
    if stored is None or pki.is_stale(x509.load_pem_x509_crl(stored), now):
        return revoke(vault, (), now)
    return stored


def revoke(vault: Vault, serials: Sequence[int], now: datetime) -> bytes:
    """The next list of the BMC CA (PEM), with these serial numbers on it. It goes on from the list of the CA before."""
    while True:
        ca = bmc_ca(vault)
        carried = _revoked_before(vault, ca.generation)

        def change(stored: bytes | None, ca: CertifiedKey = ca, carried: dict[int, datetime] = carried) -> bytes:
            last = x509.load_pem_x509_crl(stored) if stored is not None else None
            made = pki.revocation_list(ca.certificate, ca.private_key, last, serials, now, carried=carried)
            return pki.pem(made)

        vault.update(_crl_path(ca.generation), change)
        if bmc_ca(vault).generation == ca.generation:  # else it was replaced just now: its list is not read any more
            found = vault.get(_crl_path(ca.generation))
            assert found is not None
            return found


def revoked(vault: Vault) -> dict[int, datetime]:
    """The serial numbers that the BMC CA, or one before it, revoked, and when."""
    ca = bmc_ca(vault)
    stored = vault.get(_crl_path(ca.generation))
    if stored is not None:
        return pki.revoked_serials(x509.load_pem_x509_crl(stored), ca.certificate)
    return _revoked_before(vault, ca.generation)


def own_claims(vault: Vault) -> list[dict[str, Any]]:
    """What there is to say of the site's own certificates: the root, the issuing CAs, the controller's."""
    stored = vault.get(ROOT_CERTIFICATE)
    root = x509.load_pem_x509_certificate(stored) if stored is not None else None
    claims = [pki.claim(root, "root")] if root is not None else []
    for role, name in (("agent CA", "agent-ca"), ("BMC CA", "bmc-ca")):
        ca = certified(vault, name).certificate
        trusted = NO_ROOT if root is None or pki.is_self_signed(ca) else pki.sha256(root)
        claims.append(pki.claim(ca, role, root=trusted, zone=[str(network) for network in pki.zone(ca)]))
    suffixes = ("", *(f"-{number}" for number in succession.former_agent_authorities(vault)))
    tls = (certified(vault, f"controller-tls{suffix}").certificate for suffix in suffixes)
    return [*claims, *(pki.claim(each, "controller") for each in tls), *_replacements(vault)]


def _replacements(vault: Vault) -> list[dict[str, Any]]:
    """What there is to say of keys that took another one's place. `at`: UNIX seconds."""
    held = ((title, stored_key(vault, name)) for name, title in succession.TITLES.items())
    return [
        {
            "event": "replaced",
            "purpose": title,
            "spki_sha256": key.spki_sha256,
            **msgspec.to_builtins(key.succession),
        }
        for title, key in held
        if key.succession is not None
    ]


def unrecorded(vault: Vault) -> list[dict[str, Any]]:
    """The claims of own certificates and of revocations that are not marked as recorded."""
    done = _recorded(vault)
    revocations = [
        {"event": "revoked", "issuer": issuer, "serial": f"{serial:x}", "at": at.isoformat()}
        for issuer, gone in (("BMC CA", revoked(vault)), ("root", _root_revoked(vault)))
        for serial, at in gone.items()
    ]
    return [claim for claim in (*own_claims(vault), *revocations) if _digest(claim) not in done]


def mark_recorded(vault: Vault, claim: dict[str, Any]) -> None:
    vault.update(_RECORDED, lambda stored: msgspec.json.encode([*_decode(stored), _digest(claim)]))


def _crl_path(generation: int) -> str:
    return "site/pki/bmc-ca-crl" + (f"-{generation}" if generation > 1 else "")


def _revoked_before(vault: Vault, generation: int) -> dict[int, datetime]:
    """What the newest list of the generations before this one has: each took over what was revoked before it."""
    for number in range(generation - 1, 0, -1):
        if (stored := vault.get(_crl_path(number))) is not None:
            return pki.listed(x509.load_pem_x509_crl(stored))
    return {}


def _recorded(vault: Vault) -> frozenset[str]:
    return frozenset(_decode(vault.get(_RECORDED)))


def _decode(stored: bytes | None) -> list[str]:
    return msgspec.json.decode(stored, type=list[str]) if stored is not None else []


def _digest(claim: dict[str, Any]) -> str:
    return hashlib.sha256(canonical.dumps(claim)).hexdigest()
