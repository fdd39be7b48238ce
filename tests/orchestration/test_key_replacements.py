"""Another site key: two people let it happen, the planner hears of it, and a thief's certificate opens nothing."""

import contextlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from site_support import SERVER, Place, a_place, bmc, place_at

from freehold.evidence import Ed25519Signer, Predicate
from freehold.model.status import AgentSession, ImageFact, ServerState
from freehold.orchestration import key_replacements
from freehold.orchestration.decisions import Do
from freehold.orchestration.planner import next_step
from freehold.orchestration.renewals import certificate_fresh
from freehold.orchestration.site import agent_port, bmc_identity
from freehold.out_of_band.posture import read_accounts
from freehold.out_of_band.transport import fetch_identity, unrecognised
from freehold.root_of_trust import authorities, pki, succession
from freehold.root_of_trust.keys import SiteKeys, stored_key
from freehold.root_of_trust.operators import NotApproved, approve
from freehold.root_of_trust.succession import ReplacementRefused
from freehold_lab.bmc.memory import MemoryHardware, example_info

PEOPLE = {name: Ed25519Signer.generate() for name in ("ann", "bob")}


@pytest.fixture
async def pinned(tmp_path: Path) -> AsyncIterator[Place]:
    """server-1 with a certificate of the site's first BMC CA."""
    async with a_place(tmp_path) as place:
        for step in ("pin_identity", "take_over_credential", "install_certificate"):
            assert (await place.finish(step)).done
        yield place


async def asked(place: Place, name: str) -> str:
    """A request for another key of that name, not signed yet."""
    await place.store.approvals.found({each: key.public_key for each, key in PEOPLE.items()}, 1.0)
    request = key_replacements.request_of(place.site.vault, name, by="ann", reason="stolen", at=time.time())
    return await place.store.approvals.ask(request)


async def sign(place: Place, request_id: str, *names: str) -> None:
    request = (await place.store.approvals.show(request_id)).request
    for name in names:
        await place.store.approvals.sign(request_id, approve(request, PEOPLE[name]).to_bytes())


async def carry_out(place: Place, name: str, request_id: str) -> None:
    await key_replacements.carry_out(place.store, place.site.directory, place.site.vault, name, request_id, time.time())


async def replace(place: Place, name: str) -> None:
    request = await asked(place, name)
    await sign(place, request, *PEOPLE)
    await carry_out(place, name, request)


async def announce(place: Place) -> None:
    keys = SiteKeys.load(place.site.directory, place.site.vault)
    await key_replacements.announce_keys(place.store, place.site.vault, keys.agent_trust)


async def served(place: Place) -> x509.Certificate:
    shown = await fetch_identity((await place.view()).spec.bmc.address)
    return x509.load_pem_x509_certificate(shown.certificate_pem.encode())


@pytest.mark.parametrize("name", succession.TITLES)
async def test_two_people_let_a_key_be_replaced_and_the_log_is_owed_their_signatures(place: Place, name: str) -> None:
    vault, old = place.site.vault, stored_key(place.site.vault, name)
    request, other = await asked(place, name), "image" if name != "image" else "bmc-ca"
    for names in ((), ("ann",)):
        await sign(place, request, *names)
        with pytest.raises(NotApproved):
            await carry_out(place, name, request)
    assert stored_key(vault, name) == old
    await sign(place, request, "bob")
    with pytest.raises(NotApproved, match=f"is about site-key for site-key/{name}"):
        await carry_out(place, other, request)
    await carry_out(place, name, request)
    new = stored_key(vault, name)
    assert new.generation == 2
    owed = [each for each in await place.store.site.due() if each.subject == f"site-key/{name}"]
    ((predicate, facts),) = [(each.predicate, each.facts) for each in owed]
    assert predicate is Predicate.APPROVAL
    assert [each["name"] for each in facts["approved_by"]] == ["ann", "bob"]
    assert (facts["event"], facts["spki_sha256"]) == ("site-key", new.spki_sha256)
    assert facts["request"]["details"] == {"generation": 2, "reason": "stolen", "replaces": old.spki_sha256}
    with pytest.raises(NotApproved, match="is closed"):
        await carry_out(place, name, request)
    replaced = [each for each in authorities.unrecorded(vault) if each["event"] == "replaced"]
    assert [(each["generation"], each["replaces"]) for each in replaced] == [(2, old.spki_sha256)]


async def test_two_requests_for_the_same_key_make_one_new_key_and_an_outdated_one_none(place: Place) -> None:
    requests = [await asked(place, "image") for _ in range(3)]
    for each in requests:
        await sign(place, each, *PEOPLE)
    await carry_out(place, "image", requests[0])
    made = stored_key(place.site.vault, "image")
    await carry_out(place, "image", requests[1])
    assert stored_key(place.site.vault, "image") == made
    await replace(place, "image")
    with pytest.raises(ReplacementRefused, match="is generation 3"):
        await carry_out(place, "image", requests[2])


