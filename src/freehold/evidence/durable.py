"""File changes that a power cut cannot halve: write aside, fsync, rename, fsync the folder."""

import os
from contextlib import suppress
from pathlib import Path

_ASIDE = ".aside"


def make_directory(path: Path, mode: int = 0o755) -> None:
    """Makes `path` and its parents, each entry fsynced into its parent."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(folder, mode)  # noqa: PTH102 - all of this module goes through `os`, where tests inject crashes
        sync_directory(folder.parent)


def sync_directory(path: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, data: bytes, mode: int = 0o644) -> None:
    """`path` has either its old content or all of `data`, whenever the power goes."""
    aside = path.with_name(path.name + _ASIDE)
    with suppress(FileNotFoundError):
        os.unlink(aside)  # noqa: PTH108
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(aside, path)  # noqa: PTH105
    sync_directory(path.parent)


def move(source: Path, descriptor: int, path: Path) -> None:
    """The file at `source`, open as `descriptor` and written to its end, becomes `path`; durable on return."""
    os.fsync(descriptor)
    os.replace(source, path)  # noqa: PTH105
    sync_directory(path.parent)


def write_at(path: Path, offset: int, data: bytes, mode: int = 0o644) -> None:
    """`path` becomes its first `offset` bytes and `data`; durable on return. What lay behind `offset` is gone first."""
    new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, mode)
    try:
        os.ftruncate(descriptor, offset)
        os.lseek(descriptor, offset, os.SEEK_SET)
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if new:
        sync_directory(path.parent)


def shred(path: Path) -> None:
    """Overwrites a file in place with random bytes, then removes it; each step durable. A missing file is done already.

    On flash and on copy-on-write file systems the old blocks may outlive this: it is one layer, not the proof.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        write_all(descriptor, os.urandom(os.fstat(descriptor).st_size))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.unlink(path)  # noqa: PTH108
    sync_directory(path.parent)


def shred_tree(path: Path) -> None:
    """Shreds every file below `path` and removes the folders; a crash in between is finished by repeating it."""
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            shred(Path(folder, name))
        os.rmdir(folder)  # noqa: PTH106
    sync_directory(path.parent)


def remove(path: Path) -> None:
    """Removes a file, durably. A missing file is done already."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108
        sync_directory(path.parent)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """`os.write` until everything is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
