"""What two operators signed that a BIOS measures, held against what a server measured. Pure, but for `against`.

A package of the depot may carry `measurements`: PCR 0 (and 2) of the firmware in it. Where it does, nobody is asked to
approve other ones: a BMC that installed other code must not be the one that says what its version measures.
"""

from collections.abc import Mapping, Sequence

import msgspec

from freehold.root_of_trust.attestation.event_log import extend
from freehold.root_of_trust.attestation.reference import PCRS, ReferenceValues
from freehold.root_of_trust.depot import Depot, DepotClient, DepotMissing, Kind, Seen, Target

STARTS = {"0": (0, 3, 4)}
"""Where PCR 0 may begin: at zero, or with the locality of the start-up (PC Client PFP 1.06, 10.4.5.3)."""


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """`package`: the path of the depot's package for this board and version, if it lists one. `matches`: None if that
    names no measurements. `differs`: a sentence for each PCR. `said`: all of it in one sentence, for those who sign."""

    package: str | None = None
    matches: bool | None = None
    differs: tuple[str, ...] = ()
    said: str


def against(depot: Depot, seen: Seen | None, values: ReferenceValues) -> Compared:
    """The values against the depot as it is now. Raises `DepotError` if that cannot be believed. Blocking."""
    try:
        return compare(depot.client(seen), values)
    except DepotMissing:
        return compare(None, values)


def compare(client: DepotClient | None, values: ReferenceValues) -> Compared:
    """The values against the depot's package of this BIOS; no client: there is no depot."""
    target = package_of(client, values) if client is not None else None
    if target is None:
        return Compared(said=f"the depot lists no package of {values.title}: there is nothing to compare with")
    if not target.about.measurements:
        silent = f"{target.path} does not say what it measures: there is nothing to compare with"
        return Compared(package=target.path, said=silent)
    if differing := differences(target, values.digests):
        return Compared(package=target.path, matches=False, differs=differing, said="; ".join(differing))
    held = ", ".join(f"PCR {index}" for index in sorted(target.about.measurements))
    return Compared(package=target.path, matches=True, said=f"{held} is what the operators signed with {target.path}")


def package_of(client: DepotClient, values: ReferenceValues) -> Target | None:
    """The package that the depot lists for this board at this BIOS version."""
    wanted = (Kind.FIRMWARE, values.vendor, "bios", values.version)
    for each in client.view.packages:
        about = each.about
        if (about.kind, about.vendor, about.component, about.version) == wanted and values.model in about.models:
            return each
    return None


def differences(target: Target, measured: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """A sentence for each PCR that is not what the package says. One digest is the PCR's value, or its only event; more
    are the digests of its events in order. What was not measured is a difference."""
    found = []
    for index, signed in sorted(target.about.measurements.items()):
        pcr, name = str(index), f"PCR {index}: {target.path}, as the operators signed it, measures"
        if index not in PCRS:
            found.append(f"{name} {', '.join(signed)}, and of this PCR nothing is learned")
            continue
        events = tuple(measured.get(pcr, ()))
        values = [pcr_value(events, start) for start in STARTS.get(pcr, (0,))]
        if signed == events or (len(signed) == 1 and signed[0] in values):
            continue
        if len(signed) == 1:
            found.append(f"{name} {signed[0]}, and this server {values[0]}")
            continue
        at = next((n for n, (a, b) in enumerate(zip(signed, events, strict=False)) if a != b), None)
        if at is None:
            found.append(f"{name} {len(signed)} events, and this server {len(events)}")
        else:
            found.append(f"{name} {signed[at]} as event {at}, and this server {events[at]}")
    return tuple(found)


def pcr_value(digests: Sequence[str], start: int = 0) -> str:
    """The SHA-256 PCR, in hex, that begins at `start` and is extended by these digests (hex)."""
    value = bytes(31) + bytes([start])
    for digest in digests:
        value = extend("sha256", value, bytes.fromhex(digest))
    return value.hex()
