"""What a lab needs from its host, checked before anything is made."""

import os
import re
import shutil
from pathlib import Path

from freehold_lab import ipmi, qemu
from freehold_lab.errors import LabError
from freehold_lab.layout import LabPlan

BYTES_PER_SERVER = 1 << 30  # an OS image, written to a sparse disk of 2 GiB, with room for logs
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "swtpm": "swtpm",
    "swtpm_setup": "swtpm-tools",
    "swtpm_localca": "swtpm-tools",
    "ip": "iproute2",
    "nft": "nftables",
    "dnsmasq": "dnsmasq-base",
    "setpriv": "util-linux",
    ipmi.PROGRAM: "openipmi",
}
FILES = {qemu.CODE: "ovmf", qemu.VARS_TEMPLATE: "ovmf"}


def missing_packages() -> list[str]:
    missing = {package for program, package in PROGRAMS.items() if not shutil.which(program)}
    return sorted(missing | {package for file, package in FILES.items() if not file.exists()})


def check_root() -> None:
    if os.geteuid():
        raise LabError("a lab needs root, for its network namespaces", remedy="Run the same command with sudo.")


def check_host(plan: LabPlan) -> None:
    """Raise LabError for the first thing that would fail later."""
    check_root()
    _ = plan.layout  # refuses a bad name or size
    if re.search(r"[\s,:]", str(plan.directory.resolve())):
        raise LabError(f"{plan.directory} has a space, comma or colon in its name", remedy="Use another --dir.")
    if missing := missing_packages():
        raise LabError(
            "Debian packages are missing", remedy=f"Run `apt-get install --no-install-recommends {' '.join(missing)}`."
        )
    if not Path("/dev/net/tun").exists():
        raise LabError(
            "/dev/net/tun is missing: this kernel or container has no tap devices", remedy="Run `modprobe tun`."
        )
    existing = next(
        parent for parent in (plan.directory.resolve(), *plan.directory.resolve().parents) if parent.exists()
    )
    free, wanted = shutil.disk_usage(existing).free, BYTES_PER_SERVER * plan.servers
    if free < wanted:
        raise LabError(
            f"{existing} is too full: {free >> 20} MiB free, {plan.servers} servers need {wanted >> 20} MiB",
            remedy="Make room, use fewer --servers, or another --dir.",
        )
