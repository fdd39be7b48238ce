"""Entry point: the table of commands, and how failures become messages and exit codes."""

import importlib
import json
import sys

import click

EXIT_CODES = """\b
Exit codes:
  0  done
  1  failed; the message says what is wrong and what to do; `audit`: not every server could be audited
  2  wrong usage, or a document that is not valid
  3  the answer is no: `diff` or `baseline diff` found differences, `verify` refused, `audit` has findings,
     `attest`: in quarantine, `prove`: something left, `lab status` found something broken,
     `vault status`: it does not open, `vault audit` has findings
  130  interrupted"""

# command -> (module, attribute, one line of help). The line stands here so that `--help` imports nothing else.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "approval": ("operators", "approval", "What two people are asked to approve, and their signatures."),
    "apply": ("documents", "apply", "Declare what is in YAML documents."),
    "attest": ("attestation", "attest", "Make a server prove now what it booted."),
    "audit": ("audit", "audit", "How open the BMCs stand, and what their ports really answer."),
    "baseline": ("baseline", "baseline", "Firmware reference values, and who approved them."),
    "completion": ("shell", "completion", "Print the shell completion script."),
    "confirm": ("intents", "confirm", "Confirm the key that a BMC showed at first contact."),
    "console": ("shell", "console", "Attach to a server's serial console."),
    "credential": ("credentials", "credential", "BMC credentials into the vault; out of it with two people's word."),
    "decommission": ("intents", "decommission", "Sanitize a server, certify it, give it back to the pool."),
    "delete": ("documents", "delete", "Take a resource out that nothing needs."),
    "depot": ("depot", "depot", "Firmware and images: imported, signed by two operators, verified."),
    "describe": ("resources", "describe", "Everything that is known about one server."),
    "diff": ("documents", "diff", "What `apply` would change."),
    "events": ("resources", "events", "What happened, oldest first."),
    "evidence": ("evidence", "evidence", "Export the transparency log as a bundle."),
    "get": ("resources", "get", "List resources, or show one."),
    "image": ("images", "image", "Build or import OS images and the agent."),
    "lab": ("lab", "lab", "A rack in a box: real firmware, TPMs, BMCs and networks."),
    "operator": ("operators", "operator", "The people whose signatures count."),
    "pause": ("intents", "pause", "Leave a server alone until it is resumed."),
    "pki": ("pki", "pki", "The site's certificate authorities: root ceremony, list, revoke."),
    "prove": ("prove", "prove", "Rebuild a dead server with the outside cut off, and prove it."),
    "release": ("intents", "release", "Let a server out of quarantine."),
    "resume": ("intents", "resume", "Go on with a paused server."),
    "retire": ("intents", "retire", "Decommission a server for good."),
    "rotate": ("rotation", "rotate", "Give BMCs new passwords now."),
    "secureboot": ("secureboot", "secureboot", "The keys that decide what servers start; rotate, revoke."),
    "serve": ("serve", "serve", "Run the controller."),
    "vault": ("vault", "vault", "The site's secrets: their key, and who can recover them."),
    "verify": ("evidence", "verify", "Verify an evidence bundle offline."),
    "watch": ("resources", "watch", "Follow servers and events live."),
}


class LazyGroup(click.Group):
    """Imports a command's module when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"freehold.interfaces.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][2]) for name in sorted(COMMANDS)])


@click.command(
    cls=LazyGroup,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="freehold", prog_name="freehold")
def cli() -> None:
    """Freehold turns physical servers into sovereign infrastructure: it takes over each BMC, rebuilds the server from a
    blank disk with the outside world cut off, proves by TPM what booted, and gives it back clean.

    \b
    Example:
      freehold lab up --servers 2
      freehold serve --lab ./lab &
      freehold apply -f lab/inventory.yaml
      freehold watch
    """


def main() -> None:
    """Run the command line; every failure ends in one message for a person (or one JSON object) and an exit code."""
    from freehold.model.errors import FreeholdError

    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        code = exit_.exit_code
    except click.ClickException as usage:
        if _as_json():
            _show({"what": usage.format_message(), "server": None, "expected": None, "remedy": None}, "")
        else:
            usage.show()
        code = usage.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = 130
    except FreeholdError as error:
        _show(error.to_dict(), f"freehold: {error}")
        code = getattr(error, "exit_code", 1)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        what = f"{error.strerror or error}{where}"
        _show({"what": what, "server": None, "expected": None, "remedy": None}, f"freehold: {what}")
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _show(parts: dict[str, str | None], text: str) -> None:
    click.echo(json.dumps({"error": parts}) if _as_json() else text, err=True)


def _as_json() -> bool:
    from freehold.interfaces.cli.common import wants_json

    return wants_json(sys.argv[1:])


if __name__ == "__main__":
    main()
