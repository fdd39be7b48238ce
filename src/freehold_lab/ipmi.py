"""IPMI over LAN by OpenIPMI's `ipmi_sim`: as weak as it left the factory, for an audit to find.

Cipher suite 0 (`ipmi_sim` always has it), every authentication type of IPMI 1.5, and the factory's user with the
factory's password, whose hash RAKP message 2 gives to whoever asks. IPMI users are a table of their own here, as on
many a BMC: what Redfish does to accounts does not reach them.
"""

import asyncio
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

from freehold_lab.errors import LabError
from freehold_lab.processes import DIE_WITH_PARENT, end, start, tail

PROGRAM, LOG = "ipmi_sim", "ipmi.log"
START_SECONDS = 5.0  # it takes some milliseconds

_LEVELS, _AUTHS = ("callback", "user", "operator", "admin"), "none md2 md5 straight"
_EMULATION = """mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
mc_enable 0x20
"""
_PING = bytes.fromhex("0600ff06 000011be 80000000")  # RMCP presence ping: ASF 2.0, 3.2.4.2


@dataclass(frozen=True)
class IpmiUser:
    """The factory's. A password has 20 characters at most (IPMI 2.0, 22.30)."""

    name: str
    password: str


class IpmiServer:
    """UDP at `address`, from `listen` to `silence`. `directory` is for its files; its parent process is its life."""

    def __init__(self, directory: Path, address: str, user: IpmiUser, guid: str) -> None:
        self._directory, self._address, self._user, self._guid = directory, address, user, guid
        self._lock = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0

    async def listen(self, port: int) -> None:
        """Returns when it answers on `port`; one that does already is left alone."""
        async with self._lock:
            if self._process and self._process.returncode is None and self._port == port:
                return
            await self._end()
            self._port = port
            self._write(port)
            command = (PROGRAM, "-c", "lan.conf", "-f", "sim.emu", "-s", "state", "-n")
            self._process = await start(*DIE_WITH_PARENT, *command, directory=self._directory, log=LOG)
            await self._until_it_answers(self._process)

    async def silence(self) -> None:
        """Returns when nothing answers any more."""
        async with self._lock:
            await self._end()

    async def _end(self) -> None:
        process, self._process = self._process, None
        await end(process)

    def _write(self, port: int) -> None:
        (self._directory / "state").mkdir(parents=True, exist_ok=True)
        (self._directory / "sim.emu").write_text(_EMULATION)
        (self._directory / "lan.conf").write_text(configuration(self._address, port, self._user, self._guid))

    async def _until_it_answers(self, process: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await _pong(self._address, self._port):
                    if process.returncode is not None:
                        break
                    await asyncio.sleep(0.005)
                else:
                    return
        except TimeoutError:
            await self._end()
        said = tail(self._directory / LOG)
        raise LabError(f"IPMI does not start on UDP {self._address} port {self._port}: {said}")


def configuration(address: str, port: int, user: IpmiUser, guid: str) -> str:
    """`lan.conf` of ipmi_sim(8); `guid` is the server's UUID."""
    auths = "".join(f"  allowed_auths_{level} {_AUTHS}\n" for level in _LEVELS)
    return (
        f'name "hmc"\nset_working_mc 0x20\nstartlan 1\n  addr {address} {port}\n  priv_limit admin\n{auths}'
        f'  guid {uuid.UUID(guid).hex}\nendlan\nuser 2 true "{user.name}" "{user.password}" admin 10 {_AUTHS}\n'
    )


async def _pong(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setblocking(False)
        asking.connect((address, port))
        try:
            asking.send(_PING)
            async with asyncio.timeout(0.1):
                return bool(await asyncio.get_running_loop().sock_recv(asking, 100))
        except (ConnectionRefusedError, TimeoutError):
            return False
