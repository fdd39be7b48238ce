"""A certificate of the site's CA on the lab's BMC, over TLS: installed, renewed, cut off anywhere, and taken away."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from cryptography import x509
from site_support import SERVER, Place, a_place, bmc, https_with, place_at

from freehold.evidence import Ed25519Signer
from freehold.model.resources import Waivable
from freehold.model.status import IntentKind, PendingCertificate, ServerState
from freehold.orchestration import bmc_keys
from freehold.orchestration.site import bmc_identity
from freehold.orchestration.step import StepResult
from freehold.orchestration.waivers import ActiveWaiver
from freehold.out_of_band import certificates as oob_certificates
from freehold.out_of_band.certificates import CertificateStep, next_certificate_step
from freehold.out_of_band.errors import BmcUnreachable, NotSupported
from freehold.out_of_band.posture import read_accounts
from freehold.out_of_band.transport import ServerIdentity, fetch_identity, unrecognised
from freehold.root_of_trust import authorities, pki
from freehold.root_of_trust.keys import recertify
from freehold.root_of_trust.operators import approve
from freehold_lab.bmc.memory import MemoryHardware, example_info
from freehold_lab.bmc.tls import restore_factory_certificate


@pytest.fixture
async def pinned(tmp_path: Path) -> AsyncIterator[Place]:
    """server-1 before the step: its factory key is pinned, its account is ours."""
    async with a_place(tmp_path) as place:
        for step in ("pin_identity", "take_over_credential"):
            assert (await place.step(step)).done
        yield place


async def served(place: Place) -> ServerIdentity:
    return await fetch_identity((await place.view()).spec.bmc.address)


@contextlib.contextmanager
def nothing_reaches(place: Place) -> Iterator[None]:
    """No request of whatever kind gets through TLS in here."""
    place.hardware.faults.bmc_errors = 1000
    yield
    assert place.hardware.faults.bmc_errors == 1000
    place.hardware.faults.bmc_errors = 0


async def restart(place: Place) -> None:
    """The BMC itself, by its own switch; back when it serves again."""
    before = place.hardware.faults.bmc_errors
    place.hardware.faults.bmc_errors = 0
    async with place.own_bmc() as client:
        await oob_certificates.restart_bmc(client)
    place.hardware.faults.bmc_errors = before
    await asyncio.sleep(0.3)
    for _ in range(50):
        await asyncio.sleep(0.1)
        with contextlib.suppress(BmcUnreachable):
            await served(place)
            return
    raise AssertionError("the BMC did not come back")


async def test_a_bmc_gets_a_certificate_and_only_the_sites_ca_counts_then(pinned: Place) -> None:
    factory = await served(pinned)
    result = await pinned.finish("install_certificate")
    assert result.done
    now, facts = await served(pinned), (await pinned.view()).facts
    certificate = x509.load_pem_x509_certificate(now.certificate_pem.encode())
    ca = authorities.bmc_ca(pinned.site.vault).certificate
    certificate.verify_directly_issued_by(ca)
    assert now.spki_sha256 != factory.spki_sha256
    assert [str(address) for address in pki.served_addresses(certificate)] == ["127.0.0.1"]
    assert facts.bmc_certificate is not None
    assert facts.bmc_certificate.sha256 == pki.sha256(certificate)
    assert facts.bmc_certificate.not_after == certificate.not_valid_after_utc.timestamp()
    assert facts.bmc_certificate_pending is None
    identity = bmc_identity(pinned.site.vault, await pinned.view())
    assert identity.spki_sha256 is None
    old = x509.load_pem_x509_certificate(factory.certificate_pem.encode())
    assert unrecognised(pki.der(old), identity, "127.0.0.1", datetime.now(UTC))
    async with pinned.own_bmc() as client:
        assert await read_accounts(client)
    ((name, claim),) = result.statements
    assert (name, claim["serial"]) == ("bmc-identity", facts.bmc_certificate.serial)


async def test_the_certificate_is_in_the_log_before_the_bmc_hears_of_it(pinned: Place) -> None:
    factory = await served(pinned)
    result = await pinned.step("install_certificate")
    ((name, claim),) = result.statements
    pending = result.facts["bmc_certificate_pending"]
    issued = x509.load_pem_x509_certificate(pending.pem.encode())
    assert (name, claim["event"], claim["purpose"]) == ("certificate", "issued", "BMC")
    assert int(claim["serial"], 16) == issued.serial_number
    assert await served(pinned) == factory
    assert not result.done


async def test_a_renewal_is_a_new_key_and_a_new_certificate(pinned: Place) -> None:
    await pinned.finish("install_certificate")
    first, facts = await served(pinned), (await pinned.view()).facts
    assert (await pinned.finish("renew_certificate")).done
    second = await served(pinned)
    assert second.spki_sha256 != first.spki_sha256
    assert facts.bmc_certificate != (await pinned.view()).facts.bmc_certificate


@pytest.mark.parametrize("cut_off", [1, 2, 3])
@pytest.mark.parametrize("step", ["install_certificate", "renew_certificate"])
@pytest.mark.slow
async def test_cut_off_after_each_side_effect_it_goes_on(pinned: Place, step: str, cut_off: int) -> None:
    """The engine dies after the side effect: what the step established is not written."""
    if step == "renew_certificate":
        await pinned.finish("install_certificate")
    before = await served(pinned)
    for _ in range(cut_off - 1):
        await pinned.step(step)
    known = (await pinned.view()).facts
    await pinned.step(step)
    await pinned.establish(**{name: getattr(known, name) for name in ("bmc_certificate", "bmc_certificate_pending")})
    assert (await pinned.finish(step)).done
    assert (await served(pinned)).spki_sha256 != before.spki_sha256
    async with pinned.own_bmc() as client:
        assert await read_accounts(client)


@pytest.mark.parametrize("moment", [0, 1, 2])
@pytest.mark.slow
async def test_a_bmc_that_reboots_in_the_middle_is_still_the_same_bmc(pinned: Place, moment: int) -> None:
    for _ in range(moment):
        assert not (await pinned.step("install_certificate")).done
    await restart(pinned)
    assert (await pinned.finish("install_certificate")).done


async def test_a_bmc_that_is_away_is_waited_for(tmp_path: Path) -> None:
    hardware = MemoryHardware(example_info())
    async with contextlib.AsyncExitStack() as stack:
        async with bmc(tmp_path / "bmc", hardware) as port:
            place = await stack.enter_async_context(place_at(tmp_path, hardware, f"127.0.0.1:{port}"))
            for step in ("pin_identity", "take_over_credential", "install_certificate"):
                await place.step(step)
        with pytest.raises(BmcUnreachable):
            await place.step("install_certificate")
        async with bmc(tmp_path / "bmc", hardware, port=port):
            assert (await place.finish("install_certificate")).done


async def test_a_bmc_that_forgot_its_key_is_asked_for_another_one(pinned: Place, tmp_path: Path) -> None:
    await pinned.step("install_certificate")
    (tmp_path / "bmc/https-request-key.pem").unlink()
    result = await pinned.step("install_certificate")
    assert (result.done, result.retry_after) == (False, 60.0)
    assert "it refused the certificate that it had asked for" in result.findings[0].detail
    assert "Waiver of bmc-certificate" in result.findings[0].remedy
    done = await pinned.finish("install_certificate")
    assert done.done
    assert done.resolved == ("bmc-certificate",)


async def test_a_bmc_that_serves_its_certificate_only_after_a_restart_is_restarted(
    pinned: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oob_certificates, "APPLY_PATIENCE", 0.0)
    pinned.hardware.faults.certificate_waits = True
    results: list[StepResult] = []
    for _ in range(100):
        with contextlib.suppress(BmcUnreachable):
            results.append(await pinned.step("install_certificate"))
            if results[-1].done:
                break
        await asyncio.sleep(0.05)
    assert results[-1].done
    restarted = [each.facts["bmc_certificate_pending"].restarted_at for each in results if len(each.facts) == 1]
    assert sum(at is not None for at in restarted) == 1


async def two_sign(place: Place, key: str) -> str:
    """A request for another BMC key, with two operators' signatures."""
    people = {name: Ed25519Signer.generate() for name in ("ann", "bob")}
    await place.store.approvals.found({name: each.public_key for name, each in people.items()}, 1.0)
    request = bmc_keys.request_of(await place.view(), key, by="ann", reason="set back", at=time.time())
    await place.store.approvals.ask(request)
    for signer in people.values():
        await place.store.approvals.sign(request.id, approve(request, signer).to_bytes())
    return request.id


