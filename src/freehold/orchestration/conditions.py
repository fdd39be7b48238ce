"""What can be asked of a server's view: pure functions, the words in which `planner.GOALS` is written."""

import math
from collections.abc import Callable

from freehold.model.resources import DriftKind, Reaction, Waivable, parse_duration
from freehold.model.status import Facts, IntentKind, Medium, OrderState, ServerState
from freehold.orchestration import waivers
from freehold.orchestration.view import ServerView

Condition = Callable[[ServerView, float], bool]

AGENT_LOST = 120.0
"""Seconds of silence after which an agent is taken for lost. It polls every 20 s and reports progress in between."""

SLOW_BOOT = 240.0
"""Seconds from power-on after which people are told where to look; big servers take minutes to test their memory."""

OS_RUNS = (ServerState.ATTESTING, ServerState.ACTIVE, ServerState.DRIFTED, ServerState.REMEDIATING)

TENANT_RUNS = (ServerState.ACTIVE, ServerState.DRIFTED, ServerState.REMEDIATING)

BOOT_PATIENCE = 900.0
"""Seconds that a machine may take from power-on to the agent's hello (firmware self-tests included)."""


def fact(name: str) -> Condition:
    """The fact is established: neither None nor False. A 0 is a fact: a certificate may be leaf 0 of the log."""
    return lambda server, _now: not any(getattr(server.facts, name) is absent for absent in (None, False))


def believes_todays_keys(server: ServerView) -> bool:
    """The agent that the machine was started into knows the controller and signed images by keys that still count."""
    given = server.facts.agent_trust or (1, 1)
    return all(mine >= wanted for mine, wanted in zip(given, server.agent_trust, strict=True))


def agent_alive(server: ServerView, now: float) -> bool:
    """The machine runs the agent that we booted, and it was heard of lately. A machine that fell back into its OS, an
    agent of an earlier boot, or one that believes keys that were replaced, does not count."""
    agent, booted = server.agent, server.facts.agent_booted_at
    return (
        believes_todays_keys(server)
        and agent is not None
        and agent.mode == "ramdisk"
        and booted is not None
        and agent.started >= booted
        and now - agent.last_seen < AGENT_LOST
    )


def silent_for(server: ServerView, now: float) -> float:
    """Seconds since the machine was started into our agent, or its agent was asked to attest, if it has not said hello
    since then; else 0."""
    booted = server.facts.agent_booted_at
    if booted is None or (server.agent is not None and server.agent.started >= booted):
        return 0.0
    return now - _called(server, booted)


def _called(server: ServerView, booted: float) -> float:
    """When the agent was last given a reason to say hello."""
    return max(booted, attestation_asked(server) or 0.0)


def let_in(server: ServerView) -> bool:
    """Whoever speaks for it has attested, or came by ticket before any TPM of it was known."""
    agent = server.agent
    if agent is None or agent.attested_at is None:
        return False
    return not (agent.by_ticket and server.facts.ek_sha256 is not None)


def agent_attested(server: ServerView, now: float) -> bool:
    return agent_alive(server, now) and let_in(server)


def agent_expected(server: ServerView, now: float) -> bool:
    """The agent is there, or was booted so lately that it may still come. One that came and fell silent is lost."""
    booted = server.facts.agent_booted_at
    if booted is None or not believes_todays_keys(server):
        return False
    if agent_alive(server, now):
        return True
    spoke = server.agent is not None and server.agent.mode == "ramdisk" and server.agent.started >= booted
    return not spoke and now - _called(server, booted) < BOOT_PATIENCE


def given_up(server: ServerView, now: float) -> str | None:
    """Why nobody waits any longer for the agent that the machine was started into; None if it was started into none."""
    agent, booted = server.agent, server.facts.agent_booted_at
    if booted is None:
        return None
    if not believes_todays_keys(server):
        return "its agent believes a key of the site that was replaced"
    if agent is not None and agent.mode == "ramdisk" and agent.started >= booted:
        return f"the agent fell silent {now - agent.last_seen:.0f} s ago"
    return f"no agent came within {now - booted:.0f} s of the start"


def lacks_tpm(server: ServerView) -> bool:
    """It goes without a TPM, or its agent has said that there is none; until one attests, or a person asks it to. What
    is said is a stranger's word: it stops the server where it is, and lets nobody in."""
    facts, agent = server.facts, server.agent
    if facts.ek_sha256 is not None:
        return False
    if facts.tpm_waived:
        return True
    missing = facts.tpm_missing or 0.0
    if agent is not None and agent.started >= (facts.agent_booted_at or 0.0):
        if agent.attested_at is not None and not agent.by_ticket:
            return False
        missing = max(missing, agent.started if agent.no_tpm else 0.0)
    return missing > (attestation_asked(server) or 0.0)


def tpm_waiver_ends(server: ServerView) -> float:
    """When a server that lacks a TPM may not go on any longer, UNIX seconds; never, if it lacks none."""
    if not lacks_tpm(server):
        return math.inf
    return max((each.expires for each in server.waivers if each.finding is Waivable.TPM), default=0.0)


