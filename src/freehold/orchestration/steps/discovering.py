"""Steps of `discovering`: what the BMC says, what the machine itself says, and whether the two agree."""

from typing import Any, cast

import msgspec

from freehold.model.findings import Finding
from freehold.model.status import AgentSession, FirmwareFact
from freehold.operations.inventory import compare
from freehold.orchestration.measurements import policy_for
from freehold.orchestration.site import Site
from freehold.orchestration.step import StepContext, StepResult
from freehold.orchestration.steps import agentless, tickets
from freehold.out_of_band.inventory import read_inventory
from freehold.root_of_trust.attestation.errors import AttestationError
from freehold.root_of_trust.attestation.structures import parse_public


async def read_oob_inventory(site: Site, ctx: StepContext) -> StepResult:
    async with site.bmc(ctx.server, ctx.ensure_lease) as client:
        inventory: dict[str, Any] = msgspec.to_builtins(await read_inventory(client))
    firmware = FirmwareFact(
        vendor=inventory["manufacturer"], model=inventory["model"], version=inventory["bios_version"]
    )
    claim = {"source": "out-of-band", "inventory": inventory}
    facts = {"oob_inventory": inventory, "firmware": firmware, "bmc_version": inventory["bmc_version"]}
    if inventory["tpm"] is not None:
        return StepResult(facts=facts, statements=(("inventory", claim),), resolved=(tickets.FINDING,))
    told = tickets.unlisted(ctx.name)
    return StepResult(facts=facts, statements=(("inventory", claim),), findings=(told,), events=(told.detail,))


async def collect_inventory(site: Site, ctx: StepContext) -> StepResult:
    order = await site.ordered(ctx, "inventory", {})
    if order is None:
        return StepResult(done=False)
    claim = {"source": "in-band", "inventory": summary(order.result)}
    agent = ctx.server.agent
    told_by = {"ek_sha256": agent.details.get("ek_sha256") if agent else None}
    return StepResult(facts={"inband_inventory": order.result | told_by}, statements=(("inventory", claim),))


def summary(inventory: dict[str, Any]) -> dict[str, Any]:
    """What of an in-band inventory goes into the evidence log: all but the long list of PCI devices."""
    return {name: part for name, part in inventory.items() if name != "pci"} | {"pci": len(inventory.get("pci") or [])}


async def compare_inventory(_site: Site, ctx: StepContext) -> StepResult:
    """A machine that is not the one that its BMC describes is not taken in."""
    out_of_band, in_band = ctx.facts.oob_inventory or {}, ctx.facts.inband_inventory or {}
    differences = compare(out_of_band, in_band)
    claim = {"source": "comparison", "agrees": not differences, "differences": list(differences)}
    if differences:
        why = f"the BMC and the machine disagree: {'; '.join(differences)}"
        return StepResult(done=False, quarantine=why, statements=(("inventory", claim),))
    return StepResult(facts={"inventory_agrees": True}, statements=(("inventory", claim),))


async def bind_ek(site: Site, ctx: StepContext) -> StepResult:
    """From now on the server is its endorsement key. The reference values of its firmware are taken down with it. One
    that was let in by a ticket has none: a waiver stands for it."""
    agent = ctx.server.agent
    assert agent is not None
    identity = cast("str | None", agent.details.get("ek_sha256"))
    told_by = (ctx.facts.inband_inventory or {}).get("ek_sha256")
    if told_by != identity:
        return StepResult(done=False, quarantine=f"the inventory came from TPM {told_by}, now TPM {identity} speaks")
    if ctx.facts.ek_sha256 not in (None, identity):
        return StepResult(done=False, quarantine=f"the TPM {identity} is not the bound {ctx.facts.ek_sha256}")
    if identity is None:
        return tickets.bind_waiver(ctx, agent)
    reference = measured_reference(agent)
    claim = {
        "source": "tpm",
        "ek_sha256": identity,
        "ek_issuers": agent.details["ek_issuers"],
        "firmware_reference": reference,
        "attestation": agent.details["attestation"],
    }
    findings = msgspec.convert(agent.details.get("findings", []), tuple[Finding, ...])
    offered = await _component_integrity(site, ctx, agent, identity)
    # Of a time without a TPM: that nothing was measured must not stand for what is approved.
    unmeasured = {"reference_values": None, "reference_id": None} if ctx.facts.reference_values == {} else {}
    second = {"source": "component-integrity", "components": offered}
    return StepResult(
        facts={"ek_sha256": identity, "tpm_missing": None, "learned_reference": reference, **unmeasured},
        statements=(("inventory", claim), *((("inventory", second),) if offered else ())),
        findings=(*findings, *agentless.findings(ctx.name, offered)),
        resolved=("pcr-banks", agentless.FINDING, tickets.FINDING),
    )


async def _component_integrity(
    site: Site, ctx: StepContext, agent: AgentSession, identity: str
) -> list[dict[str, Any]]:
    """What the BMC says of the TPM by itself; empty if it offers nothing. That it fails at it does not hold us up."""
    image = site.agent_build(ctx.facts.agent_uki)
    if image is None:
        return []
    try:
        ak = parse_public(bytes.fromhex(str(agent.details.get("ak_public", ""))))
        policy = policy_for(image, ctx.facts, await site.keys_of(ctx.facts), ek_identity=identity)
    except AttestationError as error:
        return [{"relied_on": False, "why": error.what}]
    async with site.bmc(ctx.server, ctx.ensure_lease) as client:
        return await agentless.ask(client, ak, policy)


def measured_reference(agent: AgentSession) -> dict[str, tuple[str, ...]]:
    """What PCR 0 and 2 of the boot measured that this agent attested."""
    return {pcr: tuple(digests) for pcr, digests in agent.details["reference"].items()}
