"""The planner by example, and by property over all that a server can be."""

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.model.errors import FreeholdError
from freehold.model.resources import (
    AssignmentSpec,
    Bmc,
    Credential,
    DriftKind,
    Firmware,
    FirmwareBaselineSpec,
    Nic,
    PolicySpec,
    Reaction,
    ServerSpec,
    Waivable,
)
from freehold.model.status import (
    AgentSession,
    BmcCertificate,
    Drift,
    Facts,
    FirmwareFact,
    Intent,
    IntentKind,
    Medium,
    Order,
    OrderState,
    PendingCertificate,
    RotationTurn,
    ServerState,
    ServerStatus,
    Tenancy,
)
from freehold.orchestration import bmc_keys, outcomes
from freehold.orchestration.conditions import AGENT_LOST, BOOT_PATIENCE, fact, keys_current
from freehold.orchestration.decisions import Do, Idle, Move, Quarantine, Refuse, Settle, TakeTurn, Wait
from freehold.orchestration.lifecycle import UNCLOSED, UNMEASURED, IntentRefusedError, forget, transition
from freehold.orchestration.pace import LAPSES, Pace
from freehold.orchestration.planner import GOALS, STEPS, check_attestable, next_step, overdue
from freehold.orchestration.renewals import certificate_due, certificate_fresh, rotation_due
from freehold.orchestration.view import Assigned, ServerView
from freehold.orchestration.waivers import ActiveWaiver
from freehold.root_of_trust.operators import Act, Asked

S = ServerState
NOW = 1_000_000.0
SPEC = ServerSpec(
    bmc=Bmc(address="10.0.0.1", credential=Credential(vault_ref="factory/x")), nics=(Nic(mac="m", network="p"),)
)
PREPARED: dict[str, Any] = {
    "ipmi_off": True,
    "services_closed": True,
    "posture_recorded": True,
    "ek_sha256": "e" * 64,
    "inventory_agrees": True,
    "secure_boot_enrolled": True,
    "reference_values": {"0": (), "2": ()},
}
CERTIFICATE = BmcCertificate(serial="1", sha256="c" * 64, not_before=NOW - 86400, not_after=NOW + 397 * 86400)
KNOWN: dict[str, Any] = {"bmc_identity": "x", "bmc_certificate": CERTIFICATE}
ASSIGNED = Assigned("web", AssignmentSpec(server="a", image="i", hostname="h"), "r1")


def view(state: S, facts: Facts = Facts(), *, status: dict = {}, **rest: object) -> ServerView:  # noqa: B006, B008
    full = ServerStatus(state=state, state_since=NOW - 100, facts=facts, **status)
    return ServerView(name="a", spec=SPEC, status=full, **rest)  # type: ignore[arg-type]


def agent(mode: str = "ramdisk", *, started: float = NOW - 50, seen: float = NOW - 1, **rest: object) -> AgentSession:
    return AgentSession(id="s", mode=mode, boot_id="b", started=started, last_seen=seen, **rest)  # type: ignore[arg-type]


def test_securing_goes_goal_by_goal() -> None:
    facts, steps = Facts(), []
    for name in (
        "bmc_identity",
        "bmc_credential_committed",
        "bmc_certificate",
        "factory_accounts_disabled",
        "ipmi_off",
        "services_closed",
        "posture_recorded",
    ):
        decision = next_step(view(S.SECURING, facts), NOW)
        assert isinstance(decision, Do)
        steps.append(decision.step)
        facts = msgspec.structs.replace(facts, **{name: KNOWN.get(name, True)})
    assert steps == [
        "pin_identity",
        "take_over_credential",
        "install_certificate",
        "disable_factory_accounts",
        "disable_ipmi",
        "close_services",
        "record_posture",
    ]
    assert next_step(view(S.SECURING, facts), NOW) == Move(S.DISCOVERING, "its BMC is ours alone")


def test_provisioning_waits_for_the_agent_and_then_orders() -> None:
    booted = Facts(agent_booted_at=NOW - 60)
    assert next_step(view(S.PROVISIONING), NOW) == Do("boot_agent", "boot_agent")
    assert isinstance(next_step(view(S.PROVISIONING, booted), NOW), Wait)
    assert isinstance(next_step(view(S.PROVISIONING, booted, agent=agent()), NOW), Wait)
    ready = view(S.PROVISIONING, booted, agent=agent(attested_at=NOW - 5))
    assert next_step(ready, NOW) == Do("write_image", "write_image")


def test_an_order_in_flight_is_waited_for_with_its_progress() -> None:
    order = Order(id="1", key="write_image", kind="write_image", progress={"done": 43, "total": 100})
    given = {"agent": agent(attested_at=NOW - 5), "orders": {"write_image": order}}
    booted = Facts(agent_booted_at=NOW - 60)
    decision = next_step(view(S.PROVISIONING, booted, **given), NOW)
    assert decision == Wait("the agent: write_image (43 %)", NOW + 30)
    given["orders"] = {"write_image": msgspec.structs.replace(order, state=OrderState.DONE)}
    assert next_step(view(S.PROVISIONING, booted, **given), NOW) == Do("write_image", "write_image")


@pytest.mark.parametrize(
    ("facts", "session"),
    [
        (Facts(agent_booted_at=NOW - BOOT_PATIENCE - 1), None),
        (Facts(agent_booted_at=NOW - 60), agent(seen=NOW - AGENT_LOST - 1)),
        (Facts(agent_booted_at=NOW - BOOT_PATIENCE - 1), agent("os")),
        (Facts(agent_booted_at=NOW - BOOT_PATIENCE - 1), agent(started=NOW - 2000, attested_at=NOW - 1990)),
    ],
    ids=["never came", "fell silent", "booted the old OS instead", "an agent of an earlier boot"],
)
def test_a_lost_agent_is_booted_again(facts: Facts, session: AgentSession | None) -> None:
    assert next_step(view(S.PROVISIONING, facts, agent=session), NOW) == Do("boot_agent", "boot_agent")


def test_an_agent_that_did_its_work_may_go() -> None:
    facts = Facts(agent_booted_at=NOW - 900, image_written=True, seed_written=True, boot_entry_set=True)
    assert next_step(view(S.PROVISIONING, facts), NOW) == Do("boot_os", "boot_os")


ROTATED = Facts(bmc_credential_since=NOW - 10, bmc_certificate=CERTIFICATE)


def test_available_waits_for_an_assignment_that_it_has_not_ended() -> None:
    assert next_step(view(S.AVAILABLE, ROTATED), NOW) == Idle(rotation_due(view(S.AVAILABLE, ROTATED), NOW))
    given = Tenancy(name=ASSIGNED.name, revision=ASSIGNED.revision, spec=ASSIGNED.spec)
    move = next_step(view(S.AVAILABLE, ROTATED, assignment=ASSIGNED), NOW)
    assert move == Move(S.PROVISIONING, "assigned by web", facts={"tenancy": given})
    ended = msgspec.structs.replace(ROTATED, ended_assignment="r1")
    assert isinstance(next_step(view(S.AVAILABLE, ended, assignment=ASSIGNED), NOW), Idle)


@pytest.mark.parametrize("state", [S.AVAILABLE, S.ACTIVE])
def test_a_credential_is_rotated_on_schedule_and_on_demand(state: S) -> None:
    facts = msgspec.structs.replace(ROTATED, last_drift_check=NOW, last_attestation=NOW)
    assert isinstance(next_step(view(state, facts), NOW), Idle)
    month = 30 * 86400.0
    asked = Intent(id=7, at=NOW - 5, kind=IntentKind.ROTATE, by="ann")
    old = msgspec.structs.replace(facts, bmc_credential_since=NOW - month)
    for wanted in (view(state, old), view(state, facts, intents=(asked,))):
        assert next_step(wanted, NOW) == TakeTurn()
        assert next_step(with_turn(wanted, NOW - 1), NOW) == Do("rotate_credential", "rotate_credential")
    done = msgspec.structs.replace(facts, bmc_credential_since=NOW - 4)
    assert next_step(view(state, done, intents=(asked,)), NOW) == Settle(7, "rotated")


