"""A site's depot: where packages come in, wait for signatures, and go out.

    depot/repository/    what is published (`repository`)
    depot/staged/        what waits for signatures (`staging`); only a depot that publishes has it
    depot/trusted/       what this site trusts and has seen (`trusted`)

A depot either publishes (founded here, with an online key in this site's vault) or follows one that was founded
elsewhere and comes in on media (`mirror`). A follower begins to publish when its operators sign a root with its own
online key. Every method that changes something holds the depot's lock.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import msgspec
from tuf.api.metadata import Root

from freehold.evidence import PublicKey, Signer, durable
from freehold.root_of_trust.depot.client import DepotClient
from freehold.root_of_trust.depot.errors import DepotError, DepotMissing, PackageRefused, TargetNotFound
from freehold.root_of_trust.depot.files import Progress, Readable, copy_digest, exclusive, silent
from freehold.root_of_trust.depot.floors import raised
from freehold.root_of_trust.depot.metadata import (
    Days,
    days_of,
    new_root,
    new_targets,
    online_key_of,
    parse,
    people_of,
    public_keys_of,
)
from freehold.root_of_trust.depot.package import Description, Target, from_tuf, new_target, overlap
from freehold.root_of_trust.depot.publication import assemble, needs_renewal
from freehold.root_of_trust.depot.repository import Published, Repository
from freehold.root_of_trust.depot.seen import Seen
from freehold.root_of_trust.depot.staging import Staged, Staging
from freehold.root_of_trust.depot.trusted import establish, read_seen


class Received(NamedTuple):
    """A file that came in and is not in the depot yet. `file` is open at it for reading."""

    path: Path
    file: FileIO
    length: int
    sha256: str


class Depot:
    """`Depot(state / "depot")`; nothing is read or made before a method is called."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.repository = Repository(directory / "repository")
        self.staging = Staging(directory / "staged")

    def found(self, people: Mapping[str, PublicKey], online: PublicKey, days: Days, now: datetime) -> None:
        """Stages the first root and an empty list of packages. Raises `PeopleRefused`; `DepotError` if there is one."""
        root, targets = new_root(people, online, days, now), new_targets([], days, now, 1)
        with self._new():
            self.staging.put(root=root, targets=targets)

    def follow(self, root: bytes) -> None:
        """Trusts a root that was founded elsewhere. The caller has compared its digest with a person's."""
        people_of(parse(Root, root, "the root").signed)
        if self.publishes and self.repository.read() is None:
            raise DepotError(f"a depot was founded in {self.directory}", remedy="use another state directory")
        durable.make_directory(self.directory, 0o700)
        establish(self.directory / "trusted", root)

    def client(self, recorded: Seen | None = None) -> DepotClient:
        """The verified reader, as of now. `recorded`: the newest `seen` that the evidence log holds."""
        return DepotClient.open(self.directory, recorded)

    @contextmanager
    def receiving(self, source: Readable, total: int = 0, progress: Progress = silent) -> Iterator[Received]:
        """Copies a file in, in one reading. `add` keeps it; it is gone at the end otherwise."""
        with self._changing():
            incoming = self.directory / "incoming"
            durable.remove(incoming)
            with FileIO(incoming, "x+") as file:
                try:
                    length, digest = copy_digest(source, file.fileno(), None, total, progress)
                    file.seek(0)
                    yield Received(incoming, file, length, digest)
                finally:
                    durable.remove(incoming)

    def add(self, received: Received, name: str, about: Description, now: datetime) -> Target:
        """Keeps a received file (inside `receiving`) and stages it. The same package again changes nothing.

        Raises `PackageRefused`, or `VersionsNotComparable` if its floor could not be held against that of others.
        """
        target = new_target(name, received.length, received.sha256, about)
        others = self.packages()
        if old := next((each for each in others if each.path == target.path), None):
            if not _same_package(old, target):
                raise PackageRefused(
                    f"{target.path} is in the depot already, with other content or another description",
                    remedy="give it another name with --name, or withdraw the other one first",
                )
            self.repository.adopt(received.path, received.file.fileno(), old)
            return old
        if other := next((each for each in others if overlap(each, target)), None):
            raise PackageRefused(
                f"{other.path} is {about.component} {about.version} for the same model already",
                expected="one package for each model and version",
                remedy="withdraw the other one first, or name other models",
            )
        raised([], [*others, target])
        self.repository.adopt(received.path, received.file.fileno(), target)
        self._stage([*others, target], now)
        return target

    def withdraw(self, path: str, now: datetime) -> Target:
        """Stages the list without one package. Its file stays, its security floor too."""
        with self._changing():
            packages = self.packages()
            if (gone := next((each for each in packages if each.path == path), None)) is None:
                raise TargetNotFound(
                    f"the depot has no {path}", remedy="name it as `freehold depot list` shows it: KIND/FILE"
                )
            self._stage([each for each in packages if each is not gone], now)
            return gone

    def rotate(
        self, people: Mapping[str, PublicKey] | None, online: PublicKey, days: Days | None, now: datetime
    ) -> None:
        """Stages a new root and a new list, with fresh expiry: other operators, another online key, or just renewed.

        Raises `PeopleRefused`, or `DepotError` for an online key that was replaced before.
        """
        with self._changing(followers_too=True):
            published = self._published()
            *former, current = self.repository.online_keys()
            if online.key_id in former and online.key_id != current:
                raise DepotError(
                    f"the online key {online.key_id} was replaced before",
                    expected="the present one, or a new one: who missed the change remembers how far it had counted",
                    remedy="make a new one with `freehold depot rotate --online-key`",
                )
            old = published.root.signed
            root = new_root(people or public_keys_of(old), online, days or days_of(old), now, old)
            packages = self.packages()
            self.staging.put(root=root, reference=published.root)
            self._stage(packages, now)

    def publish(self, online: Collection[Signer], now: datetime, carried: Iterable[Path] = ()) -> Published:
        """Brings out what is staged and signed, and renews snapshot and timestamp. Can be repeated after a crash.

        `online`: the keys in the vault; the root that is brought out names one of them. `carried`: copies of the staged
        directory that come back with signatures. Raises `NotPublishable`.
        """
        with self._changing():
            for copy in carried:
                self.staging.merge(copy)
            staged = self.staging.read()
            files = assemble(self.repository.read(), staged.root, staged.targets, online, now)
            self.repository.write(files)
            published = self._published()
            if staged.root is not None and staged.root.signed.version == 1:
                establish(self.directory / "trusted", staged.root.to_bytes())
            self.staging.clear()
            return published

    def refresh_timestamp(self, online: Collection[Signer], now: datetime) -> bool:
        """Renews snapshot and timestamp if they need it (`needs_renewal`); whether it did. For the controller's clock.

        What is staged stays staged. A depot that follows another cannot renew anything: False.
        """
        if not self.publishes:
            return False
        with self._changing():
            published = self._published()
            if not needs_renewal(published, now, read_seen(self.directory / "trusted").expired):
                return False
            self.repository.write(assemble(published, None, None, online, now))
            return True

    @property
    def publishes(self) -> bool:
        """Whether this depot publishes, rather than follow another."""
        return self.staging.directory.exists()

    def staged(self) -> Staged:
        """What waits for signatures."""
        return self.staging.read()

    def packages(self) -> list[Target]:
        """What the depot will list once everything staged is published."""
        staged, published = self.staging.read(), self.repository.read()
        targets = staged.targets or (published.targets if published else None)
        return [from_tuf(file) for file in targets.signed.targets.values()] if targets else []

    def people(self) -> dict[str, PublicKey]:
        """The operators, by the root that is staged or else published."""
        staged, published = self.staging.read(), self.repository.read()
        root = staged.root or (published.root if published else None)
        return public_keys_of(root.signed) if root else {}

    def _stage(self, packages: Iterable[Target], now: datetime) -> None:
        """A new list of packages; signatures of an earlier one do not hold for it."""
        staged, published = self.staging.read(), self.repository.read()
        root = staged.root or self._published().root
        version = published.targets.signed.version + 1 if published else 1
        targets = new_targets(packages, days_of(root.signed), now, version)
        self.staging.put(targets=targets, reference=published.root if published else None)

    def online_key(self) -> str:
        """Id of the online key by the published root. Raises `DepotMissing` while nothing is published."""
        return online_key_of(self._published().root.signed)

    def days(self) -> Days:
        """How long metadata is valid here. Raises `DepotMissing` while nothing is published."""
        return days_of(self._published().root.signed)

    def _published(self) -> Published:
        published = self.repository.read()
        if published is None:
            raise DepotMissing(
                f"nothing is published in {self.directory} yet",
                remedy="let two operators sign what is staged, then `freehold depot publish`",
            )
        return published

    @contextmanager
    def _changing(self, followers_too: bool = False) -> Iterator[None]:
        if not self.publishes and not (followers_too and self.directory.exists()):
            raise DepotMissing(
                f"no depot publishes from {self.directory}",
                remedy="begin one with `freehold depot init`; a depot that follows is changed where it is published",
            )
        with exclusive(self.directory / "lock"):
            yield

    @contextmanager
    def _new(self) -> Iterator[None]:
        durable.make_directory(self.directory, 0o700)
        with exclusive(self.directory / "lock"):
            if self.people() or (self.directory / "trusted").exists():
                raise DepotError(f"{self.directory} holds a depot already", remedy="use another state directory")
            yield


def _same_package(one: Target, other: Target) -> bool:
    """The same bytes and description, but for how and when the vendor's signature was looked at."""
    return _essence(one) == _essence(other)


def _essence(target: Target) -> Target:
    about = msgspec.structs.replace(target.about, vendor_signature=None, unsigned_because=None)
    return msgspec.structs.replace(target, about=about)
