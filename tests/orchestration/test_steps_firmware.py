"""The firmware job: only what two operators signed for this board is sent, and what the BMC then says is not believed
before a boot has measured it."""

import asyncio
import contextlib
import hashlib
import time
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from depot_support import PEOPLE, published
from site_support import SERVER, Place

from freehold.evidence import EvidenceLog, Predicate
from freehold.model.errors import FreeholdError
from freehold.model.resources import Firmware
from freehold.model.status import FirmwareFact, SentFirmware
from freehold.orchestration.controller import depot_seen, recorder, tls_context
from freehold.orchestration.downgrades import request_for
from freehold.orchestration.opening import open_log
from freehold.orchestration.package_measurements import pcr_value
from freehold.orchestration.step import StepResult
from freehold.orchestration.steps.firmware import BACK_WITHIN, CUT_OFF
from freehold.out_of_band.errors import BmcUnreachable
from freehold.out_of_band.server import power
from freehold.out_of_band.update import FETCHED, bios_version
from freehold.root_of_trust.depot import (
    BelowSecurityFloor,
    DepotMissing,
    Kind,
    PackageForAnotherModel,
    TargetChanged,
    TrustedStateLost,
    Wanted,
)
from freehold.root_of_trust.operators import Act, Request, approve
from freehold_lab import firmware_package

NEW = b"HALDEN-BIOS 2.0.0\n" + bytes(1 << 16)


def publish(
    place: Place,
    data: bytes,
    version: str,
    models: tuple[str, ...],
    floor: str | None = None,
    component: str = "bios",
    measurements: dict[int, tuple[str, ...]] | None = None,
) -> None:
    published(place.site, board(place).vendor, data, version, models, floor, component, measurements)


def board(place: Place) -> FirmwareFact:
    info = place.hardware.info
    return FirmwareFact(vendor=info.manufacturer, model=info.model, version=info.bios_version)


@pytest.fixture
async def wanting(owned: Place) -> Place:
    """A server whose BIOS is to become 2.0.0."""
    await owned.declare(firmware=Firmware(bios="2.0.0"))
    await owned.establish(firmware=board(owned), reference_values={"0": ()}, agent_released=True)
    return owned


async def test_the_bytes_that_two_operators_signed_are_sent_and_then_everything_is_measured_anew(
    wanting: Place,
) -> None:
    publish(wanting, NEW, "2.0.0", (board(wanting).model,))
    done = await wanting.step("apply_firmware")
    assert done.done
    facts = (await wanting.view()).facts
    assert facts.firmware == msgspec.structs.replace(board(wanting), version="2.0.0")
    assert (facts.learned_reference, facts.reference_values, facts.agent_released) == (None, None, False)
    ((name, claim),) = done.statements
    assert (name, claim["verified"], claim["staged_locally"]) == ("firmware", True, True)
    assert claim["sha256"] == hashlib.sha256(NEW).hexdigest()
    assert claim["unsigned_because"] == "a test"
    async with wanting.own_bmc() as client:
        await power(client, "reset")
        assert await bios_version(client) == "2.0.0"


@pytest.mark.slow
async def test_a_bmc_that_takes_no_uploads_fetches_from_the_site_and_from_nobody_else(
    wanting: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(wanting, NEW, "2.0.0", (board(wanting).model,))
    wanting.hardware.faults.uploads_refused = True
    site = wanting.site
    runner = web.AppRunner(site.shelf.create_app())
    await runner.setup()
    chain = site.keys.agent_ca.certificate_pem
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls_context(site.keys.controller_tls, chain=chain)).start()
    monkeypatch.setattr(site.shelf, "_base", f"https://127.0.0.1:{runner.addresses[0][1]}")
    try:
        done = await wanting.step("apply_firmware")
    finally:
        await runner.cleanup()
    assert done.statements[0][1]["sent_by"] == FETCHED
    async with wanting.own_bmc() as client:
        service = await client.get("/redfish/v1/UpdateService")
        assert service["VerifyRemoteServerCertificate"] is True
        await power(client, "reset")
        assert await bios_version(client) == "2.0.0"


