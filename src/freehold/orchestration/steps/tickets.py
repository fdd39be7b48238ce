"""Steps of servers that lack a TPM: stop and say so, or go on as long as a waiver holds."""

from typing import Any

from freehold.model.errors import FreeholdError
from freehold.model.findings import Finding, Severity
from freehold.model.resources import Waivable
from freehold.model.status import AgentSession
from freehold.orchestration import waivers
from freehold.orchestration.conditions import lacks_tpm
from freehold.orchestration.site import Site
from freehold.orchestration.step import StepContext, StepResult
from freehold.orchestration.steps.booting import stop
from freehold.orchestration.ticket_door import remedy

FINDING = "no-tpm"

LOOK_AGAIN = 300.0
"""Seconds; a waiver that is signed wakes the server at once."""


async def require_tpm(site: Site, ctx: StepContext) -> StepResult:
    """No usable TPM 2.0, and no waiver that holds: whatever runs is turned off, once, and people are told. It goes on
    by itself when a waiver holds; a TPM that was fitted is looked for when a person asks the server to attest."""
    facts: dict[str, Any] = {}
    if not lacks_tpm(ctx.server):
        return StepResult(done=False, retry_after=0.1)
    if ctx.facts.agent_booted_at is not None and not ctx.facts.agent_released:
        await stop(site, ctx)
        await site.answer_dhcp(ctx.name, ())
        facts = {"agent_booted_at": None, "boot_ticket": None}
    if ctx.facts.tpm_waived:
        what, then = "the waiver of its missing TPM has ended", waivers.remedy(ctx.name, Waivable.TPM)
        again = f"`freehold quarantine {ctx.name}` and `freehold release {ctx.name}`"
        return StepResult(
            done=False,
            facts=facts,
            retry_after=LOOK_AGAIN,
            events=(what,) if facts else (),
            waiting_for=f"a TPM 2.0, which {again} then look for; {then}",
        )
    facts |= {"tpm_missing": ctx.facts.tpm_missing or ctx.now}
    if ctx.server.agent is not None and ctx.server.agent.no_tpm:
        facts["tpm_missing"] = ctx.now
    finding = Finding(
        severity=Severity.WARNING,
        kind=FINDING,
        subject=ctx.name,
        detail="it has no usable TPM 2.0, as its agent says: nothing would prove what it boots; it was turned off",
        remedy=remedy(ctx.name),
    )
    return StepResult(
        done=False,
        facts=facts,
        retry_after=LOOK_AGAIN,
        findings=(finding,),
        events=(finding.detail,) if ctx.facts.tpm_missing != facts["tpm_missing"] else (),
        waiting_for=f"a usable TPM 2.0, or a waiver: {finding.remedy}",
    )


def unlisted(server: str) -> Finding:
    """The BMC lists no TPM. That proves nothing: many list none that is there."""
    return Finding(
        severity=Severity.WARNING,
        kind=FINDING,
        subject=server,
        detail="its BMC lists no TPM; whether it has one is known when its agent speaks",
        remedy=f"if it has none: {remedy(server)}",
    )


def bind_waiver(ctx: StepContext, agent: AgentSession) -> StepResult:
    """In place of a TPM: from now on the server goes without one, as long as the waiver holds."""
    waiver = waivers.waiver_for(ctx.server.waivers, Waivable.TPM, ctx.now)
    if waiver is None:
        raise FreeholdError("the waiver of its missing TPM has ended", server=ctx.name, remedy=remedy(ctx.name))
    why = "it has no usable TPM 2.0: its agent was let in by a ticket"
    claim = {"source": "tpm", "ek_sha256": None, "admission": agent.details["admission"]}
    return StepResult(
        facts={"tpm_waived": True, "tpm_missing": None, "learned_reference": {}},
        statements=(("waiver", waivers.claim(waiver, ctx.now, why=why)), ("inventory", claim)),
        events=(f"it goes without a TPM, by waiver {waiver.name}",),
        resolved=(FINDING, "pcr-banks"),
    )
