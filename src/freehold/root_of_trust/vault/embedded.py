"""The embedded vault: secrets at rest, each under its own key, in files that a crash cannot halve.

    vault/vault.json                     the header: which KEK, which people, which records folder (`header.py`)
    vault/records…/<path>@<version>      one secret under its data key (`records.py`)
    vault/records…/<path>@<version>.destroyed   which key was destroyed there; blocks every version up to its own

The data key (DEK) is new with every version. The highest version counts; what lies below it is a crash's leftover.
Another KEK means another records folder: all of it is written and read back, then one rename switches the header, then
the old folder is shredded. So at every moment the vault opens with the old key or with the new one.
Secrets appear in no repr and in no error.
"""

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from freehold.evidence import durable
from freehold.root_of_trust.kek import KeyEncryptionKey
from freehold.root_of_trust.vault import header as headers
from freehold.root_of_trust.vault.credentials import CredentialSlots
from freehold.root_of_trust.vault.header import Header
from freehold.root_of_trust.vault.interface import (
    DestroyedKey,
    RecordReport,
    TamperedRecord,
    VaultError,
    check_path,
    is_path,
)
from freehold.root_of_trust.vault.records import Keys, Record, decode, seal, unseal

_NAME = re.compile(r"(?P<leaf>[^@]+)@(?P<version>[1-9][0-9]{0,15})(?P<destroyed>\.destroyed)?\Z")


