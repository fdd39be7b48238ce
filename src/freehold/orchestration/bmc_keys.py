"""Another key for a BMC: what two people are asked to sign before it takes the pinned one's place. Pure.

Whoever has the pinned key is sent the password in the vault. So one person must not be able to name that key: they
could declare another address, accept the key of a machine of their own there, and be sent the password.
"""

import re
from dataclasses import replace

from freehold.model.status import Intent
from freehold.orchestration.decisions import Decision, Move, Refuse
from freehold.orchestration.view import ServerView
from freehold.root_of_trust.operators import THRESHOLD, Act, Asked, Request

PATIENCE = 7 * 86400.0
"""Seconds for which a request waits for its two signatures."""


def request_of(server: ServerView, key: str, *, by: str, reason: str, at: float) -> Request:
    """What two people are asked to sign: this key (SHA-256 of the SPKI, hex), for this server, at this address."""
    return Request(
        act=Act.BMC_KEY,
        subject=f"server/{server.name}",
        details={**_details(server, key), "reason": reason},
        requested_by=by,
        at=at,
        expires=at + PATIENCE,
    )


def unapproved(server: ServerView, key: str, asked: Asked | None, at: float) -> str | None:
    """Why `key` may not be pinned, in words; None: it may. Before a key is pinned nothing is to be protected yet, and
    one person's word is enough, as with `freehold confirm`. `at`: when it was asked for, UNIX seconds."""
    if server.facts.bmc_identity is None:
        return None
    if asked is None:
        return (
            f"two people have to approve another key for its BMC: `freehold release {server.name} --accept-bmc-key"
            f" {key}` asks them"
        )
    request = asked.request
    wanted = _details(server, key)
    if (request.act, request.subject) != (Act.BMC_KEY, f"server/{server.name}"):
        return f"the request {request.id} is about {request.act} for {request.subject}"
    if {name: request.details.get(name) for name in wanted} != wanted:
        return (
            f"the request {request.id} is for key {request.details.get('spki_sha256')} at"
            f" {request.details.get('address')} in place of {request.details.get('replaces')}, which is not how things"
            " are now: ask anew"
        )
    if asked.spent is not None or at >= request.expires:
        return f"the request {request.id} is {'closed' if asked.spent is not None else 'expired'}: ask anew"
    if len(asked.approved_by) < THRESHOLD:
        return f"the request {request.id} was approved by {', '.join(asked.approved_by) or 'nobody'}, not by two people"
    return None


def _details(server: ServerView, key: str) -> dict[str, str | None]:
    return {"spki_sha256": key, "address": server.spec.bmc.address, "replaces": server.facts.bmc_identity}


def repinned(server: ServerView, intent: Intent, move: Move, key: str) -> Decision:
    """A release by people who vouch for the key that the BMC has now: that key is pinned, and nothing else counts,
    until a new certificate is installed."""
    if not re.fullmatch("[0-9a-f]{64}", key):
        return Refuse(intent.id, f"{key!r} is not the SHA-256 of a key: 64 hexadecimal digits")
    declared = server.spec.bmc.expected_fingerprint
    if declared is not None and declared.lower() != key:
        return Refuse(intent.id, f"the Server document declares BMC key {declared}: correct it, or leave it out, first")
    asked = server.asked.get(str(intent.args.get("approval")))
    if (lacking := unapproved(server, key, asked, intent.at)) is not None:
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
