"""GUID Partition Table, read only (UEFI 2.10, 5.3): find a partition by its label."""

import binascii
import struct

from freehold.agent.blockdev import BlockDevice
from freehold.agent.errors import AgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")  # table 5-5, 92 bytes
MAX_TABLE_BYTES = 1 << 20


class Partition:
    """`number` counts from 1; `start` and `size` are bytes, the `_lba` pair logical blocks; `guid` is as stored."""

    def __init__(self, number: int, label: str, guid: bytes, start_lba: int, size_lba: int, block: int) -> None:
        self.number, self.label, self.guid = number, label, guid
        self.start_lba, self.size_lba = start_lba, size_lba
        self.start, self.size = start_lba * block, size_lba * block


def parse_gpt(read: "Callable[[int, int], bytes]") -> list[Partition]:
    """Partitions of the primary table, `read(offset, length)` giving bytes; both CRCs must hold. Raises ValueError."""
    for block in (512, 4096):
        header = read(block, HEADER.size)
        if header[:8] == b"EFI PART":
            break
    else:
        raise ValueError("there is no GUID partition table")
    _, _, size, crc, _, _, _, _, _, _, table_lba, count, entry_size, table_crc = HEADER.unpack(header)
    if not HEADER.size <= size <= block or entry_size < 128 or count * entry_size > MAX_TABLE_BYTES:
        raise ValueError("the GPT header's sizes are impossible")
    header = read(block, size)
    if binascii.crc32(header[:16] + bytes(4) + header[20:]) != crc:
        raise ValueError("the GPT header's CRC is wrong")
    table = read(table_lba * block, count * entry_size)
    if binascii.crc32(table) != table_crc:
        raise ValueError("the CRC of the GPT's entries is wrong")
    found = []
    for number in range(count):
        kind, guid, first, last = struct.unpack_from("<16s16sQQ", table, number * entry_size)
        if kind != bytes(16):
            name = table[number * entry_size + 56 : number * entry_size + 128].decode("utf-16-le", "replace")
            found.append(Partition(number + 1, name.split("\0")[0], guid, first, last - first + 1, block))
    return found


def find_partition(device: BlockDevice, label: str) -> Partition:
    """The one partition with this label; AgentError names the labels that are there."""
    try:
        partitions = parse_gpt(device.read)
    except ValueError as error:
        raise AgentError(f"{device.path}: {error}", remedy="write an image with a partition table first") from error
    matches = [partition for partition in partitions if partition.label == label]
    if len(matches) != 1:
        labels = ", ".join(repr(partition.label) for partition in partitions) or "none"
        raise AgentError(
            f"{device.path}: {len(matches)} partitions are labelled {label!r} (labels: {labels})",
            remedy="use an image that has exactly one such partition",
        )
    return matches[0]


def write_to_partition(device: BlockDevice, label: str, data: bytes, tail: bytes = b"") -> dict[str, object]:
    """Put data at the start of the partition and `tail` at its end, zero what is between, read both back."""
    partition = find_partition(device, label)
    if len(data) > partition.size:
        raise AgentError(
            f"{len(data)} bytes do not fit partition {label!r} of {partition.size}",
            remedy="make the seed smaller or the partition of the image larger",
        )
    if tail:
        last = partition.size - len(tail)
        if data[last:].strip(b"\0"):
            raise AgentError(
                f"the last {len(tail)} bytes of partition {label!r} are taken", remedy="make the seed smaller"
            )
        data = data[:last]
    end = -(-len(data) // 4096) * 4096
    device.write_bytes(data + bytes(min(end, partition.size) - len(data)), partition.start)
    if end < partition.size:
        device.zero(partition.start + end, partition.size - end)
    if tail:
        device.write_bytes(tail, partition.start + last)
    device.flush()
    device.drop_cache()
    written = device.read(partition.start, len(data))
    if written != data or (tail and device.read(partition.start + last, len(tail)) != tail):
        raise AgentError(f"{device.path}: partition {label!r} does not read back", remedy="replace the drive")
    return {"partition": partition.number, "partition_label": label, "bytes": len(data)}
