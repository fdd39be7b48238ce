"""`freehold lab`: passes on to the rack in a box, a program of its own, and writes Freehold's inventory of it."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from freehold.interfaces.cli.common import wants_json
from freehold.model.errors import FreeholdError
from freehold.root_of_trust import operator_keys

INVENTORY, SSH_KEY = "inventory.yaml", "ssh-key"
OPERATORS = ("alice", "bob", "carol")
DRIFT_INTERVAL = "10s"


def facts_of(directory: Path) -> dict[str, Any]:
    """`lab.json`: what the lab says of itself."""
    try:
        facts: dict[str, Any] = json.loads((directory / "lab.json").read_text())
    except FileNotFoundError:
        raise FreeholdError(
            f"there is no lab in {directory}", remedy="start one with `freehold lab up`, or say where it is with --lab"
        ) from None
    return facts


def lab_command(*arguments: str, directory: Path) -> list[str]:
    """The command line of the lab's own program."""
    return [sys.executable, "-m", "freehold_lab", arguments[0], "--dir", str(directory), *arguments[1:]]


def ask(*arguments: str, directory: Path) -> dict[str, Any]:
    """Run a lab command and read its JSON. Raises `FreeholdError` with the lab's own words."""
    command = lab_command(*arguments, "--output", "json", directory=directory)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise lab_error(f"lab {arguments[0]}", done)
    answer = json.loads(done.stdout) if done.stdout.strip() else {}
    return answer if isinstance(answer, dict) else {"value": answer}


def lab_error(what: str, done: subprocess.CompletedProcess[str]) -> FreeholdError:
    """What the lab said when it was asked for JSON, as an error of ours."""
    last = done.stderr.strip().rpartition("\n")[2]
    try:
        error = json.loads(last)["error"]
    except (ValueError, KeyError, TypeError):
        return FreeholdError(f"{what}: {last or f'exit status {done.returncode}'}")
    return FreeholdError(f"{what}: {error['what']}", server=error["server"], remedy=error["remedy"])


def write_inventory(directory: Path, facts: dict[str, Any]) -> Path:
    """The lab as Freehold documents: what a person would write for a rack, with the factory labels' credentials."""
    key = directory / SSH_KEY
    if not key.exists():
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "freehold-lab", "-f", str(key)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    public = key.with_suffix(".pub").read_text().strip()
    path = directory / INVENTORY
    path.write_text(yaml.safe_dump_all(documents(facts, public), sort_keys=False))
    return path


def operator_keys_of(directory: Path) -> dict[str, Path]:
    """The private keys of the lab's three operators, made once. On a real site they are three people, each with a key
    on a medium of their own; in a lab all of them are whoever runs it."""
    folder = directory / "operators"
    folder.mkdir(mode=0o700, exist_ok=True)
    paths = {name: folder / f"{name}.key" for name in OPERATORS}
    for path in paths.values():
        if not path.exists():
            operator_keys.create(path, None)
    return paths


def forget_inventory(directory: Path) -> None:
    """Remove what `write_inventory` and `operator_keys_of` made, and the directory if nothing else is in it."""
    key, people = directory / SSH_KEY, directory / "operators"
    shutil.rmtree(people, ignore_errors=True)
    for path in (directory / INVENTORY, key, key.with_suffix(".pub")):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.rmdir()


def documents(facts: dict[str, Any], ssh_key: str) -> list[dict[str, Any]]:
    """The documents, in the order in which a reader wants them. Pure."""

    def document(kind: str, name: str, **spec: Any) -> dict[str, Any]:
        return {"apiVersion": "freehold/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}

    networks = facts["networks"]
    lines = [document("Site", facts["name"], controller=facts["controller"])]
    for role in ("oob", "provisioning", "production"):
        prefix, gateway = networks[role]["prefix"], networks[role]["gateway"]
        spec = {"role": role, "prefix": prefix} | ({"gateway": gateway} if gateway else {})
        if role == "provisioning":
            base = prefix.rsplit(".", 1)[0]
            spec["dhcpRange"] = {"start": f"{base}.100", "end": f"{base}.199"}
        lines.append(document("Network", role, **spec))
    remediation = {"bmc-account": "remediate", "secure-boot": "remediate"}
    lines.append(document("Policy", "lab", driftInterval=DRIFT_INTERVAL, remediation=remediation))
    lines.append(document("Image", "debian-12", version="12", builtin="debian-12"))
    for server in facts["servers"]:
        nics = [
            {"mac": nic["mac"], "network": nic["network"]}
            | ({"address": server["production_address"]} if nic["network"] == "production" else {})
            for nic in server["nics"]
        ]
        credential = {"username": server["factory_user"], "password": server["factory_password"]}
        bmc = {"address": server["bmc_address"], "credential": credential}
        lines.append(document("Server", server["name"], bmc=bmc, nics=nics, policy="lab"))
        lines.append(
            document(
                "Assignment",
                f"{server['name']}-debian",
                server=server["name"],
                image="debian-12",
                hostname=server["name"],
                users=[{"name": "ops", "sshKeys": [ssh_key]}],
            )
        )
    return lines


LAB_COMMANDS = ("up", "down", "status", "fault", "console", "power", "ssh", "exec", "wan")
CHOICES: dict[tuple[str, int], tuple[str, ...]] = {
    ("power", 2): ("on", "off", "reset"),
    ("wan", 1): ("cut", "restore", "counters", "reset-counters"),
    ("fault", 1): ("list", "clear"),
}
"""Words that the lab knows, by command and place: to complete them must not cost the start of another program."""


def _complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Commands; what they take; servers and namespaces of the lab that is named, or is in `./lab`."""
    words = list(ctx.params.get("arguments") or ())
    directory = _directory(words)
    plain = [word for at, word in enumerate(words) if not word.startswith("-") and words[at - 1 : at] != ["--dir"]]
    command, place = (plain or [""])[0], len(plain)
    if not plain:
        choices: Iterable[str] = LAB_COMMANDS
    elif (command, place) in (("console", 1), ("power", 1), ("ssh", 1), ("fault", 2)):
        choices = (path.name for path in sorted((directory / "servers").glob("*")))
    elif (command, place) == ("exec", 1) and (directory / "lab.json").exists():
        choices = facts_of(directory)["namespaces"]
    else:
        choices = CHOICES.get((command, place), ())
    return [word for word in choices if word.startswith(incomplete)]


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, shell_complete=_complete)
def lab(arguments: tuple[str, ...]) -> None:
    """A rack in a box: up, down, status, fault, console, power, ssh, exec, wan. `freehold lab --help` lists all.

    \b
    Example:
      freehold lab up --servers 2
    """
    done = subprocess.run([sys.executable, "-m", "freehold_lab", *arguments], check=False).returncode
    if done == 0 and arguments[:1] == ("up",) and "--help" not in arguments and "-h" not in arguments:
        directory = _directory(arguments)
        path, keys = write_inventory(directory, facts_of(directory)), operator_keys_of(directory)
        if not wants_json(arguments):
            click.echo(f"inventory: {path}")
            click.echo(f"operators: {', '.join(str(each) for each in keys.values())}")
            click.echo(f"next:      freehold serve --lab {directory} &  freehold apply -f {path}")
    raise click.exceptions.Exit(done)


def _directory(arguments: Sequence[str]) -> Path:
    for at, argument in enumerate(arguments):
        if argument.startswith("--dir="):
            return Path(argument.partition("=")[2])
        if argument == "--dir" and at + 1 < len(arguments):
            return Path(arguments[at + 1])
    return Path("lab")
