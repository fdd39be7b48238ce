"""Secure Boot keys on a server: written down before it is begun, one generation whole, and never under a running OS."""

import asyncio
import dataclasses
import time
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from site_support import SERVER, Place, booted, recorded

from freehold.model.errors import FreeholdError
from freehold.model.resources import Waivable
from freehold.model.status import DriftKind, ServerState
from freehold.orchestration.key_generations import announce_generations
from freehold.orchestration.opening import open_log
from freehold.orchestration.steps import secure_boot
from freehold.orchestration.steps.secure_boot import IMAGE_PATIENCE, databases
from freehold.orchestration.waivers import ActiveWaiver
from freehold.out_of_band import server as oob
from freehold.out_of_band.errors import NotSupported
from freehold.out_of_band.inventory import first_member
from freehold.out_of_band.secure_boot import secure_boot_state
from freehold.provisioning.images import enrolment, uki
from freehold.root_of_trust.pki import utc_now
from freehold.root_of_trust.secure_boot_keys import SecureBootKeyring
from freehold_lab.hardware import BootTarget, SecureBootDatabaseName

DIGEST = "ab" * 32
AGENT = booted("agent").authenticode.hex()


def keyring(place: Place) -> SecureBootKeyring:
    return place.site.keys.secure_boot


async def enrolled(place: Place) -> dict[str, tuple[str, ...]]:
    """What the BMC shows."""
    async with place.own_bmc() as client:
        return (await secure_boot_state(client)).entries


async def test_enrolment_leaves_exactly_our_keys_and_says_what_will_confirm_it(owned: Place) -> None:
    keyring(owned).revoke(DIGEST, "CVE-2026-1", utc_now())
    for _ in range(2):
        done = await owned.finish("enroll_secure_boot")
        ((name, claim),) = done.statements
        wanted = databases(keyring(owned).newest_set()).entries
        assert (name, claim["generation"], claim["enabled"], claim["written_by"]) == ("secure-boot", 2, True, "the BMC")
        assert claim["databases"] == {database: list(held) for database, held in wanted.items()}
        assert claim["databases"]["dbx"] == [f"sha256:{DIGEST}"]
        assert "PCR 7" in claim["confirmed_by"]
    facts = (await owned.view()).facts
    assert (facts.secure_boot_enrolled, facts.secure_boot_generation, facts.secure_boot_changing) == (True, 2, False)
    async with owned.own_bmc() as client:
        assert (await secure_boot_state(client)).mode == "UserMode"


async def test_that_it_begins_is_a_fact_before_anything_is_written(owned: Place) -> None:
    first = await owned.step("enroll_secure_boot")
    assert (first.done, first.facts) == (False, {"secure_boot_changing": True})
    assert not any((await enrolled(owned)).values())


