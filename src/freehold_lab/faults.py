"""Faults by the names that people type, and how each is switched in `Faults`."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from freehold_lab.errors import LabError, UsageError
from freehold_lab.hardware import Faults

Value = float | int | bool | str
ROGUE, TAMPERED_IMAGE = "rogue-dhcp", "tampered-image"


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError("on or off")
    return text == "on"


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError("a count of 0 or more")
    return number


def seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 3600:
        raise ValueError("0 to 3600 seconds")
    return number


# name -> (attribute of Faults, how to read its value, what it takes)
SWITCHES: dict[str, tuple[str, Callable[[str], Value], str]] = {
    "bmc-slow": ("bmc_slow_seconds", seconds, "seconds before every answer, 0 ends it"),
    "bmc-errors": ("bmc_errors", _count, "how many requests are answered 503"),
    "bmc-html": ("bmc_html", _switch, "on or off: HTML instead of JSON"),
    "connection-reset": ("connection_resets", _count, "how many connections are reset"),
    "drive-skips-erase": ("drive_skips_erase", _switch, "on or off, from the next boot on: erase does nothing"),
    "secure-boot-hidden": ("secure_boot_hidden", _switch, "on or off: the BMC has no Secure Boot databases"),
    "no-uploads": ("uploads_refused", _switch, "on or off: the BMC takes firmware by download alone (SimpleUpdate)"),
    "csr-subject": ("csr_subject", str, "another common name for the BMC's certificate requests, '' for the right one"),
    "certificate-waits": ("certificate_waits", _switch, "on or off: a new certificate is served after a BMC restart"),
    "ipmi-stays-on": ("ipmi_stays_on", _switch, "on or off: IPMI answers over LAN, whatever Redfish says of it"),
    "firmware-version": ("firmware_version", str, "BIOS version that the BMC reports, '' for the true one"),
}
ACTIONS = {
    "bmc-reboot": "seconds without an answer",
    "factory-certificate": "no value: the BMC shows the key again that it left the factory with",
    "bmc-certificate": "no value: the BMC shows a factory key that nobody has seen, as after a swap of the board",
    "power-loss": "no value: the machine loses power",
    "tampered-firmware": "no value: other code in the flash chip; the same again undoes it",
    ROGUE: "on or off, for the whole lab: another DHCP server on the provisioning network",
    TAMPERED_IMAGE: "path of an image that is served, instead of a server; the same again undoes it",
}
AT_ONCE = ("factory-certificate", "bmc-certificate", "power-loss", "tampered-firmware")
"""Those that a server suffers once, without a value."""


def listed(on: Mapping[str, Mapping[str, Any]], *, rogue: bool) -> list[dict[str, Any]]:
    """Every fault there is: `fault`, what it `takes`, and where it is `on` now (server -> value). `on` is what `active`
    told of each server."""
    takes = {name: text for name, (_, _, text) in SWITCHES.items()} | ACTIONS
    rows = []
    for name, text in takes.items():
        where = {server: faults[name] for server, faults in on.items() if name in faults}
        rows.append({"fault": name, "takes": text, "on": where | ({"lab": True} if name == ROGUE and rogue else {})})
    return rows


def tamper(image: Path) -> int:
    """Change one byte in a block of the image that holds data; calling it again changes it back. Returns the offset."""
    block, offset = 4096, 5 << 20  # behind the partition table, so that nothing but a digest can tell
    with image.open("r+b") as file:
        file.seek(offset)
        while (data := file.read(block)) and data[0] in (0x00, 0xFF):
            offset += block
        if not data:
            raise LabError(f"{image} holds no data", remedy="Give the path of a disk image.")
        file.seek(offset)
        file.write(bytes([data[0] ^ 0xFF]))
    return offset


def switch(faults: Faults, name: str, value: str) -> None:
    if name not in SWITCHES:
        raise LabError(f"there is no fault {name!r}", remedy=f"Faults are {', '.join([*SWITCHES, *ACTIONS])}.")
    attribute, read, takes = SWITCHES[name]
    try:
        setattr(faults, attribute, read(value))
    except ValueError:
        raise UsageError(f"fault {name} does not take {value!r}", remedy=f"It takes {takes}.") from None


def clear(faults: Faults) -> None:
    blank = Faults()
    for attribute, value in vars(blank).items():
        setattr(faults, attribute, value)


def active(faults: Faults) -> dict[str, Any]:
    """Only what differs from a healthy machine, under the names that people type."""
    values, healthy = asdict(faults), asdict(Faults())
    shown = {
        name: values[attribute] for name, (attribute, *_) in SWITCHES.items() if values[attribute] != healthy[attribute]
    }
    return shown | ({"extra": faults.extra} if faults.extra else {})
