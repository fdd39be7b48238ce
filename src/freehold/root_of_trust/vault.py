"""The embedded vault: secrets at rest, each under its own key, in files that a crash cannot halve.

    vault/vault.json                    format and the id of the key-encryption key (KEK)
    vault/records/<path>@<version>      one secret: wrapped data key (DEK), nonce, AES-256-GCM ciphertext
    vault/records/<path>@<version>.destroyed    which key was destroyed there; blocks every version up to its own

The DEK is new with every version. Path and version are authenticated data of both layers, so a record that is moved,
renamed or mixed from two is refused. The highest version counts; what lies below it is a crash's leftover.
Secrets appear in no repr and in no error.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from freehold.evidence import durable
from freehold.model.errors import FreeholdError
from freehold.root_of_trust.kek import KeyEncryptionKey

_FORMAT = 1
_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}(/[A-Za-z0-9][A-Za-z0-9._:-]{0,99}){0,7}\Z")
_NAME = re.compile(r"(?P<leaf>[^@]+)@(?P<version>[1-9][0-9]{0,15})(?P<destroyed>\.destroyed)?\Z")


class VaultError(FreeholdError):
    """The vault cannot be used as asked."""


class WrongKeyEncryptionKey(VaultError):
    """The vault was made with another key-encryption key."""


class TamperedRecord(VaultError):
    """A record that does not decrypt: changed, moved, or cut."""


class DestroyedKey(msgspec.Struct, frozen=True, kw_only=True):
    """For the key-destruction statement. Neither field helps to recover the key.

    `key_id`: SHA-256 of the wrapped key and its context, hex. `kek_id`: which KEK had wrapped it.
    """

    path: str
    version: int
    key_id: str
    kek_id: str


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name and a password that no repr shows.

    `note`: numbers that must survive with it, such as log-in tries counted before they are made.
    """

    username: str
    password: str = field(repr=False)
    note: dict[str, float] = field(default_factory=dict)


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    wrapped_key: bytes
    nonce: bytes
    sealed: bytes


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    kek_id: str


