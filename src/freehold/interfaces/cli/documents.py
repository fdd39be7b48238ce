"""`freehold apply`, `diff` and `delete`: YAML documents into the store, compared with it, and out again."""

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import click

from freehold.interfaces.cli.common import exits, output_option, printable, run, show_json, site_store, state_option
from freehold.interfaces.cli.resources import Kind
from freehold.model.documents import DocumentError, load_documents, validate_set
from freehold.model.errors import FreeholdError
from freehold.model.resources import Resource, ServerSpec
from freehold.orchestration.changes import Change, FieldChange
from freehold.orchestration.opening import open_vault
from freehold.orchestration.passwords import set_aside
from freehold.orchestration.store import Store
from freehold.root_of_trust import site_vault

SUFFIXES = (".yaml", ".yml", ".json")
MASK = "********"

file_option = click.option(
    "-f",
    "--file",
    "files",
    metavar="FILE|DIR|-",
    multiple=True,
    required=True,
    help="Documents: a file, a directory (all .yaml, .yml and .json in it), or - for standard input. Repeatable.",
)


class NoSuchPathError(FreeholdError):
    """A path on the command line leads nowhere."""

    exit_code = 2


@click.command()
@file_option
@click.option("--dry-run", is_flag=True, help="Check everything, say what would change, change nothing.")
@state_option
@output_option()
def apply(files: tuple[str, ...], dry_run: bool, state: Path, output: str) -> None:
    """Declare what is in YAML documents. All of it is checked first; all of it is written, or nothing.

    Documents that are not named stay as they are: `apply` never deletes.

    \b
    Example:
      freehold apply -f rack.yaml -f servers/
      freehold get policies -o yaml | freehold apply --dry-run -f -
    """
    changes = run(declare(files, state, dry_run=dry_run))
    if output == "json":
        show_json({"items": changes, "dry_run": dry_run})
        return
    for change in changes:
        click.echo(f"{change.kind} {change.name} {change.action}" + (" (dry run)" if dry_run else ""))
        for line in map(describe_field, change.fields):
            click.echo(line)


@click.command()
@file_option
@state_option
@output_option()
def diff(files: tuple[str, ...], state: Path, output: str) -> None:
    """What `apply` would change, field by field. Exit code 0: nothing; 3: something. Passwords are masked.

    \b
    Example:
      freehold diff -f rack.yaml || echo "not as declared"
    """
    changes = [change for change in run(declare(files, state, dry_run=True)) if change.action != "unchanged"]
    if output == "json":
        show_json({"items": changes})
    for change in changes if output != "json" else ():
        sign = "+" if change.action == "created" else "~"
        click.echo(f"{sign} {change.kind} {change.name}" + (" (new)" if change.action == "created" else ""))
        for line in map(describe_field, change.fields):
            click.echo(line)
    raise click.exceptions.Exit(3 if changes else 0)


@click.command()
@click.argument("kind", type=Kind())
@click.argument("name")
@state_option
@output_option()
def delete(kind: str, name: str, state: Path, output: str) -> None:
    """Take a resource out that nothing needs any more. A server goes only with a destruction certificate or under a
    signed waiver, an Assignment only when nobody runs under it. Its BMC's password is kept apart in the vault:
    `freehold credential break-glass` still shows it, and no server of the same name gets it.

    
    Example:
      freehold delete assignment web-1
      freehold delete server server-1
    """

    async def work() -> None:
        async with site_store(state) as store:
            vault = open_vault(state) if kind == "Server" and site_vault.exists(state) else None
            await store.delete(kind, name)
            if vault is not None:
                set_aside(vault, name, time.time())

    run(work())
    if output == "json":
        show_json({"kind": kind, "name": name, "action": "deleted"})
    else:
        click.echo(f"{kind} {name} deleted")


async def declare(files: Iterable[str], state: Path, *, dry_run: bool) -> list[Change]:
    """Read, check and (unless `dry_run`) write the documents. Raises `DocumentError` with exit code 2."""
    with exits(2, DocumentError):
        wanted = [resource for name in files for resource in read(name)]
        if not wanted:
            raise DocumentError([f"{', '.join(files)}: no documents"], remedy="give a file that declares something")
        if dry_run and not (state / "freehold.db").exists():  # nothing is declared, and a dry run founds no site
            validate_set(wanted)
            return [Change(each.kind, each.name, "created") for each in wanted]
        if not dry_run:
            await (await Store.open(state / "freehold.db")).close()
        async with site_store(state) as store:
            return await store.apply(wanted, dry_run=dry_run)


def read(name: str) -> list[Resource]:
    """The documents of a file, a directory or standard input."""
    if name == "-":
        return documents(sys.stdin.buffer.read(), "standard input")
    path = Path(name)
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES and each.is_file())
        return [resource for file in files for resource in documents(file.read_bytes(), str(file))]
    if not path.exists():
        raise NoSuchPathError(f"there is no file {name}", remedy="give the path of a YAML file, a directory, or -")
    return documents(path.read_bytes(), name)


def documents(data: bytes, name: str) -> list[Resource]:
    try:
        found = load_documents(data.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DocumentError([f"{name}:{line}: not UTF-8 text"]) from error
    masked = [_masked(each) for each in found if isinstance(each.spec, ServerSpec)]
    if problems := [problem for problem in masked if problem]:
        raise DocumentError(problems, remedy="write the password, or a vaultRef; `get -o yaml` never shows passwords")
    return found


def _masked(resource: Resource) -> str | None:
    """What `get -o yaml` printed must not replace a password by asterisks when it is applied again."""
    path = "spec.bmc.credential.password"
    assert isinstance(resource.spec, ServerSpec)
    if resource.spec.bmc.credential.password != MASK:
        return None
    assert resource.source is not None
    return f"{resource.source.at(path)}: {path}: is the mask that stands for a password, not a password"


def describe_field(field: FieldChange) -> str:
    """One line of a diff: `    spec.bootMethod: http -> virtualMedia`."""
    old, new = _value(field.old), _value(field.new)
    if old == new == MASK:
        return f"    {printable(field.path)}: changed ({MASK})"
    if field.old is None:
        return f"    {printable(field.path)}: + {new}"
    if field.new is None:
        return f"    {printable(field.path)}: - {old}"
    return f"    {printable(field.path)}: {old} -> {new}"


def _value(value: object) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
