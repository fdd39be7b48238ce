"""A change of a BMC's password that was cut off anywhere: whatever the engine does next finds its way in, costs at most
one refused log-in, and quarantines nobody."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from site_support import SERVER, Place

from freehold.model.errors import FreeholdError
from freehold.orchestration.auditing import audit_server
from freehold.orchestration.passwords import VaultSlots
from freehold.orchestration.steps import securing
from freehold.orchestration.steps.table import guarded
from freehold.orchestration.steps.watching import check_drift
from freehold.out_of_band.accounts import RedfishDoor
from freehold.out_of_band.redfish import Credential
from freehold.root_of_trust.openbao import OpenBaoSealed
from freehold.root_of_trust.vault import Vault


class Killed(BaseException):
    """kill -9 of the controller."""


def failures(tmp_path: Path) -> int:
    """Refused log-ins that the BMC has counted, over all accounts."""
    text = (tmp_path / "bmc" / "bmc.json").read_text()
    return sum(account["failures"] for account in json.loads(text)["accounts"].values())


def recorded(place: Place) -> tuple[str, bool]:
    """The password in the vault, and whether a change of it is open."""
    vault = place.site.vault
    stored = vault.get(f"bmc/{SERVER}/current")
    assert stored is not None
    return msgspec.json.decode(stored, type=Credential).password, vault.get(f"bmc/{SERVER}/pending") is not None


CALLS = [(call, when) for call in ("stage", "set_password", "commit") for when in ("before", "after")]
CALLS.append(("destroy", "before"))  # the new password is current, and still pending too


@pytest.mark.parametrize(("call", "when"), CALLS)
@pytest.mark.slow
async def test_killed_in_a_rotation_the_next_look_for_drift_gets_in(
    owned: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, when: str
) -> None:
    before, _ = recorded(owned)
    holder: Any = {"set_password": RedfishDoor, "destroy": owned.site.vault}.get(call, VaultSlots)
    whole = getattr(holder, call)

    def dead(*_: Any) -> None:
        raise Killed

    async def dying(*args: Any, **rest: Any) -> None:
        if when == "after":
            await whole(*args, **rest)
        raise Killed

    with monkeypatch.context() as dies:
        dies.setattr(holder, call, dead if call == "destroy" else dying)
        with pytest.raises(Killed):
            await owned.step("rotate_credential")

    result = await guarded(check_drift, owned.site, await owned.context("check_drift"))
    assert (result.done, result.quarantine) == (True, None)
    password, still_open = recorded(owned)
    assert not still_open
    assert (password != before) is ((call, when) != ("stage", "before"))  # what is staged is what it will be
    assert failures(tmp_path) <= 1
    assert (await owned.step("rotate_credential")).done


async def test_nobody_else_logs_in_while_a_password_is_being_changed(owned: Place, tmp_path: Path) -> None:
    """An audit beside the controller would use the wrong one of two, or end the change under its hands."""
    slots = owned.site.slots(await owned.view())
    staged = msgspec.json.encode({"credential": {"username": "freehold", "password": "not-on-the-bmc-yet-1A"}})
    owned.site.vault.put(f"bmc/{SERVER}/pending", staged)
    with pytest.raises(FreeholdError, match="password is being changed"):
        await audit_server(owned.site.vault, await owned.view())
    assert await slots.pending() is not None
    assert failures(tmp_path) == 0


@pytest.mark.parametrize("nth", range(1, 13))
@pytest.mark.slow
async def test_a_vault_that_seals_in_the_middle_locks_nobody_out(
    owned: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    calls = 0

    def sealing(whole: Any) -> Any:
        def call(*args: Any, **rest: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= nth:
                raise OpenBaoSealed("OpenBao is sealed")
            return whole(*args, **rest)

        return call

    vault: Vault = owned.site.vault
    with monkeypatch.context() as sealed:
        for name in ("get", "put", "destroy"):
            sealed.setattr(vault, name, sealing(getattr(vault, name)))
        context = await owned.context("rotate_credential")
        try:
            result = await guarded(securing.rotate_credential, owned.site, context)
            assert result.quarantine is None
        except OpenBaoSealed:
            pass
        again = await owned.context("check_drift")
        with pytest.raises(OpenBaoSealed):
            await guarded(check_drift, owned.site, again)
    result = await guarded(check_drift, owned.site, await owned.context("check_drift"))
    assert (result.done, result.quarantine) == (True, None)
    assert not recorded(owned)[1]
    assert failures(tmp_path) <= 1


async def test_a_credential_that_is_set_while_a_rotation_is_under_way_makes_no_claim_and_loses_no_password(
    owned: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = recorded(owned)
    slots, whole = owned.site.slots(await owned.view()), RedfishDoor.set_password

    async def with_a_person_beside(*args: Any, **rest: Any) -> None:
        await whole(*args, **rest)
        await slots.replace(Credential("freehold", before))

    with monkeypatch.context() as racing:
        racing.setattr(RedfishDoor, "set_password", with_a_person_beside)
        racing.setattr(VaultSlots, "stage", _only_the_first(VaultSlots.stage))
        with pytest.raises(FreeholdError, match="somebody else changed the credential"):
            await owned.step("rotate_credential")
    assert recorded(owned) == (before, False)
    result = await guarded(check_drift, owned.site, await owned.context("check_drift"))  # it finds the one that works
    assert (result.done, result.quarantine) == (True, None)
    assert recorded(owned)[0] != before


def _only_the_first(whole: Any) -> Any:
    """The record of a try, too, may come before the person's word."""
    staged: list[Any] = []

    async def stage(*args: Any) -> None:
        if not staged:
            await whole(*args)
        staged.append(args)

    return stage


async def test_a_bmc_that_went_back_to_an_earlier_password_of_ours_is_found_out(owned: Place, tmp_path: Path) -> None:
    """A change that the BMC took long ago, and made after the one that followed."""
    slots = owned.site.slots(await owned.view())
    assert (await owned.step("rotate_credential")).done
    works = await slots.current()
    (earlier,) = await slots.kept()
    assert works is not None
    owned.site.vault.put(f"bmc/{SERVER}/current", msgspec.json.encode(earlier.credential))
    owned.site.vault.put(f"bmc/{SERVER}/kept", msgspec.json.encode([{"credential": works}]))
    result = await guarded(check_drift, owned.site, await owned.context("check_drift"))
    assert (result.done, result.quarantine) == (True, None)
    assert await slots.current() == works
    assert failures(tmp_path) <= 1
