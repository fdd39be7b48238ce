#!/usr/bin/env python3
"""Import a large package into a depot and verify it again at its use, beside plain `sha256sum`: one JSON line.

    bench/depot.py [--megabytes 1000] [--runs 5] [--directory DIR]

Import: one reading of the source, SHA-256, a copy that is durable (fsync) before it counts, and the staged metadata.
Use: TUF's client workflow, then SHA-256 of the file that is handed out. The source is in the page cache for the first
two; the use reads from disk, as the import leaves the cache to others.
A vendor's signature is not in it: gpgv or openssl read the copy once more, at their own speed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from freehold.evidence import Ed25519Signer
from freehold.root_of_trust.depot import Depot, DepotClient, Description, Kind, Wanted
from freehold.root_of_trust.depot.metadata import Days
from freehold.root_of_trust.depot.staging import sign_staged

TARGET = 0.8
ABOUT = Description(kind=Kind.OS_IMAGE, vendor="bench", component="image", version="1", unsigned_because="a benchmark")


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def use(client: DepotClient, wanted: Wanted) -> None:
    client.open_verified(client.find(wanted)).close()


def once(source: Path, directory: Path) -> dict[str, float]:
    """sha256sum, import and use in turn, in a depot of their own."""
    plain = seconds(lambda: subprocess.run(["sha256sum", source], check=True, stdout=subprocess.DEVNULL))
    people = {name: Ed25519Signer.generate() for name in ("alice", "bob", "carol")}
    online, now = Ed25519Signer.generate(), datetime.now(UTC)
    with tempfile.TemporaryDirectory(dir=directory, prefix="freehold-bench-") as scratch:
        depot = Depot(Path(scratch) / "depot")
        depot.found({name: signer.public_key for name, signer in people.items()}, online.public_key, Days(), now)

        def import_it() -> None:
            with source.open("rb", buffering=0) as file, depot.receiving(file) as received:
                depot.add(received, "image.raw", ABOUT, now)

        imported = seconds(import_it)
        for name in ("alice", "bob"):
            sign_staged(depot.staging, depot.staged(), people[name])
        depot.publish([online], now)
        wanted = Wanted(Kind.OS_IMAGE, "bench", "image", "1")
        used = seconds(lambda: use(depot.client(), wanted))
    return {"sha256sum": plain, "import": imported, "use": used}


def measure(megabytes: int, runs: int, directory: Path) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(dir=directory, prefix="freehold-bench-") as source:
        for _ in range(megabytes):
            source.write(os.urandom(1_000_000))
        source.flush()
        os.fsync(source.fileno())
        found = [once(Path(source.name), directory) for _ in range(runs)]
    median = {name: statistics.median(each[name] for each in found) for name in found[0]}
    return {
        "bench": "depot",
        "megabytes": megabytes,
        "runs": runs,
        "unit": "s",
        **{name: round(value, 2) for name, value in median.items()},
        "import_ratio": round(median["sha256sum"] / median["import"], 2),
        "use_ratio": round(median["sha256sum"] / median["use"], 2),
        "both_ratio": round(median["sha256sum"] / (median["import"] + median["use"]), 2),
        "target_ratio": TARGET,
        "all": [{name: round(value, 2) for name, value in each.items()} for each in found],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    result = measure(options.megabytes, options.runs, options.directory)
    print(json.dumps(result))
    sys.exit(min(result["import_ratio"], result["use_ratio"]) < TARGET)
