"""What a machine remembers while it is off, and while its BMC restarts: kept as JSON beside its disks."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from freehold_lab.errors import LabError
from freehold_lab.firmware_vars import Edit, edit_from_json, edit_to_json
from freehold_lab.hardware import BootOverride, BootTarget

STATE_FILE = "machine.json"
FACTORY_BIOS_VERSION = "1.0.0"

BiosAttributes = dict[str, str | int | bool]

BIOS_DEFAULTS: BiosAttributes = {
    "BootMode": "Uefi",
    "TpmDevice": "Enabled",  # "Disabled" hides the TPM from the next boot on
    "ProcVirtualization": "Enabled",
    "LogicalProc": "Enabled",
    "SriovGlobalEnable": "Disabled",
    "NumaNodesPerSocket": 1,
    "PowerProfile": "MaxPerformance",
    "SerialConsole": True,
}


@dataclass
class MachineState:
    override: BootOverride = field(default_factory=BootOverride)
    bios: BiosAttributes = field(default_factory=lambda: dict(BIOS_DEFAULTS))
    pending_bios: BiosAttributes = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)  # to the variable store, in the order of their arrival
    media: str = ""  # path of the inserted image
    secure_boot_active: bool = False
    bios_version: str = FACTORY_BIOS_VERSION
    pending_bios_version: str = ""

    @classmethod
    def load(cls, directory: Path) -> "MachineState":
        file = directory / STATE_FILE
        if not file.exists():
            return cls()
        value: dict[str, Any] = json.loads(file.read_text())
        override = value.pop("override")
        edits = [edit_from_json(edit) for edit in value.pop("edits")]
        return cls(override=BootOverride(**override | {"target": BootTarget(override["target"])}), edits=edits, **value)

    def save(self, directory: Path) -> None:
        value = asdict(self) | {"edits": [edit_to_json(edit) for edit in self.edits]}
        partial = directory / f"{STATE_FILE}.partial"
        partial.write_text(json.dumps(value, indent=1))
        partial.replace(directory / STATE_FILE)


def checked_bios(attributes: BiosAttributes) -> BiosAttributes:
    """The same attributes, if each exists and has the type of its default."""
    for name, value in attributes.items():
        if name not in BIOS_DEFAULTS:
            raise LabError(f"this machine has no BIOS attribute {name!r}", remedy=f"It has {', '.join(BIOS_DEFAULTS)}.")
        kind = type(BIOS_DEFAULTS[name])
        if type(value) is not kind:
            raise LabError(f"BIOS attribute {name} takes a value of type {kind.__name__}, not {value!r}")
    return attributes
