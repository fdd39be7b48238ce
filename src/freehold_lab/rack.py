"""The rack: bring a whole lab up, say how it is, and take it down without a trace."""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from freehold_lab import control, firmware_vendor, layout, network
from freehold_lab.errors import LabError
from freehold_lab.layout import LabPlan
from freehold_lab.preflight import check_host
from freehold_lab.processes import LAB_ID, ProcessId, end_all, run, with_lab_id
from freehold_lab.progress import Progress
from freehold_lab.tpm import TpmVendor

REGISTRY = Path(
    "/run/freehold-lab"
)  # name -> directory and id of each lab of this host; gone after a reboot, like the labs
START_SECONDS = 60.0
_REACH = """import socket, sys
for address in sys.argv[1:]:
    socket.create_connection((address, 443), timeout=5).close()
"""


def up(plan: LabPlan, progress: Progress) -> dict[str, Any]:
    """Bring up the lab and return its facts, when every BMC answers. What a crash left behind is removed first."""
    check_host(plan)
    plan.directory.mkdir(parents=True, exist_ok=True)
    with _lock(plan.directory):
        _make_room(plan, progress)
        facts = layout.facts(plan)
        _write(plan.directory / layout.FACTS, facts)
        REGISTRY.mkdir(mode=0o755, exist_ok=True)
        _write(REGISTRY / f"{plan.name}.json", {"directory": facts["directory"], "id": facts["id"]})
        try:
            with progress.step("networks"):
                network.build(plan.layout)
            with progress.step(f"TPMs of {plan.servers} servers"):
                _manufacture(plan)
            with progress.step("BMCs"):
                _start(plan, facts)
        except BaseException:
            _clear(plan.name, facts["id"], plan.directory)
            raise
    return facts


def down(name: str, directory: Path | None, *, keep: bool, progress: Progress) -> bool:
    """Remove a lab: processes, namespaces, and without `keep` its files. False if there was nothing. Idempotent."""
    where, lab_id = _find(name, directory)
    found = bool(network.namespaces(name)) or bool(lab_id and with_lab_id(lab_id)) or bool(where and _files(where))
    with progress.step(f"lab {name} down"):
        _clear(name, lab_id, where)
        if where and not keep:
            _delete_files(where)
    return found


def status(facts: dict[str, Any]) -> dict[str, Any]:
    """How each server is; `alive` is false for one whose BMC process is gone."""
    rows = []
    for server in facts["servers"]:
        row: dict[str, Any] = {"name": server["name"], "bmc_address": server["bmc_address"]}
        try:
            row |= {
                "alive": True,
                **control.request(Path(server["control_socket"]), "status", server=server["name"], patience=5),
            }
        except LabError as exc:
            row |= {"alive": False, "problem": str(exc)}
        rows.append(row)
    present = set(network.namespaces(facts["name"]))
    missing = sorted(set(facts["namespaces"].values()) - present)
    wan = network.Wan(layout.plan_of(facts).layout)
    uplink = {"connected": wan.is_connected(), **wan.counters()} if facts["namespaces"]["gateway"] in present else None
    return {
        "name": facts["name"],
        "directory": facts["directory"],
        "servers": rows,
        "missing_namespaces": missing,
        "wan": uplink,
    }


def environment(lab_id: str) -> dict[str, str]:
    """For everything that runs inside the lab: marked, so that `down` finds it."""
    return os.environ | {LAB_ID: lab_id, "PYTHONUNBUFFERED": "1"}


def start_daemon(plan: LabPlan, role: str, log: Path, *command: str) -> subprocess.Popen[bytes]:
    """A process that outlives this one, in a namespace of the lab."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*network.inside(plan.layout.namespace(role)), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(plan.lab_id()),
            start_new_session=True,
        )
    _record(plan.directory, process.pid)
    return process


# ---- up, in steps
def _make_room(plan: LabPlan, progress: Progress) -> None:
    """Refuse if such a lab runs; remove what is left of one that crashed."""
    entry = _registry_entry(plan.name)
    own_id = plan.lab_id()
    if entry and entry["id"] != own_id and with_lab_id(entry["id"]):
        raise LabError(
            f"a lab named {plan.name!r} is up already, in {entry['directory']}",
            remedy=f"Give this one another --name, or `freehold lab down --dir {entry['directory']}`.",
        )
    if (plan.directory / layout.FACTS).exists():
        old = layout.load(plan.directory)
        if old["name"] != plan.name:
            raise LabError(
                f"{plan.directory} holds the lab {old['name']!r}",
                remedy="Use another --dir, or take that lab down first.",
            )
        if _complete(old):
            raise LabError(
                f"the lab {plan.name!r} is up already",
                remedy="See `freehold lab status`; `freehold lab down` takes it down.",
            )
    if network.namespaces(plan.name) or with_lab_id(own_id):
        with progress.step("removing what a crashed lab left behind"):
            _clear(plan.name, own_id, plan.directory)


def _complete(facts: dict[str, Any]) -> bool:
    return any(server["alive"] for server in status(facts)["servers"])


def _manufacture(plan: LabPlan) -> None:
    """One after the other: the first one brings the vendor's CA into being."""
    vendor = TpmVendor(plan.directory / layout.TPM_VENDOR)
    vendor.establish()
    for number in range(1, plan.servers + 1):
        info = layout.hardware_info(plan, number)
        vendor.manufacture(plan.server_directory(info.name), info.serial)  # one of a board without lies unused
    roots = plan.directory / layout.TPM_ROOTS
    roots.mkdir(exist_ok=True)
    shutil.copyfile(vendor.root_certificate, roots / "root.pem")
    shutil.copyfile(vendor.issuing_certificate, roots / "issuing.pem")
    firmware_vendor.establish(plan.directory / layout.FIRMWARE, layout.MANUFACTURER, layout.MODEL)


