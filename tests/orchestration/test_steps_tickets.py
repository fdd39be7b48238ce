"""Steps of a server without a TPM, against a BMC that really fetches the medium with the ticket."""

import dataclasses
import hashlib
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from site_support import SERVER, Place

from freehold.agent import ticket as tickets
from freehold.model.errors import FreeholdError
from freehold.model.resources import Waivable
from freehold.model.status import FirmwareFact, ServerState, Tenancy
from freehold.orchestration.auditing import audit_server
from freehold.orchestration.steps.decommissioning import NO_TPM
from freehold.orchestration.waivers import ActiveWaiver
from freehold.provisioning.ticket_shelf import TicketShelf

WAIVER = ActiveWaiver(
    name="no-chip",
    finding=Waivable.TPM,
    reason="an old board",
    expires=time.time() + 3600.0,
    approved_by=("ann", "bob"),
)
ENDED = msgspec.structs.replace(WAIVER, expires=time.time() - 1.0)


@pytest.fixture
async def shelved(owned: Place) -> AsyncIterator[Place]:
    """The shelf is where the BMC can reach it."""
    app, port = web.Application(), unused_port()
    shelf = owned.site.__dict__["tickets"] = TicketShelf(f"http://127.0.0.1:{port}")
    shelf.add_routes(app)
    async with TestServer(app, port=port):
        yield owned


async def medium_in(place: Place) -> bytes | None:
    """What is in the machine's virtual CD."""
    path = place.hardware.media
    return path.read_bytes() if path is not None else None


@pytest.mark.parametrize("method", ["http", "virtualMedia"])
@pytest.mark.slow
async def test_under_a_waiver_a_fresh_ticket_comes_with_each_boot_and_goes_with_it(shelved: Place, method: str) -> None:
    await shelved.declare(boot_method=method)
    found = []
    for _ in range(2):
        result = await shelved.step("boot_agent", waivers=(WAIVER,))
        content = await medium_in(shelved)
        assert content is not None
        ticket = tickets.parse(content)
        assert ticket is not None
        assert result.facts["boot_ticket"] == hashlib.sha256(ticket).hexdigest()
        assert ticket.hex() not in str(result)
        found.append(ticket)
    assert found[0] != found[1]
    assert (await shelved.step("release_agent")).facts["boot_ticket"] is None
    assert await medium_in(shelved) is None
    assert shelved.site.tickets._media == {}
    assert not [path for path in shelved.site.directory.rglob("*") if path.is_file() and found[1] in path.read_bytes()]


@pytest.mark.parametrize(
    ("waivers", "facts"),
    [((), {}), ((ENDED,), {}), ((WAIVER,), {"ek_sha256": "e" * 64})],
    ids=["no waiver", "an ended one", "a TPM that is known"],
)
@pytest.mark.slow
async def test_otherwise_no_boot_has_a_ticket(shelved: Place, waivers: Any, facts: dict[str, Any]) -> None:
    assert (await shelved.step("boot_agent", waivers=(WAIVER,))).facts["boot_ticket"] is not None
    await shelved.establish(**facts)
    assert (await shelved.step("boot_agent", waivers=waivers)).facts["boot_ticket"] is None
    assert await medium_in(shelved) is None


async def test_people_are_told_when_the_bmc_lists_no_tpm(owned: Place) -> None:
    owned.hardware.info = dataclasses.replace(owned.hardware.info, has_tpm=False)
    told = await owned.step("read_oob_inventory")
    assert [finding.kind for finding in told.findings] == ["no-tpm"]
    assert "declare a Waiver of missing-tpm for server-1" in str(told.findings[0].remedy)
    assert told.events == ("its BMC lists no TPM; whether it has one is known when its agent speaks",)
    owned.hardware.info = dataclasses.replace(owned.hardware.info, has_tpm=True)
    assert (await owned.step("read_oob_inventory")).resolved == ("no-tpm",)


async def test_without_a_waiver_the_machine_goes_off_once_and_a_person_is_told_what_to_do(owned: Place) -> None:
    await owned.establish(ServerState.DISCOVERING, agent_booted_at=time.time() - 60)
    await owned.hardware.power_on()
    session = await owned.speak("ramdisk", attested_at=None, details={"no_tpm": True})
    result = await owned.step("require_tpm", agent=session)
    assert not result.done
    assert await owned.hardware.power_state() == "Off"
    assert owned.site.due_to_boot[SERVER] == ()
    (finding,) = result.findings
    for words in ("fit or enable a TPM 2.0, then `freehold attest server-1`", "Waiver of missing-tpm", "retire"):
        assert words in str(finding.remedy)
        assert words in result.waiting_for
    assert len(result.events) == 1
    assert (await owned.view()).agent is None
    again = await owned.step("require_tpm")
    assert (again.done, again.events, again.findings) == (False, (), (finding,))
    facts = (await owned.view()).facts
    assert (facts.agent_booted_at, facts.tpm_missing) == (None, pytest.approx(time.time(), abs=60))


async def entered(place: Place, **facts: Any) -> Any:
    await place.establish(ServerState.DISCOVERING, inband_inventory={"ek_sha256": None}, **facts)
    return await place.speak("ramdisk", details={"ticket": "t" * 64, "admission": 7, "reference": {}})


