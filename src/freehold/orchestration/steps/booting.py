"""Steps that start and stop machines: into the agent, into the OS, off."""

import time
from typing import Any

from freehold.model.errors import FreeholdError
from freehold.model.status import Facts, ServerState
from freehold.orchestration.conditions import OS_RUNS, given_up, wants_ticket
from freehold.orchestration.measurements import REVOKED, BootedImage
from freehold.orchestration.os_images import require_agent
from freehold.orchestration.revocations import revoked
from freehold.orchestration.site import BMC_COMMAND, Site
from freehold.orchestration.step import StepContext, StepResult
from freehold.orchestration.view import ServerView
from freehold.out_of_band import server as oob
from freehold.out_of_band.redfish import RedfishClient
from freehold.provisioning.dhcp import BootHost
from freehold.root_of_trust.depot import MetadataExpired
from freehold.root_of_trust.secure_boot_generations import KeySet

_WITH_AGENT = (ServerState.DISCOVERING, ServerState.PREPARING, ServerState.DECOMMISSIONING)


def generation_of(facts: Facts) -> int | None:
    """The generation of Secure Boot keys that the server carries; None: none of ours."""
    return (facts.secure_boot_generation or 1) if facts.secure_boot_enrolled else None


def require_bootable(image: BootedImage, keys: KeySet) -> None:
    """Raises rather than start a server into what its firmware refuses, or give it keys that would refuse it."""
    if (why := image.refused_by(keys)) is not None:
        raise FreeholdError(
            f"{image.name}, as this controller boots it, would not start under the server's Secure Boot keys: {why}",
            remedy="restart `freehold serve`: it builds and signs with the keys that there are now. "
            "If the digest is revoked on purpose, update Freehold first, so that it builds another one",
        )


def boot_hosts(site: Site, view: ServerView, *, boots: bool = True) -> tuple[BootHost, ...]:
    """The NICs of the server that are in the provisioning network; `boots`: they are also told what to boot."""
    wanted = site.spec.networks.provisioning
    return tuple(
        BootHost(mac=nic.mac.lower(), address=nic.address, hostname=view.name, boots=boots)
        for nic in view.spec.nics
        if nic.network == wanted
    )


def answered(site: Site, view: ServerView) -> tuple[BootHost, ...]:
    """Whom of the server DHCP answers, as its status tells: nobody while it is off; and it is told of something to boot
    only while our agent is on its way. A server in quarantine keeps its address and gets nothing to boot."""
    status, facts = view.status, view.facts
    state = status.quarantined_from or status.state
    if state in _WITH_AGENT:
        decommissioning = state is ServerState.DECOMMISSIONING  # begins while the old OS still runs
        runs = not facts.agent_released and (decommissioning or facts.agent_booted_at is not None)
        boots = runs and facts.agent_booted_at is not None
    elif state is ServerState.PROVISIONING:
        runs = facts.agent_booted_at is not None
        boots = runs and facts.os_booted_at is None
    else:
        runs, boots = state in OS_RUNS, False
    boots = boots and status.state is not ServerState.QUARANTINED
    return boot_hosts(site, view, boots=boots) if runs else ()


