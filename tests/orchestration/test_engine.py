"""The engine on simulated servers: the whole life, every crash point, leases and fences."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from orchestration_rig import Rig, rack
from sqlalchemy import exc

from freehold.evidence import Ed25519Signer
from freehold.model.documents import load_documents
from freehold.model.errors import FreeholdError
from freehold.model.resources import FirmwareBaselineSpec, Resource
from freehold.model.status import BmcCertificate, IntentKind, ServerState, ServerStatus
from freehold.orchestration import engine as engine_module
from freehold.orchestration.database import _in_words
from freehold.orchestration.engine import Engine
from freehold.orchestration.leases import LeaseTooShortError
from freehold.orchestration.ledger import Claim, Completion
from freehold.orchestration.planner import STEPS
from freehold.orchestration.simulated import CERTIFICATE_LIFE, FACTORY, OURS, World
from freehold.orchestration.step import StepContext, StepFn, StepResult
from freehold.orchestration.store import Store
from freehold.root_of_trust.operators import approve

S = ServerState
TO_ACTIVE = [S.SECURING, S.DISCOVERING, S.PREPARING, S.AVAILABLE, S.PROVISIONING, S.ATTESTING, S.ACTIVE]
DRIFT = [S.DRIFTED, S.REMEDIATING, S.ACTIVE]
LATE = 1_000_000.0 + CERTIFICATE_LIFE * 0.8
"""When the BMC's certificate has to be renewed."""
AND_BACK = [S.DECOMMISSIONING, S.AVAILABLE]


NEW_FIRMWARE = [
    Resource(
        kind="FirmwareBaseline",
        name=f"new-{component.lower()}",
        spec=FirmwareBaselineSpec(vendor="simulated", model="simulated", component=component, version=version),
    )
    for component, version in (("BIOS", "1.1"), ("BMC", "4.1"))
]


def since(certificate: BmcCertificate | None) -> float:
    return certificate.not_before if certificate is not None else 0.0


async def story(rig: Rig, engine: Engine) -> None:
    """The whole life of server-1: a TPM that is off at first, to active, through a drift and the end of a waiver, and
    back to available. Goes on wherever it stands."""

    def done(*states: ServerState) -> Callable[[ServerStatus], bool]:
        return lambda _status: rig.evidence.path("server-1")[: len(states)] == list(states)

    server = rig.world.server("server-1")
    if not rig.evidence.path("server-1"):
        server.has_tpm, server.keeps_ipmi = False, True
    if not server.has_tpm:
        status = await rig.drive(engine, lambda status: status.facts.tpm_missing is not None)
        assert status.state is S.DISCOVERING
        server.has_tpm = True  # somebody enables it, and says so
        await rig.store.record_intent("server-1", IntentKind.ATTEST, by="ann")
    await rig.drive(engine, done(*TO_ACTIVE))
    if not done(*TO_ACTIVE, *DRIFT)(ServerStatus()) and not done(*TO_ACTIVE, S.DRIFTED)(ServerStatus()):
        server.bios = {"BootMode": "Legacy"}
    await rig.drive(engine, done(*TO_ACTIVE, *DRIFT))
    status = await rig.drive(engine, lambda status: status.state is not S.REMEDIATING)
    if not server.rotations:
        await rig.store.record_intent("server-1", IntentKind.ROTATE, by="ann")
    status = await rig.drive(engine, lambda _: server.rotations > 0)
    await rig.store.announce_secure_boot(2)
    await rig.drive(engine, lambda status: status.state is not S.ACTIVE or status.facts.revocations_checked == 2)
    rig.clock.now = max(rig.clock.now, LATE)
    status = await rig.drive(engine, lambda status: since(status.facts.bmc_certificate) >= LATE)
    view = await rig.store.ledger.view("server-1")
    assert view is not None
    if status.state is S.ACTIVE and not any(intent.kind is IntentKind.DECOMMISSION for intent in view.intents):
        await rig.store.record_intent("server-1", IntentKind.DECOMMISSION, by="ann")
    await rig.drive(engine, done(*TO_ACTIVE, *DRIFT, *AND_BACK))
    await rig.drive_to(engine, S.AVAILABLE)


