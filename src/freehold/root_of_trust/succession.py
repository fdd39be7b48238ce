"""Another key in the place of one of the site's: of an issuing CA, or of the key that signs image manifests.

    vault   site/keys/NAME                              the key that counts, and its generation
            site/keys/NAME-next                         a CA's next key, until the root has certified it
            site/keys/agent-ca-1, controller-tls-1, …   by what agents of an earlier generation know the controller

Who may do it is decided elsewhere: two operators approve (`orchestration.key_replacements`), or two custodians open the
root. The old private key is destroyed at once. Only the agent CA's is kept until no installed OS trusts it any more
(`finish`): it then vouches for nobody but the controller, at a port of its own.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from freehold.model.errors import FreeholdError
from freehold.root_of_trust import pki
from freehold.root_of_trust.keys import (
    Identity,
    SiteKeys,
    StoredKey,
    Succession,
    encode_key,
    key_path,
    stored_key,
)
from freehold.root_of_trust.vault import Vault

TITLES = {"agent-ca": "agent CA", "bmc-ca": "BMC CA", "image": "image key"}
"""The keys that can be replaced: name in the vault -> what people call them."""

_FILES = {"agent-ca": "agent-ca.pem", "bmc-ca": "bmc-ca.pem", "image": "image.pub"}
_KEPT = ("agent-ca", "controller-tls")


class ReplacementRefused(FreeholdError):
    """A site key that cannot be replaced so, or not now."""


def next_generation(vault: Vault, name: str) -> tuple[int, str]:
    """(number of the generation to come, SHA-256 of the public key that it replaces)."""
    held = stored_key(vault, name)
    return held.generation + 1, held.spki_sha256


def replace(
    state: Path, vault: Vault, name: str, generation: int, replaces: str, reason: str, now: datetime
) -> StoredKey:
    """A new key in the place of just that one; a CA's vouches for itself. Repeating it changes nothing. Raises
    `ReplacementRefused` if another key is there by now."""
    held = stored_key(vault, name)
    if held.succession is not None and (held.generation, held.succession.replaces) == (generation, replaces):
        SiteKeys.load(state, vault, lambda: now)  # writes the files that a crash may have left out
        return held
    if (held.generation + 1, held.spki_sha256) != (generation, replaces):
        raise ReplacementRefused(
            f"the {TITLES[name]} is generation {held.generation} (key {held.spki_sha256}) by now",
            expected=f"the one before generation {generation}: key {replaces}",
            remedy="ask anew",
        )
    became = Succession(generation=generation, replaces=replaces, reason=reason, at=now.timestamp())
    if held.certificate is None:
        return _succeed(state, vault, name, encode_key(ed25519.Ed25519PrivateKey.generate(), None, became), now)
    zone = pki.zone(x509.load_pem_x509_certificate(held.certificate.encode()))
    return _succeed(state, vault, name, _new_authority(vault, name, zone, became, now), now)


def stage(vault: Vault, name: str, zone: Sequence[pki.Network], reason: str, now: datetime) -> bytes:
    """Make a CA's next key, and the request (PEM) for the root to certify it; a request made before is void. It counts
    when `install` brings the root's certificate."""
    generation, replaces = next_generation(vault, name)
    became = Succession(generation=generation, replaces=replaces, reason=reason, at=now.timestamp())
    vault.put(key_path(f"{name}-next"), _new_authority(vault, name, zone, became, now))
    made = staged(vault, name)
    assert made is not None
    key = serialization.load_pem_private_key(made.private_key.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return pki.pem(pki.authority_request(key, _certificate(made).subject, zone))


def staged(vault: Vault, name: str) -> StoredKey | None:
    """A CA's next key, if there is one."""
    stored = vault.get(key_path(f"{name}-next"))
    return msgspec.json.decode(stored, type=StoredKey) if stored is not None else None


def is_staged(vault: Vault, name: str, issued: x509.Certificate) -> bool:
    """Whether the certificate is of the CA's next key, and of its name."""
    made = staged(vault, name)
    return made is not None and (made.spki_sha256, _certificate(made).subject) == (
        pki.spki_sha256(issued),
        issued.subject,
    )


def install(state: Path, vault: Vault, name: str, issued: x509.Certificate, now: datetime) -> StoredKey:
    """The staged key takes its CA's place, with the certificate that the root gave it; the caller has verified that.
    Raises `ReplacementRefused` if the CA was replaced since it was staged."""
    made = staged(vault, name)
    assert made is not None
    whole = msgspec.structs.replace(made, certificate=pki.pem(issued).decode())
    done = _succeed(state, vault, name, msgspec.json.encode(whole), now)
    forget_staged(vault, name)
    return done


def forget_staged(vault: Vault, name: str) -> None:
    """Destroy the staged key, if it has taken its place."""
    made = staged(vault, name)
    if made is not None and made.spki_sha256 == stored_key(vault, name).spki_sha256:
        vault.destroy(key_path(f"{name}-next"))


def bmc_ca_key_id(vault: Vault) -> str | None:
    """`pki.key_id` of the BMC CA, if it is not the first one any more."""
    if vault.get(key_path("bmc-ca")) is None:  # made before there was one
        return None
    held = stored_key(vault, "bmc-ca")
    return pki.key_id(_certificate(held)) if held.generation > 1 else None


def former_agent_authorities(vault: Vault) -> tuple[int, ...]:
    """Generations of the agent CA that agents may still know the controller by, without the present one."""
    held = stored_key(vault, "agent-ca").generation
    return tuple(each for each in range(1, held) if vault.get(key_path(f"agent-ca-{each}")) is not None)


def finish(vault: Vault) -> tuple[int, ...]:
    """Destroy the former agent CAs and what they vouch for; their generations."""
    gone = former_agent_authorities(vault)
    for generation in range(1, stored_key(vault, "agent-ca").generation):
        for name in _KEPT:  # the CA first: what it vouches for is looked for only while it is there
            vault.destroy(key_path(f"{name}-{generation}"))
    return gone


def _new_authority(vault: Vault, name: str, zone: Sequence[pki.Network], became: Succession, now: datetime) -> bytes:
    stored = vault.get(key_path("identity"))
    assert stored is not None  # whoever has a CA has it
    site = msgspec.json.decode(stored, type=Identity).site_name
    key = ec.generate_private_key(ec.SECP256R1())
    title = f"{TITLES[name]} {became.generation}"  # no two keys of one name: a verifier finds the issuer by it
    return encode_key(key, pki.self_signed_authority(key, site, title, zone, now), became)


def _succeed(state: Path, vault: Vault, name: str, successor: bytes, now: datetime) -> StoredKey:
    """Put the record in the place of the one that it replaces, and whatever depends on it right."""
    became = msgspec.json.decode(successor, type=StoredKey)
    assert became.succession is not None
    wanted, held = became.succession.replaces, stored_key(vault, name)
    if name == "agent-ca" and held.spki_sha256 == wanted:
        for kept in _KEPT:
            record = vault.get(key_path(kept))
            assert record is not None
            vault.put(key_path(f"{kept}-{held.generation}"), record)
    (state / "keys" / _FILES[name]).unlink(missing_ok=True)  # first: a crash must not leave a file that disagrees

    def change(stored: bytes | None) -> bytes:
        there = msgspec.json.decode(stored or b"", type=StoredKey)
        if there.spki_sha256 != wanted:
            raise ReplacementRefused(
                f"the {TITLES[name]} was replaced since this was asked for",
                expected=f"key {wanted} to be there still",
                remedy="ask anew",
            )
        return successor

    vault.update(key_path(name), change)
    SiteKeys.load(state, vault, lambda: now)  # the controller's certificate, and the files
    return became


def _certificate(stored: StoredKey) -> x509.Certificate:
    return x509.load_pem_x509_certificate((stored.certificate or "").encode())
