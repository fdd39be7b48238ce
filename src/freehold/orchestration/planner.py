"""What to do next with a server: a pure, total function from what is wanted and what is known.

`GOALS` is the whole plan. A state is an ordered row of goals; the first one that does not hold decides. When all hold,
`_onward` says where the server goes. Nothing here reads a clock, a network or a database.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from freehold.model.resources import DriftKind, Reaction, parse_duration
from freehold.model.status import Intent, IntentKind, Medium, OrderState, ServerState, Tenancy
from freehold.orchestration import releases
from freehold.orchestration.conditions import (
    OS_RUNS,
    SLOW_BOOT,
    Condition,
    agent_attested,
    agent_expected,
    attestation_asked,
    attestation_demanded,
    attestation_fresh,
    attested_as_asked,
    attested_last,
    blocking,
    bmc_firmware_current,
    bmc_firmware_wanted,
    bound,
    drift_checked,
    ended_waivers_told,
    every_medium,
    fact,
    firmware_current,
    firmware_wanted,
    first_medium,
    keys_current,
    keys_enrolled,
    keys_settled,
    next_waiver_end,
    or_drifted,
    os_attested,
    os_ready,
    rechecked,
    revocations_checked,
    secure_boot_waiver_ends,
    silence,
    silent_for,
    tpm_or_waiver,
    tpm_waiver_ends,
    unprepared,
    unremediated,
    until,
)
from freehold.orchestration.decisions import Decision, Do, Idle, Move, Quarantine, Refuse, Settle, TakeTurn, Wait
from freehold.orchestration.lifecycle import IntentRefusedError, check_intent, no_tpm_attests, nothing_attests
from freehold.orchestration.renewals import (
    certificate_due,
    certificate_fresh,
    rotated_or_waiting,
    rotation_asked,
    rotation_look,
    rotation_turn,
    rotation_waits,
)
from freehold.orchestration.view import ServerView

S = ServerState
ROTATE = "rotate_credential"


@dataclass(frozen=True)
class Goal:
    """`satisfied` says whether it holds. If not: `step` is done, or, for a goal that only others can reach, waited for.
    `subject` names which of several things the step is for."""

    name: str
    satisfied: Condition
    step: str | None = None
    waits_for: str = ""
    subject: Callable[[ServerView], str] | None = None
    again_after: float = 30.0  # seconds between two looks at a goal that is waited for
    if_silent: str = ""  # what a person should look at when nothing was heard since the machine was started


def established(step: str, name: str) -> Goal:
    """The plainest goal: a fact, and the step that establishes it."""
    return Goal(step.replace("_", " "), fact(name), step)


def agent_until(done: str) -> tuple[Goal, ...]:
    """The machine runs our agent, and the agent proved what it is; wanted until fact `done` holds."""
    return (
        Goal("Secure Boot keys settled", until(done, keys_settled), "enroll_secure_boot"),
        Goal("TPM, or a waiver", until(done, tpm_or_waiver), "require_tpm"),
        Goal("boot agent", until(done, agent_expected), "boot_agent"),
        Goal(
            "agent attested",
            until(done, agent_attested),
            waits_for="the agent to start and to attest",
            if_silent="its firmware may have refused the image (Secure Boot), or has no link to the boot server: "
            "look at its console",
        ),
        Goal("attested as asked", until(done, attested_as_asked), "renew_attestation"),
    )


def _planted(medium: Medium) -> bool:
    return medium.planted


def _sanitized(medium: Medium) -> bool:
    return medium.sanitized


def _verified(medium: Medium) -> bool:
    return medium.verified is True


def _keys(_server: ServerView) -> str:
    return DriftKind.SECURE_BOOT_KEYS


def _first_unremediated(server: ServerView) -> str:
    return unremediated(server)[0]


GOALS: dict[ServerState, tuple[Goal, ...]] = {
    S.ENROLLED: (),
    S.SECURING: (
        established("pin_identity", "bmc_identity"),
        established("take_over_credential", "bmc_credential_committed"),
        Goal("BMC certificate", certificate_fresh, "install_certificate"),
        established("disable_factory_accounts", "factory_accounts_disabled"),
        established("disable_ipmi", "ipmi_off"),
        established("close_services", "services_closed"),
        established("record_posture", "posture_recorded"),
    ),
    S.DISCOVERING: (
        established("read_oob_inventory", "oob_inventory"),
        *agent_until("agent_released"),
        established("collect_inventory", "inband_inventory"),
        established("compare_inventory", "inventory_agrees"),
        Goal("bind ek", bound, "bind_ek"),
        established("release_agent", "agent_released"),
    ),
    S.PREPARING: (
        # The BMC first: what follows is done by its new firmware, which is closed again if the update opened it.
        Goal("BMC firmware at its baseline", bmc_firmware_current, "apply_bmc_firmware"),
        established("disable_ipmi", "ipmi_off"),
        established("close_services", "services_closed"),
        established("record_posture", "posture_recorded"),
        # After new firmware these do not hold, and the row begins anew: boot, measure, approve.
        *agent_until("learned_reference"),
        established("learn_reference", "learned_reference"),
        established("release_agent", "agent_released"),
        established("approve_reference", "reference_values"),
        Goal("firmware at its baseline", firmware_current, "apply_firmware"),
        established("apply_bios", "bios_applied"),
        Goal("Secure Boot keys enrolled", keys_enrolled, "enroll_secure_boot"),
    ),
    S.AVAILABLE: (
        Goal("credential fresh", rotated_or_waiting, ROTATE),
        Goal("certificate fresh", certificate_fresh, "renew_certificate"),
        Goal("Secure Boot keys current", keys_current, "enroll_secure_boot"),
        Goal("TPM, or a waiver", tpm_or_waiver, "require_tpm"),
    ),
    S.PROVISIONING: (
        *agent_until("boot_entry_set"),
        established("write_image", "image_written"),
        established("write_seed", "seed_written"),
        established("set_boot_entry", "boot_entry_set"),
        established("boot_os", "os_booted_at"),
    ),
    S.ATTESTING: (
        Goal("OS attested", os_attested, waits_for="the first boot of the OS to attest"),
        Goal("OS ready", os_ready, waits_for="the OS to report that it is ready"),
    ),
    S.ACTIVE: (
        # What needs least comes first: these need nothing of the server, and are done once. Drift needs its BMC. So
        # neither a BMC that is away nor an OS that does not attest can keep us from the other; `silence` judges the OS.
        Goal("ended waivers told", ended_waivers_told, "tell_ended_waivers"),
        Goal("image held against revocations", revocations_checked, "check_revocations"),
        Goal("attestation demanded", attestation_demanded, "renew_attestation"),
        Goal("drift checked", drift_checked, "check_drift"),
        # Keys that were being put back when a policy came that only reports: what is half-written is written whole.
        Goal("Secure Boot keys settled", or_drifted(keys_settled), "remediate", subject=_keys),
        Goal("credential fresh", rotated_or_waiting, ROTATE),
        Goal("certificate fresh", or_drifted(certificate_fresh), "renew_certificate"),
        Goal("TPM, or a waiver", or_drifted(tpm_or_waiver), waits_for="a TPM: the waiver of its missing one has ended"),
        Goal("attestation fresh", or_drifted(attestation_fresh), waits_for="a new attestation"),
    ),
    S.DRIFTED: (),
    S.REMEDIATING: (
        Goal("attestation demanded", attestation_demanded, "renew_attestation"),
        Goal("drift remediated", lambda server, _: not unremediated(server), "remediate", subject=_first_unremediated),
        Goal("drift rechecked", rechecked, "check_drift"),
    ),
    S.DECOMMISSIONING: (
        established("power_off", "workload_stopped"),
        *agent_until("tpm_cleared"),
        established("list_media", "media"),
        Goal("canaries planted", every_medium(_planted), "plant_canaries", subject=first_medium(_planted)),
        Goal("media sanitized", every_medium(_sanitized), "sanitize", subject=first_medium(_sanitized)),
        Goal("media verified", every_medium(_verified), "verify_sanitized", subject=first_medium(_verified)),
        established("clear_tpm", "tpm_cleared"),
        established("release_agent", "agent_released"),
        established("destroy_keys", "keys_destroyed"),
        Goal("Secure Boot keys current", keys_current, "enroll_secure_boot"),
        established("reassert_state", "state_reasserted"),
        established("certify", "certificate_index"),
    ),
    S.QUARANTINED: (),
    S.RETIRED: (),
}

STEPS = frozenset(goal.step for goals in GOALS.values() for goal in goals if goal.step)
"""Every step that a site must be able to do."""


def next_step(server: ServerView, now: float) -> Decision:
    """The next decision for a server. Total: every view has one; a `Move` is always legal in the lifecycle."""
    status = server.status
    urgent = [intent for intent in server.intents if intent.kind is IntentKind.QUARANTINE]
    for intent in (*urgent, *(() if server.paused else server.intents)):
        if (answer := _answer(server, intent, now)) is not None:
            return answer
    if server.paused or status.state in (S.QUARANTINED, S.RETIRED):
        return Idle(None)
    if (lost := silence(server, now)) is not None:
        return Quarantine(lost)
    if status.retry_at is not None and now < status.retry_at:
        return Wait(status.reason, status.retry_at)
    for goal in GOALS[status.state]:
        if not goal.satisfied(server, now):
            return _pursue(server, goal, now)
    return _onward(server, now)


def restart_awaited(server: ServerView, since: float) -> bool:
    """The state begins with a boot of our agent, and what said hello at `since` was running before it."""
    begins_with_it = any(goal.step == "boot_agent" for goal in GOALS[server.status.state])
    booted = server.facts.agent_booted_at
    return begins_with_it and (booted is None or since < booted)


def check_attestable(server: ServerView) -> None:
    """Raise `IntentRefusedError` unless something that can attest runs on the server, or is about to: the OS, or an
    agent that the state still needs. What goes without a TPM cannot."""
    if server.facts.tpm_waived or (server.agent is not None and server.agent.by_ticket):
        raise no_tpm_attests()
    facts = msgspec.structs.replace(server.facts, agent_booted_at=None)
    empty = msgspec.structs.replace(server, agent=None, status=msgspec.structs.replace(server.status, facts=facts))
    needs_agent = any(
        goal.step == "boot_agent" and not goal.satisfied(empty, 0.0) for goal in GOALS[server.status.state]
    )
    if not needs_agent and server.status.state not in (S.PROVISIONING, *OS_RUNS):
        raise nothing_attests(server.status.state)


def overdue(server: ServerView, now: float) -> bool:
    """The state's deadline has passed: the server is stuck, and somebody must be told."""
    deadline = server.status.deadline
    return not server.paused and deadline is not None and now > deadline


