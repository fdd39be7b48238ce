"""What the installed OS says about itself once it is up."""

import os
import socket
import struct

from freehold.agent.inventory import secure_boot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def state(root: str = "/") -> "dict[str, Any]":
    """hostname, ssh_active, secure_boot (False when unknown: never claim it), addresses (IPv4, without loopback)."""
    return {
        "hostname": socket.gethostname(),
        "ssh_active": ssh_active(),
        "secure_boot": bool(secure_boot(root)),
        "addresses": addresses(),
    }


def ssh_active() -> bool:
    """systemd's word for the ssh unit; False where there is no systemd."""
    import subprocess

    try:
        done = subprocess.run(["systemctl", "is-active", "--quiet", "ssh.service"], check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0


def addresses() -> list[str]:
    """The IPv4 address of every interface that has one (SIOCGIFADDR)."""
    import fcntl

    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", os.fsencode(name)[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), 0x8915, request)
            except OSError:
                continue  # no address on this interface
            address = socket.inet_ntoa(answer[20:24])
            if not address.startswith("127."):
                found.append(address)
    return found