@pytest.fixture
async def wanting_a_new_bmc(owned: Place) -> Place:
    await owned.declare(firmware=Firmware(bmc="4.13.00"))
    closed = {"ipmi_off": True, "services_closed": True, "posture_recorded": True}
    await owned.establish(firmware=board(owned), bmc_version="4.12.03", **closed)
    package = firmware_package.pack("4.13.00", b"x" * 1000, firmware_package.BMC_MAGIC)
    publish(owned, package, "4.13.00", (board(owned).model,), component="bmc")
    return owned


async def test_a_bmc_starts_into_its_new_firmware_and_is_closed_again(wanting_a_new_bmc: Place) -> None:
    owed = await wanting_a_new_bmc.step("apply_bmc_firmware")
    assert (owed.done, owed.statements) == (False, ())
    sent = await wanting_a_new_bmc.step("apply_bmc_firmware")
    assert not sent.done
    ((name, claim),) = sent.statements
    assert (name, claim["component"], claim["from"], claim["to"]) == ("firmware", "bmc", "4.12.03", "4.13.00")
    for _ in range(100):
        await asyncio.sleep(0.05)
        with contextlib.suppress(BmcUnreachable):
            done = await wanting_a_new_bmc.step("apply_bmc_firmware")
            assert not done.statements  # nothing is sent twice
            if done.done:
                break
    assert done.done
    assert done.events == ("BMC firmware 4.12.03 -> 4.13.00",)
    facts = (await wanting_a_new_bmc.view()).facts
    assert (facts.bmc_version, facts.bmc_firmware_sent) == ("4.13.00", None)
    assert (facts.ipmi_off, facts.services_closed, facts.posture_recorded) == (False, False, False)


async def test_what_was_sent_to_a_bmc_is_on_record_though_nobody_saw_how_it_ended(wanting_a_new_bmc: Place) -> None:
    place = wanting_a_new_bmc
    await place.step("apply_bmc_firmware")
    before = (await place.view()).facts
    ((_, sent),) = (await place.step("apply_bmc_firmware")).statements
    await place.establish(bmc_firmware_sent=before.bmc_firmware_sent)  # the controller died before it wrote that down
    async with asyncio.timeout(30):
        done = None
        while done is None or not done.done:
            await asyncio.sleep(0.05)
            with contextlib.suppress(BmcUnreachable):
                done = await place.step("apply_bmc_firmware")
    assert done.statements == (("firmware", sent | {"sent_by": CUT_OFF}),)


async def test_the_firmware_of_a_bmc_has_a_floor_and_tickets_of_its_own(wanting_a_new_bmc: Place) -> None:
    place = wanting_a_new_bmc
    newer = firmware_package.pack("5.0.0", b"x" * 1000, firmware_package.BMC_MAGIC)
    publish(place, newer, "5.0.0", (board(place).model,), floor="4.20.0", component="bmc")
    await place.store.approvals.found({name: key.public_key for name, key in PEOPLE.items()}, 1.0)
    wanted = Wanted(Kind.FIRMWARE, board(place).vendor, "bmc", "4.13.00", model=board(place).model)
    target, now = place.site.depot.client().package(wanted), time.time()
    request = request_for(SERVER, wanted, "4.12.03", target, reason="a test", by="eve", at=now, expires=now + 600.0)
    await ask(place, changed(request, component="bios"), "alice", "bob")
    with pytest.raises(BelowSecurityFloor, match="there is no downgrade ticket"):
        await place.step("apply_bmc_firmware")
    await ask(place, request, "alice", "bob")
    await place.step("apply_bmc_firmware")
    ((_, claim),) = (await place.step("apply_bmc_firmware")).statements
    assert (claim["below_floor"], claim["downgrade"]["request_id"]) == ("4.20.0", request.id)


async def test_a_bmc_that_stays_with_its_old_firmware_is_quarantined_and_not_sent_it_again(
    wanting_a_new_bmc: Place,
) -> None:
    await wanting_a_new_bmc.establish(bmc_firmware_sent=SentFirmware(version="4.13.00", at=time.time() - 60.0))
    waits = await wanting_a_new_bmc.step("apply_bmc_firmware")
    assert (waits.done, waits.quarantine, waits.statements) == (False, None, ())
    long_ago = time.time() - BACK_WITHIN - 1.0
    await wanting_a_new_bmc.establish(bmc_firmware_sent=SentFirmware(version="4.13.00", at=long_ago))
    result = await wanting_a_new_bmc.step("apply_bmc_firmware")
    assert result.quarantine == "after the update to BMC firmware 4.13.00 the BMC tells of version 4.12.03"
    assert result.facts["bmc_firmware_sent"] is None  # whoever releases it has it tried again