async def test_another_address_in_the_document_gets_nothing_whatever_certificate_is_there(pinned: Place) -> None:
    """A certificate of the site's CA for that address is not enough: another server's BMC may have had one there."""
    await pinned.finish("install_certificate")
    before = (await pinned.view()).spec.bmc
    await pinned.declare(bmc=msgspec.structs.replace(before, address="172.30.1.99"))
    for step in ("disable_ipmi", "rotate_credential", "check_drift"):
        with nothing_reaches(pinned):
            result = await pinned.step(step)
        assert result.quarantine is not None, step
        assert f"was pinned at {before.address}, and its document now says 172.30.1.99" in result.quarantine


async def test_another_fingerprint_in_the_document_is_not_sent_the_password(pinned: Place) -> None:
    declared = msgspec.structs.replace((await pinned.view()).spec.bmc, expected_fingerprint="ab" * 32)
    await pinned.declare(bmc=declared)
    with nothing_reaches(pinned):
        result = await pinned.step("rotate_credential")
    assert result.quarantine is not None
    assert "its document now says " + "ab" * 32 in result.quarantine


async def test_a_restored_factory_certificate_is_a_stranger_and_gets_nothing(tmp_path: Path) -> None:
    hardware = MemoryHardware(example_info())
    async with contextlib.AsyncExitStack() as stack:
        async with bmc(tmp_path / "bmc", hardware) as port:
            place = await stack.enter_async_context(place_at(tmp_path, hardware, f"127.0.0.1:{port}"))
            for step in ("pin_identity", "take_over_credential", "install_certificate"):
                await place.finish(step)
        restore_factory_certificate(tmp_path / "bmc")
        async with bmc(tmp_path / "bmc", hardware, port=port):
            for step in ("disable_ipmi", "rotate_credential", "renew_certificate", "check_drift"):
                with nothing_reaches(place):
                    result = await place.step(step)
                assert result.quarantine is not None, step
                assert "is not recognised: its certificate (key" in result.quarantine
                assert "nothing was sent to it" in result.quarantine
            await place.establish(ServerState.ACTIVE)
            key = (await served(place)).spki_sha256
            # A person who knows why accepts the key; then it is pinned, and a new certificate takes its place.
            await place.store.record_intent(SERVER, IntentKind.QUARANTINE, by="verifier", reason="stranger")
            engine = place.engine()
            await engine.round()
            alone = {"accept_bmc_key": key}
            await place.store.record_intent(SERVER, IntentKind.RELEASE, by="ann", args=alone)
            await engine.round()
            assert (await place.view()).status.state is ServerState.QUARANTINED
            assert "two people have to approve another key for its BMC" in await place.said()
            request = await two_sign(place, key)
            approved = {"accept_bmc_key": key, "approval": request}
            await place.store.record_intent(SERVER, IntentKind.RELEASE, by="ann", args=approved)
            await engine.round()
            assert (await place.store.approvals.show(request)).spent is not None
            status = (await place.view()).status
            assert (status.state, status.facts.bmc_identity) == (ServerState.ACTIVE, key)
            assert status.facts.bmc_certificate is None
            assert ("accepted by ann, bob", key) in [
                (claim["method"], claim["spki_sha256"])
                for name, subject, claim in place.evidence.statements
                if (name, subject) == ("bmc-identity", SERVER)
            ]
            async with place.own_bmc() as client:
                assert await read_accounts(client)
            assert (await place.finish("renew_certificate")).done


