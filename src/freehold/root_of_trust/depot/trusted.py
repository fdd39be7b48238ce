"""The trusted state of a site: what it pinned, what it has seen, and how it moves forward.

    trusted/pinned.root.json     the root that a person vouched for; every later one is reached by signatures
    trusted/seen.json            the newest versions and highest floors (`seen.Seen`)
    trusted/…                    python-tuf's own copies of the newest metadata

Nothing here makes a missing state anew: a client that starts from nothing could be led back to anything.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from tuf.api import exceptions as tuf
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.ngclient import Updater

from freehold.evidence import durable
from freehold.root_of_trust import pki
from freehold.root_of_trust.depot import errors
from freehold.root_of_trust.depot.errors import MetadataReplayed, TrustedStateLost
from freehold.root_of_trust.depot.fetcher import METADATA, DirectoryFetcher
from freehold.root_of_trust.depot.files import exclusive
from freehold.root_of_trust.depot.floors import raised
from freehold.root_of_trust.depot.metadata import ROLES, online_key_of, parse, people_of
from freehold.root_of_trust.depot.package import Target, from_tuf
from freehold.root_of_trust.depot.seen import Seen, regressions, revived

PINNED, SEEN = "pinned.root.json", "seen.json"
_NEWER = "get the depot's newest state; if it is the newest, somebody holds older metadata out to this site"
_RENEW = (
    "renew it with `freehold depot publish` where it is published, carry it in anew. Root and targets are renewed by "
    "`freehold depot rotate` and the operators' signatures"
)
_AGAIN = "copy the depot again and completely; if it is complete, do not use it: its parts do not belong together"


@dataclass(frozen=True)
class View:
    """What one refresh established."""

    root: Root
    targets: Targets
    snapshot: Snapshot
    timestamp: Timestamp
    packages: tuple[Target, ...]

    @property
    def expiries(self) -> dict[str, datetime]:
        """When each role expires."""
        return {each.type: each.expires for each in (self.root, self.targets, self.snapshot, self.timestamp)}

    def seen(self, before: Seen) -> Seen:
        """`before`, brought forward to this view."""
        return Seen(
            root=self.root.version,
            targets=self.targets.version,
            snapshot=self.snapshot.version,
            timestamp=self.timestamp.version,
            online_key=online_key_of(self.root),
            floors=raised(before.floors, self.packages),
            expired=before.expired if online_key_of(self.root) == before.online_key else {},
        )


def establish(trusted: Path, root: bytes) -> None:
    """Pins a root that people vouch for. Repeating it with the same root changes nothing."""
    pinned = trusted / PINNED
    if pinned.exists() and pinned.read_bytes() != root:
        raise errors.DepotError(
            f"{trusted} trusts another root already",
            remedy="use another state directory; what a site trusts is replaced by a signed root, not by a file",
        )
    version = parse(Root, root, "the root").signed.version
    durable.make_directory(trusted, 0o700)
    if not (trusted / SEEN).exists():
        durable.replace(trusted / SEEN, msgspec.json.encode(Seen(root=version)))
    durable.replace(pinned, root)


def read_seen(trusted: Path) -> Seen:
    """Raises `TrustedStateLost` unless both the pinned root and the record are there."""
    try:
        (trusted / PINNED).stat()
        return msgspec.json.decode((trusted / SEEN).read_bytes(), type=Seen)
    except FileNotFoundError as error:
        raise TrustedStateLost(
            f"the depot's trusted state is not there: {error.filename}",
            expected="the record of the newest metadata that this site has seen",
            remedy="restore it from a copy. If there is none, pin the root again with `freehold depot init --root` and "
            "compare the versions with those that the evidence log holds: what is older was replayed",
        ) from error
    except msgspec.MsgspecError as error:
        raise TrustedStateLost(
            f"{trusted / SEEN} cannot be read: {error}", remedy="restore the trusted state from a copy"
        ) from error


def refresh(source: Path, trusted: Path) -> View:
    """TUF's client workflow (5.3 to 5.6) over the directory `source`. Raises `MetadataRefused`."""
    fetcher = DirectoryFetcher(source)
    try:
        updater = Updater(str(trusted), METADATA, fetcher=fetcher, bootstrap=(trusted / PINNED).read_bytes())
        updater.refresh()
        files = {role: (trusted / f"{role}.json").read_bytes() for role in ROLES}
        targets = parse(Targets, files["targets"], "targets").signed
        # Only the names come from the file. What is said of a package comes from the updater, which verified it.
        infos = [info for path in targets.targets if (info := updater.get_targetinfo(path))]
    except (tuf.RepositoryError, tuf.DownloadError) as error:
        raise _refusal(error, source / fetcher.last) from error
    root = parse(Root, files["root"], "root").signed
    people_of(root)
    return View(
        root=root,
        targets=targets,
        snapshot=parse(Snapshot, files["snapshot"], "snapshot").signed,
        timestamp=parse(Timestamp, files["timestamp"], "timestamp").signed,
        packages=tuple(from_tuf(info) for info in infos),
    )