async def test_a_bmc_that_started_anew_in_the_middle_of_its_update_is_sent_it_again(wanting_a_new_bmc: Place) -> None:
    long_ago = time.time() - BACK_WITHIN - 1.0
    lost = SentFirmware(version="4.13.00", at=long_ago, seen=False)
    await wanting_a_new_bmc.establish(bmc_firmware_sent=lost)
    assert (await wanting_a_new_bmc.step("apply_bmc_firmware")).quarantine is None
    ((name, claim),) = (await wanting_a_new_bmc.step("apply_bmc_firmware")).statements
    assert (name, claim["to"]) == ("firmware", "4.13.00")


async def test_a_bmc_that_did_not_do_what_it_said_is_quarantined(wanting: Place) -> None:
    publish(wanting, NEW, "2.0.0", (board(wanting).model,))
    await wanting.step("apply_firmware")
    agent = await wanting.speak("ramdisk", details={"reference": {"0": ["aa"], "2": []}})
    result = await wanting.step("learn_reference", agent=agent)  # it was never started anew
    assert result.quarantine is not None
    assert "after the update to BIOS 2.0.0 the BMC tells of version" in result.quarantine


A, B, C = (letter * 64 for letter in "abc")


async def measuring(place: Place, *pcr0: str) -> StepResult:
    """2.0.0 is sent and started; the machine then measures this into PCR 0."""
    await place.step("apply_firmware")
    async with place.own_bmc() as client:
        await power(client, "reset")
    agent = await place.speak("ramdisk", details={"reference": {"0": list(pcr0), "2": []}})
    return await place.step("learn_reference", agent=agent)


@pytest.mark.parametrize(
    "signed", [(pcr_value([A, B]),), (pcr_value([A, B], 3),), (A, B)], ids=["value", "from locality 3", "events"]
)
@pytest.mark.slow
async def test_what_the_operators_signed_that_a_version_measures_is_learned(
    wanting: Place, signed: tuple[str, ...]
) -> None:
    publish(wanting, NEW, "2.0.0", (board(wanting).model,), measurements={0: signed})
    learned = await measuring(wanting, A, B)
    assert (learned.done, learned.facts["learned_reference"]) == (True, {"0": (A, B), "2": ()})
    waits = await wanting.step("approve_reference")
    said = "PCR 0 is what the operators signed with firmware/bios-2.0.0.bin"
    assert said in waits.findings[0].detail
    (asked,) = await wanting.store.approvals.list()
    assert asked.request.details["depot"] == said


@pytest.mark.parametrize(
    ("signed", "why"),
    [
        ((pcr_value([A, B]),), f"measures {pcr_value([A, B])}, and this server {pcr_value([A, C])}"),
        ((A, B), f"measures {B} as event 1, and this server {C}"),
        ((A, C, B), "measures 3 events, and this server 2"),
    ],
)
@pytest.mark.slow
async def test_a_bmc_that_installed_other_code_does_not_say_what_its_version_measures(
    wanting: Place, signed: tuple[str, ...], why: str
) -> None:
    """It tells of the version that it was sent, on the first server that gets it: nothing was approved yet."""
    publish(wanting, NEW, "2.0.0", (board(wanting).model,), measurements={0: signed})
    learned = await measuring(wanting, A, C)
    assert (learned.done, learned.facts) == (False, {})
    assert learned.quarantine is not None
    assert "PCR 0: firmware/bios-2.0.0.bin, as the operators signed it, " + why in learned.quarantine
    await wanting.establish(learned_reference={"0": (A, C), "2": ()})  # as if discovery had taken it down
    again = await wanting.step("approve_reference")
    assert "its firmware is not what the depot lists: PCR 0" in (again.quarantine or "")
    assert await wanting.store.references.list() == []


