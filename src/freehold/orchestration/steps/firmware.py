"""The firmware jobs of `preparing`: a package out of the depot onto the machine or its BMC. What a BIOS measures after
that is taken down; of a BMC's own firmware nothing measures, so its word for the version has to do."""

import asyncio
from typing import Any, NamedTuple

import msgspec

from freehold.model.errors import FreeholdError
from freehold.model.status import FirmwareFact, SentFirmware
from freehold.orchestration import downgrades
from freehold.orchestration.approvals import Approved
from freehold.orchestration.conditions import bmc_firmware_wanted, firmware_wanted
from freehold.orchestration.lifecycle import UNCLOSED, UNMEASURED
from freehold.orchestration.package_measurements import against
from freehold.orchestration.site import BMC_COMMAND, Site
from freehold.orchestration.step import StepContext, StepResult
from freehold.orchestration.steps.discovering import measured_reference
from freehold.out_of_band.redfish import RedfishClient
from freehold.out_of_band.update import (
    FileServer,
    Sent,
    bios_version,
    find_firmware,
    firmware_version,
    push_firmware,
    update_running,
)
from freehold.root_of_trust.attestation.reference import ReferenceValues
from freehold.root_of_trust.depot import Kind, Seen, Target, Wanted
from freehold.root_of_trust.operators import Act

BACK_WITHIN = 1800.0
"""Seconds in which a BMC starts anew into firmware that it was sent."""
LOOK_AGAIN = 10.0
AT_ONCE = 0.1
CUT_OFF = "an attempt whose end nobody saw"
"""`sent_by` of firmware that a BMC has, after the controller was killed or the BMC gone while it was being sent."""


async def apply_firmware(site: Site, ctx: StepContext) -> StepResult:
    """Bring the BIOS to the wanted version: a package out of the depot, verified on the very bytes that are sent. What
    the new firmware measures is then taken down by a boot, and approved, before anything else happens."""
    board, version = _board(ctx), firmware_wanted(ctx.server) or ""
    package = await _package(site, ctx, "bios", board.version, version)
    async with site.bmc(ctx.server, ctx.ensure_lease) as client:
        if ctx.resumed and await update_running(client):
            return StepResult(done=False, retry_after=LOOK_AGAIN, waiting_for="an update that is under way")
        bios = await find_firmware(client, "BIOS")
        pushed = await _send(site, ctx, client, package, bios.uri)
    site.depot_seen = package.seen
    facts: dict[str, Any] = {"firmware": FirmwareFact(vendor=board.vendor, model=board.model, version=version)}
    claim = package.claim(board, board.version) | {"sent_by": pushed.by}
    event = f"BIOS {board.version} -> {version}"
    return StepResult(facts=facts | UNMEASURED, statements=(("firmware", claim),), events=(event,))


async def apply_bmc_firmware(site: Site, ctx: StepContext) -> StepResult:
    """Bring the BMC's own firmware to the wanted version, likewise. It starts anew into it, and is then closed and
    audited again. One that says that it is done, and comes back with another version, is not believed any more; one
    that started anew before it said so is sent it again. What is to be sent is a fact first, and owed to the log until
    it is there: whoever dies in between leaves nobody but the BMC who knows."""
    board, version, sent = _board(ctx), bmc_firmware_wanted(ctx.server) or "", ctx.facts.bmc_firmware_sent
    was, waiting = ctx.facts.bmc_version, "the BMC to start into its new firmware"
    if sent is not None and sent.version != version:
        sent = None
    async with site.bmc(ctx.server, ctx.ensure_lease) as client:
        told = await firmware_version(client, "BMC")
        if told == version:
            await _spend_ticket(site, ctx, "bmc", told)
            owed = sent.owed if sent is not None else None
            return StepResult(
                facts={"bmc_version": told, "bmc_firmware_sent": None, **UNCLOSED},
                statements=(("firmware", owed | {"sent_by": CUT_OFF}),) if owed is not None else (),
                events=(f"BMC firmware {was} -> {told}",),
            )
        if await update_running(client):
            return StepResult(done=False, retry_after=LOOK_AGAIN, waiting_for=waiting)
        if sent is not None and sent.owed is None:
            if ctx.now - sent.at < BACK_WITHIN:
                return StepResult(done=False, retry_after=LOOK_AGAIN, waiting_for=waiting)
            if sent.seen:
                why = f"after the update to BMC firmware {version} the BMC tells of version {told or 'none'}"
                return StepResult(done=False, facts={"bmc_firmware_sent": None}, quarantine=why)
        package = await _package(site, ctx, "bmc", told, version)
        claim = package.claim(board, told)
        if sent is None or sent.owed != claim:
            facts = {"bmc_firmware_sent": SentFirmware(version=version, at=ctx.now, owed=claim)}
            return StepResult(done=False, facts=facts, retry_after=AT_ONCE, waiting_for=waiting)
        item = await find_firmware(client, "BMC")
        pushed = await _send(site, ctx, client, package, item.uri, restarts=True)
    site.depot_seen = package.seen
    return StepResult(
        done=False,
        facts={"bmc_firmware_sent": SentFirmware(version=version, at=ctx.now, seen=pushed.seen)},
        statements=(("firmware", claim | {"sent_by": pushed.by}),),
        retry_after=LOOK_AGAIN,
        waiting_for=waiting,
    )


