"""The operator's terminal on a machine's serial console, or a command inside the lab."""

import os
import select
import shutil
import subprocess
import sys
import termios
import tty
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freehold_lab import control, network
from freehold_lab.errors import LabError
from freehold_lab.rack import environment

ESCAPE = b"\x1d"  # Ctrl-]


def attach(server: dict[str, Any]) -> None:
    """Join the console until Ctrl-] or until the BMC process ends."""
    try:
        connection = control.connect(Path(server["console_socket"]), seconds=5)
    except OSError as exc:
        raise LabError(
            f"its console does not answer ({exc})", server=server["name"], remedy="See `freehold lab status`."
        ) from exc
    connection.settimeout(None)
    keyboard = sys.stdin.fileno()
    sys.stderr.write(f"console of {server['name']}; Ctrl-] leaves it\n")
    saved = termios.tcgetattr(keyboard) if os.isatty(keyboard) else None
    try:
        if saved:
            tty.setraw(keyboard)
        sources = [connection.fileno(), keyboard]
        while True:
            ready, _, _ = select.select(sources, [], [])
            if keyboard in ready:
                typed = os.read(keyboard, 1024)
                if ESCAPE in typed:
                    return
                if typed:
                    connection.sendall(typed)
                else:
                    sources.remove(keyboard)  # end of a piped input: go on showing the machine
            if connection.fileno() in ready:
                data = connection.recv(65536)
                if not data:
                    return
                os.write(sys.stdout.fileno(), data)
    finally:
        if saved:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, saved)
        connection.close()


def execute(facts: dict[str, Any], role: str, command: Sequence[str]) -> int:
    """Run a command in the namespace of a role; its exit status, 127 if there is no such program."""
    if role not in facts["namespaces"]:
        raise LabError(f"the lab has no namespace {role!r}", remedy=f"It has {', '.join(facts['namespaces'])}.")
    if not command:
        raise LabError("no command was given", remedy=f"For example: `freehold lab exec {role} -- ip address`.")
    inside = network.inside(facts["namespaces"][role])
    return subprocess.run([*inside, *command], env=environment(facts["id"]), check=False).returncode


def ssh(facts: dict[str, Any], server: dict[str, Any], user: str, identity: Path | None, command: Sequence[str]) -> int:
    """ssh to the server's production address from the client's host."""
    if not shutil.which("ssh"):
        raise LabError("ssh is not installed", remedy="Run `apt-get install --no-install-recommends openssh-client`.")
    known = Path(facts["directory"]) / "known_hosts"
    options = ["-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=accept-new", "-o", "ConnectTimeout=10"]
    if identity:
        options += ["-o", "IdentitiesOnly=yes", "-i", str(identity)]
    return execute(facts, "client", ["ssh", *options, f"{user}@{server['production_address']}", *command])
