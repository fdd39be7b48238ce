"""Where a BMC departs from the standard, as rows of data. A row matches by prefix and changes named behaviours; no code
asks for a vendor. Every row says where the evidence is."""

import msgspec


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """What the doers do differently. The defaults are what the standard says."""

    cd_target: str = "Cd"
    """`BootSourceOverrideTarget` that boots the virtual CD."""
    insert_flags: bool = True
    """Whether `InsertMedia` bears `Inserted` and `WriteProtected`."""
    full_boot_object: bool = False
    """Whether a PATCH of `Boot` must repeat the fields that do not change."""
    boot_in_settings: bool = False
    """Whether the boot override belongs to the `@Redfish.Settings` object where that has a `Boot`."""
    settle_seconds: float = 0.0
    """How long after a power action the reported `PowerState` is not to be trusted."""


class Quirk(msgspec.Struct, frozen=True, kw_only=True):
    """Matches when each part is a case-insensitive prefix of what the server says. `changes` overrides `Behaviour`."""

    name: str
    manufacturer: str
    model: str = ""
    firmware: str = ""
    changes: dict[str, str | bool | float]
    evidence: str


QUIRKS: tuple[Quirk, ...] = (
    Quirk(
        name="Virtual CD shows up as a USB CD on X11 and X12",
        manufacturer="Supermicro",
        changes={"cd_target": "UsbCd"},
        evidence="https://opendev.org/openstack/sushy/src/branch/master/sushy/resources/system/system.py",
    ),
    Quirk(
        name="ARS-111GL-NHR boots its virtual CD by the standard target",
        manufacturer="Supermicro",
        model="ARS-111GL-NHR",
        changes={"cd_target": "Cd"},
        evidence="https://opendev.org/openstack/sushy/src/branch/master/sushy/resources/system/system.py",
    ),
    Quirk(
        name="InsertMedia refuses Inserted and WriteProtected",
        manufacturer="Supermicro",
        changes={"insert_flags": False},
        evidence="https://opendev.org/openstack/sushy/src/branch/master/sushy/resources/manager/virtual_media.py",
    ),
    Quirk(
        name="BootSourceOverrideEnabled must be sent even if unchanged",
        manufacturer="Supermicro",
        changes={"full_boot_object": True},
        evidence="https://opendev.org/openstack/ironic/src/branch/master/ironic/drivers/modules/redfish/management.py",
    ),
    Quirk(
        name="MegaRAC wants the whole Boot object",
        manufacturer="ASRockRack",
        changes={"full_boot_object": True},
        evidence="https://opendev.org/openstack/ironic/src/branch/master/ironic/drivers/modules/redfish/management.py",
    ),
    Quirk(
        name="Boot override lives in the settings object",
        manufacturer="Nokia",
        changes={"boot_in_settings": True},
        evidence="https://opendev.org/openstack/sushy/src/branch/master/sushy/resources/system/system.py",
    ),
    Quirk(
        name="Boot override lives in the settings object on SE450",
        manufacturer="Lenovo",
        model="ThinkEdge SE450",
        changes={"boot_in_settings": True},
        evidence="https://opendev.org/openstack/sushy/src/branch/master/sushy/resources/system/system.py",
    ),
    Quirk(
        name="PowerState lags behind a reset",
        manufacturer="Dell",
        changes={"settle_seconds": 15.0},
        evidence="https://opendev.org/openstack/ironic/src/branch/master/ironic/drivers/modules/redfish/power.py",
    ),
)


def behaviour_of(manufacturer: str | None, model: str | None, firmware: str | None) -> Behaviour:
    """The behaviour of one server: all matching rows of `QUIRKS` in order, so that a later, closer row wins."""
    changes: dict[str, str | bool | float] = {}
    for quirk in QUIRKS:
        if (
            _starts(manufacturer, quirk.manufacturer)
            and _starts(model, quirk.model)
            and _starts(firmware, quirk.firmware)
        ):
            changes |= quirk.changes
    return msgspec.convert(changes, Behaviour)


def _starts(value: str | None, prefix: str) -> bool:
    return (value or "").strip().lower().startswith(prefix.lower())
