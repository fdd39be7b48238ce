"""A cache of built things, each found by the digest of all that went into it.

An artifact is a file or a directory. Its path is `ROOT/NAME-DIGEST`, where the digest covers the name and the inputs:
the source of the builder, package versions, options. What has the same inputs is never built twice; what is there is
whole, because it was built beside the cache and renamed into it.

    cache = Cache(default_root())
    path = cache.artifact("agent-initrd", {"source": source_digest(__file__)}, build)   # build(out) makes `out`
"""

import ast
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from freehold.provisioning.images.errors import ImageBuildError
from freehold.provisioning.images.tools import run


class Step(msgspec.Struct, frozen=True):
    """One step of a build: `seconds` is the time it took, 0 unless it is done."""

    name: str
    state: Literal["started", "cached", "done"]
    seconds: float = 0.0


Progress = Callable[[Step], None]


def silent(step: Step) -> None:
    """The progress callback for those who do not want to know."""


@contextmanager
def timed(name: str, progress: Progress) -> Iterator[None]:
    """Report a step that is never cached."""
    progress(Step(name, "started"))
    begun = time.monotonic()
    yield
    progress(Step(name, "done", time.monotonic() - begun))


def default_root() -> Path:
    """`FREEHOLD_CACHE`, or `~/.cache/freehold`."""
    return Path(os.environ.get("FREEHOLD_CACHE") or Path.home() / ".cache/freehold")


def digest_of(inputs: object) -> str:
    """SHA-256, in hex, of plain data (JSON with sorted keys)."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def source_digest(*files: str | Path) -> str:
    """Digest of what Python source says: comments and layout do not count, so that they cost no rebuild."""
    return digest_of([ast.dump(ast.parse(Path(file).read_bytes())) for file in files])


def tree_digest(directory: Path, pattern: str = "*.py") -> str:
    """Digest of the names and bytes of the files below a directory that match the pattern."""
    files = sorted(path for path in directory.rglob(pattern) if path.is_file())
    return digest_of([[str(f.relative_to(directory)), hashlib.sha256(f.read_bytes()).hexdigest()] for f in files])


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Remove a file or a tree, but never what is mounted in it."""
    if path.is_symlink() or path.exists():
        run("rm", "-rf", "--one-file-system", path)


class Cache:
    """The cache at `root`, which is made when the first artifact is."""

    def __init__(self, root: Path, progress: Progress = silent) -> None:
        self.root, self.progress = root, progress

    def artifact(self, name: str, inputs: Mapping[str, object], build: Callable[[Path], None]) -> Path:
        """The path of the artifact; `build(out)` makes it at `out` if it is not there.

        Two processes that want the same artifact build it once: the second waits for the first.
        """
        target = self.root / f"{name}-{digest_of([name, inputs])[:24]}"
        if target.exists():
            self.progress(Step(name, "cached"))
            return target
        work = self.root / "work" / target.name
        work.parent.mkdir(parents=True, exist_ok=True)
        with locked(work.with_name(f"{target.name}.lock")):
            if target.exists():
                self.progress(Step(name, "cached"))
                return target
            remove(work)  # what a killed build left: nobody else can be in it, the lock is ours
            work.mkdir()
            try:
                with timed(name, self.progress):
                    build(work / "out")
                    if not (work / "out").exists():
                        raise ImageBuildError(f"the builder of {name} ended well but made nothing")
                    (work / "out").rename(target)
            finally:
                remove(work)
        return target


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file; the kernel lets go of it if this process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
