# See blockdev.py for why os and not pathlib.
"""What the server is made of, as its own kernel sees it: read from sysfs, procfs and SMBIOS under a root path.

Absent facts are None, never guessed. Sizes are bytes, link speeds Mbit/s, NUMA nodes None on machines without.
"""

import os
import re
import struct

from freehold.agent.blockdev import SECTOR, disk_names, disk_serial, read_text
from freehold.agent.smbios import summary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CPU_FLAGS = (
    "aes", "sha_ni", "avx2", "avx512f", "amx_tile", "pdpe1gb", "vmx", "svm", "sev", "sev_es", "sev_snp", "sme", "tme",
    "sgx", "tdx_host_platform", "rdt_a", "x2apic", "hypervisor",
)  # fmt: skip
SMBIOS_TABLE = "sys/firmware/dmi/tables/DMI"
NOISE_INTERFACES = ("lo", "ifb", "dummy", "veth", "bond", "br", "tun", "tap", "docker", "virbr")


def collect(root: str = "/", tpm_exchange: "Callable[[bytes], bytes] | None" = None) -> "dict[str, Any]":
    """The whole inventory; its parts are described at the functions below."""
    table = _read_bytes(os.path.join(root, SMBIOS_TABLE))
    dmi = summary(table) if table else _dmi_fallback(root)
    dimms = dmi.pop("dimms")
    pci = pci_devices(root)
    return {
        **dmi, "cpus": cpus(root), "numa": numa_nodes(root),
        "memory": {"total_bytes": memory_bytes(root), "dimms": dimms},
        "nics": nics(root), "pci": pci, "gpus": [one for one in pci if one["class"][:4] in ("0300", "0302")],
        "disks": [disk(name, root) for name in disk_names(root)], "tpm": tpm(root, tpm_exchange),
        "firmware": {"uefi": os.path.isdir(os.path.join(root, "sys/firmware/efi")), "secure_boot": secure_boot(root)},
        "kernel": read_text(os.path.join(root, "proc/sys/kernel/osrelease")) or None,
    }  # fmt: skip


def identity(root: str = "/") -> dict[str, str | None]:
    """The `smbios` object of hello: uuid, serial, vendor, product."""
    table = _read_bytes(os.path.join(root, SMBIOS_TABLE))
    system: Any = (summary(table) if table else _dmi_fallback(root))["system"]
    names = {"uuid": "uuid", "serial": "serial", "vendor": "manufacturer", "product": "product"}
    return {name: system.get(source) for name, source in names.items()}


def cpus(root: str = "/") -> "list[dict[str, Any]]":
    """One entry a socket: model, vendor, cores, threads, flags of interest."""
    sockets: dict[int, dict[str, Any]] = {}
    for block in read_all(os.path.join(root, "proc/cpuinfo")).split("\n\n"):
        fields = {
            name.strip(): value.strip() for name, _, value in (line.partition(":") for line in block.splitlines())
        }
        if "processor" not in fields:
            continue
        number = int(fields.get("physical id", "0"))
        flags = fields.get("flags", fields.get("Features", "")).split()
        socket = sockets.setdefault(
            number,
            {
                "socket": number, "model": fields.get("model name"), "vendor": fields.get("vendor_id"), "threads": 0,
                "microcode": fields.get("microcode"), "seen": set(),
                "flags": [flag for flag in CPU_FLAGS if flag in flags],
            },
        )  # fmt: skip
        socket["threads"] += 1
        socket["seen"].add(fields.get("core id", fields["processor"]))
    return [{"cores": len(socket.pop("seen")), **socket} for _, socket in sorted(sockets.items())]


def numa_nodes(root: str = "/") -> "list[dict[str, Any]]":
    """node, cpus ("0-3,8-11"), memory_bytes, distances to nodes 0, 1, …"""
    top = os.path.join(root, "sys/devices/system/node")
    nodes = []
    for name in _matching(top, r"node\d+"):
        total = re.search(r"MemTotal:\s+(\d+) kB", read_text(os.path.join(top, name, "meminfo")))
        distances = read_text(os.path.join(top, name, "distance")).split()
        nodes.append(
            {
                "node": int(name[4:]), "cpus": read_text(os.path.join(top, name, "cpulist")),
                "memory_bytes": int(total[1]) << 10 if total else 0, "distances": [int(one) for one in distances],
            }
        )  # fmt: skip
    return sorted(nodes, key=lambda node: int(str(node["node"])))