async def boot_agent(site: Site, ctx: StepContext) -> StepResult:
    """Start the machine into the signed agent, by UEFI HTTP Boot or from virtual media, once. Where a waiver stands for
    a TPM that was never seen, a ticket for this boot comes with it, by virtual media in either case."""
    view = ctx.server
    if view.facts.secure_boot_enrolled:
        require_bootable(site.agent_image, await site.keys_of(view.facts))
    try:
        await require_agent(site)
    except MetadataExpired:  # an erasure does not wait for a medium; it was listed a while ago, and has not changed
        if not (site.agent_listed and view.status.state is ServerState.DECOMMISSIONING):
            raise
    await site.end_session(view.name)
    for key in view.orders:
        await ctx.agents.drop(view.name, key)  # nobody may answer what was asked of an earlier boot
    await site.answer_dhcp(view.name, boot_hosts(site, view))
    await ctx.ensure_lease(BMC_COMMAND)
    site.tickets.clear(view.name)
    by_media, medium, ticket = view.spec.boot_method == "virtualMedia", site.media_url(site.agent_iso), None
    if wants_ticket(view, ctx.now):
        medium, ticket = await site.give_ticket(view.name)
    async with site.bmc(view, ctx.ensure_lease) as client:
        if by_media or ticket or view.facts.boot_ticket:
            await oob.eject_media(client)  # a medium of the same name may be an older one
        if by_media or ticket:
            await oob.insert_media(client, medium)
        if by_media:
            await oob.boot_cd(client)
        else:
            await oob.set_boot_http(client, f"{site.boot_url}/boot/agent.efi")
        booted_at = time.time()
        await oob.power(client, "reset")
    # An agent of an earlier boot may have said hello between the first end and the reset; it is not the one we want.
    await site.end_session(view.name)
    claim = {
        "boots": site.agent_image.name,
        "uki_sha256": site.agent_image.sha256,
        "method": view.spec.boot_method,
        "ticket_sha256": ticket,
        "secure_boot_enrolled": view.facts.secure_boot_enrolled,
        "secure_boot_generation": generation_of(view.facts),
    }
    facts: dict[str, Any] = {
        "agent_booted_at": booted_at,
        "agent_uki": site.agent_image.sha256,
        "agent_trust": site.agent_trust,
        "boot_ticket": ticket,
    }
    if view.status.state is ServerState.DECOMMISSIONING:
        facts["media"] = None  # the old OS may have run meanwhile: what was erased before this boot is erased again
    refused = revoked(view.name, site.agent_image, await site.newest_keys())
    why = given_up(view, ctx.now)
    events = (f"{why}; the machine is started into it anew",) if why is not None else ()
    return StepResult(
        facts=facts,
        statements=(("boot-config", claim),),
        events=events,
        findings=(refused,) if refused is not None else (),
        resolved=(REVOKED,),  # whatever ran before does not run any more
    )


async def release_agent(site: Site, ctx: StepContext) -> StepResult:
    """The agent did its work: the machine goes off, and nobody on the provisioning network answers it any more."""
    await stop(site, ctx)
    await site.answer_dhcp(ctx.name, ())
    return StepResult(facts={"agent_released": True, "boot_ticket": None})


async def power_off(site: Site, ctx: StepContext) -> StepResult:
    """The workload stops here, and the OS's session with it."""
    await stop(site, ctx)
    return StepResult(facts={"workload_stopped": True})


async def stop(site: Site, ctx: StepContext) -> None:
    """Off, and nothing starts by what we have put in its way."""
    await ctx.ensure_lease(BMC_COMMAND)
    async with site.bmc(ctx.server, ctx.ensure_lease) as client:
        await oob.power(client, "off")
        await oob.clear_boot_override(client)
        await _take_media_back(site, ctx, client)
    await site.end_session(ctx.name)


async def _take_media_back(site: Site, ctx: StepContext, client: RedfishClient) -> None:
    if ctx.server.spec.boot_method == "virtualMedia" or ctx.facts.boot_ticket is not None:
        await oob.eject_media(client)
    site.tickets.clear(ctx.name)


async def boot_os(site: Site, ctx: StepContext) -> StepResult:
    """The agent restarts the machine; the firmware starts the OS by the boot entry that was written."""
    view = ctx.server
    if view.agent is not None and view.agent.mode == "ramdisk":
        await ctx.ensure_lease(BMC_COMMAND)
        async with site.bmc(view, ctx.ensure_lease) as client:
            await oob.clear_boot_override(client)
            await _take_media_back(site, ctx, client)
        if await site.ordered(ctx, "reboot", {}) is None:
            return StepResult(done=False)
    # From here on it needs an address of ours, and nothing to boot: it has a disk for that.
    await site.answer_dhcp(view.name, boot_hosts(site, view, boots=False))
    assert view.facts.image is not None
    image = site.os_build(view.facts.image.manifest)
    if image is None:
        raise FreeholdError(
            f"this controller does not keep the build of {view.facts.image.name} that it was given",
            server=view.name,
            remedy="restore its directory under state/images, or decommission the server and assign it anew",
        )
    claim = {
        "boots": image.name,
        "uki_sha256": image.sha256,
        "method": "disk",
        "secure_boot_enrolled": view.facts.secure_boot_enrolled,
        "secure_boot_generation": generation_of(view.facts),
    }
    # Any OS that says hello after this agent did is the one that was just written.
    since = view.agent.started if view.agent else ctx.now
    facts = {"os_booted_at": since, "boot_ticket": None}
    return StepResult(facts=facts, statements=(("boot-config", claim),))
