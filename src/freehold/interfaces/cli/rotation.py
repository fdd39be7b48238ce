"""`freehold rotate`: new BMC passwords, now instead of on schedule."""

import time
from pathlib import Path

import click

from freehold.interfaces.cli import following
from freehold.interfaces.cli.common import output_option, run, show_json, site_store, state_option
from freehold.interfaces.cli.intents import login_name
from freehold.model.status import IntentKind, ServerState
from freehold.orchestration.lifecycle import IntentRefusedError, check_intent
from freehold.orchestration.store import Store, Stored

PAGE = 500


@click.command()
@click.argument("servers", nargs=-1)
@click.option("--all", "everyone", is_flag=True, help="Every server whose credential can be rotated now.")
@click.option("--reason", default="", help="Why; it is recorded beside your login name.")
@click.option("--wait", is_flag=True, help="Follow the servers until each one has its new password.")
@click.option("--timeout", type=click.FloatRange(min=0.0), metavar="SECONDS", help="End --wait with 1 then.")
@state_option
@output_option()
def rotate(
    servers: tuple[str, ...],
    everyone: bool,
    reason: str,
    wait: bool,
    timeout: float | None,
    state: Path,
    output: str,
) -> None:
    """Give the BMCs of SERVERS new passwords now, whatever the policy's rotationInterval says. Each one waits
    for its turn (`rotationsPerMinute` of the Site), and is changed in two phases, so that a crash anywhere leaves a
    password that is in the vault.

    \b
    Example:
      freehold rotate server-1 --wait
      freehold rotate --all --reason "an operator left"
    """
    if bool(servers) == everyone:
        raise click.UsageError("name servers, or give --all")

    async def work() -> None:
        async with site_store(state) as store:
            names = await _rotatable(store) if everyone else servers
            for name in names:
                await _ask(store, name, reason)
            if output == "json" and not wait:
                show_json({"servers": list(names), "intent": IntentKind.ROTATE, "by": login_name(), "reason": reason})
            elif output != "json":
                who = names[0] if len(names) == 1 else f"{len(names)} servers"
                click.echo(f"{who}: asked to rotate")
            if wait and names:
                asked = time.time()
                await following.follow(
                    store,
                    names,
                    reached=lambda server: _since(server) >= asked - 1.0,
                    wanted="a new BMC password",
                    timeout=timeout,
                    output=output,
                    hopeless=following.in_state(ServerState.QUARANTINED),
                )

    run(work())


def _since(server: Stored) -> float:
    return (server.status.facts.bmc_credential_since or 0.0) if server.status else 0.0


async def _ask(store: Store, name: str, reason: str) -> None:
    try:
        await store.record_intent(name, IntentKind.ROTATE, by=login_name(), reason=reason)
    except IntentRefusedError as error:
        raise IntentRefusedError(error.what, server=name, expected=error.expected, remedy=error.remedy) from error


async def _rotatable(store: Store) -> tuple[str, ...]:
    """The servers that are past `securing` and neither quarantined nor retired."""
    names: list[str] = []
    after = ("Server", "")
    while page := await store.list_resources("Server", after=after, limit=PAGE):
        after = page[-1].resource.key
        names += [each.resource.name for each in page if each.status and _may(each.status.state)]
    return tuple(names)


def _may(state: ServerState) -> bool:
    try:
        check_intent(state, IntentKind.ROTATE)
    except IntentRefusedError:
        return False
    return True