def memory_bytes(root: str = "/") -> int:
    """What the kernel manages; a little less than what is installed."""
    found = re.search(r"MemTotal:\s+(\d+) kB", read_text(os.path.join(root, "proc/meminfo")))
    return int(found[1]) << 10 if found else 0


def macs(root: str = "/") -> list[str]:
    """Permanent-looking MAC addresses of physical interfaces, for hello."""
    return sorted({str(nic["mac"]) for nic in nics(root) if nic["mac"]})


def nics(root: str = "/") -> "list[dict[str, Any]]":
    """Interfaces with hardware behind them: name, mac, driver, speed_mbps, carrier, pci, numa, sriov_vfs."""
    top = os.path.join(root, "sys/class/net")
    found = []
    for name in _matching(top, r".+"):
        path = os.path.join(top, name)
        device = os.path.join(path, "device")
        if name.startswith(NOISE_INTERFACES) or not os.path.exists(device):
            continue
        speed, pci = _number(os.path.join(path, "speed")), _pci_address(device)
        found.append(
            {
                "name": name, "mac": read_text(os.path.join(path, "address")) or None,
                "driver": _link(device, "driver"), "speed_mbps": speed if speed and speed > 0 else None,
                "carrier": _number(os.path.join(path, "carrier")) == 1,
                "pci": pci, "numa": _numa(os.path.join(root, "sys/bus/pci/devices", pci) if pci else device),
                "sriov_vfs": _number(os.path.join(device, "sriov_totalvfs")) or 0,
            }
        )  # fmt: skip
    return found


def pci_devices(root: str = "/") -> "list[dict[str, Any]]":
    """address, class (6 hex digits), vendor, device, subsystem_vendor, subsystem_device, driver, numa, link."""
    top = os.path.join(root, "sys/bus/pci/devices")
    found = []
    for address in _matching(top, r"[0-9a-f:.]+"):
        path = os.path.join(top, address)
        ids = {name: read_text(os.path.join(path, name)).removeprefix("0x") for name in ("class", "vendor", "device")}
        ids |= {
            name: read_text(os.path.join(path, name)).removeprefix("0x")
            for name in ("subsystem_vendor", "subsystem_device")
        }
        speed, width = (read_text(os.path.join(path, f"current_link_{name}")) for name in ("speed", "width"))
        link = f"{speed} x{width}" if speed and width not in ("", "0") else None
        found.append({"address": address, **ids, "driver": _link(path, "driver"), "numa": _numa(path), "link": link})
    return found


def disk(name: str, root: str = "/") -> "dict[str, Any]":
    """name, serial, wwn, eui, nguid, model, firmware, size_bytes, rotational, transport, logical_block, pci, numa."""
    top = os.path.join(root, "sys/block", name)

    def first(*attributes: str) -> str | None:
        return next((text for one in attributes if (text := read_text(os.path.join(top, one)))), None)

    pci = _pci_address(os.path.join(top, "device"))
    return {
        "name": name, "serial": disk_serial(name, root) or None, "wwn": first("wwid", "device/wwid"),
        "eui": first("eui"), "nguid": first("nguid"), "model": first("device/model"),
        "firmware": first("device/firmware_rev", "device/rev"),
        "size_bytes": int(first("size") or 0) * SECTOR, "rotational": first("queue/rotational") == "1",
        "transport": first("device/transport") or _transport(top),
        "logical_block": int(first("queue/logical_block_size") or SECTOR),
        "pci": pci, "numa": _numa(os.path.join(root, "sys/bus/pci/devices", pci)) if pci else None,
    }  # fmt: skip