def _pursue(server: ServerView, goal: Goal, now: float) -> Decision:
    if goal.step is None:
        quiet = silent_for(server, now)
        late = f"; nothing was heard for {quiet / 60:.0f} minutes: {goal.if_silent}" if quiet > SLOW_BOOT else ""
        return Wait(goal.waits_for + (late if goal.if_silent else ""), now + goal.again_after)
    key = f"{goal.step}/{goal.subject(server)}" if goal.subject else goal.step
    order = server.orders.get(key)
    if order is not None and order.state is OrderState.PENDING:
        done, total = order.progress.get("done"), order.progress.get("total")
        share = f" ({100 * done // total} %)" if isinstance(done, int) and isinstance(total, int) and total else ""
        return Wait(f"the agent: {order.kind}{share}", now + goal.again_after)
    return TakeTurn() if goal.step == ROTATE and rotation_turn(server, now) is None else Do(goal.step, key)


def _idle(server: ServerView, now: float, *looks: float) -> Idle:
    turn = rotation_waits(server, now)
    until = min(rotation_look(server, now), certificate_due(server), *looks)
    if turn is None:
        return Idle(until)
    return Idle(until, f"its turn to rotate the BMC password, at {datetime.fromtimestamp(turn, UTC):%H:%M:%S} UTC")


