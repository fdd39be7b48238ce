"""The step that puts the site's newest Secure Boot keys on a server, through its BMC or by the enrolment image.

It is done while no OS is on the server. That it has begun is a fact before anything is written, and until it is done
nothing is booted or appraised: half-written keys would make the server measure what nobody predicted.
"""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from freehold.model.findings import Finding, Severity
from freehold.model.resources import Waivable
from freehold.orchestration import waivers
from freehold.orchestration.site import BMC_COMMAND, Site
from freehold.orchestration.step import StepContext, StepResult
from freehold.orchestration.steps.booting import boot_hosts, require_bootable
from freehold.out_of_band import server as oob
from freehold.out_of_band.errors import NotSupported
from freehold.out_of_band.redfish import RedfishClient
from freehold.out_of_band.secure_boot import (
    KeyDatabases,
    SecureBootState,
    enable_secure_boot,
    enroll_secure_boot,
    holds,
    reset_secure_boot,
    secure_boot_state,
)
from freehold.provisioning.images.enrolment import signed_enrolment_image
from freehold.provisioning.images.uki import make_iso
from freehold.root_of_trust.pki import utc_now
from freehold.root_of_trust.secure_boot_generations import KeySet

AT_ONCE, LOOK_AGAIN, ANEW = 0.1, 5.0, 60.0
"""Seconds until the step runs again: it goes on, it waits for the image, it begins from the start."""

IMAGE_PATIENCE = 900.0
"""Seconds from power-on to the end of the enrolment image, the firmware's self-tests included."""

FINDING = "secure-boot-enrolment"
CONFIRMED_BY = "PCR 7 of the next attested boot"


def databases(keys: KeySet) -> KeyDatabases:
    """What a BMC is to write for these keys."""
    return KeyDatabases(certificates=keys.pems, dbx=tuple(digest.hex() for digest in keys.dbx))


def as_enrolled(state: SecureBootState, keys: KeySet) -> bool:
    """As far as the BMC shows it: Secure Boot is on, with these keys. One that shows no databases is not asked."""
    return state.enabled and (not state.databases or holds(state, databases(keys)))


async def secure_boot_shown(client: RedfishClient) -> SecureBootState | None:
    """None: the BMC tells nothing at all of Secure Boot."""
    try:
        return await secure_boot_state(client)
    except NotSupported:
        return None


async def enroll(site: Site, ctx: StepContext) -> StepResult:
    """PK, KEK, db and dbx are those of the newest generation, and Secure Boot is on. PCR 7 of the next attested boot
    confirms it."""
    keys = await site.newest_keys()
    for image in (site.agent_image, *(each.booted for each in site.images.values())):
        require_bootable(image, keys)
    if not ctx.facts.secure_boot_changing:
        return _not_yet({"secure_boot_changing": True}, AT_ONCE)
    await ctx.ensure_lease(BMC_COMMAND)
    async with site.bmc(ctx.server, ctx.ensure_lease) as client:
        if ctx.facts.enrolment_booted_at is not None:
            return await _after_the_image(site, ctx, client, keys)
        await oob.power(client, "off")
        try:
            state = await enroll_secure_boot(client, databases(keys))
        except NotSupported as lacking:
            try:
                return await _boot_the_image(site, ctx, client, keys, lacking)
            except NotSupported as neither:
                return await _failed(site, ctx, client, f"{lacking.what}; and no enrolment image: {neither.what}")
    return _done(keys, state, "the BMC")


def _done(keys: KeySet, state: SecureBootState | None, by: str) -> StepResult:
    shown = state is not None and bool(state.databases)
    claim = {
        "generation": keys.generation,
        "enabled": state.enabled if state is not None else None,
        "databases": {name: list(held) for name, held in state.entries.items()} if state and shown else None,
        "written_by": by,
        "confirmed_by": CONFIRMED_BY,
    }
    facts = {
        "secure_boot_enrolled": True,
        "secure_boot_generation": keys.generation,
        "secure_boot_confirmed": None,
        "secure_boot_waived": False,
        "secure_boot_changing": False,
        "enrolment_booted_at": None,
    }
    event = f"Secure Boot keys of generation {keys.generation} are enrolled"
    return StepResult(facts=facts, statements=(("secure-boot", claim),), events=(event,), resolved=(FINDING,))


