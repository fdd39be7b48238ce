"""`freehold depot downgrade`: ask two operators to let one server's firmware fall below its security floor."""

import time
from pathlib import Path

import click

from freehold.interfaces.cli.common import output_option, run, show_json, site_store, state_option
from freehold.model.errors import FreeholdError
from freehold.root_of_trust.depot import Depot, DepotClient, Kind, Wanted

DAY = 86400.0
COMPONENT = "bios"


@click.command()
@click.argument("server")
@click.option("--version", "version", required=True, help="The version to go back to; its package is in the depot.")
@click.option("--reason", required=True, help="Why; the two people who approve it read this.")
@click.option("--days", type=click.IntRange(1, 30), default=7, show_default=True, help="How long the ticket holds.")
@state_option
@output_option()
def downgrade(server: str, version: str, reason: str, days: int, state: Path, output: str) -> None:
    """Ask for a downgrade ticket: SERVER's BIOS may fall below its security floor, once, from the version that it has
    to exactly this package. Two operators sign it with `freehold approval sign`; declare the version as
    spec.firmware.bios of the Server, and the firmware job installs it. The evidence log has ticket and signatures.

    \b
    Example:
      freehold depot downgrade server-1 --version 2.4.0 --reason "2.6.1 loses the NIC, vendor case 4711"
    """
    from freehold.interfaces.cli.intents import login_name
    from freehold.orchestration import downgrades

    client = DepotClient.look(Depot(state / "depot").directory)

    async def ask() -> str:
        async with site_store(state) as store:
            await store.get("Server", server)  # raises for one that is not declared
            view = await store.ledger.view(server)
            board = view.facts.firmware if view is not None else None
            if board is None:
                raise FreeholdError("its board is not known yet", server=server, remedy="wait until it is discovered")
            wanted = Wanted(Kind.FIRMWARE, board.vendor, COMPONENT, version, model=board.model)
            target = client.package(wanted)
            if client.floor_above(wanted, target) is None:
                raise FreeholdError(
                    f"BIOS {version} is not below the security floor: it needs no ticket",
                    server=server,
                    remedy="declare it as spec.firmware.bios of the Server",
                )
            now = time.time()
            request = downgrades.request_for(
                server, wanted, board.version, target, reason=reason, by=login_name(), at=now, expires=now + days * DAY
            )
            await store.add_event(server, "downgrade", f"{login_name()} asks for BIOS {version}: {reason}")
            return await store.approvals.ask(request)

    request_id = run(ask())
    if output == "json":
        show_json({"request": request_id})
    else:
        click.echo(f"{request_id}: two operators sign it: freehold approval sign {request_id} --key FILE")