class Vault:
    """Blocking; every change takes the vault's flock, so threads and processes may share a directory."""

    def __init__(self, directory: Path, kek: KeyEncryptionKey) -> None:
        self.directory, self._kek = directory, kek
        self._records = directory / "records"

    def __repr__(self) -> str:
        return f"Vault({str(self.directory)!r})"

    @classmethod
    def create(cls, directory: Path, kek: KeyEncryptionKey) -> "Vault":
        """A new vault in a missing or empty directory; a creation that a crash cut short can be repeated."""
        if (directory / "vault.json").exists() or (directory / "records").exists():
            raise VaultError(f"{directory} already holds a vault", remedy="open it, or choose another directory")
        durable.make_directory(directory, 0o700)
        header = _Header(_FORMAT, kek.key_id)
        durable.replace(directory / "vault.json", msgspec.json.encode(header), 0o600)
        return cls(directory, kek)

    @classmethod
    def open(cls, directory: Path, kek: KeyEncryptionKey) -> "Vault":
        """Raises `VaultError` if there is none, `WrongKeyEncryptionKey` if `kek` is not its key."""
        try:
            header = msgspec.json.decode((directory / "vault.json").read_bytes(), type=_Header)
        except FileNotFoundError:
            raise VaultError(f"{directory} holds no vault", remedy="create one") from None
        except msgspec.MsgspecError as error:
            raise TamperedRecord(f"{directory / 'vault.json'} is not a vault's header: {error}") from error
        if header.format != _FORMAT:
            raise VaultError(f"the vault {directory} has format {header.format}", expected=f"format {_FORMAT}")
        if header.kek_id != kek.key_id:
            raise WrongKeyEncryptionKey(
                f"the vault {directory} cannot be opened with this key-encryption key or passphrase",
                expected=f"key {header.kek_id}",
                remedy="give the key that the vault was made with",
            )
        return cls(directory, kek)

    def get(self, path: str) -> bytes | None:
        """The secret at `path`, or None if there is none (any more). Raises `TamperedRecord`."""
        while True:
            version = self._live(path)
            if version is None:
                return None
            try:
                return self._unseal(path, version)
            except FileNotFoundError:
                continue  # a writer put a newer version between the look and the read

    def put(self, path: str, secret: bytes) -> None:
        """Stores `secret` at `path`; on return it survives a power cut and the previous version's key is shredded."""
        with self._exclusive():
            self._put(path, secret)

    def paths(self, prefix: str = "") -> list[str]:
        """The paths that hold a secret, sorted: `prefix` itself and all below it."""
        return sorted(path for path in self._paths(prefix) if self._live(path) is not None)

    def slots(self, path: str) -> "CredentialSlots":
        """The two-phase credential at `path`."""
        return CredentialSlots(self, path)

    def update(self, path: str, change: Callable[[bytes | None], bytes]) -> None:
        """`put(path, change(get(path)))` with nobody in between."""
        with self._exclusive():
            self._put(path, change(self.get(path)))

    def destroy(self, prefix: str) -> list[DestroyedKey]:
        """Crypto-shreds `prefix` and all below it: overwrites and removes the records with their wrapped keys.

        Can be repeated after a crash: keys that an earlier call destroyed are reported until their path is reused.
        """
        _check(prefix)
        with self._exclusive():
            for path in self.paths(prefix):
                version = self._live(path)
                if version is not None:
                    note = msgspec.json.encode(self._destroyed(path, version))
                    durable.replace(self._file(path, version, ".destroyed"), note, 0o600)
            for aside in self._records.rglob("*@*.aside"):  # a put that a crash cut short
                path = aside.relative_to(self._records).as_posix().partition("@")[0]
                if _below(path, prefix):
                    durable.shred(aside)
            found: list[DestroyedKey] = []
            for path in sorted(self._paths(prefix)):
                records, destroyed = self._versions(path)
                for version in records:
                    durable.shred(self._file(path, version))
                if destroyed:
                    data = self._file(path, max(destroyed), ".destroyed").read_bytes()
                    found.append(msgspec.json.decode(data, type=DestroyedKey))
            return found

    def _put(self, path: str, secret: bytes) -> None:
        records, destroyed = self._versions(path)
        version = max([0, *records, *destroyed]) + 1
        context = _context(path, version)
        key, nonce = AESGCM.generate_key(256), os.urandom(12)
        record = _Record(self._kek.wrap(key, context), nonce, AESGCM(key).encrypt(nonce, secret, context))
        file = self._file(path, version)
        durable.make_directory(file.parent, 0o700)
        durable.replace(file, msgspec.json.encode(record), 0o600)
        for old in records:
            durable.shred(self._file(path, old))
        for old in destroyed:
            durable.remove(self._file(path, old, ".destroyed"))

    def _unseal(self, path: str, version: int) -> bytes:
        context = _context(path, version)
        try:
            data = self._file(path, version).read_bytes()
            record = msgspec.json.decode(data, type=_Record)
            if msgspec.json.encode(record) != data:
                raise ValueError("another spelling of the same record")
            key = self._kek.unwrap(record.wrapped_key, context)
            return AESGCM(key).decrypt(record.nonce, record.sealed, context)
        except (msgspec.MsgspecError, InvalidTag, ValueError):
            raise TamperedRecord(
                f"the vault's record {path} (version {version}) was changed, moved or cut",
                remedy="restore the vault from a copy; a crash cannot cause this",
            ) from None

    def _destroyed(self, path: str, version: int) -> DestroyedKey:
        digest = hashlib.sha256(_context(path, version) + self._file(path, version).read_bytes()).hexdigest()
        return DestroyedKey(path=path, version=version, key_id=digest, kek_id=self._kek.key_id)

    def _live(self, path: str) -> int | None:
        records, destroyed = self._versions(path)
        newest = max(records, default=0)
        return newest if newest > max(destroyed, default=0) else None

    def _versions(self, path: str) -> tuple[list[int], list[int]]:
        """The versions that have a record, and those that have a note of destruction."""
        file = self._records / _check(path)
        records: list[int] = []
        destroyed: list[int] = []
        for name in _names(file.parent):
            if (match := _NAME.match(name)) and match["leaf"] == file.name:
                (destroyed if match["destroyed"] else records).append(int(match["version"]))
        return records, destroyed

    def _paths(self, prefix: str) -> set[str]:
        """Every path at or below `prefix` that has or had a record."""
        found: set[str] = set()
        for file in self._records.rglob("*@*"):
            if match := _NAME.match(file.name):
                path = (file.parent / match["leaf"]).relative_to(self._records).as_posix()
                if _below(path, prefix):
                    found.add(path)
        return found

    def _file(self, path: str, version: int, suffix: str = "") -> Path:
        return self._records / f"{_check(path)}@{version}{suffix}"

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


