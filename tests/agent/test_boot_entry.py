import base64
import struct
import subprocess
import uuid

import pytest
from virt.firmware.efi import bootentry

from freehold.agent import efi
from freehold.agent.blockdev import BlockDevice
from freehold.agent.errors import AgentError
from freehold.agent.orders import Context, execute
from freehold.agent.partitions import find_partition, parse_gpt

MIB = 1 << 20
GUID = uuid.UUID("11111111-2222-3333-4444-555555555555")
PARTITIONS = [("ESP", GUID.bytes_le, 2048, 4095), ("seed", b"\x02" * 16, 4096, 6143)]


def order(machine, kind, **args):
    return execute(kind, args, Context(machine.root, lambda *_: None))


@pytest.fixture
def disk(machine, gpt):
    path = machine.disk("N0", 4 * MIB)
    path.write_bytes(gpt(4 * MIB, PARTITIONS))
    return path


def read_order(variables):
    value = variables.read("BootOrder")
    return list(struct.unpack(f"<{len(value) // 2}H", value))


def test_load_option_reads_back_by_virt_firmware(machine, disk):
    with BlockDevice(str(disk)) as device:
        partition = find_partition(device, "ESP")
    option = efi.load_option("Freehold", efi.device_path(partition, "/EFI/Linux/os.efi"))
    entry = bootentry.BootEntry(data=option)
    assert str(entry.title) == "Freehold"
    assert entry.attr == bootentry.LOAD_OPTION_ACTIVE
    drive, file = list(entry.devicepath)
    assert str(drive.get_partuuid()) == str(GUID)
    assert drive.data == struct.pack("<IQQ", 1, 2048, 2048) + GUID.bytes_le + b"\x02\x02"
    assert str(file.get_filepath()) == "\\EFI\\Linux\\os.efi"
    assert bytes(entry) == option


def test_entry_goes_first_and_older_ones_of_the_same_label_go_away(machine, disk):
    variables = efi.EfiVariables(machine.root)
    for number, label in ((0, "PXE"), (1, "Freehold"), (2, "CD"), (5, "Freehold")):
        variables.write(f"Boot{number:04X}", efi.load_option(label, b"\x7f\xff\x04\x00"))
    variables.write("BootOrder", struct.pack("<4H", 0, 5, 1, 2))
    args = {"device_serial": "N0", "label": "Freehold", "partition_label": "ESP", "loader": "\\EFI\\BOOT\\BOOTX64.EFI"}
    answer = order(machine, "set_boot_entry", **args)
    assert answer["result"] == {"entry": "Boot0001", "removed": ["Boot0005"], "boot_order": [1, 0, 2]}
    assert read_order(variables) == [1, 0, 2]
    assert sorted(variables.boot_options()) == [0, 1, 2]
    assert order(machine, "set_boot_entry", **args)["result"]["removed"] == []
    attributes = (machine.path / f"sys/firmware/efi/efivars/Boot0001-{efi.GLOBAL}").read_bytes()[:4]
    assert attributes == b"\7\0\0\0"


def test_machine_without_uefi_says_so(tmp_path):
    with pytest.raises(AgentError, match="did not boot by UEFI"):
        efi.EfiVariables(str(tmp_path))


def test_seed_fills_its_partition_and_nothing_else(machine, disk):
    with disk.open("r+b") as file:
        file.seek(4096 * 512)
        file.write(b"old" * 1000)
    before = disk.read_bytes()
    data = b"seed" * 999
    answer = order(
        machine, "write_seed", device_serial="N0", partition_label="seed", data=base64.b64encode(data).decode()
    )
    assert answer["result"]["bytes"] == len(data)
    after = disk.read_bytes()
    assert after[4096 * 512 : 6144 * 512] == data + bytes(MIB - len(data))
    assert after[: 4096 * 512] == before[: 4096 * 512]
    assert after[6144 * 512 :] == before[6144 * 512 :]


def test_seed_larger_than_its_partition_is_refused(machine, disk):
    data = base64.b64encode(bytes(MIB + 1)).decode()
    answer = order(machine, "write_seed", device_serial="N0", partition_label="seed", data=data)
    assert "do not fit" in answer["error"]["what"]


def test_unknown_label_names_the_labels_there_are(machine, disk):
    answer = order(machine, "write_seed", device_serial="N0", partition_label="cidata", data="")
    assert "labels: 'ESP', 'seed'" in answer["error"]["what"]


@pytest.mark.parametrize("at", [512 + 40, 1024 + 60])
def test_damaged_table_is_refused(machine, disk, at):
    data = bytearray(disk.read_bytes())
    data[at] ^= 1
    with pytest.raises(ValueError, match="CRC"):
        parse_gpt(lambda offset, length: bytes(data[offset : offset + length]))


def test_reads_tables_of_4k_sectors(gpt):
    data = gpt(64 * MIB, PARTITIONS, block=4096)
    found = parse_gpt(lambda offset, length: data[offset : offset + length])
    assert next((p.label, p.start, p.size) for p in found) == ("ESP", 2048 * 4096, 2048 * 4096)


@pytest.mark.host
def test_agrees_with_sfdisk(tmp_path):
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(16 * MIB)
    script = f"label: gpt\nstart=1MiB, size=4MiB, type=uefi, name=ESP, uuid={GUID}\nstart=5MiB, size=2MiB, name=root\n"
    subprocess.run(["sfdisk", "-q", path], input=script.encode(), check=True)
    with BlockDevice(str(path)) as device:
        partition = find_partition(device, "ESP")
        assert (partition.start, partition.size, partition.guid) == (MIB, 4 * MIB, GUID.bytes_le)
        assert find_partition(device, "root").number == 2