def tpm_or_waiver(server: ServerView, now: float) -> bool:
    return now < tpm_waiver_ends(server)


def wants_ticket(server: ServerView, now: float) -> bool:
    """A waiver holds, and no TPM was ever bound: the next boot is given a ticket, for if it needs one."""
    waived = any(each.finding is Waivable.TPM and now < each.expires for each in server.waivers)
    return server.facts.ek_sha256 is None and waived


def bound(server: ServerView, _now: float) -> bool:
    """It is known by its TPM; or to have none, and two people signed that it goes without."""
    return server.facts.ek_sha256 is not None or server.facts.tpm_waived


def may_be_cleared(server: ServerView) -> bool:
    """Between the order and its result nobody knows whether TPM2_Clear has set the TPM's counters back."""
    return server.status.state is ServerState.DECOMMISSIONING and not server.facts.tpm_cleared


def os_attested(server: ServerView, _now: float) -> bool:
    agent, booted = server.agent, server.facts.os_booted_at
    if agent is None or booted is None or agent.mode != "os":
        return False
    return agent.started >= booted and let_in(server)


def os_ready(server: ServerView, now: float) -> bool:
    return os_attested(server, now) and server.agent is not None and server.agent.ready_at is not None


def firmware_wanted(server: ServerView) -> str | None:
    """The BIOS version that is declared for this server, or for its board; None: any will do."""
    return server.spec.firmware.bios or _of_its_board(server, "bios")


def bmc_firmware_wanted(server: ServerView) -> str | None:
    """The version of the BMC's firmware that is declared for this server, or for its board; None: any will do."""
    return server.spec.firmware.bmc or _of_its_board(server, "bmc")


def _of_its_board(server: ServerView, component: str) -> str | None:
    found = server.facts.firmware
    if found is None:
        return None
    mine = [each for each in server.baselines if (each.vendor, each.model) == (found.vendor, found.model)]
    return next((each.version for each in mine if each.component.lower() == component), None)


def bmc_firmware_current(server: ServerView, _now: float) -> bool:
    return bmc_firmware_wanted(server) in (None, server.facts.bmc_version)


def firmware_current(server: ServerView, _now: float) -> bool:
    wanted, found = firmware_wanted(server), server.facts.firmware
    return wanted is None or (found is not None and found.version == wanted)


def keys_settled(server: ServerView, _now: float) -> bool:
    """What its firmware measures is certain: no enrolment of Secure Boot keys was begun and not ended."""
    return not server.facts.secure_boot_changing


def secure_boot_waiver_ends(server: ServerView) -> float:
    """When a server that goes without our Secure Boot keys may not any longer, UNIX seconds; never, if it has them."""
    if server.facts.secure_boot_enrolled or not server.facts.secure_boot_waived:
        return math.inf
    ends = (each.expires for each in server.waivers if each.finding is Waivable.SECURE_BOOT_DATABASES)
    return max(ends, default=0.0)


def ended_waivers_told(server: ServerView, now: float) -> bool:
    """People were told of just those waivers that ended while the server lives by them."""
    return waivers.ended(server.waivers, server.facts, now) == server.facts.waivers_ended


def next_waiver_end(server: ServerView, now: float) -> float:
    return min((each.expires for each in server.waivers if each.expires > now), default=math.inf)


def keys_enrolled(server: ServerView, now: float) -> bool:
    """Our Secure Boot keys are on the server, or two people signed that it goes without."""
    facts = server.facts
    return facts.secure_boot_enrolled or (facts.secure_boot_waived and now < secure_boot_waiver_ends(server))


def keys_current(server: ServerView, now: float) -> bool:
    if server.facts.secure_boot_waived and not server.facts.secure_boot_enrolled:
        return keys_settled(server, now) and keys_enrolled(server, now)
    return keys_settled(server, now) and (server.facts.secure_boot_generation or 1) >= server.secure_boot_generation


def revocations_checked(server: ServerView, _now: float) -> bool:
    """Nothing was revoked since its OS image was last looked at (the first generation revokes nothing), and policy lets
    it run on. A policy that is changed therefore counts at once."""
    if server.facts.image_revoked is not None and server.policy.revoked_image == "quarantine":
        return False
    return (server.facts.revocations_checked or 1) >= server.secure_boot_generation


CLOCK_STEP = 60.0
"""Seconds that a moment in the past may seem to lie ahead: clocks are set back a little now and then."""


def _past(moment: float | None, now: float) -> float:
    """`moment`, or 0 if there is none: one that is to come was written by a clock that was wrong."""
    return moment if moment is not None and moment <= now + CLOCK_STEP else 0.0


def attested_last(server: ServerView, now: float) -> float:
    """When the OS last proved what it is (or showed its ticket, under a waiver), UNIX seconds; 0 if never, or not since
    a person released the server."""
    agent = server.agent
    proved = agent.attested_at if agent is not None and agent.mode == "os" and agent.attested_at else 0.0
    last = max(_past(proved, now), _past(server.facts.last_attestation, now))
    return last if last > (server.facts.released_at or 0.0) else 0.0


