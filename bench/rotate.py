#!/usr/bin/env python3
"""Rotate the passwords of a fleet: real Redfish services over TLS in a second process, the real two-phase protocol and
a real vault in this one. One JSON line.

    bench/rotate.py [--servers 1000] [--at-once 32]

Not in it: the engine's own transactions and the evidence log. The BMCs share these processors, and one TLS key.
"""

import argparse
import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from freehold.orchestration.site import ROTATIONS_AT_ONCE, VaultSlots
from freehold.out_of_band.accounts import RedfishDoor
from freehold.out_of_band.redfish import Credential, RedfishClient
from freehold.out_of_band.takeover import OWN_ACCOUNT, take_over
from freehold.out_of_band.transport import BmcIdentity, fetch_identity
from freehold.root_of_trust.kek import FileKek
from freehold.root_of_trust.vault import EmbeddedVault
from freehold_lab.bmc.context import BmcConfig
from freehold_lab.bmc.memory import MemoryHardware, example_info
from freehold_lab.bmc.service import serve

TARGET_SECONDS = 60.0
PASSWORD = "Before-the-rotation-7"


def run_bmcs(directory: Path, count: int, answer: Connection) -> None:
    """A process with `count` BMCs whose administrator is our own account already; tells their ports."""

    async def work() -> None:
        ports, key = [], b""
        for number in range(count):
            state = directory / f"bmc-{number}"
            state.mkdir()
            if key:
                (state / "https.pem").write_bytes(key)
            config = BmcConfig(PASSWORD, state, port=0, factory_user=OWN_ACCOUNT)
            runner = await serve(MemoryHardware(example_info()), config)
            ports.append(runner.addresses[0][1])
            key = (state / "https.pem").read_bytes()
        answer.send(ports)
        await asyncio.Event().wait()

    asyncio.run(work())


class View(msgspec.Struct, frozen=True):
    """What `VaultSlots` needs of a server."""

    name: str


async def rotate(vault: EmbeddedVault, ports: Sequence[int], at_once: int) -> float:
    identity = BmcIdentity(spki_sha256=(await fetch_identity(f"127.0.0.1:{ports[0]}")).spki_sha256)
    turns = asyncio.Semaphore(at_once)

    async def one(number: int, port: int) -> None:
        slots = VaultSlots(vault, View(f"s{number}"))  # type: ignore[arg-type]
        door = RedfishDoor(lambda credential: RedfishClient.connect(f"127.0.0.1:{port}", identity, credential))
        async with turns:
            await take_over(door, slots, rotate=True)
        new = await slots.current()
        assert new is not None
        assert new.password != PASSWORD

    start = time.monotonic()
    await asyncio.gather(*(one(number, port) for number, port in enumerate(ports)))
    return time.monotonic() - start


def measure(servers: int, at_once: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        vault = EmbeddedVault.create(directory / "vault", FileKek.create(directory / "vault.key"))
        known = msgspec.json.encode(Credential(OWN_ACCOUNT, PASSWORD, generated=True))
        for number in range(servers):
            vault.put(f"bmc/s{number}/current", known)
        receiver, sender = multiprocessing.Pipe(duplex=False)
        bmcs = multiprocessing.Process(target=run_bmcs, args=(directory, servers, sender), daemon=True)
        bmcs.start()
        try:
            seconds = asyncio.run(rotate(vault, receiver.recv(), at_once))
        finally:
            bmcs.terminate()
            bmcs.join()
        words = {vault.get(path) for path in vault.paths("bmc") if path.endswith("/current")}
    return {
        "bench": "rotate",
        "servers": servers,
        "at_once": at_once,
        "seconds": round(seconds, 1),
        "target_seconds": TARGET_SECONDS,
        "different_passwords": len(words),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=ROTATIONS_AT_ONCE)
    options = parser.parse_args()
    result = measure(options.servers, options.at_once)
    print(json.dumps(result))
    return 0 if result["seconds"] <= TARGET_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
