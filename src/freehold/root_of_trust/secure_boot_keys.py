"""Keeper of the site's Secure Boot keys: private halves in the vault or in a PKCS#11 token, and their generations.

    vault   site/keys/pk, kek, db, db-1f3a9c20, …   key and certificate; of a key in a token, where it is and its PIN
            site/keys/secure-boot                   the generations, oldest first

A key's name is never used again, and a generation names keys that are there: so the key is stored first, and what a
crash leaves behind is a key that nothing names.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from functools import partial
from secrets import token_hex
from uuid import UUID

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from freehold.model.errors import FreeholdError
from freehold.root_of_trust import pki
from freehold.root_of_trust import secure_boot_generations as generations
from freehold.root_of_trust.secure_boot_generations import ROLES, Generation, KeySet, Role
from freehold.root_of_trust.secure_boot_signing import Signer, sign_image
from freehold.root_of_trust.vault import Vault

_ROOT = "site/keys"
_GENERATIONS = f"{_ROOT}/secure-boot"
_TITLES = {"pk": "PK", "kek": "KEK", "db": "db"}


class SecureBootKeysMissing(FreeholdError):
    """A Secure Boot key or generation that the vault does not hold."""


class TokenPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where a key is. `module`: the token's shared library; `token`, `serial`: its label and number; `key_id`: CKA_ID
    in hex."""

    module: str
    token: str
    serial: str
    key_id: str
    pin: str

    def __repr__(self) -> str:
        return f"TokenPlace({self.token!r}, key {self.key_id})"


class _StoredKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """`private_key` (PEM), or the token that has it."""

    certificate: str
    private_key: str | None = None
    token: TokenPlace | None = None

    @property
    def loaded(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate.encode())