def _start(plan: LabPlan, facts: dict[str, Any]) -> None:
    internet = network.address("wan", network.INTERNET_HOST)
    responder = (sys.executable, "-m", "freehold_lab.internet", internet)
    start_daemon(plan, "internet", plan.directory / layout.LOGS / "internet.log", *responder)
    started = {}
    for server in facts["servers"]:
        command = (
            sys.executable,
            "-m",
            "freehold_lab.bmcd",
            "--lab-dir",
            facts["directory"],
            "--server",
            server["name"],
        )
        Path(server["control_socket"]).unlink(missing_ok=True)
        log = plan.server_directory(server["name"]) / "bmcd.log"
        started[server["name"]] = start_daemon(plan, f"bmc{server['number']}", log, *command)
    deadline = time.monotonic() + START_SECONDS + 5 * plan.servers
    for server in facts["servers"]:
        _wait_for(server, started[server["name"]], plan, deadline)
    addresses = [server["bmc_address"] for server in facts["servers"]]
    run(*network.inside(facts["controller_namespace"]), sys.executable, "-c", _REACH, *addresses)


def _wait_for(server: dict[str, Any], process: subprocess.Popen[bytes], plan: LabPlan, deadline: float) -> None:
    name = server["name"]
    log = plan.server_directory(name) / "bmcd.log"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            text = log.read_text(errors="replace").strip()[-600:]
            raise LabError(f"its BMC process ended at once: {text or 'it wrote nothing'}", server=name)
        if Path(server["control_socket"]).exists():
            with contextlib.suppress(LabError):
                control.request(Path(server["control_socket"]), "status", server=name, patience=5)
                return
        time.sleep(0.1)
    raise LabError("its BMC does not answer in time", server=name, remedy=f"Read {log}.")


# ---- down, in steps
def _clear(name: str, lab_id: str | None, directory: Path | None) -> None:
    """End the processes and remove the namespaces. Found by record, by mark and by namespace: any one suffices."""
    processes = set(_recorded(directory)) if directory else set()
    if lab_id:
        processes |= set(with_lab_id(lab_id))
    for namespace in network.namespaces(name):
        processes |= {found for pid in network.processes_inside(namespace) if (found := ProcessId.of(pid))}
    end_all(processes)
    network.remove(name)
    (REGISTRY / f"{name}.json").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        REGISTRY.rmdir()
    if directory:
        (directory / layout.PROCESSES).unlink(missing_ok=True)
        for socket in directory.glob(f"{layout.SERVERS}/*/*.sock"):
            socket.unlink(missing_ok=True)


def _find(name: str, directory: Path | None) -> tuple[Path | None, str | None]:
    """Directory and id of a lab, from its own facts, or from the registry if its directory is gone or not named."""
    if directory and (directory / layout.FACTS).exists():
        with contextlib.suppress(LabError, KeyError):
            facts = layout.load(directory)
            if facts["name"] == name:
                return directory, str(facts["id"])
    entry = _registry_entry(name)
    if entry:
        return Path(entry["directory"]), entry["id"]
    return directory, LabPlan(name, directory).lab_id() if directory else None


def _registry_entry(name: str) -> dict[str, str] | None:
    try:
        value: dict[str, str] = json.loads((REGISTRY / f"{name}.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return value


def _files(directory: Path) -> list[Path]:
    return [directory / name for name in layout.OWN_FILES if (directory / name).exists()]


def _delete_files(directory: Path) -> None:
    for path in _files(directory):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    with contextlib.suppress(OSError):
        directory.rmdir()  # stays if somebody keeps files of their own in it


def _record(directory: Path, pid: int) -> None:
    if process := ProcessId.of(pid):
        known = [[entry.pid, entry.started] for entry in _recorded(directory)]
        _write(directory / layout.PROCESSES, [*known, [process.pid, process.started]])


def _recorded(directory: Path) -> list[ProcessId]:
    try:
        return [ProcessId(pid, started) for pid, started in json.loads((directory / layout.PROCESSES).read_text())]
    except (FileNotFoundError, ValueError):
        return []


def _write(path: Path, value: Any) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(path)


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    with (directory / "lab.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(f"another `freehold lab up` works on {directory}", remedy="Wait until it is done.") from None
        yield
