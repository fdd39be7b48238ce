"""The transparency log on disk: append-only, tamper-evident, safe against kill -9 at any point.

    evidence/checkpoint             the signed note; an entry is committed when a checkpoint covers it
    evidence/tile/entries/000 …     C2SP entry bundles of 256 signed statements; the last one is appended to in place
    evidence/lock                   flock of the single writer

An append writes the entries, fsyncs, and then replaces the checkpoint. So whatever lies behind the checkpoint was never
reported as committed and is cut off at the next opening; whatever the checkpoint covers must be there, byte for byte.
"""

import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from freehold.evidence import checkpoint as notes
from freehold.evidence import durable, merkle, statement, tiles
from freehold.evidence.checkpoint import Checkpoint
from freehold.evidence.signer import PublicKey, Signer
from freehold.evidence.statement import Statement
from freehold.model.errors import FreeholdError

CHECKPOINT = "checkpoint"


class LogRefused(FreeholdError):
    """The directory is not what its checkpoint says: changed, cut or foreign."""


class LogBusy(FreeholdError):
    """Another process has the log open for writing."""


class StatementTooLarge(FreeholdError):
    """A signed statement of more than 65,535 bytes."""


class LogEntry(msgspec.Struct, frozen=True):
    """`index` counts from 0; `leaf_hash` is 32 bytes; `envelope` is the DSSE envelope as stored."""

    index: int
    leaf_hash: bytes
    envelope: bytes


