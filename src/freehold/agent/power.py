"""Leave the running system: data to the disks, then the kernel's reboot call, or systemd's where it runs."""

import os

RB_AUTOBOOT, RB_POWER_OFF = 0x01234567, 0x4321FEDC  # linux/reboot.h


def leave(kind: str, mode: str) -> None:
    """`reboot` or `poweroff`. In the OS, systemd stops services first; in the ramdisk there is nothing to stop."""
    os.sync()
    if mode == "os":
        import subprocess

        subprocess.run(["systemctl", "--no-block", kind], check=True)
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.reboot(RB_AUTOBOOT if kind == "reboot" else RB_POWER_OFF) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
