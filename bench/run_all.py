#!/usr/bin/env python3
"""Run all benchmarks and write their results into docs/benchmarks.md, between its two markers.

    sudo make bench        (sudo bench/run_all.py [--runs 3] [--work DIR] [--rebuild FILE])

`--rebuild FILE` takes an earlier result of `rebuild.py --json FILE`, the part that takes minutes.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rebuild import rows

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE.parent / "docs/benchmarks.md"
BEGIN, END = "<!-- results: written by bench/run_all.py -->", "<!-- end of results -->"
HELP_SECONDS, RATIO = 0.15, 1.25


def measured(script: str, *arguments: str) -> dict[str, Any]:
    """The JSON line that a benchmark prints last. It may end with another status than 0: a target was missed."""
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.splitlines()
    if not lines:
        sys.exit(f"run_all.py: {script} printed nothing (exit status {done.returncode})")
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def machine() -> str:
    """What the numbers were taken on, without its name."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = int(re.findall(r"\d+", Path("/proc/meminfo").read_text())[0]) // (1 << 20)
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    return (
        f"{os.cpu_count()} processors ({cpu[1] if cpu else platform.machine()}), {memory} GiB, "
        f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}, "
        f"{qemu.splitlines()[0].split(' (')[0]} without KVM (TCG)"
    )


def results(startup: dict[str, Any], fleet: dict[str, Any], depot: dict[str, Any], rebuild: dict[str, Any]) -> str:
    """The generated part. Pure but for the description of the machine."""
    ratio, runs = rebuild["ratio"], rebuild["runs"]["freehold"]
    resident, allowed = fleet["resident_mb"], fleet["target_mb"]

    def verdict(good: bool) -> str:
        return "met" if good else "**missed**"

    lines = [
        f"Machine: {machine()}.",
        "",
        "| what | measured | target | |",
        "|---|---|---|---|",
        f"| blank disk to OS ready, time against the floor | {ratio['total']:.2f}x | {RATIO}x "
        f"| {verdict(ratio['total'] <= RATIO)} |",
        f"| the same, processor seconds of QEMU | {ratio['cpu']:.2f}x | | |",
        f"| resident memory, {fleet['servers']:,} idle servers | {resident:.0f} MB | {allowed} MB "
        f"| {verdict(resident <= allowed)} |",
        f"| processor share of those servers | {fleet['idle_cpu_share'] * 100:.1f} % | | |",
        f"| `freehold --help` | {startup['median']:.2f} s | {HELP_SECONDS} s "
        f"| {verdict(startup['median'] <= HELP_SECONDS)} |",
        *(
            f"| {what} of a {depot['megabytes']:,} MB package, speed against `sha256sum` | {depot[key]:.2f}x "
            f"| {depot['target_ratio']}x | {verdict(depot[key] >= depot['target_ratio'])} |"
            for what, key in (("import", "import_ratio"), ("verification at use", "use_ratio"))
        ),
        "",
        f"Seconds of each stage, median of {len(runs)} runs, floor and Freehold in turn. `cpu` is what QEMU used.",
        "",
        "| stage | floor | Freehold | more |",
        "|---|---|---|---|",
        *(f"| {name} | {floor} | {ours} | {more} |" for name, floor, ours, more in rows(rebuild)),
        "",
        "Totals of the single runs: "
        + "; ".join(
            f"floor {floor['total']:.1f} s, Freehold {ours['total']:.1f} s"
            for floor, ours in zip(rebuild["runs"]["floor"], runs, strict=True)
        )
        + f". Load average before each pair: {', '.join(map(str, rebuild['load']))}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "freehold-bench")
    parser.add_argument("--rebuild", type=Path, metavar="FILE", help="an earlier result of rebuild.py")
    options = parser.parse_args()
    before, begin, rest = DOCUMENT.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"run_all.py: {DOCUMENT.name} has lost its markers {BEGIN} and {END}")
    startup, fleet, depot = measured("help_time.py"), measured("idle_fleet.py"), measured("depot.py")
    file = options.rebuild
    if file is None:
        options.work.mkdir(parents=True, exist_ok=True)
        file = options.work / "rebuild.json"
        arguments = ["--runs", str(options.runs), "--work", str(options.work), "--json", str(file)]
        subprocess.run([sys.executable, str(HERE / "rebuild.py"), *arguments], check=True)
    made = results(startup, fleet, depot, json.loads(file.read_text()))
    DOCUMENT.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}")
    print(made)


if __name__ == "__main__":
    main()