def tpm(root: str = "/", exchange: "Callable[[bytes], bytes] | None" = None) -> "dict[str, Any] | None":
    """version, manufacturer ("IFX", "INTC", …), vendor, firmware ("7.85.4555.0"); None without a TPM."""
    top = os.path.join(root, "sys/class/tpm/tpm0")
    if not os.path.isdir(top):
        return None
    facts = {"version": read_text(os.path.join(top, "tpm_version_major")) or None}
    return {
        **facts,
        **(tpm_properties(exchange) if exchange else {"manufacturer": None, "vendor": None, "firmware": None}),
    }


def tpm_properties(exchange: "Callable[[bytes], bytes]") -> "dict[str, Any]":
    """TPM2_GetCapability(TPM_CAP_TPM_PROPERTIES, PT_FIXED): Part 2, 6.13; Part 3, 30.2. Absent ones are None."""
    answer = exchange(struct.pack(">HIIIII", 0x8001, 22, 0x17A, 6, 0x100, 64))
    properties: dict[int, int] = {}
    if len(answer) >= 19 and answer[6:10] == bytes(4):
        count = struct.unpack_from(">I", answer, 15)[0]
        properties = dict(struct.iter_unpack(">II", answer[19 : 19 + 8 * count]))

    def text(*names: int) -> str | None:
        raw = b"".join(properties.get(name, 0).to_bytes(4, "big") for name in names)
        return raw.replace(b"\0", b"").decode("ascii", "replace").strip() or None

    high, low = properties.get(0x10B), properties.get(0x10C)
    firmware = None if high is None or low is None else f"{high >> 16}.{high & 0xFFFF}.{low >> 16}.{low & 0xFFFF}"
    return {"manufacturer": text(0x105), "vendor": text(0x106, 0x107, 0x108, 0x109), "firmware": firmware}


def secure_boot(root: str = "/") -> bool | None:
    """The firmware's SecureBoot variable; None when it cannot be read."""
    name = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    value = _read_bytes(os.path.join(root, name))
    return value[4] == 1 if len(value) > 4 else None


def _dmi_fallback(root: str) -> "dict[str, Any]":
    """What the kernel copied out of SMBIOS, for machines whose raw table is not readable."""

    def fields(**names: str) -> dict[str, str | None]:
        return {key: read_text(os.path.join(root, "sys/class/dmi/id", name)) or None for key, name in names.items()}

    return {
        "system": fields(manufacturer="sys_vendor", product="product_name", version="product_version",
                         serial="product_serial", uuid="product_uuid", sku="product_sku"),
        "board": fields(manufacturer="board_vendor", product="board_name", version="board_version",
                        serial="board_serial"),
        "chassis": fields(manufacturer="chassis_vendor", serial="chassis_serial", asset_tag="chassis_asset_tag"),
        "bios": fields(vendor="bios_vendor", version="bios_version", date="bios_date"),
        "dimms": [],
    }  # fmt: skip


def read_all(path: str) -> str:
    """A whole text file; "" if it cannot be read."""
    return _read_bytes(path).decode("utf-8", "replace")


def _read_bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _matching(top: str, pattern: str) -> list[str]:
    return sorted(name for name in os.listdir(top) if re.fullmatch(pattern, name)) if os.path.isdir(top) else []


def _number(path: str) -> int | None:
    text = read_text(path)
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _numa(path: str) -> int | None:
    node = _number(os.path.join(path, "numa_node"))
    return node if node is not None and node >= 0 else None


def _link(path: str, name: str) -> str | None:
    try:
        return os.path.basename(os.readlink(os.path.join(path, name)))
    except OSError:
        return None


def _pci_address(device: str) -> str | None:
    """The nearest PCI function above a device in the real sysfs tree."""
    found = re.findall(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", os.path.realpath(device))
    return found[-1] if found else None


def _transport(top: str) -> str | None:
    path = os.path.realpath(top)
    marks = {"/usb": "usb", "/ata": "sata", "/end_device": "sas", "/virtio": "virtio", "/nvme": "pcie", "/mmc": "mmc"}
    return next((name for mark, name in marks.items() if mark in path), None)