async def test_a_package_without_measurements_leaves_the_decision_to_people_and_says_so(wanting: Place) -> None:
    publish(wanting, NEW, "2.0.0", (board(wanting).model,))
    assert (await measuring(wanting, A)).done
    await wanting.step("approve_reference")
    (asked,) = await wanting.store.approvals.list()
    assert asked.request.details["depot"] == (
        "firmware/bios-2.0.0.bin does not say what it measures: there is nothing to compare with"
    )


async def test_a_pcr_of_which_nothing_is_learned_is_not_taken_for_a_match(wanting: Place) -> None:
    publish(wanting, NEW, "2.0.0", (board(wanting).model,), measurements={0: (A,), 1: (B,)})
    assert f"PCR 1: firmware/bios-2.0.0.bin, as the operators signed it, measures {B}, and of this PCR nothing" in (
        (await measuring(wanting, A)).quarantine or ""
    )


async def test_without_a_depot_it_says_how_to_get_one(wanting: Place) -> None:
    with pytest.raises(DepotMissing, match="there is no published depot") as stopped:
        await wanting.step("apply_firmware")
    assert "freehold depot init" in (stopped.value.remedy or "")


async def test_firmware_for_another_board_is_never_sent(wanting: Place) -> None:
    publish(wanting, NEW, "2.0.0", ("another board",))
    with pytest.raises(PackageForAnotherModel, match="is not for model"):
        await wanting.step("apply_firmware")
    async with wanting.own_bmc() as client:
        await power(client, "reset")
        assert await bios_version(client) == board(wanting).version


async def test_bytes_that_were_changed_in_the_depot_are_never_sent(wanting: Place) -> None:
    publish(wanting, NEW, "2.0.0", (board(wanting).model,))
    (stored,) = (wanting.site.depot.directory / "repository" / "targets" / "firmware").iterdir()
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.chmod(0o600)
    stored.write_bytes(data)
    with pytest.raises(TargetChanged, match="is not what the operators signed"):
        await wanting.step("apply_firmware")


async def test_an_old_version_below_the_floor_needs_a_ticket(wanting: Place) -> None:
    publish(wanting, NEW, "2.0.0", (board(wanting).model,))
    publish(wanting, b"HALDEN-BIOS 3.0.0\n", "3.0.0", (board(wanting).model,), floor="2.5.0")
    with pytest.raises(BelowSecurityFloor, match=r"below the security floor 2\.5\.0"):
        await wanting.step("apply_firmware")


async def below(place: Place) -> Request:
    """2.0.0, which is wanted, is below the floor; the request for exactly what is needed."""
    publish(place, NEW, "2.0.0", (board(place).model,))
    publish(place, b"HALDEN-BIOS 3.0.0\n", "3.0.0", (board(place).model,), floor="2.5.0")
    await place.store.approvals.found({name: key.public_key for name, key in PEOPLE.items()}, 1.0)
    wanted = Wanted(Kind.FIRMWARE, board(place).vendor, "bios", "2.0.0", model=board(place).model)
    target = place.site.depot.client().package(wanted)
    now = time.time()
    return request_for(
        SERVER, wanted, board(place).version, target, reason="a test", by="eve", at=now, expires=now + 600.0
    )


async def ask(place: Place, request: Request, *names: str) -> None:
    await place.store.approvals.ask(request)
    for name in names:
        await place.store.approvals.sign(request.id, approve(request, PEOPLE[name]).to_bytes())


def changed(request: Request, **details: object) -> Request:
    return msgspec.structs.replace(request, details=request.details | details)


