"""Tickets as the agent finds and makes them: on media without a file system, and at the end of the seed."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.agent import ticket
from freehold.agent.blockdev import SECTOR
from freehold.agent.orders import Context, execute
from freehold.provisioning import ticket_shelf

TICKET = bytes(range(32))
SEED_FIRST, SEED_LAST = 64, 127
SEED_BYTES = (SEED_LAST - SEED_FIRST + 1) * SECTOR


@given(iso=st.binary(max_size=5000), secret=st.binary(min_size=32, max_size=32))
def test_what_the_controller_puts_on_a_medium_is_what_the_agent_finds(iso: bytes, secret: bytes) -> None:
    made = ticket_shelf.medium(iso, secret)
    assert len(made) % ticket_shelf.SECTOR == 0
    assert made.startswith(iso)
    assert ticket.parse(made) == secret


@given(data=st.binary(max_size=4000))
def test_other_data_is_no_ticket(data: bytes) -> None:
    assert ticket.parse(data) is None


@pytest.mark.parametrize(
    "data",
    [
        b"x" + ticket.record(TICKET),  # not at the beginning of a sector
        ticket.record(TICKET)[:70],
        ticket.record(TICKET).replace(b"1f", b"1g"),
        ticket.record(TICKET).replace(b"-1 ", b"-2 "),
    ],
)
def test_half_a_ticket_is_none(data: bytes) -> None:
    assert ticket.parse(data) is None


def test_it_is_found_on_a_cd_or_a_disk_that_can_be_taken_out_and_nowhere_else(machine) -> None:
    machine.disk("N0", 1 << 20)
    machine.write("dev/nvme0n1", ticket.record(TICKET))
    machine.write("sys/block/nvme0n1/removable", "0\n")
    assert ticket.find("ramdisk", machine.root) is None
    machine.write("sys/block/sr0/removable", "1\n")  # a drive without a medium: no such device
    machine.write("sys/block/sda/removable", "1\n")
    machine.write("dev/sda", bytes(3 << 20) + ticket.record(TICKET) + bytes(SECTOR))
    assert ticket.find("ramdisk", machine.root) == TICKET
    assert ticket.find("os", machine.root) is None


def seeded(machine, gpt, data: bytes, **more: object):
    """`write_seed` of `data` onto a disk with a seed partition; (the disk's file, the order's answer)."""
    disk = machine.disk("N0", 1 << 20)
    content = bytearray(gpt(1 << 20, [("CIDATA", b"\1" * 16, SEED_FIRST, SEED_LAST)]))
    content[SEED_FIRST * SECTOR : (SEED_LAST + 1) * SECTOR] = b"\xff" * SEED_BYTES
    disk.write_bytes(content)
    import base64

    args = {"device_serial": "N0", "partition_label": "CIDATA", "data": base64.b64encode(data).decode(), **more}
    return disk, execute("write_seed", args, Context(machine.root, lambda *_: None))


def test_the_ticket_of_the_os_is_made_on_the_machine_which_tells_its_digest_alone(machine, gpt) -> None:
    seed = b"seed".ljust(SEED_BYTES, b"\0")
    disk, answer = seeded(machine, gpt, seed, ticket=True)
    assert answer["ok"], answer
    partition = disk.read_bytes()[SEED_FIRST * SECTOR : (SEED_LAST + 1) * SECTOR]
    made = ticket.parse(partition[-SECTOR:])
    assert made is not None
    assert answer["result"]["ticket_sha256"] == hashlib.sha256(made).hexdigest()
    assert made.hex() not in str(answer)
    assert partition[:-SECTOR] == seed[:-SECTOR]
    machine.write("sys/class/block/nvme0n1p2/uevent", "DEVTYPE=partition\nPARTNAME=CIDATA\n")
    machine.write("dev/nvme0n1p2", partition)
    assert ticket.find("os", machine.root) == made


def test_every_seed_has_another_ticket(machine, gpt) -> None:
    told = {seeded(machine, gpt, b"seed", ticket=True)[1]["result"]["ticket_sha256"] for _ in range(3)}
    assert len(told) == 3


def test_a_seed_is_as_it_was_where_no_ticket_is_asked_for(machine, gpt) -> None:
    disk, answer = seeded(machine, gpt, b"seed")
    assert "ticket_sha256" not in answer["result"]
    end = (SEED_LAST + 1) * SECTOR
    assert disk.read_bytes()[end - SECTOR : end] == bytes(SECTOR)


def test_a_seed_that_fills_its_partition_leaves_no_room_and_says_so(machine, gpt) -> None:
    _, answer = seeded(machine, gpt, b"x" * SEED_BYTES, ticket=True)
    assert "the last 512 bytes of partition 'CIDATA' are taken" in answer["error"]["what"]


def test_where_there_is_no_tpm_none_is_cleared_and_the_answer_says_so(machine) -> None:
    answer = execute("tpm_clear", {}, Context(machine.root, lambda *_: None))
    assert (answer["ok"], answer["result"]) == (True, {"cleared": False})
