"""The executed test: a dead server with a blank disk through the whole lifecycle, with the outside path cut.

`Prover` drives a site that is being served, and a `Rack` that stands for the world outside: a lab here, on a real site
the site's own tap. It asks for what a person would ask for, waits, and answers the seven questions from the evidence.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from freehold.evidence import BundleVerification, Ed25519Signer, EvidenceLog, export, verify_bundle
from freehold.evidence.statement import verify as verify_statement
from freehold.model.errors import FreeholdError
from freehold.model.status import IntentKind, ServerState
from freehold.orchestration.site import Site
from freehold.orchestration.step import Record
from freehold.orchestration.store import Store
from freehold.orchestration.view import ServerView
from freehold.out_of_band.accounts import RedfishDoor
from freehold.out_of_band.redfish import Credential
from freehold.root_of_trust.operators import THRESHOLD, approve
from freehold.sovereignty.maturity import Maturity, maturity
from freehold.sovereignty.questions import Answer, Claim, Run, answer

T = TypeVar("T")
POLL = 0.5
INTRUDER = "intruder"
PATIENCE: Mapping[ServerState, float] = {ServerState.ACTIVE: 900.0, ServerState.AVAILABLE: 600.0}


class NotCompleted(FreeholdError):
    """The lifecycle did not come to its end."""


@dataclass(frozen=True)
class Count:
    """What tried to leave so far: packets, and name look-ups apart."""

    packets: int
    lookups: int

    def since(self, before: "Count") -> "Count":
        return Count(self.packets - before.packets, self.lookups - before.lookups)


class Rack(Protocol):
    """The world outside, and the places from which a BMC must not be reachable."""

    async def cut(self) -> None:
        """Sever every outside path."""

    async def count(self) -> Count: ...
    async def attempt(self) -> None:
        """Try to leave, by address and by name, from the controller: the control of the counter."""

    async def reachability(self, server: str) -> list[dict[str, str]]:
        """Attempts to reach the server's BMC from elsewhere: `{"from", "to", "outcome": connected|refused|timeout}`."""

    async def control_reachability(self, server: str) -> str:
        """The same probe at something that must answer: `connected`, or the probe proves nothing."""


@dataclass(frozen=True)
class Progress:
    """One line of the live display; `at` is seconds since the start."""

    at: float
    phase: str
    text: str


@dataclass
class Report:
    """What a run came to."""

    server: str
    answers: tuple[Answer, ...]
    stage: Maturity
    egress: dict[str, Any]
    seconds: dict[str, float]
    bundle: Path
    verification: BundleVerification
    drift: list[str] = field(default_factory=list)
    failure: NotCompleted | None = None
    """Why the lifecycle did not come to its end; the answers then say what was not proven."""

    @property
    def nothing_left(self) -> bool:
        """Nothing tried to leave, and the counter was shown to work."""
        counts = self.egress
        controls = counts["control_packets"] > 0 and counts["control_lookups"] > 0
        return bool(controls and counts["packets"] == 0 and counts["lookups"] == 0)


