"""The IPMI codec: what other people's BMCs and clients put on the wire, and whatever else may come."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.out_of_band.ipmi import packets as p

# Recorded from OpenIPMI's ipmi_sim 2.0.33.
PONG = "0600ff06000011be40070010000011be000000008100000000000000"
CAPABILITIES = "0600ff0700000000000000000010811c63201438000197050300000000f4"
OPEN_REFUSED = "0600ff070611000000000000000002000904"
# Recorded from pyghmi 1.5.34: no IPMI 1.5.
CAPABILITIES_V20_ONLY = "0600ff0700000000000000000010811c632014380001800402000000000d"

CONSOLE, MANAGED = 0x11223344, 0xA0B0C0D0


def opened(algorithms: tuple[int, int, int] = (1, 1, 1), tag: int = 9) -> bytes:
    """An Open Session Response (13.18), by hand."""
    payload = bytes((tag, 0, 4, 0)) + CONSOLE.to_bytes(4, "little") + MANAGED.to_bytes(4, "little")
    for kind, algorithm in enumerate(algorithms):
        payload += bytes((kind, 0, 0, 8, algorithm, 0, 0, 0))
    return b"\x06\x00\xff\x07\x06\x11" + bytes(8) + len(payload).to_bytes(2, "little") + payload


def rakp_2(status: int = 0, code: bytes = bytes(20), tag: int = 10) -> bytes:
    payload = bytes((tag, status, 0, 0)) + CONSOLE.to_bytes(4, "little") + bytes(32) + code
    return b"\x06\x00\xff\x07\x06\x13" + bytes(8) + len(payload).to_bytes(2, "little") + payload


READERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "pong": (lambda d: p.read_pong(d, 7), bytes.fromhex(PONG)),
    "answer": (lambda d: p.read_answer(d, 0x38, 5), bytes.fromhex(CAPABILITIES)),
    "open": (lambda d: p.read_open_session(d, 9, CONSOLE), opened()),
    "rakp": (lambda d: p.read_rakp_2(d, 10, CONSOLE), rakp_2()),
}
readers = pytest.mark.parametrize("name", sorted(READERS))


def test_recorded_answers_are_read() -> None:
    assert p.read_pong(bytes.fromhex(PONG), 7) is True
    answer = p.read_answer(bytes.fromhex(CAPABILITIES), p.GET_CHANNEL_AUTHENTICATION_CAPABILITIES, 5)
    assert answer is not None
    assert answer.code == 0
    assert p.read_capabilities(answer.data) == p.AuthCapabilities(
        auth_types=("none", "md2", "md5", "password"), anonymous=True, null_user=False, v15=True, v20=True
    )
    answer = p.read_answer(bytes.fromhex(CAPABILITIES_V20_ONLY), p.GET_CHANNEL_AUTHENTICATION_CAPABILITIES, 5)
    assert answer is not None
    assert p.read_capabilities(answer.data) == p.AuthCapabilities(
        auth_types=(), anonymous=False, null_user=False, v15=False, v20=True
    )
    assert p.read_open_session(bytes.fromhex(OPEN_REFUSED), 9, CONSOLE) == p.OpenSession(status=4)


def test_what_is_sent_is_what_the_specification_draws() -> None:
    assert p.presence_ping(7).hex() == "0600ff06000011be80070000"
    # As ipmitool 1.8.19 sends it, but for the sequence number: rqSeq 5, channel 0Eh with the v2.0 bit, administrator.
    command = p.command(0x38, p.capabilities_request(4), 5)
    assert command.hex() == "0600ff0700000000000000000009" + "2018c8" + "8114388e04" + f"{-0x15F & 0xFF:02x}"
    assert p.challenge_request("md5", "root") == b"\x02root" + bytes(12)
    assert p.challenge_request("none", "") == bytes(17)
    assert p.open_session(9, CONSOLE, 17).hex() == (
        "0600ff07" "0610" "00000000" "00000000" "2000" "09000000" "44332211"
        "0000000803000000" "0100000804000000" "0200000801000000"
    )  # fmt: skip
    rakp = p.rakp_1(10, MANAGED, bytes(range(16)), "root")
    assert rakp[16:] == bytes.fromhex("0a000000d0c0b0a0") + bytes(range(16)) + b"\x12\x00\x00\x04root"
    assert p.rakp_1(10, MANAGED, bytes(16), "")[-1] == 0
    assert len(p.rakp_1(10, MANAGED, bytes(16), "x" * 40)) == 16 + 28 + 16


def test_what_opens_a_session_and_what_does_not() -> None:
    assert p.read_open_session(opened(), 9, CONSOLE) == p.OpenSession(0, CONSOLE, MANAGED, (1, 1, 1))
    assert p.read_open_session(opened(tag=8), 9, CONSOLE) is None
    assert p.read_open_session(opened(), 9, CONSOLE + 1) is None
    assert p.read_rakp_2(rakp_2(), 10, CONSOLE) == p.Rakp2(0, 20)
    assert p.read_rakp_2(rakp_2(code=b""), 10, CONSOLE) == p.Rakp2(0, 0)
    # OpenIPMI appends a code to a refusal, keyed with no password: it discloses nothing.
    assert p.read_rakp_2(rakp_2(status=0x0D), 10, CONSOLE) == p.Rakp2(0x0D, 0)
    assert p.read_rakp_2(opened(), 9, CONSOLE) is None


def test_a_list_of_cipher_suites_with_an_oem_suite() -> None:
    records = bytes.fromhex("c0000040 80 c0030141 81 c180 c02b00 034481 c011034481")
    assert p.read_cipher_suites(records) == (0, 3, 17)
    assert p.read_cipher_suites(b"\xc0") == ()


@given(st.binary(max_size=120))
def test_no_record_crashes_the_list(records: bytes) -> None:
    assert all(0 <= suite < 256 for suite in p.read_cipher_suites(records))


@given(st.binary(max_size=12))
def test_no_data_crashes_the_capabilities(data: bytes) -> None:
    found = p.read_capabilities(data)
    assert (found is None) == (len(data) < 4)


@readers
def test_the_good_answer_is_read(name: str) -> None:
    read, good = READERS[name]
    assert read(good) is not None


@readers
@given(datagram=st.binary(max_size=100))
def test_no_datagram_crashes_a_reader(name: str, datagram: bytes) -> None:
    READERS[name][0](datagram)


@readers
@given(data=st.data())
def test_no_damaged_answer_crashes_a_reader(name: str, data: st.DataObject) -> None:
    read, good = READERS[name]
    damaged = bytearray(good[: data.draw(st.integers(0, len(good)))])
    for _ in range(data.draw(st.integers(0, 4)) if damaged else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    read(bytes(damaged))


@readers
@given(data=st.data())
def test_a_cut_answer_is_none(name: str, data: st.DataObject) -> None:
    read, good = READERS[name]
    assert read(good[: data.draw(st.integers(0, len(good) - 1))]) is None


@given(at=st.integers(14, 29), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_command_breaks_its_checksum(at: int, bit: int) -> None:
    damaged = bytearray(bytes.fromhex(CAPABILITIES))
    damaged[at] ^= 1 << bit
    assert p.read_answer(bytes(damaged), 0x38, 5) is None
