"""Securing, against the lab's Redfish service over TLS: what a factory BMC becomes, and when nothing is sent to it."""

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from site_support import FACTORY_PASSWORD, SERVER, Place, bmc, documents, https_with, place_at

from freehold.model.errors import FreeholdError
from freehold.model.findings import Severity
from freehold.model.resources import Credential as DeclaredCredential
from freehold.model.resources import PolicySpec, Resource, ServerSpec, Waivable
from freehold.model.status import Intent, IntentKind, ServerState, ServerStatus
from freehold.orchestration import outcomes
from freehold.orchestration.planner import GOALS
from freehold.orchestration.steps import securing
from freehold.orchestration.waivers import ActiveWaiver
from freehold.out_of_band import factory_credentials
from freehold.out_of_band import server as oob
from freehold.out_of_band.errors import BmcError
from freehold.out_of_band.posture import read_accounts, read_posture
from freehold.out_of_band.redfish import Credential, RedfishClient
from freehold.out_of_band.transport import fetch_identity
from freehold_lab.bmc.memory import MemoryHardware

sys.path.append(str(Path(__file__).parents[1] / "out_of_band"))
from ipmi_support import hardened

SECURING = [goal.step for goal in GOALS[ServerState.SECURING]]


async def server_spec(place: Place) -> ServerSpec:
    return (await place.view()).spec


async def declare_bmc(place: Place, **changes: object) -> None:
    await place.declare(bmc=msgspec.structs.replace((await server_spec(place)).bmc, **changes))


def waiver(finding: Waivable, expires: float = 4e9) -> ActiveWaiver:
    people = ("ada", "ben")
    return ActiveWaiver(name="w", finding=finding, reason="r", expires=expires, approved_by=people)


def failures(tmp_path: Path) -> int:
    """Refused log-ins that the BMC counted, over all accounts."""
    text = (tmp_path / "bmc" / "bmc.json").read_text()
    return sum(account["failures"] for account in json.loads(text)["accounts"].values())


async def test_the_whole_row_makes_the_bmc_ours_alone(place: Place) -> None:
    for step in SECURING:
        result = await place.finish(step)
        assert result.done, (step, result)
        for name, predicate in result.statements:
            await place.evidence(name, SERVER, predicate)
    async with place.own_bmc() as client:
        accounts = {account.username: account.enabled for account in await read_accounts(client)}
        posture = await read_posture(client)
    assert accounts == {"root": False, "freehold": True}
    assert not posture.enabled("IPMI")
    claims = {name: predicate for name, _, predicate in place.evidence.statements}
    assert claims["bmc-identity"]["method"] == "certificate of the site's BMC CA"
    assert claims["credential"]["factory_accounts_disabled"] is True
    assert claims["credential"]["unique"] is True
    assert FACTORY_PASSWORD not in str(place.evidence.statements)
    stored = place.site.vault.get(f"bmc/{SERVER}/current")
    assert stored is not None
    assert msgspec.json.decode(stored)["password"] not in str(place.evidence.statements)


async def test_a_rotation_changes_the_password_and_says_so_without_showing_it(place: Place) -> None:
    for step in SECURING:
        await place.finish(step)
    before = place.site.vault.get(f"bmc/{SERVER}/current")
    result = await place.step("rotate_credential")
    assert result.done
    after = place.site.vault.get(f"bmc/{SERVER}/current")
    assert after is not None
    assert after != before
    ((name, claim),) = result.statements
    assert (name, claim["event"], claim["why"], claim["unique"]) == ("credential", "rotated", "schedule", True)
    assert msgspec.json.decode(after)["password"] not in str(claim)
    async with place.own_bmc() as client:  # the new one works
        assert await read_accounts(client)
    asked = Intent(id=1, at=time.time(), kind=IntentKind.ROTATE, by="ann")
    (((_, on_demand),)) = (await place.step("rotate_credential", intents=(asked,))).statements
    assert on_demand["why"] == "asked"


