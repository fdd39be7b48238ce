"""The table of doers, and what all of them have in common."""

from dataclasses import replace

import msgspec
import pytest
from site_support import Place

from freehold.model.errors import FreeholdError
from freehold.model.findings import Severity
from freehold.orchestration.planner import STEPS
from freehold.orchestration.site import Site
from freehold.orchestration.step import StepContext, StepResult
from freehold.orchestration.steps.table import DOERS, LOCKED, NEEDS_A_PERSON, UNLOCKED_WITHIN, guarded, steps_of
from freehold.out_of_band.errors import AccountLocked, TakeoverStopped


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


async def test_an_account_that_somebody_locked_is_waited_for_and_told_once(place: Place) -> None:
    locked = True

    async def doer(_site: Site, _ctx: StepContext) -> StepResult:
        if locked:
            raise AccountLocked("the BMC has locked the account", server="server-1")
        return StepResult(facts={"x": 1})

    result = await guarded(doer, place.site, await place.context("check_drift"))
    assert (result.done, result.quarantine, result.retry_after) == (False, None, UNLOCKED_WITHIN)
    (finding,) = result.findings
    assert (finding.severity, finding.kind) == (Severity.CRITICAL, LOCKED)
    assert result.events
    context = await place.context("check_drift")
    status = msgspec.structs.replace(context.server.status, findings=(finding,))
    again = replace(context, server=msgspec.structs.replace(context.server, status=status))
    assert (await guarded(doer, place.site, again)).events == ()
    locked = False
    assert LOCKED in (await guarded(doer, place.site, again)).resolved


async def test_interrupted_log_ins_are_waited_out(place: Place) -> None:
    async def doer(_site: Site, _ctx: StepContext) -> StepResult:
        raise TakeoverStopped("1 interrupted log-ins: one more could lock the account", wait=60.0)

    result = await guarded(doer, place.site, await place.context("rotate_credential"))
    assert (result.done, result.quarantine, result.retry_after) == (False, None, 61.0)


async def test_any_other_failure_is_left_to_the_engine(place: Place) -> None:
    async def doer(_site: Site, _ctx: StepContext) -> StepResult:
        raise FreeholdError("the BMC is busy")

    with pytest.raises(FreeholdError, match="the BMC is busy"):
        await guarded(doer, place.site, await place.context("pin_identity"))
