"""Which member of a FirmwareInventory is the BIOS, and which the BMC: rows of data, and one pure function.

The standard has a link for it (`Bios.Links.ActiveSoftwareImage`, `Manager.Links.ActiveSoftwareImage`), which is
believed first. Where a BMC does not have it, `CALLED` says what vendors call the two. What cannot be told apart is not
guessed: firmware for one part never goes to another.
"""

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from freehold.out_of_band.redfish import Json, link

Component = Literal["BIOS", "BMC"]


class Called(msgspec.Struct, frozen=True, kw_only=True):
    """What a vendor calls a component: its `Id` and `Name` match whole and without case. `evidence`: seen where."""

    component: Component
    id: str = ".*"
    name: str = ".*"
    evidence: str


CALLED: tuple[Called, ...] = (
    # Dell lists each version of a part three times: Installed, Current, Previous. Updates are for the installed one.
    Called(component="BIOS", id="Installed-159-.*", evidence="iDRAC 9; 159 is the BIOS in Dell's catalogue"),
    Called(component="BMC", id="Installed-25227-.*", evidence="iDRAC 9; 25227 is the iDRAC in Dell's catalogue"),
    # Lenovo, OpenBMC and Supermicro list the second copies too: BMC-Backup, Backup_BIOS, Golden_BIOS.
    Called(component="BIOS", id="UEFI", evidence="https://github.com/lenovo/python-redfish-lenovo (XCC)"),
    Called(component="BMC", id="BMC-Primary", evidence="https://github.com/lenovo/python-redfish-lenovo (XCC)"),
    Called(component="BIOS", id="bios_active", evidence="derivatives of OpenBMC"),
    Called(component="BMC", id="bmc_active", evidence="derivatives of OpenBMC"),
    Called(component="BIOS", id="BIOS", evidence="DMTF DSP2043 public-rackmount1; Supermicro X12 and later"),
    Called(component="BMC", id="BMC", evidence="DMTF DSP2043 public-rackmount1; Supermicro X12 and later"),
    # "Redundant System ROM" is the other copy.
    Called(component="BIOS", name="System ROM", evidence="HPE ProLiant DL365 Gen10 Plus, iLO 5 3.14"),
    Called(component="BMC", name=r"iLO \d+", evidence="HPE ProLiant DL365 Gen10 Plus, iLO 5 3.14"),
    Called(component="BIOS", name="(System )?BIOS( Firmware)?", evidence="what is left: by name alone"),
)


class FirmwareItem(msgspec.Struct, frozen=True, kw_only=True):
    """A SoftwareInventory resource: its URI is what `Targets` of an update names."""

    uri: str
    name: str
    version: str
    updateable: bool


def firmware_of(
    component: Component, members: Sequence[Json], *, active: str | None, part: str | None
) -> FirmwareItem | None:
    """The component among the members of a FirmwareInventory, by the first rule that exactly one member satisfies; None
    if there is no such rule. `active`: what the part's `ActiveSoftwareImage` names; `part`: URI of the Bios or Manager
    resource, which a member may name in `RelatedItem`. Pure."""
    listed = [member for member in members if link(member) is not None]
    rules = [[member for member in listed if _same(link(member), active)]]
    rules += [
        [member for member in listed if _is(called, member)] for called in CALLED if called.component == component
    ]
    rules += [[member for member in listed if any(_same(link(each), part) for each in member.get("RelatedItem") or [])]]
    return next((_item(found[0]) for found in rules if len(found) == 1), None)


def _same(one: str | None, other: str | None) -> bool:
    """HPE ends its URIs with a slash, sometimes."""
    return one is not None and other is not None and one.rstrip("/") == other.rstrip("/")


def _is(called: Called, member: Json) -> bool:
    texts = ((called.id, member.get("Id")), (called.name, member.get("Name")))
    return all(re.fullmatch(pattern, str(value or "").strip(), re.IGNORECASE) for pattern, value in texts)


def _item(member: Json) -> FirmwareItem:
    return FirmwareItem(
        uri=link(member) or "",
        name=str(member.get("Name") or "").strip(),
        version=str(member.get("Version") or "").strip(),
        updateable=member.get("Updateable") is not False,
    )