async def test_a_waiver_is_bound_in_place_of_a_tpm_and_the_log_says_so(owned: Place) -> None:
    session = await entered(owned)
    result = await owned.step("bind_ek", agent=session, waivers=(WAIVER,))
    said = dict(result.statements)
    assert (said["waiver"]["name"], said["waiver"]["approved_by"]) == ("no-chip", ("ann", "bob"))
    assert said["inventory"] == {"source": "tpm", "ek_sha256": None, "admission": 7}
    facts = (await owned.view()).facts
    assert (facts.tpm_waived, facts.ek_sha256, facts.learned_reference) == (True, None, {})
    await owned.establish(firmware=FirmwareFact(vendor="v", model="m", version="1"))
    approved = await owned.step("approve_reference", waivers=(WAIVER,))
    assert (approved.facts["reference_values"], approved.statements) == ({}, ())


async def test_no_waiver_no_binding(owned: Place) -> None:
    session = await entered(owned)
    with pytest.raises(FreeholdError, match="the waiver of its missing TPM has ended"):
        await owned.step("bind_ek", agent=session, waivers=(ENDED,))


async def test_a_ticket_after_the_inventory_of_a_tpm_is_a_trust_failure(owned: Place) -> None:
    session = await entered(owned)
    await owned.establish(inband_inventory={"ek_sha256": "e" * 64})
    result = await owned.step("bind_ek", agent=session, waivers=(WAIVER,))
    assert "the inventory came from TPM eeee" in str(result.quarantine)
    await owned.establish(inband_inventory={"ek_sha256": None}, ek_sha256="e" * 64)
    result = await owned.step("bind_ek", agent=session, waivers=(WAIVER,))
    assert "is not the bound eeee" in str(result.quarantine)


async def test_the_audit_names_it_and_does_not_speak_of_learned_values(owned: Place) -> None:
    await owned.establish(tpm_waived=True, reference_values={})
    view = await owned.view()
    for waiver, severity, words in ((WAIVER, "info", "waived until"), (ENDED, "critical", "has ended")):
        found = await audit_server(owned.site.vault, msgspec.structs.replace(view, waivers=(waiver,)))
        (remark,) = [each for each in found.findings if "it has no usable TPM 2.0" in each.detail]
        assert (remark.severity, words in remark.detail) == (severity, True)
        assert not [each for each in found.findings if each.kind == "firmware-unapproved"]


async def test_the_os_gets_a_ticket_with_its_seed_which_the_agent_makes(place: Place) -> None:
    spec = msgspec.structs.replace((await place.view()).assignment.spec)  # type: ignore[union-attr]
    disks = {"disks": [{"serial": "N0", "name": "nvme0n1", "size_bytes": 1 << 32}]}
    tenancy = Tenancy(name="web", revision="r" * 32, spec=spec)
    await place.establish(ServerState.PROVISIONING, inband_inventory=disks, tenancy=tenancy, tpm_waived=True)
    args = await place.answer("write_seed", {"ticket_sha256": "a" * 64})
    assert args["ticket"] is True
    assert (await place.step("write_seed")).facts == {"seed_written": True, "os_ticket": "a" * 64}


async def test_a_seed_without_a_ticket_is_an_error_where_one_is_needed(place: Place) -> None:
    spec = msgspec.structs.replace((await place.view()).assignment.spec)  # type: ignore[union-attr]
    disks = {"disks": [{"serial": "N0", "name": "nvme0n1", "size_bytes": 1 << 32}]}
    tenancy = Tenancy(name="web", revision="r" * 32, spec=spec)
    await place.establish(ServerState.PROVISIONING, inband_inventory=disks, tenancy=tenancy, tpm_waived=True)
    await place.answer("write_seed", {})
    with pytest.raises(FreeholdError, match="the agent made no ticket for the OS"):
        await place.step("write_seed")


async def test_that_there_was_no_tpm_to_clear_is_in_the_certificate(place: Place) -> None:
    await place.establish(ServerState.DECOMMISSIONING, media=(), tpm_waived=True)
    await place.answer("clear_tpm", {"cleared": False})
    assert (await place.step("clear_tpm")).events == ("there is no TPM to clear, by a waiver",)
    destroyed = dict((await place.step("destroy_keys")).statements)
    assert destroyed["key-destruction"]["tpm"] == NO_TPM


async def test_a_server_that_has_a_tpm_is_not_done_before_it_is_cleared(place: Place) -> None:
    await place.establish(ServerState.DECOMMISSIONING, ek_sha256="e" * 64)
    await place.answer("clear_tpm", {"cleared": False})
    with pytest.raises(FreeholdError, match="the agent found no TPM to clear"):
        await place.step("clear_tpm")


async def test_when_the_waiver_has_ended_an_active_server_is_let_in_no_more(owned: Place) -> None:
    await owned.establish(ServerState.ACTIVE, tpm_waived=True)
    session = await owned.speak("os", details={"ticket": "t" * 64})
    await owned.step("renew_attestation", agent=session, waivers=(ENDED,))
    assert (await owned.view()).agent is None
    told = await owned.step("tell_ended_waivers", waivers=(ENDED,))
    assert (told.findings[0].severity, told.findings[0].subject) == ("critical", "missing-tpm")
