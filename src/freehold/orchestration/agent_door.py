"""The door for agents: who says hello, whether what it booted is what we sent, and which orders it gets.

Identity is the TPM's endorsement key. MAC addresses and SMBIOS strings are claims: they only find the server that a new
key is to be bound to. A TPM that is not the server's own is refused and reported, and never replaces the bound one
(CVE-2025-13609). A server is quarantined only by a quote that its own, bound TPM signed; what anybody on the segment
could send must not be able to do that. What a TPM of a vendor that the site trusts signed is evidence in any case.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from freehold.evidence import artifacts
from freehold.model.resources import parse_duration
from freehold.model.status import AgentSession, Facts, IntentKind, ServerState
from freehold.orchestration.admitted import Admitted, AdmittedAgents
from freehold.orchestration.conditions import may_be_cleared
from freehold.orchestration.lifecycle import IntentRefusedError
from freehold.orchestration.measurements import BootedImage, attestation_result, learned_reference, policy_for
from freehold.orchestration.planner import restart_awaited
from freehold.orchestration.recognition import Recognition
from freehold.orchestration.revocations import with_revocation
from freehold.orchestration.site import Site
from freehold.orchestration.store import Store
from freehold.orchestration.ticket_door import TicketDoor
from freehold.provisioning.agent_messages import (
    Admission,
    AgentRefusedError,
    Challenge,
    ConflictError,
    Entry,
    Evidence,
    Hello,
    Order,
    Progress,
    Ready,
    Result,
    UnknownCertificateError,
    UnknownOrderError,
)
from freehold.root_of_trust import pki
from freehold.root_of_trust.attestation import appraise, session
from freehold.root_of_trust.attestation.ek import EkIdentity, verify_ek
from freehold.root_of_trust.attestation.errors import AttestationError
from freehold.root_of_trust.attestation.reference import firmware_id
from freehold.root_of_trust.attestation.structures import parse_public

Record = Callable[[str, str, dict[str, Any]], Awaitable[int]]
"""`record(name of the predicate, server, predicate)`; returns the leaf's index."""

LOST_ORDER = "an order of this server"
MOST_CHALLENGES = 8
MOST_DISTRUSTED = 10_000
DISTRUSTED_AN_HOUR, HOUR = 8, 3600.0
"""Boots of one TPM that are put on record though they are not trusted."""


@dataclass(frozen=True)
class _Greeted:
    server: str
    hello: Hello
    ek: EkIdentity
    since: float


@dataclass(frozen=True)
class _Proof:
    """What was verified, and what it was verified from: an auditor can do it again."""

    evidence: appraise.Evidence
    qualifying_data: bytes
    public_key: bytes
    raw: dict[str, bytes]


