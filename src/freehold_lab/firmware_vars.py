"""The variable store of a machine's firmware: boot options, boot order, Secure Boot databases.

A store is the raw flash image that OVMF uses (`OVMF_VARS_4M.fd`). It may be *read* at any time and is *written* only
while the machine is off. Changes are data (`Edit`), so that they can be queued while the machine runs, kept on disk
as JSON, and tested without a machine.
"""

import base64
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from virt.firmware.efi import bootentry, devpath, efivar, guids, siglist
from virt.firmware.varstore import edk2

from freehold_lab import device_path
from freehold_lab.errors import LabError
from freehold_lab.hardware import BootOption, SecureBootDatabaseName

OWNER = "5a1c2f4e-9c58-4d53-9c07-f2ee1ab0f00d"  # SignatureOwner of what a BMC enrols
OVERRIDE_ENTRY = 0x0F00  # the Boot#### that belongs to the BMC; never part of BootOrder
BOOT_TO_FIRMWARE_UI = 1  # OsIndications bit (UEFI 2.10, 8.5.4)
DATABASES: tuple[SecureBootDatabaseName, ...] = get_args(SecureBootDatabaseName)

ResetMode = Literal["ResetAllKeysToDefault", "DeleteAllKeys", "DeletePK"]


@dataclass(frozen=True)
class SetBootOrder:
    order: tuple[int, ...]


@dataclass(frozen=True)
class SetSecureBoot:
    enabled: bool


@dataclass(frozen=True)
class SetDatabase:
    """Replace a database. Certificates are base64 of DER, signatures SHA-256 digests in hex."""

    database: SecureBootDatabaseName
    certificates: tuple[str, ...]
    signatures: tuple[str, ...]


@dataclass(frozen=True)
class ResetKeys:
    mode: ResetMode


Edit = SetBootOrder | SetSecureBoot | SetDatabase | ResetKeys
_EDITS: dict[str, type[Edit]] = {kind.__name__: kind for kind in get_args(Edit)}


def edit_to_json(edit: Edit) -> dict[str, Any]:
    return {"edit": type(edit).__name__, **asdict(edit)}


def edit_from_json(value: dict[str, Any]) -> Edit:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k != "edit"}
    return _EDITS[value["edit"]](**fields)


def set_database(
    database: SecureBootDatabaseName, certificates: Iterable[bytes], signatures: Iterable[str]
) -> SetDatabase:
    return SetDatabase(database, tuple(base64.b64encode(c).decode() for c in certificates), tuple(signatures))


