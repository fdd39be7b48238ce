"""Steps of `decommissioning`: erase, look again, clear the TPM, destroy keys, and say so in a certificate."""

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import msgspec

from freehold.model.errors import FreeholdError
from freehold.model.resources import Waivable
from freehold.model.status import Facts, Medium, Order
from freehold.operations.sanitization import MediumStatement, allowed, judge, require_clean
from freehold.orchestration import waivers
from freehold.orchestration.measurements import REVOKED
from freehold.orchestration.site import BMC_COMMAND, Site
from freehold.orchestration.step import StepContext, StepResult
from freehold.orchestration.steps.secure_boot import AT_ONCE, as_enrolled, secure_boot_shown
from freehold.orchestration.steps.securing import without_ipmi
from freehold.out_of_band import server as oob
from freehold.out_of_band.hardening import harden
from freehold.out_of_band.posture import read_accounts
from freehold.out_of_band.takeover_steps import foreign_accounts

CANARIES, SAMPLE_BYTES = 64, 4096

NO_TPM = "none to be cleared: the server goes without a TPM, by a waiver; nothing proves what the agent was that erased"


async def list_media(site: Site, ctx: StepContext) -> StepResult:
    """Every disk that the machine has now, not the ones that it had when it came."""
    order = await site.ordered(ctx, "inventory", {})
    if order is None:
        return StepResult(done=False)
    disks = order.result.get("disks") or []
    if nameless := [disk["name"] for disk in disks if not disk.get("serial")]:
        raise FreeholdError(
            f"disks {', '.join(nameless)} have no serial number, so nothing could be certified about them",
            server=ctx.name,
            remedy="remove them, or destroy them physically and record it",
        )
    known = {str(disk["serial"]) for disk in (ctx.facts.inband_inventory or {}).get("disks", [])}
    gone = tuple(sorted(known - {str(disk["serial"]) for disk in disks}))
    waiver = waivers.waiver_for(ctx.server.waivers, Waivable.MISSING_MEDIUM, ctx.now) if gone else None
    if gone and waiver is None:
        raise FreeholdError(
            f"disks {', '.join(gone)} were in this server and are not there now: data may have left with them",
            server=ctx.name,
            remedy=f"put them back, {waivers.remedy(ctx.name, Waivable.MISSING_MEDIUM)}",
        )
    media = tuple(Medium(serial=str(disk["serial"]), details={"disk": disk}) for disk in disks)
    claims = (("waiver", waivers.claim(waiver, ctx.now, media=list(gone))),) if waiver is not None else ()
    facts = {"media": media, "missing_media": gone}
    return StepResult(facts=facts, statements=claims, events=(f"{len(media)} media to sanitize",))


async def plant_canaries(site: Site, ctx: StepContext) -> StepResult:
    """Known blocks, so that an erase that does nothing is caught. The order keeps the seed over a crash."""
    args = {"device_serial": ctx.subject, "seed": secrets.token_hex(16), "count": CANARIES}
    return await _on_medium(site, ctx, "plant_canary", args, "planted", {"planted": True})


async def sanitize(site: Site, ctx: StepContext) -> StepResult:
    techniques = allowed(ctx.server.policy.sanitization.techniques)
    args = {"device_serial": ctx.subject, "allowed": techniques}
    return await _on_medium(site, ctx, "sanitize", args, "erased", {"sanitized": True})


async def _on_medium(
    site: Site, ctx: StepContext, kind: str, args: dict[str, Any], name: str, change: dict[str, Any]
) -> StepResult:
    order = await site.ordered(ctx, kind, args)
    if order is None:
        return StepResult(done=False)
    return StepResult(
        facts=changed(ctx.facts, ctx.subject, lambda old: change | {"details": old | {name: order.result}})
    )


