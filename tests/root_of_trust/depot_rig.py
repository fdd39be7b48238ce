"""A depot with three operators, a site that follows it on media, and what an attacker can do to either."""

import hashlib
import os
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from freehold.evidence import Ed25519Signer
from freehold.root_of_trust.depot import Depot, Description, Kind, Target, Wanted
from freehold.root_of_trust.depot import metadata as roles
from freehold.root_of_trust.depot.metadata import Days
from freehold.root_of_trust.depot.staging import sign_staged

NOW = datetime.now(UTC).replace(microsecond=0)
DAYS = Days()


def day(number: float) -> datetime:
    """So many days from now; the client looks at the real clock."""
    return NOW + timedelta(days=number)


def about(version: str = "1.0", **more: Any) -> Description:
    fields: dict[str, Any] = {"kind": Kind.FIRMWARE, "vendor": "ACME", "component": "bios", "models": ("M1",)}
    return Description(**{**fields, "version": version, "unsigned_because": "a test", **more})


def wanted(version: str = "1.0", model: str = "M1") -> Wanted:
    return Wanted(Kind.FIRMWARE, "ACME", "bios", version, model)


def content(version: str) -> bytes:
    return f"firmware {version}\n".encode() * 500


class Rig:
    """`people` sign; `online` is the key in the vault of `depot`; `site` follows and has mirrored the first state."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.people = {name: Ed25519Signer.generate() for name in ("alice", "bob", "carol")}
        self.online = Ed25519Signer.generate()
        self.depot, self.site = Depot(directory / "depot"), Depot(directory / "site")

    def found(self, days: Days = DAYS, now: datetime = NOW) -> None:
        self.depot.found({n: s.public_key for n, s in self.people.items()}, self.online.public_key, days, now)

    def add(self, version: str = "1.0", now: datetime = NOW, **more: Any) -> Target:
        data = more.pop("data", content(version))
        name = more.pop("name", f"bios-{version}.bin")
        with self.depot.receiving(BytesIO(data)) as received:
            return self.depot.add(received, name, about(version, **more), now)

    def sign(self, *names: str) -> None:
        for name in names:
            sign_staged(self.depot.staging, self.depot.staged(), self.people[name])

    def publish(self, *names: str, now: datetime = NOW) -> None:
        """Two signatures and out with it."""
        self.sign(*(names or ("alice", "bob")))
        self.depot.publish([self.online], now)

    def release(self, version: str = "1.0", now: datetime = NOW, **more: Any) -> Target:
        target = self.add(version, now, **more)
        self.publish(now=now)
        return target

    def medium(self, name: str = "medium") -> Path:
        """A copy of what is published, as `cp -r` makes it."""
        there = self.directory / name
        shutil.rmtree(there, ignore_errors=True)
        shutil.copytree(self.depot.repository.directory, there)
        return there

    def follow(self) -> None:
        """The site begins, with the root that was given to it on paper."""
        self.site.follow((self.depot.repository.directory / "metadata/1.root.json").read_bytes())


class Attacker:
    """Who can write to a repository directory, and perhaps holds keys."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository

    def read(self, kind: type[Any], name: str) -> Metadata[Any]:
        return roles.parse(kind, (self.repository / "metadata" / name).read_bytes(), name)

    def newest(self, kind: type[Any]) -> Metadata[Any]:
        names = (path.name for path in (self.repository / "metadata").glob(f"*.{kind.type}.json"))
        return self.read(kind, max(names, key=lambda name: int(name.partition(".")[0])))

    def timestamp(self) -> Metadata[Timestamp]:
        return self.read(Timestamp, "timestamp.json")

    def put(self, name: str, data: bytes) -> None:
        (self.repository / "metadata" / name).write_bytes(data)

    def with_online_key(
        self, online: Ed25519Signer, targets: bytes, version: int, ahead: int = 1, now: datetime = NOW
    ) -> None:
        """A new snapshot and timestamp that point to this targets file: what a stolen online key can do."""
        number = self.newest(Snapshot).signed.version + ahead
        count = self.timestamp().signed.version + ahead
        snapshot = roles.sign(roles.new_snapshot(targets, version, DAYS, now, number), online).to_bytes()
        self.put(f"{version}.targets.json", targets)
        self.put(f"{number}.snapshot.json", snapshot)
        timestamp = roles.sign(roles.new_timestamp(snapshot, number, DAYS, now, count), online)
        self.put("timestamp.json", timestamp.to_bytes())

    def targets(self, packages: Iterable[Target], signers: Iterable[Ed25519Signer], version: int) -> bytes:
        made = roles.new_targets(packages, DAYS, NOW, version)
        for signer in signers:
            roles.sign(made, signer)
        return made.to_bytes()

    def root(self) -> Metadata[Root]:
        return self.newest(Root)

    def targets_file(self) -> Metadata[Targets]:
        return self.newest(Targets)


def tree(directory: Path) -> dict[str, str]:
    """Every file and its digest, but for the locks."""
    found = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            path = Path(folder) / name
            if not name.endswith("lock"):
                found[str(path.relative_to(directory))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
