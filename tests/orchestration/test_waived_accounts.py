"""An account on a BMC that is not ours: gone, unless two people signed that it may stay; and then only as long."""

import time
from typing import Any

import msgspec
from site_support import Place

from freehold.model.findings import Severity
from freehold.model.resources import DriftKind, Waivable
from freehold.model.status import ServerState
from freehold.orchestration.auditing import audit_server
from freehold.orchestration.waivers import ActiveWaiver
from freehold.out_of_band.posture import read_accounts

WAIVER = ActiveWaiver(
    name="field-service",
    finding=Waivable.BMC_ACCOUNT,
    reason="the vendor's contract",
    expires=time.time() + 3600,
    approved_by=("alice", "bob"),
    account="field",
)
ENDED = msgspec.structs.replace(WAIVER, expires=time.time() - 1)


async def add(place: Place, name: str) -> None:
    async with place.own_bmc() as client:
        body = {"UserName": name, "Password": "Field-service-1", "RoleId": "Operator", "Enabled": True}
        await client.post("/redfish/v1/AccountService/Accounts", body)


async def enabled(place: Place) -> set[str]:
    async with place.own_bmc() as client:
        return {account.username for account in await read_accounts(client) if account.enabled}


async def test_securing_leaves_a_waived_account_and_says_so(owned: Place) -> None:
    await add(owned, "field")
    await add(owned, "mallory")
    result = await owned.step("disable_factory_accounts", waivers=(WAIVER,))
    assert await enabled(owned) == {"freehold", "field"}
    ((name, claim),) = result.statements
    assert (name, claim["account"], claim["approved_by"]) == ("waiver", "field", ("alice", "bob"))
    rotated = await owned.step("rotate_credential", waivers=(WAIVER,))
    assert rotated.statements[0][1]["waived_accounts"] == ["field"]
    assert (await owned.step("disable_factory_accounts", waivers=(ENDED,))).statements == ()
    assert await enabled(owned) == {"freehold"}


async def drift(place: Place, *waivers: ActiveWaiver) -> list[tuple[DriftKind, str]]:
    result = await place.step("check_drift", waivers=waivers)
    return [(each.kind, each.subject) for each in result.facts["drift"] if each.kind is DriftKind.BMC_ACCOUNT]


async def test_drift_does_not_look_at_it_until_the_waiver_ends_and_does_not_take_it_away_with_others(
    owned: Place,
) -> None:
    assert await drift(owned) == []
    await add(owned, "field")
    await add(owned, "mallory")
    assert await drift(owned, WAIVER) == [(DriftKind.BMC_ACCOUNT, "mallory")]
    await owned.step(f"remediate/{DriftKind.BMC_ACCOUNT}", waivers=(WAIVER,))
    assert await enabled(owned) == {"freehold", "field"}
    assert await drift(owned, WAIVER) == []
    assert await drift(owned, ENDED) == [(DriftKind.BMC_ACCOUNT, "field")]


async def test_decommissioning_leaves_it_and_names_it(owned: Place) -> None:
    await add(owned, "field")
    await owned.establish(ServerState.DECOMMISSIONING, secure_boot_waived=True)
    result = await owned.step("reassert_state", waivers=(WAIVER,))
    claims: list[Any] = [claim for _, claim in result.statements if claim.get("kind") == "re-asserted"]
    assert claims[0]["accounts"] == ["freehold", "field"]
    assert await enabled(owned) == {"freehold", "field"}


async def test_the_audit_lists_it_as_a_remark_and_any_other_as_critical(owned: Place) -> None:
    await add(owned, "field")
    view = await owned.view()
    kept = await audit_server(owned.site.vault, msgspec.structs.replace(view, waivers=(WAIVER,)))
    (remark,) = [found for found in kept.findings if found.kind == "bmc-account"]
    assert (remark.severity, remark.evidence) == (Severity.INFO, "Waiver field-service, signed by alice, bob")
    assert "account field of its BMC" in remark.detail
    assert not [found for found in kept.findings if found.kind == "bmc-foreign-account"]
    ended = await audit_server(owned.site.vault, msgspec.structs.replace(view, waivers=(ENDED,)))
    assert [found.kind for found in ended.findings if "field" in found.detail] == ["bmc-foreign-account"]
