"""The operator's keys: private halves in the vault, public halves as files in `keys/`. Of Secure Boot keys there may be
many; `secure_boot_keys` keeps them.

Each key is one vault record (private half and certificate together), written once. So a creation that a crash cut short
is completed by repeating it: what exists stays, what is missing is made, and the files are derived from the vault.
A file in `keys/` that disagrees with the vault is an error, never overwritten. `succession` replaces keys.
"""

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from freehold.evidence import Ed25519Signer, durable
from freehold.model.errors import FreeholdError
from freehold.root_of_trust import pki
from freehold.root_of_trust.secure_boot_keys import SecureBootKeyring
from freehold.root_of_trust.vault import Vault

_ROOT = "site/keys"
ROOT_CERTIFICATE = "site/pki/root"
"""Vault path of the root's certificate (PEM), if a ceremony was held. Its key is never in the vault."""
ROOT_CRL = "site/pki/root-crl"
"""Vault path of the list (PEM) of issuing CAs that the root revoked."""


class SiteKeysError(FreeholdError):
    """The site's keys are missing, incomplete, or not those of its public files."""


class Identity(msgspec.Struct, frozen=True):
    """What the certificates say of the site; `owner_guid` is the SignatureOwner in PK, KEK and db."""

    site_name: str
    owner_guid: UUID
    addresses: tuple[str, ...]


class Succession(msgspec.Struct, frozen=True, kw_only=True):
    """How a key came to its name after another one. `replaces`: the public key before it (SHA-256 of the SPKI, hex);
    `at`: UNIX seconds."""

    generation: int
    replaces: str
    reason: str
    at: float


class StoredKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record of the vault. `succession` is None for the first key of a name, which is generation 1."""

    private_key: str
    certificate: str | None = None
    succession: Succession | None = None

    @property
    def generation(self) -> int:
        return self.succession.generation if self.succession is not None else 1

    @property
    def spki_sha256(self) -> str:
        """Hex SHA-256 of the public half's SubjectPublicKeyInfo."""
        public = serialization.load_pem_private_key(self.private_key.encode(), None).public_key()
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return hashlib.sha256(public.public_bytes(serialization.Encoding.DER, form)).hexdigest()