class AgentDoor:
    """`AgentBackend` of a site. Sessions and challenges live in memory: after a restart every agent attests again."""

    def __init__(self, site: Site, store: Store, record: Record, *certificates: bytes) -> None:
        """`certificates` (DER): those that the controller's ports show."""
        self._site, self._store, self._record = site, store, record
        self._shown = {hashlib.sha256(each).digest(): each for each in certificates}
        self._challenges = session.OpenChallenges()
        self._greeted: dict[str, _Greeted] = {}
        self._admitted = AdmittedAgents()
        self._bells: dict[str, asyncio.Event] = {}
        self._distrusted: dict[tuple[str, str], dict[tuple[str, tuple[str, ...]], float]] = {}
        self._who = Recognition(store)
        self._tickets = TicketDoor(store, record, self._who, self._let_in)
        self.nudge: Callable[[], None] = lambda: None
        """The engine looks at what is due now: what an agent says has woken its server in the store."""

    def ring(self, server: str) -> None:
        """There is an order for the server."""
        self._bells.setdefault(server, asyncio.Event()).set()

    async def hello(self, hello: Hello, peer: str) -> Challenge:
        view = await self._who.recognize(hello.macs, hello.ek_public, peer)
        if hello.ek_public is None or hello.ak_public is None:
            raise await self._tickets.without_tpm(view, hello)
        if view.facts.tpm_waived:
            raise await self._tickets.with_tpm(view)
        try:
            if hello.ek_certificate is None:
                raise AttestationError(
                    "the TPM has no endorsement key certificate",
                    remedy="write the vendor's certificate into the TPM (NV index 0x01C00002), or replace the TPM",
                )
            public = parse_public(hello.ek_public)
            roots = await asyncio.to_thread(self._site.tpm_roots)
            forgiven = view.policy.lapsed_ek_certificates == "accept"
            ek = verify_ek(hello.ek_certificate, public, roots, now=datetime.now(UTC), allow_expired=forgiven)
            challenge = session.new_challenge(hello.ek_public, hello.ak_public, now=datetime.now(UTC))
        except AttestationError as error:
            raise await self._who.refuse(view.name, error.what, error.remedy) from error
        self._make_room(view.name)
        self._challenges.add(challenge, datetime.now(UTC))
        self._greeted[challenge.session] = _Greeted(view.name, hello, ek, time.time())
        return Challenge(
            session=challenge.session,
            credential_blob=challenge.credential_blob,
            encrypted_secret=challenge.encrypted_secret,
            nonce=challenge.nonce,
            pcrs={bank: list(pcrs) for bank, pcrs in challenge.selection.items()},
        )

    async def attest(self, evidence: Evidence, tls_certificate_sha256: bytes, peer: str) -> Admission:
        greeted = self._greeted.pop(evidence.session, None)
        try:
            challenge = self._challenges.take(evidence.session)
        except AttestationError as error:
            raise AgentRefusedError(error.what, remedy=error.remedy) from error
        if greeted is None:
            raise AgentRefusedError("this session is unknown", remedy="the agent says hello again")
        view = await self._who.view(greeted.server)
        if view.facts.secure_boot_changing:
            what, then = "its Secure Boot keys are being changed", "nothing: it is started again when that is done"
            raise await self._who.refuse(view.name, what, then)
        response = session.Response(
            secret=evidence.secret,
            quote=evidence.quote,
            signature=evidence.signature,
            event_log=evidence.event_log,
            public_key=evidence.public_key,
        )
        now = datetime.now(UTC)
        try:
            key = pki.agent_key(evidence.public_key)
            shown = self._shown[tls_certificate_sha256]
            proven = session.verify_response(challenge, response, tls_certificate=shown, now=now)
            image, ek = self._expected_image(greeted.hello.mode, view.facts), greeted.ek.identity
            last_seen = None if may_be_cleared(view) else await self._store.agents.last_seen(ek)
            keys = await self._site.keys_of(view.facts)
            policy = policy_for(image, view.facts, keys, ek_identity=ek, last_seen=last_seen)
        except (AttestationError, pki.CertificateError) as error:
            # Nobody's TPM has signed this: anyone on the segment could have sent it. It is refused and told, no more.
            raise await self._who.refuse(view.name, f"its attestation failed: {error.what}", error.remedy) from error
        proof = self._proof(greeted, challenge, evidence, proven, shown)
        verdict = await self._unless_revoked(appraise.appraise(proven, policy, now), view.facts)
        verdict = with_revocation(verdict, view.name, image, await self._site.newest_keys())
        # Whatever the verdict: a TPM that went back is judged by a person once, not at every quote from then on.
        await self._store.agents.saw_tpm(ek, proven.tpm)
        if view.facts.ek_sha256 not in (None, ek):  # bound to another since this one said hello
            raise await self._who.other_tpm(view.name, ek, peer)
        if verdict.trusted:
            index = await self._claim(greeted, proof, verdict)
            return await self._admit(greeted, proven, index, verdict, key)
        why = f"it booted something else: {'; '.join(verdict.reasons)}"
        await self._claim_once(greeted, proof, verdict)
        if restart_awaited(view, greeted.since):
            # A person has just released the server, say, and the wrong boot that it was quarantined for still runs.
            raise await self._who.refuse(view.name, why, "nothing: it is about to be restarted, and appraised again")
        if view.facts.ek_sha256 == greeted.ek.identity and view.status.state is not ServerState.QUARANTINED:
            await self._site.end_session(view.name)  # what an earlier boot proved says nothing about this one
            with contextlib.suppress(IntentRefusedError):  # somebody was faster
                await self._store.record_intent(view.name, IntentKind.QUARANTINE, reason=why, by="attestation")
        raise await self._who.refuse(view.name, why, "find out what booted; then `freehold release` the server")

    async def enter(self, entry: Entry, peer: str) -> Admission:
        return await self._tickets.enter(entry, peer)

    async def authenticate(self, certificate: str) -> None:
        await self._session(certificate)

    async def next_order(self, certificate: str, wait: float) -> Order | None:
        agent = await self._session(certificate)
        bell = self._bells.setdefault(agent.server, asyncio.Event())
        deadline = time.monotonic() + wait
        while True:
            bell.clear()
            order = await self._store.agents.next_order(agent.server) if agent.takes_orders else None
            if order is not None:
                return Order(id=order.id, kind=order.kind, args=order.args)
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            try:
                await asyncio.wait_for(bell.wait(), left)
            except TimeoutError:
                return None
            await self._session(certificate)  # the bell also rings when the session was ended

    async def progress(self, certificate: str, order_id: str, progress: Progress) -> None:
        agent = await self._session(certificate)
        _require_orders(agent, order_id)
        shown = {"done": progress.done, "total": progress.total, "phase": progress.phase}
        if not await self._store.agents.progress(agent.server, order_id, shown):
            raise UnknownOrderError(f"order {order_id} is not {LOST_ORDER}")

    async def result(self, certificate: str, order_id: str, result: Result) -> None:
        agent = await self._session(certificate)
        _require_orders(agent, order_id)
        error = {"what": result.error.what, "remedy": result.error.remedy} if result.error else None
        if not await self._store.agents.finish(agent.server, order_id, ok=result.ok, result=result.result, error=error):
            raise ConflictError(f"order {order_id} is over already, or not {LOST_ORDER}")
        self.nudge()

    async def ready(self, certificate: str, ready: Ready) -> None:
        agent = await self._session(certificate)
        said = {"hostname": ready.hostname, "ssh_active": ready.ssh_active, "addresses": list(ready.addresses)}
        if not ready.ssh_active:
            raise ConflictError("the OS is up but ssh is not", remedy="look at the server's console")
        session = await self._store.agents.session(agent.server)
        details = (session.details if session is not None else {}) | said  # beside what it proved
        await self._store.agents.change_session(agent.server, agent.session, ready_at=time.time(), details=details)
        self.nudge()

    async def end_session(self, server: str) -> None:
        """The agent has to attest again."""
        await self._store.agents.end_session(server)
        self.ring(server)

    def _expected_image(self, mode: str, facts: Facts) -> BootedImage:
        """By what the server was given, not by what is newest: an update of the controller must not disown servers."""
        if mode == "ramdisk":
            booted = self._site.agent_build(facts.agent_uki)
        elif facts.image is None:
            raise AttestationError("an installed OS speaks, but this server was given none")
        else:
            booted = self._site.os_build(facts.image.manifest)
        if booted is None:
            raise AttestationError(
                f"this controller does not keep the build that the server was given ({mode})",
                remedy="restore its directory under state/images, or decommission the server and assign it anew",
            )
        return booted

    def _make_room(self, server: str) -> None:
        """A few open challenges for each server: whoever asks in a loop pushes out their own."""
        mine = [session for session, greeted in self._greeted.items() if greeted.server == server]
        for old in mine[: max(0, len(mine) - MOST_CHALLENGES + 1)]:
            del self._greeted[old]
            with contextlib.suppress(AttestationError):
                self._challenges.take(old)

    # ---- what follows

    async def _admit(
        self,
        greeted: _Greeted,
        proven: appraise.Evidence,
        index: int,
        verdict: appraise.Verdict,
        key: ec.EllipticCurvePublicKey,
    ) -> Admission:
        policy = (await self._who.view(greeted.server)).policy
        details = {
            "ek_sha256": greeted.ek.identity,
            "ek_issuers": list(greeted.ek.issuers),
            "ak_public": (greeted.hello.ak_public or b"").hex(),
            "reference": learned_reference(proven),
            "attestation": index,
            "findings": msgspec.to_builtins(verdict.findings),
        }
        lifetime = timedelta(seconds=parse_duration(policy.attestation_interval))
        return await self._let_in(greeted.server, greeted.hello, key, lifetime, details, greeted.since)

    async def _let_in(
        self,
        server: str,
        said: Hello | Entry,
        key: ec.EllipticCurvePublicKey,
        lifetime: timedelta,
        details: dict[str, Any],
        since: float,
    ) -> Admission:
        """A session, and the certificate that speaks for it: in the log before anybody has it."""
        number = secrets.token_hex(8)
        issued = self._site.issue_agent_certificate(key, server, number, datetime.now(UTC), lifetime)
        await self._record("certificate", server, pki.claim(issued, "agent", session=number))
        now = time.time()
        await self._store.agents.put_session(
            server,
            AgentSession(
                id=number,
                mode=said.mode,
                boot_id=said.boot_id,
                started=since,
                last_seen=now,
                attested_at=now,
                details=details,
            ),
        )
        self.nudge()
        return self._admitted.add(issued, server, number, said.mode)

    async def _unless_revoked(self, verdict: appraise.Verdict, facts: Facts) -> appraise.Verdict:
        """What was revoked vouches for nobody, by whatever name a server was staged with it, or with none (learned)."""
        held = facts.reference_values
        known = await self._store.references.revoked(held) if held is not None else None
        if known is None:
            return verdict
        reasons = (*verdict.reasons, f"the reference values {known.values.id} were revoked ({known.values.title})")
        return dataclasses.replace(verdict, trusted=False, reasons=reasons)

    def _proof(
        self, greeted: _Greeted, challenge: session.Challenge, given: Evidence, proven: appraise.Evidence, shown: bytes
    ) -> _Proof:
        raw = {"ak": greeted.hello.ak_public, "ek_certificate": greeted.hello.ek_certificate}
        raw |= {"quote": given.quote, "signature": given.signature, "event_log": given.event_log}
        return _Proof(
            evidence=proven,
            qualifying_data=session.qualifying_data(challenge.nonce, challenge.session, shown, given.public_key),
            public_key=given.public_key,
            raw={name: data for name, data in raw.items() if data is not None},
        )

    async def _claim_once(self, greeted: _Greeted, proof: _Proof, verdict: appraise.Verdict) -> None:
        """The same of the same boot once, and of one TPM so many an hour: who says hello in a loop, each time with
        another boot id, must not fill the log."""
        said, now = (greeted.hello.boot_id, verdict.reasons), time.monotonic()
        who = (greeted.server, greeted.ek.identity)
        if who not in self._distrusted and len(self._distrusted) >= MOST_DISTRUSTED:
            self._distrusted.clear()
        before = self._distrusted.setdefault(who, {})
        for each in [each for each, at in before.items() if now - at > HOUR]:
            del before[each]
        if said in before or len(before) >= DISTRUSTED_AN_HOUR:
            return
        before[said] = now
        await self._claim(greeted, proof, verdict)

    async def _claim(self, greeted: _Greeted, proof: _Proof, verdict: appraise.Verdict) -> int:
        view = await self._who.view(greeted.server)
        keep = self._site.artifacts.keep
        kept = {name: await asyncio.to_thread(keep, data) for name, data in proof.raw.items()}
        predicate = {
            "mode": greeted.hello.mode,
            "boot_id": greeted.hello.boot_id,
            **attestation_result(verdict, proof.evidence, parse_duration(view.policy.attestation_interval)),
            "ek_sha256": greeted.ek.identity,
            "ek_issuers": list(greeted.ek.issuers),
            "ek_certificate_lapsed": greeted.ek.lapsed,
            "reference": _reference_kind(view.facts),
            "reference_id": view.facts.reference_id,
            "firmware": firmware_id(learned_reference(proof.evidence)),
            "qualifying_data": proof.qualifying_data.hex(),
            "agent_spki_sha256": hashlib.sha256(proof.public_key).hexdigest(),
            artifacts.FIELD: kept,
        }
        return await self._record("attestation", greeted.server, predicate)

    async def _session(self, certificate: str) -> Admitted:
        """Whom the holder of this certificate speaks for; the server's agent was heard of now."""
        agent, now = self._admitted.find(certificate), time.time()
        if agent is None or not await self._store.agents.change_session(agent.server, agent.session, last_seen=now):
            self._admitted.drop(certificate)
            raise UnknownCertificateError("no live session has this certificate", remedy="attest again")
        return agent


def _require_orders(agent: Admitted, order_id: str) -> None:
    if not agent.takes_orders:
        raise UnknownOrderError(f"order {order_id} is not for an installed OS")


def _reference_kind(facts: Facts) -> str:
    """What PCR 0 and 2 were held against."""
    if facts.reference_values is None:
        return "none yet"
    return "approved" if facts.reference_id else "learned"
