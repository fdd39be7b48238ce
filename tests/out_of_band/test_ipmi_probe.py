"""The IPMI probe against responders that others wrote, and against what no honest BMC sends."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import uvloop
from ipmi_support import PASSWORD, free_port, hardened, logs_in, old, pyghmi_bmc, scripted, tapped, weak

from freehold.out_of_band.errors import BmcUnreachable
from freehold.out_of_band.ipmi import packets
from freehold.out_of_band.ipmi.probe import IpmiPosture, probe_ipmi

HERE = "127.0.0.1"


@pytest.mark.host
async def test_a_weak_bmc_shows_all_its_weaknesses(tmp_path: Path) -> None:
    async with weak(tmp_path) as port:
        posture = await probe_ipmi(HERE, port=port)
    assert posture == IpmiPosture(
        address=HERE,
        port=port,
        present=True,
        versions=("1.5", "2.0"),
        auth_types=("none", "md2", "md5", "password"),
        anonymous=True,
        null_user=True,
        cipher_suites=tuple(range(15)),
        cipher_zero=True,
        challenged=("", "ADMIN", "root"),  # and not `admin`, which is disabled
        users=("", "ADMIN", "root"),
        hashes=("", "ADMIN", "root"),
    )


@pytest.mark.host
async def test_a_hardened_bmc_shows_less(tmp_path: Path) -> None:
    async with hardened(tmp_path) as port:
        posture = await probe_ipmi(HERE, port=port)
        own = await probe_ipmi(HERE, port=port, users=("freehold",))
    assert posture.auth_types == ("md5",)
    assert not posture.anonymous
    assert not posture.null_user
    assert (posture.challenged, posture.users, posture.hashes, posture.unanswered) == ((), (), (), ())
    assert posture.cipher_zero  # ipmi_sim has it always; the next test has a BMC without it
    assert own.hashes == ("freehold",)  # CVE-2013-4786: it is the protocol's, so no hardening helps but to turn it off


@pytest.mark.host
@pytest.mark.slow
async def test_a_session_with_other_algorithms_is_no_cipher_suite_zero(tmp_path: Path) -> None:
    """pyghmi answers status 0 to a proposal of cipher suite 0, and means suite 3. It is silent about unknown names."""
    async with pyghmi_bmc(tmp_path, "root") as port:
        posture = await probe_ipmi("::1", port=port, users=("root", "ADMIN"), timeout=0.3)
    assert posture.versions == ("2.0",)
    assert not posture.cipher_zero
    assert posture.hashes == posture.users == ("root",)
    assert posture.unanswered == ()


@pytest.mark.host
async def test_a_bmc_of_ipmi_15_tells_its_users_too(tmp_path: Path) -> None:
    """It is not asked in IPMI 2.0, of which this one would die."""
    async with old(tmp_path) as port:
        posture = await probe_ipmi(HERE, port=port)
        assert await probe_ipmi(HERE, port=port) == posture
    assert posture.versions == ("1.5",)
    assert posture.users == ("root",)
    assert posture.challenged == ()  # that needs a session without a password


@pytest.mark.host
async def test_no_message_that_could_be_a_log_in_is_ever_sent(tmp_path: Path) -> None:
    """Activate Session and RAKP message 3 are the log-ins, and OEM or authenticated messages might be."""
    async with weak(tmp_path) as port, tapped(port) as (front, sent):
        assert (await probe_ipmi(HERE, port=front)).hashes
    seen = {kind_of(datagram) for datagram in sent}
    assert seen <= {"ping", "command 0x38", "command 0x39", "command 0x54", "payload 0x10", "payload 0x12"}
    assert {"command 0x39", "payload 0x10", "payload 0x12"} <= seen
    assert not [datagram for datagram in sent if PASSWORD.encode() in datagram]


def kind_of(datagram: bytes) -> str:
    if datagram[3] == 0x06:
        return "ping"
    assert datagram[3] == 0x07
    if datagram[4] == 0x06:
        return f"payload 0x{datagram[5]:02x}"
    assert datagram[4] == 0x00, "a message with an authentication code"
    return f"command 0x{datagram[19]:02x}"


@pytest.mark.host
async def test_accounts_log_in_as_before_after_many_probes(tmp_path: Path) -> None:
    async with hardened(tmp_path) as port:
        assert await logs_in(port, "freehold", PASSWORD)
        for _ in range(4):
            assert (await probe_ipmi(HERE, port=port, users=("freehold",))).hashes
        assert await logs_in(port, "freehold", PASSWORD)
        assert not await logs_in(port, "freehold", "wrong")


async def test_a_port_where_nothing_listens_is_silent_at_once() -> None:
    began = time.monotonic()
    posture = await probe_ipmi(HERE, port=free_port())
    assert (posture.present, posture.silence) == (False, "port unreachable (ICMP)")
    assert time.monotonic() - began < 0.5


async def test_a_host_that_does_not_answer_costs_two_questions() -> None:
    async with scripted(lambda _: []) as (port, bmc):
        posture = await probe_ipmi(HERE, port=port, timeout=0.05)
    assert (posture.present, posture.silence) == (False, "no answer")
    assert len(bmc.asked) == 4  # two, twice


@pytest.mark.parametrize(("entities", "present"), [(0x81, True), (0x01, False)])
async def test_a_pong_says_whether_ipmi_is_there(entities: int, present: bool) -> None:
    """A BMC that answers no question before a log-in, but the ping."""

    def answer(question: bytes) -> list[bytes]:
        pong = bytes((0x40, question[9], 0, 16)) + bytes((0, 0, 0x11, 0xBE)) + bytes(4) + bytes((entities,)) + bytes(7)
        return [question[:8] + pong] if question[3] == 6 else []

    async with scripted(answer) as (port, _):
        posture = await probe_ipmi(HERE, port=port, timeout=0.05)
    assert posture.present is present
    assert posture.silence == ("" if present else "an RMCP pong that does not name IPMI")
    assert posture.unanswered == (("RMCP+ Open Session Request",) if present else ())


def test_uvloop_too_tells_that_nothing_listens() -> None:
    posture = uvloop.run(probe_ipmi(HERE, port=free_port()))
    assert posture.silence == "port unreachable (ICMP)"


async def test_no_way_to_the_address_is_an_error_with_the_port() -> None:
    with pytest.raises(BmcUnreachable, match=r"UDP port 623 of no-such-host\.invalid"):
        await probe_ipmi("no-such-host.invalid")


def garbage(_: bytes) -> list[bytes]:
    return [os.urandom(40), b"", b"\x06\x00\xff\x07", b"\x06\x00\xff\x06" + bytes(30)]


def echo(question: bytes) -> list[bytes]:
    return [question]


def flood(_: bytes) -> list[bytes]:
    return [os.urandom(60)] * 200


def too_long(_: bytes) -> list[bytes]:
    return [b"\x06\x00\xff\x07" + bytes(8000)]


@pytest.mark.parametrize("answer", [garbage, echo, flood, too_long])
async def test_a_hostile_peer_is_no_bmc_and_costs_bounded_time(answer: Callable[[bytes], list[bytes]]) -> None:
    began = time.monotonic()
    async with scripted(answer) as (port, _):
        posture = await probe_ipmi(HERE, port=port, timeout=0.05)
    assert not posture.present
    assert time.monotonic() - began < 2


def endless_list(question: bytes) -> list[bytes]:
    """Answers commands only, each with success and sixteen bytes that never end."""
    return [answer_to(question, bytes(17))] if question[4] == 0 and question[3] == 7 else []


def answer_to(question: bytes, data: bytes, code: int = 0) -> bytes:
    """The response to a command outside a session, as a BMC would wrap it."""
    head, body = bytes((0x81, 0x1C)), bytes((0x20, question[18], question[19], code)) + data
    sums = [bytes((-sum(part) & 0xFF,)) for part in (head, body)]
    message = head + sums[0] + body + sums[1]
    return question[:13] + bytes((len(message),)) + message


async def test_a_list_of_cipher_suites_that_does_not_end_is_cut(tmp_path: Path) -> None:
    async with scripted(endless_list) as (port, bmc):
        posture = await probe_ipmi(HERE, port=port, timeout=0.05)
    assert posture.present
    assert sum(datagram[19] == packets.GET_CHANNEL_CIPHER_SUITES for datagram in bmc.asked if len(datagram) > 19) == 64
    assert posture.versions == ("1.5",)


async def test_the_budget_ends_a_probe_that_is_answered_slowly() -> None:
    """The list of cipher suites alone would take 64 times the delay."""
    began = time.monotonic()
    async with scripted(endless_list, delay=0.05) as (port, bmc):
        posture = await probe_ipmi(HERE, port=port, timeout=0.2, budget=0.5)
    assert posture.present
    assert time.monotonic() - began < 0.8
    assert len(bmc.asked) < 20


def rmcp_plus(question: bytes) -> list[bytes]:
    """IPMI 2.0 with any cipher suite and any name, and a code that might be a hash."""
    payload, kind = question[16:], question[5]
    tag, console = payload[:1], payload[4:8] if kind == 0x10 else CONSOLE[0]
    if kind == 0x10:
        CONSOLE[:] = [console]
        answer = tag + bytes(3) + console + b"\x01\x00\x00\x00" + payload[8:]
    else:
        answer = tag + bytes(3) + console + os.urandom(32 + 20)
    return [question[:5] + bytes((kind + 1,)) + bytes(8) + len(answer).to_bytes(2, "little") + answer]


CONSOLE: list[bytes] = []


async def test_a_bmc_with_a_code_for_any_name_proves_no_name() -> None:
    def answer(question: bytes) -> list[bytes]:
        if question[3] != 7:
            return []
        if question[4] == 6:
            return rmcp_plus(question)
        number = question[19]
        if number == packets.GET_CHANNEL_AUTHENTICATION_CAPABILITIES:
            return [answer_to(question, bytes((1, 0x80, 0x04, 0x02, 0, 0, 0, 0)))]
        return [answer_to(question, b"", 0xC1)]

    async with scripted(answer) as (port, _):
        posture = await probe_ipmi(HERE, port=port, users=("root",), timeout=0.05)
    assert (posture.versions, posture.cipher_zero, posture.cipher_suites) == (("2.0",), True, ())
    assert (posture.hashes, posture.any_name, posture.users) == (("root",), True, ())


async def test_a_bmc_with_a_challenge_for_any_name_proves_no_name() -> None:
    """Every challenge is given, so that nobody learns a name by it."""

    def answer(question: bytes) -> list[bytes]:
        if question[3] != 7 or question[4] != 0:
            return []
        if question[19] == packets.GET_CHANNEL_AUTHENTICATION_CAPABILITIES:
            return [answer_to(question, bytes((1, 0x05, 0x04, 0, 0, 0, 0, 0)))]
        return [answer_to(question, bytes(20) if question[19] == packets.GET_SESSION_CHALLENGE else b"", 0)]

    async with scripted(answer) as (port, _):
        posture = await probe_ipmi(HERE, port=port, timeout=0.05)
    assert posture.auth_types == ("none", "md5")
    assert (posture.users, posture.challenged) == ((), ())


async def test_a_posture_does_not_hold_what_can_be_cracked() -> None:
    """Field by field: names, numbers and flags; the codes of RAKP message 2 are not kept."""
    types = {str(field.type) for field in msgspec.structs.fields(IpmiPosture)}
    assert types <= {"<class 'str'>", "<class 'int'>", "<class 'bool'>", "tuple[str, ...]", "tuple[int, ...]"}
