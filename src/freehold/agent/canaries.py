"""Catch a drive that says it erased and did not: plant known blocks before, look for them and for any data after.

Positions and contents come from SHA-256 and SHAKE-256 over the seed, so whoever knows the seed can repeat the check:
sample i of seed s starts at block `int(SHA-256("s:sample:i")) mod blocks`, canary i likewise with "s:canary:i".
"""

from hashlib import sha256, shake_256

from freehold.agent.blockdev import BlockDevice, claim_disk, new_buffer
from freehold.agent.errors import AgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BLOCK = 4096
EDGE = 1 << 20
MAX_SAMPLES, MAX_SAMPLE_BYTES, MAX_REPORTED = 1 << 20, 1 << 20, 8


def seeded_offset(seed: str, kind: str, index: int, size: int, length: int) -> int:
    """A block-aligned byte offset at which `length` bytes still fit in `size`."""
    blocks = (size - length) // BLOCK + 1
    return int.from_bytes(sha256(f"{seed}:{kind}:{index}".encode()).digest(), "big") % blocks * BLOCK


def canary_block(seed: str, offset: int) -> bytes:
    """4096 bytes that no disk holds by chance."""
    return shake_256(f"{seed}:block:{offset}".encode()).digest(BLOCK)


def plant_canary(serial: str, seed: str, count: int, *, root: str = "/") -> "dict[str, Any]":
    """Write `count` canaries, the first and the last block among them, and read them back.

    Result: {device_serial, canaries: [{offset, length, sha256}]}, which goes into `verify_sanitized` as it is.
    """
    _, path = claim_disk(serial, root)
    with BlockDevice(path) as device:
        _whole_blocks(device, 1 <= count <= 4096)
        last = (device.size // BLOCK - 1) * BLOCK
        offsets = {0, last} | {seeded_offset(seed, "canary", i, device.size, BLOCK) for i in range(max(0, count - 2))}
        canaries = []
        buffer = new_buffer(BLOCK)
        for offset in sorted(offsets):
            block = canary_block(seed, offset)
            buffer[:BLOCK] = block
            device.write(memoryview(buffer)[:BLOCK], offset)
            canaries.append({"offset": offset, "length": BLOCK, "sha256": sha256(block).hexdigest()})
        device.flush()
        device.drop_cache()
        for canary in canaries:
            if sha256(device.read(int(str(canary["offset"])), BLOCK)).hexdigest() != canary["sha256"]:
                raise AgentError(
                    f"disk {serial}: the canary at byte {canary['offset']} does not read back",
                    remedy="the drive does not store data: destroy it",
                )
    return {"device_serial": serial, "canaries": canaries}


def verify_sanitized(
    serial: str, seed: str, samples: int, sample_bytes: int, canaries: "list[dict[str, Any]]", *, root: str = "/"
) -> "dict[str, Any]":
    """Read the first and last MiB, every canary's place and seeded samples. `clean` only if all of it is 00 or all FF.

    Result: {clean, device_serial, disk_bytes, seed, samples, sample_bytes, bytes_read, nonzero_samples,
    non_uniform_samples, edges_uniform, canaries, canary_hits, dirty_offsets (the first few)}. Data that a cryptographic
    erase left as noise counts as not clean: noise cannot be told from data.
    """
    _, path = claim_disk(serial, root)
    with BlockDevice(path) as device:
        _whole_blocks(device, 1 <= samples <= MAX_SAMPLES and BLOCK <= sample_bytes <= MAX_SAMPLE_BYTES)
        sample_bytes = min(sample_bytes, device.size)
        edge = min(EDGE, device.size)
        edges = {offset: device.read(offset, edge) for offset in (0, device.size - edge)}
        dirty = [offset for offset, data in edges.items() if not is_blank(data)]
        edges_uniform = not dirty
        hits = 0
        for canary in canaries:
            offset, length = _canary_extent(canary, device.size)
            data = device.read(offset, length)
            hits += sha256(data).hexdigest() == canary["sha256"]
            if not is_blank(data):
                dirty.append(offset)
        nonzero = non_uniform = 0
        for index in range(samples):
            offset = seeded_offset(seed, "sample", index, device.size, sample_bytes)
            data = device.read(offset, sample_bytes)
            nonzero += data.count(0) != len(data)
            if not is_blank(data):
                non_uniform += 1
                dirty.append(offset)
        read = len(edges) * edge + samples * sample_bytes + sum(int(canary["length"]) for canary in canaries)
        return {
            "clean": not dirty and hits == 0, "device_serial": serial, "disk_bytes": device.size, "seed": seed,
            "samples": samples, "sample_bytes": sample_bytes, "bytes_read": read, "nonzero_samples": nonzero,
            "non_uniform_samples": non_uniform, "edges_uniform": edges_uniform, "canaries": len(canaries),
            "canary_hits": hits, "dirty_offsets": sorted(set(dirty))[:MAX_REPORTED],
        }  # fmt: skip


def is_blank(data: bytes) -> bool:
    """All 00 (deallocated, overwritten) or all FF (erased flash)."""
    return data.count(data[0]) == len(data) and data[0] in (0x00, 0xFF)


def _canary_extent(canary: "dict[str, Any]", size: int) -> tuple[int, int]:
    offset, length = canary.get("offset"), canary.get("length")
    if type(offset) is not int or type(length) is not int or not 0 < length <= EDGE or not 0 <= offset <= size - length:
        raise AgentError(
            f"canary {canary} does not lie on this disk of {size} bytes",
            remedy="verify the disk on which it was planted",
        )
    return offset, length


def _whole_blocks(device: BlockDevice, sensible: bool) -> None:
    if not sensible or device.size < BLOCK:
        raise AgentError(
            f"{device.path}: impossible count or size (disk of {device.size} bytes)",
            remedy="correct the sanitization policy",
        )