@pytest.mark.slow
async def test_wherever_it_breaks_off_the_server_is_unsettled_until_it_was_repeated(
    owned: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyring(owned).revoke(DIGEST, "", utc_now())
    honest, breaks_at, calls = owned.hardware.set_secure_boot_database, 0, 0

    async def failing(name: SecureBootDatabaseName, certificates: list[bytes], signatures: list[str]) -> None:
        nonlocal calls
        calls += 1
        if calls == breaks_at:
            raise RuntimeError("power loss")
        await honest(name, certificates, signatures)

    monkeypatch.setattr(owned.hardware, "set_secure_boot_database", failing)
    for breaks_at in range(1, 5):  # dbx, db, KEK, PK
        await owned.hardware.reset_secure_boot_keys("DeleteAllKeys")
        await owned.establish(secure_boot_enrolled=False, secure_boot_generation=None)
        calls = 0
        with pytest.raises(FreeholdError, match="power loss"):
            await owned.finish("enroll_secure_boot")
        facts = (await owned.view()).facts
        assert (facts.secure_boot_changing, facts.secure_boot_generation) == (True, None), breaks_at
        assert (await owned.finish("enroll_secure_boot")).done
        assert await enrolled(owned) == databases(keyring(owned).newest_set()).entries
        assert not (await owned.view()).facts.secure_boot_changing


@pytest.mark.parametrize("change", ["agent revoked", "OS revoked", "old db key gone"])
@pytest.mark.slow
async def test_keys_under_which_nothing_would_start_are_not_given_to_a_server(owned: Place, change: str) -> None:
    await owned.finish("enroll_secure_boot")
    before, ring = await enrolled(owned), keyring(owned)
    if change == "agent revoked":
        ring.revoke(AGENT, "a bug", utc_now())
    elif change == "OS revoked":
        name, image = next(iter(owned.site.images.items()))
        other = dataclasses.replace(image, booted=dataclasses.replace(image.booted, authenticode=b"\xcd" * 32))
        owned.site.images[name] = other
        ring.revoke("cd" * 32, "a bug", utc_now())
    else:
        ring.rotate("db", "", utc_now())
        ring.finish({}, "", utc_now())  # and the controller was not restarted: its images bear the old signature only
    with pytest.raises(FreeholdError, match="would not start under the server's Secure Boot keys") as refused:
        await owned.finish("enroll_secure_boot")
    assert "restart `freehold serve`" in str(refused.value)
    assert await enrolled(owned) == before
    assert not (await owned.view()).facts.secure_boot_changing


async def test_a_server_is_not_booted_into_an_agent_that_its_firmware_refuses(owned: Place) -> None:
    await owned.finish("enroll_secure_boot")
    owned.site.agent_image = dataclasses.replace(booted("agent"), signers=(recorded.certificate("PK"),))
    with pytest.raises(FreeholdError, match="no key in db of generation 1 has signed it"):
        await owned.step("boot_agent")
    assert owned.hardware.boots == []


@pytest.mark.slow
async def test_a_rotation_reaches_an_available_server_and_passes_an_active_one_by(owned: Place) -> None:
    await owned.finish("enroll_secure_boot")
    first = await enrolled(owned)
    async with owned.own_bmc() as client:
        await oob.power(client, "on")
    await owned.establish(ServerState.ACTIVE)
    assert (await owned.step("check_drift")).facts["drift"] == ()
    keyring(owned).rotate("db", "yearly", utc_now())
    assert (await owned.step("check_drift")).facts["drift"] == ()
    await owned.hardware.set_secure_boot_database("db", [], [])
    (drift,) = (await owned.step("check_drift")).facts["drift"]
    assert drift.kind is DriftKind.SECURE_BOOT_KEYS
    await owned.finish(f"remediate/{drift.kind}")
    assert await enrolled(owned) == first  # what it runs was made for these

    await owned.establish(ServerState.AVAILABLE)
    await owned.finish("enroll_secure_boot")
    assert await enrolled(owned) == databases(keyring(owned).key_set(2)).entries
    assert len((await enrolled(owned))["db"]) == 2
    assert (await owned.hardware.power_state()) == "Off"


async def test_a_dbx_entry_that_came_later_is_drift_and_one_of_the_firmware_is_not(owned: Place) -> None:
    keyring(owned).revoke(DIGEST, "", utc_now())
    await owned.finish("enroll_secure_boot")
    await owned.hardware.set_secure_boot_database("dbx", [], [DIGEST, "11" * 32])  # the vendor's own
    assert (await owned.step("check_drift")).facts["drift"] == ()
    await owned.hardware.set_secure_boot_database("dbx", [], ["11" * 32, AGENT, DIGEST])
    (drift,) = (await owned.step("check_drift")).facts["drift"]
    assert (drift.subject, f"sha256:{AGENT}" in drift.observed) == ("dbx", True)


# generations are announced


async def test_new_generations_are_recorded_and_every_server_is_looked_at(owned: Place) -> None:
    store, ring = owned.store, keyring(owned)
    with open_log(owned.site.directory, "lab", owned.site.keys) as log:
        await announce_generations(ring, store, log)
        assert await store.secure_boot_generation() == 1
        ring.rotate("db", "yearly", utc_now())
        ring.revoke(DIGEST, "CVE-2026-1", utc_now() + timedelta(days=1))
        await announce_generations(ring, store, log)
        await announce_generations(ring, store, log)
        claims = [msgspec.json.decode(msgspec.json.encode(each)) for each in map(claim_of, log.entries())]
    assert [claim["generation"] for claim in claims] == [1, 2, 3]
    assert (claims[2]["dbx"], claims[2]["reason"]) == ([DIGEST], "CVE-2026-1")
    assert len(claims[1]["db"]) == 2
    assert (await owned.view()).secure_boot_generation == 3
    woken = await store.ledger.claim(owned.lease.epoch, 1.0, 10)
    assert SERVER in [claim.server for claim in woken]


def claim_of(entry: Any) -> dict[str, Any]:
    from freehold.evidence import Envelope, Statement

    return Statement.from_bytes(Envelope.from_bytes(entry.envelope).payload).predicate


# the enrolment image


@pytest.fixture
async def mute(owned: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A server whose BMC does not show the databases, and an agent that is one."""
    owned.hardware.faults.secure_boot_hidden = True

    def image(agent: bytes, ring: SecureBootKeyring, number: int, at: Any) -> bytes:
        return b"enrolment image of generation %d" % number

    monkeypatch.setattr(secure_boot, "signed_enrolment_image", image)
    return owned


async def until_booted(place: Place) -> None:
    for _ in range(2):
        assert not (await place.step("enroll_secure_boot")).done
    assert (await place.view()).facts.enrolment_booted_at is not None


async def ends(place: Place, *, enrolls: bool = True) -> None:
    """What the image does on the machine, and that it turns it off."""
    if enrolls:
        keys = keyring(place).newest_set()
        for name, certificates in (("db", keys.db), ("KEK", (keys.kek,)), ("PK", (keys.pk,))):
            await place.hardware.set_secure_boot_database(name, list(certificates), [])  # type: ignore[arg-type]
    await place.hardware.power_off(force=True)


async def test_a_bmc_without_databases_is_enrolled_by_the_image_over_http(mute: Place) -> None:
    await until_booted(mute)
    (boot,) = mute.hardware.boots
    assert (boot.target, boot.enabled) == (BootTarget.UEFI_HTTP, "Once")
    assert boot.http_uri.endswith(f"/boot/enrol-{SERVER}.efi")
    served = mute.site.files.find("boot", f"enrol-{SERVER}.efi")
    assert served is not None
    assert served.read_bytes() == b"enrolment image of generation 1"
    assert [host.boots for host in mute.site.due_to_boot[SERVER]] == [True]
    assert not (await mute.step("enroll_secure_boot")).done  # it still runs
    await ends(mute)
    done = await mute.step("enroll_secure_boot")
    ((_, claim),) = done.statements
    assert (claim["written_by"], claim["databases"], claim["enabled"]) == ("the enrolment image", None, True)
    facts = (await mute.view()).facts
    assert (facts.secure_boot_generation, facts.secure_boot_changing, facts.enrolment_booted_at) == (1, False, None)
    assert mute.site.due_to_boot[SERVER] == ()
    reasserted = await mute.step("reassert_state")  # nothing more can be asked of this BMC
    assert reasserted.done


async def test_a_bmc_without_databases_turns_secure_boot_on_again(mute: Place) -> None:
    await until_booted(mute)
    await ends(mute)
    assert (await mute.step("enroll_secure_boot")).done
    await mute.step("check_drift")
    async with mute.own_bmc() as client:
        await client.patch("/redfish/v1/Systems/1/SecureBoot", {"SecureBootEnable": False})
    assert [each.kind for each in (await mute.step("check_drift")).facts["drift"]] == [DriftKind.SECURE_BOOT]
    assert (await mute.finish("remediate/secure-boot")).done
    assert (await mute.step("check_drift")).facts["drift"] == ()
    assert not (await mute.view()).facts.secure_boot_changing


async def test_or_from_a_medium_which_is_ejected_afterwards(mute: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    inserted: list[str] = []

    async def insert(client: Any, url: str) -> None:
        inserted.append(url)

    monkeypatch.setattr(oob, "insert_media", insert)
    monkeypatch.setattr(secure_boot, "make_iso", lambda image, path: path.write_bytes(image) and path)
    await mute.declare(boot_method="virtualMedia")
    await until_booted(mute)
    assert inserted == [mute.site.media_url(f"enrol-{SERVER}.iso")]
    assert mute.hardware.boots[0].target is BootTarget.CD
    await ends(mute)
    assert (await mute.step("enroll_secure_boot")).done


async def test_an_image_that_does_not_end_or_did_nothing_is_begun_anew_and_a_person_is_told(
    mute: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await until_booted(mute)
    await ends(mute, enrolls=False)
    again = await mute.step("enroll_secure_boot")
    assert (again.done, again.facts) == (False, {"enrolment_booted_at": None})
    assert again.findings[0].detail == "the BMC still reports setup mode after the enrolment image"
    await mute.step("enroll_secure_boot")
    booted_at = (await mute.view()).facts.enrolment_booted_at
    await mute.establish(enrolment_booted_at=(booted_at or 0.0) - IMAGE_PATIENCE)
    again = await mute.step("enroll_secure_boot")
    assert "did not come to its end" in again.findings[0].detail
    assert "console" in again.findings[0].remedy
    assert await mute.hardware.power_state() == "Off"
    assert (await mute.view()).facts.secure_boot_changing


def waiver(**changes: Any) -> ActiveWaiver:
    made = ActiveWaiver(
        name="old-board",
        finding=Waivable.SECURE_BOOT_DATABASES,
        reason="its firmware takes no keys",
        expires=time.time() + 3600.0,
        approved_by=("alice", "bob"),
    )
    return msgspec.structs.replace(made, **changes)


@pytest.mark.slow
async def test_what_neither_bmc_nor_image_can_do_needs_a_waiver_that_holds(mute: Place) -> None:
    for lacking in ((), (waiver(expires=time.time() - 1.0),), (waiver(finding=Waivable.BMC_CERTIFICATE),)):
        await until_booted(mute)
        await ends(mute, enrolls=False)
        again = await mute.step("enroll_secure_boot", waivers=lacking)
        assert not again.done
        assert "declare a Waiver of secure-boot-databases for server-1" in again.findings[0].remedy
        assert not (await mute.view()).facts.secure_boot_waived
    await until_booted(mute)
    await ends(mute, enrolls=False)
    done = await mute.step("enroll_secure_boot", waivers=(waiver(),))
    assert done.done
    ((name, claim),) = done.statements
    assert (name, claim["finding"], claim["approved_by"]) == ("waiver", "secure-boot-databases", ("alice", "bob"))
    assert claim["why"] == "the BMC still reports setup mode after the enrolment image"
    facts = (await mute.view()).facts
    assert (facts.secure_boot_enrolled, facts.secure_boot_waived, facts.secure_boot_changing) == (False, True, False)
    # What it measures is what a machine in setup mode measures, and nothing of ours is missed afterwards.
    assert (await mute.step("check_drift")).facts["drift"] == ()
    ((_, reasserted),) = (await mute.step("reassert_state")).statements
    assert (reasserted["secure_boot"], reasserted["secure_boot_generation"]) == (False, None)


async def test_a_waiver_does_not_spare_the_attempt_and_ends_with_one_that_succeeds(mute: Place) -> None:
    await mute.establish(secure_boot_waived=True)
    await until_booted(mute)
    await ends(mute)
    assert (await mute.step("enroll_secure_boot", waivers=(waiver(),))).done
    facts = (await mute.view()).facts
    assert (facts.secure_boot_enrolled, facts.secure_boot_waived) == (True, False)


async def test_a_server_that_has_our_keys_is_not_let_down_to_none(mute: Place) -> None:
    await until_booted(mute)
    await ends(mute)
    assert (await mute.step("enroll_secure_boot")).done
    keyring(mute).rotate("db", "yearly", utc_now())
    await until_booted(mute)
    booted_at = (await mute.view()).facts.enrolment_booted_at
    await mute.establish(enrolment_booted_at=(booted_at or 0.0) - IMAGE_PATIENCE)
    again = await mute.step("enroll_secure_boot", waivers=(waiver(),))
    assert (again.done, again.findings[0].kind) == (False, "secure-boot-enrolment")
    assert not (await mute.view()).facts.secure_boot_waived


async def test_under_a_waiver_nothing_starts_into_the_image_any_more(mute: Place) -> None:
    await until_booted(mute)
    booted_at = (await mute.view()).facts.enrolment_booted_at
    await mute.establish(enrolment_booted_at=(booted_at or 0.0) - IMAGE_PATIENCE)
    assert (await mute.step("enroll_secure_boot", waivers=(waiver(),))).done
    assert mute.site.due_to_boot[SERVER] == ()
    async with mute.own_bmc() as client:
        system = await first_member(client, "Systems")
    assert system["Boot"]["BootSourceOverrideEnabled"] == "Disabled"


async def test_a_board_that_cannot_be_started_into_the_image_either_is_waived_alike(
    mute: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cannot(*_: Any) -> None:
        raise NotSupported("the BMC has no UEFI HTTP Boot")

    monkeypatch.setattr(oob, "set_boot_http", cannot)
    await mute.step("enroll_secure_boot")
    again = await mute.step("enroll_secure_boot")
    assert "no enrolment image: the BMC has no UEFI HTTP Boot" in again.findings[0].detail
    assert (await mute.step("enroll_secure_boot", waivers=(waiver(),))).done


async def test_a_bmc_that_says_nothing_of_secure_boot_has_no_drift_of_it(
    mute: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(_: Any) -> None:
        raise NotSupported("the BMC has no SecureBoot resource")

    monkeypatch.setattr(secure_boot, "secure_boot_state", nothing)
    await mute.establish(secure_boot_waived=True)
    assert (await mute.step("check_drift")).facts["drift"] == ()


@pytest.mark.host
async def test_the_image_holds_what_the_generation_says(owned: Place) -> None:
    ring = keyring(owned)
    ring.revoke(DIGEST, "", utc_now())
    agent = uki.assemble(b"kernel" * 100, "console=ttyS0", b"ID=x\n", b"initrd")
    image = await asyncio.to_thread(enrolment.signed_enrolment_image, agent, ring, 2, utc_now())
    sections = uki.sections_of(image)
    assert sections[".linux"] == b"kernel" * 100
    variables = ring.key_set(2).variables()
    for content in (variables.pk, variables.kek, variables.db, variables.dbx):
        assert content in sections[".initrd"]
    assert sections[".initrd"].index(b"dbx d719b2cb") < sections[".initrd"].index(b"PK 8be4df61")
