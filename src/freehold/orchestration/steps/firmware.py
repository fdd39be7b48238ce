"""The firmware job of `preparing`: a package out of the depot onto the machine, and what it measures after that."""

import asyncio
from typing import Any

import msgspec

from freehold.model.errors import FreeholdError
from freehold.model.status import FirmwareFact
from freehold.orchestration.conditions import firmware_wanted
from freehold.orchestration.lifecycle import UNMEASURED
from freehold.orchestration.site import BMC_COMMAND, Site
from freehold.orchestration.step import StepContext, StepResult
from freehold.orchestration.steps.discovering import measured_reference
from freehold.out_of_band.update import FileServer, bios_version, find_bios, push_firmware, update_running
from freehold.root_of_trust.depot import Kind, Seen, Target, Wanted

COMPONENT = "bios"


async def apply_firmware(site: Site, ctx: StepContext) -> StepResult:
    """Bring the BIOS to the wanted version: a package out of the depot, verified on the very bytes that are sent. What
    the new firmware measures is then taken down by a boot, and approved, before anything else happens."""
    board, version = ctx.facts.firmware, firmware_wanted(ctx.server)
    if board is None or version is None:
        raise FreeholdError("its board is not known yet", server=ctx.name, remedy="decommission it, or declare it anew")
    wanted = Wanted(Kind.FIRMWARE, board.vendor, COMPONENT, version, model=board.model)
    target, package, seen = await asyncio.to_thread(_verified, site, wanted)
    async with site.bmc(ctx.server) as client:
        if ctx.resumed and await update_running(client):
            return StepResult(done=False, retry_after=10.0, waiting_for="an update that is under way")
        bios = await find_bios(client)
        await ctx.ensure_lease(BMC_COMMAND)  # a long upload is cut off with the lease, and what is cut is not installed
        server = FileServer(site.shelf.serve, site.keys.tls_anchor.decode())
        sent_by = await push_firmware(client, package, bios.uri, name=target.path, server=server)
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
        "sent_by": sent_by,
        "depot": msgspec.to_builtins(seen),
    }
    site.depot_seen = seen
    facts: dict[str, Any] = {"firmware": FirmwareFact(vendor=board.vendor, model=board.model, version=version)}
    return StepResult(
        facts=facts | UNMEASURED, statements=(("firmware", claim),), events=(f"BIOS {board.version} -> {version}",)
    )


def _verified(site: Site, wanted: Wanted) -> tuple[Target, bytes, Seen]:
    """The bytes that will be sent, in memory: nobody can change them after this check."""
    client = site.depot.client(site.depot_seen)
    return *client.fetch(wanted), client.seen


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
    return StepResult(facts={"learned_reference": measured_reference(agent)})
