"""A machine without a TPM at the agents' door: only by the ticket of this boot, under a waiver, if no TPM was known."""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from door_support import MAC, Door, agent_events, ek_of
from site_support import SERVER, Place

from freehold.agent import ticket as tickets
from freehold.agent.client import Agent, Refused
from freehold.agent.tpm import TpmError
from freehold.evidence import Ed25519Signer
from freehold.model.documents import load_documents
from freehold.model.resources import Waivable
from freehold.model.status import ImageFact, ServerState
from freehold.orchestration.planner import next_step
from freehold.orchestration.waivers import ActiveWaiver
from freehold.provisioning.agent_messages import AgentRefusedError, Entry, Smbios
from freehold.provisioning.ticket_shelf import medium
from freehold.root_of_trust.operators import approve

NONE = TpmError("none")
TICKET, OTHER = b"t" * 32, b"o" * 32
WAIVER = """
apiVersion: freehold/v1
kind: Waiver
metadata: {name: no-chip}
spec: {server: server-1, finding: missing-tpm, expires: "EXPIRES", reason: an old board}
"""
SECOND_MAC = "52:54:00:12:34:20"


async def waive(place: Place, expires: str = "2099-01-01") -> None:
    people = {name: Ed25519Signer.generate() for name in ("ann", "bob")}
    await place.store.approvals.found({name: key.public_key for name, key in people.items()}, 1.0)
    await place.store.apply(load_documents(WAIVER.replace("EXPIRES", expires), "waiver.yaml"))
    for asked in await place.store.approvals.list():
        for key in people.values():
            await place.store.approvals.sign(asked.request.id, approve(asked.request, key).to_bytes())


async def boot(door: Door, ticket: bytes = TICKET, state: ServerState = ServerState.DISCOVERING) -> None:
    """As `boot_agent` leaves it."""
    kept = hashlib.sha256(ticket).hexdigest()
    await door.place.establish(state, boot_ticket=kept, agent_booted_at=time.time() - 10)


def machine(door: Door, ticket: bytes | None, *, boot_id: str = "boot-1", **how: Any) -> Agent:
    """A machine without a TPM, with the ticket's medium in its virtual CD; `root` of it is a directory."""
    agent = door.agent(NONE, **how)
    root = Path(agent.root)
    (root / "proc/sys/kernel/random/boot_id").write_text(boot_id + "\n")
    (root / "sys/block/sr0").mkdir(parents=True, exist_ok=True)
    (root / "dev").mkdir(exist_ok=True)
    (root / "dev/sr0").write_bytes(medium(b"an ISO" * 1000, ticket) if ticket is not None else b"another medium")
    return agent


def enters(agent: Agent) -> None:
    try:
        agent.attest()
    finally:
        agent.controller.close()


async def turned_away(door: Door, ticket: bytes | None = TICKET, **how: Any) -> str:
    with pytest.raises(Refused) as refusal:
        await in_thread(machine(door, ticket, **how))
    assert refusal.value.status == 403
    assert not [name for name, _, _ in door.place.evidence.statements if name in ("admission", "certificate")]
    return str(refusal.value)


async def in_thread(agent: Agent) -> None:
    import asyncio

    await asyncio.to_thread(enters, agent)


async def test_the_ticket_of_this_boot_lets_it_in_and_the_log_does_not_call_it_an_attestation(door: Door) -> None:
    await waive(door.place)
    await boot(door)
    await in_thread(machine(door, TICKET))
    session = (await door.place.view()).agent
    assert session is not None
    assert session.by_ticket
    assert not {"ek_sha256", "attestation"} & set(session.details)
    said = {name: claim for name, _, claim in door.place.evidence.statements}
    assert "attestation" not in said
    admission = said["admission"]
    assert (admission["attested"], admission["method"], admission["finding"]) == (False, "ticket", "missing-tpm")
    assert (admission["name"], admission["approved_by"]) == ("no-chip", ("ann", "bob"))
    assert admission["agent_spki_sha256"] == said["certificate"]["spki_sha256"]


