"""The table of doers, and what all of them have in common."""

import pytest
from site_support import Place

from freehold.model.errors import FreeholdError
from freehold.orchestration.planner import STEPS
from freehold.orchestration.site import Site
from freehold.orchestration.step import StepContext, StepResult
from freehold.orchestration.steps.table import DOERS, NEEDS_A_PERSON, guarded, steps_of


def test_the_site_can_do_exactly_what_the_planner_asks_for(place: Place) -> None:
    assert set(DOERS) == STEPS
    assert set(steps_of(place.site)) == STEPS


@pytest.mark.parametrize("cause", NEEDS_A_PERSON)
async def test_what_needs_a_person_quarantines_instead_of_being_tried_again(
    place: Place, cause: type[FreeholdError]
) -> None:
    async def doer(_site: Site, _ctx: StepContext) -> StepResult:
        raise cause("the door is shut", server="server-1", remedy="look for the key")

    result = await guarded(doer, place.site, await place.context("pin_identity"))
    assert not result.done
    assert result.quarantine == "the door is shut; look for the key"


async def test_any_other_failure_is_left_to_the_engine(place: Place) -> None:
    async def doer(_site: Site, _ctx: StepContext) -> StepResult:
        raise FreeholdError("the BMC is busy")

    with pytest.raises(FreeholdError, match="the BMC is busy"):
        await guarded(doer, place.site, await place.context("pin_identity"))
