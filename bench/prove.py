#!/usr/bin/env python3
"""How long `freehold prove` takes, with cached artifacts and without: one JSON line.

    sudo bench/prove.py [--cold]

With `--cold` a first run builds everything into an empty cache before the second, cached one is timed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGET_CACHED, TARGET_COLD = 8 * 60.0, 20 * 60.0


def run(work: Path, cache: str | None) -> tuple[float, list[str]]:
    """Seconds, and the seven verdicts."""
    environment = os.environ | ({"FREEHOLD_CACHE": cache} if cache else {})
    command = [sys.executable, "-m", "freehold.interfaces.cli.main", "prove", "--dir", str(work), "-o", "json"]
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return time.monotonic() - start, [answer["verdict"] for answer in json.loads(done.stdout)["report"]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        cache = str(Path(directory) / "cache") if options.cold else None
        cold = round(run(Path(directory) / "prove", cache)[0], 1) if options.cold else None
        cached, verdicts = run(Path(directory) / "prove", cache)
    result = {
        "bench": "prove",
        "cached_seconds": round(cached, 1),
        "target_cached_seconds": TARGET_CACHED,
        "cold_seconds": cold,
        "target_cold_seconds": TARGET_COLD,
        "verdicts": verdicts,
    }
    print(json.dumps(result))
    return 0 if cached <= TARGET_CACHED and (cold or 0.0) <= TARGET_COLD else 1


if __name__ == "__main__":
    sys.exit(main())
