#!/usr/bin/env python3
"""Resident memory of the controller's engine with a fleet of simulated servers, all active and idle: one JSON line.

    bench/idle_fleet.py [--servers 1000] [--seconds 20]

Every server is brought to `active` through all steps first; then its drift loop runs (`driftInterval` 5 minutes).
"""

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from freehold.model.documents import load_documents
from freehold.orchestration.engine import Engine
from freehold.orchestration.simulated import World
from freehold.orchestration.store import Store

TARGET_MB = 150


def fleet(count: int) -> str:
    documents = [
        "apiVersion: freehold/v1\nkind: Network\nmetadata: {name: oob}\nspec: {role: oob, prefix: 10.1.0.0/16}",
        "apiVersion: freehold/v1\nkind: Network\nmetadata: {name: provisioning}\n"
        "spec: {role: provisioning, prefix: 10.2.0.0/16}",
        "apiVersion: freehold/v1\nkind: Image\nmetadata: {name: debian}\nspec: {version: '12', builtin: debian-12}",
    ]
    for i in range(count):
        high, low = divmod(i + 16, 256)
        documents.append(
            f"apiVersion: freehold/v1\nkind: Server\nmetadata: {{name: s{i}}}\nspec:\n"
            f"  bmc: {{address: 10.1.{high}.{low}, credential: {{vaultRef: factory/s{i}}}}}\n"
            f"  nics: [{{mac: '52:54:00:00:{high:02x}:{low:02x}', network: provisioning}}]"
        )
        documents.append(
            f"apiVersion: freehold/v1\nkind: Assignment\nmetadata: {{name: a{i}}}\n"
            f"spec: {{server: s{i}, image: debian, hostname: s{i}}}"
        )
    return "\n---\n".join(documents)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


async def measure(servers: int, seconds: float) -> dict[str, Any]:
    async def record(*_statement: object) -> int:
        return 0

    with tempfile.TemporaryDirectory() as directory:
        store = await Store.open(Path(directory) / "freehold.db")
        start = time.monotonic()
        await store.apply(load_documents(fleet(servers), "fleet.yaml"))
        applied = time.monotonic()
        running = asyncio.create_task(Engine(store, World().steps(), record, alone=True).run())
        while (await store.states()).get("active", 0) < servers:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.5)
        active = time.monotonic()
        cpu = time.process_time()
        await asyncio.sleep(seconds)
        cpu = time.process_time() - cpu
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await store.close()
    return {
        "bench": "idle_fleet",
        "servers": servers,
        "resident_mb": round(resident_mb(), 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000, 1),
        "target_mb": TARGET_MB,
        "apply_seconds": round(applied - start, 1),
        "all_active_seconds": round(active - applied, 1),
        "idle_cpu_share": round(cpu / seconds, 3),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    result = asyncio.run(measure(options.servers, options.seconds))
    print(json.dumps(result))
    sys.exit(result["resident_mb"] > TARGET_MB)
