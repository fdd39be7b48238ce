"""The door for agents: real software TPMs and the agent's own code over TLS, on the boots that were recorded."""

import asyncio
import dataclasses
import hashlib
import ssl
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from door_support import MAC, Door, agent_events, booted_tpm, ek_of
from site_support import SERVER, booted

from freehold.agent import blockdev, client
from freehold.agent.client import Agent, Refused, Unattested
from freehold.agent.session_key import SessionKey
from freehold.agent.tpm import Tpm, TpmError
from freehold.agent.wire import Connection
from freehold.model.resources import PolicySpec, Resource
from freehold.model.status import AgentSession, ImageFact, IntentKind, OrderState, ServerState
from freehold.orchestration import agent_door
from freehold.orchestration.agent_door import AgentDoor
from freehold.orchestration.controller import tls_context
from freehold.provisioning.agent_api import create_agent_app
from freehold.provisioning.agent_messages import (
    Admission,
    AgentRefusedError,
    Evidence,
    Hello,
    Progress,
    Result,
    Smbios,
    UnknownCertificateError,
)
from freehold.root_of_trust import pki, succession
from freehold.root_of_trust.attestation import session
from freehold.root_of_trust.attestation.event_log import parse_event_log, replay
from freehold.root_of_trust.attestation.quote import check_quote, check_values
from freehold.root_of_trust.attestation.reference import ReferenceState, ReferenceValues
from freehold.root_of_trust.attestation.structures import parse_public
from freehold.root_of_trust.keys import SiteKeys

sys.path += [str(Path(__file__).parents[1] / each) for each in ("agent", "provisioning")]
from agent_routes import guarded
from swtpm_support import Vendor, connect, running

UNKNOWN = "no live session has this certificate"


# ---- who is it


async def test_a_mac_that_nobody_declared_is_told_what_to_declare(door: Door) -> None:
    words = await door.refused(TpmError("none"), mac="52:54:00:ff:ff:ff")
    assert "the machine at 127.0.0.1 with MAC 52:54:00:ff:ff:ff is no declared server" in words
    assert "declare its NICs in exactly one Server document" in words
    assert await agent_events(door) == []


async def test_a_server_without_a_tpm_is_refused_and_people_see_it(door: Door) -> None:
    words = await door.refused(TpmError("none"))
    assert "it has no usable TPM 2.0" in words
    assert "fit or enable a TPM 2.0, then `freehold attest server-1`; or declare a Waiver of missing-tpm" in words
    assert len(await agent_events(door)) == 1
    assert await door.place.intents() == []


async def test_whoever_comes_again_and_again_fills_no_journal(door: Door) -> None:
    for _ in range(5):
        assert "it has no usable TPM 2.0" in await door.refused(TpmError("none"))
    assert len(await agent_events(door)) == 1


@pytest.mark.host
@pytest.mark.slow
async def test_a_tpm_without_an_ek_certificate_is_refused(trusting: Door, vendor: Vendor) -> None:
    with running(vendor.directory / "uncertified") as path:
        words = await trusting.refused(lambda: connect(path))
    assert "the TPM has no endorsement key certificate" in words
    assert "write the vendor's certificate into the TPM (NV index 0x01C00002)" in words
    assert len(await agent_events(trusting)) == 1


@pytest.mark.host
async def test_a_tpm_of_an_unknown_vendor_is_refused_with_the_directory_named(door: Door, own: Any) -> None:
    words = await door.refused(own)
    assert "unknown EK issuer CN=swtpm-localca" in words
    assert "if you trust this TPM vendor, put its CA certificates into the site's tpm-roots folder" in words
    assert str(door.place.site.directory) not in words  # whoever asks need not know our paths
    (event,) = await agent_events(door)
    assert "unknown EK issuer" in event
    assert "tpm-roots" in event


@pytest.mark.host
@pytest.mark.parametrize("state", [ServerState.DISCOVERING, ServerState.ACTIVE], ids=str)
async def test_cve_2025_13609_a_mac_with_another_tpm_is_never_rebound(
    trusting: Door, vendor: Vendor, own: Any, state: ServerState
) -> None:
    await trusting.place.establish(state, ek_sha256=ek_of(own))
    with booted_tpm(vendor, "other") as other:
        words = await trusting.refused(other)
        impostor = ek_of(other)
    assert f"a machine at 127.0.0.1 with this server's MAC address has another TPM ({impostor[:16]}…)" in words
    assert "if the mainboard was replaced, retire the server and declare it anew" in words
    assert len(await agent_events(trusting)) == 1
    view = await trusting.place.view()
    assert view.facts.ek_sha256 == ek_of(own)
    assert view.intents == ()  # anybody on the segment could have sent that
    assert view.agent is None
    (await trusting.comes(own)).controller.close()