class Prover:
    """One run about one server. `operators` are the people who approve what two people must, played by their keys."""

    def __init__(
        self,
        site: Site,
        store: Store,
        log: EvidenceLog,
        record: Record,
        rack: Rack,
        operators: Mapping[str, Ed25519Signer],
        server: str,
        show: Callable[[Progress], None],
    ) -> None:
        self._site, self._store, self._log, self._record, self._rack = site, store, log, record, rack
        self._operators, self._server, self._show = operators, server, show
        self._started = time.monotonic()
        self._seconds: dict[str, float] = {}

    def say(self, phase: str, text: str) -> None:
        self._show(Progress(time.monotonic() - self._started, phase, text))

    async def run(self, bundle: Path) -> Report:
        """The whole test. When the server gets stuck or ends in quarantine, what there is is answered and exported all
        the same, with the reason as `Report.failure`."""
        first = self._log.size
        began = datetime.now(UTC)
        public = {name: signer.public_key for name, signer in self._operators.items()}
        await self._store.approvals.found(public, time.time())
        control = await self._phase("isolation", self._cut)
        before = await self._rack.count()
        drift: list[str] = []
        failure = None
        try:
            await self._phase("to active", lambda: self._until(ServerState.ACTIVE))
            await self._phase("BMC isolation", self._probe)
            drift = await self._phase("drift", self._drift)
            await self._phase("rotation", self._rotate)
            await self._phase("decommission", self._decommission)
        except NotCompleted as error:
            failure = error
        left = (await self._rack.count()).since(before)
        egress = {
            "packets": left.packets,
            "lookups": left.lookups,
            "control_packets": control.packets,
            "control_lookups": control.lookups,
            "since": began.isoformat(timespec="seconds"),
            "until": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        await self._record("egress", self._server, egress)
        answers = answer(Run(self.claims(first), self._server))
        stage = maturity(answers)
        card = {"answers": msgspec.to_builtins(answers), "maturity": msgspec.to_builtins(stage), "egress": egress}
        await self._record("sovereignty-test", self._server, card)
        path = await asyncio.to_thread(self._export, bundle, card)
        verification = await asyncio.to_thread(verify_bundle, path, self._site.keys.evidence.public_key_pem)
        return Report(self._server, answers, stage, egress, self._seconds, path, verification, drift, failure)

    def claims(self, first: int) -> list[Claim]:
        """The statements of this run, each verified as it is read."""
        found = []
        for entry in self._log.entries(first):
            statement = verify_statement(entry.envelope, self._log.key)
            name, subject = statement.kind.value, statement.subject[0].name
            found.append(Claim(index=entry.index, name=name, subject=subject, predicate=statement.predicate))
        return found

    def _export(self, bundle: Path, card: dict[str, Any]) -> Path:
        own = self._site.keys
        keys = {"db": "".join(own.secure_boot.newest_set().pems["db"]).encode(), "image": own.image.public_key_pem}
        kept = self._site.artifacts.all()
        return export(self._log, bundle, self._site.keys.evidence, report=card, artifacts=kept, public_keys=keys)

    async def _phase(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        began = time.monotonic()
        result = await work()
        self._seconds[name] = round(time.monotonic() - began, 1)
        return result

    async def _cut(self) -> Count:
        """Cut the outside path, and show that the counter counts."""
        await self._rack.cut()
        before = await self._rack.count()
        await self._rack.attempt()
        control = (await self._rack.count()).since(before)
        self.say(
            "isolation",
            f"outside path cut; control attempt counted: {control.packets} packets, {control.lookups} look-ups",
        )
        return control

    async def _probe(self) -> None:
        attempts = await self._rack.reachability(self._server)
        control = await self._rack.control_reachability(self._server)
        await self._record("posture", self._server, {"kind": "reachability", "attempts": attempts, "control": control})
        for attempt in attempts:
            self.say("isolation", f"BMC from {attempt['from']}: {attempt['outcome']}")

    async def _drift(self) -> list[str]:
        """Somebody adds an account to the BMC; the loop has to find it and, by policy, remove it."""
        since = (await self._last_event()) or 0
        await self._intrude()
        self.say("drift", f"account {INTRUDER!r} was added to the BMC behind our back")
        found: list[str] = []
        deadline = time.monotonic() + 180.0
        async for view in self._views():
            states = [each.message for each in await self._store.events(since=since, server=self._server, limit=1000)]
            found = [text for text in states if INTRUDER in text or "remediat" in text]
            seen = any(INTRUDER in text for text in states) and any("-> active" in text for text in states)
            if view.status.state is ServerState.ACTIVE and seen:
                return found
            if time.monotonic() > deadline:
                raise NotCompleted("the drift was not found and remediated in 180 s", server=self._server)
        return found

    async def _rotate(self) -> None:
        """Nobody asks for it: for a moment the policy allows no password as old as the BMC's, and the schedule acts."""
        view = await self._view()
        before = view.facts.bmc_credential_since or 0.0
        if view.spec.policy is None:
            raise NotCompleted("it has no Policy, so no rotationInterval to shorten", server=self._server)
        declared = (await self._store.get("Policy", view.spec.policy)).resource
        age = f"{max(1, int(time.time() - before))}s"
        spec = msgspec.structs.replace(view.policy, rotation_interval=age)
        await self._store.apply([msgspec.structs.replace(declared, spec=spec)])
        try:
            await self._rotated(before)
        finally:
            await self._store.apply([declared])

    async def _rotated(self, before: float) -> None:
        deadline = time.monotonic() + 60.0
        async for view in self._views():
            if view.facts.bmc_credential_since != before:
                self.say("rotation", "the schedule gave the BMC a new password, and we logged in with it")
                return
            if time.monotonic() > deadline:
                raise NotCompleted("its BMC credential was not rotated in 60 s", server=self._server)

    async def _intrude(self) -> None:
        view = await self._view()
        door = RedfishDoor(await self._site.connector(view))
        credential = await self._site.slots(view).current()
        assert credential is not None
        await door.login(credential)
        try:
            await door.create(Credential(INTRUDER, "Intruder-2026-lab!"))
        finally:
            await door.close()

    async def _decommission(self) -> None:
        reason = "end of the sovereignty test"
        await self._store.record_intent(self._server, IntentKind.DECOMMISSION, by="prove", reason=reason)
        await self._until(ServerState.DECOMMISSIONING, quick=True)
        await self._until(ServerState.AVAILABLE)

    async def _until(self, target: ServerState, *, quick: bool = False) -> None:
        """Wait, showing what the server does and what it waits for."""
        shown, deadline = "", time.monotonic() + (30.0 if quick else PATIENCE[target])
        last = time.monotonic()
        async for view in self._views():
            status = view.status
            waits = f"waits for {status.waiting_for}" if status.waiting_for else ""
            doing = ", ".join(part for part in (status.step, waits) if part) or status.reason
            if status.retry_at is not None:
                doing = f"{status.step}: attempt {status.attempts} failed: {status.reason}"
            line = f"{status.state}: {doing}"
            if line != shown or time.monotonic() - last > 10:
                self.say(status.state, doing)
                shown, last = line, time.monotonic()
            if status.state is target:
                return
            await self._approve()
            if status.state is ServerState.QUARANTINED:
                raise NotCompleted(f"it is quarantined: {status.reason}", server=self._server)
            if status.stuck or time.monotonic() > deadline:
                raise NotCompleted(f"it is stuck in {status.state}: {doing}", server=self._server)

    async def _approve(self) -> None:
        """What waits for two people gets the signatures of two, as each of them would give it."""
        for asked in await self._store.approvals.list():
            lacking = [name for name in sorted(self._operators) if name not in asked.approved_by]
            for name in lacking[: max(0, THRESHOLD - len(asked.approved_by))]:
                envelope = approve(asked.request, self._operators[name])
                await self._store.approvals.sign(asked.request.id, envelope.to_bytes())
                self.say("approval", f"{name} signs {asked.request.act} for {asked.request.subject}")

    async def _view(self) -> ServerView:
        view = await self._store.ledger.view(self._server)
        if view is None:
            raise NotCompleted("it is not declared", server=self._server)
        return view

    async def _views(self) -> AsyncIterator[ServerView]:
        while True:
            yield await self._view()
            await asyncio.sleep(POLL)

    async def _last_event(self) -> int | None:
        since = None
        while page := await self._store.events(since=since or 0, server=self._server, limit=1000):
            since = page[-1].id
        return since
