"""Reading what may be hostile: a folder on carried media. No link is followed, and only regular files are read."""

import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Protocol

from freehold.evidence import durable
from freehold.root_of_trust.depot.errors import DataEndless, MetadataIncomplete

Progress = Callable[[int, int], None]
"""Bytes done, bytes in all."""

CHUNK = 1 << 20
_WINDOW = 16 << 20
_STEP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class Readable(Protocol):
    def readinto(self, buffer: bytearray, /) -> int | None: ...


def silent(_done: int, _total: int) -> None:
    """No progress."""


def open_beneath(root: Path, name: str) -> FileIO:
    """Opens `name` (steps parted by `/`) below `root` for reading, unbuffered.

    Raises `FileNotFoundError`, and `MetadataIncomplete` for what is a link, leads elsewhere, or is no regular file.
    """
    *folders, last = name.split("/")
    if not all(_STEP.fullmatch(step) for step in (*folders, last)):
        raise MetadataIncomplete(f"{name!r} is not a name of a file in a depot")
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = below
        # O_NONBLOCK: a FIFO must not make us wait for somebody to write into it
        descriptor = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _not_plain(root, name) from error
    finally:
        os.close(here)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_plain(root, name)
    return FileIO(descriptor, "rb")


def read_beneath(root: Path, name: str, limit: int) -> bytes:
    """The whole of a small file, or `DataEndless` if it has more than `limit` bytes."""
    with open_beneath(root, name) as file:
        data = bytearray()
        while piece := file.read(limit + 1 - len(data)):
            data += piece
            if len(data) > limit:
                raise endless(name, limit)
    return bytes(data)


def copy_digest(
    source: Readable, into: int, limit: int | None = None, total: int = 0, progress: Progress = silent
) -> tuple[int, str]:
    """Copies to the end in one reading, into a descriptor: `(length, SHA-256 in hex)` of what was written.

    Stops with `DataEndless` at the first byte behind `limit`.
    """
    digest, buffer, length, flushed = hashlib.sha256(), bytearray(CHUNK), 0, 0
    view = memoryview(buffer)
    while count := source.readinto(buffer):
        length += count
        if limit is not None and length > limit:
            raise endless(str(getattr(source, "name", "a file")), limit)
        digest.update(view[:count])
        durable.write_all(into, view[:count])
        if length - flushed >= _WINDOW:
            # begins to write it out now; left to the end, the kernel throttles us at an arbitrary moment (measured: 3x)
            os.posix_fadvise(into, 0, length, os.POSIX_FADV_DONTNEED)
            flushed = length
        progress(length, total)
    return length, digest.hexdigest()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds a flock on `path`; it goes with the process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def endless(name: str, limit: int) -> DataEndless:
    return DataEndless(
        f"{name} has more than the {limit} bytes that it may have",
        remedy="do not use this medium: a file that does not end is an attack, or a broken file system",
    )


def _not_plain(root: Path, name: str) -> MetadataIncomplete:
    return MetadataIncomplete(
        f"{name} in {root} is a link, a device or a folder",
        expected="a regular file",
        remedy="copy the depot with its files, not with links to them (`cp -rL`)",
    )