async def test_accepting_a_key_that_the_bmc_does_not_have_opens_nothing(pinned: Place) -> None:
    await pinned.finish("install_certificate")
    await pinned.establish(bmc_identity="ab" * 32, bmc_certificate=None)
    with nothing_reaches(pinned):
        assert (await pinned.step("renew_certificate")).quarantine is not None


async def test_a_request_for_another_name_is_refused_and_nothing_is_issued(pinned: Place) -> None:
    pinned.hardware.faults.csr_subject = "controller.example"
    factory = await served(pinned)
    result = await pinned.step("install_certificate")
    assert result.quarantine is not None
    assert "the BMC's certificate request is for controller.example, 127.0.0.1" in result.quarantine
    assert result.statements == ()
    assert (await pinned.view()).facts.bmc_certificate_pending is None
    assert await served(pinned) == factory


async def test_a_revoked_certificate_makes_its_bmc_a_stranger(pinned: Place) -> None:
    await pinned.finish("install_certificate")
    installed = (await pinned.view()).facts.bmc_certificate
    assert installed is not None
    authorities.revoke(pinned.site.vault, [int(installed.serial, 16)], pki.utc_now())
    with nothing_reaches(pinned):
        result = await pinned.step("check_drift")
    assert result.quarantine is not None
    assert f"certificate {installed.serial} is revoked" in result.quarantine


