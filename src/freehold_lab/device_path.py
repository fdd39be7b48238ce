"""EFI device paths (UEFI 2.10, 10.3): those that a lab machine needs, built and shown as text.

`virt-firmware` parses and packs the nodes; this module adds the node types that it lacks and the text form of
UEFI 2.10, 10.6, because its own `str()` is lossy.
"""

import struct
import uuid

from virt.firmware.efi import devpath, ucs16

HARDWARE, ACPI, MESSAGING, MEDIA = 1, 2, 3, 4
_PCI_ROOT_HID = 0x0A0341D0  # EISA id of PNP0A03


def node(kind: int, subtype: int, data: bytes) -> devpath.DevicePathElem:
    element = devpath.DevicePathElem()
    element.devtype, element.subtype, element.data = kind, subtype, data
    return element


def path(*nodes: devpath.DevicePathElem) -> devpath.DevicePath:
    result = devpath.DevicePath()
    result.extend(nodes)
    return result


def pci(slot: int) -> list[devpath.DevicePathElem]:
    """`PciRoot(0x0)/Pci(slot,0x0)`: the device in that slot of the root bus."""
    return [node(ACPI, 1, struct.pack("<LL", _PCI_ROOT_HID, 0)), node(HARDWARE, 1, bytes([0, slot]))]


def _mac(address: str) -> devpath.DevicePathElem:
    return node(MESSAGING, 0x0B, bytes.fromhex(address.replace(":", "")).ljust(32, b"\0") + b"\1")


def _ipv4_by_dhcp() -> devpath.DevicePathElem:
    return node(MESSAGING, 0x0C, bytes(23))


def pxe(slot: int, mac: str) -> devpath.DevicePath:
    return path(*pci(slot), _mac(mac), _ipv4_by_dhcp())


def http(slot: int, mac: str, uri: str) -> devpath.DevicePath:
    return path(*pci(slot), _mac(mac), _ipv4_by_dhcp(), node(MESSAGING, 0x18, uri.encode("ascii")))


def scsi(slot: int, target: int = 0, lun: int = 0) -> devpath.DevicePath:
    return path(*pci(slot), node(MESSAGING, 2, struct.pack("<HH", target, lun)))


def is_disk(device: devpath.DevicePath, cd_slot: int) -> bool:
    """True if the path leads to a disk of the machine: a partition, an NVMe namespace or a virtio disk."""
    kinds = {(element.devtype, element.subtype) for element in device}
    if (MEDIA, 1) in kinds or (MESSAGING, 0x17) in kinds:
        return True
    on_bus = [element.data[1] for element in device if (element.devtype, element.subtype) == (HARDWARE, 1)]
    last = (device[-1].devtype, device[-1].subtype) if len(device) else None
    return last == (HARDWARE, 1) and on_bus != [cd_slot]


def text(device: devpath.DevicePath) -> str:
    return "/".join(_node_text(element) for element in device)


def _node_text(element: devpath.DevicePathElem) -> str:
    data = element.data
    match element.devtype, element.subtype:
        case (1, 1):
            return f"Pci({data[1]:#x},{data[0]:#x})"
        case (2, 1):
            hid, uid = struct.unpack_from("<LL", data)
            return f"PciRoot({uid:#x})" if hid == _PCI_ROOT_HID else f"Acpi({hid:#x},{uid:#x})"
        case (3, 2):
            return "Scsi({:#x},{:#x})".format(*struct.unpack_from("<HH", data))
        case (3, 0x0B):
            return f"MAC({data[:6].hex()},{data[32]:#x})"
        case (3, 0x0C):
            return f"IPv4({'.'.join(map(str, data[4:8]))})"
        case (3, 0x17):
            namespace, eui = struct.unpack_from("<L8s", data)
            return f"NVMe({namespace:#x},{'-'.join(f'{byte:02X}' for byte in reversed(eui))})"
        case (3, 0x18):
            return f"Uri({data.decode('ascii', 'replace')})"
        case (4, 1):
            number, start, size = struct.unpack_from("<LQQ", data)
            return f"HD({number},GPT,{uuid.UUID(bytes_le=data[20:36])},{start:#x},{size:#x})"
        case (4, 4):
            return str(ucs16.from_ucs16(data))
        case (4, 6):
            return f"FvFile({uuid.UUID(bytes_le=data[:16])})"
        case (4, 7):
            return f"Fv({uuid.UUID(bytes_le=data[:16])})"
        case (kind, subtype):
            return f"Path({kind},{subtype},{data.hex()})"
    raise AssertionError