def _board(ctx: StepContext) -> FirmwareFact:
    if ctx.facts.firmware is None:
        raise FreeholdError("its board is not known yet", server=ctx.name, remedy="decommission it, or declare it anew")
    return ctx.facts.firmware


async def _send(
    site: Site, ctx: StepContext, client: RedfishClient, package: "_Package", uri: str, *, restarts: bool = False
) -> Sent:
    await ctx.ensure_lease(BMC_COMMAND)  # a long upload is cut off with the lease, and what is cut is not installed
    server = FileServer(site.shelf.serve, site.keys.tls_anchor.decode())
    return await push_firmware(client, package.content, uri, name=package.target.path, server=server, restarts=restarts)


class _Package(NamedTuple):
    """What is sent, verified and in memory: nobody can change it after that."""

    target: Target
    content: bytes
    seen: Seen
    floor: str | None  # the security floor that it is below
    ticket: Approved | None  # which let it be

    def claim(self, board: FirmwareFact, was: str) -> dict[str, Any]:
        """What the log is to say, but for how it was sent."""
        about = self.target.about
        claim = {
            "component": about.component,
            "board": f"{board.vendor} {board.model}",
            "from": was,
            "to": about.version,
            "target": self.target.path,
            "sha256": self.target.sha256,
            "length": self.target.length,
            "staged_locally": True,
            "verified": True,
            "vendor_signature": about.vendor_signature,
            "unsigned_because": about.unsigned_because,
            "below_floor": self.floor,
            "downgrade": self.ticket.claim if self.ticket is not None and self.floor is not None else None,
            "depot": self.seen,
        }
        return msgspec.json.decode(msgspec.json.encode(claim), type=dict[str, Any])  # as a fact has it when read again


async def _package(site: Site, ctx: StepContext, component: str, installed: str, version: str) -> _Package:
    board = _board(ctx)
    wanted = Wanted(Kind.FIRMWARE, board.vendor, component, version, model=board.model)
    tickets = await site.approvals.approved(Act.DOWNGRADE, downgrades.subject_of(ctx.name), ctx.now)
    ticket = downgrades.fitting(tickets, wanted, installed)
    return await asyncio.to_thread(_verified, site, wanted, ticket, ctx.name, installed)


async def _spend_ticket(site: Site, ctx: StepContext, component: str, version: str) -> None:
    """A ticket is for one downgrade: once the firmware that it let in is there, it lets nothing in any more."""
    for each in await site.approvals.approved(Act.DOWNGRADE, downgrades.subject_of(ctx.name), ctx.now):
        if (each.request.details["component"], each.request.details["to"]) == (component, version):
            await site.approvals.spend(each.request.id, ctx.now)


def _verified(site: Site, wanted: Wanted, ticket: Approved | None, server: str, installed: str) -> _Package:
    client = site.depot.client(site.depot_seen)
    target, data = client.fetch(wanted, downgrades.used(ticket, server, installed) if ticket is not None else None)
    return _Package(target, data, client.seen, client.floor_above(wanted, target), ticket)


async def learn_reference(site: Site, ctx: StepContext) -> StepResult:
    """Take down what the firmware measures now. Else that is done in discovery, and for a server that was released with
    `--remeasure`, which then takes two operators whatever policy says. A BMC that
    still tells of another version has not done what it said; neither has one whose machine measures other code than
    the operators signed for that version."""
    agent, board = ctx.server.agent, ctx.facts.firmware
    assert agent is not None
    async with site.bmc(ctx.server, ctx.ensure_lease) as client:
        told = await bios_version(client)
    if board is not None and told != board.version:
        why = f"after the update to BIOS {board.version} the BMC tells of version {told or 'none'}"
        return StepResult(done=False, quarantine=why)
    measured = measured_reference(agent)
    if board is not None:
        values = ReferenceValues(vendor=board.vendor, model=board.model, version=board.version, digests=measured)
        compared = await asyncio.to_thread(against, site.depot, site.depot_seen, values)
        if compared.differs:
            why = f"after the update to BIOS {told} its firmware is not what the depot lists: {compared.said}"
            return StepResult(done=False, quarantine=why)
    await _spend_ticket(site, ctx, "bios", told)
    return StepResult(facts={"learned_reference": measured})
