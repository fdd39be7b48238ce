#!/usr/bin/env python3
"""Blank disk to OS ready: Freehold on its lab against the hand-built floor, side by side, one after the other.

    sudo bench/rebuild.py [--runs 3] [--work DIR] [--json FILE] [--smp 1]

Both start a machine of the same make (QEMU q35 by TCG, TPM, Secure Boot with the operator's keys, UEFI HTTP Boot, blank
NVMe). Time starts with the power-on of the boot that installs and ends when the OS says that it is ready; for Freehold
both attestations, the verification of every chunk and the read-back of the whole image are in it. QEMU's processor
seconds are given too: they vary less on a busy machine. Runs alternate, so that both suffer from it alike.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LAB, SERVER = "bench", "server-1"
PATIENCE = 600.0
FLOOR = Path(__file__).with_name("floor.py")
STAGES = (  # name, what ends it on the lab's console, the floor's stage of the same meaning
    ("agent handoff", r"BdsDxe: starting .*HTTP", "agent handoff"),
    ("agent userspace", "freehold: agent ramdisk started", "agent userspace"),
    ("network up", "freehold: network up", "network up"),
    ("second stage", "freehold: starting the agent", None),
    ("agent attested", "freehold-agent: attested", None),
    ("image written", "write_image done", "image written"),
    ("seed, boot entry, reboot", "reboot: Restarting system", "reboot"),
    ("OS handoff", r"BdsDxe: starting .*Freehold OS", "OS handoff"),
    ("OS ready", "freehold-agent: reported ready", "OS ready"),
)
TICKS = os.sysconf("SC_CLK_TCK")
Run = dict[str, float]


class NoResultError(Exception):
    """What went wrong, in words for the person at the console."""


def stages(console: str) -> Run:
    """Seconds that each stage of the last installation took, by the lab's console log; all must be there."""
    at: dict[str, float] = {}
    for line in console.splitlines():
        when, text = float(line[:9]), line[10:]
        if re.match("--- (power on|reset)", text):
            at = {}
        for name, pattern, _ in STAGES:
            if name not in at and re.search(pattern, text):
                at[name] = when
                break
    if missing := [name for name, *_ in STAGES if name not in at]:
        raise NoResultError(f"the console says nothing of: {', '.join(missing)}")
    ends = [at[name] for name, *_ in STAGES]
    took = {name: end - begin for (name, *_), end, begin in zip(STAGES, ends, [0.0, *ends], strict=False)}
    return {**took, "total": ends[-1]}