def assert_told_whole(rig: Rig) -> None:
    assert rig.world.surprises == []
    assert rig.evidence.path("server-1") == [*TO_ACTIVE, *DRIFT, *AND_BACK]
    server = rig.world.server("server-1")
    assert server.accounts == {OURS}
    assert set(server.media.values()) == {""}
    assert (server.tpm_owner, server.keys, server.running) == ("", False, "")


async def test_an_attestation_that_a_person_asks_for_is_done_and_settled_once(rig: Rig) -> None:
    await rig.store.apply(rack())
    engine = rig.engine()
    await rig.drive_to(engine, S.ACTIVE)
    rig.clock.now += 60.0
    number = await rig.store.record_intent("server-1", IntentKind.ATTEST, by="ann")
    assert number is not None
    asked, touched = rig.clock.now, len(rig.world.touched)
    for _ in range(20):
        await engine.round()
        rig.clock.now += 1.0
    session = await rig.store.agents.session("server-1")
    assert session is not None
    assert session.attested_at is not None
    assert session.started > asked
    assert await rig.store.outcome(number) == "attested"
    done = [key for _, key, _ in rig.world.touched[touched:] if key == "renew_attestation"]
    assert len(done) <= 2  # the first may be in the very second of the demand


async def test_the_whole_life_of_a_server(rig: Rig) -> None:
    await rig.store.apply(rack())
    engine = rig.engine()
    await story(rig, engine)
    assert_told_whole(rig)
    status = await rig.status()
    assert status.facts.certificate_index is not None
    assert rig.evidence.statements[status.facts.certificate_index][0] == "decommission-certificate"
    # It stays available: the assignment that was ended does not begin anew.
    await rig.drive_to(engine, S.ACTIVE, "server-2")
    assert (await rig.status()).state is S.AVAILABLE


class Killed(BaseException):
    """What kill -9 looks like from inside: nothing after it runs."""


def killing(steps: dict[str, StepFn], when: str, struck: list[str], only: Collection[str] = STEPS) -> dict[str, StepFn]:
    """Steps that die the first time, before or after their side effect."""

    def wrap(name: str, doer: StepFn) -> StepFn:
        async def run(context: StepContext) -> StepResult:
            if name not in only or name in struck:
                return await doer(context)
            struck.append(name)
            if when == "after its side effect":
                await doer(context)
            raise Killed

        return run

    return {name: wrap(name, doer) for name, doer in steps.items()}


