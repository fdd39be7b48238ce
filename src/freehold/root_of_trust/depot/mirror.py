"""Carry-in: take over a depot from removable media, all of it or nothing.

The medium goes through a whole TUF client update against a *copy* of the trusted state, then every file that the new
list names is copied and checked, and only then does the new metadata appear, as `repository` says. Whatever goes wrong
on the way leaves nothing behind but files that are good anyhow; repeating it goes on.
"""

from io import FileIO
from pathlib import Path
from typing import NamedTuple

from freehold.evidence import durable
from freehold.root_of_trust.depot.depot import Depot
from freehold.root_of_trust.depot.errors import DepotError, MetadataIncomplete
from freehold.root_of_trust.depot.files import Progress, copy_digest, exclusive, open_beneath, silent
from freehold.root_of_trust.depot.package import Target
from freehold.root_of_trust.depot.trusted import View, advance, scratch_copy

_ROOTS = "root_history"  # where python-tuf keeps the roots that it verified


class Mirrored(NamedTuple):
    """What came in: `copied` are new here."""

    view: View
    copied: tuple[Target, ...]


def mirror(depot: Depot, source: Path, progress: Progress = silent) -> Mirrored:
    """Takes over the depot in the directory `source`. Repeating it copies nothing anew.

    Raises `MetadataRefused` (expired, replayed, cut, endless, unsigned) or `DepotError`; then nothing is changed.
    """
    if depot.publishes:
        raise DepotError(
            f"{depot.directory} publishes itself and follows no other depot",
            remedy="bring packages in with `freehold depot import`, or mirror into another state directory",
        )
    with scratch_copy(depot.directory) as trusted, exclusive(depot.directory / "lock"):
        view, _ = advance(source, trusted)
        missing = tuple(target for target in view.packages if not depot.repository.holds(target))
        total, done = sum(target.length for target in missing), 0
        for target in missing:
            _take(depot, source, target, lambda part, _, before=done: progress(before + part, total))  # type: ignore[misc]
            done += target.length
        depot.repository.write(_metadata(trusted, view))
    depot.client()
    return Mirrored(view, missing)


def _take(depot: Depot, source: Path, target: Target, progress: Progress) -> None:
    incoming = depot.directory / "incoming"
    durable.remove(incoming)
    try:
        with open_beneath(source / "targets", target.stored_name) as there, FileIO(incoming, "x") as here:
            length, digest = copy_digest(there, here.fileno(), target.length, target.length, progress)
            if (length, digest) != (target.length, target.sha256):
                raise _refused(source, target, f"has {length} bytes with SHA-256 {digest}")
            depot.repository.adopt(incoming, here.fileno(), target)
    except FileNotFoundError as error:
        raise _refused(source, target, "is missing") from error
    except OSError as error:
        raise _refused(source, target, f"cannot be read or stored: {error.strerror}") from error
    finally:
        durable.remove(incoming)


def _metadata(trusted: Path, view: View) -> dict[str, bytes]:
    """The verified metadata in the order of publishing, from python-tuf's own copies."""
    roots = sorted((trusted / _ROOTS).glob("*.root.json"), key=lambda path: int(path.name.partition(".")[0]))
    return {
        **{path.name: path.read_bytes() for path in roots},
        f"{view.targets.version}.targets.json": (trusted / "targets.json").read_bytes(),
        f"{view.snapshot.version}.snapshot.json": (trusted / "snapshot.json").read_bytes(),
        "timestamp.json": (trusted / "timestamp.json").read_bytes(),
    }


def _refused(source: Path, target: Target, what: str) -> MetadataIncomplete:
    return MetadataIncomplete(
        f"{source / 'targets' / target.stored_name} {what}",
        expected=f"{target.length} bytes with SHA-256 {target.sha256}",
        remedy="copy the depot to the medium again, and completely; nothing was changed here",
    )