class CertifiedKey:
    """A private key and its certificate. The repr shows the subject only."""

    def __init__(self, private_pem: bytes, certificate_pem: bytes, generation: int = 1) -> None:
        self.private_pem, self.certificate_pem, self.generation = private_pem, certificate_pem, generation
        self.certificate = x509.load_pem_x509_certificate(certificate_pem)

    def __repr__(self) -> str:
        return f"CertifiedKey({self.certificate.subject.rfc4514_string()!r})"

    @property
    def certificate_der(self) -> bytes:
        """The certificate in DER."""
        return pki.der(self.certificate)

    @property
    def private_key(self) -> ec.EllipticCurvePrivateKey:
        """The key of a CA. Raises `SiteKeysError` for another kind of key."""
        key = serialization.load_pem_private_key(self.private_pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise SiteKeysError(f"the key of {self!r} is not an EC key")
        return key


class SiteKeys:
    """All keys of one site: `SiteKeys.create(…)` once, then `SiteKeys.load(…)`."""

    def __init__(
        self,
        identity: Identity,
        evidence: Ed25519Signer,
        image: Ed25519Signer,
        secure_boot: SecureBootKeyring,
        agent_ca: CertifiedKey,
        controller_tls: CertifiedKey,
        bmc_ca: CertifiedKey | None,
        root: bytes | None,
        *,
        image_generation: int = 1,
        former_tls: tuple[CertifiedKey, ...] = (),
        root_crl: bytes | None = None,
    ) -> None:
        """`bmc_ca` is None in a vault that was made before there was one; `root`: its certificate (PEM), if any, and
        `root_crl` what it revoked. `former_tls`: the controller's keys for agents that know a former agent CA only."""
        self.identity, self.evidence, self.image = identity, evidence, image
        self.secure_boot, self.agent_ca, self.controller_tls = secure_boot, agent_ca, controller_tls
        self.bmc_ca, self.root, self.root_crl = bmc_ca, root, root_crl
        self.image_generation, self.former_tls = image_generation, former_tls

    def __repr__(self) -> str:
        return f"SiteKeys({self.identity.site_name!r}, evidence={self.evidence.key_id})"

    @classmethod
    def create(
        cls,
        state_dir: Path,
        vault: Vault,
        site_name: str,
        controller_addresses: Sequence[str],
        now: Callable[[], datetime] = pki.utc_now,
        *,
        bmc_networks: Sequence[str],
    ) -> "SiteKeys":
        """Makes what is missing and returns everything. Repeating it changes nothing. `bmc_networks` are the prefixes
        that the BMC CA may speak for.

        Raises `SiteKeysError` if the vault holds keys of another site or for other addresses.
        """
        asked, zone = tuple(map(str, pki.addresses(controller_addresses))), pki.networks(bmc_networks)
        wanted = Identity(site_name, uuid4(), asked)
        identity = msgspec.json.decode(_once(vault, "identity", lambda: msgspec.json.encode(wanted)), type=Identity)
        if (identity.site_name, identity.addresses) != (site_name, asked):
            raise SiteKeysError(
                f"the vault holds the keys of site {identity.site_name!r} at {', '.join(identity.addresses)}",
                expected=f"site {site_name!r} at {', '.join(asked)}",
                remedy="use another state directory for another site; site keys are never replaced silently",
            )
        for name in ("evidence", "image"):
            _once(vault, name, lambda: encode_key(ed25519.Ed25519PrivateKey.generate(), None))
        SecureBootKeyring(vault, site_name, identity.owner_guid).create(now())
        _once(vault, "agent-ca", lambda: _new_agent_ca(identity, now()))
        _once(vault, "bmc-ca", lambda: _new_bmc_ca(site_name, zone, now()))
        _once(vault, "controller-tls", lambda: _new_controller_tls(vault, identity, now()))
        return cls.load(state_dir, vault, now)

    @classmethod
    def load(cls, state_dir: Path, vault: Vault, now: Callable[[], datetime] = pki.utc_now) -> "SiteKeys":
        """Reads all keys, renews the controller's TLS certificate when a third of its life is left, and restores files.

        Raises `SiteKeysError` if a key is missing or a file in `keys/` is not the vault's public half.
        """
        identity = msgspec.json.decode(_required(vault, "identity"), type=Identity)
        agent_ca = certified(vault, "agent-ca")
        keys = cls(
            identity,
            _signer(vault, "evidence"),
            _signer(vault, "image"),
            SecureBootKeyring(vault, identity.site_name, identity.owner_guid),
            agent_ca,
            _controller_tls(vault, identity, now(), ""),
            certified(vault, "bmc-ca") if vault.get(f"{_ROOT}/bmc-ca") is not None else None,
            vault.get(ROOT_CERTIFICATE),
            image_generation=stored_key(vault, "image").generation,
            former_tls=tuple(
                _controller_tls(vault, identity, now(), suffix)
                for number in range(1, agent_ca.generation)
                if vault.get(f"{_ROOT}/agent-ca{(suffix := f'-{number}')}") is not None
            ),
            root_crl=vault.get(ROOT_CRL),
        )
        _publish(state_dir / "keys", keys.public_files())
        return keys

    @property
    def agent_trust(self) -> tuple[int, int]:
        """What an agent that is built now believes: generations of the agent CA and of the image key."""
        return self.agent_ca.generation, self.image_generation

    @property
    def tls_anchor(self) -> bytes:
        """The certificate (PEM) to trust for the controller's: self-signed, as not every TLS stack takes another."""
        authority = self.agent_ca.certificate
        certified_by_root = self.root is not None and authority.issuer != authority.subject
        return self.root if self.root is not None and certified_by_root else self.agent_ca.certificate_pem

    def public_files(self) -> dict[str, bytes]:
        """The content of `keys/`, by file name."""
        return {
            "evidence.pub": self.evidence.public_key_pem,
            "image.pub": self.image.public_key_pem,
            "agent-ca.pem": self.agent_ca.certificate_pem,
            **({"bmc-ca.pem": self.bmc_ca.certificate_pem} if self.bmc_ca else {}),
            **({"root.pem": self.root} if self.root else {}),
            **({"root.crl": self.root_crl} if self.root_crl else {}),
            **{f"{name}.pem": pem for name, pem in self.secure_boot.certificates().items()},
            "owner-guid": f"{self.identity.owner_guid}\n".encode(),
        }


def secure_boot_keyring(vault: Vault) -> SecureBootKeyring:
    """The site's Secure Boot keys, without all the others. Raises `SiteKeysError` in a vault without a site."""
    identity = msgspec.json.decode(_required(vault, "identity"), type=Identity)
    return SecureBootKeyring(vault, identity.site_name, identity.owner_guid)


def make_depot_key(vault: Vault) -> Ed25519Signer:
    """The depot's online key (snapshot and timestamp), made now if it is missing. Its root has to name it."""
    _once(vault, "depot", lambda: encode_key(ed25519.Ed25519PrivateKey.generate(), None))
    return depot_key(vault)


def depot_key(vault: Vault) -> Ed25519Signer:
    """Raises `SiteKeysError` if the vault has none: a new one would not be the one that the operators signed."""
    return _signer(vault, "depot")


def _once(vault: Vault, name: str, make: Callable[[], bytes]) -> bytes:
    """The record, made now if it is missing."""
    found = vault.get(f"{_ROOT}/{name}")
    if found is None:
        vault.update(f"{_ROOT}/{name}", lambda there: there if there is not None else make())
        found = _required(vault, name)
    return found


def _required(vault: Vault, name: str) -> bytes:
    found = vault.get(f"{_ROOT}/{name}")
    if found is None:
        raise SiteKeysError(f"the vault lacks the site's {name} key", remedy="create the site's keys (again)")
    return found


def key_path(name: str) -> str:
    """Where the vault has the key of that name."""
    return f"{_ROOT}/{name}"


def stored_key(vault: Vault, name: str) -> StoredKey:
    """The record of a key. Raises `SiteKeysError`."""
    return msgspec.json.decode(_required(vault, name), type=StoredKey)


def encode_key(
    key: ed25519.Ed25519PrivateKey | pki.PrivateKey,
    certificate: x509.Certificate | None,
    succession: Succession | None = None,
) -> bytes:
    """The record of a key, as the vault has it."""
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = pki.pem(certificate).decode() if certificate else None
    return msgspec.json.encode(StoredKey(private.decode(), public, succession))


def _new_agent_ca(identity: Identity, now: datetime) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return encode_key(key, pki.agent_ca(key, identity.site_name, pki.addresses(identity.addresses), now))


def _new_bmc_ca(site: str, zone: Sequence[pki.Network], now: datetime) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return encode_key(key, pki.bmc_ca(key, site, zone, now))


def _controller_tls(vault: Vault, identity: Identity, now: datetime, suffix: str) -> CertifiedKey:
    """The controller's key under the agent CA with this suffix, made anew if it ends soon or is of another CA."""
    name, ca = f"controller-tls{suffix}", certified(vault, f"agent-ca{suffix}")
    held = certified(vault, name)
    if pki.needs_renewal(held.certificate, now) or not pki.is_issued_by(held.certificate, ca.certificate):
        vault.put(key_path(name), _new_controller_tls(vault, identity, now, suffix))
        held = certified(vault, name)
    return CertifiedKey(held.private_pem, held.certificate_pem, ca.generation)


def _new_controller_tls(vault: Vault, identity: Identity, now: datetime, suffix: str = "") -> bytes:
    ca, key = certified(vault, f"agent-ca{suffix}"), ec.generate_private_key(ec.SECP256R1())
    served = pki.addresses(identity.addresses)
    made = pki.controller_certificate(key, ca.certificate, ca.private_key, identity.site_name, served, now)
    return encode_key(key, made)


def certified(vault: Vault, name: str) -> CertifiedKey:
    """The key of that name and its certificate. Raises `SiteKeysError`."""
    stored = stored_key(vault, name)
    if stored.certificate is None:
        raise SiteKeysError(f"the vault's {name} key has no certificate")
    return CertifiedKey(stored.private_key.encode(), stored.certificate.encode(), stored.generation)


def recertify(state_dir: Path, vault: Vault, name: str, certificate: x509.Certificate) -> None:
    """Put another certificate of the same key in the place of the present one, in the vault and in `keys/`."""
    path, pem = state_dir / "keys" / f"{name}.pem", pki.pem(certificate)

    def change(stored: bytes | None) -> bytes:
        old = msgspec.json.decode(stored or b"", type=StoredKey)
        return msgspec.json.encode(msgspec.structs.replace(old, certificate=pem.decode()))

    path.unlink(missing_ok=True)  # first: a crash must not leave a file that disagrees
    vault.update(f"{_ROOT}/{name}", change)
    durable.replace(path, pem)


def _signer(vault: Vault, name: str) -> Ed25519Signer:
    stored = stored_key(vault, name)
    return Ed25519Signer.from_private_pem(stored.private_key.encode())


def _publish(folder: Path, files: dict[str, bytes]) -> None:
    durable.make_directory(folder)
    for name, data in files.items():
        path = folder / name
        if not path.exists():
            durable.replace(path, data)
        elif path.read_bytes() != data:
            raise SiteKeysError(
                f"{path} is not the public half of the key in the vault",
                remedy="find out which of the two was changed; remove the file to have it written from the vault",
            )