def dying_after_the_record(store: Store, struck: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A store whose owner dies when the completion of a step is committed, the first time of each step."""
    complete = store.ledger.complete

    async def complete_and_die(claim: Claim, completion: Completion, now: float) -> bool:
        written = await complete(claim, completion, now)
        step = completion.status.step.partition("/")[0]
        if completion.journal and step not in struck:
            struck.append(step)
            raise Killed
        return written

    monkeypatch.setattr(store.ledger, "complete", complete_and_die)


@pytest.mark.parametrize("when", ["before its side effect", "after its side effect", "after its record"])
@pytest.mark.slow
async def test_killed_at_every_journaled_step(rig: Rig, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One life, in which the controller dies once in every step, and a new one on the same file goes on."""
    struck: list[str] = []
    wanted = sorted(STEPS)
    await rig.store.apply([*rack("server-1"), *NEW_FIRMWARE])
    for _ in range(len(wanted) + 1):
        steps = rig.world.steps()
        if when == "after its record":
            dying_after_the_record(rig.store, struck, monkeypatch)
        else:
            steps = killing(steps, when, struck)
        engine = Engine(rig.store, steps, rig.evidence, clock=rig.clock, monotonic=rig.clock)
        try:
            await story(rig, engine)
            break
        except Killed:
            await rig.store.close()
            rig.store = await Store.open(rig.path, clock=rig.clock)
            rig.clock.now += 31  # the lease of the dead one lapses
    assert sorted(struck) == wanted
    assert_told_whole(rig)
    resumed = [event.message for event in await rig.store.events(limit=5000) if event.kind == "resumed"]
    assert len(resumed) == (0 if when == "after its record" else len(wanted))


WAIVER = """
apiVersion: freehold/v1
kind: Waiver
metadata: {name: no-chip}
spec: {server: server-1, finding: missing-tpm, expires: "1970-01-20", reason: an old board}
"""
WAIVED_UNTIL = 19 * 86400.0


async def waive_tpm(rig: Rig) -> None:
    people = {name: Ed25519Signer.generate() for name in ("ann", "bob")}
    await rig.store.approvals.found({name: key.public_key for name, key in people.items()}, rig.clock())
    await rig.store.apply(load_documents(WAIVER, "waiver.yaml"))
    for asked in await rig.store.approvals.list():
        for key in people.values():
            await rig.store.approvals.sign(asked.request.id, approve(asked.request, key).to_bytes())


async def test_a_server_without_a_tpm_stops_goes_on_under_a_waiver_and_not_beyond_it(rig: Rig) -> None:
    await rig.store.apply(rack("server-1"))
    engine, server = rig.engine(), rig.world.server("server-1")
    server.has_tpm = False
    await rig.drive(engine, lambda status: "a usable TPM 2.0" in status.waiting_for)
    for _ in range(10):
        rig.clock.now += 600.0
        await engine.round()
    assert (server.boots, (await rig.status()).state) == (1, S.DISCOVERING)
    await waive_tpm(rig)
    status = await rig.drive_to(engine, S.ACTIVE)
    assert (status.facts.tpm_waived, status.facts.ek_sha256, status.facts.boot_ticket) == (True, None, None)
    assert status.facts.os_ticket is not None
    await rig.store.record_intent("server-1", IntentKind.DECOMMISSION, by="ann")
    await rig.drive_to(engine, S.DECOMMISSIONING)
    rig.clock.now = WAIVED_UNTIL
    status = await rig.drive(engine, lambda status: "a usable TPM 2.0" in status.waiting_for)
    assert (status.state, status.facts.certificate_index, status.facts.os_ticket) == (S.DECOMMISSIONING, None, None)


def half_way(world: World, struck: list[str]) -> dict[str, StepFn]:
    """Steps of a controller that dies once while the Secure Boot keys of a server are half-written."""
    steps = world.steps()

    async def enroll(context: StepContext) -> StepResult:
        if context.facts.secure_boot_changing and not struck:
            struck.append(context.step)
            world.server(context.name).generation = None
            raise Killed
        return await steps["enroll_secure_boot"](context)

    return steps | {"enroll_secure_boot": enroll}


@pytest.mark.parametrize("when", ["never", "before its side effect", "half-way", "after its side effect"])
@pytest.mark.parametrize("then", [None, IntentKind.DECOMMISSION, IntentKind.QUARANTINE])
@pytest.mark.slow
async def test_new_secure_boot_keys_never_surprise_the_verifier(rig: Rig, when: str, then: IntentKind | None) -> None:
    """server-1 is active, server-2 available. A generation is made; the controller dies over server-2, and a person
    asks for something before it comes back."""
    await rig.store.apply([each for each in rack() if each.name != "web-2" or each.kind != "Assignment"])
    engine = rig.engine()
    await rig.drive_to(engine, S.ACTIVE, "server-1")
    await rig.drive_to(engine, S.AVAILABLE, "server-2")
    await rig.store.announce_secure_boot(2)
    if when != "never":
        struck: list[str] = []
        only = {"enroll_secure_boot"}
        steps = half_way(rig.world, struck) if when == "half-way" else killing(rig.world.steps(), when, struck, only)
        dying = Engine(rig.store, steps, rig.evidence, clock=rig.clock, monotonic=rig.clock)
        with pytest.raises(Killed):
            await rig.drive(dying, lambda status: status.facts.secure_boot_generation == 2, "server-2")
        rig.clock.now += 31
    if then is not None:
        await rig.store.record_intent("server-2", then, by="ann", reason="test")
        if then is IntentKind.QUARANTINE:
            await rig.drive_to(rig.engine(), S.QUARANTINED, "server-2")
            await rig.store.record_intent("server-2", IntentKind.RELEASE, by="ann")
    status = await rig.drive(
        rig.engine(),
        lambda status: status.state is S.AVAILABLE and status.facts.secure_boot_generation == 2,
        "server-2",
    )
    assert not status.facts.secure_boot_changing
    active = await rig.status("server-1")
    assert (active.state, active.facts.secure_boot_generation) == (S.ACTIVE, 1)
    await rig.store.record_intent("server-1", IntentKind.DECOMMISSION, by="ann")
    status = await rig.drive_to(rig.engine(), S.AVAILABLE, "server-1")
    assert status.facts.secure_boot_generation == 2
    assert [rig.world.server(name).generation for name in ("server-1", "server-2")] == [2, 2]
    assert rig.world.surprises == []
    assert rig.world.servers["server-2"].boots >= (2 if then else 1)


async def test_an_attempt_that_never_ends_is_broken_off_and_made_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.store.apply(rack("server-1"))
    monkeypatch.setattr(engine_module, "LONGEST_ATTEMPT", 0.05)
    steps, endless = rig.world.steps(), [True]

    async def disable_ipmi(context: StepContext) -> StepResult:
        if endless:
            await asyncio.Event().wait()
        return await steps["disable_ipmi"](context)

    doers = {**steps, "disable_ipmi": disable_ipmi}
    engine = Engine(rig.store, doers, rig.evidence, clock=rig.clock, monotonic=rig.clock)
    status = await rig.drive(engine, lambda status: "disable_ipmi did not end within" in status.reason)
    assert "restart it if it is slow" in status.findings[-1].remedy
    monkeypatch.setattr(engine_module, "LONGEST_ATTEMPT", 60.0)
    endless.clear()
    await rig.drive_to(engine, S.DISCOVERING)


async def test_a_timeout_of_the_step_itself_is_told_as_it_is(rig: Rig) -> None:
    await rig.store.apply(rack("server-1"))

    async def disable_ipmi(_context: StepContext) -> StepResult:
        raise TimeoutError("of its own")

    steps = {**rig.world.steps(), "disable_ipmi": disable_ipmi}
    engine = Engine(rig.store, steps, rig.evidence, clock=rig.clock, monotonic=rig.clock)
    status = await rig.drive(engine, lambda status: status.attempts > 0)
    assert status.reason == "TimeoutError: of its own"


async def test_a_step_that_was_cut_off_is_told_so(rig: Rig) -> None:
    await rig.store.apply(rack("server-1"))
    steps = killing(rig.world.steps(), "after its side effect", [], only={"disable_ipmi"})
    first = Engine(rig.store, steps, rig.evidence, clock=rig.clock, monotonic=rig.clock)
    with pytest.raises(Killed):
        await rig.drive_to(first, S.ACTIVE)
    seen: list[tuple[str, bool]] = []

    def watched(doer: StepFn) -> StepFn:
        async def run(context: StepContext) -> StepResult:
            seen.append((context.key, context.resumed))
            return await doer(context)

        return run

    rig.clock.now += 60  # the lease of the dead one lapses
    steps = {name: watched(doer) for name, doer in rig.world.steps().items()}
    await rig.drive_to(Engine(rig.store, steps, rig.evidence, clock=rig.clock, monotonic=rig.clock), S.DISCOVERING)
    assert seen[0] == ("disable_ipmi", True)
    assert not any(resumed for _, resumed in seen[1:])


@pytest.mark.slow
async def test_a_drive_that_did_not_erase_never_leads_to_available(rig: Rig) -> None:
    await rig.store.apply(rack("server-1"))
    engine = rig.engine()
    await rig.drive_to(engine, S.ACTIVE)
    rig.world.server("server-1").skips_erase = True
    await rig.store.record_intent("server-1", IntentKind.DECOMMISSION, by="ann")
    status = await rig.drive_to(engine, S.QUARANTINED)
    assert status.reason == "medium disk-1 still has data after its erase"
    assert status.findings[-1].remedy == "Find out why, then `freehold release server-1`."
    rig.world.server("server-1").skips_erase = False
    await rig.store.record_intent("server-1", IntentKind.RELEASE, by="ann", reason="firmware of the drive updated")
    await rig.drive_to(engine, S.AVAILABLE)
    assert rig.evidence.path("server-1")[-3:] == [S.QUARANTINED, S.DECOMMISSIONING, S.AVAILABLE]
    assert (await rig.status()).findings == ()


async def test_a_foreign_account_quarantines_by_default_policy(rig: Rig) -> None:
    await rig.store.apply(rack())
    engine = rig.engine()
    await rig.drive_to(engine, S.ACTIVE, "server-2")
    rig.world.server("server-2").accounts.add(FACTORY)
    status = await rig.drive_to(engine, S.QUARANTINED, "server-2")
    assert status.reason == "drift that policy does not remediate: bmc-account"


async def test_retire(rig: Rig) -> None:
    await rig.store.apply(rack("server-1"))
    engine = rig.engine()
    await rig.drive_to(engine, S.ACTIVE)
    await rig.store.record_intent("server-1", IntentKind.RETIRE, by="ann")
    await rig.drive_to(engine, S.RETIRED)


def failing(world: World, step: str, error: Exception, times: int = 10**6) -> dict[str, StepFn]:
    left = [times]

    async def run(context: StepContext) -> StepResult:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return await world.steps()[step](context)

    return world.steps() | {step: run}


async def test_failures_back_off_and_end_in_a_stuck_finding_once(rig: Rig) -> None:
    await rig.store.apply(rack("server-1"))
    error = FreeholdError("the BMC answers HTML", server="server-1", expected="JSON", remedy="look for a proxy")
    steps = failing(rig.world, "pin_identity", error)
    engine = Engine(rig.store, steps, rig.evidence, clock=rig.clock, monotonic=rig.clock)
    status = await rig.drive(engine, lambda status: status.attempts == 3)
    assert status.reason == "the BMC answers HTML"
    (finding,) = status.findings
    assert (finding.kind, finding.subject, finding.remedy) == ("step-failed", "pin_identity", "look for a proxy")
    assert finding.detail == "the BMC answers HTML (expected: JSON)"
    assert status.retry_at == pytest.approx(rig.clock.now + 8, abs=0.1)
    status = await rig.drive(engine, lambda status: status.stuck)
    assert status.state is S.SECURING
    assert rig.clock.now - status.state_since == pytest.approx(900, abs=5)
    _, finding = status.findings
    assert finding.kind == "stuck"
    assert finding.detail == "securing for 15 minutes, at: pin_identity; last word: the BMC answers HTML"
    await rig.drive(engine, lambda status: status.attempts > 12)
    events = await rig.store.events(server="server-1", limit=5000)
    assert len([event for event in events if event.kind == "stuck"]) == 1
    assert any(event.message.endswith("the BMC answers HTML; look for a proxy") for event in events)
    cured = Engine(rig.store, rig.world.steps(), rig.evidence, clock=rig.clock, monotonic=rig.clock)
    rig.clock.now += 300
    status = await rig.drive_to(cured, S.DISCOVERING)
    assert (status.stuck, status.findings) == (False, ())


async def test_a_server_that_is_active_and_out_of_reach_is_stuck_too_and_cured_by_itself(rig: Rig) -> None:
    await rig.store.apply(rack("server-1"))
    await rig.drive_to(rig.engine(), S.ACTIVE)
    error = FreeholdError("the BMC does not answer", remedy="look at its cable")
    lost = Engine(
        rig.store, failing(rig.world, "check_drift", error), rig.evidence, clock=rig.clock, monotonic=rig.clock
    )
    rig.clock.now += 600
    status = await rig.drive(lost, lambda status: status.stuck)
    assert status.state is S.ACTIVE
    assert {finding.kind for finding in status.findings} == {"step-failed", "stuck"}
    rig.clock.now += 600
    status = await rig.drive(rig.engine(), lambda status: not status.stuck)
    assert (status.state, status.findings) == (S.ACTIVE, ())


async def test_an_order_that_fails_again_and_again_backs_off_too(rig: Rig) -> None:
    await rig.store.apply(rack("server-1"))
    asked = [0]

    async def ask_then_fail(_: StepContext) -> StepResult:
        asked[0] += 1
        if asked[0] % 2:
            return StepResult(done=False, retry_after=0.1)  # the order is given
        raise FreeholdError("chunk 5 is wrong", server="server-1")  # and comes back failed

    steps = rig.world.steps() | {"pin_identity": ask_then_fail}
    engine = Engine(rig.store, steps, rig.evidence, clock=rig.clock, monotonic=rig.clock)
    status = await rig.drive(engine, lambda status: status.attempts == 3)
    assert status.reason == "chunk 5 is wrong"


async def test_an_error_of_ours_is_a_failure_too(rig: Rig) -> None:
    await rig.store.apply(rack("server-1"))
    steps = failing(rig.world, "pin_identity", KeyError("Members"), times=1)
    engine = Engine(rig.store, steps, rig.evidence, clock=rig.clock, monotonic=rig.clock)
    status = await rig.drive(engine, lambda status: status.attempts == 1)
    assert status.reason == "KeyError: 'Members'"
    await rig.drive_to(engine, S.ACTIVE)


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (StepResult(), "step pin_identity says that it is done, but its goal does not hold"),
        (StepResult(facts={"bmc_identity": 7}), "TypeError: facts bmc_identity: Expected `str | null`, got `int`"),
        (StepResult(facts={"bmc_identiti": "x"}), "TypeError: "),
    ],
)
async def test_a_step_that_lies_does_not_spin(rig: Rig, result: StepResult, reason: str) -> None:
    await rig.store.apply(rack("server-1"))

    async def lie(context: StepContext) -> StepResult:
        return result

    engine = Engine(rig.store, rig.world.steps() | {"pin_identity": lie}, rig.evidence, clock=rig.clock)
    status = await rig.drive(engine, lambda status: status.attempts == 2)
    assert status.reason.startswith(reason)