async def test_no_secret_is_where_people_look(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    await waive(door.place)
    await boot(door)
    await in_thread(machine(door, TICKET))
    await boot(door, OTHER)
    with pytest.raises(Refused):
        await in_thread(machine(door, TICKET))
    view = await door.place.view()
    seen = msgspec.json.encode([view, door.place.evidence.statements]).decode() + await door.place.said() + caplog.text
    assert TICKET.hex() not in seen
    assert TICKET.decode() not in seen


async def test_it_comes_again_with_the_same_ticket_after_a_restart_of_the_controller(door: Door) -> None:
    await waive(door.place)
    await boot(door)
    agent = machine(door, TICKET)
    await in_thread(agent)
    (Path(agent.root) / "dev/sr0").write_bytes(b"")  # the medium is gone by then
    door.fresh()
    await in_thread(agent)


@pytest.mark.parametrize(
    ("ticket", "words"),
    [(OTHER, "shows a ticket that is not of this boot"), (None, "it has no usable TPM 2.0, and shows no ticket")],
)
async def test_another_ticket_or_none_does_not(door: Door, ticket: bytes | None, words: str) -> None:
    await waive(door.place)
    await boot(door)
    assert words in await turned_away(door, ticket)
    assert any(words in event for event in await agent_events(door))


async def test_the_ticket_of_an_earlier_boot_does_not(door: Door) -> None:
    await waive(door.place)
    await boot(door)
    await boot(door, OTHER)
    assert "not of this boot" in await turned_away(door)
    await door.place.establish(boot_ticket=None)  # the agent was released
    assert "not of this boot" in await turned_away(door)


async def test_a_ticket_that_was_used_by_one_boot_is_refused_to_another_and_people_see_it(door: Door) -> None:
    await waive(door.place)
    await boot(door)
    await in_thread(machine(door, TICKET))
    with pytest.raises(Refused, match="which another machine or boot has used already"):
        await in_thread(machine(door, TICKET, boot_id="boot-2"))
    assert any("somebody has copied it" in event for event in await agent_events(door))
    await in_thread(machine(door, TICKET))


async def test_a_ticket_is_of_one_server(door: Door) -> None:
    await waive(door.place)
    await boot(door)
    assert "it has no usable TPM 2.0, and no waiver holds" in await turned_away(door, mac=SECOND_MAC)
    assert (await door.place.view()).agent is None


@pytest.mark.parametrize("state", [ServerState.DISCOVERING, ServerState.PREPARING, ServerState.DECOMMISSIONING])
@pytest.mark.slow
async def test_a_server_whose_tpm_is_known_never_comes_in_by_ticket(door: Door, state: ServerState) -> None:
    """The downgrade: whoever hides the TPM, or stands beside it, with ticket and waiver in his hands."""
    await waive(door.place)
    await boot(door, state=state)
    await door.place.establish(state, ek_sha256="e" * 64)
    assert "and its TPM (eeeeeeeeeeeeeeee…) is known: nothing else lets it in" in await turned_away(door)
    os_ticket = hashlib.sha256(TICKET).hexdigest()
    image = ImageFact(name="debian", version="12", manifest="ab" * 32)
    await door.place.establish(ServerState.ACTIVE, os_ticket=os_ticket, image=image)
    with pytest.raises(AgentRefusedError, match="nothing else lets it in"):
        await door.door.enter(entry("os"), "127.0.0.1")
    assert "is known: nothing else lets it in" in await turned_away(door, None)
    assert (await door.place.view()).agent is None


def entry(mode: str = "ramdisk", **changes: Any) -> Entry:
    from freehold.agent.session_key import SessionKey

    nobody = Smbios(uuid=None, serial=None, vendor=None, product=None)
    given: dict[str, Any] = {"protocol": 2, "mode": mode, "boot_id": "boot-1", "smbios": nobody, "macs": [MAC]}
    return Entry(**(given | {"ticket": TICKET, "public_key": SessionKey().public} | changes))


async def test_no_waiver_no_entry(door: Door) -> None:
    await boot(door)
    assert "no waiver holds" in await turned_away(door)


async def test_a_waiver_that_nobody_signed_or_that_has_ended_or_is_withdrawn_lets_nobody_in(door: Door) -> None:
    await boot(door)
    await door.place.store.apply(load_documents(WAIVER.replace("EXPIRES", "2099-01-01"), "waiver.yaml"))
    assert "no waiver holds" in await turned_away(door)
    await waive(door.place, "2020-01-01")
    assert "no waiver holds" in await turned_away(door)


async def test_a_waiver_that_is_withdrawn_lets_nobody_in_again(door: Door) -> None:
    await waive(door.place)
    await boot(door)
    await in_thread(machine(door, TICKET))
    await door.place.store.delete("Waiver", "no-chip")
    with pytest.raises(Refused, match="no waiver holds"):
        await in_thread(machine(door, TICKET))


async def test_the_certificate_ends_with_the_waiver(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    soon = ActiveWaiver(
        name="w", finding=Waivable.TPM, reason="r", expires=time.time() + 60, approved_by=("ann", "bob")
    )
    await boot(door)
    real = door.place.store.ledger.views

    async def waived(names: Sequence[str]) -> Any:
        return {name: msgspec.structs.replace(view, waivers=(soon,)) for name, view in (await real(names)).items()}

    monkeypatch.setattr(door.place.store.ledger, "views", waived)
    assert 50 < (await door.door.enter(entry(), "127.0.0.1")).valid_for <= 60


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"secure_boot_changing": True}, "its Secure Boot keys are being changed"),
        ({"state": ServerState.QUARANTINED}, "it is in quarantine, and a ticket proves nothing"),
    ],
)
async def test_what_holds_an_attestation_up_holds_a_ticket_up(door: Door, facts: dict[str, Any], words: str) -> None:
    await waive(door.place)
    await boot(door)
    await door.place.establish(**({"state": ServerState.DISCOVERING} | facts))
    assert words in await turned_away(door)


