"""Reference values: a server joins the pool only with firmware that two people know."""

import time
from typing import Any

import msgspec
import pytest
from site_support import Place
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from freehold.evidence import Ed25519Signer, dsse
from freehold.model.findings import Severity
from freehold.model.status import FirmwareFact
from freehold.orchestration.auditing import unapproved_firmware
from freehold.orchestration.references import PATIENCE
from freehold.orchestration.schema import approvals, reference_values
from freehold.root_of_trust.attestation.reference import ReferenceState, ReferenceValues
from freehold.root_of_trust.operators import PAYLOAD_TYPE, Act, Request, approve

A, B = "a" * 64, "b" * 64
PEOPLE = {name: Ed25519Signer.generate() for name in ("ann", "bob")}
BOARD = FirmwareFact(vendor="Halden", model="HX2", version="1.0")


@pytest.fixture
async def measured(place: Place) -> Place:
    """A server whose firmware was measured, on a site with operators."""
    await place.store.approvals.found({name: key.public_key for name, key in PEOPLE.items()}, 1.0)
    await place.establish(learned_reference={"0": (A,), "2": ()}, firmware=BOARD)
    return place


async def sign(place: Place, *names: str) -> None:
    for asked in await place.store.approvals.list():
        for name in names:
            await place.store.approvals.sign(asked.request.id, approve(asked.request, PEOPLE[name]).to_bytes())


async def test_one_person_is_not_enough_and_two_are(measured: Place) -> None:
    waits = await measured.step("approve_reference")
    (known,) = await measured.store.references.list()
    assert not waits.done
    assert waits.waiting_for == f"two operators to approve reference values {known.values.id}"
    assert "freehold baseline approve" in waits.findings[0].remedy
    await sign(measured, "ann")
    assert not (await measured.step("approve_reference")).done
    await sign(measured, "bob")
    done = await measured.step("approve_reference")
    assert done.facts == {"reference_values": {"0": (A,), "2": ()}, "reference_id": known.values.id}
    ((name, claim),) = done.statements
    assert (name, claim["approved_by"], claim["firmware"]) == ("posture", ["ann", "bob"], known.values.firmware)
    kept = measured.site.artifacts.all()
    assert set(claim["artifacts"]) == {"request", "approval-ann", "approval-bob", "operator-ann", "operator-bob"}
    for who, key in PEOPLE.items():
        assert kept[claim["artifacts"][f"operator-{who}"]] == key.public_key.pem
        envelope = kept[claim["artifacts"][f"approval-{who}"]]
        assert dsse.verify(envelope, PAYLOAD_TYPE, key.public_key) == kept[claim["artifacts"]["request"]]
    assert (await measured.store.references.show(known.values.id)).state is ReferenceState.APPROVED


async def test_the_next_server_of_the_same_board_asks_nobody(measured: Place) -> None:
    await measured.step("approve_reference")
    await sign(measured, "ann", "bob")
    await measured.step("approve_reference")
    again = await measured.step("approve_reference")
    assert again.done
    assert await measured.store.approvals.list() == []


async def replaced_operators(place: Place) -> None:
    """Ann and Bob leave; Carol and Dave are the operators."""
    new = {name: Ed25519Signer.generate().public_key.pem.decode() for name in ("carol", "dave")}
    now = time.time()
    request = Request(
        act=Act.OPERATORS, subject="site", details={"people": new}, requested_by="ann", at=now, expires=now + 60
    )
    await place.store.approvals.ask(request)
    await sign(place, "ann", "bob")
    await place.store.approvals.replace(request.id, time.time())


async def test_who_approved_is_recorded_by_the_operators_of_that_time(measured: Place) -> None:
    """After a replacement the next server of the board has its two approvers still."""
    await measured.step("approve_reference")
    await sign(measured, "ann", "bob")
    first = await measured.step("approve_reference")
    await replaced_operators(measured)
    again = await measured.step("approve_reference")
    assert again.done
    assert again.statements[0][1]["approved_by"] == ["ann", "bob"]
    assert again.statements[0][1]["artifacts"] == first.statements[0][1]["artifacts"]


@pytest.mark.parametrize(
    "forgery",
    [
        update(reference_values).values(state="approved"),
        update(approvals).values(spent=time.time()),
    ],
    ids=["a word in the table", "a request that nobody signed"],
)
async def test_a_word_in_the_store_is_no_approval(measured: Place, forgery: Any) -> None:
    await measured.step("approve_reference")
    await sign(measured, "ann")
    (known,) = await measured.store.references.list()

    async def forge(connection: AsyncConnection) -> None:
        await connection.execute(update(reference_values).values(state="approved"))
        await connection.execute(forgery)

    await measured.store.references._database.write(forge)
    waits = await measured.step("approve_reference")
    assert not waits.done
    assert "reference_values" not in waits.facts
    assert "kept as approved, and their approval does not verify" in waits.findings[0].detail
    asked = await measured.store.references.show(known.values.id)
    assert asked.state is ReferenceState.PENDING
    await sign(measured, "ann", "bob")
    assert (await measured.step("approve_reference")).done


