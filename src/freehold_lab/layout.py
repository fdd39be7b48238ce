"""The facts of a lab, all derived from its name and size: identities, addresses, files. Written to `lab.json`.

Nothing here is random, so that `down --keep` followed by `up` finds the same rack. Secrets of a real factory would be;
a factory password printed on a pull-out tag is as public as one computed from the serial number.
"""

import hashlib
import json
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from freehold_lab import network, qemu
from freehold_lab.errors import LabError
from freehold_lab.firmware_package import package_name
from freehold_lab.hardware import DriveInfo, HardwareInfo, NicInfo
from freehold_lab.machine_state import FACTORY_BIOS_VERSION

FACTS, SERVERS, TPM_VENDOR, TPM_ROOTS, FIRMWARE, LOGS, PROCESSES = (
    *("lab.json", "servers", "tpm-vendor", "tpm-roots", "firmware", "logs", "processes.json"),
)
OWN_FILES = (FACTS, SERVERS, TPM_VENDOR, TPM_ROOTS, FIRMWARE, LOGS, PROCESSES, "known_hosts", "lab.lock")
CONTROL_SOCKET = "control.sock"
MANUFACTURER, MODEL = "Halden Compute", "HX-100"
FACTORY_USER = "root"


@dataclass(frozen=True)
class LabPlan:
    """What `up` was asked for."""

    name: str
    directory: Path
    servers: int = 1
    memory_mib: int = 1024
    cores: int = 1
    kvm: bool = False
    without_tpm: tuple[str, ...] = ()  # names of servers whose board has none

    @property
    def layout(self) -> network.Layout:
        return network.Layout(self.name, self.servers)

    def lab_id(self) -> str:
        """Unique on this host: the same name in another directory is another lab."""
        return f"{self.name}-{hashlib.sha256(str(self.directory.resolve()).encode()).hexdigest()[:12]}"

    def server_directory(self, server: str) -> Path:
        return self.directory / SERVERS / server


def server_name(number: int) -> str:
    return f"server-{number}"


def hardware_info(plan: LabPlan, number: int) -> HardwareInfo:
    serial = f"HX{hashlib.sha256(plan.name.encode()).hexdigest()[:4].upper()}{number:04d}"
    mac = f"52:54:00:{hashlib.sha256(plan.name.encode()).hexdigest()[:2]}:{number:02x}"
    return HardwareInfo(
        name=server_name(number),
        uuid=str(uuid.uuid5(uuid.NAMESPACE_OID, f"freehold-lab/{plan.name}/{number}")),
        serial=serial,
        manufacturer=MANUFACTURER,
        model=MODEL,
        asset_tag=f"{plan.name}-{number}",
        cpu_model=qemu.CPU_MODEL,
        cores=plan.cores,
        memory_mib=plan.memory_mib,
        bios_version=FACTORY_BIOS_VERSION,
        drives=(
            DriveInfo(qemu.NVME_ID, f"{serial}N", "QEMU NVMe Ctrl", qemu.NVME_BYTES, "NVMe"),
            DriveInfo(qemu.DISK_ID, f"{serial}D", "QEMU virtio disk", qemu.DISK_BYTES, "SATA"),
        ),
        nics=(NicInfo("nic0", f"{mac}:00", "provisioning"), NicInfo("nic1", f"{mac}:01", "production")),
        has_tpm=server_name(number) not in plan.without_tpm,
    )


def facts(plan: LabPlan) -> dict[str, Any]:
    """The content of `lab.json`: all that somebody outside needs to know about the lab."""
    layout, here = plan.layout, plan.directory.resolve()
    return {
        "version": 1,
        "name": plan.name,
        "id": plan.lab_id(),
        "directory": str(here),
        "kvm": plan.kvm,
        "memory_mib": plan.memory_mib,
        "cores": plan.cores,
        "namespaces": {role: layout.namespace(role) for role in ("fabric", *layout.legs)},
        "controller_namespace": layout.namespace("controller"),
        "client_namespace": layout.namespace("client"),
        "networks": {
            name: {
                "prefix": f"{network.PREFIXES[name]}.0/24",
                "gateway": None if name == "oob" else network.address(name, 1),
            }
            for name in network.BRIDGES
        },
        "controller": {name: network.address(name, network.CONTROLLER_HOST) for name in ("oob", "provisioning")},
        "internet": network.address("wan", network.INTERNET_HOST),
        "tpm_vendor_certificates": [str(here / TPM_ROOTS / name) for name in ("root.pem", "issuing.pem")],
        "firmware": str(here / FIRMWARE / package_name(MODEL)),
        "servers": [_server_facts(plan, number) for number in range(1, plan.servers + 1)],
    }


def _server_facts(plan: LabPlan, number: int) -> dict[str, Any]:
    info = hardware_info(plan, number)
    directory = plan.server_directory(info.name).resolve()
    hardware = asdict(info)
    del hardware["bios_version"]  # changes in the life of the server: ask the BMC
    return hardware | {
        "number": number,
        "bmc_address": network.bmc_address(number),
        "bmc_namespace": plan.layout.namespace(f"bmc{number}"),
        "factory_user": FACTORY_USER,
        "factory_password": f"Factory-{info.serial}",
        "production_address": network.address("production", 10 + number),
        "console_log": str(directory / "console.log"),
        "console_socket": str(directory / "console.sock"),
        "control_socket": str(directory / CONTROL_SOCKET),
    }


def load(directory: Path) -> dict[str, Any]:
    """`lab.json` of a directory; LabError if there is none that can be read."""
    file = directory / FACTS
    try:
        value: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        raise LabError(
            f"there is no lab in {directory}", remedy="Start one with `freehold lab up`, or say where it is with --dir."
        ) from None
    except ValueError as exc:
        raise LabError(
            f"{file} cannot be read: {exc}", remedy="Run `freehold lab down`, then `freehold lab up`."
        ) from exc
    return value


def plan_of(value: dict[str, Any]) -> LabPlan:
    return LabPlan(
        name=value["name"],
        directory=Path(value["directory"]),
        servers=len(value["servers"]),
        memory_mib=value["memory_mib"],
        cores=value["cores"],
        kvm=value["kvm"],
        without_tpm=tuple(each["name"] for each in value["servers"] if not each["has_tpm"]),
    )


def server(value: dict[str, Any], name: str) -> dict[str, Any]:
    """The facts of one server by name."""
    for candidate in value["servers"]:
        if candidate["name"] == name:
            return dict(candidate)
    names = ", ".join(candidate["name"] for candidate in value["servers"])
    raise LabError(f"the lab has no server {name!r}", remedy=f"It has {names}.")