def with_turn(server: ServerView, at: float, taken: float = NOW - 2) -> ServerView:
    """Its turn to rotate is `at` (to a fraction of a second), taken a moment ago."""
    facts = msgspec.structs.replace(server.facts, rotation_turn=RotationTurn(slot=5, taken=taken))
    pace = Pace(per_minute=60, anchor=5, since=at - 0.5, free=6)
    return msgspec.structs.replace(server, pace=pace, status=msgspec.structs.replace(server.status, facts=facts))


WANTED = Intent(id=7, at=NOW - 5, kind=IntentKind.ROTATE, by="ann")


@pytest.mark.parametrize("state", [S.AVAILABLE, S.ACTIVE])
def test_a_rotation_waits_for_its_turn_with_a_time_and_keeps_nothing_else_waiting(state: S) -> None:
    facts = msgspec.structs.replace(ROTATED, last_drift_check=NOW, last_attestation=NOW)
    waits = with_turn(view(state, facts, intents=(WANTED,)), NOW + 90)
    decision = next_step(waits, NOW)
    assert isinstance(decision, Idle)
    assert decision.until is not None
    assert 89 < decision.until - NOW < 91
    assert decision.waiting_for.startswith("its turn to rotate the BMC password, at 13:48:")
    late = msgspec.structs.replace(facts, last_attestation=NOW - 86401, last_drift_check=NOW)
    other = with_turn(view(S.ACTIVE, late, intents=(WANTED,)), NOW + 90)
    assert next_step(other, NOW) == RENEW
    given = with_turn(view(S.AVAILABLE, facts, intents=(WANTED,), assignment=ASSIGNED), NOW + 90)
    assert isinstance(next_step(given, NOW), Move)


def test_a_turn_that_was_not_used_in_time_or_was_used_is_none() -> None:
    facts = msgspec.structs.replace(ROTATED, last_drift_check=NOW, last_attestation=NOW)
    wanted = view(S.ACTIVE, facts, intents=(WANTED,))
    assert next_step(with_turn(wanted, NOW - LAPSES - 2), NOW) == TakeTurn()
    assert next_step(with_turn(wanted, NOW - 1, taken=NOW - 10), NOW) == TakeTurn()  # it rotated since


def test_who_failed_asks_for_a_new_turn_and_goes_on_backing_off() -> None:
    facts = msgspec.structs.replace(ROTATED, last_drift_check=NOW, last_attestation=NOW)
    server = with_turn(view(S.ACTIVE, facts, intents=(WANTED,), status={"attempts": 3}), NOW - 1)
    after = outcomes.failed(server, "rotate_credential", FreeholdError("the BMC is away"), NOW)
    assert (after.facts.rotation_turn, after.attempts) == (None, 4)
    again = msgspec.structs.replace(server, status=msgspec.structs.replace(after, retry_at=None))
    assert next_step(again, NOW) == TakeTurn()
    assert outcomes.failed(server, "check_drift", FreeholdError("x"), NOW).facts == server.facts


RENEW = Do("renew_attestation", "renew_attestation")
ASKED = Intent(id=7, at=NOW - 5, kind=IntentKind.ATTEST, by="ann")


def test_an_active_server_attests_on_demand() -> None:
    facts = msgspec.structs.replace(ROTATED, last_drift_check=NOW, last_attestation=NOW - 60)
    before = agent("os", started=NOW - 70, attested_at=NOW - 60)
    assert isinstance(next_step(view(S.ACTIVE, facts, agent=before), NOW), Idle)
    assert next_step(view(S.ACTIVE, facts, agent=before, intents=(ASKED,)), NOW) == RENEW
    assert next_step(view(S.ACTIVE, facts, intents=(ASKED,)), NOW) == RENEW
    after = agent("os", started=NOW - 4, attested_at=NOW - 1)
    assert next_step(view(S.ACTIVE, facts, agent=after, intents=(ASKED,)), NOW) == Settle(7, "attested")


def test_a_quote_over_a_nonce_from_before_the_demand_is_no_answer_to_it() -> None:
    facts = msgspec.structs.replace(ROTATED, last_drift_check=NOW, last_attestation=NOW - 60)
    crossed = agent("os", started=NOW - 6, attested_at=NOW - 1)
    assert next_step(view(S.ACTIVE, facts, agent=crossed, intents=(ASKED,)), NOW) == RENEW
    foreign = agent("ramdisk", started=NOW - 4, attested_at=NOW - 1)
    assert next_step(view(S.ACTIVE, facts, agent=foreign, intents=(ASKED,)), NOW) == RENEW


def test_an_agent_attests_on_demand_between_two_orders() -> None:
    booted = Facts(agent_booted_at=NOW - 5000)
    before = agent(started=NOW - 4900, attested_at=NOW - 4800)
    assert next_step(view(S.PROVISIONING, booted, agent=before, intents=(ASKED,)), NOW) == RENEW
    order = Order(id="o", key="write_image", kind="write_image")
    busy = view(S.PROVISIONING, booted, agent=before, intents=(ASKED,), orders={"write_image": order})
    assert isinstance(next_step(busy, NOW), Wait)
    done = msgspec.structs.replace(order, state=OrderState.DONE)
    assert next_step(msgspec.structs.replace(busy, orders={"write_image": done}), NOW) == RENEW
    # Its session was ended: it is waited for, not booted again; if it does not come, it is.
    gone = view(S.PROVISIONING, booted, intents=(ASKED,))
    assert isinstance(next_step(gone, NOW), Wait)
    assert next_step(gone, NOW + BOOT_PATIENCE) == Do("boot_agent", "boot_agent")
    after = agent(started=NOW - 4, attested_at=NOW - 1)
    assert next_step(view(S.PROVISIONING, booted, agent=after, intents=(ASKED,)), NOW) == Settle(7, "attested")


def test_a_demand_for_an_attestation_is_refused_where_nothing_can_attest() -> None:
    released = Facts(agent_booted_at=NOW - 60, learned_reference={}, agent_released=True)
    waiting = view(S.PREPARING, released, intents=(ASKED,))
    assert next_step(waiting, NOW) == Refuse(7, "nothing that could attest runs on a server that is preparing now")
    with pytest.raises(IntentRefusedError, match="nothing that could attest"):
        check_attestable(waiting)
    for state in (S.DISCOVERING, S.PREPARING, S.PROVISIONING, S.ATTESTING, S.ACTIVE, S.DRIFTED, S.DECOMMISSIONING):
        check_attestable(view(state))


@given(name=st.text("abcdefgh-0123456789", min_size=1, max_size=20))
def test_a_rotation_falls_due_in_the_last_fifth_of_the_interval(name: str) -> None:
    server = msgspec.structs.replace(view(S.ACTIVE, Facts(bmc_credential_since=0.0)), name=name)
    month = 30 * 86400.0
    assert 0.8 * month <= rotation_due(server, NOW) <= month


