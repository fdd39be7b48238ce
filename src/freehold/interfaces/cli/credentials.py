"""`freehold credential`: BMC credentials into the vault, and, with two people's word, out of it."""

import sys
import time
from pathlib import Path

import click
import msgspec

from freehold.interfaces.cli.common import output_option, run, show_json, site_store, state_option
from freehold.interfaces.cli.intents import login_name
from freehold.model.errors import FreeholdError
from freehold.model.resources import FACTORY, is_factory_ref
from freehold.orchestration.opening import open_vault
from freehold.orchestration.passwords import VaultSlots, former, recorded
from freehold.out_of_band.redfish import Credential
from freehold.root_of_trust.operators import Act, Request

DAY = 86400.0


@click.group()
def credential() -> None:
    """BMC credentials in the site's vault.

    \b
    Example:
      freehold credential set server-1 --username root
      freehold credential break-glass server-1 --reason "the controller's disk is dying"
    """


@credential.command("set")
@click.argument("server", required=False)
@click.option("--ref", help="Put it at this path below factory/, for spec.bmc.credential.vaultRef, not at a server.")
@click.option("--replace", is_flag=True, help="With --ref: in place of the credential that is there.")
@click.option("--username", required=True, help="The account on the BMC.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input instead of asking for it.")
@state_option
@output_option()
def set_credential(
    server: str | None, ref: str | None, replace: bool, username: str, password_stdin: bool, state: Path, output: str
) -> None:
    """Tell the vault which credential a BMC has: before the take-over by --ref, or for SERVER when somebody changed it
    on the BMC. A password that a person knows should not stay: `freehold rotate` replaces it. What is below factory/ is
    sent to every BMC whose Server document names it. Refused while the controller is at work on SERVER; a password that
    it was putting on the BMC when it was cut off is kept.

    \b
    Example:
      freehold credential set server-1 --username freehold
      freehold credential set --ref factory/rack-7 --username root --password-stdin < label.txt
    """
    if (server is None) == (ref is None):
        raise click.UsageError("give either a server or --ref PATH")
    if ref is not None and not is_factory_ref(ref):
        raise click.UsageError(f"--ref {ref} is not a path below {FACTORY}/, such as {FACTORY}/rack-7")
    if replace and ref is None:
        raise click.UsageError("--replace goes with --ref; the credential of a server is replaced always")
    if password_stdin:
        password = sys.stdin.readline().rstrip("\n")
    else:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    if not password:
        raise FreeholdError("the password is empty", server=server)
    given = Credential(username, password)

    async def work() -> None:
        async with site_store(state) as store:
            if server is not None:
                await store.get("Server", server)  # raises for one that is not declared
                view = await store.ledger.view(server)
                assert view is not None
                if (busy := await store.ledger.at_work(server, time.time())) is not None:
                    raise FreeholdError(
                        f"the controller is at work on it ({busy}), and may be changing this very password",
                        server=server,
                        remedy="try again in a moment, while `freehold serve` runs: it ends what was cut off"
                        f"; `freehold pause {server}` keeps it from the next step",
                    )
                # What was pending is of an earlier change: the person who looked at the BMC knows better.
                await VaultSlots(open_vault(state), view).replace(given)
            elif ref is not None:
                secret = msgspec.json.encode(given)
                open_vault(state).update(ref, lambda there: _unless_there(ref, there, secret, replace=replace))
            where = ref or f"server {server}"
            await store.add_event(server, "credential", f"{login_name()} put a credential into the vault for {where}")

    run(work())
    where = ref or f"bmc/{server}/current"
    if output == "json":
        show_json({"path": where, "username": username})
    else:
        then = f"; next: `freehold rotate {server}`, so that nobody knows it" if server else ""
        click.echo(f"{where}: account {username}{then}")


def _unless_there(ref: str, there: bytes | None, secret: bytes, *, replace: bool) -> bytes:
    if there is not None and there != secret and not replace:
        raise FreeholdError(
            f"the vault holds another credential at {ref}",
            expected="a path that is free",
            remedy="choose another one; or --replace it, if no BMC that is still to be taken over has the old one",
        )
    return secret


@credential.command("break-glass")
@click.argument("server")
@click.option("--reason", default="", help="Why; the two people who approve it read this.")
@click.option("--approved", metavar="ID", help="Show the credential: two operators have signed this request.")
@state_option
@output_option()
def break_glass(server: str, reason: str, approved: str | None, state: Path, output: str) -> None:
    """Show a BMC's password to a person. Ask first; two operators sign; then --approved shows it, once. Events say
    that it did, and the evidence log has both signatures as soon as the controller runs. Rotate it when you are done.

    \b
    Example:
      freehold credential break-glass server-1 --reason "the controller's disk is dying"
      freehold credential break-glass server-1 --approved 3f2a9c0d11223344
    """
    if bool(reason) == bool(approved):
        raise click.UsageError("give either --reason, to ask, or --approved ID")

    async def ask() -> str:
        now = time.time()
        request = Request(
            act=Act.BREAK_GLASS,
            subject=f"bmc/{server}",
            details={"reason": reason},
            requested_by=login_name(),
            at=now,
            expires=now + DAY,
        )
        async with site_store(state) as store:
            if not open_vault(state).paths(former(server)):
                await store.get("Server", server)
            await store.add_event(server, "break-glass", f"{login_name()} asks for the BMC's password: {reason}")
            return await store.approvals.ask(request)

    if approved is None:
        request_id = run(ask())
        if output == "json":
            show_json({"request": request_id})
        else:
            click.echo(f"{request_id}: two operators sign it: freehold approval sign {request_id} --key FILE")
        return

    async def show(request_id: str) -> tuple[list[Credential], tuple[str, ...]]:
        async with site_store(state) as store:
            found = recorded(open_vault(state), server)
            # Told first, shown then: what was shown without a trace would be the worse of the two.
            names = await store.approvals.show_credential(request_id, server, login_name(), time.time())
            told = f"the BMC's password was shown to {login_name()}; approved by {', '.join(names)}"
            await store.add_event(server, "break-glass", told)
            return found, names

    (found, *others), names = run(show(approved))
    if output == "json":
        also = [{"username": each.username, "password": each.password} for each in others]
        shown = {"server": server, "username": found.username, "password": found.password, "approved_by": names}
        show_json(shown | ({"or": also} if also else {}))
    else:
        for each in (found, *others):
            click.echo(f"account {each.username}\npassword {each.password}")
        if others:
            click.echo("if the first does not work, one of the others does: the BMC may be behind or ahead", err=True)
        click.echo(f"rotate it when you are done: freehold rotate {server}", err=True)
