"""Security floors: below which version a component must not fall back, and who may allow it. Pure.

TUF keeps an attacker from replaying old *metadata*. It does not keep anybody from installing an old firmware that is
still listed. A floor does: it is raised by signed metadata only, never lowered, and remembered when its package is
gone.
"""

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Annotated, NamedTuple

import msgspec

from freehold.root_of_trust.depot import versions
from freehold.root_of_trust.depot.errors import VersionsNotComparable
from freehold.root_of_trust.depot.package import Target

APPROVERS = 2


class Floor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The oldest `version` of a component that may be installed on a model (empty for what is no firmware)."""

    vendor: str
    component: str
    model: str
    version: str

    @property
    def scope(self) -> tuple[str, str, str]:
        return self.vendor, self.component, self.model


class DowngradeTicket(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What two operators sign to let one component of one server fall below its floor, once, until `expires`: from the
    version that is installed to exactly one package (`sha256`, hex)."""

    server: str
    vendor: str
    component: str
    model: str
    from_version: str = msgspec.field(name="from")
    to_version: str = msgspec.field(name="to")
    sha256: str
    expires: Annotated[datetime, msgspec.Meta(tz=True)]


class Downgrade(NamedTuple):
    """A ticket, the people whose signatures for it were verified, and where it is to be used: on which server, and
    which version is installed there now."""

    ticket: DowngradeTicket
    approvers: Collection[str]
    server: str
    installed: str


class Decision(NamedTuple):
    """`reason` says why not; it is empty if `allowed`."""

    allowed: bool
    reason: str = ""


def raised(floors: Iterable[Floor], targets: Iterable[Target]) -> tuple[Floor, ...]:
    """`floors` and those that the targets ask for: the higher of each. Raises `VersionsNotComparable`."""
    found = {floor.scope: floor for floor in floors}
    for target in targets:
        about = target.about
        if about.security_floor is None:
            continue
        for model in about.models or ("",):
            new = Floor(vendor=about.vendor, component=about.component, model=model, version=about.security_floor)
            old = found.get(new.scope)
            if old is None or versions.compare(new.version, old.version) > 0:
                found[new.scope] = new
    return tuple(found[scope] for scope in sorted(found))


def floor_of(floors: Iterable[Floor], vendor: str, component: str, model: str) -> str | None:
    """The version below which this component of this model must not fall."""
    scope = (vendor, component, model)
    return next((floor.version for floor in floors if floor.scope == scope), None)


def is_below(version: str, floor: str | None) -> bool:
    """Whether `version` needs a downgrade ticket. What cannot be compared is below: nobody has shown that it is not."""
    if floor is None:
        return False
    try:
        return versions.compare(version, floor) < 0
    except VersionsNotComparable:
        return True


def downgrade_allowed(downgrade: Downgrade | None, target: Target, model: str, now: datetime) -> Decision:
    """Whether there is a ticket for exactly this, which still holds, and which two different people approved."""
    if downgrade is None:
        return Decision(False, "there is no downgrade ticket")
    ticket, about = downgrade.ticket, target.about
    for name, one, other in (
        ("server", downgrade.server, ticket.server),
        ("vendor", about.vendor, ticket.vendor),
        ("component", about.component, ticket.component),
        ("model", model, ticket.model),
        ("installed version", downgrade.installed, ticket.from_version),
        ("wanted version", about.version, ticket.to_version),
        ("SHA-256", target.sha256, ticket.sha256),
    ):
        if one != other:
            return Decision(False, f"the ticket is for {name} {other!r}, not {one!r}")
    if now >= ticket.expires:
        return Decision(False, f"the ticket expired at {ticket.expires:%Y-%m-%d %H:%M:%SZ}")
    people = sorted({name.strip().casefold() for name in downgrade.approvers})
    if len(people) < APPROVERS:
        return Decision(False, f"{len(people)} of {APPROVERS} people approved it ({', '.join(people) or 'nobody'})")
    return Decision(True)