@pytest.mark.host
async def test_a_tpm_is_its_server_whatever_mac_it_names(trusting: Door, own: Any) -> None:
    await trusting.place.establish(ServerState.DISCOVERING, ek_sha256=ek_of(own))
    (await trusting.comes(own, mac="52:54:00:12:34:20")).controller.close()  # server-2's
    assert (await trusting.place.view()).agent is not None


@pytest.mark.host
async def test_a_stranger_who_says_hello_just_before_the_binding_cannot_quarantine_the_server(
    trusting: Door, vendor: Vendor, own: Any
) -> None:
    await trusting.place.establish(ServerState.DISCOVERING)
    trusting.place.site.agent_image = dataclasses.replace(booted("agent"), pcr11=bytes(32))
    with booted_tpm(vendor, "other") as other:
        attest = trusting.door.attest

        async def bound_in_between(evidence: Evidence, *rest: Any) -> Admission:
            await trusting.place.establish(ek_sha256=ek_of(own))
            return await attest(evidence, *rest)

        trusting.door.attest = bound_in_between  # type: ignore[method-assign]
        words = await trusting.refused(other)
    assert "another TPM" in words
    assert await trusting.place.intents() == []


# ---- what did it boot


@pytest.mark.host
async def test_the_right_machine_gets_a_session_with_what_it_measured(trusting: Door, own: Any) -> None:
    agent = await trusting.comes(own)
    agent.controller.close()
    session = (await trusting.place.view()).agent
    assert session is not None
    assert (session.mode, session.boot_id) == ("ramdisk", "boot-1")
    assert session.details["ek_sha256"] == ek_of(own)
    assert session.details["ek_issuers"][-1] == "CN=swtpm-localca-rootca"
    assert set(session.details["reference"]) == {"0", "2"}
    name, server, claim = trusting.place.evidence.statements[session.details["attestation"]]
    assert (name, server, claim["trusted"], claim["reasons"]) == ("attestation", SERVER, True, [])
    assert claim["pcrs"]["4"]["status"] == "matched"
    assert claim["reference"] == "none yet"
    assert len(bytes.fromhex(claim["nonce"])) == 32
    assert claim["ak_name"].startswith("000b")
    assert (claim["tpm"]["banks"], claim["findings"]) == (["sha256"], [])
    assert claim["revoked_image"] is False
    assert datetime.fromisoformat(claim["expires"]) > datetime.now(UTC) + timedelta(hours=23)


async def attested_os(door: Door, own: Any) -> AgentSession:
    """The session of an OS that has just attested under our Secure Boot keys."""
    fact = ImageFact(name="debian", version="12.11", manifest="ab" * 32)
    await door.place.establish(ServerState.ATTESTING, secure_boot_enrolled=True, ek_sha256=ek_of(own), image=fact)
    agent = await door.comes(own, log="secure-boot", mode="os")
    agent.controller.close()
    session = (await door.place.view()).agent
    assert session is not None
    return session


@pytest.mark.host
async def test_after_enrolment_our_secure_boot_keys_and_the_reference_values_must_match(
    trusting: Door, vendor: Vendor
) -> None:
    place = trusting.place
    with booted_tpm(vendor, "own", "secure-boot") as own:
        session = await attested_os(trusting, own)
        wrong = session.details["reference"] | {"0": ("00" * 32,)}
        await place.establish(reference_values=wrong)
        words = await trusting.refused(own, log="secure-boot", mode="os")
    assert "PCR 0" in words
    assert [kind for kind, _ in await place.intents()] == [IntentKind.QUARANTINE]


