"""What a person's release of a server from quarantine leads to. Pure."""

import re
from dataclasses import replace

from freehold.model.status import Intent, ServerState
from freehold.orchestration import bmc_keys
from freehold.orchestration.conditions import unprepared
from freehold.orchestration.decisions import Decision, Move, Refuse
from freehold.orchestration.lifecycle import UNMEASURED, released_to
from freehold.orchestration.view import ServerView

S = ServerState


def release(server: ServerView, intent: Intent, why: str) -> Decision:
    """Out of quarantine. With `remeasure` the firmware's reference values go, and what rested on them: the server is
    erased first if anybody may have left data on it, and joins the pool only by way of `preparing`."""
    to_erase = intent.args.get("to") == S.DECOMMISSIONING
    remeasure = intent.args.get("remeasure") is True
    missing = [name for name in unprepared(server.facts) if not (remeasure and name == "reference_values")]
    if to_erase and missing:
        return Refuse(intent.id, f"it was never prepared ({', '.join(missing)}); release it without --to")
    target = S.DECOMMISSIONING if to_erase else released_to(server.status.quarantined_from)
    if remeasure and not to_erase and server.facts.tenancy is not None:
        return Refuse(intent.id, "it holds a tenant's data; release it with --to decommissioning --remeasure")
    move = Move(target, why, intent.id, released=True, facts=dict(UNMEASURED) if remeasure else {})
    key = intent.args.get("accept_bmc_key")
    return move if key is None else _repinned(server, intent, move, str(key).lower())


def _repinned(server: ServerView, intent: Intent, move: Move, key: str) -> Decision:
    """A release by people who vouch for the key that the BMC has now: that key is pinned, and nothing else counts,
    until a new certificate is installed."""
    if not re.fullmatch("[0-9a-f]{64}", key):
        return Refuse(intent.id, f"{key!r} is not the SHA-256 of a key: 64 hexadecimal digits")
    declared = server.spec.bmc.expected_fingerprint
    if declared is not None and declared.lower() != key:
        return Refuse(intent.id, f"the Server document declares BMC key {declared}: correct it, or leave it out, first")
    asked = server.asked.get(str(intent.args.get("approval")))
    if (lacking := bmc_keys.unapproved(server, key, asked, intent.at)) is not None:
        return Refuse(intent.id, lacking)
    address = server.spec.bmc.address
    facts = {"bmc_identity": key, "bmc_address": address, "bmc_certificate": None, "bmc_certificate_pending": None}
    people = ", ".join(asked.approved_by) if asked is not None else intent.by
    claim: dict[str, object] = {
        "address": address,
        "spki_sha256": key,
        "method": f"accepted by {people}",
        "reason": intent.reason,
        "approval": asked.request.id if asked is not None else None,
    }
    return replace(
        move,
        reason=f"{move.reason} (accepts BMC key {key})",
        facts={**move.facts, **facts},
        statements=(("bmc-identity", claim),),
        approval=asked.request.id if asked is not None else None,
    )
