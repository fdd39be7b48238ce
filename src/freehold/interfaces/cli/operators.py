"""`freehold operator` and `freehold approval`: who may approve, and what two of them are asked to approve."""

import time
from pathlib import Path

import click
import msgspec

from freehold.evidence import Ed25519Signer, PublicKey
from freehold.interfaces.cli.common import (
    moment,
    output_option,
    run,
    show_json,
    show_page,
    show_table,
    since,
    site_store,
    state_option,
)
from freehold.interfaces.cli.intents import login_name
from freehold.interfaces.cli.resources import limit_option
from freehold.model.errors import FreeholdError
from freehold.root_of_trust import operator_keys
from freehold.root_of_trust.operators import THRESHOLD, Act, Asked, Operators, Request, approve

WEEK = 7 * 86400.0

key_option = click.option(
    "--key",
    "key",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Your private key, as `freehold operator keygen` made it.",
)
passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The key's passphrase; without it you are asked, if the key has one.",
)


class Person(click.ParamType[tuple[str, PublicKey]]):
    """`alice=alice.key.pub`"""

    name = "NAME=FILE"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, PublicKey]:
        if isinstance(value, tuple):
            return value
        name, found, file = value.partition("=")
        if not found or not Path(file).is_file():
            self.fail(f"{value!r} is not a name and the file of a public key, as in alice=alice.key.pub", param, ctx)
        return name, PublicKey.from_pem(Path(file).read_bytes())


def signer(key: Path, passphrase_file: Path | None) -> Ed25519Signer:
    """The key, with its passphrase from the file or from the terminal."""
    passphrase = None
    if not operator_keys.is_encrypted(key):
        pass
    elif passphrase_file is not None:
        passphrase = passphrase_file.read_text().partition("\n")[0]
    else:
        passphrase = click.prompt(f"Passphrase of {key}", hide_input=True, err=True)
    return operator_keys.load(key, passphrase)


@click.group()
def operator() -> None:
    """The people whose signatures count: two of them approve what one person must not decide alone.

    \b
    Example:
      freehold operator keygen alice.key
      freehold operator found alice=alice.key.pub bob=bob.key.pub carol=carol.key.pub
      freehold operator list
    """


@operator.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@passphrase_option
@click.option("--no-passphrase", is_flag=True, help="Whoever gets the file is you. For labs and smart cards' exports.")
@output_option()
def keygen(file: Path, passphrase_file: Path | None, no_passphrase: bool, output: str) -> None:
    """Make your own key: FILE stays with you, FILE.pub goes to the site. Works on any machine, no site needed.

    \b
    Example:
      freehold operator keygen alice.key
    """
    passphrase = None
    if passphrase_file is not None:
        passphrase = passphrase_file.read_text().rstrip("\n")
    elif not no_passphrase:
        passphrase = click.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)
    if not no_passphrase and len(passphrase or "") < 12:
        raise operator_keys.OperatorKeyRefused("the passphrase is too short", expected="at least 12 characters")
    made = operator_keys.create(file, passphrase)
    public = operator_keys.public_half(file)
    if output == "json":
        show_json({"private": str(file), "public": str(public), "key_id": made.key_id})
    else:
        click.echo(f"{file} is yours alone; give {public} to the site. Key {made.key_id}")


@operator.command()
@click.argument("people", nargs=-1, required=True, type=Person())
@state_option
@output_option()
def found(people: tuple[tuple[str, PublicKey], ...], state: Path, output: str) -> None:
    """Enrol the first operators of a site. Later changes need two of them: `freehold operator replace`.

    \b
    Example:
      freehold operator found alice=alice.key.pub bob=bob.key.pub carol=carol.key.pub
    """

    async def work() -> Operators:
        async with site_store(state) as store:
            new = await store.approvals.found(_unique(people), time.time())
            enrolled = await store.approvals.operators()
            if new:
                keys = ", ".join(f"{name} (key {key.key_id})" for name, key in sorted(enrolled.people.items()))
                await store.add_event(None, "operators", f"{login_name()} founded the site's operators: {keys}")
            return enrolled

    _show_people(run(work()), output)
    click.echo("each person compares the SHA-256 of their key with what `operator keygen` printed for them", err=True)


