"""A newc cpio archive, the form of an initrd (Linux Documentation/driver-api/early-userspace/buffer-format.rst).

Same entries, same bytes: owner 0, time 0, inode numbers in order. Archives can be appended to each other, compressed or
not, if each starts at a multiple of 4 bytes.
"""

import stat
from collections.abc import Iterable
from typing import NamedTuple


class Entry(NamedTuple):
    """One member: `mode` includes the file type; `data` is the content of a file or the target of a symbolic link."""

    path: str
    mode: int
    data: bytes = b""


def file(path: str, data: bytes, mode: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(path, stat.S_IFREG | mode, data)


def link(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive, with the directories that the paths need, padded to a multiple of 4 bytes."""
    out = bytearray()
    known: set[str] = set()
    number = 0
    for entry in entries:
        parents = entry.path.split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            if (directory := "/".join(parents[:depth])) not in known:
                known.add(directory)
                out += _member(Entry(directory, stat.S_IFDIR | 0o755), number := number + 1)
        if entry.path in known:
            raise ValueError(f"{entry.path} is in the archive twice")
        known.add(entry.path)
        out += _member(entry, number := number + 1)
    return bytes(out + _member(Entry("TRAILER!!!", 0), 0))


def directory(path: str, mode: int = 0o755) -> Entry:
    """An empty directory."""
    return Entry(path, stat.S_IFDIR | mode)


def padded(data: bytes) -> bytes:
    """The data with zeros up to a multiple of 4 bytes."""
    return data + bytes(-len(data) % 4)


def _member(entry: Entry, number: int) -> bytes:
    name = entry.path.encode() + b"\0"
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (number, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return padded(header + name) + padded(entry.data)
