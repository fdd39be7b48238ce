"""Steps of `active` and `remediating`: has the server drifted, and put it back."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from freehold.model.errors import FreeholdError
from freehold.model.resources import DriftKind
from freehold.operations.drift import Observation, diff, finding, sentence
from freehold.orchestration import waivers
from freehold.orchestration.conditions import attested_last, demanded
from freehold.orchestration.site import BMC_COMMAND, Site
from freehold.orchestration.step import StepContext, StepResult
from freehold.orchestration.steps.secure_boot import AT_ONCE, databases, secure_boot_shown
from freehold.out_of_band import server as oob
from freehold.out_of_band.errors import BmcError, NotSupported
from freehold.out_of_band.hardening import directories, harden, opened
from freehold.out_of_band.inventory import firmware_versions
from freehold.out_of_band.posture import read_posture
from freehold.out_of_band.redfish import RedfishClient
from freehold.out_of_band.secure_boot import KeyDatabases, enable_secure_boot, enroll_secure_boot, secure_boot_state
from freehold.out_of_band.takeover_steps import OWN_ACCOUNT

OWN_ROLE = "Administrator"

ANSWERED_WITHIN = 5.0
"""Seconds after the demand to attest until other work goes on: an OS that runs has mostly answered by then."""


_OF_SECURE_BOOT = (DriftKind.SECURE_BOOT, DriftKind.SECURE_BOOT_KEYS)


async def observe(client: RedfishClient) -> Observation:
    """The configuration as the BMC reports it now."""
    state, posture = await secure_boot_shown(client), await read_posture(client)
    return Observation(
        secure_boot=state.enabled if state is not None else None,
        secure_boot_keys=state.entries if state is not None else {},
        boot_order=await oob.boot_order(client),
        accounts={account.username: account.role for account in posture.accounts if account.enabled},
        bios=await oob.bios_attributes(client),
        firmware={item.id: item.version for item in await firmware_versions(client)},
        ipmi=posture.enabled("IPMI"),
        services=opened(posture),
    )


def accepted(
    observed: Observation,
    declared_bios: dict[str, Any],
    keys: KeyDatabases | None,
    own: str = OWN_ACCOUNT,
    left_open: tuple[str, ...] = (),
) -> Observation:
    """The baseline of a server that becomes active: what only the machine knows as observed, what is ours as declared.
    So an account or a key that came in before the first check is drift, not part of the baseline. In dbx, what the
    firmware forbids beside ours may stay. `keys` None: a waiver lets the server go without ours. `left_open`: what the
    BMC did not let `securing` close."""
    held, enabled = observed.secure_boot_keys, observed.secure_boot
    if keys is not None and enabled is not None:
        enabled = True
    if keys is not None and held:  # a BMC that shows none cannot tell of drift
        dbx = tuple(sorted({*held.get("dbx", ()), *keys.entries["dbx"]}))
        held = held | keys.entries | {"dbx": dbx}
    return msgspec.structs.replace(
        observed,
        secure_boot=enabled,
        secure_boot_keys=held,
        accounts={own: OWN_ROLE},
        bios=observed.bios | declared_bios,
        ipmi=False,
        services=left_open,
    )


async def check_drift(site: Site, ctx: StepContext) -> StepResult:
    """An account that is waived now is not looked at, and is drift on the day after. IPMI that nothing turned off is no
    drift: what people signed for it, and that this has ended, is told beside."""
    waived = waivers.of_accounts(ctx.server.waivers, ctx.now)
    async with site.bmc(ctx.server, ctx.ensure_lease) as client:
        observed = await observe(client)
    accounts = {name: role for name, role in observed.accounts.items() if name not in waived}
    observed = msgspec.structs.replace(observed, accounts=accounts, ipmi=observed.ipmi and not ctx.facts.ipmi_waived)
    stored = ctx.facts.baseline
    if stored is None:
        own = await site.own_account(ctx.server)
        keys = None if ctx.facts.secure_boot_waived else databases(await site.keys_of(ctx.facts))
        baseline = accepted(observed, ctx.server.spec.bios, keys, own, ctx.facts.services_left_open)
    else:
        baseline = msgspec.convert(stored, Observation)
    drift = diff(baseline, observed)
    facts: dict[str, Any] = {"drift": drift, "last_drift_check": ctx.now, "baseline": msgspec.to_builtins(baseline)}
    if observed.secure_boot_keys and not any(each.kind in _OF_SECURE_BOOT for each in drift):
        facts["secure_boot_changing"] = False  # what was begun is whole, or somebody has mended it: the BMC shows it
    before = {(each.kind, each.subject, each.observed) for each in ctx.facts.drift}
    fresh = [each for each in drift if (each.kind, each.subject, each.observed) not in before]
    statements: tuple[tuple[str, dict[str, Any]], ...] = ()
    if fresh or len(drift) != len(before) or stored is None:
        statements = (("drift", {"drift": msgspec.to_builtins(drift), "first_check": stored is None}),)
    return StepResult(
        facts=facts,
        statements=statements,
        events=tuple(sentence(each) for each in fresh),
        findings=tuple(finding(ctx.name, each, ctx.server.policy.reaction(each.kind)) for each in drift),
        resolved=tuple(kind.value for kind in DriftKind if kind not in {each.kind for each in drift}),
    )


async def remediate(site: Site, ctx: StepContext) -> StepResult:
    """Put one kind of drift back to the baseline. What takes effect only at a start restarts the machine. That Secure
    Boot keys are being written is a fact before the first one is: nobody appraises what is measured meanwhile."""
    kind = DriftKind(ctx.subject)
    if ctx.facts.baseline is None or kind not in _REMEDIES:
        raise FreeholdError(
            f"{kind} cannot be remediated", server=ctx.name, remedy=f"declare spec.remediation.{kind}: quarantine"
        )
    if kind in _OF_SECURE_BOOT and not ctx.facts.secure_boot_changing:
        waiting = "its Secure Boot keys to be put back"
        return StepResult(done=False, facts={"secure_boot_changing": True}, retry_after=AT_ONCE, waiting_for=waiting)
    baseline = msgspec.convert(ctx.facts.baseline, Observation)
    waived = dict.fromkeys(waivers.of_accounts(ctx.server.waivers, ctx.now), OWN_ROLE)
    baseline = msgspec.structs.replace(baseline, accounts=waived | baseline.accounts)
    drift = [each for each in ctx.facts.drift if each.kind is kind]
    keys = databases(await site.keys_of(ctx.facts))
    await ctx.ensure_lease(BMC_COMMAND)
    async with site.bmc(ctx.server, ctx.ensure_lease) as client:
        restart = await _REMEDIES[kind](client, baseline, keys)
        if restart:
            await oob.power(client, "reset")
    claim = {"kind": kind.value, "drift": msgspec.to_builtins(drift), "restarted": restart}
    facts: dict[str, Any] = {"remediated": (*ctx.facts.remediated, kind), "last_remediation": ctx.now}
    if kind in _OF_SECURE_BOOT:
        facts["secure_boot_changing"] = False
    return StepResult(facts=facts, statements=(("remediation", claim),), events=(f"remediated {kind}",))


async def _accounts(client: RedfishClient, baseline: Observation, _keys: KeyDatabases) -> bool:
    for account in (await read_posture(client)).accounts:
        if account.enabled and account.username not in baseline.accounts:
            try:
                await oob.delete_account(client, account.uri)
            except (NotSupported, BmcError):  # some BMCs have fixed slots: what cannot be deleted can be disabled
                await oob.disable_account(client, account.uri)
    return False


async def _boot_order(client: RedfishClient, baseline: Observation, _keys: KeyDatabases) -> bool:
    await oob.set_boot_order(client, baseline.boot_order)
    return False


async def _bios(client: RedfishClient, baseline: Observation, _keys: KeyDatabases) -> bool:
    """What is active decides on the restart: an attempt that was cut off may have staged everything already."""
    active = await oob.bios_attributes(client)
    await oob.set_bios_attributes(client, dict(baseline.bios))
    return any(active.get(name) != value for name, value in baseline.bios.items())


async def _ipmi(client: RedfishClient, _baseline: Observation, _keys: KeyDatabases) -> bool:
    await oob.set_ipmi(client, False)
    return False


async def _services(client: RedfishClient, baseline: Observation, _keys: KeyDatabases) -> bool:
    """Those that stay open are seen by the check that follows."""
    await harden(client, keep_directories=bool(directories(baseline.services)))
    return False


async def _secure_boot(client: RedfishClient, _baseline: Observation, keys: KeyDatabases) -> bool:
    """Those that the server carries, not the newest: an OS is on it that was made for them. A BMC that shows no
    databases can only turn Secure Boot on again; PCR 7 tells the rest."""
    if (await secure_boot_state(client)).databases:
        await enroll_secure_boot(client, keys)
    else:
        await enable_secure_boot(client)
    return True


_REMEDIES: dict[DriftKind, Callable[[RedfishClient, Observation, KeyDatabases], Awaitable[bool]]] = {
    DriftKind.BMC_ACCOUNT: _accounts,
    DriftKind.BOOT_ORDER: _boot_order,
    DriftKind.BIOS_ATTRIBUTE: _bios,
    DriftKind.IPMI: _ipmi,
    DriftKind.BMC_SERVICE: _services,
    DriftKind.SECURE_BOOT: _secure_boot,
    DriftKind.SECURE_BOOT_KEYS: _secure_boot,
}


async def renew_attestation(site: Site, ctx: StepContext) -> StepResult:
    """End the session: the agent finds its certificate worthless and attests again. When the OS last did is kept, and
    when it was first told to: `conditions.silence` counts from there."""
    proved = attested_last(ctx.server, ctx.now)
    facts = {"attestation_demanded": demanded(ctx.server, ctx.now) or ctx.now}
    if ctx.server.agent is not None:
        await site.end_session(ctx.name)
    facts |= {"last_attestation": proved} if proved else {}
    return StepResult(done=False, facts=facts, retry_after=ANSWERED_WITHIN, waiting_for="a new attestation")


async def tell_ended_waivers(_site: Site, ctx: StepContext) -> StepResult:
    """What two people let the server go without, and for no longer. Its tenant goes on, watched as before: only a
    decommissioning could mend most of it, and that is for people to decide; the pool does not take it back without."""
    ended = waivers.ended(ctx.server.waivers, ctx.facts, ctx.now)
    findings = tuple(waivers.ended_finding(ctx.name, each) for each in ended)
    fresh = tuple(each.detail for each in findings if each.subject not in ctx.facts.waivers_ended)
    claim = {"kind": waivers.ENDED, "lacks": [each.value for each in ended]}
    return StepResult(
        facts={"waivers_ended": ended},
        statements=(("posture", claim),),
        findings=findings,
        resolved=(waivers.ENDED,),
        events=fresh,
    )