async def test_a_rotation_waits_for_its_turn(place: Place) -> None:
    for step in SECURING:
        await place.finish(step)
    before = place.site.vault.get(f"bmc/{SERVER}/current")
    place.site.rotations = asyncio.Semaphore(0)
    result = await place.step("rotate_credential")
    assert (result.done, result.waiting_for) == (False, "its turn to rotate")
    assert place.site.vault.get(f"bmc/{SERVER}/current") == before


@pytest.mark.slow
async def test_every_step_may_be_repeated(place: Place) -> None:
    for step in (*SECURING, *SECURING):
        assert (await place.finish(step)).done
        before = place.site.vault.get(f"bmc/{SERVER}/current")
        assert (await place.finish(step)).done
        assert place.site.vault.get(f"bmc/{SERVER}/current") == before


async def test_a_key_that_is_not_the_declared_one_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    asked = []

    async def note(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", note)
    async with https_with(tmp_path / "bmc", app) as address:
        async with place_at(tmp_path, MemoryHardware(), address) as place:
            await declare_bmc(place, expected_fingerprint="AB" * 32)
            result = await place.step("pin_identity")
    assert not result.done
    assert result.quarantine is not None
    assert f"declared is {'ab' * 32}; nothing was sent to it" in result.quarantine
    assert asked == []
    assert result.facts == {}


async def test_the_declared_key_is_pinned_and_the_claim_says_so(place: Place) -> None:
    seen = (await fetch_identity((await server_spec(place)).bmc.address)).spki_sha256
    await declare_bmc(place, expected_fingerprint=seen.upper())
    result = await place.step("pin_identity")
    assert (result.facts["bmc_identity"], result.facts["bmc_key_seen"]) == (seen, None)
    assert result.statements[0][1]["method"] == "declared fingerprint"


async def test_first_contact_confirm_waits_for_a_person_and_tells_the_key(place: Place) -> None:
    view = await place.view()
    policy = msgspec.structs.replace(view.policy, first_contact="confirm")
    result = await place.step("pin_identity", policy=policy)
    seen = (await fetch_identity((await server_spec(place)).bmc.address)).spki_sha256
    assert (result.done, result.quarantine) == (False, None)
    assert result.waiting_for == "a person to confirm the BMC's key"
    assert result.facts == {"bmc_key_seen": seen}
    (finding,) = result.findings
    assert f"shows key {seen}; policy wants a person to confirm it" in finding.detail
    assert "then `freehold confirm server-1`" in finding.remedy
    await declare_bmc(place, expected_fingerprint=seen)
    assert (await place.step("pin_identity", policy=policy)).done
    assert PolicySpec().first_contact == "pin"


async def test_what_a_person_confirmed_is_pinned_and_nothing_else(place: Place) -> None:
    view = await place.view()
    policy = msgspec.structs.replace(view.policy, first_contact="confirm")
    seen = (await fetch_identity(view.spec.bmc.address)).spki_sha256
    wrong = Intent(id=1, kind=IntentKind.CONFIRM, by="ann", args={"fingerprint": "ab" * 32})
    for rule in (policy, view.policy):
        result = await place.step("pin_identity", policy=rule, intents=(wrong,))
        assert result.quarantine == f"the BMC shows key {seen}, confirmed by ann is {'ab' * 32}; nothing was sent to it"
        assert result.facts == {}
    right = Intent(id=2, kind=IntentKind.CONFIRM, by="bob", args={"fingerprint": seen.upper()})
    result = await place.step("pin_identity", policy=policy, intents=(wrong, right))
    assert (result.facts["bmc_identity"], result.facts["bmc_key_seen"]) == (seen, None)
    assert result.statements[0][1]["method"] == "confirmed by bob"
    assert result.resolved == ("bmc-key-unconfirmed",)


@pytest.mark.slow
async def test_a_confirmation_moves_a_server_that_waits_for_it(place: Place) -> None:
    seen = (await fetch_identity((await server_spec(place)).bmc.address)).spki_sha256
    confirm = Resource(kind="Policy", name="default", spec=PolicySpec(first_contact="confirm"))
    await place.store.apply([*documents(policy="default"), confirm])
    engine = place.engine()
    for _ in range(4):
        await place.store.ledger.wake([SERVER])
        await engine.round()
    status = (await place.view()).status
    assert status.facts.bmc_key_seen == seen
    assert [finding.kind for finding in status.findings] == ["bmc-key-unconfirmed"]
    await place.store.record_intent(SERVER, IntentKind.CONFIRM, by="ann", args={"fingerprint": seen})
    status = await drive(place, ServerState.DISCOVERING)
    assert status.facts.bmc_identity == seen
    assert status.facts.bmc_key_seen is None
    assert "bmc-key-unconfirmed" not in {finding.kind for finding in status.findings}
    assert (await place.view()).intents == ()
    said = await place.said()
    assert "confirm by ann" in said
    assert "the BMC's key is pinned" in said


@pytest.mark.parametrize("step", ["take_over_credential", "disable_ipmi", "check_drift", "power_off"])
async def test_a_bmc_whose_key_changed_later_is_quarantined_and_gets_no_credential(tmp_path: Path, step: str) -> None:
    hardware = MemoryHardware()
    async with bmc(tmp_path / "bmc", hardware) as port, place_at(tmp_path, hardware, f"127.0.0.1:{port}") as place:
        await place.step("pin_identity")
        await place.establish(bmc_identity="cd" * 32)
        result = await place.step(step)
        assert not result.done
        assert result.quarantine is not None
        assert "another key" in result.quarantine
        assert "nothing was sent to it" in result.quarantine
        assert "`freehold release server-1 --accept-bmc-key KEY`" in result.quarantine
    assert failures(tmp_path) == 0


async def drive(place: Place, until: ServerState, rounds: int = 60) -> ServerStatus:
    engine = place.engine()
    await place.store.ledger.wake([SERVER])
    for _ in range(rounds):
        status = (await place.view()).status
        if status.state is until:
            return status
        await place.store.ledger.wake([SERVER])
        await engine.round()
    raise AssertionError((await place.view()).status)


async def test_a_wrong_credential_is_tried_once_and_never_again(tmp_path: Path, place: Place) -> None:
    spec = (await server_spec(place)).bmc.credential
    await declare_bmc(place, credential=msgspec.structs.replace(spec, password="not-the-password"))
    status = await drive(place, ServerState.QUARANTINED)
    assert failures(tmp_path) == 1
    assert "the BMC refuses the recorded credential" in status.reason
    assert "`freehold credential set` the right one" in status.reason
    engine = place.engine()
    for _ in range(3):
        await place.store.ledger.wake([SERVER])
        await engine.round()
    assert failures(tmp_path) == 1
    assert "freehold release server-1" in status.findings[-1].remedy


async def test_a_password_that_somebody_changed_later_is_tried_once(tmp_path: Path, place: Place) -> None:
    await place.secured()
    stored = msgspec.json.decode(place.site.vault.get(f"bmc/{SERVER}/current") or b"")
    place.site.vault.put(f"bmc/{SERVER}/current", msgspec.json.encode(stored | {"password": "an-older-password"}))
    result = await place.step("check_drift")
    assert result.quarantine is not None
    assert "the BMC refused user name or password" in result.quarantine
    assert "it will not be retried; `freehold credential set` the right one" in result.quarantine
    assert failures(tmp_path) == 1


async def test_html_instead_of_redfish_names_the_server_and_is_tried_again_later(tmp_path: Path) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<html>Please enable JavaScript</html>", content_type="text/html")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", page)
    async with https_with(tmp_path / "bmc", app) as address:
        async with place_at(tmp_path, MemoryHardware(), address) as place:
            engine = place.engine()
            await place.store.ledger.wake([SERVER])
            for _ in range(20):
                await engine.round()
                status = (await place.view()).status
                if status.attempts:
                    break
            assert status.state is ServerState.SECURING
            assert "with an HTML page (text/html) instead of Redfish JSON" in status.reason
            assert status.retry_at is not None
            assert 1.0 < status.retry_at - time.time() <= 2.0
            last = (await place.events())[-1]
            assert (last.server, last.kind) == (SERVER, "failed")
            assert last.message.startswith("take_over_credential, attempt 1:")


