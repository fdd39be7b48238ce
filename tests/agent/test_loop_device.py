"""What only a real block device shows: BLKZEROOUT, BLKDISCARD, BLKFLSBUF, O_EXCL."""

import subprocess

import pytest

from freehold.agent.blockdev import BLKDISCARD, BlockDevice
from freehold.agent.errors import AgentError

MIB = 1 << 20


@pytest.fixture
def loop(tmp_path):
    path = tmp_path / "backing"
    path.write_bytes(b"old data" * (MIB // 2))
    device = subprocess.run(
        ["losetup", "-f", "--show", path], check=True, capture_output=True, text=True
    ).stdout.strip()
    yield device
    subprocess.run(["losetup", "-d", device], check=True)


@pytest.mark.lab
def test_zeroed_and_discarded_ranges_read_as_zeros_and_neighbours_stay(loop):
    with BlockDevice(loop) as device:
        assert device.is_block
        assert device.size == 4 * MIB
        device.zero(MIB, 4096)
        device.ioctl_range(BLKDISCARD, 2 * MIB, MIB)
        device.drop_cache()
        assert device.read(MIB - 8, 4096 + 16) == b"old data" + bytes(4096) + b"old data"
        assert device.read(2 * MIB - 8, MIB + 16) == b"old data" + bytes(MIB) + b"old data"
        device.reread_partitions()


@pytest.mark.lab
def test_kernel_refuses_a_disk_that_is_held(loop):
    with BlockDevice(loop), pytest.raises(AgentError, match="cannot open"):
        BlockDevice(loop)
