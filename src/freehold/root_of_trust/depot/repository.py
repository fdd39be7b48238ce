"""The published depot on disk: a TUF repository with consistent snapshots that any TUF client can read.

    repository/metadata/     1.root.json … N.root.json, V.targets.json, V.snapshot.json, timestamp.json
    repository/targets/KIND/SHA256.NAME

The timestamp is written last and names the rest: before it, nobody sees what is new, and after it, all of it is there.
A new root is the exception: it holds as soon as it is there. A crash right behind it can leave a list that the new
operators did not sign, or a timestamp of the former online key, which clients refuse until the publication is repeated;
nothing is lost. This keeper decides nothing.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuf.api.metadata import Metadata, Root, Snapshot, T, Targets, Timestamp

from freehold.evidence import durable
from freehold.root_of_trust.depot.errors import MetadataIncomplete, MetadataUnsigned
from freehold.root_of_trust.depot.files import open_beneath
from freehold.root_of_trust.depot.metadata import lacking, online_key_of, parse
from freehold.root_of_trust.depot.package import Target

_ROOT = re.compile(r"([1-9][0-9]{0,8})\.root\.json")


@dataclass(frozen=True)
class Published:
    """The newest state. `targets_bytes`: the file of the targets metadata, as the snapshot has its digest."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]
    targets_bytes: bytes


class Repository:
    """`directory` is what is copied to media, as it is."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._metadata, self._targets = directory / "metadata", directory / "targets"

    def read(self) -> Published | None:
        """What is published; None if nothing is. Expiry does not matter here: what expired can still be renewed.

        Raises `MetadataRefused` if it does not hold together.
        """
        if not (self._metadata / "timestamp.json").exists():
            return None
        newest = self._roots()[-1]
        root = self._parse(Root, f"{newest}.root.json")
        timestamp = self._parse(Timestamp, "timestamp.json")
        snapshot = self._parse(Snapshot, f"{timestamp.signed.snapshot_meta.version}.snapshot.json")
        name = f"{snapshot.signed.meta['targets.json'].version}.targets.json"
        targets = self._parse(Targets, name)
        # A publication that a crash cut short may have left a new root with the targets of the one before.
        roots = [root, *([self._parse(Root, f"{newest - 1}.root.json")] if newest > 1 else [])]
        problem = lacking("root", root, [each.signed for each in roots])
        if problem is None and all(lacking("targets", targets, [each.signed]) for each in roots):
            problem = lacking("targets", targets, [root.signed])
        if problem:
            raise MetadataUnsigned(
                f"the published depot in {self.directory} is not what its operators signed: {problem}",
                remedy="restore it from a copy; find out who changed it",
            )
        return Published(root, targets, snapshot, timestamp, (self._metadata / name).read_bytes())

    def online_keys(self) -> list[str]:
        """Ids of the online keys that the published roots name, by version of the root; several times, if it stayed."""
        return [online_key_of(self._parse(Root, f"{version}.root.json").signed) for version in self._roots()]

    def write(self, files: Mapping[str, bytes]) -> None:
        """Writes metadata in the order given; each file appears whole or not at all."""
        durable.make_directory(self._metadata)
        for name, data in files.items():
            durable.replace(self._metadata / name, data)

    def adopt(self, incoming: Path, descriptor: int, target: Target) -> None:
        """Moves a file that was written and checked, and is open, to its place; durable on return."""
        place = self._targets / target.stored_name
        durable.make_directory(place.parent)
        durable.move(incoming, descriptor, place)

    def holds(self, target: Target) -> bool:
        """Whether the target's file is there, byte for byte."""
        try:
            with open_beneath(self._targets, target.stored_name) as file:
                if os.fstat(file.fileno()).st_size != target.length:
                    return False
                return hashlib.file_digest(file, "sha256").hexdigest() == target.sha256
        except FileNotFoundError:
            return False

    def _roots(self) -> list[int]:
        """The versions that are there, the newest last."""
        return sorted(int(found[1]) for path in self._metadata.iterdir() if (found := _ROOT.fullmatch(path.name)))

    def _parse(self, kind: type[T], name: str) -> Metadata[T]:
        try:
            return parse(kind, (self._metadata / name).read_bytes(), name)
        except FileNotFoundError as error:
            raise MetadataIncomplete(
                f"the published depot in {self.directory} lacks {name}", remedy="restore it from a copy"
            ) from error