async def test_the_approval_of_other_values_is_none_of_these(measured: Place) -> None:
    await measured.step("approve_reference")
    await sign(measured, "ann", "bob")
    await measured.step("approve_reference")
    (known,) = await measured.store.references.list()
    await measured.establish(learned_reference={"0": (B,), "2": ()})
    await measured.step("approve_reference")

    async def forge(connection: AsyncConnection) -> None:
        stolen = {"state": "approved", "approval": known.approval}
        await connection.execute(update(reference_values).values(**stolen))

    await measured.store.references._database.write(forge)
    assert not (await measured.step("approve_reference")).done


async def test_other_firmware_under_the_same_version_is_a_critical_finding_that_names_the_event(
    measured: Place,
) -> None:
    await measured.step("approve_reference")
    await sign(measured, "ann", "bob")
    await measured.step("approve_reference")
    await measured.establish(learned_reference={"0": (B,), "2": ()})
    waits = await measured.step("approve_reference")
    assert not waits.done
    (finding,) = waits.findings
    assert finding.severity is Severity.CRITICAL
    assert f"PCR 0: event 0 is {B}" in finding.detail


@pytest.mark.parametrize("state", [ReferenceState.SUPERSEDED, ReferenceState.REVOKED])
async def test_withdrawn_values_bring_nobody_into_the_pool(measured: Place, state: ReferenceState) -> None:
    await measured.step("approve_reference")
    await sign(measured, "ann", "bob")
    await measured.step("approve_reference")
    (known,) = await measured.store.references.list()
    await measured.store.references.withdraw(known.values.id, state, 5.0)
    refused = await measured.step("approve_reference")
    assert refused.quarantine is not None
    assert f"which are {state}" in refused.quarantine


async def test_a_policy_of_learned_asks_nobody_and_says_so(place: Place) -> None:
    await place.establish(learned_reference={"0": (A,), "2": ()}, firmware=BOARD)
    view = await place.view()
    policy = msgspec.structs.replace(view.policy, reference_values="learned")
    done = await place.step("approve_reference", policy=policy)
    assert done.facts == {"reference_values": {"0": (A,), "2": ()}, "reference_id": None}
    assert done.statements[0][1]["origin"] == "learned"
    assert done.statements[0][1]["approved_by"] == []
    assert await place.store.references.list() == []
    (finding,) = unapproved_firmware(await place.view())
    assert "nobody approved what its firmware measures" in finding.detail
    assert unapproved_firmware(view) == ()


async def test_once_there_are_operators_a_policy_of_learned_does_not_speak_for_two_of_them(measured: Place) -> None:
    policy = msgspec.structs.replace((await measured.view()).policy, reference_values="learned")
    waits = await measured.step("approve_reference", policy=policy)
    assert not waits.done
    assert "reference_values" not in waits.facts
    assert "`learned`, which does not count on a site that has operators" in waits.findings[0].detail
    await sign(measured, "ann", "bob")
    assert (await measured.step("approve_reference", policy=policy)).done
    assert unapproved_firmware(await measured.view()) == ()


async def test_what_was_measured_outside_a_firmware_job_is_never_learned(place: Place) -> None:
    await place.establish(learned_reference={"0": (B,), "2": ()}, firmware=BOARD, remeasured=True)
    policy = msgspec.structs.replace((await place.view()).policy, reference_values="learned")
    waits = await place.step("approve_reference", policy=policy)
    assert (waits.done, "reference_values" in waits.facts) == (False, False)
    assert "does not count for a server that was released with --remeasure" in waits.findings[0].detail


@pytest.mark.parametrize("policy", ["approved", "learned"])
async def test_revoked_measurements_bring_nobody_into_the_pool_whatever_the_version_says(
    place: Place, policy: str
) -> None:
    """A BMC that lies about its BIOS version makes other values of the same measurements."""
    await place.establish(learned_reference={"0": (A,), "2": ()}, firmware=BOARD)
    bad = ReferenceValues(vendor="Halden", model="HX2", version="0.9", digests={"0": (A,), "2": ()})
    await place.store.references.propose(bad, "advisory", "ann", 1.0)
    await place.store.references.withdraw(bad.id, ReferenceState.REVOKED, 2.0)
    wanted = msgspec.structs.replace((await place.view()).policy, reference_values=policy)
    refused = await place.step("approve_reference", policy=wanted)
    assert refused.quarantine is not None
    assert f"what reference values {bad.id} hold (Halden HX2 BIOS 0.9), which are revoked" in refused.quarantine


async def test_a_request_that_nobody_signed_in_time_is_asked_anew(measured: Place) -> None:
    values = ReferenceValues(vendor="Halden", model="HX2", version="1.0", digests={"0": (A,), "2": ()})
    first = await measured.store.references.propose(values, "staging", "server-1", 1.0)
    assert (await measured.store.references.propose(values, "staging", "server-1", 2.0)).approval == first.approval
    again = await measured.store.references.propose(values, "staging", "server-1", 1.0 + PATIENCE)
    assert again.approval != first.approval
    await sign(measured, "ann", "bob")
    assert await measured.store.references.approve(values.id, 2.0 + PATIENCE) == ("ann", "bob")
