"""Steps of `securing`: from a factory BMC to one that only this site can open."""

import asyncio
import hmac

import msgspec

from freehold.model.findings import Finding, Severity
from freehold.model.resources import Waivable
from freehold.model.status import Intent, IntentKind
from freehold.orchestration import waivers
from freehold.orchestration.default_probe import probe
from freehold.orchestration.passwords import PasswordIndex
from freehold.orchestration.renewals import why_rotated
from freehold.orchestration.site import BMC_COMMAND, Site
from freehold.orchestration.step import StepContext, StepResult
from freehold.orchestration.view import ServerView
from freehold.out_of_band import server as oob
from freehold.out_of_band import transport
from freehold.out_of_band.accounts import RedfishDoor
from freehold.out_of_band.audit import read_firmware
from freehold.out_of_band.errors import BmcError, NotSupported
from freehold.out_of_band.factory_credentials import IN_USE, UNTRIED
from freehold.out_of_band.hardening import directories, harden, opened
from freehold.out_of_band.ipmi.findings import IPMI_KINDS, ipmi_findings
from freehold.out_of_band.ipmi.probe import IpmiPosture, probe_ipmi
from freehold.out_of_band.posture import disproved, posture_findings, read_accounts, read_posture
from freehold.out_of_band.redfish import RedfishClient
from freehold.out_of_band.takeover import take_over
from freehold.out_of_band.takeover_steps import foreign_accounts
from freehold.out_of_band.transport import fetch_identity

UNCONFIRMED = "bmc-key-unconfirmed"

CONFIRM_TURN = 60.0
"""Seconds until a BMC whose key nobody confirmed is looked at again; a confirmation wakes it at once."""

ROTATION_TURN = 3.0
"""Seconds until a server whose turn it was not is looked at again."""

IPMI_TURN = 15.0
"""Seconds until a BMC that answered IPMI after it was off is probed again."""
IPMI_OFF = "off"
_STOPPING_ROUNDS, _STOPPING_SECONDS = 2, 3.0


async def pin_identity(_site: Site, ctx: StepContext) -> StepResult:
    """Record the key of the BMC's certificate before any credential is sent to it. What a document declares and what a
    person confirmed must both be that key."""
    seen = (await fetch_identity(ctx.server.spec.bmc.address, server=ctx.name)).spki_sha256
    declared, confirmed = ctx.server.spec.bmc.expected_fingerprint, confirmation(ctx.server)
    vouched = {"declared": declared} if declared is not None else {}
    if confirmed is not None:
        vouched |= {f"confirmed by {confirmed.by}": str(confirmed.args.get("fingerprint"))}
    if not vouched and ctx.server.policy.first_contact == "confirm":
        return _unconfirmed(ctx, seen)
    for how, key in vouched.items():
        if not hmac.compare_digest(key.lower().encode(), seen.encode()):
            why = f"the BMC shows key {seen}, {how} is {key.lower()}; nothing was sent to it"
            return StepResult(done=False, quarantine=why, resolved=(UNCONFIRMED,))
    method = ", ".join("declared fingerprint" if how == "declared" else how for how in vouched) or "trust on first use"
    claim = {"address": ctx.server.spec.bmc.address, "spki_sha256": seen, "method": method}
    facts = {"bmc_identity": seen, "bmc_address": ctx.server.spec.bmc.address, "bmc_key_seen": None}
    return StepResult(facts=facts, statements=(("bmc-identity", claim),), resolved=(UNCONFIRMED,))


def confirmation(server: ServerView) -> Intent | None:
    """The latest confirmation of the BMC's key that was not acted upon."""
    return next((each for each in reversed(server.intents) if each.kind is IntentKind.CONFIRM), None)


def _unconfirmed(ctx: StepContext, seen: str) -> StepResult:
    finding = Finding(
        severity=Severity.WARNING,
        kind=UNCONFIRMED,
        subject=ctx.name,
        detail=f"the BMC at {ctx.server.spec.bmc.address} shows key {seen}; policy wants a person to confirm it",
        remedy=f"compare it with the BMC's own screen, then `freehold confirm {ctx.name}`",
    )
    return StepResult(
        done=False,
        facts={"bmc_key_seen": seen},
        findings=(finding,),
        retry_after=CONFIRM_TURN,
        waiting_for="a person to confirm the BMC's key",
    )


