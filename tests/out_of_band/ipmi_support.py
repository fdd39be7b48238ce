"""IPMI responders that others wrote: OpenIPMI's `ipmi_sim`, and pyghmi's BMC (Debian: openipmi, python3-pyghmi).

They differ where it matters: `ipmi_sim` always has cipher suite 0, and says when a name is unknown; pyghmi answers
every proposal with cipher suite 3, and is silent about unknown names.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from freehold.out_of_band.ipmi import packets

PASSWORD = "a-long-password"
SYSTEM_PYTHON = "/usr/bin/python3"  # Debian's Python packages are not in our environment

_EMULATION = """mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
mc_enable 0x20
"""
_EVERY_AUTH = "none md2 md5 straight"
_WEAK_USERS = f"""user 1 true "" "" admin 10 {_EVERY_AUTH}
user 2 true "root" "{PASSWORD}" admin 10 {_EVERY_AUTH}
user 3 true "ADMIN" "{PASSWORD}" admin 10 {_EVERY_AUTH}
user 4 false "admin" "{PASSWORD}" admin 10 {_EVERY_AUTH}
"""
_OWN_USER = f'user 2 true "freehold" "{PASSWORD}" admin 10 md5\n'


def free_port(family: int = socket.AF_INET) -> int:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        return int(probe.getsockname()[1])


def weak(directory: Path) -> AbstractAsyncContextManager[int]:
    """All that an IPMI port can do wrong; yields its port."""
    return _ipmi_sim(directory, _EVERY_AUTH, _WEAK_USERS, v20=True)


def hardened(directory: Path) -> AbstractAsyncContextManager[int]:
    """One named user, MD5 only. Cipher suite 0 is there all the same: `ipmi_sim` has no switch for it."""
    return _ipmi_sim(directory, "md5", _OWN_USER, v20=True)


def old(directory: Path) -> AbstractAsyncContextManager[int]:
    """IPMI 1.5 with the factory's root; it does not claim 2.0."""
    return _ipmi_sim(directory, "md5", _OWN_USER.replace("freehold", "root"), v20=False)


@asynccontextmanager
async def _ipmi_sim(directory: Path, auths: str, users: str, *, v20: bool) -> AsyncIterator[int]:
    port = free_port()
    levels = "".join(f"  allowed_auths_{level} {auths}\n" for level in ("callback", "user", "operator", "admin"))
    guid = "  guid a123456789abcdefa123456789abcdef\n" if v20 else ""
    lan = f"startlan 1\n  addr 127.0.0.1 {port}\n  priv_limit admin\n{levels}{guid}endlan\n"
    (directory / "state").mkdir(parents=True)
    (directory / "lan.conf").write_text(f'name "test"\nset_working_mc 0x20\n{lan}{users}')
    (directory / "sim.emu").write_text(_EMULATION)
    command = ["ipmi_sim", "-c", "lan.conf", "-f", "sim.emu", "-s", "state", "-n"]
    async with _running(command, directory, "127.0.0.1", port):
        yield port


@asynccontextmanager
async def pyghmi_bmc(directory: Path, user: str) -> AsyncIterator[int]:
    """On ::1; yields its port."""
    port = free_port(socket.AF_INET6)
    script = f"from pyghmi.ipmi.bmc import Bmc\nBmc({{{user!r}: {PASSWORD!r}}}, port={port}, address='::1').listen()"
    async with _running([SYSTEM_PYTHON, "-c", script], directory, "::1", port):
        yield port


@asynccontextmanager
async def _running(command: list[str], directory: Path, address: str, port: int) -> AsyncIterator[None]:
    log = (directory / "log").open("wb")
    process = await asyncio.create_subprocess_exec(*command, cwd=directory, stdout=log, stderr=log)
    try:
        await _until_it_answers(address, port)
        yield
    finally:
        process.terminate()
        await process.wait()
        log.close()


async def _until_it_answers(address: str, port: int) -> None:
    number = packets.GET_CHANNEL_AUTHENTICATION_CAPABILITIES
    question = packets.command(number, packets.capabilities_request(4), sequence=1)
    loop = asyncio.get_running_loop()
    for _ in range(100):
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.setblocking(False)
            probe.connect((address, port))
            try:
                probe.send(question)
                await asyncio.wait_for(loop.sock_recv(probe, 100), 0.1)
            except (OSError, TimeoutError):
                await asyncio.sleep(0.05)
            else:
                return
    raise AssertionError(f"nothing answers on UDP port {port}")


async def logs_in(port: int, user: str, password: str) -> bool:
    """A whole IPMI 2.0 log-in by pyghmi's client."""
    script = (
        "import sys; from pyghmi.ipmi.command import Command; from pyghmi.exceptions import IpmiException\n"
        f"try: Command('127.0.0.1', {user!r}, {password!r}, port={port}).raw_command(6, 1)\n"
        "except IpmiException: sys.exit(7)\n"
    )
    process = await asyncio.create_subprocess_exec(SYSTEM_PYTHON, "-c", script)
    code = await process.wait()
    assert code in (0, 7)
    return code == 0


class Scripted(asyncio.DatagramProtocol):
    """A responder of our own, for what no honest BMC sends: `answer` gives the datagrams that come back."""

    def __init__(self, answer: Callable[[bytes], list[bytes]], delay: float) -> None:
        self.asked: list[bytes] = []
        self._answer, self._delay = answer, delay

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.asked.append(data)
        for datagram in self._answer(data):
            asyncio.get_running_loop().call_later(self._delay, self._transport.sendto, datagram, addr)  # type: ignore


@asynccontextmanager
async def scripted(answer: Callable[[bytes], list[bytes]], delay: float = 0.0) -> AsyncIterator[tuple[int, Scripted]]:
    """Its port, and what it was asked. `delay` in seconds."""
    loop = asyncio.get_running_loop()
    transport, made = await loop.create_datagram_endpoint(lambda: Scripted(answer, delay), local_addr=("127.0.0.1", 0))
    try:
        yield transport.get_extra_info("sockname")[1], made
    finally:
        transport.close()


@asynccontextmanager
async def tapped(port: int) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A relay in front of a BMC on loopback: its port, and every datagram that went to the BMC."""
    loop, sent = asyncio.get_running_loop(), list[bytes]()
    behind = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    front.bind(("127.0.0.1", 0))
    behind.connect(("127.0.0.1", port))
    for each in (front, behind):
        each.setblocking(False)
    asker: list[tuple[str, int]] = []

    async def pump(step: Callable[[], Awaitable[None]]) -> None:
        while True:
            await step()

    async def there() -> None:
        datagram, address = await loop.sock_recvfrom(front, 2048)
        asker[:] = [address]
        sent.append(datagram)
        await loop.sock_sendall(behind, datagram)

    async def back() -> None:
        await loop.sock_sendto(front, await loop.sock_recv(behind, 2048), asker[0])

    tasks = [asyncio.create_task(pump(step)) for step in (there, back)]
    try:
        yield front.getsockname()[1], sent
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        front.close()
        behind.close()