def attestation_asked(server: ServerView) -> float | None:
    """When a person last asked for an attestation that has not come yet. Its hello counts, not its end: only then was
    the nonce made after the demand. A server that has a tenant answers by its OS."""
    agent = server.agent
    speaks = agent is not None and (agent.mode == "os" or server.status.state not in OS_RUNS)
    proves = agent is not None and speaks and agent.attested_at is not None and not agent.by_ticket
    proved = agent.started if agent is not None and proves else 0.0
    asked = [intent.at for intent in server.intents if intent.kind is IntentKind.ATTEST and intent.at > proved]
    return max(asked, default=None)


def attested_as_asked(server: ServerView, _now: float) -> bool:
    """An agent that is carrying out an order is not disturbed: it is asked when that is done."""
    busy = any(order.state is OrderState.PENDING for order in server.orders.values())
    return busy or attestation_asked(server) is None


def attestation_fresh(server: ServerView, now: float) -> bool:
    """What the OS proved is younger than the policy's interval, and nobody asked for more. A server without a TPM
    proves nothing: it is let go on as long as its waiver holds."""
    interval = parse_duration(server.policy.attestation_interval)
    asked = attestation_asked(server) is not None
    return not asked and now - attested_last(server, now) < interval and tpm_or_waiver(server, now)


def demanded(server: ServerView, now: float) -> float | None:
    """When the OS was first told to attest anew, if it has not done so since; a release begins the count again."""
    since = max(attested_last(server, now), server.facts.released_at or 0.0)
    told = _past(server.facts.attestation_demanded, now)
    return told if told > since else None


def attestation_demanded(server: ServerView, now: float) -> bool:
    """The OS need not attest now, or was told to: no session is left of before."""
    if attestation_fresh(server, now):
        return True
    told, agent = demanded(server, now), server.agent
    return told is not None and (agent is None or agent.started > max(told, attestation_asked(server) or 0.0))


def silence(server: ServerView, now: float) -> str | None:
    """Why an OS counts as lost: it has not attested for two intervals, and had time to answer when it was told to, with
    somebody there to hear it. It needs nothing of the BMC, which may be in the hands of the same thief."""
    told = demanded(server, now)
    since = attested_last(server, now) or server.facts.released_at or server.status.state_since
    patience = 2 * parse_duration(server.policy.attestation_interval)
    if server.status.state not in TENANT_RUNS or told is None:
        return None
    if now - since < patience or now - max(told, _past(server.listening_since, now)) < BOOT_PATIENCE:
        return None
    why = f"its OS has not attested for {(now - since) / 3600:.0f} hours"
    if server.agent is not None and server.agent.mode != "os":
        return f"{why}: what answers for it is the {server.agent.mode}"
    return f"{why}, and does not answer the demand to; if it spoke and was refused, `freehold events` says why"


def or_drifted(condition: Condition) -> Condition:
    """`condition` matters only while there is no drift to act upon."""
    return lambda server, now: bool(blocking(server, Reaction.REMEDIATE, Reaction.QUARANTINE)) or condition(server, now)


def drift_checked(server: ServerView, now: float) -> bool:
    last = server.facts.last_drift_check
    return last is not None and now - last < parse_duration(server.policy.drift_interval)


def blocking(server: ServerView, *reactions: Reaction) -> tuple[DriftKind, ...]:
    """Kinds of drift that policy answers with one of `reactions`, in order, once each."""
    found = (drift.kind for drift in server.facts.drift if server.policy.reaction(drift.kind) in reactions)
    return tuple(dict.fromkeys(found))


def unremediated(server: ServerView) -> tuple[DriftKind, ...]:
    done = server.facts.remediated
    return tuple(kind for kind in blocking(server, Reaction.REMEDIATE) if kind not in done)


def rechecked(server: ServerView, _now: float) -> bool:
    last, remediated = server.facts.last_drift_check, server.facts.last_remediation
    return last is not None and last > max(remediated or 0.0, server.status.state_since)


def until(done: str, condition: Condition) -> Condition:
    """`condition` matters only until fact `done` is established: an agent that did its work may go."""
    finished = fact(done)
    return lambda server, now: finished(server, now) or condition(server, now)


def unprepared(facts: Facts) -> list[str]:
    """What a server in the pool must have and this one lacks."""
    needed = ("ek_sha256", "inventory_agrees", "secure_boot_enrolled", "reference_values")
    lacking = [name for name in needed if not getattr(facts, name)]
    # Whether the waivers still hold is the business of the goals that `available` has for them.
    excused = {"secure_boot_enrolled"} if facts.secure_boot_waived else set()
    excused |= {"ek_sha256", "reference_values"} if facts.tpm_waived else set()
    return [name for name in lacking if name not in excused]


def every_medium(check: Callable[[Medium], bool]) -> Condition:
    return lambda server, _now: server.facts.media is not None and all(map(check, server.facts.media))


def first_medium(check: Callable[[Medium], bool]) -> Callable[[ServerView], str]:
    """Serial number of the first medium for which `check` does not hold."""
    return lambda server: next(medium.serial for medium in server.facts.media or () if not check(medium))