@operator.command("list")
@limit_option
@click.option("--after", default="", metavar="NAME", help="Begin behind this name: the next page.")
@state_option
@output_option()
def list_operators(limit: int, after: str, state: Path, output: str) -> None:
    """Who may approve, and by which key.

    \b
    Example:
      freehold operator list
    """

    async def work() -> Operators:
        async with site_store(state) as store:
            return await store.approvals.operators()

    _show_people(run(work()), output, after=after, limit=limit)


@operator.command()
@click.argument("people", nargs=-1, type=Person())
@click.option("--approved", metavar="ID", help="Carry out the request that two of today's operators have signed.")
@state_option
@output_option()
def replace(people: tuple[tuple[str, PublicKey], ...], approved: str | None, state: Path, output: str) -> None:
    """Put other people in the operators' place: ask first, then, with two signatures of today's operators, do it.

    \b
    Example:
      freehold operator replace alice=alice.key.pub bob=bob.key.pub dave=dave.key.pub
      freehold operator replace --approved 3f2a9c0d11223344
    """
    if bool(people) == bool(approved):
        raise click.UsageError("give either all the people that are to be operators, or --approved ID")

    async def ask() -> str:
        wanted = Operators.of(_unique(people))
        if len(wanted.people) < THRESHOLD:
            raise FreeholdError("one person cannot approve for two", expected="two people or more")
        pems = {name: key.pem.decode() for name, key in wanted.people.items()}
        now = time.time()
        request = Request(
            act=Act.OPERATORS,
            subject="site",
            details={"people": pems},
            requested_by=login_name(),
            at=now,
            expires=now + WEEK,
        )
        async with site_store(state) as store:
            return await store.approvals.ask(request)

    async def do(request_id: str) -> Operators:
        async with site_store(state) as store:
            names = await store.approvals.replace(request_id, time.time())
            people = await store.approvals.operators()
            message = f"operators are now {', '.join(sorted(people.people))}; approved by {', '.join(names)}"
            await store.add_event(None, "operators", message)
            return people

    if approved is not None:
        _show_people(run(do(approved)), output)
        return
    request_id = run(ask())
    if output == "json":
        show_json({"request": request_id})
    else:
        click.echo(f"{request_id}: two of today's operators sign it: freehold approval sign {request_id} --key FILE")


def _unique(people: tuple[tuple[str, PublicKey], ...]) -> dict[str, PublicKey]:
    named = dict(people)
    if len(named) != len(people):
        raise click.UsageError("a name is given twice")
    return named


def _show_people(people: Operators, output: str, *, after: str = "", limit: int | None = None) -> None:
    rows = [(name, key.key_id) for name, key in sorted(people.people.items()) if name > after]
    page = rows[:limit]
    if output != "json":
        show_table(("OPERATOR", "SHA-256 OF THE KEY"), page)
    items = [{"name": name, "key_id": key_id} for name, key_id in page]
    show_page("--after", items, page[-1][0] if len(rows) > len(page) else None, output)


@click.group()
def approval() -> None:
    """What waits for two people, and their signatures.

    \b
    Example:
      freehold approval list
      freehold approval show 3f2a9c0d11223344
      freehold approval sign 3f2a9c0d11223344 --key alice.key
    """


