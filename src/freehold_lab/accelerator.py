"""Does KVM work here? The device may exist and guests hang all the same: ask a trivial guest, with a time limit."""

import contextlib
import subprocess
import tempfile
from pathlib import Path

from freehold_lab import qemu

TRIAL_SECONDS = 2.0
"""Many times what the trial guest needs, emulated too; so long a lab on a host whose KVM hangs takes more to start."""

_EXIT_CODE = 33  # isa-debug-exit ends QEMU with (value << 1) | 1
# mov al,0x10; out 0xf4,al; hlt: a boot sector that does nothing but end QEMU
_BOOT_SECTOR = bytes([0xB0, 0x10, 0xE6, 0xF4, 0xF4]).ljust(510, b"\0") + b"\x55\xaa"

_DISK_BYTES = 1 << 20  # the firmware reads no disk that is smaller than a cylinder


def works(accelerator: str, *, seconds: float = TRIAL_SECONDS) -> bool:
    """True if a guest boots under `accelerator` ("kvm" or "tcg") and ends within the limit. It has the processor and
    the chipset of a lab machine, SMM included: a KVM that lacks that would fail at the first firmware update."""
    with tempfile.NamedTemporaryFile(suffix=".img") as image:
        image.write(_BOOT_SECTOR)
        image.truncate(_DISK_BYTES)
        image.flush()
        command = [
            *("qemu-system-x86_64", "-machine", "q35,smm=on", "-accel", accelerator, "-cpu", qemu.CPU),
            *("-nodefaults", "-display", "none", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"),
            *("-drive", f"if=ide,format=raw,readonly=off,snapshot=on,file={image.name}"),
        ]
        quiet = subprocess.DEVNULL  # a pipe would be waited for, and QEMU may be past ending
        try:
            guest = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
        except FileNotFoundError:
            return False
        try:
            return guest.wait(seconds) == _EXIT_CODE
        except subprocess.TimeoutExpired:
            guest.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                guest.wait(1.0)
            return False


def kvm_works() -> bool:
    return Path("/dev/kvm").exists() and works("kvm")
