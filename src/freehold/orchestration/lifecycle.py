"""The lifecycle of a server: one table. Whatever moves a server goes through `transition`."""

import msgspec

from freehold.model.errors import FreeholdError
from freehold.model.status import Facts, IntentKind, ServerState

S = ServerState

NEXT: dict[ServerState, tuple[ServerState, ...]] = {
    S.ENROLLED: (S.SECURING,),
    S.SECURING: (S.DISCOVERING,),
    S.DISCOVERING: (S.PREPARING,),
    S.PREPARING: (S.AVAILABLE,),
    S.AVAILABLE: (S.PREPARING, S.PROVISIONING, S.DECOMMISSIONING),
    S.PROVISIONING: (S.ATTESTING, S.DECOMMISSIONING),
    S.ATTESTING: (S.ACTIVE, S.DECOMMISSIONING),
    S.ACTIVE: (S.DRIFTED, S.DECOMMISSIONING),
    S.DRIFTED: (S.REMEDIATING, S.ACTIVE, S.DECOMMISSIONING),
    S.REMEDIATING: (S.ACTIVE, S.DECOMMISSIONING),
    S.DECOMMISSIONING: (S.AVAILABLE, S.PREPARING, S.RETIRED),
    S.QUARANTINED: (),
    S.RETIRED: (),
}
"""The ways forward. Two more kinds of edge are rules, not rows: any state may fall into `quarantined`, and a person's
release leads out of it (`released_to`)."""

DEADLINES: dict[ServerState, float] = {
    S.ENROLLED: 60.0,
    S.SECURING: 900.0,
    S.DISCOVERING: 1800.0,
    S.PREPARING: 1800.0,
    S.PROVISIONING: 3600.0,
    S.ATTESTING: 1800.0,
    S.DRIFTED: 300.0,
    S.REMEDIATING: 1800.0,
    S.DECOMMISSIONING: 14400.0,
}
"""Seconds after which a server is stuck in a state: a finding. States without a row may last for ever."""

FORGETS: dict[ServerState, tuple[str, ...]] = {
    S.DISCOVERING: (
        "agent_booted_at", "agent_released", "inband_inventory", "oob_inventory", "inventory_agrees", "tpm_missing",
        "tpm_waived", "boot_ticket",
    ),
    S.AVAILABLE: (
        "agent_booted_at", "image", "image_written", "seed_written", "boot_entry_set", "os_booted_at", "tenancy",
        "image_revoked", "boot_ticket", "os_ticket",
    ),
    S.PROVISIONING: (
        "agent_booted_at", "image", "image_written", "seed_written", "boot_entry_set", "os_booted_at",
        "last_attestation", "attestation_demanded", "certificate_index", "boot_ticket", "os_ticket",
    ),
    S.ACTIVE: ("last_drift_check", "revocations_checked", "image_revoked"),
    S.REMEDIATING: ("remediated", "last_remediation"),
    S.DECOMMISSIONING: (
        "agent_booted_at", "agent_released", "workload_stopped", "media", "missing_media", "tpm_cleared",
        "keys_destroyed", "state_reasserted", "certificate_index", "drift", "boot_ticket", "os_ticket",
        "waivers_ended",
    ),
}  # fmt: skip
"""Facts that no longer hold, or must be established anew, when a server enters a state."""


UNMEASURED: dict[str, object] = {
    "learned_reference": None, "reference_values": None, "reference_id": None, "agent_booted_at": None,
    "agent_released": False, "remeasured": False,
}  # fmt: skip
"""What no longer holds once the firmware is another: it has to be booted, measured and approved."""


UNCLOSED: dict[str, object] = {"ipmi_off": False, "services_closed": False, "posture_recorded": False}
"""What no longer holds once the BMC's firmware is another: an update may open what was closed."""


class IllegalTransitionError(FreeholdError):
    """A move that the table does not allow."""


class IntentRefusedError(FreeholdError):
    """What a person asked for makes no sense in the server's state."""