class Variables:
    """The variables of one store, in memory."""

    def __init__(self, variables: efivar.EfiVarList) -> None:
        self.raw = variables

    # ---- boot
    def boot_order(self) -> list[int]:
        return _words(self._data("BootOrder"))

    def boot_next(self) -> int | None:
        return next(iter(_words(self._data("BootNext"))), None)

    def boot_options(self) -> list[BootOption]:
        entries = ((name, self._entry(name)) for name in sorted(self.raw) if _is_boot_entry(name))
        return [BootOption(name, str(entry.title), device_path.text(entry.devicepath)) for name, entry in entries]

    def first_disk(self, cd_slot: int) -> int | None:
        """The first entry of BootOrder that leads to a disk."""
        for number in self.boot_order():
            name = reference(number)
            if name in self.raw and device_path.is_disk(self._entry(name).devicepath, cd_slot):
                return number
        return None

    def set_boot_next(self, number: int) -> None:
        self.raw.set_boot_next(number)

    def set_override_entry(self, title: str, path: devpath.DevicePath) -> None:
        """Point BootNext at the BMC's own entry: the firmware tries it once, before BootOrder (UEFI 2.10, 3.1.2)."""
        self.raw.set_boot_entry(OVERRIDE_ENTRY, title, path)
        self.raw.set_boot_next(OVERRIDE_ENTRY)

    def remove_spent_override(self) -> None:
        """Remove the BMC's own entry, unless a boot that is still to come uses it."""
        if self.boot_next() != OVERRIDE_ENTRY:
            self.raw.pop(reference(OVERRIDE_ENTRY), None)

    def request_firmware_ui(self) -> None:
        variable = self.raw.get("OsIndications") or self.raw.create("OsIndications")
        variable.attr = efivar.boot_defaults["attr"]
        current = int.from_bytes(variable.data.ljust(8, b"\0")[:8], "little")
        variable.data = (current | BOOT_TO_FIRMWARE_UI).to_bytes(8, "little")

    # ---- Secure Boot
    def setup_mode(self) -> bool:
        return not self._data("PK")

    def secure_boot_enabled(self) -> bool:
        return not self.setup_mode() and self._data("SecureBootEnable") == b"\1"

    def certificates(self, database: SecureBootDatabaseName) -> list[bytes]:
        return self._signatures(database, guids.EfiCertX509)

    def signatures(self, database: SecureBootDatabaseName) -> list[str]:
        return [digest.hex() for digest in self._signatures(database, guids.EfiCertSha256)]

    # ---- edits
    def apply(self, edit: Edit) -> None:
        match edit:
            case SetBootOrder(order):
                missing = [reference(number) for number in order if reference(number) not in self.raw]
                if missing:
                    raise LabError(f"the boot order names {', '.join(missing)}, which does not exist")
                variable = self.raw.get("BootOrder") or self.raw.create("BootOrder")
                variable.set_boot_order(order)
            case SetSecureBoot(enabled):
                self.raw.set_bool("SecureBootEnable", enabled)
            case SetDatabase(database, certificates, signatures):
                self.raw.pop(database, None)
                for certificate in certificates:
                    variable = self.raw.get(database) or self.raw.create(database)
                    variable.sigdb_add_cert_data(guids.parse_str(OWNER), base64.b64decode(certificate))
                for signature in signatures:
                    self.raw.add_hash(database, OWNER, signature)
                self._user_mode_follows_platform_key(database)
            case ResetKeys("DeletePK"):
                self.raw.pop("PK", None)
                self._user_mode_follows_platform_key("PK")
            case ResetKeys():
                # The lab's factory default is an empty set of keys: the machine is delivered in setup mode.
                for database in DATABASES:
                    self.raw.pop(database, None)
                self._user_mode_follows_platform_key("PK")

    def _user_mode_follows_platform_key(self, database: SecureBootDatabaseName) -> None:
        if database == "PK" and self.setup_mode():
            self.raw.pop("SecureBootEnable", None)  # the firmware does the same when PK is deleted
        self.raw.set_bool("CustomMode", False)

    def _data(self, name: str) -> bytes:
        variable = self.raw.get(name)
        return bytes(variable.data) if variable else b""

    def _entry(self, name: str) -> bootentry.BootEntry:
        return bootentry.BootEntry(data=self.raw[name].data)

    def _signatures(self, database: SecureBootDatabaseName, kind: str) -> list[bytes]:
        lists = siglist.EfiSigDB(self._data(database))
        return [bytes(item["data"]) for entry in lists if str(entry.guid) == kind for item in entry]


def reference(number: int) -> str:
    return f"Boot{number:04X}"


def number_of(name: str) -> int:
    if not _is_boot_entry(name):
        raise LabError(f"{name!r} is no boot option", remedy="Boot options look like Boot0003.")
    return int(name[4:], 16)


def _is_boot_entry(name: str) -> bool:
    return len(name) == 8 and name.startswith("Boot") and all(c in "0123456789ABCDEF" for c in name[4:])


def _words(data: bytes) -> list[int]:
    return [word for (word,) in struct.iter_unpack("<H", data)]


def read(store: Path, pending: Iterable[Edit] = ()) -> Variables:
    """The variables as the firmware would find them, with the queued edits applied."""
    variables = Variables(_open(store).get_varlist())
    for edit in pending:
        variables.apply(edit)
    return variables


def write(store: Path, variables: Variables) -> None:
    """Write the store in one step: a crash leaves the old one or the new one."""
    flash = _open(store)
    try:
        content = flash.bytes_varlist(variables.raw)
    except SystemExit as exc:  # virt-firmware ends the process when the store is full
        raise LabError(f"the variables do not fit into {store}", remedy="Remove certificates or signatures.") from exc
    data = flash.filedata
    partial = store.with_suffix(".partial")
    # Not write_varstore: it pads byte by byte, which takes a second.
    partial.write_bytes(data[: flash.start] + content.ljust(flash.end - flash.start, b"\xff") + data[flash.end :])
    partial.replace(store)


def _open(store: Path) -> edk2.Edk2VarStore:
    try:
        return edk2.Edk2VarStore(str(store))
    except SystemExit as exc:
        raise LabError(
            f"{store} is no OVMF variable store", remedy="Power off and copy OVMF_VARS_4M.fd over it."
        ) from exc
