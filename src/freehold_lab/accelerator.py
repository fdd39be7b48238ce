"""Does KVM work here? The device may exist and guests still hang: ask a trivial guest, with a time limit."""

import subprocess
import tempfile
from pathlib import Path

_EXIT_CODE = 33  # isa-debug-exit ends QEMU with (value << 1) | 1
# mov al,0x10; out 0xf4,al; hlt: a boot sector that does nothing but end QEMU
_BOOT_SECTOR = bytes([0xB0, 0x10, 0xE6, 0xF4, 0xF4]).ljust(510, b"\0") + b"\x55\xaa"


def works(accelerator: str, *, seconds: float = 3.0) -> bool:
    """True if a guest boots under `accelerator` ("kvm" or "tcg") and ends within the limit."""
    with tempfile.NamedTemporaryFile(suffix=".img") as image:
        image.write(_BOOT_SECTOR)
        image.flush()
        command = [
            *("qemu-system-x86_64", "-accel", accelerator, "-nodefaults", "-display", "none", "-no-reboot"),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"),
            *("-drive", f"if=ide,format=raw,readonly=off,snapshot=on,file={image.name}"),
        ]
        try:
            done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
        except (subprocess.TimeoutExpired, FileNotFoundError):
            return False
    return done.returncode == _EXIT_CODE


def kvm_works() -> bool:
    return Path("/dev/kvm").exists() and works("kvm")