async def take_over_credential(site: Site, ctx: StepContext) -> StepResult:
    """A unique random credential in two phases; other accounts are disabled on the way."""
    return await _new_credential(site, ctx, rotate=False)


async def rotate_credential(site: Site, ctx: StepContext) -> StepResult:
    """A new password for our own account, as policy's interval or a person wants it. A few BMCs at a time."""
    if site.rotations.locked():
        return StepResult(done=False, retry_after=ROTATION_TURN, waiting_for="its turn to rotate")
    async with site.rotations:
        return await _new_credential(site, ctx, rotate=True)


async def _new_credential(site: Site, ctx: StepContext, *, rotate: bool) -> StepResult:
    door = RedfishDoor(await site.connector(ctx.server), ensure=lambda: ctx.ensure_lease(BMC_COMMAND))
    kept = frozenset(waivers.of_accounts(ctx.server.waivers, ctx.now))
    result = await take_over(door, site.slots(ctx.server), server=ctx.name, rotate=rotate, keep=kept)
    credential = await site.slots(ctx.server).current()
    assert credential is not None
    index = PasswordIndex(site.vault)
    claim = {
        **({"event": "rotated", "why": why_rotated(ctx.server, ctx.now)} if rotate else {"event": "taken-over"}),
        "username": result.username,
        "unique": not await asyncio.to_thread(index.shared_with, ctx.name, credential.password),
        "password_length": len(credential.password),
        "password_digest": await asyncio.to_thread(index.digest, credential.password),
        "stored": "vault",
        "steps": list(result.steps),
        "factory_accounts_disabled": not result.remaining,
        "remaining_accounts": list(result.remaining),
        "waived_accounts": sorted(kept),
    }
    facts: dict[str, object] = {"bmc_credential_committed": True, "bmc_credential_since": ctx.now}
    if ctx.facts.bmc_address is None:  # pinned before the address was kept
        facts["bmc_address"] = ctx.server.spec.bmc.address
    return StepResult(facts=facts, statements=(("credential", claim),))


async def disable_factory_accounts(site: Site, ctx: StepContext) -> StepResult:
    """No enabled account but ours and those that are waived. Read back; an account that cannot be disabled stops the
    server here."""
    waived = waivers.of_accounts(ctx.server.waivers, ctx.now)
    await ctx.ensure_lease(BMC_COMMAND)
    async with site.bmc(ctx.server, ctx.ensure_lease) as client:
        own = await site.own_account(ctx.server)
        for account in foreign_accounts(await read_accounts(client), own, frozenset(waived)):
            await oob.disable_account(client, account.uri)
        enabled = foreign_accounts(await read_accounts(client), own)
    if left := [account for account in enabled if account.username not in waived]:
        names = ", ".join(account.username for account in left)
        hint = waivers.remedy(ctx.name, Waivable.BMC_ACCOUNT)
        raise NotSupported(
            f"accounts {names} are still enabled",
            server=ctx.name,
            remedy=f"delete them by hand on the BMC, then resume, {hint}",
        )
    kept = [waived[account.username] for account in enabled]
    statements = tuple(("waiver", waivers.claim(each, ctx.now, why="declared")) for each in kept)
    return StepResult(facts={"factory_accounts_disabled": True}, statements=statements)


async def disable_ipmi(site: Site, ctx: StepContext) -> StepResult:
    """IPMI over LAN off, and its port asked whether that is true: one that answers still goes no further without a
    waiver, whatever its BMC says of it."""
    await ctx.ensure_lease(BMC_COMMAND)
    async with site.bmc(ctx.server, ctx.ensure_lease) as client:
        state = await without_ipmi(client)
        port = await oob.ipmi_port(client)
    answered = await _ipmi_after(transport.split_address(ctx.server.spec.bmc.address)[0], port)
    findings = tuple(ipmi_findings(answered, subject=ctx.name, declared=False if state == IPMI_OFF else None))
    resolved = tuple(IPMI_KINDS - {finding.kind for finding in findings})
    waiver = waivers.waiver_for(ctx.server.waivers, Waivable.IPMI, ctx.now)
    if answered.present and waiver is None:
        says = "the BMC says that IPMI is off" if state == IPMI_OFF else state
        return StepResult(
            done=False,
            findings=findings,
            resolved=resolved,
            retry_after=IPMI_TURN,
            waiting_for=f"UDP {answered.address} port {port} to be silent ({says}): close it on the BMC, "
            + waivers.remedy(ctx.name, Waivable.IPMI),
        )
    claim = {"kind": "ipmi", "ipmi": state, "probe": msgspec.to_builtins(answered)}
    statements: tuple[tuple[str, dict[str, object]], ...] = (("posture", claim),)
    if answered.present and waiver is not None:
        statements = (*statements, ("waiver", waivers.claim(waiver, ctx.now, why=state)))
    return StepResult(
        facts={"ipmi_off": True, "ipmi_waived": answered.present},
        statements=statements,
        findings=findings,
        resolved=resolved,
    )


