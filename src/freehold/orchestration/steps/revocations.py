"""The step of `active` that holds the running OS image against the site's newest Secure Boot keys. It needs no BMC."""

from freehold.orchestration.measurements import REVOKED
from freehold.orchestration.revocations import in_dbx, quarantines, revoked
from freehold.orchestration.site import Site
from freehold.orchestration.step import StepContext, StepResult


async def check(site: Site, ctx: StepContext) -> StepResult:
    """Once for each generation. Nothing is changed on the server: by default it goes into quarantine, where people
    decide; `revokedImage: report` leaves it active."""
    newest = await site.newest_keys()
    given = ctx.facts.image
    image = site.os_build(given.manifest) if given is not None else None
    found = revoked(ctx.name, image, newest)
    facts = {"revocations_checked": newest.generation, "image_revoked": in_dbx(image, newest)}
    if found is None:
        return StepResult(facts=facts, resolved=(REVOKED,))
    told = any(each.kind == REVOKED and each.detail == found.detail for each in ctx.server.status.findings)
    acts = facts["image_revoked"] is not None and ctx.server.policy.revoked_image == "quarantine"
    return StepResult(
        facts=facts,
        findings=(found,),
        events=() if told else (found.detail,),
        quarantine=quarantines(ctx.name, found) if acts else None,
    )
