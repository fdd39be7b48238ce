"""How long `freehold --help` takes: median of ten runs in seconds, as JSON."""

import json
import statistics
import subprocess
import sys
import time

RUNS = 10


def once() -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "freehold.interfaces.cli.main", "--help"], check=True, capture_output=True)
    return time.perf_counter() - begun


def main() -> None:
    once()  # the first run may compile
    seconds = [once() for _ in range(RUNS)]
    result = {"what": "freehold --help", "runs": RUNS, "unit": "s", "median": round(statistics.median(seconds), 4)}
    print(json.dumps({**result, "min": round(min(seconds), 4), "max": round(max(seconds), 4)}))


if __name__ == "__main__":
    main()