async def test_no_state_is_entered_without_evidence(rig: Rig) -> None:
    await rig.store.apply(rack("server-1"))

    async def refuse(name: str, subject: str, predicate: dict[str, Any]) -> int:
        raise FreeholdError("the evidence log cannot be written")

    engine = Engine(rig.store, rig.world.steps(), refuse, clock=rig.clock, monotonic=rig.clock)
    status = await rig.drive(engine, lambda status: status.attempts == 2)
    assert (status.state, status.reason) == (S.ENROLLED, "the evidence log cannot be written")


async def test_a_store_that_is_too_busy_for_a_while_ends_no_engine(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.store.apply(rack("server-1"))
    engine, real, failures = rig.engine(), rig.store.ledger.next_due, 0

    async def busy() -> float | None:
        nonlocal failures
        failures += 1
        if failures < 3:
            with _in_words("store"):
                raise exc.TimeoutError("QueuePool limit of size 3 overflow 0 reached")
        return await real()

    monkeypatch.setattr(rig.store.ledger, "next_due", busy)
    running = asyncio.create_task(engine.run())
    while failures < 3:
        assert not running.done()
        engine.nudge()
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_pause_holds_and_a_resume_goes_on(rig: Rig) -> None:
    await rig.store.apply(rack())
    engine = rig.engine()
    await rig.drive_to(engine, S.DISCOVERING)
    await rig.store.record_intent("server-1", IntentKind.PAUSE, by="ann")
    status = await rig.drive(engine, lambda status: status.paused)
    await rig.drive_to(engine, S.ACTIVE, "server-2")
    rig.clock.now += 10_000
    assert (await rig.status()).state is status.state
    await rig.store.record_intent("server-1", IntentKind.RESUME, by="ann")
    status = await rig.drive(engine, lambda status: not status.paused)
    assert not status.stuck
    await rig.drive_to(engine, S.ACTIVE)


async def test_a_lost_agent_is_booted_again(rig: Rig) -> None:
    await rig.store.apply(rack("server-1"))
    engine = rig.engine()
    rig.world.server("server-1").agent_silent = True
    await rig.drive(engine, lambda status: "agent to start" in status.waiting_for)
    rig.world.server("server-1").agent_silent = False
    rig.clock.now += 901
    await rig.drive_to(engine, S.ACTIVE)
    assert rig.world.server("server-1").boots == 4  # lost, discovering, provisioning, OS


async def test_an_os_that_does_not_attest_never_becomes_active(rig: Rig) -> None:
    await rig.store.apply(rack("server-1"))
    engine = rig.engine()
    rig.world.server("server-1").wrong_image = True
    await rig.drive_to(engine, S.ATTESTING)
    await rig.store.record_intent("server-1", IntentKind.QUARANTINE, by="verifier", reason="PCR 11 differs")
    status = await rig.drive_to(engine, S.QUARANTINED)
    assert status.reason == "PCR 11 differs"


async def test_a_wake_up_in_flight_is_not_lost(rig: Rig) -> None:
    await rig.store.apply(rack())
    await rig.store.ledger.enter("me", rig.clock(), 30)
    claim = (await rig.store.ledger.claim("me", rig.clock(), 1))[0]
    await rig.store.ledger.wake([claim.server])
    assert await rig.store.ledger.complete(claim, Completion(status=ServerStatus(), next_due=None), rig.clock())
    again = await rig.store.ledger.claim("me", rig.clock(), 9)
    assert claim.server in {each.server for each in again}


# leases and fences


async def test_a_stale_completion_is_refused(rig: Rig) -> None:
    await rig.store.apply(rack())
    ledger = rig.store.ledger
    await ledger.enter("old", rig.clock(), 30)
    old = {claim.server: claim for claim in await ledger.claim("old", rig.clock(), 9)}["server-1"]
    assert await ledger.claim("old", rig.clock(), 9) == []
    rig.clock.now += 31
    await ledger.enter("new", rig.clock(), 30)
    new = {claim.server: claim for claim in await ledger.claim("new", rig.clock(), 9)}["server-1"]
    assert new.fence == old.fence + 1
    late = Completion(status=ServerStatus(state=S.ACTIVE), next_due=None)
    assert not await ledger.complete(old, late, rig.clock())
    assert await ledger.open_journal(old, "pin_identity", "pin_identity", rig.clock()) is None
    assert (await rig.status()).state is S.ENROLLED
    assert await ledger.complete(new, Completion(status=ServerStatus(), next_due=None), rig.clock())


async def test_a_lapsed_epoch_is_never_renewed_and_claims_nothing(rig: Rig) -> None:
    await rig.store.apply(rack())
    ledger = rig.store.ledger
    await ledger.enter("old", rig.clock(), 30)
    rig.clock.now += 31
    assert not await ledger.renew("old", rig.clock(), 30)
    assert await ledger.claim("old", rig.clock(), 9) == []


async def test_a_frozen_replica_gives_up_and_sends_nothing_stale(rig: Rig) -> None:
    await rig.store.apply(rack("server-1"))
    thaw, began = asyncio.Event(), asyncio.Event()
    sent: list[str] = []

    async def slow(context: StepContext) -> StepResult:
        began.set()
        await thaw.wait()  # frozen here, past the end of its lease
        await rig.world.touch(context)
        sent.append(context.key)
        return StepResult(facts={"bmc_identity": "from the frozen one"})

    frozen = Engine(
        rig.store, rig.world.steps() | {"pin_identity": slow}, rig.evidence, clock=rig.clock, monotonic=rig.clock
    )
    await frozen.round()  # enrolled -> securing
    stuck = asyncio.create_task(frozen.round())
    await began.wait()
    epoch = frozen.lease.epoch
    rig.clock.now += 31
    other = Engine(rig.store, rig.world.steps(), rig.evidence, clock=rig.clock, monotonic=rig.clock)
    await rig.drive_to(other, S.DISCOVERING)
    thaw.set()
    await stuck
    assert sent == []  # the command's check of the lease held it back
    assert (await rig.status()).facts.bmc_identity == "spki-server-1"
    await frozen.heartbeat()
    assert frozen.lease.epoch != epoch


async def test_a_lapsed_lease_cancels_what_is_in_flight(rig: Rig) -> None:
    await rig.store.apply(rack("server-1"))
    began, ended = asyncio.Event(), []

    async def slow(context: StepContext) -> StepResult:
        began.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            ended.append(context.name)
            raise
        return StepResult()

    engine = Engine(
        rig.store, rig.world.steps() | {"pin_identity": slow}, rig.evidence, clock=rig.clock, monotonic=rig.clock
    )
    await engine.round()
    working = asyncio.create_task(engine.round())
    await began.wait()
    rig.clock.now += 31
    await engine.heartbeat()
    assert ended == ["server-1"]
    await asyncio.gather(working, return_exceptions=True)


async def test_a_command_needs_enough_lease(rig: Rig) -> None:
    engine = rig.engine(ttl=10.0)
    await engine.heartbeat()
    await engine.lease.ensure(9.0, "server-1")
    with pytest.raises(LeaseTooShortError, match=r"the command may take 12\.0 s"):
        await engine.lease.ensure(12.0, "server-1")
    rig.clock.now += 11
    with pytest.raises(LeaseTooShortError, match=r"the lease has 0.0 s left"):
        await engine.lease.ensure(1.0, "server-1")


@pytest.mark.slow
async def test_two_engines_on_one_file_share_the_work_without_a_stale_command(rig: Rig) -> None:
    await rig.store.apply(rack())
    other_store = await Store.open(rig.path, clock=rig.clock)
    try:
        one = Engine(rig.store, rig.world.steps(), rig.evidence, clock=rig.clock, monotonic=rig.clock, slots=1)
        two = Engine(other_store, rig.world.steps(), rig.evidence, clock=rig.clock, monotonic=rig.clock, slots=1)
        for _ in range(300):
            await asyncio.gather(one.round(), two.round())
            states = await rig.store.states()
            if states.get("active") == 2:
                break
        assert states == {"active": 2}
        keys = [(server, key) for server, key, _ in rig.world.touched]
        assert keys.count(("server-1", "pin_identity")) == 1
        fences = [fence for server, _, fence in rig.world.touched if server == "server-1"]
        assert fences == sorted(fences)
    finally:
        await other_store.close()


CHILD = """
import asyncio, sys
from freehold.orchestration.engine import Engine
from freehold.orchestration.simulated import World
from freehold.orchestration.store import Store

async def record(name, subject, predicate):
    return 0

async def main():
    store = await Store.open(sys.argv[1])
    world = World()
    steps = world.steps()
    async def hang(context):
        print("hanging", flush=True)
        await asyncio.sleep(3600)
    if sys.argv[2] == "hang":
        steps["write_image"] = hang
    engine = Engine(store, steps, record, alone=True)
    running = asyncio.create_task(engine.run())
    while (await store.states()).get("active") != 2:
        await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await store.close()
    print("active", flush=True)

asyncio.run(main())
"""


async def child(path: Path, mode: str, wait_for: bytes) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, str(path), mode, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert (await asyncio.wait_for(process.stdout.readline(), 30)).strip() == wait_for
    return process


@pytest.mark.slow
async def test_kill_9_of_a_real_process(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "freehold.db")
    await store.apply(rack())
    process = await child(tmp_path / "freehold.db", "hang", b"hanging")
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    assert (await store.get("Server", "server-1")).status.state is S.PROVISIONING  # type: ignore[union-attr]
    process = await child(tmp_path / "freehold.db", "go", b"active")
    assert await process.wait() == 0
    assert await store.states() == {"active": 2}
    assert any("write_image was cut off" in event.message for event in await store.events(limit=5000))
    await store.close()


@pytest.mark.slow
async def test_run_wakes_at_once_and_stops_in_good_order(rig: Rig) -> None:
    engine = Engine(rig.store, rig.world.steps(), rig.evidence)
    running = asyncio.create_task(engine.run())
    await asyncio.sleep(0.05)
    await rig.store.apply(rack())
    engine.nudge()
    for _ in range(500):
        if await rig.store.states() == {"active": 2}:
            break
        await asyncio.sleep(0.02)
    assert await rig.store.states() == {"active": 2}
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert engine.lease.epoch == ""
