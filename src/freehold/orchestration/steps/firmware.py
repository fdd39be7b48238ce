"""The firmware job of `preparing`: a package out of the depot onto the machine, and what it measures after that."""

import asyncio
from typing import Any

import msgspec

from freehold.model.errors import FreeholdError
from freehold.model.status import FirmwareFact
from freehold.orchestration import downgrades
from freehold.orchestration.approvals import Approved
from freehold.orchestration.conditions import firmware_wanted
from freehold.orchestration.lifecycle import UNMEASURED
from freehold.orchestration.site import Site
from freehold.orchestration.step import StepContext, StepResult
from freehold.orchestration.steps.discovering import measured_reference
from freehold.out_of_band.update import bios_version, find_bios, push_firmware, update_running
from freehold.root_of_trust.depot import Kind, Seen, Target, Wanted
from freehold.root_of_trust.operators import Act

COMPONENT = "bios"
SEND_SECONDS = 20.0
"""An upload must fit into the lease like every other command; what the BMC does with it then is a task."""


async def apply_firmware(site: Site, ctx: StepContext) -> StepResult:
    """Bring the BIOS to the wanted version: a package out of the depot, verified on the very bytes that are sent. What
    the new firmware measures is then taken down by a boot, and approved, before anything else happens."""
    board, version = ctx.facts.firmware, firmware_wanted(ctx.server)
    if board is None or version is None:
        raise FreeholdError("its board is not known yet", server=ctx.name, remedy="decommission it, or declare it anew")
    wanted = Wanted(Kind.FIRMWARE, board.vendor, COMPONENT, version, model=board.model)
    tickets = await site.approvals.approved(Act.DOWNGRADE, downgrades.subject_of(ctx.name), ctx.now)
    ticket = downgrades.fitting(tickets, wanted, board.version)
    target, package, floor, seen = await asyncio.to_thread(_verified, site, wanted, ticket, ctx.name, board.version)
    async with site.bmc(ctx.server) as client:
        if ctx.resumed and await update_running(client):
            return StepResult(done=False, retry_after=10.0, waiting_for="an update that is under way")
        bios = await find_bios(client)
        await ctx.ensure_lease(SEND_SECONDS)
        await push_firmware(client, package, bios.uri, name=target.path, send_timeout=SEND_SECONDS)
    claim = {
        "component": COMPONENT,
        "board": f"{board.vendor} {board.model}",
        "from": board.version,
        "to": version,
        "target": target.path,
        "sha256": target.sha256,
        "length": target.length,
        "staged_locally": True,
        "verified": True,
        "vendor_signature": msgspec.to_builtins(target.about.vendor_signature),
        "unsigned_because": target.about.unsigned_because,
        "below_floor": floor,
        "downgrade": ticket.claim if ticket is not None and floor is not None else None,
        "sent_by": "multipart HTTP push",
        "depot": msgspec.to_builtins(seen),
    }
    site.depot_seen = seen
    facts: dict[str, Any] = {"firmware": FirmwareFact(vendor=board.vendor, model=board.model, version=version)}
    return StepResult(
        facts=facts | UNMEASURED, statements=(("firmware", claim),), events=(f"BIOS {board.version} -> {version}",)
    )


def _verified(
    site: Site, wanted: Wanted, ticket: Approved | None, server: str, installed: str
) -> tuple[Target, bytes, str | None, Seen]:
    """The bytes that will be sent, in memory: nobody can change them after this check; and the floor that they are
    below, if the ticket lets them be."""
    client = site.depot.client(site.depot_seen)
    target, data = client.fetch(wanted, downgrades.used(ticket, server, installed) if ticket is not None else None)
    return target, data, client.floor_above(wanted, target), client.seen


async def learn_reference(site: Site, ctx: StepContext) -> StepResult:
    """Take down what the firmware measures now: only here and in discovery, so only inside a firmware job. A BMC that
    still tells of another version has not done what it said."""
    agent, board = ctx.server.agent, ctx.facts.firmware
    assert agent is not None
    async with site.bmc(ctx.server) as client:
        told = await bios_version(client)
    if board is not None and told != board.version:
        why = f"after the update to BIOS {board.version} the BMC tells of version {told or 'none'}"
        return StepResult(done=False, quarantine=why)
    # A ticket is for one downgrade: once the firmware that it let in has been measured, it lets nothing in any more.
    for each in await site.approvals.approved(Act.DOWNGRADE, downgrades.subject_of(ctx.name), ctx.now):
        if each.request.details["to"] == told:
            await site.approvals.spend(each.request.id, ctx.now)
    return StepResult(facts={"learned_reference": measured_reference(agent)})
