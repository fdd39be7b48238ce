"""The step of `active` that holds the running OS image against the site's newest Secure Boot keys. It needs no BMC."""

from freehold.orchestration.revocations import REVOKED, revoked
from freehold.orchestration.site import Site
from freehold.orchestration.step import StepContext, StepResult


async def check(site: Site, ctx: StepContext) -> StepResult:
    """Once for each generation. A revocation changes nothing on the server: that is for people to decide."""
    newest = await site.newest_keys()
    given = ctx.facts.image
    image = site.os_build(given.manifest) if given is not None else None
    found = revoked(ctx.name, image, newest)
    facts = {"revocations_checked": newest.generation}
    if found is None:
        return StepResult(facts=facts, resolved=(REVOKED,))
    told = any(each.kind == REVOKED and each.detail == found.detail for each in ctx.server.status.findings)
    return StepResult(facts=facts, findings=(found,), events=() if told else (found.detail,))