async def _ipmi_after(address: str, port: int) -> IpmiPosture:
    """A BMC takes a moment to stop the service: one that answers is asked again."""
    answered = await probe_ipmi(address, port=port, users=())
    for _ in range(_STOPPING_ROUNDS):
        if not answered.present:
            break
        await asyncio.sleep(_STOPPING_SECONDS)
        answered = await probe_ipmi(address, port=port, users=())
    return answered


async def without_ipmi(client: RedfishClient) -> str:
    """IPMI over LAN off, in words. A BMC without an IPMI switch has no IPMI that we could know of; what one does that
    says no, a probe of its port finds out. Raises what passes by itself."""
    try:
        await oob.set_ipmi(client, False)
    except NotSupported:
        return "the BMC has no IPMI switch"
    except BmcError as error:
        if (error.status or 0) >= 500:
            raise
        return f"the BMC does not turn IPMI off: {error.what}"
    return IPMI_OFF


async def close_services(site: Site, ctx: StepContext) -> StepResult:
    """What nobody needs is closed. What the BMC does not let us close stays as a finding of `record_posture`; but a
    directory whose users it lets in stops the server here, as an account does that is not ours."""
    waiver = waivers.waiver_for(ctx.server.waivers, Waivable.BMC_DIRECTORY, ctx.now)
    await ctx.ensure_lease(BMC_COMMAND)
    async with site.bmc(ctx.server, ctx.ensure_lease) as client:
        hardened = await harden(client, keep_directories=waiver is not None)
        left = opened(await read_posture(client))
    let_in = directories(left)
    if let_in and waiver is None:
        hint = waivers.remedy(ctx.name, Waivable.BMC_DIRECTORY)
        raise NotSupported(
            f"its BMC still lets in whom a directory vouches for ({', '.join(let_in)})",
            server=ctx.name,
            remedy=f"turn it off in the BMC's AccountService, then resume, {hint}",
        )
    claim = {"kind": "services", **msgspec.to_builtins(hardened), "left_open": list(left)}
    statements: tuple[tuple[str, dict[str, object]], ...] = (("posture", claim),)
    if let_in and waiver is not None:
        statements = (*statements, ("waiver", waivers.claim(waiver, ctx.now, why="declared")))
    return StepResult(facts={"services_closed": True, "services_left_open": left}, statements=statements)


async def record_posture(site: Site, ctx: StepContext) -> StepResult:
    """How open the BMC still stands, as findings and as evidence. What was found before and is mended goes."""
    async with site.bmc(ctx.server, ctx.ensure_lease) as client:
        posture = await read_posture(client)
        firmware = await read_firmware(client, posture)
    own, connect = await site.own_account(ctx.server), await site.connector(ctx.server)
    findings: list[Finding] = posture_findings(posture, subject=ctx.name, expected_accounts=frozenset({own}))
    await ctx.ensure_lease(BMC_COMMAND)
    probed = await probe(site.vault, ctx.name, connect, posture, firmware, own=own, now=ctx.now)
    over = disproved(posture) | (set() if any(each.kind == UNTRIED for each in probed) else {IN_USE})
    findings += [each for each in probed if each.severity is not Severity.INFO]  # an audit says what was not tried
    claim = {
        "kind": "configuration",
        "services": msgspec.to_builtins(posture.services),
        "connectors": msgspec.to_builtins(posture.connectors),
        "lockout_threshold": posture.policy.lockout_threshold,
        "findings": msgspec.to_builtins(findings),
    }
    return StepResult(
        facts={"posture_recorded": True},
        statements=(("posture", claim),),
        findings=tuple(findings),
        resolved=tuple(sorted(over)),
    )