def _onward(server: ServerView, now: float) -> Decision:
    """All goals of the state hold: where to?"""
    match server.status.state:
        case S.ENROLLED:
            return Move(S.SECURING, "declared")
        case S.SECURING:
            return Move(S.DISCOVERING, "its BMC is ours alone")
        case S.DISCOVERING:
            known = "the TPM is bound" if server.facts.ek_sha256 is not None else "a waiver stands for the TPM"
            return Move(S.PREPARING, f"both inventories agree and {known}")
        case S.PREPARING:
            return Move(S.AVAILABLE, "prepared as declared")
        case S.AVAILABLE:
            if not bmc_firmware_current(server, 0.0):
                return Move(S.PREPARING, f"its BMC's firmware is to be {bmc_firmware_wanted(server)}")
            if not firmware_current(server, 0.0):
                return Move(S.PREPARING, f"its BIOS is to be {firmware_wanted(server)}")
            given = server.assignment
            if given is None or given.revision == server.facts.ended_assignment:
                return _idle(server, now, secure_boot_waiver_ends(server), tpm_waiver_ends(server))
            tenancy = Tenancy(name=given.name, revision=given.revision, spec=given.spec)
            return Move(S.PROVISIONING, f"assigned by {given.name}", facts={"tenancy": tenancy})
        case S.PROVISIONING:
            return Move(S.ATTESTING, "the image is written and the OS is booting", facts=_confirmed(server))
        case S.ATTESTING:
            attested = server.agent.attested_at if server.agent else None
            return Move(S.ACTIVE, "the OS attested and is ready", facts={"last_attestation": attested})
        case S.ACTIVE:
            if kinds := blocking(server, Reaction.REMEDIATE, Reaction.QUARANTINE):
                return Move(S.DRIFTED, f"drift: {', '.join(kinds)}")
            return _idle(server, now, *_next_checks(server, now), next_waiver_end(server, now))
        case S.DRIFTED:
            if kinds := blocking(server, Reaction.QUARANTINE):
                return Quarantine(f"drift that policy does not remediate: {', '.join(kinds)}")
            if kinds := blocking(server, Reaction.REMEDIATE):
                return Move(S.REMEDIATING, f"policy remediates {', '.join(kinds)}")
            return Move(S.ACTIVE, "no drift that policy acts on")
        case S.REMEDIATING:
            if kinds := blocking(server, Reaction.REMEDIATE, Reaction.QUARANTINE):
                return Quarantine(f"drift is still there after remediation: {', '.join(kinds)}")
            return Move(S.ACTIVE, "drift remediated and checked again")
        case S.DECOMMISSIONING:
            tenancy_ = server.facts.tenancy
            ended = tenancy_.revision if tenancy_ else server.facts.ended_assignment
            target = S.RETIRED if server.status.retiring else S.AVAILABLE
            missing = unprepared(server.facts) if target is S.AVAILABLE else []
            if missing == ["reference_values"]:
                target = S.PREPARING  # its firmware is to be measured anew
            elif missing:
                return Quarantine(f"it was never prepared, so it cannot join the pool: {', '.join(missing)}")
            return Move(target, "sanitized, verified and certified", facts={"ended_assignment": ended})
        case S.QUARANTINED | S.RETIRED:
            return Idle(None)