@approval.command("list")
@click.option("--all", "closed", is_flag=True, help="Closed ones too.")
@limit_option
@click.option("--after", default="", metavar="ID", help="Begin behind this one: the next page.")
@state_option
@output_option()
def list_approvals(closed: bool, limit: int, after: str, state: Path, output: str) -> None:
    """What two people are asked to approve.

    \b
    Example:
      freehold approval list
    """

    async def work() -> list[Asked]:
        async with site_store(state) as store:
            return await store.approvals.list(after=after, limit=limit + 1, closed=closed)

    asked = run(work())
    page = asked[:limit]
    if output != "json":
        rows = [
            (each.request.id, each.request.act, each.request.subject, since(each.request.at), _state(each))
            for each in page
        ]
        show_table(("ID", "ACT", "SUBJECT", "AGE", "APPROVED BY"), rows)
    show_page("--after", [_plain(each) for each in page], page[-1].request.id if len(asked) > limit else None, output)


@approval.command()
@click.argument("request")
@click.option("--raw", type=click.Path(dir_okay=False, path_type=Path), help="Write the bytes to sign to this file.")
@state_option
@output_option()
def show(request: str, raw: Path | None, state: Path, output: str) -> None:
    """All of one request: read it before you sign it. `--raw` writes what is signed, to carry it to your key.

    \b
    Example:
      freehold approval show 3f2a9c0d11223344
      freehold approval show 3f2a9c0d11223344 --raw request.json
    """

    async def work() -> Asked:
        async with site_store(state) as store:
            return await store.approvals.show(request)

    asked = run(work())
    if raw is not None:
        raw.write_bytes(asked.request.to_bytes())
    if output == "json":
        show_json(_plain(asked))
        return
    click.echo(f"{asked.request.act} for {asked.request.subject}, asked by {asked.request.requested_by}")
    click.echo(f"expires:      {moment(asked.request.expires)}")
    click.echo(f"approved by:  {_state(asked)}")
    click.echo(msgspec.json.format(msgspec.json.encode(asked.request.details), indent=2).decode())


@approval.command()
@click.argument("request")
@key_option
@passphrase_option
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="REQUEST is a file; write the signature here."
)
@state_option
@output_option()
def sign(request: str, key: Path, passphrase_file: Path | None, out: Path | None, state: Path, output: str) -> None:
    """Approve a request with your key. With --out, REQUEST is a file that `approval show --raw` wrote: so the key need
    never be where the site is; `freehold approval add` takes the signature in.

    \b
    Example:
      freehold approval sign 3f2a9c0d11223344 --key alice.key
      freehold approval sign request.json --key alice.key --out alice.sig
    """
    if out is not None:
        asked = Request.from_bytes(Path(request).read_bytes())
        out.write_bytes(approve(asked, signer(key, passphrase_file)).to_bytes())
        _say_signed(asked.id, str(out), output)
        return

    async def look() -> Asked:
        async with site_store(state) as store:
            return await store.approvals.show(request)

    envelope = approve(run(look()).request, signer(key, passphrase_file)).to_bytes()
    _say_signed(request, _take_in(state, request, envelope), output)


@approval.command()
@click.argument("request")
@click.argument("signature", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@state_option
@output_option()
def add(request: str, signature: Path, state: Path, output: str) -> None:
    """Take in a signature that was made elsewhere.

    \b
    Example:
      freehold approval add 3f2a9c0d11223344 alice.sig
    """
    _say_signed(request, _take_in(state, request, signature.read_bytes()), output)


def _take_in(state: Path, request: str, envelope: bytes) -> str:
    async def work() -> str:
        async with site_store(state) as store:
            name = await store.approvals.sign(request, envelope)
            await store.add_event(None, "approval", f"{name} approved request {request}")
            return name

    return run(work())


def _say_signed(request: str, by: str, output: str) -> None:
    if output == "json":
        show_json({"request": request, "signed": by})
    else:
        click.echo(f"{request}: signed ({by})")


def _state(asked: Asked) -> str:
    who = ", ".join(asked.approved_by) or "nobody yet"
    return f"{who} (closed)" if asked.spent is not None else who


def _plain(asked: Asked) -> dict[str, object]:
    return {"id": asked.request.id, **msgspec.to_builtins(asked)}