async def test_the_statement_says_what_the_port_of_ipmi_answered_after_it_was_off(place: Place) -> None:
    await place.step("pin_identity")
    result = await place.step("disable_ipmi")
    assert result.done
    assert result.findings == ()
    (_, claim) = result.statements[0]
    assert claim["ipmi"] == "off"
    probe = claim["probe"]
    assert (probe["address"], probe["port"], probe["present"]) == ("127.0.0.1", 623, False)
    assert probe["silence"] == "port unreachable (ICMP)"
    assert "ipmi-still-answers" in result.resolved


@pytest.mark.host
async def test_a_bmc_that_answers_ipmi_after_it_was_off_is_a_critical_finding_and_goes_no_further(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(securing, "_STOPPING_SECONDS", 0.01)
    await place.step("pin_identity")
    async with hardened(tmp_path / "ipmi") as port:
        async with place.own_bmc() as client:
            await client.patch("/redfish/v1/Managers/1/NetworkProtocol", {"IPMI": {"Port": port}})
        result = await place.step("disable_ipmi")
    assert not result.done
    assert "ipmi_off" not in result.facts
    assert result.statements == ()
    assert f"UDP 127.0.0.1 port {port} to be silent" in result.waiting_for
    found = {finding.kind: finding for finding in result.findings}
    assert found["ipmi-still-answers"].severity is Severity.CRITICAL
    assert found["ipmi-still-answers"].subject == SERVER
    assert f"UDP 127.0.0.1 port {port} answered, IPMI 1.5 and 2.0" in found["ipmi-still-answers"].evidence
    assert "ipmi-still-answers" not in result.resolved
    after = await place.step("disable_ipmi")  # it fell silent
    assert after.facts == {"ipmi_off": True, "ipmi_waived": False}
    assert "ipmi-still-answers" in after.resolved


@pytest.mark.host
@pytest.mark.parametrize(("status", "raised"), [(400, False), (200, False), (503, True)])
async def test_a_bmc_that_refuses_to_turn_ipmi_off_is_believed_by_its_port_only(
    place: Place, monkeypatch: pytest.MonkeyPatch, status: int, raised: bool
) -> None:
    async def refuses(client: RedfishClient, enabled: bool) -> bool:
        raise BmcError("the property is read-only", status=status, server=SERVER)

    monkeypatch.setattr(oob, "set_ipmi", refuses)
    await place.step("pin_identity")
    if raised:
        with pytest.raises(BmcError):
            await place.step("disable_ipmi")
    else:
        ((_, claim),) = (await place.step("disable_ipmi")).statements
        assert claim["ipmi"] == "the BMC does not turn IPMI off: the property is read-only"


async def test_a_bmc_without_an_ipmi_switch_that_answers_goes_on_only_under_a_waiver(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not lie, but anybody may ask it for the hash of a password."""
    monkeypatch.setattr(securing, "_STOPPING_SECONDS", 0.01)

    async def none(client: RedfishClient, enabled: bool) -> bool:
        raise oob.NotSupported("the BMC has no IPMI switch in NetworkProtocol", server=SERVER)

    monkeypatch.setattr(oob, "set_ipmi", none)
    await place.step("pin_identity")
    async with hardened(tmp_path / "ipmi") as port:
        async with place.own_bmc() as client:
            await client.patch("/redfish/v1/Managers/1/NetworkProtocol", {"IPMI": {"Port": port}})
        stopped = await place.step("disable_ipmi")
        assert not (await place.step("disable_ipmi", waivers=(waiver(Waivable.IPMI, expires=time.time() - 1),))).done
        result = await place.step("disable_ipmi", waivers=(waiver(Waivable.IPMI),))
    assert (stopped.done, stopped.facts) == (False, {})
    assert "the BMC has no IPMI switch" in stopped.waiting_for
    assert f"a Waiver of ipmi for {SERVER}" in stopped.waiting_for
    assert result.facts == {"ipmi_off": True, "ipmi_waived": True}
    assert "ipmi-answers" in {finding.kind for finding in result.findings}
    posture, signed = result.statements
    assert posture[1]["probe"]["present"] is True
    assert (signed[0], signed[1]["finding"], signed[1]["approved_by"]) == ("waiver", "ipmi", ("ada", "ben"))


async def turn_directory_on(place: Place) -> None:
    async with place.own_bmc() as client:
        await client.patch("/redfish/v1/AccountService", {"LDAP": {"ServiceEnabled": True}})


async def test_a_directory_is_turned_off(place: Place) -> None:
    for step in SECURING:
        await place.finish(step)
    await turn_directory_on(place)
    result = await place.step("close_services")
    assert result.done
    assert result.statements[0][1]["closed"] == ("directory LDAP",)
    async with place.own_bmc() as client:
        assert (await read_posture(client)).external_providers == ()


async def test_a_directory_that_cannot_be_turned_off_stops_the_server_without_a_waiver(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in SECURING:
        await place.finish(step)
    await turn_directory_on(place)
    patch = RedfishClient.patch

    async def refuse(client: RedfishClient, path: str, body: dict[str, object], **more: object) -> object:
        if "LDAP" in body:
            raise BmcError("read-only", status=400, server=SERVER)
        return await patch(client, path, body, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(RedfishClient, "patch", refuse)
    with pytest.raises(oob.NotSupported, match="lets in whom a directory vouches for") as stopped:
        await place.step("close_services")
    assert f"a Waiver of bmc-directory for {SERVER}" in str(stopped.value.remedy)
    result = await place.step("close_services", waivers=(waiver(Waivable.BMC_DIRECTORY),))
    assert result.facts["services_left_open"] == ("directory LDAP",)
    assert [name for name, _ in result.statements] == ["posture", "waiver"]


async def test_a_directory_under_a_waiver_is_left_alone(place: Place) -> None:
    for step in SECURING:
        await place.finish(step)
    await turn_directory_on(place)
    await place.step("close_services", waivers=(waiver(Waivable.BMC_DIRECTORY),))
    async with place.own_bmc() as client:
        assert [each.name for each in (await read_posture(client)).external_providers] == ["LDAP"]


@pytest.mark.host
async def test_a_bmc_that_takes_a_moment_to_stop_ipmi_is_asked_again(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(securing, "_STOPPING_SECONDS", 0.5)
    await place.step("pin_identity")
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(hardened(tmp_path / "ipmi"))
        async with place.own_bmc() as client:
            await client.patch("/redfish/v1/Managers/1/NetworkProtocol", {"IPMI": {"Port": port}})
        step = asyncio.create_task(place.step("disable_ipmi"))
        await asyncio.sleep(0.3)
        assert not step.done()
        await stack.aclose()
        result = await step
    assert result.findings == ()
    assert result.statements[0][1]["probe"]["present"] is False


@pytest.mark.parametrize("ref", ["bmc/server-2/current", "site/keys/bmc-ca", "former/bmc/server-2/1/current"])
async def test_a_document_cannot_have_a_password_of_the_vault_sent_to_a_bmc_of_its_choice(
    tmp_path: Path, place: Place, ref: str
) -> None:
    """Not even a document that was stored before there was the rule."""
    await place.step("pin_identity")
    place.site.vault.put(ref, msgspec.json.encode(Credential("freehold", "server-2's own")))
    spec = (await place.view()).spec
    named = msgspec.structs.replace(spec.bmc, credential=DeclaredCredential(vault_ref=ref))
    with pytest.raises(FreeholdError, match=f"names {ref} of the vault .* nothing was sent") as refused:
        await place.step("take_over_credential", spec=msgspec.structs.replace(spec, bmc=named))
    assert refused.value.server == SERVER
    assert failures(tmp_path) == 0
    assert place.site.vault.get(f"bmc/{SERVER}/pending") is None


async def test_a_factory_credential_of_the_vault_takes_a_bmc_over(place: Place) -> None:
    spec = (await place.view()).spec
    declared = spec.bmc.credential
    assert declared.username is not None
    assert declared.password is not None
    factory = Credential(declared.username, declared.password)
    place.site.vault.put("factory/rack-7", msgspec.json.encode(factory))
    await declare_bmc(place, credential=DeclaredCredential(vault_ref="factory/rack-7"))
    assert (await place.step("pin_identity")).done
    assert (await place.finish("take_over_credential")).done


async def test_a_factory_password_that_still_works_after_the_take_over_is_found(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory_credentials, "_ROWS", ((("halden",), "field", "service-pass"),))
    await place.secured()
    assert "bmc-default-credential" not in {each.kind for each in (await place.step("record_posture")).findings}
    async with place.own_bmc() as client:
        body = {"UserName": "field", "Password": "service-pass", "RoleId": "Operator"}
        await client.post("/redfish/v1/AccountService/Accounts", body)
    result = await place.step("record_posture")
    (found,) = [each for each in result.findings if each.kind == "bmc-default-credential"]
    assert "'field'" in found.detail
    assert "service-pass" not in str(result)


async def recorded(place: Place) -> set[str]:
    """The details of the findings of the posture, as the engine keeps them."""
    result = await place.step("record_posture")
    status = outcomes.with_findings((await place.view()).status, result.findings, result.resolved)
    await place.set_status(status)
    return {each.detail for each in status.findings}


async def test_what_is_mended_is_no_finding_any_more_when_posture_is_recorded_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory_credentials, "_ROWS", ((("halden",), "field", "service-pass"),))
    await place.secured()
    clean = await recorded(place)
    async with place.own_bmc() as client:
        for name, password in (("field", "service-pass"), ("lab", "another-pass")):
            body = {"UserName": name, "Password": password, "RoleId": "Operator"}
            await client.post("/redfish/v1/AccountService/Accounts", body)
    found = await recorded(place) - clean
    assert sum("is enabled and not one of ours" in each for each in found) == 2  # one does not hide the other
    assert any("factory's documented password" in each for each in found)
    async with place.own_bmc() as client:
        for account in await read_accounts(client):
            if account.username in ("field", "lab"):
                await client.delete(account.uri)
    place.site.vault.destroy(f"bmc/{SERVER}/defaults-probed")
    assert await recorded(place) == clean


async def test_a_factory_password_that_could_not_be_tried_again_stays_found(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory_credentials, "_ROWS", ((("halden",), "field", "service-pass"),))
    await place.secured()
    async with place.own_bmc() as client:
        body = {"UserName": "field", "Password": "service-pass", "RoleId": "Operator"}
        await client.post("/redfish/v1/AccountService/Accounts", body)
    assert any("factory's documented password" in each for each in await recorded(place))
    monkeypatch.setattr(factory_credentials, "allowance", lambda _policy: 0)
    assert any("factory's documented password" in each for each in await recorded(place))


async def test_findings_of_other_steps_are_not_those_of_the_posture(place: Place) -> None:
    await place.secured()
    resolved = (await place.step("record_posture")).resolved
    assert not {"bmc-key-unconfirmed", "bmc-account-locked", "step-failed", "revoked-image"} & set(resolved)