@pytest.mark.host
async def test_revoked_measurements_vouch_for_nobody_not_even_for_a_server_that_learned_them(
    trusting: Door, vendor: Vendor
) -> None:
    place = trusting.place
    with booted_tpm(vendor, "own", "secure-boot") as own:
        session = await attested_os(trusting, own)
        measured = {pcr: tuple(digests) for pcr, digests in session.details["reference"].items()}
        await place.establish(ServerState.ATTESTING, reference_values=measured, reference_id=None)
        values = ReferenceValues(vendor="v", model="m", version="1", digests=measured)
        await place.store.references.propose(values, "advisory", "ann", 1.0)
        await place.store.references.withdraw(values.id, ReferenceState.REVOKED, 2.0)
        ((kind, why),) = await place.intents()  # it does not wait for the next attestation in the schedule
        assert (kind, why) == (IntentKind.ATTEST, f"the reference values {values.id} were revoked")
        words = await trusting.refused(own, log="secure-boot", mode="os")
    assert f"the reference values {values.id} were revoked" in words
    assert [kind for kind, _ in await place.intents()] == [IntentKind.ATTEST, IntentKind.QUARANTINE]


@pytest.mark.host
async def test_what_is_signed_of_a_revoked_image_says_that_it_is_revoked(trusting: Door, vendor: Vendor) -> None:
    """The quote is as it should be, so it is trusted; whoever shows it must not call it clean."""
    place = trusting.place
    digest = place.site.images["debian"].booted.authenticode.hex()
    place.site.keys.secure_boot.revoke(digest, "CVE-2026-1", datetime.now(UTC))
    with booted_tpm(vendor, "own", "secure-boot") as own:
        session = await attested_os(trusting, own)
    claim = place.evidence.statements[session.details["attestation"]][2]
    assert (claim["trusted"], claim["revoked_image"]) == (True, True)
    assert digest in claim["findings"][0]


@pytest.mark.host
async def test_each_server_is_held_against_the_keys_of_its_own_generation(trusting: Door, vendor: Vendor) -> None:
    """The site has rotated since; this server carries the first generation still, and is trusted by it."""
    place = trusting.place
    ring = place.site.keys.secure_boot
    ring.rotate("pk", "yearly", datetime.now(UTC))
    ring.rotate("db", "yearly", datetime.now(UTC))
    with booted_tpm(vendor, "own", "secure-boot") as own:
        fact = ImageFact(name="debian", version="12.11", manifest="ab" * 32)
        await place.establish(ServerState.ATTESTING, secure_boot_enrolled=True, ek_sha256=ek_of(own), image=fact)
        agent = await trusting.comes(own, log="secure-boot", mode="os")
        agent.controller.close()
        name, _, claim = place.evidence.statements[-2]
        assert (name, claim["policy"].rpartition("/")[2]) == ("attestation", "secure-boot-1")
        await place.establish(secure_boot_generation=2)
        words = await trusting.refused(own, log="secure-boot", mode="os")
    assert "PCR 7: PK" in words


@pytest.mark.host
async def test_while_its_keys_are_changed_a_server_is_refused_and_not_quarantined(trusting: Door, own: Any) -> None:
    await trusting.place.establish(ServerState.AVAILABLE, ek_sha256=ek_of(own), secure_boot_changing=True)
    assert "its Secure Boot keys are being changed" in await trusting.refused(own)
    assert await trusting.place.intents() == []


@pytest.mark.host
async def test_a_vault_that_lacks_the_server_s_generation_lets_nobody_in_and_quarantines_nobody(
    trusting: Door, own: Any
) -> None:
    await trusting.place.establish(
        ServerState.PROVISIONING, ek_sha256=ek_of(own), secure_boot_enrolled=True, secure_boot_generation=9
    )
    with pytest.raises(Refused, match="the controller failed"):
        await trusting.comes(own)
    assert await trusting.place.intents() == []


@pytest.mark.host
async def test_the_right_tpm_with_a_wrong_image_is_quarantined_with_the_pcr_named(trusting: Door, own: Any) -> None:
    await trusting.place.establish(ServerState.DISCOVERING, ek_sha256=ek_of(own), agent_booted_at=1.0)
    trusting.place.site.agent_image = dataclasses.replace(booted("agent"), pcr11=bytes(32))
    words = await trusting.refused(own)
    assert "it booted something else: PCR 11: the unified kernel image measured" in words
    assert "find out what booted; then `freehold release` the server" in words
    ((kind, reason),) = await trusting.place.intents()
    assert kind is IntentKind.QUARANTINE
    assert "PCR 11" in reason
    name, _, claim = trusting.place.evidence.statements[-1]
    assert (name, claim["trusted"], claim["pcrs"]["11"]["status"]) == ("attestation", False, "mismatched")
    engine = trusting.place.engine()
    await trusting.place.store.ledger.wake([SERVER])
    while (await trusting.place.view()).intents:
        await engine.round()
    assert (await trusting.place.view()).status.state is ServerState.QUARANTINED


