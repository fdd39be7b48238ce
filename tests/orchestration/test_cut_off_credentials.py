"""The password of a BMC is changed, and the change is cut off at every point: by a kill of the controller, by a reboot
of the BMC, by a vault that is sealed or out of reach."""

from functools import partial
from pathlib import Path

import pytest
from cut_off import Cut, Life, any_time, cut_off_everywhere, go_on, kept, prepare, wired

from freehold.model.status import Facts, ServerState
from freehold.orchestration.passwords import VaultSlots
from freehold_lab.bmc.accounts import verify_password

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("wired")]
__all__ = ["wired"]


def owned(facts: Facts) -> bool:
    return facts.bmc_credential_committed


def certified(facts: Facts) -> bool:
    return facts.bmc_certificate is not None


def rotated(facts: Facts) -> bool:
    return bool(facts.bmc_credential_since)


async def ours_alone(life: Life) -> None:
    """One account is open, with the password that is current in the vault; that one was recorded as evidence."""
    slots = VaultSlots(life.site.vault, await life.view())
    current = await slots.current()
    assert await slots.pending() is None
    assert current is not None
    assert current.generated
    (account,) = [each for each in life.course.bmc.accounts.all().values() if each.enabled]
    assert (account.user_name, account.failures, account.locked_until) == ("freehold", 0, 0.0)
    assert verify_password(current.password, account.password_hash)
    async with life.site.bmc(await life.view(), any_time):
        pass
    digest = life.index.digest(current.password)
    assert digest == [claim["password_digest"] for claim in life.claims("credential")][-1]
    if life.course.cut_was(Cut.SEAL):
        assert any("OpenBao" in reason for reason in life.course.said), life.course.said


@pytest.mark.parametrize("cut", list(Cut))
async def test_first_contact_cut_off_anywhere_ends_with_one_password_and_it_is_in_the_vault(
    cut: Cut, tmp_path: Path
) -> None:
    points = await cut_off_everywhere(cut, await kept("declared", prepare), tmp_path, owned, ours_alone)
    assert {
        Cut.KILL: "after POST /redfish/v1/AccountService/Accounts",
        Cut.REBOOT: "after PATCH /redfish/v1/AccountService/Accounts/1",
        Cut.FLAP: "before GET /redfish/v1/AccountService/Accounts/1",
        Cut.SEAL: "after vault update bmc/server-1/current",
    }[cut] in points


@pytest.mark.parametrize("cut", list(Cut))
async def test_a_rotation_cut_off_anywhere_ends_with_one_password_and_it_is_in_the_vault(
    cut: Cut, tmp_path: Path
) -> None:
    old = {"state": ServerState.AVAILABLE, "bmc_credential_since": None}
    due = partial(go_on, origin=await kept("declared", prepare), done=certified, **old)
    points = await cut_off_everywhere(cut, await kept("rotation-due", due), tmp_path, rotated, ours_alone)
    assert {
        Cut.KILL: "after PATCH /redfish/v1/AccountService/Accounts/2",
        Cut.REBOOT: "after PATCH /redfish/v1/AccountService/Accounts/2",
        Cut.FLAP: "before GET /redfish/v1/AccountService",
        Cut.SEAL: "after vault update bmc/server-1/pending",
    }[cut] in points
