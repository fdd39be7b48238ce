"""Steps of `preparing`: BIOS settings, reference values."""

import asyncio

import msgspec

from freehold.evidence import artifacts
from freehold.model.findings import Finding, Severity
from freehold.orchestration.package_measurements import against
from freehold.orchestration.references import KnownReference
from freehold.orchestration.site import BMC_COMMAND, Site
from freehold.orchestration.step import StepContext, StepResult
from freehold.out_of_band.server import set_bios_attributes
from freehold.root_of_trust.attestation import reference
from freehold.root_of_trust.attestation.reference import ReferenceState, ReferenceValues
from freehold.root_of_trust.operators import Granted, NotApproved

UNAPPROVED = "firmware-unapproved"


async def apply_bios(site: Site, ctx: StepContext) -> StepResult:
    """Stage the declared attributes; the machine is off, so they are active from its next start."""
    wanted = dict(ctx.server.spec.bios)
    await ctx.ensure_lease(BMC_COMMAND)
    async with site.bmc(ctx.server, ctx.ensure_lease) as client:
        staged = await set_bios_attributes(client, wanted) if wanted else ()
    claim = {"kind": "bios", "declared": wanted, "staged": list(staged)}
    return StepResult(facts={"bios_applied": True}, statements=(("posture", claim),))


async def approve_reference(site: Site, ctx: StepContext) -> StepResult:
    """What this server's firmware measured at staging becomes what its boots are held against, once two operators have
    approved it for the board and the version. A policy of `learned` asks nobody, and the evidence says so; it counts
    only as long as the site has no operators: whoever may write a policy must not speak for two of them. Nor does it
    count for a server that was released with other firmware, outside a firmware job: that always takes two."""
    learned, firmware = ctx.facts.learned_reference, ctx.facts.firmware
    if learned is None or firmware is None:
        return StepResult(done=False, quarantine="no boot of this server was attested, so there is nothing to refer to")
    if ctx.facts.tpm_waived and learned == {}:
        return StepResult(facts={"reference_values": {}, "reference_id": None})  # nothing is measured, nothing vouches
    values = ReferenceValues(vendor=firmware.vendor, model=firmware.model, version=firmware.version, digests=learned)
    claim: dict[str, object] = {
        "kind": "firmware-reference",
        "id": values.id,
        "firmware": values.firmware,
        "board": values.title,
        "digests": {pcr: list(digests) for pcr, digests in learned.items()},
    }
    if (revoked := await site.references.revoked(learned)) is not None:
        other = f"{revoked.values.id} hold ({revoked.values.title}), which are {revoked.state}"
        return StepResult(done=False, quarantine=f"its firmware measures what reference values {other}")
    compared = await asyncio.to_thread(against, site.depot, site.depot_seen, values)
    if compared.differs:
        return StepResult(done=False, quarantine=f"its firmware is not what the depot lists: {compared.said}")
    claim["depot_package"] = msgspec.to_builtins(compared)
    by_policy = ctx.server.policy.reference_values == "learned"
    if (await site.approvals.operators()).people:
        overruled = "on a site that has operators"
    elif ctx.facts.remeasured:
        overruled = "for a server that was released with --remeasure; found the operators: `freehold operator found`"
    else:
        overruled = ""
    if by_policy and not overruled:
        facts = {"reference_values": learned, "reference_id": None}
        return StepResult(facts=facts, statements=(("posture", claim | {"origin": "learned", "approved_by": []}),))
    origin = f"measured by {ctx.name} at staging"
    known = await site.references.propose(values, origin, ctx.name, ctx.now, compared=compared.said)
    if known.state is ReferenceState.SUPERSEDED:
        why = f"its firmware measures what reference values {values.id} hold ({values.title}), which are {known.state}"
        return StepResult(done=False, quarantine=why)
    if known.state is ReferenceState.PENDING:
        try:
            await site.references.approve(values.id, ctx.now)
        except NotApproved as lacking:
            return await _unapproved(site, known, lacking, compared.said, overruled if by_policy else "")
    try:
        approved = await site.references.granted(known)
    except NotApproved as lacking:
        why = f"reference values {values.id} were kept as approved, and their approval does not verify: {lacking.what}"
        known = await site.references.propose(
            values, known.origin, ctx.name, ctx.now, compared=compared.said, doubted=True
        )
        anew = NotApproved(f"{why}; they are asked for anew")
        return await _unapproved(site, known, anew, compared.said, overruled if by_policy else "")
    claim |= {"origin": known.origin, "approved_by": list(approved.names), "approved_at": approved.at}
    claim |= {"approval": known.approval, artifacts.FIELD: await asyncio.to_thread(_kept, site, approved)}
    return StepResult(
        facts={"reference_values": learned, "reference_id": values.id},
        statements=(("posture", claim),),
        resolved=(UNAPPROVED,),
    )


def _kept(site: Site, approved: Granted) -> dict[str, str]:
    """All that it takes to verify an approval again, as artifacts that the statement names."""
    kept = {"request": approved.request.to_bytes()}
    for each in approved.signatures:
        kept |= {f"approval-{each.name}": each.envelope, f"operator-{each.name}": each.key.pem}
    return {name: site.artifacts.keep(data) for name, data in kept.items()}


async def _unapproved(
    site: Site, known: KnownReference, lacking: NotApproved, compared: str, overruled: str
) -> StepResult:
    """Wait, and tell people what is asked of them; if the same board has measured something else before, that too.
    `compared`: what the depot has to say of it; `overruled`: where a policy of `learned` does not count."""
    values = known.values
    kin = await site.references.list(vendor=values.vendor, model=values.model, version=values.version)
    other = reference.closest(values, [each.values for each in kin if each.state is ReferenceState.APPROVED])
    differs = "".join(f"; {sentence}" for sentence in reference.diff(other, values)) if other is not None else ""
    differs += f"; {compared}"
    if overruled:
        differs += f"; its policy says `learned`, which does not count {overruled}"
    finding = Finding(
        severity=Severity.CRITICAL if other is not None else Severity.WARNING,
        kind=UNAPPROVED,
        subject=values.id,
        detail=f"{lacking.what}{differs}",
        remedy=f"read `freehold baseline show {values.id}`, then `freehold baseline approve {values.id} --key FILE`",
    )
    return StepResult(
        done=False, findings=(finding,), waiting_for=f"two operators to approve reference values {values.id}"
    )
