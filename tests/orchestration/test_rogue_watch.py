"""The watch for foreign DHCP servers, with a real one: the lab's rogue, on a segment made of two namespaces."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold_lab import network, rogue

WATCH = """
import asyncio, functools, pathlib, subprocess, sys
from freehold.orchestration import controller
from freehold.orchestration.store import Store
directory, *rogue = sys.argv[1:]
controller.ROGUE_INTERVAL = 0.1
controller.find_rogues = functools.partial(controller.find_rogues, wait=1.0)  # dnsmasq answers at once
async def main():
    store = await Store.open(pathlib.Path(directory) / "freehold.db")
    async def wait_for(count):
        while len(found := await store.events()) < count:
            await asyncio.sleep(0.1)
    watch = asyncio.create_task(controller.watch_for_rogues("provisioning", "172.30.2.2", store))
    await asyncio.sleep(2)  # a segment without a stranger: nothing to tell
    print(len(await store.events()))
    stranger = subprocess.Popen(rogue, stderr=subprocess.DEVNULL)
    await wait_for(1)
    await asyncio.sleep(3)  # looked at twice more: it is told once
    stranger.terminate(); stranger.wait()
    await wait_for(2)
    watch.cancel()
    for event in await store.events():
        print(event.server, event.kind, event.message)
    await store.close()
asyncio.run(main())
"""


@pytest.fixture
def segment() -> Iterator[tuple[str, str]]:
    """Namespaces of the controller and of the stranger, joined by one cable."""
    own, stranger = (f"fh-watch-{os.getpid()}-{end}" for end in ("own", "rogue"))
    for name in (own, stranger):
        subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        cable = f"link add provisioning type veth peer name provisioning netns {stranger}"
        subprocess.run(["ip", "-n", own, *cable.split()], check=True)
        for name, host in ((own, network.CONTROLLER_HOST), (stranger, network.ROGUE_HOST)):
            address = f"{network.address('provisioning', host)}/24"
            subprocess.run(["ip", "-n", name, "address", "add", address, "dev", "provisioning"], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", "provisioning", "up"], check=True)
        yield own, stranger
    finally:
        for name in (own, stranger):
            subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.lab
def test_a_stranger_is_told_once_and_so_is_that_it_went(segment: tuple[str, str], tmp_path: Path) -> None:
    own, stranger = segment
    intruder = [*network.inside(stranger), *rogue.dnsmasq_command()]
    command = [*network.inside(own), sys.executable, "-c", WATCH, str(tmp_path), *intruder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    before, told, gone = done.stdout.splitlines()
    assert before == "0"
    assert told.startswith("None rogue-dhcp a DHCP server that is not ours answers on provisioning: from 172.30.2.66, ")
    assert f"boot file '{rogue.BOOT_URL}'" in told
    assert "it offered 172.30.2.2" in told
    assert "shut it" in told
    assert gone == "None rogue-dhcp no foreign DHCP server answers on provisioning any more"
    assert told.removeprefix("None rogue-dhcp ") in done.stderr  # and in the controller's log