async def test_the_os_comes_by_the_ticket_on_its_disk_and_by_no_other(door: Door) -> None:
    await waive(door.place)
    await boot(door)
    with pytest.raises(AgentRefusedError, match="an installed OS speaks, but this server was given none"):
        await door.door.enter(entry("os"), "127.0.0.1")
    image = ImageFact(name="debian", version="12", manifest="ab" * 32)
    await door.place.establish(ServerState.ATTESTING, image=image, os_ticket=hashlib.sha256(OTHER).hexdigest())
    with pytest.raises(AgentRefusedError, match="not of this boot"):
        await door.door.enter(entry("os"), "127.0.0.1")
    await door.door.enter(entry("os", ticket=OTHER), "127.0.0.1")
    await door.door.enter(entry("os", ticket=OTHER, boot_id="boot-2"), "127.0.0.1")  # its tenant restarted it
    with pytest.raises(AgentRefusedError, match="not of this boot"):
        await door.door.enter(entry("ramdisk", ticket=OTHER), "127.0.0.1")


async def test_that_there_is_no_tpm_stops_the_server_and_replaces_nobody_who_speaks_for_it(door: Door) -> None:
    await door.place.establish(ServerState.DISCOVERING, agent_booted_at=time.time() - 10, oob_inventory={"tpm": None})
    await turned_away(door, None)
    view = await door.place.view()
    assert view.agent is not None
    assert view.agent.no_tpm
    assert getattr(next_step(view, time.time()), "step", None) == "require_tpm"
    trusted = await door.place.speak("ramdisk", details={"ek_sha256": "e" * 64})
    await turned_away(door, None)
    assert (await door.place.view()).agent == trusted


@pytest.mark.host
@pytest.mark.slow
async def test_a_tpm_that_turns_up_at_a_server_that_goes_without_is_not_bound_in_passing(
    trusting: Door, own: Any
) -> None:
    """Else a stranger's TPM could be the server's for as long as the waiver lasts. The server's own agent, which has
    the ticket as well, goes on by that."""
    await waive(trusting.place)
    await boot(trusting)
    await trusting.place.establish(ServerState.DECOMMISSIONING, tpm_waived=True)
    assert "it has a TPM now, and goes without one by a waiver" in await trusting.refused(own)
    agent = trusting.agent(own)
    (Path(agent.root) / "sys/block/sr0").mkdir(parents=True)
    (Path(agent.root) / "dev").mkdir()
    (Path(agent.root) / "dev/sr0").write_bytes(tickets.record(TICKET))
    await in_thread(agent)
    session = (await trusting.place.view()).agent
    assert session is not None
    assert session.by_ticket


@pytest.mark.host
async def test_under_a_waiver_a_tpm_that_is_there_after_all_attests_and_needs_no_ticket(
    trusting: Door, own: Any
) -> None:
    await waive(trusting.place)
    await boot(trusting)
    (await trusting.comes(own)).controller.close()
    session = (await trusting.place.view()).agent
    assert session is not None
    assert session.details["ek_sha256"] == ek_of(own)
    assert SERVER
