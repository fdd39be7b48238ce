#!/usr/bin/env python3
"""Run all benchmarks and write their results into docs/benchmarks.md, between its two markers.

    sudo make bench        (sudo bench/run_all.py [--runs 3] [--work DIR] [--rebuild FILE])

`--rebuild FILE` takes an earlier result of `rebuild.py --json FILE`, the part that takes minutes.

All of them run, whatever the first ones say. The exit status is 1 if a target was missed or a benchmark failed. The
document is written only if each of them has a result.
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
SHORT = ("help_time", "idle_fleet", "appraise", "rotate", "depot")


class Runs:
    """`results` of the benchmarks that had one, and what was `wrong` with any of them, in words."""

    def __init__(self) -> None:
        self.results: dict[str, dict[str, Any]] = {}
        self.wrong: list[str] = []

    def run(self, script: str, *arguments: str, file: Path | None = None) -> None:
        """The result is in `file`, or else the JSON line that it prints last."""
        command = [sys.executable, str(HERE / f"{script}.py"), *arguments]
        printed = None if file else subprocess.PIPE
        done = subprocess.run(command, stdout=printed, text=True, check=False)
        if done.returncode:
            self.wrong.append(f"{script}.py: exit status {done.returncode}")
        try:
            self.results[script] = json.loads(file.read_text() if file else done.stdout.splitlines()[-1])
        except (OSError, IndexError, ValueError) as error:
            self.wrong.append(f"{script}.py: no result ({type(error).__name__})")


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


Row = tuple[str, str, str, bool | None]
"""What was measured, the result, its target, and whether that was met (None: there is no target)."""


def figures(found: dict[str, dict[str, Any]], rebuild: dict[str, Any]) -> list[Row]:
    """The rows of the first table, from what each benchmark printed. Pure."""
    fleet, appraised, help_time = found["idle_fleet"], found["appraise"], found["help_time"]
    rotated, depot, prove = found["rotate"], found["depot"], found["prove"]
    ratio = rebuild["ratio"]

    def most(what: str, value: float, target: float, unit: str, digits: int = 0) -> Row:
        return what, f"{value:.{digits}f} {unit}", f"{target:.{digits}f} {unit}", value <= target

    def least(what: str, value: float) -> Row:
        return what, f"{value:.2f} of it", "0.80 of it", value >= 0.8

    rows: list[Row] = [
        (
            "blank disk to OS ready, time against the floor",
            f"{ratio['total']:.2f}x",
            f"{RATIO}x",
            ratio["total"] <= RATIO,
        ),
        ("the same, processor seconds of QEMU", f"{ratio['cpu']:.2f}x", "", None),
        most("`freehold prove`, cached artifacts", prove["cached_seconds"], prove["target_cached_seconds"], "s"),
        most(f"resident memory, {fleet['servers']:,} idle servers", fleet["resident_mb"], fleet["target_mb"], "MB"),
        ("processor share of those servers", f"{fleet['idle_cpu_share'] * 100:.1f} %", "", None),
        most(f"rotate {rotated['servers']:,} BMCs", rotated["seconds"], rotated["target_seconds"], "s"),
        most(
            "one attestation, processor time, EK roots in memory",
            appraised["cached_ms"],
            appraised["target_cached_ms"],
            "ms",
            1,
        ),
        most("the same, EK roots read anew", appraised["uncached_ms"], appraised["target_uncached_ms"], "ms", 1),
        least("depot: import 1 GB, against the speed of sha256sum", depot["import_ratio"]),
        least("depot: hand out 1 GB verified, against the same", depot["use_ratio"]),
        most("`freehold --help`", help_time["median"], HELP_SECONDS, "s", 2),
    ]
    if prove["cold_seconds"] is not None:
        rows.insert(3, most("the same, first run", prove["cold_seconds"], prove["target_cold_seconds"], "s"))
    return rows


def results(found: dict[str, dict[str, Any]], rebuild: dict[str, Any]) -> str:
    """The generated part. Pure but for the description of the machine."""
    runs = rebuild["runs"]["freehold"]
    verdict = {True: "met", False: "**missed**", None: ""}
    lines = [
        f"Machine: {machine()}.",
        "",
        "| what | measured | target | |",
        "|---|---|---|---|",
        *(f"| {what} | {value} | {target} | {verdict[met]} |" for what, value, target, met in figures(found, rebuild)),
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


def missed(table: list[Row]) -> list[str]:
    """The targets that were not met, in words. Pure."""
    return [f"missed: {what}: {value}, target {target}" for what, value, target, met in table if met is False]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "freehold-bench")
    parser.add_argument("--cold", action="store_true", help="also a first run of prove, which builds everything")
    parser.add_argument("--rebuild", type=Path, metavar="FILE", help="an earlier result of rebuild.py")
    options = parser.parse_args()
    before, begin, rest = DOCUMENT.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"run_all.py: {DOCUMENT.name} has lost its markers {BEGIN} and {END}")
    runs = Runs()
    for name in SHORT:
        runs.run(name)
    runs.run("prove", *(["--cold"] if options.cold else []))
    if options.rebuild is not None:
        runs.results["rebuild"] = json.loads(options.rebuild.read_text())
    else:
        options.work.mkdir(parents=True, exist_ok=True)
        file = options.work / "rebuild.json"
        file.unlink(missing_ok=True)
        arguments = ("--runs", str(options.runs), "--work", str(options.work), "--json", str(file))
        runs.run("rebuild", *arguments, file=file)
    if runs.results.keys() >= {*SHORT, "prove", "rebuild"}:
        rebuild = runs.results.pop("rebuild")
        made = results(runs.results, rebuild)
        DOCUMENT.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}")
        print(made)
        runs.wrong += missed(figures(runs.results, rebuild))
    for what in runs.wrong:
        print(f"run_all.py: {what}", file=sys.stderr)
    return 1 if runs.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