class CredentialSlots:
    """A credential and its successor, for a change that may crash between the vault and the BMC.

        slots.stage("freehold", new_password)   # durable before the BMC hears of it
        …change it on the BMC, log in with it…
        slots.commit()                          # or discard(), if the BMC refused
        slots.drop_previous()

    The three slots are one record, so every step is atomic: what the BMC has is in `current`, `pending` or `previous`.
    """

    def __init__(self, vault: Vault, path: str) -> None:
        self._vault, self._path = vault, _check(path)

    def __repr__(self) -> str:
        return f"CredentialSlots({self._path!r})"

    def current(self) -> Credential | None:
        """The credential that is known to work."""
        return self._read().get("current")

    def pending(self) -> Credential | None:
        """The staged credential, of which it is not known whether the BMC has it."""
        return self._read().get("pending")

    def previous(self) -> Credential | None:
        """What `current` was before the last commit, until `drop_previous`."""
        return self._read().get("previous")

    def stage(
        self, username: str, password: str, note: dict[str, float] | None = None, *, replace: bool = False
    ) -> None:
        """Records the successor, or a new `note` of the same successor.

        Raises `VaultError` if another password is pending, as the BMC may have it already; `replace` is for a caller
        who knows that it has not.
        """

        def change(slots: dict[str, Credential]) -> dict[str, Credential]:
            old = slots.get("pending")
            if old and not replace and (old.username, old.password) != (username, password):
                raise VaultError(
                    f"a credential is already staged at {self._path}",
                    remedy="try it on the BMC, then commit or discard it",
                )
            return {**slots, "pending": Credential(username, password, note or {})}

        self._change(change)

    def commit(self) -> None:
        """`pending` becomes `current`, and `current` becomes `previous`. Raises `VaultError` if nothing is pending."""

        def change(slots: dict[str, Credential]) -> dict[str, Credential]:
            if "pending" not in slots:
                raise VaultError(f"no credential is staged at {self._path}")
            kept = {"previous": slots["current"]} if "current" in slots else {}
            return {"current": slots["pending"], **kept}

        self._change(change)

    def discard(self) -> None:
        """Forgets `pending`; nothing happens if there is none."""
        self._change(lambda slots: {name: value for name, value in slots.items() if name != "pending"})

    def drop_previous(self) -> None:
        """Forgets `previous`; nothing happens if there is none."""
        self._change(lambda slots: {name: value for name, value in slots.items() if name != "previous"})

    def _read(self) -> dict[str, Credential]:
        return _decode(self._vault.get(self._path))

    def _change(self, change: Callable[[dict[str, Credential]], dict[str, Credential]]) -> None:
        self._vault.update(self._path, lambda data: _encode(change(_decode(data))))


def _encode(slots: dict[str, Credential]) -> bytes:
    return json.dumps({name: [value.username, value.password, value.note] for name, value in slots.items()}).encode()


def _decode(data: bytes | None) -> dict[str, Credential]:
    return {name: Credential(*value) for name, value in json.loads(data or b"{}").items()}


def _context(path: str, version: int) -> bytes:
    return f"freehold-vault/{_FORMAT}\0{path}\0{version}".encode()


def _check(path: str) -> str:
    if not _PATH.match(path):
        raise VaultError(f"{path!r} is not a path of the vault", expected="up to 8 names of letters, digits and ._:-")
    return path


def _below(path: str, prefix: str) -> bool:
    return not prefix or path == prefix or path.startswith(prefix + "/")


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except FileNotFoundError:
        return []