class EmbeddedVault:
    """A `Vault` in a directory. Every change takes its flock, so threads and processes may share the directory."""

    def __init__(self, directory: Path, header: Header, keys: Keys, now: Callable[[], float] = time.time) -> None:
        self.directory, self.header, self._keys, self._now = directory, header, keys, now

    def __repr__(self) -> str:
        return f"EmbeddedVault({str(self.directory)!r})"

    @classmethod
    def create(
        cls,
        directory: Path,
        kek: KeyEncryptionKey,
        people: Mapping[str, str] | None = None,
        now: Callable[[], float] = time.time,
    ) -> "EmbeddedVault":
        """A new vault in a missing or empty directory; a creation that a crash cut short can be repeated.

        `people`: name -> age recipient of those of whom any two can recover; none, and the vault is lost with its KEK.
        """
        if (directory / "vault.json").exists() or next(directory.glob("records*"), None):
            raise VaultError(f"{directory} already holds a vault", remedy="open it, or choose another directory")
        durable.make_directory(directory, 0o700)
        header, keys = headers.new_header(kek, people or {}, "records")
        headers.write_header(directory, header)
        return cls(directory, header, keys, now)

    @classmethod
    def open(cls, directory: Path, kek: KeyEncryptionKey, now: Callable[[], float] = time.time) -> "EmbeddedVault":
        """Raises `VaultError` if there is none, `WrongKeyEncryptionKey` if `kek` is not its key, `TamperedRecord`."""
        header = headers.read_header(directory)
        return cls(directory, header, headers.keys_by_kek(directory, header, kek), now)

    @classmethod
    def recover(
        cls, directory: Path, identities: Sequence[str], now: Callable[[], float] = time.time
    ) -> "EmbeddedVault":
        """Opens with the age identities of two people, for reading and for `rekey`. Raises `RecoveryRefused` too."""
        header = headers.read_header(directory)
        return cls(directory, header, headers.keys_by_people(directory, header, identities), now)

    def get(self, path: str) -> bytes | None:
        """See `Vault.get`."""
        check_path(path)
        with self._unchanged():
            while True:
                version = self._live(path)
                if version is None:
                    return None
                try:
                    return self._unseal(path, version)[0]
                except FileNotFoundError:
                    continue  # a writer put a newer version between the look and the read

    def put(self, path: str, secret: bytes) -> None:
        """See `Vault.put`."""
        check_path(path)
        with self._exclusive():
            self._put(path, secret)

    def paths(self, prefix: str = "") -> list[str]:
        """See `Vault.paths`."""
        with self._unchanged():
            return sorted(path for path in self._paths(prefix) if self._live(path) is not None)

    def slots(self, path: str) -> CredentialSlots:
        """The two-phase credential at `path`."""
        return CredentialSlots(self, path)

    def update(self, path: str, change: Callable[[bytes | None], bytes]) -> None:
        """See `Vault.update`; here `change` is called once."""
        check_path(path)
        with self._exclusive():
            self._put(path, change(self.get(path)))

    def destroy(self, prefix: str) -> list[DestroyedKey]:
        """See `Vault.destroy`: records with their wrapped keys are overwritten before they are removed."""
        check_path(prefix)
        with self._exclusive():
            for path in self.paths(prefix):
                version = self._live(path)
                if version is not None:
                    note = msgspec.json.encode(self._destroyed(path, version))
                    durable.replace(self._file(path, version, ".destroyed"), note, 0o600)
            for file in self._files(prefix):
                if file.name.endswith(".aside"):  # a put that a crash cut short
                    durable.shred(file)
            found: list[DestroyedKey] = []
            for path in sorted(self._paths(prefix)):
                records, destroyed = self._versions(path)
                for version in records:
                    durable.shred(self._file(path, version))
                if destroyed:
                    found.append(self._note(path, max(destroyed)))
            return found

    def audit(self) -> list[RecordReport]:
        """See `Vault.audit`. A record that was taken away, or an older copy of all, leaves nothing to see here."""
        with self._unchanged():
            found = [self._report(path, version) for path in self._paths("") if (version := self._live(path))]
            return sorted([*found, *self._strays()], key=lambda report: report.path)

    def rekey(self, kek: KeyEncryptionKey, people: Mapping[str, str] | None = None) -> None:
        """Every secret under a new data key, wrapped by `kek`, and a new recovery key; then the old folder is shredded.

        `people` None keeps those of before. Raises, and leaves the vault as it was, if one record cannot be read: a
        rekey must not lose what a copy may still restore.
        """
        if people is None:
            people = self.header.recovery.people if self.header.recovery else {}
        with self._exclusive(recovered=True):
            self._sweep()
            header, keys = headers.new_header(kek, people, f"records.{os.urandom(4).hex()}")
            fresh = EmbeddedVault(self.directory, header, keys, self._now)
            durable.make_directory(fresh._records, 0o700)
            for path in sorted(self._paths("")):
                self._copy(path, fresh)
            headers.write_header(self.directory, header)
            self.header, self._keys = header, keys
            self._sweep()

    def sweep(self) -> None:
        """Shreds the records folders that a crash in `rekey` left behind."""
        if any(folder.name != self.header.records for folder in self.directory.glob("records*")):
            with self._exclusive():
                self._sweep()

    @property
    def _records(self) -> Path:
        return self.directory / self.header.records

    def _copy(self, path: str, fresh: "EmbeddedVault") -> None:
        """The live record, read back, or else the note of its destruction."""
        version = self._live(path)
        if version is None:
            _, destroyed = self._versions(path)
            if destroyed:
                file = fresh._file(path, max(destroyed), ".destroyed")
                durable.make_directory(file.parent, 0o700)
                durable.replace(file, msgspec.json.encode(self._note(path, max(destroyed))), 0o600)
            return
        secret, at = self._unseal(path, version)
        if at is None:  # format 1: the file's time is the best that there is
            at = int(self._file(path, version).stat().st_mtime)
        fresh._write(path, version, at, secret)
        if fresh._unseal(path, version)[0] != secret:
            raise VaultError(
                f"{path} did not read back under the new key", remedy="look after the disk; nothing was changed"
            )

    def _put(self, path: str, secret: bytes) -> None:
        records, destroyed = self._versions(path)
        self._write(path, max([0, *records, *destroyed]) + 1, int(self._now()), secret)
        for old in records:
            durable.shred(self._file(path, old))
        for old in destroyed:
            durable.remove(self._file(path, old, ".destroyed"))

    def _write(self, path: str, version: int, at: int, secret: bytes) -> None:
        file = self._file(path, version)
        record = seal(self._keys, path, version, at, secret)
        durable.make_directory(file.parent, 0o700)
        durable.replace(file, record, 0o600)

    def _unseal(self, path: str, version: int) -> tuple[bytes, int | None]:
        data = self._file(path, version).read_bytes()
        try:
            return unseal(self._keys, path, version, data)
        except ValueError as error:
            raise TamperedRecord(
                f"the vault's record {path} (version {version}) was changed, moved or cut: {error}",
                remedy="restore the vault from a copy; a crash cannot cause this",
            ) from None

    def _report(self, path: str, version: int) -> RecordReport:
        data = self._file(path, version).read_bytes()
        problem, at, kek_id, recoverable = None, None, self.header.kek_id, False
        try:
            record = decode(data)
            if isinstance(record, Record):
                at, kek_id, recoverable = record.at, record.kek_id, record.recovery is not None
            unseal(self._keys, path, version, data)
        except ValueError as error:
            problem = f"changed, moved or cut: {error}"
        return RecordReport(
            path=path, version=version, at=at, kek_id=kek_id, recoverable=recoverable, problem=problem
        )  # fmt: skip

    def _strays(self) -> Iterator[RecordReport]:
        """Files whose names the vault never gives; what a crash left aside is none."""
        for file in self._records.rglob("*"):
            name = file.relative_to(self._records).as_posix()
            if file.is_file() and not name.endswith(".aside") and self._path_of(file) is None:
                yield RecordReport(
                    path=name, version=0, at=None, kek_id="", recoverable=False, problem="not a record of the vault"
                )

    def _note(self, path: str, version: int) -> DestroyedKey:
        return msgspec.json.decode(self._file(path, version, ".destroyed").read_bytes(), type=DestroyedKey)

    def _destroyed(self, path: str, version: int) -> DestroyedKey:
        name = f"freehold-vault\0{path}\0{version}\0".encode()
        digest = hashlib.sha256(name + self._file(path, version).read_bytes()).hexdigest()
        return DestroyedKey(path=path, version=version, key_id=digest, kek_id=self.header.kek_id)

    def _live(self, path: str) -> int | None:
        records, destroyed = self._versions(path)
        newest = max(records, default=0)
        return newest if newest > max(destroyed, default=0) else None

    def _versions(self, path: str) -> tuple[list[int], list[int]]:
        """The versions that have a record, and those that have a note of destruction."""
        file = self._records / path
        records: list[int] = []
        destroyed: list[int] = []
        for name in _names(file.parent):
            if (match := _NAME.match(name)) and match["leaf"] == file.name:
                (destroyed if match["destroyed"] else records).append(int(match["version"]))
        return records, destroyed

    def _paths(self, prefix: str) -> set[str]:
        """Every path at or below `prefix` that has or had a record."""
        return {path for path in map(self._path_of, self._files(prefix)) if path is not None}

    def _files(self, prefix: str) -> list[Path]:
        """The files of the records at or below `prefix`. Only there is looked: a fleet's vault holds thousands."""
        if not prefix:
            return list(self._records.rglob("*@*"))
        top = self._records / check_path(prefix)
        return [*top.parent.glob(f"{top.name}@*"), *top.rglob("*@*")]

    def _path_of(self, file: Path) -> str | None:
        """The path whose record or note of destruction a file is, by its name."""
        if not (match := _NAME.match(file.name)):
            return None
        path = (file.parent / match["leaf"]).relative_to(self._records).as_posix()
        return path if is_path(path) else None

    def _file(self, path: str, version: int, suffix: str = "") -> Path:
        return self._records / f"{check_path(path)}@{version}{suffix}"

    def _sweep(self) -> None:
        for folder in self.directory.glob("records*"):
            if folder.name != self.header.records:
                durable.shred_tree(folder)

    @contextmanager
    def _exclusive(self, *, recovered: bool = False) -> Iterator[None]:
        if self._keys.kek is None and not recovered:
            raise VaultError("a recovered vault takes no secrets yet", remedy="rekey it first")
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._check_header()
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """What was read in here counts only if nobody switched the records folder meanwhile."""
        try:
            yield
        finally:
            self._check_header()

    def _check_header(self) -> None:
        if headers.read_header(self.directory) != self.header:
            raise VaultError(
                f"the vault {self.directory} was given another key by somebody else",
                remedy="start this again: it then opens with the new key; nothing was lost",
            )


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except FileNotFoundError:
        return []