async def test_a_ticket_of_two_people_lets_exactly_this_package_in_once_and_is_in_the_statement(wanting: Place) -> None:
    request = await below(wanting)
    await ask(wanting, request, "alice", "bob")
    before = board(wanting)
    ((_, claim),) = (await wanting.step("apply_firmware")).statements
    assert (claim["from"], claim["to"], claim["below_floor"]) == (before.version, "2.0.0", "2.5.0")
    assert claim["downgrade"]["request_id"] == request.id
    assert [each["name"] for each in claim["downgrade"]["approved_by"]] == ["alice", "bob"]
    assert claim["downgrade"]["request"]["details"]["sha256"] == hashlib.sha256(NEW).hexdigest()
    async with wanting.own_bmc() as client:
        await power(client, "reset")
    agent = await wanting.speak("ramdisk", details={"reference": {"0": ["aa"], "2": []}})
    assert (await wanting.step("learn_reference", agent=agent)).done
    await wanting.establish(firmware=before)  # as if the newer version had been put back
    with pytest.raises(BelowSecurityFloor, match="there is no downgrade ticket"):
        await wanting.step("apply_firmware")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sha256": "ab" * 32}, "the ticket is for SHA-256"),
        ({"model": "another board"}, "the ticket is for model"),
        ({"to": "1.9.0"}, "there is no downgrade ticket"),
        ({"from": "2.6.0"}, "there is no downgrade ticket"),
    ],
)
@pytest.mark.slow
async def test_a_ticket_for_something_else_lets_nothing_in(wanting: Place, change: dict[str, str], reason: str) -> None:
    await ask(wanting, changed(await below(wanting), **change), "alice", "bob")
    with pytest.raises(BelowSecurityFloor, match=reason):
        await wanting.step("apply_firmware")


async def test_a_ticket_for_another_server_lets_nothing_in(wanting: Place) -> None:
    request = msgspec.structs.replace(await below(wanting), subject="server/server-2")
    await ask(wanting, request, "alice", "bob")
    with pytest.raises(BelowSecurityFloor, match="there is no downgrade ticket"):
        await wanting.step("apply_firmware")


async def test_one_person_who_signs_twice_is_one_person(wanting: Place) -> None:
    await ask(wanting, await below(wanting), "alice", "alice")
    with pytest.raises(BelowSecurityFloor, match="there is no downgrade ticket"):
        await wanting.step("apply_firmware")


async def test_a_ticket_that_expired_lets_nothing_in(wanting: Place) -> None:
    request = msgspec.structs.replace(await below(wanting), expires=time.time() - 1.0)
    await ask(wanting, request, "alice", "bob")
    with pytest.raises(BelowSecurityFloor, match="there is no downgrade ticket"):
        await wanting.step("apply_firmware")


async def test_a_ticket_whose_signer_is_no_operator_any_more_lets_nothing_in(wanting: Place) -> None:
    request = await below(wanting)
    await ask(wanting, request, "alice", "bob")
    people = {name: PEOPLE[name].public_key.pem.decode() for name in ("alice", "carol")}
    replacing = msgspec.structs.replace(request, act=Act.OPERATORS, subject="site", details={"people": people})
    await ask(wanting, replacing, "alice", "carol")
    await wanting.store.approvals.replace(replacing.id, time.time())
    with pytest.raises(BelowSecurityFloor, match="there is no downgrade ticket"):
        await wanting.step("apply_firmware")


async def test_what_is_not_below_the_floor_needs_and_uses_no_ticket(wanting: Place) -> None:
    publish(wanting, NEW, "2.0.0", (board(wanting).model,))
    ((_, claim),) = (await wanting.step("apply_firmware")).statements
    assert (claim["below_floor"], claim["downgrade"]) == (None, None)


async def test_the_evidence_log_remembers_what_was_seen_when_the_depot_s_state_is_lost(
    wanting: Place, tmp_path: Path
) -> None:
    publish(wanting, NEW, "2.0.0", (board(wanting).model,))
    ((name, claim),) = (await wanting.step("apply_firmware")).statements
    with open_log(tmp_path / "log", "lab", wanting.site.keys) as log:
        assert isinstance(log, EvidenceLog)
        assert depot_seen(log) is None
        await recorder(log)(name, SERVER, claim)
        assert name == Predicate.FIRMWARE
        wanting.site.depot_seen = depot_seen(log)
    (wanting.site.depot.directory / "trusted").rename(tmp_path / "lost")
    with pytest.raises(TrustedStateLost):
        await wanting.step("apply_firmware")


async def test_a_board_that_is_not_known_yet_is_not_touched(owned: Place) -> None:
    with pytest.raises(FreeholdError, match="its board is not known yet"):
        await owned.step("apply_firmware")
