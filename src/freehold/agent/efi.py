# See blockdev.py for why os and not pathlib.
"""UEFI variables through efivarfs: the boot entry of the installed OS, and the Secure Boot state.

An efivarfs file is 4 bytes of attributes and the value; variables outside a short list are immutable (chattr +i) until
told otherwise (kernel: Documentation/filesystems/efivarfs.rst).
"""

import fcntl
import os
import struct

from freehold.agent.errors import AgentError
from freehold.agent.partitions import Partition

GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"  # EFI_GLOBAL_VARIABLE
ATTRIBUTES = 7  # NON_VOLATILE | BOOTSERVICE_ACCESS | RUNTIME_ACCESS
LOAD_OPTION_ACTIVE = 1
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IMMUTABLE_FL = 0x80086601, 0x40086602, 0x10


def device_path(partition: Partition, loader: str) -> bytes:
    """HD(number,GPT,guid,start,size)/File(loader) (UEFI 2.10, 10.3.5.1, 10.3.5.4, 10.3.1)."""
    drive = struct.pack("<IQQ16sBB", partition.number, partition.start_lba, partition.size_lba, partition.guid, 2, 2)
    file = ("\\" + loader.replace("/", "\\").lstrip("\\")).encode("utf-16-le") + b"\0\0"
    nodes = [(4, 1, drive), (4, 4, file), (0x7F, 0xFF, b"")]
    return b"".join(struct.pack("<BBH", kind, sub, 4 + len(data)) + data for kind, sub, data in nodes)


def load_option(label: str, path: bytes) -> bytes:
    """EFI_LOAD_OPTION (UEFI 2.10, 3.1.3), active, without optional data."""
    return struct.pack("<IH", LOAD_OPTION_ACTIVE, len(path)) + label.encode("utf-16-le") + b"\0\0" + path


def load_option_label(option: bytes) -> str:
    """The description of a load option; "" if it is not one."""
    end = 6
    while option[end : end + 2] not in (b"\0\0", b""):
        end += 2
    return option[6:end].decode("utf-16-le", "replace")


class EfiVariables:
    """Global UEFI variables under `<root>/sys/firmware/efi/efivars`."""

    def __init__(self, root: str = "/") -> None:
        self.directory = os.path.join(root, "sys/firmware/efi/efivars")
        if not os.path.isdir(self.directory):
            raise AgentError("the server did not boot by UEFI, or efivarfs is not mounted", remedy="turn UEFI boot on")

    def read(self, name: str) -> bytes | None:
        """The value without its attributes; None if there is no such variable."""
        try:
            with open(self._path(name), "rb") as file:
                return file.read()[4:]
        except FileNotFoundError:
            return None

    def write(self, name: str, value: bytes) -> None:
        """Set the variable in one write, as efivarfs wants it; unchanged values are left alone (flash wears)."""
        if self.read(name) == value:
            return
        self._mutable(name)
        descriptor = os.open(self._path(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, struct.pack("<I", ATTRIBUTES) + value)
        except OSError as error:
            raise AgentError(
                f"the firmware refused to store {name}: {error.strerror}",
                remedy="the firmware's variable store may be full or locked: check its setup",
            ) from error
        finally:
            os.close(descriptor)

    def delete(self, name: str) -> None:
        """Remove the variable if it exists."""
        if os.path.exists(self._path(name)):
            self._mutable(name)
            os.unlink(self._path(name))

    def boot_options(self) -> dict[int, bytes]:
        """Boot#### by number."""
        found = {}
        for entry in os.listdir(self.directory):
            name, _, guid = entry.partition("-")
            number = name[4:]
            if (
                guid == GLOBAL
                and name.startswith("Boot")
                and len(number) == 4
                and set(number) <= set("0123456789ABCDEF")
            ):
                found[int(number, 16)] = self.read(name) or b""
        return found

    def secure_boot(self) -> bool:
        """True when the firmware says that Secure Boot is enforced."""
        return self.read("SecureBoot") == b"\1"

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, f"{name}-{GLOBAL}")

    def _mutable(self, name: str) -> None:
        try:
            descriptor = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            flags = struct.unpack("i", fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, bytes(4)))[0]
            if flags & FS_IMMUTABLE_FL:
                fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, struct.pack("i", flags & ~FS_IMMUTABLE_FL))
        except OSError as error:
            if error.errno not in (25, 95):  # ENOTTY, EOPNOTSUPP: this file system has no such flag
                raise
        finally:
            os.close(descriptor)


def set_boot_entry(variables: EfiVariables, label: str, partition: Partition, loader: str) -> dict[str, object]:
    """Make `label` the first boot entry and the only one of that label; the other entries keep their order."""
    option = load_option(label, device_path(partition, loader))
    existing = variables.boot_options()
    same = sorted(number for number, old in existing.items() if load_option_label(old) == label)
    number = same[0] if same else next(n for n in range(0x10000) if n not in existing)
    variables.write(f"Boot{number:04X}", option)
    order = variables.read("BootOrder") or b""
    rest = [n for (n,) in struct.iter_unpack("<H", order[: len(order) // 2 * 2]) if n != number and n not in same]
    variables.write("BootOrder", struct.pack(f"<{1 + len(rest)}H", number, *rest))
    for stale in same[1:]:
        variables.delete(f"Boot{stale:04X}")
    return {"entry": f"Boot{number:04X}", "removed": [f"Boot{n:04X}" for n in same[1:]], "boot_order": [number, *rest]}