async def test_cut_off_behind_the_vault_it_is_completed_by_repeating_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = await asked(place, "image")
    await sign(place, request, *PEOPLE)

    async def dies(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(place.store.approvals, "done", dies)
        with pytest.raises(SystemExit):
            await carry_out(place, "image", request)
    there = stored_key(place.site.vault, "image")
    await carry_out(place, "image", request)
    assert stored_key(place.site.vault, "image") == there
    assert (await place.store.approvals.show(request)).spent is not None


async def test_a_stolen_bmc_ca_vouches_for_nobody_once_it_is_replaced_and_the_bmc_is_no_stranger(pinned: Place) -> None:
    vault, host = pinned.site.vault, "127.0.0.1"
    stolen, key = authorities.bmc_ca(vault), ec.generate_private_key(ec.SECP256R1())
    forged = pki.bmc_certificate(key.public_key(), stolen.certificate, stolen.private_key, host, pki.utc_now())
    now = datetime.now(UTC)
    assert unrecognised(pki.der(forged), bmc_identity(vault, await pinned.view()), host, now) is None
    before = await served(pinned)
    await replace(pinned, "bmc-ca")
    identity = bmc_identity(vault, await pinned.view())
    assert "does not verify" in (unrecognised(pki.der(forged), identity, host, now) or "")
    assert unrecognised(pki.der(before), identity, host, now) is None
    async with pinned.own_bmc() as client:
        assert await read_accounts(client)
    assert certificate_fresh(await pinned.view(), time.time())
    await announce(pinned)
    assert not certificate_fresh(await pinned.view(), time.time())
    assert (await pinned.finish("renew_certificate")).done
    after = await served(pinned)
    after.verify_directly_issued_by(authorities.bmc_ca(vault).certificate)
    view = await pinned.view()
    assert certificate_fresh(view, time.time())
    identity = bmc_identity(vault, view)
    for old in (before, forged):
        assert unrecognised(pki.der(old), identity, host, now)


@pytest.mark.slow
async def test_a_replacement_in_the_middle_of_a_certificate_change_is_survived_at_each_point(tmp_path: Path) -> None:
    for moment in range(4):
        (tmp_path / str(moment)).mkdir()
        async with a_place(tmp_path / str(moment)) as place:
            for step in ("pin_identity", "take_over_credential"):
                await place.step(step)
            for _ in range(moment):
                await place.step("install_certificate")
            await replace(place, "bmc-ca")
            await announce(place)
            assert (await place.finish("install_certificate")).done
            if not certificate_fresh(await place.view(), time.time()):
                assert (await place.finish("renew_certificate")).done
            assert certificate_fresh(await place.view(), time.time())
            (await served(place)).verify_directly_issued_by(authorities.bmc_ca(place.site.vault).certificate)


async def test_a_bmc_that_was_away_is_known_by_its_old_certificate_until_that_ends(tmp_path: Path) -> None:
    hardware = MemoryHardware(example_info())
    async with contextlib.AsyncExitStack() as stack:
        async with bmc(tmp_path / "bmc", hardware) as port:
            place = await stack.enter_async_context(place_at(tmp_path, hardware, f"127.0.0.1:{port}"))
            for step in ("pin_identity", "take_over_credential", "install_certificate"):
                await place.finish(step)
            old = await served(place)
        for _ in range(2):
            await replace(place, "bmc-ca")
        await announce(place)
        identity = bmc_identity(place.site.vault, await place.view())
        ends = old.not_valid_after_utc
        assert "it is not valid since" in (unrecognised(pki.der(old), identity, "127.0.0.1", ends) or "")
        async with bmc(tmp_path / "bmc", hardware, port=port):
            assert (await place.finish("renew_certificate")).done


async def test_a_certificate_of_the_old_ca_can_still_be_revoked(pinned: Place) -> None:
    serial = (await served(pinned)).serial_number
    await replace(pinned, "bmc-ca")
    authorities.revoke(pinned.site.vault, [serial], pki.utc_now())
    result = await pinned.step("check_drift")
    assert result.quarantine is not None
    assert f"certificate {serial:x} is revoked" in result.quarantine


async def test_a_few_bmcs_at_a_time_get_a_new_certificate(pinned: Place) -> None:
    before = await served(pinned)
    async with contextlib.AsyncExitStack() as others:
        while not pinned.site.renewals.locked():
            await others.enter_async_context(pinned.site.renewals)
        result = await pinned.step("renew_certificate")
        assert (result.done, result.waiting_for) == (False, "its turn to get a certificate")
    assert await served(pinned) == before
    assert (await pinned.finish("renew_certificate")).done


@pytest.mark.parametrize("name", ["agent-ca", "image"])
async def test_an_agent_that_believes_a_replaced_key_is_started_anew_before_it_does_anything(
    place: Place, name: str
) -> None:
    now = time.time()
    await place.establish(ServerState.PROVISIONING, agent_booted_at=now - 60, agent_trust=(1, 1))
    session = AgentSession(id="s", mode="ramdisk", boot_id="b", started=now - 30, last_seen=now, attested_at=now)
    await place.store.agents.put_session(SERVER, session)
    assert next_step(await place.view(), now) == Do("write_image", "write_image")
    await replace(place, name)
    await announce(place)
    view = await place.view()
    assert view.agent_trust == ((2, 1) if name == "agent-ca" else (1, 2))
    assert next_step(view, now) == Do("boot_agent", "boot_agent")
    await place.establish(ServerState.PROVISIONING, agent_trust=view.agent_trust)
    assert next_step(await place.view(), now) == Do("write_image", "write_image")


async def test_an_installed_os_goes_on_under_the_ca_that_it_knows(place: Place) -> None:
    """No reboot, no quarantine: it reaches the controller at the port of its own generation."""
    now = time.time()
    image = ImageFact(name="debian", version="12", manifest="ab" * 32)
    await place.establish(ServerState.ATTESTING, image=image, os_booted_at=now - 60, agent_trust=(1, 1))
    before = next_step(await place.view(), now)
    await replace(place, "agent-ca")
    await announce(place)
    view = await place.view()
    assert next_step(view, now) == before
    (found,) = key_replacements.audited(view)
    assert (found.kind, found.subject) == ("replaced-agent-ca", SERVER)
    assert found.evidence == "its record: deployed with agent CA 1; the newest of the site is 2"
    await place.establish(image=ImageFact(name="debian", version="12", manifest="ab" * 32, agent_ca=2))
    assert key_replacements.audited(await place.view()) == ()
    assert [agent_port(each) for each in (1, 2, 3)] == [8443, 8445, 8446]