def advance(source: Path, trusted: Path, recorded: Seen | None = None) -> tuple[View, Seen]:
    """`refresh`, held against what was seen before, and written down. Raises `TrustedStateLost`, `MetadataRefused`."""
    before = read_seen(trusted)
    if recorded is not None and (lost := regressions(recorded, before)):
        raise TrustedStateLost(
            f"the depot's trusted state is older than the record of it: {'; '.join(lost)}",
            remedy="restore the trusted state from its newest copy; somebody may have put an old one in its place",
        )
    try:
        view = refresh(source, trusted)
    except errors.MetadataExpired:
        _remember_expired(trusted, before)
        raise
    after = view.seen(before)
    if old := revived(before, after):
        raise errors.MetadataExpired(
            f"the metadata in {source} is refused: {'; '.join(old)}",
            expected="a newer version of it",
            remedy=f"set the clock right; {_RENEW}",
        )
    if older := regressions(before, after):
        raise MetadataReplayed(
            f"the metadata in {source} is older than what was seen before: {'; '.join(older)}", remedy=_NEWER
        )
    if after != before:
        durable.replace(trusted / SEEN, msgspec.json.encode(after))
    return view, after


def _remember_expired(trusted: Path, before: Seen) -> None:
    """Of what python-tuf keeps, which was valid once: what is expired by now."""
    now = pki.utc_now()
    expired = dict(before.expired)
    for role in ROLES:
        with suppress(tuf.StorageError, tuf.RepositoryError):
            kept = Metadata[Any].from_file(str(trusted / f"{role}.json")).signed
            if kept.is_expired(now):
                expired[role] = max(kept.version, expired.get(role, 0))
    if expired != before.expired:
        durable.replace(trusted / SEEN, msgspec.json.encode(msgspec.structs.replace(before, expired=expired)))


def locked(directory: Path) -> AbstractContextManager[None]:
    """Holds the trusted state of the depot in `directory`: python-tuf's client bears no second one beside it."""
    return exclusive(directory / "trusted.lock")


@contextmanager
def scratch_copy(directory: Path) -> Iterator[Path]:
    """A copy of that depot's trusted state, to try something out. Raises `TrustedStateLost`."""
    read_seen(directory / "trusted")
    with tempfile.TemporaryDirectory(prefix="freehold-depot-") as copy:
        with locked(directory):
            shutil.copytree(directory / "trusted", copy, symlinks=True, dirs_exist_ok=True)
        yield Path(copy)


def _refusal(error: tuf.RepositoryError | tuf.DownloadError, file: Path) -> errors.MetadataRefused:
    """python-tuf's error in our words: the file that it was at, the cause, the remedy."""
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    what = f"the metadata in {file} is refused: {error}{cause}"
    if isinstance(error, tuf.ExpiredMetadataError):
        return errors.MetadataExpired(
            what,
            expected="metadata that is still valid",
            remedy=f"check the clock; {_RENEW}",
        )
    if isinstance(error, tuf.BadVersionNumberError):
        return MetadataReplayed(what, expected="no version below one that was seen before", remedy=_NEWER)
    if isinstance(error, tuf.UnsignedMetadataError):
        return errors.MetadataUnsigned(
            what, expected="the signatures that the trusted root asks for", remedy="do not use it; ask the operators"
        )
    if isinstance(error, tuf.DownloadLengthMismatchError):
        return errors.DataEndless(what, remedy=_AGAIN)
    return errors.MetadataIncomplete(what, expected="all of a depot, in one state", remedy=_AGAIN)
