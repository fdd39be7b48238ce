"""`python -m freehold_lab`: a rack in a box."""

import argparse
import dataclasses
import errno
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from freehold_lab import accelerator, control, faults, layout, network, rack, rogue, terminal
from freehold_lab.errors import LabError, UsageError
from freehold_lab.hardware import Faults
from freehold_lab.layout import LabPlan
from freehold_lab.preflight import check_host, check_root
from freehold_lab.progress import Progress

EXIT_FAILED, EXIT_USAGE, EXIT_UNHEALTHY, EXIT_INTERRUPTED = 1, 2, 3, 130

PROG = "freehold lab"  # how people call it; `python -m freehold_lab` is the same program
EPILOG = """exit status: 0 done; 1 failed, with the reason; 2 wrong usage; 3 `status` found something broken;
`exec` and `ssh` pass on that of the command.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, remedy=f"See `{self.prog} --help`.")


def _as_json(words: list[str]) -> bool:
    """Whether the words ask for JSON, also if they cannot be understood."""
    return any(word in ("-ojson", "--output=json") for word in words) or any(
        word in ("-o", "--output") and value == "json" for word, value in pairwise(words)
    )


def _parser() -> argparse.ArgumentParser:
    where = _Parser(add_help=False)
    where.add_argument("--dir", type=Path, default=Path("lab"), help="directory of the lab (default: ./lab)")
    shown, hidden = _Parser(add_help=False), _Parser(add_help=False)
    for parent, text in ((shown, "how to print the answer (default: table)"), (hidden, argparse.SUPPRESS)):
        parent.add_argument("-o", "--output", choices=["table", "json"], default="table", help=text)
    parser = _Parser(
        prog=PROG,
        description="A rack in a box: servers, BMCs, networks and faults.",
        epilog=_examples("up --servers 2", "fault bmc-slow server-1 5", "wan cut", "down") + "\n" + EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], what: str, *examples: str, answers: bool = True
    ) -> argparse.ArgumentParser:
        """`answers`: it has an answer of its own; the others pass on a terminal or a command's output as it is."""
        sub = commands.add_parser(
            name,
            parents=[where, shown if answers else hidden],
            help=what,
            description=what,
            epilog=_examples(*examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run, answers=answers)
        return sub

    up = command("up", _up, "start a lab; ready when every BMC answers", "up --servers 2")
    up.add_argument("--name", default="lab", help="name of the lab, part of its namespaces' names (default: lab)")
    up.add_argument("--servers", type=int, default=1, help="how many servers (default: 1)")
    up.add_argument("--memory", type=int, default=1024, metavar="MIB", help="memory of a server (default: 1024)")
    up.add_argument("--cores", type=int, default=1, help="cores of a server (default: 1)")
    up.add_argument(
        "--no-tpm", action="append", default=[], metavar="SERVER", help="its board has no TPM; may be given again"
    )
    up.add_argument("--tcg", action="store_true", help="emulate the processors, without asking whether KVM works")
    down = command("down", _down, "remove a lab and all it made", "down", "down --name lab --keep")
    down.add_argument("--name", help="name of the lab, if its directory is lost")
    down.add_argument("--keep", action="store_true", help="keep the files: disks, TPMs, BMC settings, logs")
    command("status", _status, "how each server is, and the uplink", "status -o json")
    fault = command(
        "fault",
        _fault,
        "inject a fault: NAME SERVER VALUE, `list`, or `clear [SERVER]`",
        "fault list",
        "fault bmc-slow server-1 5",
        "fault tampered-firmware server-1",
        "fault clear",
    )
    fault.add_argument("name", help=f"list, clear, {', '.join([*faults.SWITCHES, *faults.ACTIONS])}")
    fault.add_argument("arguments", nargs="*", metavar="SERVER|VALUE")
    console = command("console", _console, "join the serial console of a server", "console server-1", answers=False)
    console.add_argument("server")
    console.add_argument("--log", action="store_true", help="print what it has said so far instead")
    power = command("power", _power, "press the button at the rack: on, off, reset", "power server-1 reset")
    power.add_argument("server")
    power.add_argument("to", choices=["on", "off", "reset"])
    ssh = command(
        "ssh",
        _ssh,
        "ssh to a server from the operator's host in production: ssh SERVER [-- COMMAND]",
        "ssh server-1 --user ops --identity lab/ssh-key -- uptime",
        answers=False,
    )
    ssh.add_argument("server")
    ssh.add_argument("--user", default="root")
    ssh.add_argument("--identity", type=Path, help="private key")
    execute = command(
        "exec",
        _exec,
        "run a command in a namespace: exec controller -- COMMAND",
        "exec controller -- curl -k https://172.30.1.11/redfish/v1",
        answers=False,
    )
    execute.add_argument("role")
    wan = command("wan", _wan, "the path to the world outside", "wan cut", "wan counters -o json")
    wan.add_argument("action", choices=["cut", "restore", "counters", "reset-counters"])
    return parser


def _examples(*lines: str) -> str:
    return "\n".join(["Example:", *(f"  {PROG} {line}" for line in lines)]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    # What follows `--` is somebody else's command line: argparse must not look for options in it.
    at = given.index("--") if "--" in given else len(given)
    as_json = _as_json(given[:at])
    try:
        options = _parser().parse_args(given[:at], argparse.Namespace(rest=given[at + 1 :]))
        if as_json and not options.answers:
            raise UsageError(f"{options.command} passes on what it runs as it is: it has no JSON")
        return int(options.run(options))
    except LabError as exc:
        return _fail(exc, as_json=as_json)
    except PermissionError as exc:
        denied = LabError(f"{exc.filename}: permission denied", remedy="Run the same command with sudo.")
        return _fail(denied, as_json=as_json)
    except OSError as exc:
        full = exc.errno == errno.ENOSPC
        what = f"{exc.filename or 'the lab'}: {exc.strerror or exc}"
        return _fail(LabError(what, remedy="Make room, or use another --dir." if full else None), as_json=as_json)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED


def _fail(error: LabError, *, as_json: bool) -> int:
    """As every command of Freehold says it: one object, or a sentence and what to do. Returns the exit status."""
    code = EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    if as_json:
        parts = {"what": error.what, "server": error.server, "expected": None, "remedy": error.remedy}
        sys.stderr.write(json.dumps({"error": parts}) + "\n")
        return code
    subject = f"server {error.server}: {error.what}" if error.server else error.what
    sys.stderr.write(f"freehold: {subject}\n" + (f"  what to do: {error.remedy}\n" if error.remedy else ""))
    return code


def _show(options: argparse.Namespace, value: Any, text: str) -> int:
    sys.stdout.write((json.dumps(value, indent=1) if options.output == "json" else text) + "\n")
    return 0


def _facts(options: argparse.Namespace) -> dict[str, Any]:
    check_root()
    return layout.load(options.dir)


# ---- one function a command
def _up(options: argparse.Namespace) -> int:
    progress = Progress(quiet=options.output == "json")
    plan = LabPlan(
        *(options.name, options.dir.resolve(), options.servers, options.memory, options.cores),
        without_tpm=tuple(options.no_tpm),
    )
    if strangers := set(plan.without_tpm) - {layout.server_name(number) for number in range(1, plan.servers + 1)}:
        raise UsageError(f"the lab will have no {', '.join(sorted(strangers))}", remedy="Its servers are server-1, ….")
    check_host(plan)
    if not options.tcg:
        with progress.step("trying KVM"):
            plan = dataclasses.replace(plan, kvm=accelerator.kvm_works())
        if not plan.kvm and options.output != "json":
            sys.stderr.write("lab: KVM does not work here: the processors are emulated (TCG)\n")
    facts = rack.up(plan, progress)
    lines = [
        f"{s['name']}  BMC https://{s['bmc_address']}  {s['factory_user']} / {s['factory_password']}"
        for s in facts["servers"]
    ]
    return _show(
        options, facts, "\n".join([f"lab {plan.name} is up; facts in {plan.directory / layout.FACTS}", *lines])
    )


def _down(options: argparse.Namespace) -> int:
    check_root()
    name = options.name
    if not name:
        name = layout.load(options.dir)["name"] if (options.dir / layout.FACTS).exists() else "lab"
    found = rack.down(name, options.dir.resolve(), keep=options.keep, progress=Progress(quiet=options.output == "json"))
    return _show(
        options, {"name": name, "found": found}, f"lab {name} is down" if found else f"there was no lab {name}"
    )


def _status(options: argparse.Namespace) -> int:
    value = rack.status(_facts(options))
    lines = [f"lab {value['name']} in {value['directory']}"]
    for row in value["servers"]:
        state = (
            f"power {row['power']}, BMC {row['bmc']}, Secure Boot {'on' if row['secure_boot'] else 'off'}"
            f", boot {row['override']}, BIOS {row['bios_version']}, faults {row['faults'] or 'none'}"
            if row["alive"]
            else row["problem"]
        )
        lines.append(f"{row['name']}  {row['bmc_address']}  {state}")
    if wan := value["wan"]:
        lines.append(
            f"wan {'connected' if wan['connected'] else 'cut'}; {wan['left']} packets left, {wan['lookups']} look-ups"
        )
    if value["missing_namespaces"]:
        lines.append(f"missing: {', '.join(value['missing_namespaces'])}")
    _show(options, value, "\n".join(lines))
    healthy = not value["missing_namespaces"] and all(row["alive"] for row in value["servers"])
    return 0 if healthy else EXIT_UNHEALTHY


def _fault(options: argparse.Namespace) -> int:
    facts = _facts(options)
    name, arguments = options.name, options.arguments
    if name == "list":
        return _fault_list(options, facts)
    if name == faults.ROGUE:
        return _rogue(options, facts, arguments)
    if name == faults.TAMPERED_IMAGE:
        if not arguments or not Path(arguments[0]).is_file():
            raise UsageError("fault tampered-image needs the path of an image", remedy="The same path again undoes it.")
        offset = faults.tamper(Path(arguments[0]))
        return _show(options, {"image": arguments[0], "offset": offset}, f"{arguments[0]}: byte {offset} is another")
    if name == "clear":
        servers = [layout.server(facts, arguments[0])] if arguments else facts["servers"]
        if not arguments:
            rogue.turn_off(layout.plan_of(facts))
        for server in servers:
            _ask(server, "fault-clear")
        return _show(options, {}, "no faults")
    if name not in (*faults.SWITCHES, *faults.ACTIONS):
        raise UsageError(f"there is no fault {name!r}", remedy="`freehold lab fault list` has them all.")
    if not arguments:
        raise UsageError(f"fault {name} needs a server", remedy=f"For example: `freehold lab fault {name} server-1 …`.")
    server, value = layout.server(facts, arguments[0]), arguments[1] if len(arguments) > 1 else None
    if name in faults.AT_ONCE:
        result = _ask(server, name)
    elif name == "bmc-reboot":
        result = _ask(server, "bmc-reboot", seconds=value or "20")
    elif value is None:
        raise UsageError(f"fault {name} needs a value", remedy=f"It takes {faults.SWITCHES[name][2]}.")
    else:
        faults.switch(Faults(), name, value)  # a value that cannot be is a matter of usage, not of the machine
        result = _ask(server, "fault-set", name=name, value=value)
    return _show(options, result, f"{server['name']}: {name} {value or ''}".rstrip())


def _fault_list(options: argparse.Namespace, facts: dict[str, Any]) -> int:
    on = {row["name"]: row["faults"] for row in rack.status(facts)["servers"] if row["alive"]}
    rows = faults.listed(on, rogue=rogue.is_on(layout.plan_of(facts)))
    width = max(len(row["fault"]) for row in rows)
    lines = []
    for row in rows:
        where = ", ".join(f"{server}: {value}" for server, value in row["on"].items())
        lines.append(f"{row['fault']:<{width}}  {row['takes']}" + (f"  [on: {where}]" if where else ""))
    return _show(options, {"items": rows}, "\n".join(lines))


def _rogue(options: argparse.Namespace, facts: dict[str, Any], arguments: list[str]) -> int:
    if arguments not in (["on"], ["off"]):
        raise UsageError("fault rogue-dhcp takes on or off")
    plan = layout.plan_of(facts)
    if arguments == ["on"]:
        rogue.turn_on(plan)
    else:
        rogue.turn_off(plan)
    return _show(options, {"rogue-dhcp": rogue.is_on(plan)}, f"rogue DHCP {arguments[0]}")


def _power(options: argparse.Namespace) -> int:
    server = layout.server(_facts(options), options.server)
    result = _ask(server, "power", to=options.to)
    return _show(options, result, f"{server['name']}: power {result['power']}")


def _console(options: argparse.Namespace) -> int:
    server = layout.server(_facts(options), options.server)
    if options.log:
        log = Path(server["console_log"])
        sys.stdout.write(log.read_text(errors="replace") if log.exists() else "")
    else:
        terminal.attach(server)
    return 0


def _ssh(options: argparse.Namespace) -> int:
    facts = _facts(options)
    return terminal.ssh(facts, layout.server(facts, options.server), options.user, options.identity, options.rest)


def _exec(options: argparse.Namespace) -> int:
    return terminal.execute(_facts(options), options.role, options.rest)


def _wan(options: argparse.Namespace) -> int:
    wan = network.Wan(layout.plan_of(_facts(options)).layout)
    {"cut": wan.cut, "restore": wan.restore, "reset-counters": wan.reset_counters}.get(options.action, wan.counters)()
    value = {"connected": wan.is_connected(), **wan.counters()}
    return _show(options, value, "\n".join(f"{key}: {count}" for key, count in value.items()))


def _ask(server: dict[str, Any], op: str, **arguments: Any) -> Any:
    return control.request(Path(server["control_socket"]), op, server=server["name"], **arguments)
