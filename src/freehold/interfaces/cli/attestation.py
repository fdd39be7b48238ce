"""`freehold attest`: a server proves what it booted now, instead of on schedule."""

import json
from pathlib import Path
from typing import Any

import click

from freehold.evidence import Envelope, Statement
from freehold.interfaces.cli import following
from freehold.interfaces.cli.common import (
    moment,
    output_option,
    printable,
    run,
    show_json,
    show_table,
    site_store,
    state_option,
)
from freehold.interfaces.cli.evidence import open_view
from freehold.interfaces.cli.intents import login_name, server_view
from freehold.model.errors import FreeholdError
from freehold.model.status import IntentKind, ServerState
from freehold.orchestration.lifecycle import IntentRefusedError, check_intent
from freehold.orchestration.planner import check_attestable
from freehold.orchestration.store import Store
from freehold.orchestration.view import ServerView


class NotTrustedError(FreeholdError):
    """The demand ended in quarantine. The process ends with 3."""

    exit_code = 3


@click.command()
@click.argument("server")
@click.option("--reason", default="", help="Why; it is recorded beside your login name.")
@click.option("--wait", is_flag=True, help="Follow the server until it has attested, and show what it proved.")
@click.option("--timeout", type=click.FloatRange(min=0.0), metavar="SECONDS", help="End --wait with 1 then.")
@state_option
@output_option()
def attest(server: str, reason: str, wait: bool, timeout: float | None, state: Path, output: str) -> None:
    """Make a server attest now: a quote over a nonce that is younger than this demand, appraised as at a boot. An agent
    that is carrying out an order attests when that is done. Exit code 3 of --wait: the server went into quarantine.

    \b
    Example:
      freehold attest server-1 --reason "audit of 3 May" --wait --timeout 120
    """

    async def work() -> None:
        async with site_store(state) as store:
            number = await _ask(store, server, reason)
            if output == "json" and not wait:
                show_json({"server": server, "intent": IntentKind.ATTEST, "by": login_name(), "reason": reason})
            elif output != "json":
                click.echo(f"{server}: asked to attest")
            if wait:
                await _show(state, await _attested(store, server, number, timeout, output), output)

    run(work())


async def _ask(store: Store, server: str, reason: str) -> int | None:
    try:
        view = await server_view(store, server)
        check_intent(view.status.state, IntentKind.ATTEST)
        check_attestable(view)
        return await store.record_intent(server, IntentKind.ATTEST, by=login_name(), reason=reason)
    except IntentRefusedError as error:
        raise IntentRefusedError(error.what, server=server, expected=error.expected, remedy=error.remedy) from error


async def _attested(store: Store, server: str, intent: int | None, timeout: float | None, output: str) -> ServerView:
    """The server once it has attested. Raises `NotTrustedError`, `NotReachedError`."""
    wanted, quarantined = "a new attestation", following.in_state(ServerState.QUARANTINED)
    failed = None
    try:
        await following.follow(
            store,
            (server,),
            reached=lambda now: not quarantined(now),
            wanted=wanted,
            timeout=timeout,
            output=output,
            hopeless=quarantined,
            intent=intent,
        )
    except following.NotReachedError as error:
        failed = error
    view = await server_view(store, server)
    if view.status.state is ServerState.QUARANTINED:
        raise NotTrustedError(
            f"it is in quarantine: {view.status.reason}",
            server=server,
            remedy=f"`freehold describe {server}` says what was found; `freehold release {server}` once it is mended",
        )
    if failed is not None:
        raise failed
    if view.agent is None or view.agent.attested_at is None or view.agent.by_ticket:
        assert intent is not None
        said = await store.outcome(intent)
        raise following.NotReachedError(f"there was no attestation: {said}", server=server, remedy="ask again")
    return view


async def _show(state: Path, view: ServerView, output: str) -> None:
    """The verdict as it stands in the log, under its checkpoint's signature."""
    assert view.agent is not None
    index = int(view.agent.details["attestation"])
    claim = Statement.from_bytes(Envelope.from_bytes(open_view(state).entry(index).envelope).payload).predicate
    found: dict[str, Any] = {"server": view.name, "attested_at": view.agent.attested_at, "entry": index}
    found |= {name: claim[name] for name in ("mode", "trusted", "reasons", "findings", "policy", "expires", "pcrs")}
    found["revoked_image"] = bool(claim.get("revoked_image"))  # earlier statements do not have it
    if output == "json":
        click.echo(json.dumps({"attestation": found}))
        return
    verdict = "trusted" if claim["trusted"] else "not trusted"
    verdict += ", but of an image that the newest Secure Boot keys refuse," if found["revoked_image"] else ""
    click.echo(printable(f"{view.name}: {verdict} at {moment(view.agent.attested_at)}, until {claim['expires']}"))
    click.echo(
        printable(f"what runs: {claim['mode']}, held against {claim['policy']}; entry {index} of the evidence log")
    )
    for finding in claim["findings"]:
        click.echo(printable(f"finding: {finding}"))
    show_table(
        ("PCR", "STATUS", "SHA-256"), [(pcr, each["status"], each["value"]) for pcr, each in claim["pcrs"].items()]
    )