class Processor:
    """Processor seconds of the QEMUs of one lab machine, since its last power-on: each boot is a process of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._seconds = str(directory), dict[str, float]()

    def sample(self) -> None:
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "cwd").readlink() == Path(self._directory) and "qemu" in (process / "comm").read_text():
                    fields = (process / "stat").read_text().rsplit(")")[-1].split()
                    self._seconds[process.name] = sum(map(int, fields[11:13])) / TICKS

    def of_last(self, boots: int) -> float:
        return sum(list(self._seconds.values())[-boots:])


def lab(*arguments: str, directory: Path) -> None:
    command = [sys.executable, "-m", "freehold_lab", arguments[0], "--dir", str(directory), *arguments[1:]]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def freehold_run(directory: Path, cores: int) -> Run:
    """One server from its factory state to `active` on a lab of its own; what the installing boot took."""
    from freehold.interfaces.cli.lab import facts_of, write_inventory
    from freehold.interfaces.cli.serve import enter_network_namespace, trust_lab
    from freehold.orchestration.opening import serving
    from freehold.provisioning.images.artifacts import Cache, default_root
    from freehold.provisioning.images.build import build_base

    base = build_base(Cache(default_root()))
    shutil.rmtree(directory, ignore_errors=True)
    rack, state = directory / "lab", directory / "state"
    lab("down", "--name", LAB, directory=rack)
    lab("up", "--name", LAB, "--servers", "1", "--cores", str(cores), directory=rack)
    try:
        facts = facts_of(rack)
        inventory = write_inventory(rack, facts)
        trust_lab(state, facts)
        enter_network_namespace(facts["controller_namespace"])
        log = Path(facts["servers"][0]["console_log"])
        processor = Processor(log.parent)
        with serving(state):
            asyncio.run(serve_until_active(state, base, inventory, processor))
        console = log.read_text()
        (directory / "console.log").write_text(console)
        return {**stages(console), "cpu": processor.of_last(2)}
    finally:
        lab("down", "--name", LAB, directory=rack)


async def serve_until_active(state: Path, base: Any, inventory: Path, processor: Processor) -> None:
    """The controller in this process, as `freehold prove` runs it, until the server is active."""
    from freehold.interfaces.cli.serve import site_documents
    from freehold.model.documents import load_documents
    from freehold.model.status import ServerState
    from freehold.orchestration.controller import make_site
    from freehold.orchestration.controller import serve as run_site
    from freehold.orchestration.opening import boot_artifacts, open_log, open_vault
    from freehold.orchestration.store import Store
    from freehold.root_of_trust.keys import SiteKeys

    store = await Store.open(state / "freehold.db")
    try:
        text = inventory.read_text().replace("driftInterval:", "referenceValues: learned\n  driftInterval:")
        await store.apply(load_documents(text, inventory.name))
        name, spec, networks = await site_documents(store)
        vault = open_vault(state)
        keys = SiteKeys.create(state, vault, name, [spec.controller.provisioning, spec.controller.oob])
        with open_log(state, name, keys) as log:
            boot = boot_artifacts(state, name, spec, keys, base)
            controller = asyncio.create_task(run_site(make_site(state, spec, networks, vault, keys, boot), store, log))
            deadline, reached = time.monotonic() + PATIENCE, ""
            while reached != ServerState.ACTIVE:
                await asyncio.wait({controller}, timeout=0.5)
                processor.sample()
                if controller.done():
                    controller.result()
                view = await store.ledger.view(SERVER)
                reached = view.status.state if view else ""
                if reached == ServerState.QUARANTINED or time.monotonic() > deadline:
                    raise NoResultError(f"the server got no further than {reached}: {view and view.status.reason}")
            controller.cancel()
            await asyncio.gather(controller, return_exceptions=True)
    finally:
        await store.close()


def floor_run(work: Path, cores: int) -> Run:
    """One run of the floor, which must be built; its stages under our names."""
    result = work / "floor.json"
    call_floor(work, "run", "--method", "http", "--runs", "1", "--smp", str(cores), "--json", str(result))
    run = json.loads(result.read_text())["runs"][0]
    took = {ours: run["took"][theirs] for ours, _, theirs in STAGES if theirs}
    return {**took, "total": run["took"]["total"], "cpu": run["qemu_cpu_s"]}


def call_floor(work: Path, *arguments: str) -> None:
    command = [sys.executable, str(FLOOR), "--work", str(work / "floor"), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise NoResultError(f"floor.py {arguments[0]} failed:\n{done.stdout[-1500:]}")


def in_new_process(work: Path, cores: int) -> Run:
    """`freehold_run` in a process of its own: it enters the network namespace of its lab."""
    result = work / "freehold.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--work", str(work), "--smp", str(cores), "--only-freehold", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoResultError(f"the run of Freehold failed:\n{done.stderr[-1500:]}")
    run: Run = json.loads(result.read_text())
    return run


def median(runs: list[Run]) -> Run:
    return {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}


def summary(floor: list[Run], freehold: list[Run], load: list[float]) -> dict[str, Any]:
    """Medians, and the ratios of the medians. `load` is the machine's load average before each pair of runs."""
    ours, theirs = median(freehold), median(floor)
    ratio = {name: round(ours[name] / theirs[name], 3) for name in ("total", "cpu")}
    runs = {"floor": floor, "freehold": freehold}
    return {"runs": runs, "load": load, "floor": theirs, "freehold": ours, "ratio": ratio}


def rows(result: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Name, floor, Freehold, difference: of each stage, of the total, of the processor."""
    for name in (*(name for name, *_ in STAGES), "total", "cpu"):
        ours, theirs = result["freehold"][name], result["floor"].get(name)
        yield name, "" if theirs is None else f"{theirs:.1f}", f"{ours:.1f}", f"{ours - (theirs or 0):+.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--smp", type=int, default=1, help="processors of the machine, for both")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "freehold-bench")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--only-freehold", type=Path, metavar="FILE", help="one run of Freehold alone, result in FILE")
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    try:
        if options.only_freehold:
            options.only_freehold.write_text(json.dumps(freehold_run(options.work / "freehold", options.smp)))
            return
        call_floor(options.work, "build")
        floor: list[Run] = []
        freehold: list[Run] = []
        load: list[float] = []
        for number in range(1, options.runs + 1):
            load.append(round(os.getloadavg()[0], 1))
            floor.append(floor_run(options.work, options.smp))
            freehold.append(in_new_process(options.work, options.smp))
            totals = f"floor {floor[-1]['total']:.1f} s, Freehold {freehold[-1]['total']:.1f} s"
            print(f"run {number} of {options.runs} (load before: {load[-1]}): {totals}", flush=True)
    except (NoResultError, subprocess.CalledProcessError) as error:
        sys.exit(f"rebuild.py: {error}")
    result = summary(floor, freehold, load)
    print(f"\n{'median seconds':26}{'floor':>8}{'Freehold':>10}{'more':>8}")
    for name, theirs, ours, more in rows(result):
        print(f"{name:26}{theirs:>8}{ours:>10}{more:>8}")
    print(f"ratio: {result['ratio']['total']:.2f} of the time, {result['ratio']['cpu']:.2f} of the processor seconds")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
