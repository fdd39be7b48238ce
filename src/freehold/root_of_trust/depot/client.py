"""The reader: what it hands out was verified just now, by TUF, on the very bytes that it hands out.

    depot = Depot(state / "depot").client(recorded=newest_in_the_evidence_log)
    target, data = depot.fetch(Wanted(Kind.FIRMWARE, "ACME", "bios", "1.1.0", model="M1"))

Rules of opening, in order: the trusted state is there and not older than the caller's own record of it; python-tuf's
client workflow from the pinned root on; each person has one key in that root; nothing is older than what was seen
before; then what was seen is written down. A client stands for that moment: open one for each use. Blocking.
"""

import io
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

from freehold.root_of_trust import pki
from freehold.root_of_trust.depot.errors import (
    BelowSecurityFloor,
    DepotMissing,
    PackageForAnotherModel,
    PackageForAnotherSite,
    TargetChanged,
    TargetNotFound,
)
from freehold.root_of_trust.depot.files import CHUNK, Progress, open_beneath, silent
from freehold.root_of_trust.depot.floors import Downgrade, downgrade_allowed, floor_of, is_below
from freehold.root_of_trust.depot.package import Kind, Target
from freehold.root_of_trust.depot.seen import Seen
from freehold.root_of_trust.depot.trusted import View, advance, locked, read_seen, scratch_copy
from freehold.root_of_trust.depot.verified import VerifiedFile


class Wanted(NamedTuple):
    """What is asked for, in the words of the BMC. `model` is empty for what is no firmware; `site` is for that."""

    kind: Kind
    vendor: str
    component: str
    version: str
    model: str = ""
    site: str = ""


class DepotClient:
    """The packages of one verified state. `seen` is for the evidence log: hand it back at the next opening."""

    def __init__(self, source: Path, view: View, seen: Seen) -> None:
        self._source = source
        self.view, self.seen = view, seen

    @classmethod
    def open(cls, directory: Path, recorded: Seen | None = None) -> "DepotClient":
        """Verifies the depot in `directory` and remembers what was seen.

        Raises `DepotMissing`, `TrustedStateLost`, or what the metadata is refused for (`MetadataRefused`).
        """
        _required(directory, recorded)
        source = directory / "repository"
        with locked(directory):
            view, seen = advance(source, directory / "trusted", recorded)
        return cls(source, view, seen)

    @classmethod
    def look(cls, directory: Path, source: Path | None = None) -> "DepotClient":
        """Verifies `source` (default: the depot itself) without remembering anything."""
        if source is None or not (directory / "trusted").exists():
            _required(directory, None)
        source = source or directory / "repository"
        with scratch_copy(directory) as copy:
            view, seen = advance(source, copy)
        return cls(source, view, seen)

    def package(self, wanted: Wanted) -> Target:
        """The package for exactly this model or site, whatever its floor. Raises `TargetNotFound`,
        `PackageForAnotherModel`, `PackageForAnotherSite`."""
        name = f"{wanted.vendor} {wanted.component} {wanted.version}"
        alike = [
            each
            for each in self.view.packages
            if (each.about.kind, each.about.vendor, each.about.component, each.about.version) == wanted[:4]
        ]
        if not alike:
            raise TargetNotFound(
                f"the depot has no {wanted.kind} {name}",
                expected="a package that the operators signed, and did not withdraw",
                remedy="import it with `freehold depot import`, or declare a version that `freehold depot list` shows",
            )
        if not (here := [each for each in alike if each.about.site in (None, wanted.site)]):
            raise PackageForAnotherSite(
                f"the {wanted.kind} {name} was made for another site than {wanted.site}",
                expected=f"for {', '.join(sorted(str(each.about.site) for each in alike))} it is",
                remedy="import the one that was made for this site",
            )
        found = [each for each in here if wanted.model in each.about.models or not each.about.models]
        if len(found) != 1:
            models = sorted({each for package in alike for each in package.about.models})
            raise PackageForAnotherModel(
                f"{name} is {'ambiguous' if found else 'not'} for model {wanted.model!r}",
                expected=f"one of: {', '.join(models)}",
                remedy="import the package for this model; firmware for another one can destroy the machine",
            )
        return found[0]

    def floor_above(self, wanted: Wanted, target: Target) -> str | None:
        """The security floor that the package is below; None if it is not."""
        model = wanted.model if target.about.models else ""
        floor = floor_of(self.seen.floors, wanted.vendor, wanted.component, model)
        return floor if is_below(wanted.version, floor) else None

    def find(self, wanted: Wanted, downgrade: Downgrade | None = None, now: datetime | None = None) -> Target:
        """The package for exactly this model, if it may be installed: below its security floor only with a ticket.

        Raises `TargetNotFound`, `PackageForAnotherModel`, or `BelowSecurityFloor`.
        """
        target = self.package(wanted)
        if (floor := self.floor_above(wanted, target)) is not None:
            decision = downgrade_allowed(downgrade, target, wanted.model, now or pki.utc_now())
            if not decision.allowed:
                raise BelowSecurityFloor(
                    f"{wanted.vendor} {wanted.component} {wanted.version} is below the security floor {floor}: "
                    f"{decision.reason}",
                    expected=f"version {floor} or newer, or a downgrade ticket signed by two operators",
                    remedy="install a newer version"
                    + ("; who must fall back asks with `freehold depot downgrade`, and two operators sign")
                    * (wanted.kind is Kind.FIRMWARE),
                )
        return target

    def open_verified(self, target: Target, progress: Progress = silent) -> BinaryIO:
        """The package as a file that checks its bytes again as it hands them out (`verified`). The caller closes it.

        Raises `TargetNotFound` for a target that is not of this client, `TargetChanged`, or `DataEndless`.
        """
        if target not in self.view.packages:
            raise TargetNotFound(f"{target.path} is not in the metadata that was verified")
        try:
            stored = open_beneath(self._source / "targets", target.stored_name)
        except FileNotFoundError as error:
            raise TargetChanged(
                f"the file of {target.path} is missing", remedy="import it again, or mirror the depot again"
            ) from error
        try:
            return io.BufferedReader(VerifiedFile(stored, target, progress), CHUNK)
        except BaseException:
            stored.close()
            raise

    def path_of(self, target: Target) -> Path:
        """Where its file is, for who serves it by ranges: nothing vouches for what is read there."""
        return self._source / "targets" / target.stored_name

    def fetch(
        self, wanted: Wanted, downgrade: Downgrade | None = None, now: datetime | None = None
    ) -> tuple[Target, bytes]:
        """`find`, and the verified bytes in memory: for firmware. An image of gigabytes is for `open_verified`."""
        target = self.find(wanted, downgrade, now)
        with self.open_verified(target) as file:
            return target, file.read()


def _required(directory: Path, recorded: Seen | None) -> None:
    """Tells a depot that is not there yet from one that was lost: only of the first there is no trace."""
    untouched = recorded is None and not (directory / "repository/metadata/timestamp.json").exists()
    if (directory / "trusted").exists() or not untouched:
        untouched = read_seen(directory / "trusted").timestamp == 0 and untouched
    if untouched:
        raise DepotMissing(
            f"there is no published depot in {directory}",
            remedy="begin one with `freehold depot init`; if it was begun, sign and publish it, or mirror it",
        )