@pytest.mark.host
async def test_what_no_server_is_bound_to_yet_is_evidence_too_once_and_quarantines_nobody(
    trusting: Door, own: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tampered boot during discovery must be more than an event."""
    await trusting.place.establish(ServerState.DISCOVERING, agent_booted_at=1.0)
    trusting.place.site.agent_image = dataclasses.replace(booted("agent"), pcr11=bytes(32))
    for _ in range(2):
        await trusting.refused(own)
    monkeypatch.setattr(agent_door, "DISTRUSTED_AN_HOUR", 1)
    real = blockdev.read_text

    def another_boot(path: str) -> str:
        return str(uuid4()) if path.endswith("boot_id") else real(path)

    monkeypatch.setattr(blockdev, "read_text", another_boot)
    await trusting.refused(own)
    ((_, server, claim),) = [each for each in trusting.place.evidence.statements if each[0] == "attestation"]
    assert (server, claim["trusted"], claim["ek_sha256"]) == (SERVER, False, ek_of(own))
    assert await trusting.place.intents() == []


@pytest.mark.host
async def test_an_auditor_can_verify_the_quote_again_from_what_was_kept(trusting: Door, own: Any) -> None:
    await trusting.place.establish(ServerState.DISCOVERING)
    agent = await trusting.comes(own)
    agent.controller.close()
    claim = next(claim for name, _, claim in trusting.place.evidence.statements if name == "attestation")
    kept = trusting.place.site.artifacts.all()
    raw = {name: kept[digest] for name, digest in claim["artifacts"].items()}
    assert set(raw) == {"ak", "ek_certificate", "quote", "signature", "event_log"}
    log = parse_event_log(raw["event_log"])
    ak, qualifying_data = parse_public(raw["ak"]), bytes.fromhex(claim["qualifying_data"])
    quote = check_quote(
        ak, raw["quote"], raw["signature"], qualifying_data=qualifying_data, selection=session.SELECTION
    )
    pcrs = {int(pcr): bytes.fromhex(one["value"]) for pcr, one in claim["pcrs"].items()}
    assert check_values(ak, quote, {"sha256": pcrs})
    assert not check_values(ak, quote, {"sha256": pcrs | {4: bytes(32)}})
    assert replay(log, "sha256")[4] == pcrs[4]


@pytest.mark.host
@pytest.mark.parametrize("booted_at", [None, 4e9])  # released, and not restarted yet; the hello came before the restart
async def test_what_runs_before_our_restart_is_refused_but_quarantines_nobody(
    trusting: Door, own: Any, booted_at: float | None
) -> None:
    await trusting.place.establish(ServerState.PROVISIONING, ek_sha256=ek_of(own), agent_booted_at=booted_at)
    trusting.place.site.agent_image = dataclasses.replace(booted("agent"), pcr11=bytes(32))
    words = await trusting.refused(own)
    assert "it booted something else: PCR 11" in words
    assert "it is about to be restarted" in words
    assert await trusting.place.intents() == []


@pytest.mark.host
async def test_a_tpm_whose_counters_went_back_is_quarantined_and_judged_by_a_person_once(
    trusting: Door, own: Any
) -> None:
    place = trusting.place
    await place.establish(ServerState.ACTIVE, ek_sha256=ek_of(own))
    for _ in range(2):
        (await trusting.comes(own)).controller.close()
    with own() as tpm:
        tpm.clear()  # nobody ordered it
    words = await trusting.refused(own)
    assert "the TPM's reset counters went back from" in words
    ((kind, reason),) = await place.intents()
    assert kind is IntentKind.QUARANTINE
    assert "reset counters went back" in reason
    claim = place.evidence.statements[-1][2]
    assert (claim["trusted"], claim["tpm"]["reset_count"]) == (False, 0)
    (await trusting.comes(own)).controller.close()


@pytest.mark.host
async def test_a_tpm_that_we_are_clearing_may_begin_anew(trusting: Door, own: Any) -> None:
    await trusting.place.establish(ServerState.DECOMMISSIONING, ek_sha256=ek_of(own))
    (await trusting.comes(own)).controller.close()
    with own() as tpm:
        tpm.clear()
    (await trusting.comes(own)).controller.close()
    assert await trusting.place.intents() == []


@pytest.mark.host
async def test_what_should_be_put_right_is_a_finding_when_the_tpm_is_bound(trusting: Door, vendor: Vendor) -> None:
    if not (vendor.directory / "two-banks").exists():
        vendor.make("two-banks", banks="sha256,sha384")
    place = trusting.place
    with booted_tpm(vendor, "two-banks") as tpm:
        await place.establish(ServerState.DISCOVERING, inband_inventory={"ek_sha256": ek_of(tpm)})
        (await trusting.comes(tpm)).controller.close()
        result = await place.step("bind_ek")
    (finding,) = result.findings
    assert (finding.kind, finding.subject) == ("pcr-banks", "sha384")
    assert finding.detail in place.evidence.statements[0][2]["findings"]


async def test_cve_2023_38200_who_connects_and_says_nothing_keeps_nobody_waiting(door: Door) -> None:
    """keylime's registrar served one TLS connection at a time, and a handshake that never came was one."""
    port = int(door.url.rpartition(":")[2])
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
    words = await asyncio.wait_for(door.refused(TpmError("none"), mac="52:54:00:ff:ff:ff"), 5.0)
    assert "is no declared server" in words
    for _, writer in silent:
        writer.close()


@pytest.mark.host
async def test_a_log_that_is_not_what_was_quoted_is_refused_but_quarantines_nobody(trusting: Door, own: Any) -> None:
    await trusting.place.establish(ServerState.DISCOVERING, ek_sha256=ek_of(own))
    words = await trusting.refused(own, log="secure-boot")
    assert "its attestation failed: the event log does not replay to the quoted PCR values" in words
    assert await trusting.place.intents() == []
    assert len(await agent_events(trusting)) == 1
    assert trusting.place.evidence.statements == []  # nobody's TPM signed it


@pytest.mark.host
async def test_a_quote_for_another_controllers_certificate_is_refused(
    trusting: Door, own: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    relayed_to = dict.fromkeys(trusting.door._shown, b"the certificate of the machine that is relayed to")
    monkeypatch.setattr(trusting.door, "_shown", relayed_to)
    words = await trusting.refused(own)
    assert "its attestation failed" in words
    assert await trusting.place.intents() == []


@pytest.mark.host
async def test_an_agent_of_a_former_agent_ca_attests_at_its_own_port_and_gets_a_certificate_of_todays_ca(
    trusting: Door, own: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the controller's new certificate is no certificate to it: it knows the old CA and nothing else."""
    site = trusting.place.site
    old_ca = site.keys.agent_ca.certificate_pem.decode()
    asked = succession.next_generation(site.vault, "agent-ca")
    succession.replace(site.directory, site.vault, "agent-ca", *asked, "stolen", pki.utc_now())
    site.keys = SiteKeys.load(site.directory, site.vault)
    new, (former,) = site.keys.controller_tls, site.keys.former_tls
    shown = (new.certificate_der, former.certificate_der)
    trusting.door = AgentDoor(site, trusting.place.store, trusting.place.evidence, *shown)
    monkeypatch.setattr(trusting, "trust", lambda: ssl.create_default_context(cadata=old_ca))
    for key in (new, former):
        app = create_agent_app(trusting, hashlib.sha256(key.certificate_der).digest())
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        tls = tls_context(key, clients=site.keys.agent_ca.certificate_pem)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        trusting.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        if key is new:
            with pytest.raises(ssl.SSLCertVerificationError):
                await trusting.comes(own)
        else:
            agent = await trusting.comes(own)
            assert trusting.certificates()[-1]["issuer"] == "CN=lab agent CA 2"
            await asyncio.to_thread(agent.controller.call, "GET", "/agent/v1/orders?wait=0")
            agent.controller.close()
        await runner.cleanup()


@pytest.mark.host
async def test_an_os_that_nobody_installed_is_refused(trusting: Door, own: Any) -> None:
    words = await trusting.refused(own, mode="os")
    assert "an installed OS speaks, but this server was given none" in words
    await trusting.place.establish(image=ImageFact(name="gone", version="1", manifest="cd" * 32))
    words = await trusting.refused(own, mode="os")
    assert "this controller does not keep the build that the server was given" in words
    assert "or decommission the server and assign it anew" in words


@pytest.mark.host
async def test_a_challenge_takes_one_answer(trusting: Door, own: Any) -> None:
    with own() as tpm:
        assert isinstance(tpm, Tpm)
        ek, ak = tpm.create_ek(), tpm.create_ak()
        smbios = Smbios(uuid=None, serial=None, vendor=None, product=None)
        hello = Hello(
            protocol=2,
            mode="ramdisk",
            boot_id="b",
            smbios=smbios,
            macs=[MAC],
            ek_public=ek.public,
            ek_certificate=tpm.ek_certificate(),
            ak_public=ak.public,
        )
        challenge = await trusting.door.hello(hello, "127.0.0.1")
    public = SessionKey().public
    empty = Evidence(
        session=challenge.session, secret=b"x", quote=b"x", signature=b"x", event_log=b"", public_key=public
    )
    with pytest.raises(AgentRefusedError, match="the credential's secret was not recovered"):
        await trusting.door.attest(empty, next(iter(trusting.door._shown)), "127.0.0.1")
    with pytest.raises(AgentRefusedError, match="this challenge is unknown or already spent") as refused:
        await trusting.door.attest(empty, next(iter(trusting.door._shown)), "127.0.0.1")
    assert "the agent says hello again" in str(refused.value)
    assert await trusting.place.intents() == []


# ---- what it may do


@pytest.fixture
async def inside(trusting: Door, own: Any) -> AsyncIterator[tuple[Door, Agent, str]]:
    """(door, an attested agent, the SHA-256 of its certificate)."""
    agent = await trusting.comes(own)
    yield trusting, agent, trusting.certificates()[-1]["sha256"]
    agent.controller.close()


@pytest.mark.host
async def test_an_order_is_delivered_until_its_result_is_in(inside: tuple[Door, Agent, str]) -> None:
    door, _, certificate = inside
    place = door.place
    assert await door.door.next_order(certificate, 0.0) is None
    given = await place.store.agents.order(SERVER, "write_image", "write_image", {"a": 1})
    for _ in range(2):
        order = await door.door.next_order(certificate, 5.0)
        assert order is not None
        assert (order.id, order.kind, order.args) == (given.id, "write_image", {"a": 1})
    await door.door.progress(certificate, given.id, Progress(done=1, total=4, unit="bytes", phase="write"))
    assert (await place.view()).orders["write_image"].progress == {"done": 1, "total": 4, "phase": "write"}
    result = Result(ok=True, result={"chunks": 4}, error=None)
    await door.door.result(certificate, given.id, result)
    kept = (await place.view()).orders["write_image"]
    assert (kept.state, kept.result) == (OrderState.DONE, {"chunks": 4})
    assert await door.door.next_order(certificate, 0.0) is None
    with pytest.raises(Exception, match=f"order {given.id} is over already, or not an order of this server"):
        await door.door.result(certificate, given.id, result)
    with pytest.raises(Exception, match="order nonsense is not an order of this server"):
        await door.door.progress(certificate, "nonsense", Progress(done=1, total=4, unit="bytes", phase="write"))


@pytest.mark.host
async def test_an_installed_os_neither_gets_nor_answers_orders(inside: tuple[Door, Agent, str]) -> None:
    """In the OS the tenant is root: it could call its own disks clean."""
    door, _, certificate = inside
    admitted = door.door._admitted._by_certificate
    admitted[certificate] = dataclasses.replace(admitted[certificate], mode="os")
    given = await door.place.store.agents.order(SERVER, "verify_sanitized/N0", "verify_sanitized", {})
    assert await door.door.next_order(certificate, 0.0) is None
    forged = Result(ok=True, result={"clean": True}, error=None)
    with pytest.raises(Exception, match="is not for an installed OS"):
        await door.door.result(certificate, given.id, forged)
    assert (await door.place.view()).orders["verify_sanitized/N0"].state is OrderState.PENDING


@pytest.mark.host
async def test_an_agent_that_waits_hears_the_bell(inside: tuple[Door, Agent, str]) -> None:
    door, _, certificate = inside
    waiting = asyncio.create_task(door.door.next_order(certificate, 20.0))
    await asyncio.sleep(0.05)
    await door.place.store.agents.order(SERVER, "inventory", "inventory", {})
    door.door.ring(SERVER)
    order = await asyncio.wait_for(waiting, 2.0)
    assert order is not None
    assert order.kind == "inventory"


@pytest.mark.host
async def test_after_a_restart_of_the_controller_the_agent_attests_again(inside: tuple[Door, Agent, str]) -> None:
    door, agent, certificate = inside
    door.fresh()
    with pytest.raises(UnknownCertificateError, match=UNKNOWN) as refused:
        await door.door.authenticate(certificate)
    assert "attest again" in str(refused.value)
    await asyncio.to_thread(agent.attest)
    assert door.certificates()[-1]["sha256"] != certificate
    await door.door.authenticate(door.certificates()[-1]["sha256"])


@pytest.mark.host
async def test_a_session_that_was_ended_is_worth_nothing_even_for_who_waits(inside: tuple[Door, Agent, str]) -> None:
    door, _, certificate = inside
    waiting = asyncio.create_task(door.door.next_order(certificate, 20.0))
    await asyncio.sleep(0.05)
    await door.door.end_session(SERVER)
    with pytest.raises(UnknownCertificateError, match=UNKNOWN):
        await asyncio.wait_for(waiting, 2.0)
    for call in (door.door.authenticate(certificate), door.door.next_order(certificate, 0.0)):
        with pytest.raises(UnknownCertificateError, match=UNKNOWN):
            await call


@pytest.mark.host
async def test_a_new_attestation_ends_the_older_session(inside: tuple[Door, Agent, str], own: Any) -> None:
    door, _, certificate = inside
    (await door.comes(own)).controller.close()
    with pytest.raises(UnknownCertificateError, match=UNKNOWN):
        await door.door.authenticate(certificate)


@pytest.mark.host
async def test_ready_counts_only_with_ssh(inside: tuple[Door, Agent, str]) -> None:
    door, agent, _ = inside
    body: dict[str, Any] = {"hostname": "web-1", "ssh_active": False, "secure_boot": True, "addresses": ["192.0.2.9"]}
    with pytest.raises(Refused, match="the OS is up but ssh is not") as refused:
        await asyncio.to_thread(agent.controller.call, "POST", "/agent/v1/ready", body)
    assert refused.value.status == 409
    assert "look at the server's console" in str(refused.value)
    session = (await door.place.view()).agent
    assert session is not None
    assert session.ready_at is None
    await asyncio.to_thread(agent.controller.call, "POST", "/agent/v1/ready", body | {"ssh_active": True})
    session = (await door.place.view()).agent
    assert session is not None
    assert session.ready_at is not None
    assert session.details["hostname"] == "web-1"
    assert session.details["attestation"] == 0  # what it proved stands beside what it says


# ---- who holds the key


def own_key(path: Path, issued: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Path:
    path.write_bytes(pki.pem(issued) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def ask(door: Door, shown: Path | None, method: str = "GET", path: str = "/agent/v1/orders?wait=0") -> int:
    """HTTP status of a call by somebody who shows this certificate; OSError if TLS fails."""
    context = door.trust()
    if shown is not None:
        context.load_cert_chain(shown)
    connection = Connection(door.url, context)
    try:
        return connection.request(method, path, body=b"{}" if method == "POST" else b"").status
    finally:
        connection.close()


@pytest.mark.host
async def test_a_certificate_is_for_the_client_of_one_session_for_a_day_at_most_and_in_the_log_first(
    trusting: Door, own: Any
) -> None:
    given: list[str] = []
    add = trusting.door._admitted.add

    def once_recorded(issued: x509.Certificate, *rest: Any) -> Admission:
        assert trusting.certificates()[-1]["sha256"] == pki.sha256(issued)
        given.append(pki.pem(issued).decode())
        return add(issued, *rest)

    trusting.door._admitted.add = once_recorded  # type: ignore[method-assign]
    (await trusting.comes(own)).controller.close()
    (claim,), session = trusting.certificates(), (await trusting.place.view()).agent
    assert session is not None
    issued = x509.load_pem_x509_certificate(given[0].encode())
    assert (claim["purpose"], claim["session"]) == ("agent", session.id)
    usage = issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    names = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [f"urn:freehold:server:{SERVER}:session:{session.id}"]
    assert issued.not_valid_after_utc - issued.not_valid_before_utc == timedelta(hours=24)
    attestation = trusting.place.evidence.statements[session.details["attestation"]][2]
    assert attestation["agent_spki_sha256"] == claim["spki_sha256"]


@pytest.mark.host
async def test_a_refusal_earns_no_certificate(trusting: Door, own: Any) -> None:
    await trusting.place.establish(ServerState.DISCOVERING, ek_sha256=ek_of(own), agent_booted_at=1.0)
    trusting.place.site.agent_image = dataclasses.replace(booted("agent"), pcr11=bytes(32))
    await trusting.refused(own)
    assert trusting.certificates() == []


@pytest.mark.host
async def test_cve_2026_1709_the_certificate_without_its_key_is_worth_nothing_on_any_route(
    inside: tuple[Door, Agent, str], tmp_path: Path
) -> None:
    """There is no token that could be stolen; the certificate itself is public, and a key of one's own does not fit."""
    door, agent, _ = inside
    assert await asyncio.to_thread(agent.controller.call, "GET", "/agent/v1/orders?wait=0") == {}
    site, now, key = door.place.site, datetime.now(UTC), ec.generate_private_key(ec.SECP256R1())
    again = site.issue_agent_certificate(key.public_key(), SERVER, "stolen", now, timedelta(hours=1))
    mine = own_key(tmp_path / "mine.pem", again, key)  # even of the right CA, and for this server
    routes = guarded(create_agent_app(door, bytes(32)))
    for route in routes:
        assert await asyncio.to_thread(ask, door, mine, *route) == 401, route
        assert await asyncio.to_thread(ask, door, None, *route) == 401, route
    session = (await door.place.view()).agent
    assert session is not None
    assert session.ready_at is None
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"agent {session.id}")])
    forged = (
        x509.CertificateBuilder(named, named, key.public_key(), 1, now - timedelta(hours=1), now + timedelta(hours=1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
        .sign(key, hashes.SHA256())
    )
    tls = site.keys.controller_tls  # of the agent CA too, and for a server
    controller = tmp_path / "controller.pem"
    controller.write_bytes(tls.private_pem + tls.certificate_pem)
    for shown in (own_key(tmp_path / "forged.pem", forged, key), controller):
        for route in routes:
            with pytest.raises(OSError):
                await asyncio.to_thread(ask, door, shown, *route)
    assert await asyncio.to_thread(agent.controller.call, "GET", "/agent/v1/orders?wait=0") == {}


@pytest.mark.host
@pytest.mark.slow
async def test_a_session_ends_with_its_certificate_on_a_connection_that_stays_open(trusting: Door, own: Any) -> None:
    name, policy = "brief", PolicySpec(attestation_interval="2s")
    spec = (await trusting.place.view()).spec
    brief = [Resource(kind="Policy", name=name, spec=policy)]
    brief += [Resource(kind="Server", name=SERVER, spec=msgspec.structs.replace(spec, policy=name))]
    await trusting.place.store.apply(brief)
    agent = await trusting.comes(own)
    assert await asyncio.to_thread(agent.controller.call, "GET", "/agent/v1/orders?wait=0") == {}
    await asyncio.sleep(2.1)
    with pytest.raises(Unattested):
        await asyncio.to_thread(agent.controller.call, "GET", "/agent/v1/orders?wait=0")
    agent.controller.close()
    with pytest.raises(Unattested):  # and a new connection fails for ever, which is no failure of the network
        await asyncio.to_thread(agent.controller.call, "GET", "/agent/v1/orders?wait=0")
    await asyncio.to_thread(agent.attest)
    assert await asyncio.to_thread(agent.controller.call, "GET", "/agent/v1/orders?wait=0") == {}
    agent.controller.close()


@pytest.mark.host
async def test_a_key_of_another_kind_is_refused(trusting: Door, own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    form = PublicFormat.SubjectPublicKeyInfo
    other = ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(Encoding.DER, form)
    monkeypatch.setattr(client, "SessionKey", lambda: SimpleNamespace(public=other))
    words = await trusting.refused(own)
    assert "the agent's public key is not one of P-256" in words
    assert trusting.certificates() == []