class SecureBootKeyring:
    """The keys of one site. Blocking, as the vault is; threads may share it."""

    def __init__(self, vault: Vault, site: str, owner: UUID) -> None:
        self._vault, self._site, self._owner = vault, site, owner
        self._known: dict[int, KeySet] = {}

    def create(self, now: datetime) -> None:
        """The first keys and the first generation, where they are missing. Repeating it changes nothing."""
        for role in ROLES:
            if self._vault.get(f"{_ROOT}/{role}") is None:
                self._vault.update(f"{_ROOT}/{role}", partial(_unless_there, self._make(role, now)))
        first = self.generations()
        self._vault.update(_GENERATIONS, partial(_unless_there, msgspec.json.encode(first)))

    def generations(self) -> tuple[Generation, ...]:
        """All of them; the newest is the last."""
        stored = self._vault.get(_GENERATIONS)
        if stored is not None:
            return msgspec.json.decode(stored, type=tuple[Generation, ...])
        return (generations.first(self._key("db").loaded.not_valid_before_utc.timestamp()),)

    def newest(self) -> Generation:
        return self.generations()[-1]

    def generation(self, number: int) -> Generation:
        """Raises `SecureBootKeysMissing` if there is none of that number."""
        found = next((each for each in self.generations() if each.number == number), None)
        if found is None:
            raise SecureBootKeysMissing(
                f"the site has no generation {number} of Secure Boot keys",
                remedy="this vault is older than the store: restore the vault that belongs to it",
            )
        return found

    def key_set(self, number: int) -> KeySet:
        """What generation `number` enrols. Raises `SecureBootKeysMissing` if there is none of that number."""
        if number not in self._known:  # a generation never changes
            found = self.generation(number)
            pk, kek, *db = (pki.der(self._key(name).loaded) for name in found.keys)
            dbx = tuple(map(bytes.fromhex, found.dbx))
            self._known[number] = KeySet(generation=number, owner=self._owner, pk=pk, kek=kek, db=tuple(db), dbx=dbx)
        return self._known[number]

    def newest_set(self) -> KeySet:
        return self.key_set(self.newest().number)

    def certificates(self) -> dict[str, bytes]:
        """The certificates (PEM) of every key that a generation names, by name."""
        names = dict.fromkeys(name for each in self.generations() for name in each.keys)
        return {name: self._key(name).certificate.encode() for name in names}

    @contextmanager
    def signers(self, *names: str) -> Iterator[tuple[Signer, ...]]:
        """These keys, ready to sign. Raises `SigningTokenUnavailable` if one is in a token that is not there."""
        with ExitStack() as open_tokens:
            yield tuple(self._signer(name, open_tokens) for name in names)

    def sign(self, image: bytes) -> bytes:
        """The unsigned image, with a signature of every key in the newest db."""
        with self.signers(*self.newest().db) as signers:
            return sign_image(image, signers)

    def revoke(self, digest: str, reason: str, now: datetime) -> Generation:
        """Put an image's Authenticode digest (SHA-256, hex) into dbx. Raises `GenerationRefused`."""
        return self._append(lambda known: generations.revoking(known[-1], digest, reason, now.timestamp()))

    def rotate(self, role: Role, reason: str, now: datetime, token: tuple[str, str, str] | None = None) -> Generation:
        """Make a new key for `role`; in a token, if one is named: (module, label, PIN). Raises `GenerationRefused`."""
        name = f"{role}-{token_hex(4)}"
        generations.rotating(self.newest(), role, name, reason, now.timestamp())  # refuses before a key is made
        self._vault.put(f"{_ROOT}/{name}", self._make(name, now, token))
        return self._append(lambda known: generations.rotating(known[-1], role, name, reason, now.timestamp()))

    def finish(self, carried: Mapping[str, int], reason: str, now: datetime) -> Generation:
        """End the rotation of db. Raises `GenerationRefused`; `carried` as `generations.without_old_db` wants it."""
        return self._append(lambda known: generations.without_old_db(known, carried, reason, now.timestamp()))

    def _append(self, decide: Callable[[Sequence[Generation]], Generation]) -> Generation:
        """The generation that `decide` makes of those that are there. Nobody comes in between."""
        first, made = self.generations(), []

        def append(stored: bytes | None) -> bytes:
            known = msgspec.json.decode(stored, type=tuple[Generation, ...]) if stored is not None else first
            made.append(decide(known))
            return msgspec.json.encode((*known, made[-1]))

        self._vault.update(_GENERATIONS, append)
        return made[-1]

    def _make(self, name: str, now: datetime, token: tuple[str, str, str] | None = None) -> bytes:
        """A new key and its certificate, as they are stored."""
        if token is not None:
            from freehold.root_of_trust.secure_boot_token import make_key

            place, kept = make_key(*token)
            with closing(kept):
                return msgspec.json.encode(_StoredKey(self._certify(name, kept, now), token=place))
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        plain = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return msgspec.json.encode(_StoredKey(self._certify(name, key, now), private_key=plain.decode()))

    def _certify(self, name: str, key: rsa.RSAPrivateKey, now: datetime) -> str:
        role, _, number = name.partition("-")
        title = (
            f"{_TITLES[role]} {number}".strip()
        )  # the subjects of two keys differ, so that people can tell them apart
        return pki.pem(pki.secure_boot_certificate(key, self._site, title, now)).decode()

    def _key(self, name: str) -> _StoredKey:
        stored = self._vault.get(f"{_ROOT}/{name}")
        if stored is None:
            raise SecureBootKeysMissing(
                f"the vault lacks the site's {name} key", remedy="create the site's keys (again): `freehold serve`"
            )
        return msgspec.json.decode(stored, type=_StoredKey)

    def _signer(self, name: str, open_tokens: ExitStack) -> Signer:
        stored = self._key(name)
        if stored.token is not None:
            from freehold.root_of_trust.secure_boot_token import open_key

            return Signer(stored.loaded, open_tokens.enter_context(closing(open_key(stored.token))))
        key = serialization.load_pem_private_key((stored.private_key or "").encode(), None)
        assert isinstance(key, rsa.RSAPrivateKey)
        return Signer(stored.loaded, key)


def newest_generation(vault: Vault) -> int:
    """The number of the site's newest generation; 1 if nothing was ever changed."""
    stored = vault.get(_GENERATIONS)
    return msgspec.json.decode(stored, type=tuple[Generation, ...])[-1].number if stored is not None else 1


def _unless_there(made: bytes, stored: bytes | None) -> bytes:
    return stored if stored is not None else made