def changed(facts: Facts, serial: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """The fact `media` with one medium changed."""
    media = (
        msgspec.structs.replace(medium, **change(medium.details)) if medium.serial == serial else medium
        for medium in facts.media or ()
    )
    return {"media": tuple(media)}


async def verify_sanitized(site: Site, ctx: StepContext) -> StepResult:
    """Read back. A medium with anything on it sends the server to quarantine, never back to the pool."""
    details = next(medium.details for medium in ctx.facts.media or () if medium.serial == ctx.subject)
    args = {
        "device_serial": ctx.subject,
        "seed": secrets.token_hex(16),  # drawn after the erase, so that nobody could prepare for it
        "samples": ctx.server.policy.sanitization.samples,
        "sample_bytes": SAMPLE_BYTES,
        "canaries": details["planted"]["canaries"],
    }
    order = await site.ordered(ctx, "verify_sanitized", args)
    if order is None:
        return StepResult(done=False)
    medium = statement(ctx.subject, details, order)
    facts = changed(
        ctx.facts, ctx.subject, lambda old: {"verified": medium.clean, "details": old | {"statement": medium.to_dict()}}
    )
    claim = (("sanitization", medium.to_dict()),)
    if not medium.clean:
        why = f"medium {medium.serial} is not proven clean: {'; '.join(medium.reasons)}"
        return StepResult(done=False, facts=facts, statements=claim, quarantine=why)
    return StepResult(facts=facts, statements=claim, events=(f"{medium.serial}: {medium.technique}, verified",))


def statement(serial: str, details: dict[str, Any], verified: Order) -> MediumStatement:
    """What was asked is taken from the order, not from the answer: seed and number of samples are ours."""
    asked = verified.args
    return judge(serial, details["disk"], details["planted"], details["erased"], verified.result, asked)


async def clear_tpm(site: Site, ctx: StepContext) -> StepResult:
    """TPM2_Clear: every key under the storage hierarchy is gone with its seed. Its counters begin anew, too. Only where
    a waiver stands for the TPM may there be none."""
    order = await site.ordered(ctx, "tpm_clear", {})
    if order is None:
        return StepResult(done=False)
    if order.result.get("cleared") is not True:
        if not ctx.facts.tpm_waived:
            why, then = "the agent found no TPM to clear", "enable its TPM again, then decommission it anew"
            raise FreeholdError(why, server=ctx.name, remedy=then)
        return StepResult(facts={"tpm_cleared": True}, events=("there is no TPM to clear, by a waiver",))
    if ctx.facts.ek_sha256 is not None:
        await ctx.agents.saw_tpm(ctx.facts.ek_sha256, None)
    return StepResult(facts={"tpm_cleared": True}, events=("the TPM's storage hierarchy is cleared",))


async def destroy_keys(site: Site, ctx: StepContext) -> StepResult:
    """The tenant's records in the vault: their data keys are overwritten and gone."""
    destroyed = await asyncio.to_thread(site.vault.destroy, f"tenants/{ctx.name}")
    claim = {
        "tpm": NO_TPM if ctx.facts.tpm_waived else "TPM2_Clear: the storage hierarchy's seed was replaced",
        "vault": [msgspec.to_builtins(key) for key in destroyed],
    }
    return StepResult(facts={"keys_destroyed": True}, statements=(("key-destruction", claim),))


async def reassert_state(site: Site, ctx: StepContext) -> StepResult:
    """Off, no foreign account, IPMI off, our Secure Boot keys, declared BIOS settings: whatever the last tenant did."""
    await ctx.ensure_lease(BMC_COMMAND)
    keys = await site.keys_of(ctx.facts)
    async with site.bmc(ctx.server, ctx.ensure_lease) as client:
        await oob.power(client, "off")
        secure_boot = await secure_boot_shown(client)
        enforced = not ctx.facts.secure_boot_waived  # without our keys there is nothing to be put back
        if enforced and secure_boot is not None and not as_enrolled(secure_boot, keys):
            # The step that enrols does it; until then nobody knows what this firmware would measure.
            facts = {"secure_boot_changing": True}
            return StepResult(
                done=False, facts=facts, retry_after=AT_ONCE, events=("its Secure Boot keys were changed",)
            )
        own = await site.own_account(ctx.server)
        waived = frozenset(waivers.of_accounts(ctx.server.waivers, ctx.now))
        for account in foreign_accounts(await read_accounts(client), own, waived):
            await oob.disable_account(client, account.uri)
        ipmi = await without_ipmi(client)
        directory = waivers.waiver_for(ctx.server.waivers, Waivable.BMC_DIRECTORY, ctx.now)
        await harden(client, keep_directories=directory is not None)
        if ctx.server.spec.bios:
            await oob.set_bios_attributes(client, dict(ctx.server.spec.bios))
        await oob.clear_boot_override(client)
    claim = {
        "kind": "re-asserted",
        "secure_boot": secure_boot.enabled if secure_boot is not None else None,
        "secure_boot_generation": keys.generation if enforced else None,
        "ipmi": ipmi,
        "accounts": [own, *sorted(waived)],
    }
    return StepResult(facts={"state_reasserted": True}, statements=(("posture", claim),))


async def certify(_site: Site, ctx: StepContext) -> StepResult:
    """The destruction certificate (SP 800-88r1, appendix G). Everything is looked at once more before it is signed."""
    media = [_stated(ctx, medium) for medium in ctx.facts.media or ()]
    require_clean(ctx.name, media)
    system = (ctx.facts.inband_inventory or {}).get("system") or {}
    claim = {
        "host": {
            "name": ctx.name,
            "manufacturer": system.get("manufacturer"),
            "product": system.get("product"),
            "serial": system.get("serial"),
            "uuid": system.get("uuid"),
            "ek_sha256": ctx.facts.ek_sha256,
        },
        "media": [medium.to_dict() for medium in media],
        "missing_media": list(ctx.facts.missing_media),
        "tpm_cleared": ctx.facts.tpm_cleared and not ctx.facts.tpm_waived,
        "tpm": NO_TPM if ctx.facts.tpm_waived else None,
        "keys_destroyed": ctx.facts.keys_destroyed,
        "guidance": "NIST SP 800-88 Rev. 1",
    }
    index = await ctx.record("decommission-certificate", claim)
    event = f"destruction certificate: leaf {index}"
    return StepResult(facts={"certificate_index": index}, events=(event,), resolved=(REVOKED,))


def _stated(ctx: StepContext, medium: Medium) -> MediumStatement:
    """The statement about this very medium."""
    stored = medium.details.get("statement")
    if not stored:
        raise FreeholdError(
            f"medium {medium.serial} has no sanitization statement", server=ctx.name, remedy="decommission again"
        )
    stated = msgspec.convert(stored, MediumStatement)
    if stated.serial != medium.serial:
        raise FreeholdError(
            f"the statement of medium {medium.serial} is about {stated.serial}",
            server=ctx.name,
            remedy="decommission again",
        )
    return stated