async def _boot_the_image(
    site: Site, ctx: StepContext, client: RedfishClient, keys: KeySet, lacking: NotSupported
) -> StepResult:
    """Into setup mode, where the BMC can do that, and then into the image."""
    with contextlib.suppress(NotSupported):  # then a person has to: the image says so on the console
        await reset_secure_boot(client, "DeleteAllKeys")
    view, medium = ctx.server, ctx.server.spec.boot_method == "virtualMedia"
    path = await asyncio.to_thread(_make_image, site, ctx.name, keys, medium)
    site.files.register("boot", path.name, path)
    await site.answer_dhcp(view.name, boot_hosts(site, view))
    if medium:
        await oob.eject_media(client)
        await oob.insert_media(client, site.media_url(path.name))
        await oob.boot_cd(client)
    else:
        await oob.set_boot_http(client, f"{site.boot_url}/boot/{path.name}")
    await oob.power(client, "reset")
    event = f"{lacking.what}: started into the enrolment image"
    return _not_yet({"enrolment_booted_at": ctx.now}, LOOK_AGAIN, events=(event,))


def _make_image(site: Site, server: str, keys: KeySet, medium: bool) -> Path:
    agent = site.files.find("boot", "agent.efi")
    assert agent is not None
    folder = site.directory / "enrolment"
    folder.mkdir(exist_ok=True)
    image = signed_enrolment_image(agent.read_bytes(), site.keys.secure_boot, keys.generation, utc_now())
    path = folder / f"enrol-{server}.{'iso' if medium else 'efi'}"
    path.unlink(missing_ok=True)
    if medium:
        return make_iso(image, path)
    path.write_bytes(image)
    return path


async def _after_the_image(site: Site, ctx: StepContext, client: RedfishClient, keys: KeySet) -> StepResult:
    """The image turns the machine off when it is done, and only then."""
    booted = ctx.facts.enrolment_booted_at or 0.0
    if await oob.power_state(client) != "Off":
        if ctx.now - booted < IMAGE_PATIENCE:
            return _not_yet({}, LOOK_AGAIN)
        return await _failed(site, ctx, client, "the enrolment image did not come to its end")
    await _take_back(site, ctx, client)
    state = await secure_boot_shown(client)
    if state is not None and state.mode == "SetupMode":
        return await _failed(site, ctx, client, "the BMC still reports setup mode after the enrolment image")
    return _done(keys, await enable_secure_boot(client) if state is not None else None, "the enrolment image")


async def _take_back(site: Site, ctx: StepContext, client: RedfishClient) -> None:
    """Nothing starts into the image any more."""
    await oob.clear_boot_override(client)
    if ctx.server.spec.boot_method == "virtualMedia":
        await oob.eject_media(client)
    await site.answer_dhcp(ctx.name, ())


async def _failed(site: Site, ctx: StepContext, client: RedfishClient, why: str) -> StepResult:
    """Neither BMC nor image could do it. Under a waiver a server that never had our keys goes without them: it is
    measured as one in setup mode. Otherwise it begins anew, and a person is told what to do: a server that has our keys
    is not let down to none."""
    await oob.power(client, "off")
    waiver = waivers.waiver_for(ctx.server.waivers, Waivable.SECURE_BOOT_DATABASES, ctx.now)
    if waiver is not None and not ctx.facts.secure_boot_enrolled:
        await _take_back(site, ctx, client)
        facts = {
            "secure_boot_waived": True,
            "secure_boot_changing": False,
            "enrolment_booted_at": None,
        }
        claim = waivers.claim(waiver, ctx.now, why=why)
        event = f"it goes without the site's Secure Boot keys, by waiver {waiver.name}: {why}"
        return StepResult(facts=facts, statements=(("waiver", claim),), events=(event,), resolved=(FINDING,))
    finding = Finding(
        severity=Severity.WARNING,
        kind=FINDING,
        subject="Secure Boot",
        detail=why,
        remedy="look at the server's console; if its firmware has keys that its BMC cannot clear, do it in its set-up, "
        + waivers.remedy(ctx.name, Waivable.SECURE_BOOT_DATABASES),
    )
    return _not_yet({"enrolment_booted_at": None}, ANEW, findings=(finding,), events=(why,))


def _not_yet(facts: dict[str, Any], again: float, **rest: Any) -> StepResult:
    waiting = "its Secure Boot keys to be enrolled"
    return StepResult(done=False, facts=facts, retry_after=again, waiting_for=waiting, **rest)
