"""The firmware job of `preparing`: a package out of the depot onto the machine, and what it measures after that."""

from freehold.model.errors import FreeholdError
from freehold.orchestration.site import Site
from freehold.orchestration.step import StepContext, StepResult


async def apply_firmware(site: Site, ctx: StepContext) -> StepResult:
    """Bring the BIOS to the wanted version: a package out of the depot, verified on the very bytes that are sent. What
    the new firmware measures is then taken down by a boot, and approved, before anything else happens."""
    raise FreeholdError("there is no depot yet", server=ctx.name)
