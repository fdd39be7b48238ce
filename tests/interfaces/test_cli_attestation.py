"""`freehold attest`: a demand, what came of it, and the verdict as the log has it."""

import threading
import time
from pathlib import Path

import pytest
from cli_support import Shell

from freehold.evidence import Predicate, Statement, Subject
from freehold.model.status import AgentSession, Facts, IntentKind, ServerState, ServerStatus
from freehold.orchestration.decisions import Refuse
from freehold.orchestration.opening import open_log, open_vault
from freehold.orchestration.planner import next_step
from freehold.orchestration.store import Store
from freehold.root_of_trust.keys import SiteKeys

S = ServerState
CLAIM = {
    "server": "server-1",
    "mode": "os",
    "trusted": True,
    "reasons": [],
    "findings": ["the bank sha1 is active and the firmware does not measure into it"],
    "policy": "debian-12@ab/secure-boot-1",
    "expires": "2027-01-01T00:00:00+00:00",
    "pcrs": {"4": {"value": "ab" * 32, "status": "matched"}, "1": {"value": "cd" * 32, "status": "recorded"}},
}


def status(state: S, **rest: object) -> ServerStatus:
    return ServerStatus(state=state, state_since=time.time(), **rest)  # type: ignore[arg-type]


def record(state: Path, **changes: object) -> int:
    keys = SiteKeys.create(state, open_vault(state), "lab", ["172.30.2.2"], bmc_networks=["172.30.1.0/24"])
    with open_log(state, "lab", keys) as log:
        return log.append(
            Statement.claim(Predicate.ATTESTATION, [Subject.of_name("server/server-1")], CLAIM | changes)
        ).index


def soon(site: Shell, answer: object) -> threading.Thread:
    """What the controller does, as soon as the demand is in the store."""

    async def work(store: Store) -> None:
        while not (view := await store.ledger.view("server-1")) or not view.intents:
            time.sleep(0.05)
        await answer(store)  # type: ignore[operator]

    thread = threading.Thread(target=lambda: site.store(work))
    thread.start()
    return thread


async def settle(store: Store, facts: ServerStatus) -> None:
    """As the engine answers whatever `next_step` decides of the demand."""
    from freehold.orchestration.ledger import Completion

    now = time.time()
    await store.ledger.enter("engine", now, 60.0)
    await store.ledger.wake(["server-1"])
    (claim,) = [each for each in await store.ledger.claim("engine", now + 1, 9) if each.server == "server-1"]
    view = await store.ledger.view("server-1")
    assert view is not None
    decision = next_step(view, now)
    handled = (decision.intent, "attested") if hasattr(decision, "outcome") else None  # type: ignore[union-attr]
    if isinstance(decision, Refuse):
        handled = (decision.intent, decision.reason)
    await store.ledger.complete(claim, Completion(status=facts, next_due=None, handled=handled), now)


def attesting(site: Shell, index: int) -> threading.Thread:
    """The OS attests as entry `index` of the log says."""

    async def attests(store: Store) -> None:
        now = time.time()
        given = {"mode": "os", "boot_id": "b", "started": now, "last_seen": now, "attested_at": now}
        await store.agents.put_session("server-1", AgentSession(id="s", details={"attestation": index}, **given))  # type: ignore[arg-type]
        await settle(store, status(S.ACTIVE))

    return soon(site, attests)


def test_the_verdict_is_shown_as_the_log_has_it(site: Shell) -> None:
    site.set_status("server-1", status(S.ACTIVE))
    index = record(site.state)
    controller = attesting(site, index)
    shown = site("attest", "server-1", "--reason", "audit", "--wait", "--timeout", "20")
    controller.join()
    assert shown.code == 0, shown
    assert "server-1: trusted at " in shown.out
    assert f"held against debian-12@ab/secure-boot-1; entry {index} of the evidence log" in shown.out
    assert "finding: the bank sha1 is active" in shown.out
    assert f"4     matched    {'ab' * 32}" in shown.out


def test_a_revoked_image_is_not_shown_as_clean(site: Shell) -> None:
    site.set_status("server-1", status(S.ACTIVE))
    controller = attesting(site, record(site.state, revoked_image=True))
    shown = site("attest", "server-1", "--reason", "audit", "--wait", "--timeout", "20")
    controller.join()
    assert "trusted, but of an image that the newest Secure Boot keys refuse, at " in shown.out


def test_a_ticket_is_not_shown_as_an_attestation(site: Shell) -> None:
    site.set_status("server-1", status(S.DISCOVERING))

    async def enters(store: Store) -> None:
        now = time.time()
        given = {"mode": "ramdisk", "boot_id": "b", "started": now, "last_seen": now, "attested_at": now}
        session = AgentSession(id="s", details={"ticket": "t" * 64, "admission": 1}, **given)  # type: ignore[arg-type]
        await store.agents.put_session("server-1", session)
        await settle(store, status(S.DISCOVERING))

    controller = soon(site, enters)
    shown = site("attest", "server-1", "--wait", "--timeout", "20")
    controller.join()
    assert shown.code == 1
    assert "there was no attestation: it has no TPM, and goes without by a waiver" in shown.err


def test_quarantine_is_a_no(site: Shell) -> None:
    site.set_status("server-1", status(S.ACTIVE))
    wrong = status(S.QUARANTINED, reason="it booted something else: PCR 4")
    controller = soon(site, lambda store: settle(store, wrong))
    shown = site("attest", "server-1", "--wait", "--timeout", "20", "-o", "json")
    controller.join()
    assert shown.code == 3
    assert shown.error()["what"] == "it is in quarantine: it booted something else: PCR 4"


def test_silence_ends_with_the_time(site: Shell) -> None:
    site.set_status("server-1", status(S.ACTIVE))
    late = site("attest", "server-1", "--wait", "--timeout", "0.1")
    assert late.code == 1
    assert "after 0.1 s not yet a new attestation: server-1 is active" in late.err
    view = site.store(lambda store: store.ledger.view("server-1"))
    assert view is not None
    assert [intent.kind for intent in view.intents] == [IntentKind.ATTEST]


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (status(S.AVAILABLE), "nothing that could attest runs on a server that is available now"),
        (status(S.PREPARING, facts=Facts(learned_reference={})), "on a server that is preparing now"),
        (status(S.QUARANTINED), "`freehold release` it"),
        (status(S.ACTIVE, facts=Facts(tpm_waived=True)), "it has no TPM, and goes without by a waiver"),
    ],
)
def test_what_cannot_attest_is_refused_and_nothing_is_recorded(site: Shell, now: ServerStatus, says: str) -> None:
    site.set_status("server-1", now)
    refused = site("attest", "server-1")
    assert refused.code == 1
    assert says in refused.err
    view = site.store(lambda store: store.ledger.view("server-1"))
    assert view is not None
    assert view.intents == ()