def test_a_fleet_does_not_rotate_in_one_night() -> None:
    fleet = [msgspec.structs.replace(view(S.ACTIVE), name=f"r{n}") for n in range(300)]
    nights = Counter(int(rotation_due(server, NOW) // 86400) for server in fleet)
    assert len(nights) == 6
    assert max(nights.values()) < 100


@pytest.mark.parametrize("state", [S.AVAILABLE, S.ACTIVE])
def test_a_certificate_is_renewed_in_the_last_third_of_its_life(state: S) -> None:
    facts = msgspec.structs.replace(ROTATED, last_drift_check=NOW, last_attestation=NOW)
    renew = Do("renew_certificate", "renew_certificate")
    idle = next_step(view(state, facts), NOW)
    assert isinstance(idle, Idle)
    assert next_step(view(state, msgspec.structs.replace(facts, bmc_certificate=None)), NOW) == renew
    old = msgspec.structs.replace(CERTIFICATE, not_before=NOW - 300 * 86400, not_after=NOW + 98 * 86400)
    assert next_step(view(state, msgspec.structs.replace(facts, bmc_certificate=old)), NOW) == renew


def test_a_waiver_holds_in_place_of_a_certificate_until_it_ends() -> None:
    waiver = ActiveWaiver(
        name="w", finding=Waivable.BMC_CERTIFICATE, reason="old", expires=NOW + 60, approved_by=("a", "b")
    )
    facts = Facts(bmc_identity="x", bmc_credential_committed=True, bmc_certificate_waived=True)
    install = Do("install_certificate", "install_certificate")
    after = next_step(view(S.SECURING, facts, waivers=(waiver,)), NOW)
    assert after == Do("disable_factory_accounts", "disable_factory_accounts")
    assert next_step(view(S.SECURING, facts, waivers=(waiver,)), NOW + 60) == install
    assert next_step(view(S.SECURING, facts), NOW) == install  # withdrawn
    other = msgspec.structs.replace(waiver, finding=Waivable.MISSING_MEDIUM)
    assert next_step(view(S.SECURING, facts, waivers=(other,)), NOW) == install
    untried = msgspec.structs.replace(facts, bmc_certificate_waived=False)
    assert next_step(view(S.SECURING, untried, waivers=(waiver,)), NOW) == install


def test_a_waiver_holds_in_place_of_secure_boot_keys_until_it_ends() -> None:
    waiver = ActiveWaiver(
        name="w", finding=Waivable.SECURE_BOOT_DATABASES, reason="old", expires=NOW + 60, approved_by=("a", "b")
    )
    enroll = Do("enroll_secure_boot", "enroll_secure_boot")
    fresh = {
        "bmc_credential_since": NOW,
        "bmc_certificate": CERTIFICATE,
        "learned_reference": {},
        "agent_released": True,
    }
    facts = {**PREPARED, **fresh, "bios_applied": True, "secure_boot_enrolled": False, "secure_boot_waived": True}
    waived = Facts(**facts)
    idle = next_step(view(S.AVAILABLE, waived, waivers=(waiver,), secure_boot_generation=3), NOW)
    assert isinstance(idle, Idle)
    assert idle.until == waiver.expires
    assert next_step(view(S.AVAILABLE, waived, waivers=(waiver,)), NOW + 60) == enroll
    assert next_step(view(S.AVAILABLE, waived), NOW) == enroll  # withdrawn
    moved = next_step(view(S.PREPARING, waived, waivers=(waiver,)), NOW)
    assert moved == Move(S.AVAILABLE, "prepared as declared")
    assert next_step(view(S.PREPARING, waived), NOW) == enroll
    untried = msgspec.structs.replace(waived, secure_boot_waived=False)
    assert next_step(view(S.PREPARING, untried, waivers=(waiver,)), NOW) == enroll


NO_TPM = ActiveWaiver(name="w", finding=Waivable.TPM, reason="old", expires=NOW + 60, approved_by=("a", "b"))
REQUIRE = Do("require_tpm", "require_tpm")
SAYS_NONE = {"details": {"no_tpm": True}}
BY_TICKET = {"details": {"ticket": "t" * 64}, "attested_at": NOW - 40}


def test_a_server_whose_agent_says_that_it_has_no_tpm_stops_until_a_waiver_holds() -> None:
    booted = Facts(oob_inventory={}, agent_booted_at=NOW - 60)
    stopped = view(S.DISCOVERING, booted, agent=agent(**SAYS_NONE))
    assert next_step(stopped, NOW) == REQUIRE
    lost = view(S.DISCOVERING, booted, agent=agent(seen=NOW - AGENT_LOST - 1, **SAYS_NONE))
    assert next_step(lost, NOW) == REQUIRE  # and is not started again and again
    off = Facts(oob_inventory={}, tpm_missing=NOW - 50)
    assert next_step(view(S.DISCOVERING, off), NOW) == REQUIRE
    assert next_step(view(S.DISCOVERING, off, waivers=(NO_TPM,)), NOW) == Do("boot_agent", "boot_agent")
    assert next_step(view(S.DISCOVERING, off, waivers=(NO_TPM,)), NOW + 60) == REQUIRE
    other = msgspec.structs.replace(NO_TPM, finding=Waivable.MISSING_MEDIUM)
    assert next_step(view(S.DISCOVERING, off, waivers=(other,)), NOW) == REQUIRE


def test_a_tpm_that_was_fitted_is_looked_for_once_a_person_asks() -> None:
    off = Facts(oob_inventory={}, tpm_missing=NOW - 50)
    asked = Intent(id=1, at=NOW - 10, kind=IntentKind.ATTEST, by="ann")
    assert next_step(view(S.DISCOVERING, off, intents=(asked,)), NOW) == Do("boot_agent", "boot_agent")
    again = msgspec.structs.replace(off, tpm_missing=NOW - 5)
    assert next_step(view(S.DISCOVERING, again, intents=(asked,)), NOW) == Refuse(1, "it has no usable TPM 2.0")


def test_what_a_stranger_says_of_a_missing_tpm_stops_nobody_whose_tpm_is_known_or_attests() -> None:
    booted = Facts(oob_inventory={}, agent_booted_at=NOW - 60)
    known = msgspec.structs.replace(booted, ek_sha256="e" * 64)
    assert isinstance(next_step(view(S.DISCOVERING, known, agent=agent(**SAYS_NONE)), NOW), Wait)
    missing = msgspec.structs.replace(booted, tpm_missing=NOW - 50)
    trusted = view(S.DISCOVERING, missing, agent=agent(attested_at=NOW - 40))
    assert next_step(trusted, NOW) == Do("collect_inventory", "collect_inventory")


def test_an_agent_that_came_by_ticket_goes_on_unless_a_tpm_is_known() -> None:
    booted = Facts(oob_inventory={}, agent_booted_at=NOW - 60)
    entered = view(S.DISCOVERING, booted, agent=agent(**BY_TICKET), waivers=(NO_TPM,))
    assert next_step(entered, NOW) == Do("collect_inventory", "collect_inventory")
    known = msgspec.structs.replace(booted, ek_sha256="e" * 64)
    assert isinstance(next_step(view(S.DISCOVERING, known, agent=agent(**BY_TICKET), waivers=(NO_TPM,)), NOW), Wait)
    os_booted = Facts(os_booted_at=NOW - 60, ek_sha256="e" * 64)
    waits = next_step(view(S.ATTESTING, os_booted, agent=agent("os", **BY_TICKET), waivers=(NO_TPM,)), NOW)
    assert waits == Wait("the first boot of the OS to attest", NOW + 30.0)


WITHOUT_TPM = {**PREPARED, "ek_sha256": None, "reference_values": {}, "tpm_waived": True, "learned_reference": {}}


def test_without_a_tpm_a_server_is_available_as_long_as_its_waiver_holds_and_then_is_not_assigned() -> None:
    fresh = {"bmc_credential_since": NOW, "bmc_certificate": CERTIFICATE, "agent_released": True, "bios_applied": True}
    waived = Facts(**{**WITHOUT_TPM, **fresh})
    assert next_step(view(S.PREPARING, waived, waivers=(NO_TPM,)), NOW) == Move(S.AVAILABLE, "prepared as declared")
    idle = next_step(view(S.AVAILABLE, waived, waivers=(NO_TPM,)), NOW)
    assert isinstance(idle, Idle)
    assert idle.until == NO_TPM.expires
    given = view(S.AVAILABLE, waived, waivers=(NO_TPM,), assignment=ASSIGNED)
    assert isinstance(next_step(given, NOW), Move)
    assert next_step(given, NOW + 60) == REQUIRE
    assert next_step(view(S.AVAILABLE, waived, assignment=ASSIGNED), NOW) == REQUIRE  # withdrawn


def test_an_active_server_without_a_tpm_has_to_be_let_in_anew_when_its_waiver_has_ended() -> None:
    facts = {"bmc_credential_since": NOW, "bmc_certificate": CERTIFICATE, "last_drift_check": NOW}
    active = Facts(**{**WITHOUT_TPM, **facts, "last_attestation": NOW})
    idle = next_step(view(S.ACTIVE, active, waivers=(NO_TPM,)), NOW)
    assert isinstance(idle, Idle)
    assert idle.until == NO_TPM.expires
    assert next_step(view(S.ACTIVE, active, waivers=(NO_TPM,)), NOW + 60).step == "tell_ended_waivers"
    told = msgspec.structs.replace(active, waivers_ended=(Waivable.TPM,))
    assert next_step(view(S.ACTIVE, told, waivers=(NO_TPM,)), NOW + 60) == RENEW
    demanded = msgspec.structs.replace(told, attestation_demanded=NOW + 60)
    waits = next_step(view(S.ACTIVE, demanded, waivers=(NO_TPM,)), NOW + 61)
    assert waits == Wait("a TPM: the waiver of its missing one has ended", NOW + 91)


def test_a_server_that_goes_without_a_tpm_is_not_asked_to_attest() -> None:
    asked = Intent(id=1, at=NOW - 10, kind=IntentKind.ATTEST, by="ann")
    refused = next_step(view(S.ACTIVE, Facts(tpm_waived=True), intents=(asked,), waivers=(NO_TPM,)), NOW)
    assert refused == Refuse(1, "it has no TPM, and goes without by a waiver: nothing on it can attest")


def test_without_a_tpm_and_without_a_waiver_nothing_is_erased_by_whoever_says_so() -> None:
    facts = Facts(**{**WITHOUT_TPM, "workload_stopped": True, "agent_booted_at": NOW - 60})
    entered = view(S.DECOMMISSIONING, facts, agent=agent(**BY_TICKET), waivers=(NO_TPM,))
    assert next_step(entered, NOW) == Do("list_media", "list_media")
    assert next_step(entered, NOW + 60) == REQUIRE


@pytest.mark.parametrize(
    ("finding", "lacks"),
    [
        (Waivable.SECURE_BOOT_DATABASES, {"secure_boot_waived": True, "secure_boot_enrolled": False}),
        (Waivable.IPMI, {"ipmi_waived": True}),
        (Waivable.BMC_DIRECTORY, {"services_left_open": ("directory LDAP",)}),
    ],
)
def test_the_end_of_a_waiver_that_an_active_server_lives_by_is_told_at_that_moment(
    finding: Waivable, lacks: dict[str, Any]
) -> None:
    tell = Do("tell_ended_waivers", "tell_ended_waivers")
    waiver = ActiveWaiver(name="w", finding=finding, reason="old", expires=NOW + 60, approved_by=("a", "b"))
    facts = msgspec.structs.replace(ROTATED, last_drift_check=NOW, last_attestation=NOW, **lacks)
    idle = next_step(view(S.ACTIVE, facts, waivers=(waiver,)), NOW)
    assert isinstance(idle, Idle)
    assert idle.until == NOW + 60
    assert next_step(view(S.ACTIVE, facts, waivers=(waiver,)), NOW + 60) == tell
    assert next_step(view(S.ACTIVE, facts), NOW) == tell  # withdrawn
    told = msgspec.structs.replace(facts, waivers_ended=(finding,))
    assert isinstance(next_step(view(S.ACTIVE, told), NOW), Idle)
    assert next_step(view(S.ACTIVE, told, waivers=(waiver,)), NOW) == tell  # signed anew: it is over


@given(name=st.text("abcdefgh-0123456789", min_size=1, max_size=20), life=st.floats(3600.0, 4e8))
def test_a_renewal_falls_due_at_the_beginning_of_the_last_third(name: str, life: float) -> None:
    installed = msgspec.structs.replace(CERTIFICATE, not_before=NOW, not_after=NOW + life)
    server = msgspec.structs.replace(view(S.ACTIVE, Facts(bmc_certificate=installed)), name=name)
    due = certificate_due(server)
    assert NOW + life * 2 / 3 - 1 <= due <= NOW + life * (2 / 3 + 1 / 15) + 1
    assert not certificate_fresh(server, due)
    assert certificate_fresh(server, due - 1)


def test_a_confirmation_is_settled_when_the_key_is_pinned() -> None:
    confirm = Intent(id=4, kind=IntentKind.CONFIRM, by="ann", args={"fingerprint": "ab" * 32})
    assert next_step(view(S.SECURING, intents=(confirm,)), NOW) == Do("pin_identity", "pin_identity")
    pinned = Facts(bmc_identity="ab" * 32)
    assert next_step(view(S.SECURING, pinned, intents=(confirm,)), NOW) == Settle(4, "the BMC's key is pinned")
    late = next_step(view(S.ACTIVE, pinned, intents=(confirm,)), NOW)
    assert isinstance(late, Refuse)
    assert "first contact with the BMC of a server that is active is over" in late.reason


KNOWN_BMC = Facts(
    bmc_identity="cd" * 32,
    bmc_address="10.0.0.1",
    bmc_certificate=CERTIFICATE,
    bmc_certificate_pending=PendingCertificate(pem=""),
)


def accepting(key: str, *, asked: dict[str, Any] | None = None, **request: Any) -> ServerView:
    """A server in quarantine whose BMC has another key, and a release that accepts `key` by a request that is as it
    should be but for `request` (fields of `Request`) and `asked` (fields of `Asked`)."""
    server = view(S.QUARANTINED, KNOWN_BMC, status={"quarantined_from": S.ACTIVE})
    wanted = bmc_keys.request_of(server, key.lower(), by="ann", reason="new board", at=NOW)
    wanted = msgspec.structs.replace(wanted, **request)
    found = Asked(request=wanted, approved_by=("bob", "carol"), spent=None)
    args = {"accept_bmc_key": key, "approval": wanted.id}
    accept = Intent(id=5, at=NOW, kind=IntentKind.RELEASE, by="ann", reason="new board", args=args)
    found = msgspec.structs.replace(found, **asked or {})
    return msgspec.structs.replace(server, intents=(accept,), asked={wanted.id: found})


@pytest.mark.parametrize(
    ("server", "why"),
    [
        (accepting("ab" * 32, asked={"approved_by": ("bob",)}), "was approved by bob, not by two people"),
        (accepting("ab" * 32, asked={"spent": NOW - 1}), "is closed"),
        (accepting("ab" * 32, expires=NOW), "is expired"),
        (accepting("ab" * 32, subject="server/other"), "is about bmc-key for server/other"),
        (accepting("ab" * 32, act=Act.BREAK_GLASS), "is about break-glass"),
        (accepting("ab" * 32, details={"spki_sha256": "ab" * 32, "address": "10.9.9.9", "replaces": "cd" * 32}), "at"),
        (accepting("ab" * 32, details={"spki_sha256": "ef" * 32, "address": "10.0.0.1", "replaces": "cd" * 32}), "ef"),
        (accepting("ab" * 32, details={"spki_sha256": "ab" * 32, "address": "10.0.0.1", "replaces": "ef" * 32}), "ef"),
        (msgspec.structs.replace(accepting("ab" * 32), asked={}), "two people have to approve another key"),
    ],
)
def test_one_person_gives_no_bmc_another_key(server: ServerView, why: str) -> None:
    """Whoever has the pinned key is sent the password in the vault."""
    refused = next_step(server, NOW)
    assert isinstance(refused, Refuse)
    assert why in refused.reason


def test_before_a_key_was_pinned_one_person_may_say_which_it_is() -> None:
    accept = Intent(id=5, kind=IntentKind.RELEASE, by="ann", args={"accept_bmc_key": "ab" * 32})
    server = view(S.QUARANTINED, Facts(), status={"quarantined_from": S.SECURING}, intents=(accept,))
    move = next_step(server, NOW)
    assert isinstance(move, Move)
    assert (move.facts["bmc_identity"], move.approval) == ("ab" * 32, None)


def test_a_release_may_accept_a_new_bmc_key_which_is_then_the_only_one() -> None:
    key = "AB" * 32
    server = accepting(key)
    (accept,), (approval,) = server.intents, server.asked
    move = next_step(server, NOW)
    assert isinstance(move, Move)
    assert (move.state, move.released, move.intent) == (S.ACTIVE, True, 5)
    assert move.reason == f"release by ann: new board (accepts BMC key {key.lower()})"
    assert move.approval == approval
    assert move.facts == {
        "bmc_identity": key.lower(), "bmc_address": "10.0.0.1", "bmc_certificate": None, "bmc_certificate_pending": None
    }  # fmt: skip
    ((name, claim),) = move.statements
    assert (name, claim["spki_sha256"], claim["method"]) == ("bmc-identity", key.lower(), "accepted by bob, carol")
    junk = msgspec.structs.replace(accept, args={"accept_bmc_key": "ab:cd"})
    assert isinstance(next_step(msgspec.structs.replace(server, intents=(junk,)), NOW), Refuse)
    declared = msgspec.structs.replace(SPEC.bmc, expected_fingerprint="ef" * 32)
    refused = next_step(msgspec.structs.replace(server, spec=msgspec.structs.replace(SPEC, bmc=declared)), NOW)
    assert isinstance(refused, Refuse)
    assert f"declares BMC key {'ef' * 32}" in refused.reason


def test_the_os_must_attest_in_this_boot_and_be_ready() -> None:
    facts = Facts(os_booted_at=NOW - 40)
    for session in (None, agent("os", attested_at=NOW), agent("ramdisk", started=NOW - 30, attested_at=NOW)):
        assert isinstance(next_step(view(S.ATTESTING, facts, agent=session), NOW), Wait)
    fresh = agent("os", started=NOW - 20, attested_at=NOW - 10)
    assert next_step(view(S.ATTESTING, facts, agent=fresh), NOW) == Wait("the OS to report that it is ready", NOW + 30)
    ready = msgspec.structs.replace(fresh, ready_at=NOW)
    assert next_step(view(S.ATTESTING, facts, agent=ready), NOW) == Move(
        S.ACTIVE, "the OS attested and is ready", facts={"last_attestation": NOW - 10}
    )


@pytest.mark.parametrize(
    ("facts", "confirmed"),
    [
        (
            {"secure_boot_enrolled": True, "secure_boot_generation": 3, "ek_sha256": "e" * 64},
            {"secure_boot_confirmed": 3},
        ),
        ({"secure_boot_enrolled": True, "ek_sha256": None, "tpm_waived": True}, {}),
        ({"secure_boot_waived": True, "ek_sha256": "e" * 64}, {}),
    ],
)
def test_secure_boot_keys_are_confirmed_by_who_attested_under_them_not_by_the_bmc(
    facts: dict[str, Any], confirmed: dict[str, Any]
) -> None:
    written = Facts(image_written=True, seed_written=True, boot_entry_set=True, os_booted_at=NOW - 1, **facts)
    move = next_step(view(S.PROVISIONING, written, waivers=(NO_TPM,)), NOW)
    assert isinstance(move, Move)
    assert move.facts == confirmed


def drift(*kinds: DriftKind) -> tuple[Drift, ...]:
    return tuple(Drift(kind=kind, subject="x", expected="a", observed="b") for kind in kinds)


def test_drift_by_policy() -> None:
    checked = {"last_drift_check": NOW - 1, "last_attestation": NOW - 1, "bmc_certificate": CERTIFICATE}
    told = PolicySpec(remediation={DriftKind.FIRMWARE_VERSION: Reaction.REPORT})
    reported = view(S.ACTIVE, Facts(drift=drift(DriftKind.FIRMWARE_VERSION), **checked), policy=told)
    assert next_step(reported, NOW) == Idle(NOW - 1 + 300)
    drifted = view(S.ACTIVE, Facts(drift=drift(DriftKind.BIOS_ATTRIBUTE), **checked))
    assert next_step(drifted, NOW) == Move(S.DRIFTED, "drift: bios-attribute")
    told_so = {"last_drift_check": NOW - 1, "attestation_demanded": NOW - 5}
    silent = view(S.ACTIVE, Facts(drift=drift(DriftKind.BIOS_ATTRIBUTE), **told_so))
    assert next_step(silent, NOW) == Move(S.DRIFTED, "drift: bios-attribute")
    both = drift(DriftKind.BIOS_ATTRIBUTE, DriftKind.SECURE_BOOT)
    assert isinstance(next_step(view(S.DRIFTED, Facts(drift=both)), NOW), Quarantine)
    lenient = PolicySpec(remediation={DriftKind.SECURE_BOOT: Reaction.REMEDIATE})
    assert isinstance(next_step(view(S.DRIFTED, Facts(drift=both), policy=lenient), NOW), Move)
    assert next_step(view(S.REMEDIATING, Facts(drift=both, **checked), policy=lenient), NOW) == Do(
        "remediate", "remediate/bios-attribute"
    )


def test_drift_that_survives_its_remediation_quarantines() -> None:
    facts = Facts(
        drift=drift(DriftKind.BIOS_ATTRIBUTE), remediated=(DriftKind.BIOS_ATTRIBUTE,), last_remediation=NOW - 20,
        last_attestation=NOW - 60,
    )  # fmt: skip
    assert next_step(view(S.REMEDIATING, facts), NOW) == Do("check_drift", "check_drift")
    again = msgspec.structs.replace(facts, last_drift_check=NOW - 10)
    assert isinstance(next_step(view(S.REMEDIATING, again), NOW), Quarantine)
    clean = msgspec.structs.replace(again, drift=())
    assert next_step(view(S.REMEDIATING, clean), NOW) == Move(S.ACTIVE, "drift remediated and checked again")


def test_media_one_by_one() -> None:
    facts = Facts(
        workload_stopped=True,
        agent_booted_at=NOW - 60,
        media=(Medium(serial="A", planted=True, sanitized=True), Medium(serial="B", planted=True)),
    )
    session = agent(attested_at=NOW - 5)
    assert next_step(view(S.DECOMMISSIONING, facts, agent=session), NOW) == Do("sanitize", "sanitize/B")
    assert Do("sanitize", "sanitize/B").subject == "B"


@pytest.mark.parametrize("verified", [None, False])
def test_a_medium_that_is_not_verified_never_leads_to_available(verified: bool | None) -> None:
    everything = Facts(
        workload_stopped=True, agent_booted_at=NOW - 60, tpm_cleared=True, agent_released=True, keys_destroyed=True,
        state_reasserted=True, certificate_index=1,
        media=(Medium(serial="A", planted=True, sanitized=True, verified=verified),),
    )  # fmt: skip
    assert next_step(view(S.DECOMMISSIONING, everything), NOW) == Do("verify_sanitized", "verify_sanitized/A")


def test_decommissioning_ends_the_assignment_or_retires() -> None:
    facts = Facts(
        workload_stopped=True, tpm_cleared=True, agent_released=True, keys_destroyed=True, state_reasserted=True,
        certificate_index=1, media=(), tenancy=Tenancy(name="web", revision="r1", spec=ASSIGNED.spec), **PREPARED,
    )  # fmt: skip
    later = msgspec.structs.replace(ASSIGNED, revision="r2")  # declared during the erase: for the next tenancy
    ended = next_step(view(S.DECOMMISSIONING, facts, assignment=later), NOW)
    assert ended == Move(S.AVAILABLE, "sanitized, verified and certified", facts={"ended_assignment": "r1"})
    retired = next_step(view(S.DECOMMISSIONING, facts, status={"retiring": True}), NOW)
    assert isinstance(retired, Move)
    assert retired.state is S.RETIRED


@pytest.mark.parametrize("lacking", ["ek_sha256", "inventory_agrees", "secure_boot_enrolled"])
def test_what_was_never_prepared_never_joins_the_pool(lacking: str) -> None:
    done = Facts(
        workload_stopped=True, tpm_cleared=True, agent_released=True, keys_destroyed=True, state_reasserted=True,
        certificate_index=1, media=(), **{name: value for name, value in PREPARED.items() if name != lacking},
    )  # fmt: skip
    decision = next_step(view(S.DECOMMISSIONING, done), NOW)
    assert isinstance(decision, Quarantine)
    assert lacking in decision.reason
    intent = Intent(id=1, kind=IntentKind.RELEASE, args={"to": "decommissioning"})
    early = view(S.QUARANTINED, Facts(), intents=(intent,), status={"quarantined_from": S.DISCOVERING})
    assert isinstance(next_step(early, NOW), Refuse)


def test_other_firmware_is_measured_anew_and_a_tenant_s_data_is_erased_first() -> None:
    facts = Facts(**PREPARED, tenancy=Tenancy(name="web", revision="r1", spec=ASSIGNED.spec), learned_reference={})
    release = Intent(id=1, kind=IntentKind.RELEASE, args={"remeasure": True})
    held = view(S.QUARANTINED, facts, intents=(release,), status={"quarantined_from": S.ACTIVE})
    refused = next_step(held, NOW)
    assert isinstance(refused, Refuse)
    assert "tenant's data" in refused.reason
    release = msgspec.structs.replace(release, args={"remeasure": True, "to": "decommissioning"})
    move = next_step(msgspec.structs.replace(held, intents=(release,)), NOW)
    assert isinstance(move, Move)
    assert (move.state, move.facts["reference_values"]) == (S.DECOMMISSIONING, None)
    assert move.facts["remeasured"] is True  # until a firmware job says otherwise, two operators are asked
    assert UNMEASURED["remeasured"] is False
    erased = Facts(
        workload_stopped=True, tpm_cleared=True, agent_released=True, keys_destroyed=True, state_reasserted=True,
        certificate_index=1, media=(), **(PREPARED | {"reference_values": None}),
    )  # fmt: skip
    onward = next_step(view(S.DECOMMISSIONING, erased), NOW)
    assert isinstance(onward, Move)
    assert onward.state is S.PREPARING


@pytest.mark.parametrize("declared", ["server", "board"])
def test_a_server_in_the_pool_is_brought_to_new_firmware_and_measured_again(declared: str) -> None:
    board = FirmwareFact(vendor="Halden", model="HX2", version="1.0")
    facts = Facts(
        **PREPARED, bmc_credential_since=NOW, bmc_certificate=CERTIFICATE, firmware=board,
        learned_reference={"0": ()}, agent_released=True, bios_applied=True,
    )  # fmt: skip
    baseline = FirmwareBaselineSpec(vendor="Halden", model="HX2", component="BIOS", version="1.1")
    server = view(S.AVAILABLE, facts, baselines=(baseline,) if declared == "board" else ())
    if declared == "server":
        server = msgspec.structs.replace(server, spec=msgspec.structs.replace(SPEC, firmware=Firmware(bios="1.1")))
    assert next_step(server, NOW) == Move(S.PREPARING, "its BIOS is to be 1.1")
    preparing = msgspec.structs.replace(server, status=msgspec.structs.replace(server.status, state=S.PREPARING))
    assert next_step(preparing, NOW) == Do("apply_firmware", "apply_firmware")
    new = msgspec.structs.replace(facts, firmware=msgspec.structs.replace(board, version="1.1"), **UNMEASURED)
    applied = msgspec.structs.replace(preparing, status=msgspec.structs.replace(preparing.status, facts=new))
    assert next_step(applied, NOW) == Do("boot_agent", "boot_agent")
    other = msgspec.structs.replace(baseline, model="HX3")
    assert isinstance(next_step(view(S.AVAILABLE, facts, baselines=(other,)), NOW), Idle)


@pytest.mark.parametrize("declared", ["server", "board"])
def test_a_bmc_is_brought_to_new_firmware_before_anything_else_and_closed_again(declared: str) -> None:
    board = FirmwareFact(vendor="Halden", model="HX2", version="1.0")
    facts = Facts(
        **PREPARED, bmc_credential_since=NOW, bmc_certificate=CERTIFICATE, firmware=board, bmc_version="4.0",
        learned_reference={"0": ()}, agent_released=True, bios_applied=True,
    )  # fmt: skip
    wanted = [FirmwareBaselineSpec(vendor="Halden", model="HX2", component=c, version="4.1") for c in ("bios", "BMC")]
    server = view(S.AVAILABLE, facts, baselines=tuple(wanted) if declared == "board" else ())
    if declared == "server":
        server = msgspec.structs.replace(server, spec=msgspec.structs.replace(SPEC, firmware=Firmware(bmc="4.1")))
    assert next_step(server, NOW) == Move(S.PREPARING, "its BMC's firmware is to be 4.1")
    preparing = msgspec.structs.replace(server, status=msgspec.structs.replace(server.status, state=S.PREPARING))
    assert next_step(preparing, NOW) == Do("apply_bmc_firmware", "apply_bmc_firmware")
    new = msgspec.structs.replace(facts, bmc_version="4.1", **UNCLOSED)
    applied = msgspec.structs.replace(preparing, status=msgspec.structs.replace(preparing.status, facts=new))
    assert next_step(applied, NOW) == Do("disable_ipmi", "disable_ipmi")


DAY = 86400.0
STALE: dict[str, Any] = {"last_attestation": NOW - 1.5 * DAY, "bmc_credential_since": NOW, **KNOWN}


def test_neither_a_silent_os_nor_a_bmc_that_is_away_keeps_us_from_the_other() -> None:
    """The demand needs no BMC and comes first, but only once: then drift is looked for as often as policy wants."""
    stale = Facts(last_drift_check=NOW - 3600, **STALE)
    assert next_step(view(S.ACTIVE, stale), NOW) == RENEW
    demanded = msgspec.structs.replace(stale, attestation_demanded=NOW - 5)
    assert next_step(view(S.ACTIVE, demanded), NOW) == Do("check_drift", "check_drift")
    looked = msgspec.structs.replace(demanded, last_drift_check=NOW - 1)
    assert next_step(view(S.ACTIVE, looked), NOW) == Wait("a new attestation", NOW + 30)
    old = agent("os", started=NOW - 20, attested_at=NOW - 1.4 * DAY)  # back with what it had before the demand
    assert next_step(view(S.ACTIVE, looked, agent=old), NOW) == RENEW


SILENCE = (
    "its OS has not attested for 49 hours, and does not answer the demand to;"
    " if it spoke and was refused, `freehold events` says why"
)


@pytest.mark.parametrize("state", [S.ACTIVE, S.DRIFTED, S.REMEDIATING])
@pytest.mark.parametrize("status", [{}, {"retry_at": NOW + 200, "reason": "the BMC does not answer"}])
def test_an_os_that_is_silent_too_long_is_quarantined_whatever_its_bmc_does(state: S, status: dict[str, Any]) -> None:
    """The BMC's thief who cuts it off, or who keeps our account locked, gains nothing."""
    facts = Facts(last_attestation=NOW - 49 * 3600, attestation_demanded=NOW - DAY, drift=drift(DriftKind.IPMI))
    assert next_step(view(state, facts, status=status), NOW) == Quarantine(SILENCE)
    younger = msgspec.structs.replace(facts, last_attestation=NOW - 47 * 3600)
    assert not isinstance(next_step(view(state, younger, status=status), NOW), Quarantine)


def test_an_os_is_asked_before_its_silence_counts() -> None:
    """A controller that was off for a week does not find its whole fleet silent."""
    facts = Facts(last_drift_check=NOW - 1, last_attestation=NOW - 7 * DAY, bmc_credential_since=NOW, **KNOWN)
    assert next_step(view(S.ACTIVE, facts), NOW) == RENEW
    demanded = msgspec.structs.replace(facts, attestation_demanded=NOW)
    assert isinstance(next_step(view(S.ACTIVE, demanded), NOW + BOOT_PATIENCE - 1), Wait | Do)
    assert isinstance(next_step(view(S.ACTIVE, demanded), NOW + BOOT_PATIENCE), Quarantine)
    answered = agent("os", started=NOW + 10, attested_at=NOW + 11)
    assert not isinstance(next_step(view(S.ACTIVE, demanded, agent=answered), NOW + BOOT_PATIENCE), Quarantine)
    released = msgspec.structs.replace(demanded, released_at=NOW + 1)  # counts anew
    assert next_step(view(S.ACTIVE, released), NOW + BOOT_PATIENCE) == RENEW


def test_what_was_said_while_the_controller_was_away_is_asked_for_again() -> None:
    """The demand was made just before it stopped, for three days; then nobody has heard the answer."""
    facts = Facts(last_attestation=NOW - 5 * DAY, attestation_demanded=NOW - 3 * DAY, bmc_credential_since=NOW, **KNOWN)
    back = view(S.ACTIVE, facts, listening_since=NOW - 60)
    assert not isinstance(next_step(back, NOW), Quarantine)
    assert isinstance(next_step(back, NOW - 60 + BOOT_PATIENCE), Quarantine)


def test_our_own_ramdisk_on_an_active_server_is_no_os() -> None:
    facts = Facts(last_drift_check=NOW - 1, attestation_demanded=NOW - DAY, last_attestation=NOW - 49 * 3600)
    found = next_step(view(S.ACTIVE, facts, agent=agent("ramdisk", attested_at=NOW - 5)), NOW)
    assert found == Quarantine("its OS has not attested for 49 hours: what answers for it is the ramdisk")
    # Its hello before the demand, its quote after it: the first demand counts, however often it is made anew.
    crossed = agent("ramdisk", started=NOW - 2 * DAY, attested_at=NOW - 5)
    assert isinstance(next_step(view(S.ACTIVE, facts, agent=crossed), NOW), Quarantine)


@given(facts=st.deferred(lambda: facts), silence=st.floats(2 * DAY, 9 * DAY), waits=st.booleans())
def test_nothing_else_that_is_known_lets_a_silent_os_stay_active(facts: Facts, silence: float, waits: bool) -> None:
    last = {"last_attestation": NOW - silence, "attestation_demanded": NOW - silence + DAY, "released_at": None}
    server = view(S.ACTIVE, msgspec.structs.replace(facts, **last), status={"retry_at": NOW + 9 if waits else None})
    assert isinstance(next_step(server, NOW), Quarantine)


def test_time_in_a_state_is_no_attestation() -> None:
    """A release, or a drift that came and went, must not count as a quote."""
    decision = next_step(view(S.ACTIVE, Facts(last_drift_check=NOW - 1)), NOW)
    assert decision == Do("renew_attestation", "renew_attestation")


def test_a_pause_stops_everything_but_a_trust_failure() -> None:
    wish = Intent(id=1, kind=IntentKind.DECOMMISSION, by="ann")
    alarm = Intent(id=2, kind=IntentKind.QUARANTINE, by="verifier", reason="PCR 11 differs")
    assert next_step(view(S.ACTIVE, paused=True, intents=(wish,)), NOW) == Idle(None)
    assert next_step(view(S.ACTIVE, paused=True, intents=(wish, alarm)), NOW) == Quarantine("PCR 11 differs", 2)


def test_release_is_the_only_way_out_of_quarantine() -> None:
    status = {"quarantined_from": S.DECOMMISSIONING}
    assert next_step(view(S.QUARANTINED, status=status), NOW) == Idle(None)
    intents = (Intent(id=1, kind=IntentKind.DECOMMISSION, by="ann"),)
    assert isinstance(next_step(view(S.QUARANTINED, status=status, intents=intents), NOW), Refuse)
    release = (Intent(id=3, kind=IntentKind.RELEASE, by="ann", reason="drive replaced"),)
    assert next_step(view(S.QUARANTINED, status=status, intents=release), NOW) == Move(
        S.DECOMMISSIONING, "release by ann: drive replaced", 3, released=True
    )


def test_back_off_is_waited_for() -> None:
    waiting = view(S.SECURING, status={"retry_at": NOW + 8, "reason": "the BMC does not answer"})
    assert next_step(waiting, NOW) == Wait("the BMC does not answer", NOW + 8)


def test_overdue() -> None:
    late = view(S.SECURING, status={"deadline": NOW - 1})
    assert overdue(late, NOW)
    assert not overdue(msgspec.structs.replace(late, paused=True), NOW)
    assert not overdue(view(S.SECURING, status={"deadline": NOW + 1}), NOW)


moments = st.none() | st.floats(NOW - 3000, NOW)
facts = st.builds(
    Facts,
    **{name: st.booleans() for name in Facts.__struct_fields__ if isinstance(getattr(Facts(), name), bool)},
    bmc_identity=st.none() | st.just("id"),
    bmc_certificate=st.none() | st.just(CERTIFICATE),
    oob_inventory=st.none() | st.just({}),
    inband_inventory=st.none() | st.just({"x": 1}),
    ek_sha256=st.none() | st.just("ek"),
    firmware=st.none() | st.just(FirmwareFact(vendor="v", model="m", version="1")),
    learned_reference=st.none() | st.just({"0": ("00",)}),
    reference_values=st.none() | st.just({"0": ("00",)}),
    secure_boot_generation=st.none() | st.integers(1, 3),
    agent_booted_at=moments,
    os_booted_at=moments,
    last_attestation=moments,
    last_drift_check=moments,
    last_remediation=moments,
    drift=st.lists(st.sampled_from(DriftKind), max_size=3).map(lambda kinds: drift(*kinds)),
    remediated=st.lists(st.sampled_from(DriftKind), max_size=2).map(tuple),
    media=st.none()
    | st.lists(
        st.builds(
            Medium,
            serial=st.sampled_from("AB"),
            planted=st.booleans(),
            sanitized=st.booleans(),
            verified=st.none() | st.booleans(),
        ),
        max_size=2,
    ).map(tuple),
    certificate_index=st.none() | st.integers(0, 5),
    ended_assignment=st.none() | st.sampled_from(["r1", "r0"]),
)
sessions = st.none() | st.builds(
    AgentSession,
    id=st.just("s"),
    mode=st.sampled_from(["ramdisk", "os"]),
    boot_id=st.just("b"),
    started=st.floats(NOW - 3000, NOW),
    last_seen=st.floats(NOW - 3000, NOW),
    attested_at=moments,
    ready_at=moments,
)
views = st.builds(
    ServerView,
    name=st.just("a"),
    spec=st.just(SPEC),
    status=st.builds(
        ServerStatus,
        state=st.sampled_from(S),
        state_since=st.floats(NOW - 3000, NOW),
        facts=facts,
        retry_at=st.none() | st.floats(NOW - 10, NOW + 10),
        quarantined_from=st.none() | st.sampled_from(sorted(set(S) - {S.QUARANTINED, S.RETIRED})),
        retiring=st.booleans(),
    ),
    assignment=st.none() | st.just(ASSIGNED),
    paused=st.booleans(),
    secure_boot_generation=st.integers(1, 3),
    intents=st.lists(
        st.builds(
            Intent,
            id=st.integers(1, 9),
            at=st.floats(NOW - 3000, NOW),
            kind=st.sampled_from(IntentKind),
            by=st.just("ann"),
        ),
        max_size=2,
    ).map(tuple),
    agent=sessions,
    orders=st.dictionaries(
        st.sampled_from(sorted(STEPS)),
        st.builds(Order, id=st.just("o"), key=st.just("k"), kind=st.just("k"), state=st.sampled_from(OrderState)),
        max_size=3,
    ),
)


@given(views)
@settings(max_examples=300, deadline=None)
def test_every_view_has_a_legal_decision(server: ServerView) -> None:
    decision = next_step(server, NOW)
    state = server.status.state
    match decision:
        case Do():
            assert decision.step in {goal.step for goal in GOALS[state]}
            assert not server.paused
            assert not (decision.step == "boot_agent" and server.facts.secure_boot_changing)
        case Wait():
            assert decision.until > NOW
        case Move():
            transition(state, decision.state, released=decision.released)
            assert decision.released == (state is S.QUARANTINED)
            forget(msgspec.structs.replace(server.facts, **decision.facts), decision.state)
            if decision.state is S.PROVISIONING:
                assert decision.released or keys_current(server, NOW)
            if decision.state is S.AVAILABLE and state is S.DECOMMISSIONING:
                assert server.facts.media is not None
                assert all(medium.verified for medium in server.facts.media)
                assert server.facts.certificate_index is not None
        case Quarantine():
            transition(state, S.QUARANTINED)
            assert decision.reason
        case Idle():
            assert server.paused or state in (S.ACTIVE, S.AVAILABLE, S.QUARANTINED, S.RETIRED)
            assert decision.until is None or decision.until > NOW
        case TakeTurn():
            assert state in (S.ACTIVE, S.AVAILABLE)
            assert not server.paused
        case Refuse():
            assert decision.intent in {intent.id for intent in server.intents}


ENROL = Do("enroll_secure_boot", "enroll_secure_boot")


def test_an_available_server_takes_newer_secure_boot_keys_over_before_it_is_given_away() -> None:
    for carried, newest, behind in ((None, 1, False), (None, 2, True), (1, 2, True), (2, 2, False), (3, 2, False)):
        facts = msgspec.structs.replace(ROTATED, secure_boot_generation=carried)
        decision = next_step(view(S.AVAILABLE, facts, assignment=ASSIGNED, secure_boot_generation=newest), NOW)
        assert (decision == ENROL) is behind, (carried, newest)


def test_an_active_server_keeps_the_keys_that_its_os_was_made_for() -> None:
    facts = msgspec.structs.replace(ROTATED, last_drift_check=NOW, last_attestation=NOW, secure_boot_generation=1)
    facts = msgspec.structs.replace(facts, revocations_checked=2)
    assert isinstance(next_step(view(S.ACTIVE, facts, secure_boot_generation=2), NOW), Idle)


def test_a_new_generation_of_keys_makes_every_active_server_be_looked_at_before_all_else() -> None:
    check = Do("check_revocations", "check_revocations")
    for checked, newest, due in ((None, 1, False), (None, 2, True), (2, 2, False), (2, 3, True)):
        decision = next_step(view(S.ACTIVE, Facts(revocations_checked=checked), secure_boot_generation=newest), NOW)
        assert (decision == check) is due, (checked, newest)
    assert forget(Facts(revocations_checked=2), S.ACTIVE).revocations_checked is None


def test_a_revoked_image_runs_on_only_as_long_as_policy_lets_it() -> None:
    facts = Facts(revocations_checked=2, image_revoked="ab" * 32)
    for allowed, due in ((PolicySpec(), True), (PolicySpec(revoked_image="report"), False)):
        decision = next_step(view(S.ACTIVE, facts, policy=allowed, secure_boot_generation=2), NOW)
        assert (decision == Do("check_revocations", "check_revocations")) is due
    for state in (S.ACTIVE, S.AVAILABLE):
        assert forget(facts, state).image_revoked is None


@pytest.mark.parametrize("state", [S.DISCOVERING, S.PREPARING, S.PROVISIONING, S.DECOMMISSIONING])
def test_nothing_boots_while_the_keys_in_the_firmware_are_uncertain(state: S) -> None:
    closed = {"ipmi_off": True, "services_closed": True, "posture_recorded": True}
    facts = Facts(secure_boot_changing=True, oob_inventory={}, workload_stopped=True, **closed)
    assert next_step(view(state, facts), NOW) == ENROL
    settled = msgspec.structs.replace(facts, secure_boot_changing=False)
    assert next_step(view(state, settled), NOW) == Do("boot_agent", "boot_agent")


def test_keys_that_were_half_put_back_on_an_active_server_are_put_back_whole() -> None:
    """Under a policy that has come to report only, nothing else would put them back."""
    facts = msgspec.structs.replace(ROTATED, last_drift_check=NOW, last_attestation=NOW, secure_boot_changing=True)
    assert next_step(view(S.ACTIVE, facts), NOW) == Do("remediate", "remediate/secure-boot-keys")
    drifted = msgspec.structs.replace(facts, drift=drift(DriftKind.SECURE_BOOT_KEYS))
    assert isinstance(next_step(view(S.ACTIVE, drifted), NOW), Move)
    unasked = msgspec.structs.replace(facts, last_drift_check=None)
    assert next_step(view(S.ACTIVE, unasked), NOW) == Do("check_drift", "check_drift")


def test_decommissioning_ends_with_the_newest_keys() -> None:
    facts = Facts(
        workload_stopped=True, agent_booted_at=NOW - 60, tpm_cleared=True, agent_released=True, keys_destroyed=True,
        media=(Medium(serial="A", planted=True, sanitized=True, verified=True),), secure_boot_generation=1,
    )  # fmt: skip
    assert next_step(view(S.DECOMMISSIONING, facts, secure_boot_generation=2), NOW) == ENROL
    current = msgspec.structs.replace(facts, secure_boot_generation=2)
    step = next_step(view(S.DECOMMISSIONING, current, secure_boot_generation=2), NOW)
    assert step == Do("reassert_state", "reassert_state")
    undone = msgspec.structs.replace(current, secure_boot_changing=True)  # the tenant had changed them
    assert next_step(view(S.DECOMMISSIONING, undone, secure_boot_generation=2), NOW) == ENROL


def test_leaf_0_of_the_log_is_a_certificate_too() -> None:
    spec = ServerSpec(bmc=Bmc(address="172.30.1.11", credential=Credential()), nics=())
    view = ServerView(name="s1", spec=spec, status=ServerStatus(facts=Facts(certificate_index=0)))
    assert fact("certificate_index")(view, 0.0)
    assert not fact("bmc_identity")(view, 0.0)


def test_after_a_release_the_os_must_prove_itself_anew() -> None:
    facts = msgspec.structs.replace(ROTATED, last_drift_check=NOW, os_booted_at=NOW - 500, released_at=NOW - 10)
    stale = agent("os", started=NOW - 400, attested_at=NOW - 300)
    assert next_step(view(S.ACTIVE, facts, agent=stale), NOW) == Do("renew_attestation", "renew_attestation")
    fresh = msgspec.structs.replace(stale, attested_at=NOW - 5)
    assert isinstance(next_step(view(S.ACTIVE, facts, agent=fresh), NOW), Idle)


def test_a_machine_that_keeps_silent_tells_where_to_look() -> None:
    soon = next_step(view(S.PROVISIONING, Facts(agent_booted_at=NOW - 60)), NOW)
    assert soon == Wait("the agent to start and to attest", NOW + 30)
    late = next_step(view(S.PROVISIONING, Facts(agent_booted_at=NOW - 300)), NOW)
    assert isinstance(late, Wait)
    assert "nothing was heard for 5 minutes: its firmware may have refused the image (Secure Boot)" in late.reason


def test_a_clock_that_was_ahead_neither_counts_as_a_rotation_nor_hides_a_silent_os() -> None:
    asked = Intent(id=7, at=NOW - 1, kind=IntentKind.ROTATE, by="ann")
    ahead = msgspec.structs.replace(ROTATED, bmc_credential_since=NOW + 300)
    assert isinstance(next_step(view(S.AVAILABLE, ahead, intents=(asked,)), NOW), TakeTurn)
    far = RotationTurn(slot=10**12, taken=NOW - 5)
    stuck = msgspec.structs.replace(ROTATED, bmc_credential_since=NOW - 90 * DAY, rotation_turn=far)
    assert isinstance(next_step(view(S.AVAILABLE, stuck), NOW), TakeTurn)
    facts = Facts(last_attestation=NOW - 5 * DAY, attestation_demanded=NOW + DAY, bmc_credential_since=NOW, **KNOWN)
    assert next_step(view(S.ACTIVE, facts), NOW) == RENEW  # told anew, and counted from now on
    proved = msgspec.structs.replace(facts, last_attestation=NOW + DAY, attestation_demanded=None)
    assert next_step(view(S.ACTIVE, proved), NOW) == RENEW


def test_who_is_resumed_has_time_to_do_what_he_was_told_before_the_pause() -> None:
    facts = Facts(last_attestation=NOW - 4 * DAY, attestation_demanded=NOW - 3 * DAY, bmc_credential_since=NOW, **KNOWN)
    paused = view(S.ACTIVE, facts, paused=True)
    status = outcomes.with_overlay(paused, NOW - 2 * DAY)
    resumed = msgspec.structs.replace(paused, status=status, paused=False)
    resumed = msgspec.structs.replace(resumed, status=outcomes.with_overlay(resumed, NOW))
    assert next_step(resumed, NOW) == RENEW
