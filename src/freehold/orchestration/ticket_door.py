"""The door for machines without a TPM: a waiver of two operators, and a ticket that came to the machine by its BMC.

A ticket says one thing only: this machine was started through its BMC, by us, this time. It proves nothing of what
runs. So a server whose TPM is known never comes in this way, and what the log says of it is an `admission`, and no
`attestation`.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from freehold.model.resources import Waivable, parse_duration
from freehold.model.status import AgentSession, ServerState
from freehold.orchestration import waivers
from freehold.orchestration.recognition import Recognition
from freehold.orchestration.store import Store
from freehold.orchestration.view import ServerView
from freehold.orchestration.waivers import ActiveWaiver
from freehold.provisioning.agent_messages import Admission, AgentRefusedError, Entry, Hello
from freehold.root_of_trust import pki

LetIn = Callable[[str, Entry, ec.EllipticCurvePublicKey, timedelta, dict[str, Any], float], Awaitable[Admission]]
"""`let_in(server, entry, key, lifetime, details of the session, since)`."""

Record = Callable[[str, str, dict[str, Any]], Awaitable[int]]

NOTHING = "nothing: it is let in once it is started anew"


def remedy(server: str) -> str:
    """What a person does about a server without a TPM."""
    return (
        f"fit or enable a TPM 2.0, then `freehold attest {server}`; {waivers.remedy(server, Waivable.TPM)}; "
        "or retire the server"
    )


class TicketDoor:
    """Of one `AgentDoor`, which makes the session."""

    def __init__(self, store: Store, record: Record, who: Recognition, let_in: LetIn) -> None:
        self._store, self._record, self._who, self._let_in = store, record, who, let_in

    async def without_tpm(self, view: ServerView, hello: Hello) -> AgentRefusedError:
        """The refusal of a machine that says that it has no usable TPM, and shows no ticket. The engine hears of it,
        unless somebody speaks for the server already: it is anybody's word."""
        name, what = view.name, "it has no usable TPM 2.0"
        if view.facts.ek_sha256 is not None:
            what = f"{what}, and its own ({view.facts.ek_sha256[:16]}…) is known: nothing else lets it in"
            return await self._who.refuse(name, what, "enable its TPM again, or find out who says so")
        if waivers.waiver_for(view.waivers, Waivable.TPM, time.time()) is not None:
            seen = "look at its console whether it sees the BMC's virtual CD; it is started anew, with a fresh ticket"
            return await self._who.refuse(name, f"{what}, and shows no ticket", seen)
        if view.agent is None and hello.mode == "ramdisk":
            now = time.time()
            said = AgentSession(
                id=secrets.token_hex(8),
                mode=hello.mode,
                boot_id=hello.boot_id,
                started=now,
                last_seen=now,
                details={"no_tpm": True},
            )
            await self._store.agents.put_session(name, said)
        return await self._who.refuse(name, what, remedy(name))

    async def with_tpm(self, view: ServerView) -> AgentRefusedError:
        """The refusal of a TPM that comes to a server which goes without one: whose it is cannot be told at this point.
        It is bound where all others are, on the way from `discovering`."""
        found = f"`freehold quarantine {view.name}` and `freehold release {view.name}`: then it is discovered anew"
        return await self._who.refuse(view.name, "it has a TPM now, and goes without one by a waiver", found)

    async def enter(self, entry: Entry, peer: str) -> Admission:
        view, since = await self._who.recognize(entry.macs, None, peer), time.time()
        if (why := _barred(view, entry)) is not None:
            raise await self._who.refuse(view.name, *why)
        waiver = waivers.waiver_for(view.waivers, Waivable.TPM, since)
        if waiver is None:
            raise await self._who.refuse(view.name, "it has no usable TPM 2.0, and no waiver holds", remedy(view.name))
        ticket, kept = hashlib.sha256(entry.ticket).hexdigest(), _kept(view, entry)
        if kept is None or not hmac.compare_digest(ticket, kept):
            what = f"a machine at {peer} with this server's MAC address shows a ticket that is not of this boot"
            raise await self._who.refuse(view.name, what, f"{NOTHING}; if it was not, find the impostor")
        try:
            key = pki.agent_key(entry.public_key)
        except pki.CertificateError as error:
            raise await self._who.refuse(view.name, error.what, error.remedy) from error
        # An OS is started again by its tenant, with the same disk; our agent runs once for each ticket.
        if entry.mode == "ramdisk" and not await self._store.agents.use_ticket(view.name, ticket, entry.boot_id):
            what = f"a machine at {peer} shows the ticket of this boot, which another machine or boot has used already"
            raise await self._who.refuse(view.name, what, "somebody has copied it: find out who listens")
        return await self._admit(view, entry, waiver, ticket, key, since)

    async def _admit(
        self,
        view: ServerView,
        entry: Entry,
        waiver: ActiveWaiver,
        ticket: str,
        key: ec.EllipticCurvePublicKey,
        since: float,
    ) -> Admission:
        lasts = min(parse_duration(view.policy.attestation_interval), waiver.expires - since)
        claim = {
            "method": "ticket",
            "mode": entry.mode,
            "boot_id": entry.boot_id,
            "ticket_sha256": ticket,
            "agent_spki_sha256": hashlib.sha256(entry.public_key).hexdigest(),
            "attested": False,
            "expires_at": since + lasts,
            **waivers.claim(waiver, since),
        }
        index = await self._record("admission", view.name, claim)
        # No `ek_sha256` and no `attestation`: whoever looks for a proof finds none.
        details = {"ticket": ticket, "admission": index, "waiver": waiver.name, "reference": {}}
        return await self._let_in(view.name, entry, key, timedelta(seconds=lasts), details, since)


def _barred(view: ServerView, entry: Entry) -> tuple[str, str] | None:
    """Why no ticket lets this server in, and what to do; None: one may."""
    facts = view.facts
    if facts.ek_sha256 is not None:
        what = f"it shows a ticket, and its TPM ({facts.ek_sha256[:16]}…) is known: nothing else lets it in"
        return what, "enable its TPM again, or find out who says so"
    if facts.secure_boot_changing:
        return "its Secure Boot keys are being changed", NOTHING
    if view.status.state is ServerState.QUARANTINED:
        return (
            "it is in quarantine, and a ticket proves nothing",
            f"`freehold release {view.name}`, once that is judged",
        )
    if entry.mode == "os" and facts.image is None:
        return "an installed OS speaks, but this server was given none", "find out what runs on it"
    return None


def _kept(view: ServerView, entry: Entry) -> str | None:
    """SHA-256 of the ticket that this kind of agent must show."""
    return view.facts.boot_ticket if entry.mode == "ramdisk" else view.facts.os_ticket
