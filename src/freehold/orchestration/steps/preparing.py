"""Steps of `preparing`: BIOS settings, the operator's Secure Boot keys, reference values."""

from freehold.orchestration.site import BMC_COMMAND, Site
from freehold.orchestration.step import StepContext, StepResult
from freehold.out_of_band.secure_boot import enroll_secure_boot
from freehold.out_of_band.server import set_bios_attributes


async def apply_bios(site: Site, ctx: StepContext) -> StepResult:
    """Stage the declared attributes; the machine is off, so they are active from its next start."""
    wanted = dict(ctx.server.spec.bios)
    await ctx.ensure_lease(BMC_COMMAND)
    async with site.bmc(ctx.server) as client:
        staged = await set_bios_attributes(client, wanted) if wanted else ()
    claim = {"kind": "bios", "declared": wanted, "staged": list(staged)}
    return StepResult(facts={"bios_applied": True}, statements=(("posture", claim),))


async def enroll(site: Site, ctx: StepContext) -> StepResult:
    """PK, KEK and db are the operator's alone, and Secure Boot is on. The next attested PCR 7 confirms it."""
    await ctx.ensure_lease(BMC_COMMAND)
    async with site.bmc(ctx.server) as client:
        pems = site.secure_boot_pems
        state = await enroll_secure_boot(client, pk_pem=pems["PK"], kek_pem=pems["KEK"], db_pem=pems["db"])
    databases = {name: list(prints) for name, prints in state.databases.items()}
    claim = {"enabled": state.enabled, "databases": databases, "confirmed_by": "PCR 7 of the next attested boot"}
    return StepResult(facts={"secure_boot_enrolled": True}, statements=(("secure-boot", claim),))


async def approve_reference(_site: Site, ctx: StepContext) -> StepResult:
    """PCR 0 and 2 of the staging boot become the reference values. They are learned, not approved by two people: the
    evidence says so, and the sovereignty test counts it."""
    learned = ctx.facts.learned_reference
    if not learned:
        return StepResult(done=False, quarantine="no boot of this server was attested, so there is nothing to refer to")
    claim = {"kind": "firmware-reference", "origin": "learned at staging", "digests": learned}
    return StepResult(facts={"reference_values": learned}, statements=(("posture", claim),))
