import os
import struct

from freehold.agent import inventory
from freehold.agent.smbios import structures, summary, system_uuid

CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Xeon
microcode\t: 0x2b
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu aes avx512f vmx

processor\t: 1
vendor_id\t: GenuineIntel
model name\t: Xeon
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu aes

processor\t: 2
vendor_id\t: GenuineIntel
model name\t: Xeon
physical id\t: 1
core id\t\t: 0
flags\t\t: fpu

"""


def structure(kind, body, *strings):
    text = b"".join(one.encode() + b"\0" for one in strings) or b"\0"
    return struct.pack("<BBH", kind, 4 + len(body), kind) + body + text + b"\0"


UUID = bytes.fromhex("33221100554477668899aabbccddeeff")
DMI = (
    structure(0, b"\1\2" + bytes(2) + b"\3" + bytes(10), "EDK II", "2022.11", "02/06/2015")
    + structure(1, b"\1\2\3\4" + UUID + b"\6\5\0", "Acme", "R640", "1.0", "SN-1", "SKU")
    + structure(3, b"\1\x17\0\2\3" + bytes(8), "Acme", "CH-1", "Not Specified")
    + structure(
        17, struct.pack("<HHHHHBBBBBHHBBBB", 1, 2, 64, 64, 0x7FFF, 9, 0, 1, 2, 0x22, 0, 4800, 3, 4, 0, 5)
        + b"\0" + struct.pack("<I", 65536), "A1", "BANK 0", "Micron", "D-1", "PN-1",
    )
    + structure(17, struct.pack("<HHHHH", 1, 2, 0, 0, 0) + bytes(20))
    + structure(127, b"")
)  # fmt: skip


def test_smbios_names_the_server_and_its_memory():
    found = summary(DMI)
    assert found["system"] == {
        "manufacturer": "Acme", "product": "R640", "version": "1.0", "serial": "SN-1",
        "uuid": "00112233-4455-6677-8899-aabbccddeeff", "sku": "SKU",
    }  # fmt: skip
    assert found["bios"] == {"vendor": "EDK II", "version": "2022.11", "date": "02/06/2015"}
    assert found["chassis"] == {"manufacturer": "Acme", "serial": "CH-1", "asset_tag": None, "type": 0x17}
    assert [(d["locator"], d["size_bytes"], d["type"], d["speed_mts"], d["serial"]) for d in found["dimms"]] == [
        ("A1", 64 << 30, "DDR5", 4800, "D-1")
    ]


def test_cut_smbios_ends_without_error():
    for length in range(len(DMI)):
        list(structures(DMI[:length]))
    assert system_uuid(next(structures(structure(1, b"\1\2\3\4" + b"\xff" * 16, "a")))) is None


def test_whole_machine(machine):
    machine.write("sys/firmware/dmi/tables/DMI", DMI)
    machine.write("proc/cpuinfo", CPUINFO)
    machine.write("proc/meminfo", "MemTotal:       1024 kB\n")
    machine.write("sys/devices/system/node/node1/meminfo", "Node 1 MemTotal:  2048 kB\n")
    machine.write("sys/devices/system/node/node1/cpulist", "4-7\n")
    machine.write("sys/devices/system/node/node1/distance", "21 10\n")
    gpu, nic = "sys/devices/pci0000:00/0000:17:00.0", "sys/devices/pci0000:00/0000:18:00.0"
    for path, kind, node in ((gpu, "0x030200", "1"), (nic, "0x020000", "-1")):
        for name, value in {"class": kind, "vendor": "0x10de", "device": "0x2330", "numa_node": node}.items():
            machine.write(f"{path}/{name}", value + "\n")
        machine.link(f"sys/bus/pci/devices/{path[-12:]}", f"{machine.root}/{path}")
    machine.write(f"{nic}/net/eth0/address", "52:54:00:00:00:10\n")
    machine.write(f"{nic}/net/eth0/speed", "25000\n")
    machine.link(f"{nic}/net/eth0/device", "../../../0000:18:00.0")
    machine.write("sys/class/net/lo/address", "00:00:00:00:00:00")
    machine.link("sys/class/net/eth0", f"{machine.root}/{nic}/net/eth0")
    machine.disk("N0", 1 << 20)
    machine.write("sys/block/nvme0n1/device/transport", "pcie\n")
    machine.write("sys/block/nvme0n1/wwid", "eui.0025\n")
    machine.write("sys/block/loop0/size", "8")
    machine.write("sys/class/tpm/tpm0/tpm_version_major", "2\n")
    found = inventory.collect(machine.root, lambda _: tpm_answer())
    assert [(c["cores"], c["threads"], c["flags"]) for c in found["cpus"]] == [
        (1, 2, ["aes", "avx512f", "vmx"]),
        (1, 1, []),
    ]
    assert found["numa"] == [{"node": 1, "cpus": "4-7", "memory_bytes": 2 << 20, "distances": [21, 10]}]
    assert [(g["address"], g["vendor"], g["device"], g["numa"]) for g in found["gpus"]] == [
        ("0000:17:00.0", "10de", "2330", 1)
    ]
    assert [(n["mac"], n["speed_mbps"], n["pci"], n["numa"]) for n in found["nics"]] == [
        ("52:54:00:00:00:10", 25000, "0000:18:00.0", None)
    ]
    assert [(d["serial"], d["wwn"], d["transport"], d["size_bytes"]) for d in found["disks"]] == [
        ("N0", "eui.0025", "pcie", 1 << 20)
    ]
    assert found["tpm"] == {"version": "2", "manufacturer": "IBM", "vendor": None, "firmware": "1.2.3.4"}
    assert inventory.identity(machine.root) == {
        "uuid": "00112233-4455-6677-8899-aabbccddeeff", "serial": "SN-1", "vendor": "Acme", "product": "R640",
    }  # fmt: skip


def tpm_answer():
    properties = [(0x105, int.from_bytes(b"IBM\0", "big")), (0x10B, 0x00010002), (0x10C, 0x00030004)]
    body = struct.pack(">BII", 0, 6, len(properties)) + b"".join(struct.pack(">II", *one) for one in properties)
    return struct.pack(">HII", 0x8001, 10 + len(body), 0) + body


def test_this_machine_reads_without_error():
    found = inventory.collect("/")
    assert sum(cpu["threads"] for cpu in found["cpus"]) == os.cpu_count()
    assert found["memory"]["total_bytes"] > 0


def test_empty_machine_has_nothing_and_says_so(machine):
    found = inventory.collect(machine.root)
    assert (found["cpus"], found["disks"], found["tpm"], found["firmware"]["secure_boot"]) == ([], [], None, None)


def test_what_is_collected_on_a_real_machine_goes_into_json():
    import json

    assert json.loads(json.dumps(inventory.collect("/")))["cpus"][0]["cores"] >= 1
