"""`freehold completion` and `freehold console`."""

import os
import sys
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from freehold.interfaces.cli.common import output_option, run, show_json, site_store, state_option
from freehold.model.errors import FreeholdError
from freehold.model.resources import ServerSpec


class NoConsoleError(FreeholdError):
    """The console cannot be joined from here."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@output_option()
def completion(shell: str, output: str) -> None:
    """Print the completion script of a SHELL: bash, zsh or fish.

    \b
    Example:
      freehold completion bash > ~/.local/share/bash-completion/completions/freehold
      freehold completion zsh > ~/.zfunc/_freehold
      freehold completion fish > ~/.config/fish/completions/freehold.fish
    """
    from freehold.interfaces.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    source = kind(cli, {}, "freehold", "_FREEHOLD_COMPLETE").source()
    if output == "json":
        show_json({"shell": shell, "script": source})
    else:
        click.echo(source)


@click.command()
@click.argument("server")
@click.option("--lab", type=click.Path(file_okay=False, path_type=Path), help="The lab that the server is in.")
@state_option
@output_option()
def console(server: str, lab: Path | None, state: Path, output: str) -> None:
    """Attach to the serial console of a SERVER; Ctrl-] leaves it. For servers of a lab.

    \b
    Example:
      freehold console server-1 --lab ./lab
    """
    if lab is not None and output == "json":
        raise click.UsageError("a console is for people: it has no JSON")
    if lab is not None:
        if not (lab / "lab.json").exists():
            raise NoConsoleError(f"there is no lab in {lab}", remedy="say where it is: `freehold lab up --dir DIR`")
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", "freehold_lab", "console", server, "--dir", str(lab)])  # noqa: S606
    spec = run(_spec(state, server))
    raise NoConsoleError(
        "serial-over-LAN is not there yet: Freehold cannot attach to the console of a server outside a lab",
        server=server,
        remedy=f"use the console of its BMC at https://{spec.bmc.address}/, or in a lab: --lab DIR",
    )


async def _spec(state: Path, server: str) -> ServerSpec:
    async with site_store(state) as store:
        spec = (await store.get("Server", server)).resource.spec
        assert isinstance(spec, ServerSpec)
        return spec