class LogView:
    """A log as of one checkpoint, read without a lock: `LogView.open(directory, public_key, origin)`."""

    def __init__(self, directory: Path, origin: str, key: PublicKey) -> None:
        self.directory, self.origin, self.key = directory, notes.check_origin(origin), key
        self.tree = merkle.Tree()
        self._head = _Head(0, b"")  # replaced as one, after the tree has grown: readers in other threads see a whole

    @classmethod
    def open(cls, directory: Path, key: PublicKey, origin: str) -> "LogView":
        """Reads and checks everything the checkpoint covers. Raises `LogRefused` or `CheckpointRefused`."""
        view = cls(directory, origin, key)
        view._load()
        return view

    @property
    def size(self) -> int:
        """The number of committed entries."""
        return self._head.size

    def checkpoint(self) -> bytes:
        """The signed note over the whole log."""
        return self._head.note

    def inclusion_proof(self, index: int) -> list[bytes]:
        """For entry `index` in the tree of the current checkpoint."""
        return self.tree.inclusion_proof(index, self.size)

    def consistency_proof(self, old_size: int) -> list[bytes]:
        """That the current checkpoint's log is the log of `old_size` with entries appended."""
        return self.tree.consistency_proof(old_size, self.size)

    def snapshot(self) -> tuple[bytes, list[bytes]]:
        """The checkpoint and exactly the envelopes that it covers, also while a writer appends."""
        head = self._head
        return head.note, [entry.envelope for entry in self.entries() if entry.index < head.size]

    def entry(self, index: int) -> LogEntry:
        """Entry `index`, checked against its leaf hash again. Raises IndexError or `LogRefused`."""
        if not 0 <= index < self.size:
            raise IndexError(f"the log has {self.size} entries; there is no entry {index}")
        return self._bundle(index // tiles.WIDTH)[index % tiles.WIDTH]

    def entries(self, start: int = 0) -> Iterator[LogEntry]:
        """Entries from `start` to the checkpoint, each checked against its leaf hash."""
        size = self.size
        for bundle in range(start // tiles.WIDTH, -(-size // tiles.WIDTH)):
            yield from (entry for entry in self._bundle(bundle) if start <= entry.index < size)

    def _bundle(self, number: int) -> list[LogEntry]:
        first = number * tiles.WIDTH
        hashes = self.tree.levels[0][first : min(first + tiles.WIDTH, self.size)]
        stored = self._read(number)[0][: len(hashes)]
        if [merkle.leaf_hash(data) for data in stored] != hashes:
            raise LogRefused(f"the entries in {self._path(number)} were changed", remedy="restore the log from a copy")
        return [LogEntry(first + at, hashes[at], data) for at, data in enumerate(stored)]

    def _path(self, number: int) -> Path:
        return self.directory / tiles.tile_path("entries", number)

    def _read(self, number: int) -> tuple[list[bytes], bytes]:
        """The complete entries of a bundle (none if the file is missing), and all its bytes."""
        try:
            data = self._path(number).read_bytes()
        except FileNotFoundError:
            return [], b""
        return tiles.decode_entries(data)[0], data

    def _load(self) -> None:
        """Rebuilds the tree from disk up to the checkpoint."""
        path = self.directory / CHECKPOINT
        if not path.exists():
            raise LogRefused(f"{self.directory} holds no evidence log", expected=f"a checkpoint at {path}")
        note = path.read_bytes()
        signed = notes.verify(note, self.origin, self.key)
        tree = merkle.Tree()
        for number in range(-(-signed.size // tiles.WIDTH)):
            for entry in self._read(number)[0][: signed.size - tree.size]:
                tree.append(merkle.leaf_hash(entry))
            if tree.size < min(signed.size, (number + 1) * tiles.WIDTH):
                raise LogRefused(
                    f"entry {tree.size} of the evidence log is missing or cut: {self._path(number)}",
                    expected=f"{signed.size} entries, as the signed checkpoint says",
                    remedy="restore the log from a copy; a crash cannot cause this",
                )
        if tree.root() != signed.root:
            raise LogRefused(
                f"the entries in {self.directory} were changed: their root is not that of the signed checkpoint",
                remedy="restore the log from a copy; a crash cannot cause this",
            )
        self.tree, self._head = tree, _Head(signed.size, note)


class EvidenceLog(LogView):
    """The one writer. Blocking (three fsyncs an append): in async code call it in a thread; threads may share it."""

    def __init__(self, directory: Path, origin: str, signer: Signer) -> None:
        super().__init__(directory, origin, PublicKey.from_pem(signer.public_key_pem))
        self._signer = signer
        self._mutex = threading.Lock()
        self._lock = -1
        self._doubtful = False
        self._tail_length = 0
        self.cut_bytes = 0

    @classmethod
    def open_for_writing(cls, directory: Path, signer: Signer, origin: str) -> "EvidenceLog":
        """Opens, or creates in a missing or empty `directory`. Cuts what a crash left; `cut_bytes` says how much.

        Raises `LogBusy`, `LogRefused`, `CheckpointRefused`.
        """
        log = cls(directory, origin, signer)
        durable.make_directory(directory)
        log._acquire()
        try:
            if not (directory / CHECKPOINT).exists():
                log._create()
            log._load()
        except BaseException:
            log.close()
            raise
        return log

    def append(self, claim: Statement) -> LogEntry:
        """Signs and commits one statement; on return it survives a power cut."""
        return self.append_all([claim])[0]

    def append_all(self, claims: Sequence[Statement]) -> list[LogEntry]:
        """Signs and commits the statements together: all or none, for the price of one append.

        Raises `StatementRefused`, `StatementTooLarge`, and OSError (disk full) with nothing committed.
        """
        envelopes = [statement.sign(claim, self._signer).to_bytes() for claim in claims]
        for claim, envelope in zip(claims, envelopes, strict=True):
            if len(envelope) > tiles.MAX_ENTRY:
                raise StatementTooLarge(
                    f"a signed {claim.kind} statement of {len(envelope)} bytes",
                    expected=f"at most {tiles.MAX_ENTRY} bytes",
                    remedy="keep the bulk as an artifact and name its SHA-256 in the predicate",
                )
        with self._mutex:
            if self._lock < 0:
                raise LogBusy(f"the evidence log in {self.directory} is closed")
            if self._doubtful:
                self._load()
            self._doubtful = True  # until everything below succeeds: after a failed write, believe the disk
            entries = self._commit(envelopes) if envelopes else []
            self._doubtful = False
            return entries

    def close(self) -> None:
        """Lets another writer in. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> "EvidenceLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _commit(self, envelopes: Sequence[bytes]) -> list[LogEntry]:
        start, hashes = self.size, [merkle.leaf_hash(envelope) for envelope in envelopes]
        tail, at = self._tail_length, 0
        while at < len(envelopes):
            number, filled = divmod(start + at, tiles.WIDTH)
            part = b"".join(map(tiles.encode_entry, envelopes[at : at + tiles.WIDTH - filled]))
            path = self._path(number)
            durable.make_directory(path.parent)
            durable.write_at(path, tail if filled else 0, part)
            tail = (tail if filled else 0) + len(part)
            at += tiles.WIDTH - filled
        size = start + len(envelopes)
        note = notes.sign(Checkpoint(self.origin, size, self.tree.root_after(hashes)), self._signer)
        durable.replace(self.directory / CHECKPOINT, note)
        for leaf in hashes:
            self.tree.append(leaf)
        self._tail_length, self._head = tail, _Head(size, note)
        return [LogEntry(start + i, hashes[i], envelope) for i, envelope in enumerate(envelopes)]

    def _acquire(self) -> None:
        path = self.directory / "lock"
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._lock, 20).decode("ascii", "replace").strip() or "unknown"
            self.close()
            raise LogBusy(
                f"the evidence log in {self.directory} is open for writing in another process (pid {holder})",
                remedy="stop that process, or read the log with LogView",
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _create(self) -> None:
        if (self.directory / "tile").exists():
            raise LogRefused(
                f"the evidence log in {self.directory} has entries and no checkpoint",
                remedy="restore the log from a copy; a crash cannot cause this",
            )
        empty = Checkpoint(self.origin, 0, merkle.EMPTY_ROOT)
        durable.replace(self.directory / CHECKPOINT, notes.sign(empty, self._signer))

    def _load(self) -> None:
        super()._load()
        number, filled = divmod(self.size, tiles.WIDTH)
        entries, data = self._read(number)
        self._tail_length = sum(2 + len(entry) for entry in entries[:filled])
        self.cut_bytes = len(data) - self._tail_length
        if self.cut_bytes:
            durable.write_at(self._path(number), self._tail_length, b"")
        number += 1
        while (torn := self._path(number)).exists():
            self.cut_bytes += torn.stat().st_size
            durable.remove(torn)
            number += 1
        self._refuse_foreign_files()

    def _refuse_foreign_files(self) -> None:
        """A file with a later bundle's name would be taken for ours one day."""
        ours = {self._path(number) for number in range(self.size // tiles.WIDTH + 1)}
        for path in (self.directory / "tile").rglob("*"):
            if path not in ours and (path.is_symlink() or not path.is_dir()):
                raise LogRefused(f"{path} is no part of the evidence log", remedy="move it out of the way")


class _Head(msgspec.Struct, frozen=True):
    size: int
    note: bytes
