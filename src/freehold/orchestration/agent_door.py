"""The door for agents: who says hello, whether what it booted is what we sent, and which orders it gets.

Identity is the TPM's endorsement key. MAC addresses and SMBIOS strings are claims: they only find the server that a new
key is to be bound to. A TPM that is not the server's own is refused and reported, and never replaces the bound one
(CVE-2025-13609). A server is quarantined only by a quote that its own TPM signed; what anybody on the segment could
send must not be able to do that.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from freehold.model.errors import FreeholdError
from freehold.model.resources import ServerSpec
from freehold.model.status import AgentSession, Facts, IntentKind
from freehold.orchestration.measurements import BootedImage, learned_reference, policy_for
from freehold.orchestration.planner import ServerView
from freehold.orchestration.site import Site
from freehold.orchestration.store import Store, Stored
from freehold.provisioning.agent_messages import (
    AgentRefusedError,
    Challenge,
    ConflictError,
    Evidence,
    Hello,
    Order,
    Progress,
    Ready,
    Result,
    UnknownOrderError,
    UnknownTokenError,
)
from freehold.root_of_trust.attestation import appraise, session
from freehold.root_of_trust.attestation.ek import EkIdentity, ek_identity, verify_ek
from freehold.root_of_trust.attestation.errors import AttestationError
from freehold.root_of_trust.attestation.structures import parse_public

Record = Callable[[str, str, dict[str, Any]], Awaitable[int]]
"""`record(name of the predicate, server, predicate)`; returns the leaf's index."""

LOST_ORDER = "an order of this server"


@dataclass(frozen=True)
class _Greeted:
    server: str
    hello: Hello
    ek: EkIdentity
    since: float