async def test_a_bmc_outside_the_cas_zone_gets_no_certificate(pinned: Place) -> None:
    vault = pinned.site.vault
    elsewhere = pki.bmc_ca(authorities.bmc_ca(vault).private_key, "lab", pki.networks(["10.0.0.0/8"]), pki.utc_now())
    recertify(pinned.site.directory, vault, "bmc-ca", elsewhere)
    with pytest.raises(pki.CertificateError, match=r"the BMC CA may not speak for 127\.0\.0\.1"):
        await pinned.step("install_certificate")


async def test_a_bmc_without_a_certificate_service_needs_a_waiver(tmp_path: Path) -> None:
    app = web.Application()

    async def root(_: web.Request) -> web.Response:
        return web.json_response({"@odata.id": "/redfish/v1/", "Systems": {"@odata.id": "/redfish/v1/Systems"}})

    app.router.add_get("/{path:.*}", root)
    async with https_with(tmp_path / "bmc", app) as address, place_at(tmp_path, MemoryHardware(), address) as place:
        await place.step("pin_identity")
        key = (await place.view()).facts.bmc_identity
        with pytest.raises(NotSupported, match="no CertificateService") as caught:
            await place.step("install_certificate")
        assert "declare a Waiver of bmc-certificate for server-1" in (caught.value.remedy or "")
        waiver = ActiveWaiver(
            name="w",
            finding=Waivable.BMC_CERTIFICATE,
            reason="its firmware is old",
            expires=time.time() + 3600,
            approved_by=("alice", "bob"),
        )
        result = await place.step("install_certificate", waivers=(waiver,))
        assert (result.done, result.facts) == (True, {"bmc_certificate_waived": True})
        ((name, claim),) = result.statements
        assert (name, claim["approved_by"], claim["spki_sha256"]) == ("waiver", ("alice", "bob"), key)
        late = msgspec.structs.replace(waiver, expires=time.time() - 1)
        with pytest.raises(NotSupported):
            await place.step("install_certificate", waivers=(late,))


async def test_the_engine_brings_a_factory_bmc_under_the_ca(place: Place) -> None:
    engine = place.engine()
    for _ in range(60):
        await place.store.ledger.wake([SERVER])
        await engine.round()
        status = (await place.view()).status
        if status.state is ServerState.DISCOVERING:
            break
    assert status.state is ServerState.DISCOVERING
    assert status.facts.bmc_certificate is not None
    assert "its BMC serves certificate" in await place.said()
    kinds = [name for name, _, _ in place.evidence.statements]
    assert kinds.index("certificate") < len(kinds) - 1 - kinds[::-1].index("bmc-identity")


def test_each_state_of_a_change_has_one_next_step() -> None:
    sent = PendingCertificate(pem="new", sent_at=100.0)
    restarted = msgspec.structs.replace(sent, restarted_at=200.0)
    for pending, serves, now, wanted in (
        (None, "factory", 0.0, CertificateStep.REQUEST),
        (PendingCertificate(pem="new"), "factory", 0.0, CertificateStep.REPLACE),
        (PendingCertificate(pem="new"), "new\n", 0.0, CertificateStep.CONFIRM),
        (sent, "factory", 159.0, CertificateStep.WAIT),
        (sent, "factory", 160.0, CertificateStep.RESTART),
        (restarted, "factory", 499.0, CertificateStep.WAIT),
        (restarted, "factory", 500.0, CertificateStep.GIVE_UP),
        (msgspec.structs.replace(restarted, given_up=True), "factory", 600.0, CertificateStep.REQUEST),
        (msgspec.structs.replace(restarted, given_up=True), "new", 600.0, CertificateStep.CONFIRM),
    ):
        assert next_certificate_step(pending, serves, now) is wanted
