"""Processes of a lab: run a tool to its end, start a child that dies with its parent, find and end what is left.

Every process that a lab starts carries `FREEHOLD_LAB_ID` in its environment and children inherit it, so that what a
crash left behind is found in /proc without any record.
"""

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from freehold_lab.errors import LabError

LAB_ID = "FREEHOLD_LAB_ID"
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")


def run(*command: object, stdin: str | None = None, check: bool = True) -> str:
    """Run a tool to its end and return what it wrote to stdout."""
    arguments = [str(part) for part in command]
    try:
        done = subprocess.run(arguments, input=stdin, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError as exc:
        raise LabError(
            f"the program {arguments[0]} is not installed",
            remedy="Run `python -m freehold_lab up` to see the packages.",
        ) from exc
    if check and done.returncode:
        raise LabError(
            f"`{' '.join(arguments)}` ended with code {done.returncode}: {(done.stderr or done.stdout).strip()[-800:]}"
        )
    return done.stdout


async def start(*command: str, directory: Path, log: str, talks: bool = False) -> asyncio.subprocess.Process:
    """A child that works in `directory` and logs to a file there. `talks`: its standard input and output are pipes, and
    the log has the rest; otherwise it has no input."""
    with (directory / log).open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *command,
            cwd=directory,
            stdin=asyncio.subprocess.PIPE if talks else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if talks else output,
            stderr=output,
        )


async def end(*processes: asyncio.subprocess.Process | None) -> None:
    """Kill children of ours and wait until they are gone."""
    for process in processes:
        if process:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def tail(log: Path) -> str:
    """The last words of a child, for an error."""
    return log.read_text(errors="replace").strip()[-400:] or "it wrote nothing"


@dataclass(frozen=True)
class ProcessId:
    """A process beyond doubt: pids are reused, a pid with its start time (clock ticks since boot) is not."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> "ProcessId | None":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            return None
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    def alive(self) -> bool:
        return ProcessId.of(self.pid) == self

    def end(self, how: signal.Signals) -> None:
        """Signal it if it is still the same process; a pidfd keeps the pid from being reused in between."""
        try:
            handle = os.pidfd_open(self.pid)
        except OSError as exc:
            if exc.errno == errno.ESRCH:
                return
            raise
        try:
            if self.alive():
                signal.pidfd_send_signal(handle, how)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)


def with_lab_id(lab_id: str) -> list[ProcessId]:
    """All processes, of any parent, that carry the lab's id."""
    needle = f"{LAB_ID}={lab_id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if needle in environment and (process := ProcessId.of(int(entry.name))):
            found.append(process)
    return found


def ancestry() -> set[int]:
    """This process and those above it: never to be ended by a clean-up that they asked for."""
    pids, pid = set(), os.getpid()
    while pid > 1:
        pids.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            break
    return pids


def end_all(processes: Iterable[ProcessId], *, patience: float = 3.0) -> None:
    """Ask politely, wait `patience` seconds for all together, then kill."""
    spared = ancestry()
    left = [process for process in processes if process.pid not in spared]
    for how, limit in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        for process in left:
            process.end(how)
        deadline = time.monotonic() + limit
        while (left := [process for process in left if process.alive()]) and time.monotonic() < deadline:
            time.sleep(0.05)
        if not left:
            return
    raise LabError(
        f"processes {', '.join(str(process.pid) for process in left)} do not end, not even by SIGKILL",
        remedy="Look at them with `ps -o pid,stat,wchan,args`; they wait for the kernel.",
    )
