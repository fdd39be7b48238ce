"""What a person's release of a server from quarantine leads to. Pure."""

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
    # No firmware job leads to other firmware here, so a policy of `learned` must not learn it: see `approve_reference`.
    facts = UNMEASURED | {"remeasured": True} if remeasure else {}
    move = Move(target, why, intent.id, released=True, facts=facts)
    key = intent.args.get("accept_bmc_key")
    return move if key is None else bmc_keys.repinned(server, intent, move, str(key).lower())
