# See blockdev.py for why os and not pathlib.
"""A ticket: 32 random bytes that let an agent in where a waiver of two operators stands for the TPM.

The one of our ramdisk lies on a medium that the controller put into the machine by its BMC. The one of the OS lies in
the last sector of the seed partition, where our ramdisk wrote it. Both are found without any file system: a record at
the beginning of a sector.
"""

import os
from hashlib import sha256

from freehold.agent.blockdev import SECTOR, read_text

MAGIC = b"FREEHOLD-TICKET-1 "
TICKET_BYTES = 32
TAIL = 1 << 20  # how much of a medium's end is looked at: a BMC may show it larger than the file is
SEED_LABEL = "CIDATA"


def record(ticket: bytes) -> bytes:
    """The sector that holds the ticket."""
    return (MAGIC + ticket.hex().encode()).ljust(SECTOR, b"\0")


def parse(data: bytes) -> bytes | None:
    """The last ticket in the data, which begins with a sector; None: there is none."""
    end = len(data)
    while (at := data.rfind(MAGIC, 0, end)) >= 0:
        text = data[at + len(MAGIC) : at + len(MAGIC) + 2 * TICKET_BYTES]
        if at % SECTOR == 0 and len(text) == 2 * TICKET_BYTES and not text.strip(b"0123456789abcdef"):
            return bytes.fromhex(text.decode())
        end = at + len(MAGIC) - 1
    return None


def find(mode: str, root: str = "/") -> bytes | None:
    """The ticket of this boot: `ramdisk` looks on removable media and virtual CDs, `os` on the seed partition."""
    devices, tail = (removable(root), TAIL) if mode == "ramdisk" else (seeds(root), SECTOR)
    for name in devices:
        try:
            found = parse(read_end(os.path.join(root, "dev", name), tail))
        except OSError:  # a drive without a medium
            continue
        if found is not None:
            return found
    return None


def new() -> tuple[bytes, str]:
    """(the record of a fresh ticket, SHA-256 of the ticket in hex): only the second may leave the machine."""
    ticket = os.urandom(TICKET_BYTES)
    return record(ticket), sha256(ticket).hexdigest()


def removable(root: str = "/") -> list[str]:
    """Kernel names of CD drives and of disks that can be taken out."""
    top = os.path.join(root, "sys/block")
    names = sorted(os.listdir(top)) if os.path.isdir(top) else []
    return [name for name in names if name.startswith("sr") or read_text(f"{top}/{name}/removable") == "1"]


def seeds(root: str = "/") -> list[str]:
    """Kernel names of the partitions with the seed's label."""
    top = os.path.join(root, "sys/class/block")
    names = sorted(os.listdir(top)) if os.path.isdir(top) else []
    return [name for name in names if f"PARTNAME={SEED_LABEL}" in read_text(f"{top}/{name}/uevent").splitlines()]


def read_end(path: str, length: int) -> bytes:
    """The last `length` bytes, from the beginning of a sector on."""
    with open(path, "rb") as device:
        size = device.seek(0, os.SEEK_END)
        device.seek(max(0, size - length) // SECTOR * SECTOR)
        return device.read(length + SECTOR)