class AgentDoor:
    """`AgentBackend` of a site. Tokens and challenges live in memory: after a restart every agent attests again."""

    def __init__(self, site: Site, store: Store, record: Record, certificate: bytes) -> None:
        self._site, self._store, self._record, self._certificate = site, store, record, certificate
        self._challenges = session.OpenChallenges()
        self._greeted: dict[str, _Greeted] = {}
        self._tokens: dict[str, tuple[str, str]] = {}  # token -> (server, session)
        self._bells: dict[str, asyncio.Event] = {}

    def ring(self, server: str) -> None:
        """There is an order for the server."""
        self._bells.setdefault(server, asyncio.Event()).set()

    async def hello(self, hello: Hello, peer: str) -> Challenge:
        view = await self._recognize(hello, peer)
        if hello.ek_public is None or hello.ak_public is None:
            raise await self._refuse(
                view.name, "it has no usable TPM 2.0", "fit or enable a TPM 2.0, or retire the server"
            )
        try:
            if hello.ek_certificate is None:
                raise AttestationError("the TPM has no endorsement key certificate")
            public = parse_public(hello.ek_public)
            ek = verify_ek(hello.ek_certificate, public, self._site.tpm_roots(), now=datetime.now(UTC))
            challenge = session.new_challenge(hello.ek_public, hello.ak_public, now=datetime.now(UTC))
        except AttestationError as error:
            remedy = (
                error.remedy
                or f"put the TPM vendor's CA certificate into {self._site.directory}/tpm-roots if you trust it"
            )
            raise await self._refuse(view.name, error.what, remedy) from error
        self._challenges.add(challenge, datetime.now(UTC))
        self._greeted[challenge.session] = _Greeted(view.name, hello, ek, time.time())
        return Challenge(
            session=challenge.session,
            credential_blob=challenge.credential_blob,
            encrypted_secret=challenge.encrypted_secret,
            nonce=challenge.nonce,
            pcrs={bank: list(pcrs) for bank, pcrs in challenge.selection.items()},
        )

    async def attest(self, evidence: Evidence, tls_certificate_sha256: bytes, peer: str) -> str:
        greeted = self._greeted.pop(evidence.session, None)
        try:
            challenge = self._challenges.take(evidence.session)
        except AttestationError as error:
            raise AgentRefusedError(error.what, remedy=error.remedy) from error
        if greeted is None:
            raise AgentRefusedError("this session is unknown", remedy="the agent says hello again")
        view = await self._view(greeted.server)
        response = session.Response(
            secret=evidence.secret, quote=evidence.quote, signature=evidence.signature, event_log=evidence.event_log
        )
        now = datetime.now(UTC)
        try:
            proven = session.verify_response(challenge, response, tls_certificate=self._certificate, now=now)
            image = self._expected_image(greeted.hello.mode, view.facts)
        except AttestationError as error:
            await self._claim(greeted, None, trusted=False, reasons=(error.what,))
            raise await self._refuse(view.name, f"its attestation failed: {error.what}", error.remedy) from error
        policy = policy_for(
            image, view.facts, self._site.secure_boot, self._site.authority, ek_identity=greeted.ek.identity
        )
        verdict = appraise.appraise(proven, policy, now)
        index = await self._claim(greeted, verdict, trusted=verdict.trusted, reasons=verdict.reasons)
        if not verdict.trusted:
            why = "; ".join(verdict.reasons)
            reason = f"it booted something else: {why}"
            await self._store.record_intent(view.name, IntentKind.QUARANTINE, reason=reason, by="attestation")
            raise await self._refuse(view.name, reason, "find out what booted; then `freehold release` the server")
        return await self._admit(greeted, proven, index)

    async def authenticate(self, token: str) -> None:
        await self._session(token)

    async def next_order(self, token: str, wait: float) -> Order | None:
        server = await self._session(token)
        bell = self._bells.setdefault(server, asyncio.Event())
        deadline = time.monotonic() + wait
        while True:
            bell.clear()
            if (order := await self._store.agents.next_order(server)) is not None:
                return Order(id=order.id, kind=order.kind, args=order.args)
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            try:
                await asyncio.wait_for(bell.wait(), left)
            except TimeoutError:
                return None
            await self._session(token)  # the bell also rings when the session was ended

    async def progress(self, token: str, order_id: str, progress: Progress) -> None:
        server = await self._session(token)
        shown = {"done": progress.done, "total": progress.total, "phase": progress.phase}
        if not await self._store.agents.progress(server, order_id, shown):
            raise UnknownOrderError(f"order {order_id} is not {LOST_ORDER}")

    async def result(self, token: str, order_id: str, result: Result) -> None:
        server = await self._session(token)
        error = {"what": result.error.what, "remedy": result.error.remedy} if result.error else None
        if not await self._store.agents.finish(server, order_id, ok=result.ok, result=result.result, error=error):
            raise ConflictError(f"order {order_id} is over already, or not {LOST_ORDER}")

    async def ready(self, token: str, ready: Ready) -> None:
        server = await self._session(token)
        details = {"hostname": ready.hostname, "ssh_active": ready.ssh_active, "addresses": list(ready.addresses)}
        if not ready.ssh_active:
            raise ConflictError("the OS is up but ssh is not", remedy="look at the server's console")
        await self._store.agents.change_session(server, self._tokens[token][1], ready_at=time.time(), details=details)

    async def end_session(self, server: str) -> None:
        """The agent has to attest again."""
        await self._store.agents.end_session(server)
        self.ring(server)

    # ---- who is it

    async def _recognize(self, hello: Hello, peer: str) -> ServerView:
        """The server that this TPM belongs to, or the one that it may be bound to."""
        identity = ek_identity(hello.ek_public) if hello.ek_public else None
        macs, named = set(hello.macs), []
        async for declared in self._servers():
            assert isinstance(declared.resource.spec, ServerSpec)
            if identity and declared.status and declared.status.facts.ek_sha256 == identity:
                return await self._view(declared.resource.name)
            if macs & {nic.mac.lower() for nic in declared.resource.spec.nics}:
                named.append(declared.resource.name)
        if len(named) != 1:
            names = ", ".join(named) or "no declared server"
            raise AgentRefusedError(
                f"the machine at {peer} with MAC {', '.join(hello.macs) or 'none'} is {names}",
                remedy="declare its NICs in exactly one Server document",
            )
        view = await self._view(named[0])
        if view.facts.ek_sha256 is not None and identity is not None:
            raise await self._refuse(
                view.name,
                f"a machine at {peer} with this server's MAC address has another TPM ({identity[:16]}…)",
                "if the mainboard was replaced, retire the server and declare it anew; else find the impostor",
            )
        return view

    async def _view(self, server: str) -> ServerView:
        if (view := await self._store.ledger.view(server)) is not None:
            return view
        raise AgentRefusedError(f"server {server} is not declared any more", remedy="declare it")

    async def _servers(self) -> AsyncIterator[Stored]:
        after = ("Server", "")
        while page := await self._store.list_resources("Server", after=after):
            for declared in page:
                yield declared
            after = page[-1].resource.key

    def _expected_image(self, mode: str, facts: Facts) -> BootedImage:
        if mode == "ramdisk":
            return self._site.agent_image
        if facts.image is None:
            raise AttestationError("an installed OS speaks, but this server was given none")
        try:
            return self._site.image(facts.image.name).booted
        except FreeholdError as error:
            raise AttestationError(error.what, remedy=error.remedy) from error

    # ---- what follows

    async def _admit(self, greeted: _Greeted, proven: appraise.Evidence, index: int) -> str:
        token, number = secrets.token_urlsafe(32), secrets.token_hex(8)
        await self._store.agents.put_session(
            greeted.server,
            AgentSession(
                id=number,
                mode=greeted.hello.mode,
                boot_id=greeted.hello.boot_id,
                started=greeted.since,
                last_seen=time.time(),
                attested_at=time.time(),
                details={
                    "ek_sha256": greeted.ek.identity,
                    "ek_issuers": list(greeted.ek.issuers),
                    "reference": learned_reference(proven),
                    "attestation": index,
                },
            ),
        )
        self._tokens = {key: kept for key, kept in self._tokens.items() if kept[0] != greeted.server}
        self._tokens[token] = (greeted.server, number)
        return token

    async def _claim(
        self, greeted: _Greeted, verdict: appraise.Verdict | None, *, trusted: bool, reasons: tuple[str, ...]
    ) -> int:
        view = await self._view(greeted.server)
        results = verdict.pcrs if verdict else {}
        pcrs = {str(pcr): {"value": one.value.hex(), "status": one.status.value} for pcr, one in results.items()}
        predicate = {
            "mode": greeted.hello.mode,
            "boot_id": greeted.hello.boot_id,
            "trusted": trusted,
            "reasons": list(reasons),
            "policy": verdict.policy_id if verdict else None,
            "pcrs": pcrs,
            "ek_sha256": greeted.ek.identity,
            "ek_issuers": list(greeted.ek.issuers),
            "reference": "learned" if view.facts.reference_values else "none yet",
        }
        return await self._record("attestation", greeted.server, predicate)

    async def _refuse(self, server: str, what: str, remedy: str | None) -> AgentRefusedError:
        """The refusal to raise; people see it as an event."""
        error = AgentRefusedError(what, server=server, remedy=remedy)
        await self._store.add_event(server, "agent-refused", f"{what}; {remedy}" if remedy else what)
        return error

    async def _session(self, token: str) -> str:
        """The server that the token speaks for; its agent was heard of now."""
        known = self._tokens.get(token)
        if known is None or not await self._store.agents.change_session(known[0], known[1], last_seen=time.time()):
            self._tokens.pop(token, None)
            raise UnknownTokenError("this token is not known here", remedy="attest again")
        return known[0]