def _confirmed(server: ServerView) -> dict[str, object]:
    """The agent that wrote the image had attested under these keys: PCR 7 was what they make it."""
    facts = server.facts
    shown = facts.secure_boot_enrolled and facts.ek_sha256 is not None
    return {"secure_boot_confirmed": facts.secure_boot_generation or 1} if shown else {}


def _next_checks(server: ServerView, now: float) -> tuple[float, ...]:
    checked = (server.facts.last_drift_check or 0.0) + parse_duration(server.policy.drift_interval)
    attested = attested_last(server, now) + parse_duration(server.policy.attestation_interval)
    return checked, attested


def _answer(server: ServerView, intent: Intent, now: float) -> Decision | None:
    """The decision that an intent leads to. Pausing is not answered here: it is an overlay (`ServerView.paused`)."""
    status = server.status
    try:
        check_intent(status.state, intent.kind)
        if intent.kind is IntentKind.ATTEST and attestation_asked(server) is not None:
            check_attestable(server)
    except IntentRefusedError as refusal:
        return Refuse(intent.id, refusal.what)
    if intent.kind is IntentKind.ATTEST and (server.facts.tpm_missing or 0.0) > intent.at:
        return Refuse(intent.id, "it has no usable TPM 2.0")
    why = f"{intent.kind} by {intent.by}" + (f": {intent.reason}" if intent.reason else "")
    match intent.kind:
        case IntentKind.QUARANTINE:
            return Quarantine(intent.reason or why, intent.id)
        case IntentKind.RELEASE:
            return releases.release(server, intent, why)
        case IntentKind.DECOMMISSION | IntentKind.RETIRE:
            return Move(S.DECOMMISSIONING, why, intent.id, retiring=intent.kind is IntentKind.RETIRE)
        case IntentKind.ROTATE:
            # The goals do it, now or in the next state that has the goal; then the intent is settled.
            return Settle(intent.id, "rotated") if rotation_asked(server, now) is None else None
        case IntentKind.CONFIRM:
            # `pin_identity` looks for it; what it confirms is compared with what the BMC shows then.
            return Settle(intent.id, "the BMC's key is pinned") if server.facts.bmc_identity else None
        case IntentKind.ATTEST:
            return Settle(intent.id, "attested") if attestation_asked(server) is None else None
        case IntentKind.PAUSE | IntentKind.RESUME:
            return None
