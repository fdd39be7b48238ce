# os instead of pathlib: its import costs a slow machine a tenth of a second.
"""A disk by its serial number, and the few things done to it: direct reads and writes, zeroing, flushing.

Every function takes the root of the file system, so that a tree of ordinary files stands for a machine in tests.
"""

import fcntl
import mmap
import os
import stat
import struct

from freehold.agent.errors import AgentError

BLKRRPART, BLKFLSBUF, BLKDISCARD, BLKSECDISCARD, BLKZEROOUT = 0x125F, 0x1261, 0x1277, 0x127D, 0x127F  # linux/fs.h
SECTOR = 512  # the unit of sysfs sizes, whatever the logical block size
ALIGNMENT = 4096  # enough for O_DIRECT on 512e and 4Kn drives
COPY_BYTES = 1 << 20


def read_text(path: str) -> str:
    """A sysfs attribute without its newline; "" when it does not exist or cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(65536).decode("utf-8", "replace").strip("\0 \n\t")
    except OSError:
        return ""


def disk_names(root: str = "/") -> list[str]:
    """Kernel names of whole disks with a device behind them (no loop, ram, zram, dm), without hidden NVMe paths."""
    top = os.path.join(root, "sys/block")
    names = sorted(os.listdir(top)) if os.path.isdir(top) else []
    return [
        name
        for name in names
        if os.path.exists(os.path.join(top, name, "device"))
        and not name.startswith(("sr", "fd"))
        and read_text(os.path.join(top, name, "hidden")) != "1"
    ]


def disk_serial(name: str, root: str = "/") -> str:
    """Serial number as the drive reports it: NVMe and SCSI under `device/`, virtio beside `size`, else VPD page 80h."""
    top = os.path.join(root, "sys/block", name)
    for attribute in ("device/serial", "serial"):
        if serial := read_text(os.path.join(top, attribute)):
            return serial
    try:
        with open(os.path.join(top, "device/vpd_pg80"), "rb") as file:  # SPC-4, 7.8.16: 4 bytes of header
            return file.read()[4:].decode("ascii", "replace").strip("\0 ")
    except OSError:
        return ""


def find_disk(serial: str, root: str = "/") -> str:
    """Kernel name of the one disk with this serial number; AgentError names what is there instead."""
    serials = {name: disk_serial(name, root) for name in disk_names(root)}
    matches = [name for name, found in serials.items() if serial and found == serial]
    if len(matches) == 1:
        return matches[0]
    seen = ", ".join(f"{name}={found or '?'}" for name, found in serials.items()) or "no disks at all"
    problem = f"disks {', '.join(matches)} share" if matches else "no disk has"
    raise AgentError(
        f"{problem} the serial number {serial!r} (seen: {seen})",
        remedy="compare with the server's inventory; reseat or replace the drive, or correct the declared serial",
    )


def in_use_by(name: str, root: str = "/") -> str | None:
    """Why the disk must not be overwritten: a mount, swap, or a holder (LVM, RAID, dm-crypt) on it or a partition."""
    top = os.path.join(root, "sys/block", name)
    parts = [name, *(entry for entry in sorted(os.listdir(top)) if entry.startswith(name))]
    for part in parts:
        directory = top if part == name else os.path.join(top, part)
        holders = os.path.join(directory, "holders")
        if os.path.isdir(holders) and (held := sorted(os.listdir(holders))):
            return f"{part} is held by {', '.join(held)}"
    for line in read_text(os.path.join(root, "proc/self/mounts")).splitlines():
        source, where = [*line.split(" "), "", ""][:2]
        if source.rpartition("/")[2] in parts:
            return f"{source} is mounted on {where}"
    for line in read_text(os.path.join(root, "proc/swaps")).splitlines()[1:]:
        if line.split()[0].rpartition("/")[2] in parts:
            return f"{line.split()[0]} is used for swap"
    return None


def claim_disk(serial: str, root: str = "/") -> tuple[str, str]:
    """(kernel name, device path) of a disk that may be overwritten; AgentError if absent, ambiguous or in use."""
    name = find_disk(serial, root)
    if use := in_use_by(name, root):
        raise AgentError(
            f"disk {serial} ({name}) is in use: {use}",
            remedy="boot the server into the ramdisk agent; a running system's disk is never overwritten",
        )
    return name, os.path.join(root, "dev", name)


class BlockDevice:
    """A block device (or a regular file in tests) opened past the page cache. Use as a context manager.

    Opened with O_EXCL, so the kernel itself refuses a disk that is mounted or held.
    """

    def __init__(self, path: str, *, writable: bool = True) -> None:
        self.path = path
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        try:
            self.is_block = stat.S_ISBLK(os.stat(path).st_mode)
            self._fd = os.open(path, flags | (os.O_EXCL if self.is_block and writable else 0))
        except OSError as error:
            raise AgentError(
                f"cannot open {path}: {error.strerror}", remedy="check that the drive answers and that nothing uses it"
            ) from error
        self.size = os.lseek(self._fd, 0, os.SEEK_END)
        self._direct = self._set_direct(True)

    def __enter__(self) -> "BlockDevice":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def _set_direct(self, on: bool) -> bool:
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
        except OSError:  # tmpfs
            return False
        return on

    def _prepare(self, offset: int, length: int) -> None:
        """O_DIRECT for what is aligned, the page cache for an odd tail."""
        aligned = offset % ALIGNMENT == 0 and length % ALIGNMENT == 0
        if aligned != self._direct:
            self._direct = self._set_direct(aligned)

    def write(self, view: memoryview, offset: int) -> None:
        """All of the view, whose memory must be page-aligned (`new_buffer`)."""
        self._prepare(offset, len(view))
        done = 0
        while done < len(view):
            done += os.pwrite(self._fd, view[done:], offset + done)

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill the view from the medium, not from the page cache."""
        self._prepare(offset, len(view))
        if not self._direct:
            self.drop_cache()
        done = 0
        while done < len(view):
            got = os.preadv(self._fd, [view[done:]], offset + done)
            if got == 0:
                raise AgentError(
                    f"{self.path} ends at {offset + done}", remedy="the drive lies about its size: replace it"
                )
            done += got

    def read(self, offset: int, length: int) -> bytes:
        """A copy of `length` bytes from the medium; any offset."""
        start = offset // ALIGNMENT * ALIGNMENT
        stop = min(-(-(offset + length) // ALIGNMENT) * ALIGNMENT, self.size)
        view = memoryview(new_buffer(stop - start))[: stop - start]
        self.read_into(view, start)
        return bytes(view[offset - start : offset - start + length])

    def write_bytes(self, data: bytes, offset: int) -> None:
        """Small or unaligned data: through the cache, then to the medium."""
        self._direct = self._set_direct(False)
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], offset + done)
        self.flush()

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, by the drive itself where it can (NVMe Write Zeroes)."""
        if self.is_block and offset % SECTOR == 0 and length % SECTOR == 0:
            self.ioctl_range(BLKZEROOUT, offset, length)
            return
        zeros, end = memoryview(new_buffer(COPY_BYTES)), offset + length
        while offset < end:
            step = min(COPY_BYTES, end - offset)
            self.write(zeros[:step], offset)
            offset += step

    def ioctl_range(self, request: int, offset: int, length: int) -> None:
        """BLKDISCARD, BLKSECDISCARD or BLKZEROOUT over a byte range. OSError when the drive cannot."""
        fcntl.ioctl(self._fd, request, struct.pack("=QQ", offset, length))

    def flush(self) -> None:
        """Data is on the medium when this returns."""
        os.fsync(self._fd)

    def drop_cache(self) -> None:
        """Forget cached pages, so that the next read comes from the drive."""
        os.fsync(self._fd)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if self.is_block:
            fcntl.ioctl(self._fd, BLKFLSBUF, 0)

    def reread_partitions(self) -> None:
        """Let the kernel see a new partition table. A device without partitions (loop, dm) refuses: that is fine."""
        if self.is_block:
            try:
                fcntl.ioctl(self._fd, BLKRRPART, 0)
            except OSError as error:
                print(f"freehold-agent: {self.path}: kernel keeps its partition table: {error.strerror}", flush=True)


def new_buffer(length: int) -> mmap.mmap:
    """Page-aligned zeroed memory, as O_DIRECT wants it."""
    return mmap.mmap(-1, max(length, ALIGNMENT))