def transition(state: ServerState, target: ServerState, *, released: bool = False) -> ServerState:
    """`target`, if `state` may become it; `released` says that a person released the server from quarantine.
    Raises `IllegalTransitionError`, which names the pair."""
    if target is S.QUARANTINED and state not in (S.QUARANTINED, S.RETIRED):
        return target
    if state is S.QUARANTINED and released and target not in (S.QUARANTINED, S.AVAILABLE, S.RETIRED, S.ENROLLED):
        return target
    if target in NEXT[state]:
        return target
    raise IllegalTransitionError(
        f"{state} -> {target} is not a transition of the lifecycle",
        expected=f"from {state}: {', '.join(exits(state)) or 'nothing'}",
        remedy="A quarantined server is left by `freehold release` only." if state is S.QUARANTINED else None,
    )


def exits(state: ServerState) -> tuple[ServerState, ...]:
    """The states that `state` can lead to without a person's release."""
    return NEXT[state] if state in (S.QUARANTINED, S.RETIRED) else (*NEXT[state], S.QUARANTINED)


def released_to(quarantined_from: ServerState | None) -> ServerState:
    """Where a release leads: back to what was interrupted. A failed erase therefore goes back to decommissioning, and
    nothing goes from quarantine straight to available."""
    if quarantined_from in (None, S.ENROLLED, S.AVAILABLE):
        return S.SECURING
    if quarantined_from in (S.DRIFTED, S.REMEDIATING):
        return S.ACTIVE
    assert quarantined_from is not None
    return quarantined_from


def check_intent(state: ServerState, kind: IntentKind) -> None:
    """Raise `IntentRefusedError` if `kind` makes no sense in `state`. Pausing is always possible."""
    if kind in (IntentKind.DECOMMISSION, IntentKind.RETIRE) and S.DECOMMISSIONING not in NEXT[state]:
        remedy = "Release it first, with `freehold release`." if state is S.QUARANTINED else None
        raise IntentRefusedError(f"a server that is {state} cannot be decommissioned", remedy=remedy)
    if kind is IntentKind.RELEASE and state is not S.QUARANTINED:
        raise IntentRefusedError(f"a server that is {state} is not in quarantine: there is nothing to release")
    if kind is IntentKind.ROTATE and state in (S.ENROLLED, S.SECURING, S.QUARANTINED, S.RETIRED):
        raise IntentRefusedError(f"the BMC credential of a server that is {state} is not rotated")
    if kind is IntentKind.CONFIRM and state not in (S.ENROLLED, S.SECURING):
        remedy = "See `freehold release --accept-bmc-key`." if state is S.QUARANTINED else None
        raise IntentRefusedError(f"first contact with the BMC of a server that is {state} is over", remedy=remedy)
    if kind is IntentKind.ATTEST and state in (S.ENROLLED, S.SECURING, S.AVAILABLE, S.QUARANTINED, S.RETIRED):
        raise nothing_attests(state)
    if kind is IntentKind.QUARANTINE and state in (S.QUARANTINED, S.RETIRED):
        raise IntentRefusedError(f"the server is {state} already")


def nothing_attests(state: ServerState) -> IntentRefusedError:
    remedy = "whatever is started on it attests before it gets anything"
    if state is S.QUARANTINED:
        remedy = "`freehold release` it: it goes on only after a new attestation"
    return IntentRefusedError(f"nothing that could attest runs on a server that is {state} now", remedy=remedy)


def no_tpm_attests() -> IntentRefusedError:
    remedy = "its agent is let in by a ticket, which proves nothing of what runs; fit a TPM 2.0, or enable it"
    return IntentRefusedError("it has no TPM, and goes without by a waiver: nothing on it can attest", remedy=remedy)


def forget(facts: Facts, entering: ServerState, *, released: bool = False) -> Facts:
    """`facts` without what a server loses on entering a state. A release also clears what the person has judged."""
    defaults = Facts()
    changes = {name: getattr(defaults, name) for name in FORGETS.get(entering, ())}
    if released:
        changes |= {"drift": (), "last_drift_check": None, "last_attestation": None, "attestation_demanded": None}
        changes |= {"baseline": None}
    return msgspec.structs.replace(facts, **changes)


def mermaid() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {S.ENROLLED}"]
    lines += [f"    {state} --> {target}" for state, targets in NEXT.items() for target in targets]
    lines += [f"    any --> {S.QUARANTINED}: trust failure", f"    {S.QUARANTINED} --> any: a person's release"]
    return "\n".join([*lines, f"    {S.RETIRED} --> [*]"])
