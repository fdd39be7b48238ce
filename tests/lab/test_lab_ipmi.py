"""A lab BMC's IPMI over LAN: a real one, seen by the probe of the product, for as long as Redfish says."""

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from bmc_rig import PASSWORD, ROOT, port_of, request, served

from freehold.out_of_band.ipmi.findings import ipmi_findings
from freehold.out_of_band.ipmi.probe import IpmiPosture, probe_ipmi
from freehold_lab.bmc.context import BmcConfig
from freehold_lab.bmc.memory import MemoryHardware
from freehold_lab.bmc.state import Store
from freehold_lab.bmcd import Chassis
from freehold_lab.errors import LabError
from freehold_lab.ipmi import IpmiServer, IpmiUser, configuration

sys.path.append(str(Path(__file__).parents[1] / "out_of_band"))
from ipmi_support import free_port, logs_in

HERE, FACTORY = "127.0.0.1", IpmiUser("root", PASSWORD)
MANAGER = f"{ROOT}/Managers/1"


class Bmc:
    """A whole BMC with an IPMI of its own, on loopback."""

    def __init__(self, chassis: Chassis, ipmi: int) -> None:
        self.chassis, self.ipmi = chassis, ipmi

    async def __call__(self, method: str, path: str, body: Any) -> Any:
        runner = self.chassis._runner
        assert runner is not None
        port = port_of(runner)
        status, answer = await request(port, await asyncio.to_thread(served, port), method, path, body)
        assert status < 300, answer
        return answer

    async def switch(self, **ipmi: Any) -> None:
        await self("PATCH", f"{MANAGER}/NetworkProtocol", {"IPMI": ipmi})

    async def fault(self, value: str) -> None:
        await self.chassis.operations()["fault-set"]({"name": "ipmi-stays-on", "value": value})

    async def probe(self) -> IpmiPosture:
        return await probe_ipmi(HERE, port=self.ipmi, timeout=0.3)

    async def until(self, present: bool) -> None:
        await until(self.ipmi, present)


async def until(port: int, present: bool) -> None:
    for _ in range(200):
        if (await probe_ipmi(HERE, port=port, timeout=0.3)).present is present:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"present is not {present}")


@pytest.fixture
async def bmc(tmp_path: Path) -> AsyncIterator[Bmc]:
    async with powered(tmp_path) as bmc:
        yield bmc


@asynccontextmanager
async def powered(directory: Path) -> AsyncIterator[Bmc]:
    hardware, port = MemoryHardware(), free_port()
    store = Store(directory)
    store.data.protocols["IPMI"].port = port  # 623 would need root
    store.save()
    ipmi = IpmiServer(directory / "ipmi", HERE, FACTORY, hardware.info.uuid)
    config = BmcConfig(factory_password=PASSWORD, state_dir=directory, port=0, reset_seconds=0.5, ipmi=ipmi)
    chassis = Chassis(hardware, config)  # type: ignore[arg-type]
    await chassis.start_bmc()
    try:
        yield Bmc(chassis, port)
    finally:
        await chassis.stop_bmc()


@pytest.mark.host
async def test_a_factory_bmc_has_all_that_an_audit_is_to_find(bmc: Bmc) -> None:
    posture = await bmc.probe()
    assert (posture.present, posture.versions) == (True, ("1.5", "2.0"))
    assert posture.cipher_zero
    assert posture.users == posture.hashes == posture.challenged == ("root",)
    assert {found.kind for found in ipmi_findings(posture, subject="server-1", declared=True)} == {
        "ipmi-answers",
        "ipmi-cipher-zero",
        "ipmi-auth-none",
        "ipmi-weak-auth",
        "ipmi-hash-disclosed",
        "ipmi-default-user",
        "ipmi-weak-cipher-suites",
    }


@pytest.mark.host
async def test_the_factory_credential_opens_it_and_no_other(bmc: Bmc) -> None:
    assert await logs_in(bmc.ipmi, "root", PASSWORD)
    assert not await logs_in(bmc.ipmi, "root", "guessed")


@pytest.mark.host
async def test_redfish_turns_it_off_and_on_again_at_once(bmc: Bmc) -> None:
    await bmc.switch(ProtocolEnabled=False)
    assert (await bmc.probe()).silence == "port unreachable (ICMP)"
    began = time.monotonic()
    await bmc.switch(ProtocolEnabled=True)
    assert time.monotonic() - began < 1
    assert (await bmc.probe()).present


@pytest.mark.host
async def test_it_follows_its_port(bmc: Bmc) -> None:
    other = free_port()
    await bmc.switch(Port=other)
    assert not (await bmc.probe()).present
    assert (await probe_ipmi(HERE, port=other, timeout=0.3)).present


@pytest.mark.host
async def test_it_is_away_while_the_bmc_reboots(bmc: Bmc) -> None:
    await bmc("POST", f"{MANAGER}/Actions/Manager.Reset", {"ResetType": "GracefulRestart"})
    await bmc.until(present=False)
    await bmc.until(present=True)


@pytest.mark.host
async def test_it_ends_with_its_bmc_and_comes_back_if_it_was_on(tmp_path: Path) -> None:
    for on in (True, False):
        async with powered(tmp_path) as bmc:
            await bmc.switch(ProtocolEnabled=on)
            await bmc.chassis.operations()["bmc-reboot"]({"seconds": "0.5"})
            assert not (await bmc.probe()).present
            assert bmc.chassis._reboot is not None
            await bmc.chassis._reboot
            assert (await bmc.probe()).present is on
        assert not (await bmc.probe()).present


@pytest.mark.host
async def test_a_bmc_that_lies_says_off_and_answers_until_the_fault_is_over(bmc: Bmc) -> None:
    await bmc.fault("on")
    await bmc.switch(ProtocolEnabled=False)
    assert (await bmc("GET", f"{MANAGER}/NetworkProtocol", None))["IPMI"]["ProtocolEnabled"] is False
    assert (await bmc.probe()).present
    await bmc.chassis.operations()["fault-clear"]({})
    assert not (await bmc.probe()).present


@pytest.mark.host
async def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    port = free_port()
    script = (
        "import asyncio, os, sys; from pathlib import Path; from freehold_lab.ipmi import IpmiServer, IpmiUser\n"
        f"server = IpmiServer(Path(sys.argv[1]), '{HERE}', IpmiUser('root', 'secret'), 'ab' * 16)\n"
        f"asyncio.run(server.listen({port})) or os.kill(os.getpid(), 9)"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(tmp_path))
    assert await process.wait() == -9
    await until(port, present=False)


@pytest.mark.host
async def test_a_port_that_is_taken_is_said_in_words(tmp_path: Path) -> None:
    server = IpmiServer(tmp_path, HERE, FACTORY, "ab" * 16)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind((HERE, 0))
        port = taken.getsockname()[1]
        with pytest.raises(LabError, match=f"IPMI does not start on UDP {HERE} port {port}: .+"):
            await server.listen(port)


def test_the_guid_is_the_uuid_of_the_server() -> None:
    text = configuration("172.30.1.11", 623, FACTORY, "12345678-9abc-def0-1234-56789abcdef0")
    assert "  guid 123456789abcdef0123456789abcdef0\n" in text
    assert "  addr 172.30.1.11 623\n" in text
