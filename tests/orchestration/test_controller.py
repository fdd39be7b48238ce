"""What keeps a controller from starting is told in words: a port that is taken, an address that is not here."""

import asyncio
import socket
import time
from contextlib import AsyncExitStack
from datetime import datetime, timedelta

import msgspec
import pytest
from aiohttp import web
from site_support import SERVER, Place

from freehold.model.errors import FreeholdError
from freehold.model.status import IntentKind, ServerState, ServerStatus
from freehold.orchestration import controller
from freehold.orchestration.controller import dhcp_settings, interface_of, renewed_keys
from freehold.orchestration.site import BOOT_PORT, Site
from freehold.root_of_trust import keys, pki
from freehold.root_of_trust.openbao import OpenBaoSealed


async def test_a_port_that_is_taken_is_named_with_how_to_find_who_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with AsyncExitStack() as stack:
            with pytest.raises(
                FreeholdError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"
            ) as no:
                await controller._listen(stack, web.Application(), "127.0.0.1", port, None)
    assert f"`ss -ltnp 'sport = :{port}'`" in str(no.value)


async def test_an_address_that_this_host_lacks_is_named() -> None:
    with pytest.raises(FreeholdError, match=r"this host has no address 192\.0\.2\.77") as no:
        await interface_of("192.0.2.77")
    assert "run `freehold serve` on the host that spec.controller of the Site names" in str(no.value)
    assert await interface_of("127.0.0.1") == "lo"


async def test_a_controller_on_the_wrong_host_stops_and_leaves_no_listener(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        assert free
    with pytest.raises(FreeholdError, match=f"cannot listen on 172.30.2.2 port {BOOT_PORT}: Cannot assign"):
        await controller.serve(place.site, place.store, None)  # type: ignore[arg-type]
    assert [task for task in asyncio.all_tasks() if "heartbeat" in task.get_name()] == []


async def test_since_when_agents_are_heard_is_known_to_who_judges_their_silence(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def listens(*_: object) -> None:
        return None

    async def no_further(_address: str) -> str:
        raise FarEnough

    monkeypatch.setattr(controller, "_listen", listens)
    monkeypatch.setattr(controller, "interface_of", no_further)
    before = time.time()
    with pytest.raises(FarEnough):
        await controller.serve(place.site, place.store, None)  # type: ignore[arg-type]
    assert before <= (await place.view()).listening_since <= time.time()


class FarEnough(Exception):
    """As far as the test goes."""


async def test_a_provisioning_network_without_a_range_says_what_to_declare(place: Place) -> None:
    networks = place.site.networks
    assert dhcp_settings(place.site, "eth0").netmask == "255.255.255.0"
    networks["provisioning"] = msgspec.structs.replace(networks["provisioning"], dhcp_range=None)
    with pytest.raises(FreeholdError, match="Network provisioning has no dhcpRange") as no:
        dhcp_settings(place.site, "eth0")
    assert "declare spec.dhcpRange {start, end}" in str(no.value)


S = ServerState
BOOTED, DONE = {"agent_booted_at": 1.0}, {"agent_booted_at": 1.0, "agent_released": True}
WITH_OS = {"agent_booted_at": 1.0, "os_booted_at": 2.0}


@pytest.mark.parametrize(
    ("state", "facts", "answered"),
    [
        (S.SECURING, {}, []),
        (S.DISCOVERING, {}, []),  # whatever runs there now was not started by us
        (S.DISCOVERING, BOOTED, [True]),
        (S.PREPARING, DONE, []),  # off, while people approve what it measured
        (S.PREPARING, BOOTED, [True]),
        (S.AVAILABLE, DONE, []),
        (S.PROVISIONING, {"agent_released": True}, []),
        (S.PROVISIONING, DONE, [True]),
        (S.PROVISIONING, WITH_OS, [False]),
        (S.ATTESTING, WITH_OS, [False]),
        (S.ACTIVE, WITH_OS, [False]),
        (S.REMEDIATING, WITH_OS, [False]),
        (S.DECOMMISSIONING, {"os_booted_at": 2.0}, [False]),
        (S.DECOMMISSIONING, WITH_OS, [True]),
        (S.DECOMMISSIONING, DONE, []),
        (S.RETIRED, WITH_OS, []),
    ],
)
@pytest.mark.slow
async def test_after_a_restart_dhcp_offers_the_agent_only_to_whoever_waits_for_it(
    place: Place, state: ServerState, facts: dict[str, object], answered: list[bool]
) -> None:
    await place.establish(state, **facts)
    await controller.answer_known(place.site, place.store)
    assert [host.boots for host in place.site.due_to_boot.get(SERVER, ())] == answered


@pytest.mark.parametrize(("state", "facts"), [(S.PROVISIONING, DONE), (S.DECOMMISSIONING, BOOTED), (S.ACTIVE, WITH_OS)])
@pytest.mark.slow
async def test_a_server_in_quarantine_keeps_its_address_and_boots_nothing_of_ours(
    owned: Place, state: ServerState, facts: dict[str, object]
) -> None:
    await owned.establish(state, **facts)
    await controller.answer_known(owned.site, owned.store)
    await owned.store.record_intent(SERVER, IntentKind.QUARANTINE, by="attestation", reason="it booted something else")
    await controller.engine_of(owned.site, owned.store, owned.evidence).round()
    assert (await owned.view()).status.state is S.QUARANTINED
    assert [host.boots for host in owned.site.due_to_boot[SERVER]] == [False]
    owned.site.due_to_boot.clear()
    await controller.answer_known(owned.site, owned.store)
    assert [host.boots for host in owned.site.due_to_boot[SERVER]] == [False]


async def test_a_server_that_was_never_on_our_network_gets_no_address_in_quarantine(place: Place) -> None:
    await place.set_status(ServerStatus(state=S.QUARANTINED, quarantined_from=S.SECURING))
    await controller.answer_known(place.site, place.store)
    assert place.site.due_to_boot == {}


async def test_a_quarantine_does_not_wait_for_a_dhcp_server_that_has_died(
    owned: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def died(*_: object) -> None:
        raise FreeholdError("dnsmasq is not running")

    monkeypatch.setattr(owned.site, "answer_dhcp", died)
    await owned.establish(S.ACTIVE, **WITH_OS)
    await owned.store.record_intent(SERVER, IntentKind.QUARANTINE, by="attestation", reason="it booted something else")
    await controller.engine_of(owned.site, owned.store, owned.evidence).round()
    assert (await owned.view()).status.state is S.QUARANTINED


async def test_the_controller_s_certificate_is_renewed_while_it_runs(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every agent would refuse a controller that nobody restarts for two months, and be quarantined for it."""
    made = pki.utc_now() - timedelta(days=70)
    old = keys._new_controller_tls(place.site.vault, place.site.keys.identity, made)
    place.site.vault.put("site/keys/controller-tls", old)
    place.site.keys.controller_tls = keys.certified(place.site.vault, "controller-tls")
    served: list[object] = []
    again = asyncio.Event()

    async def serving(site: Site, _store: object, _log: object) -> None:
        served.append(site.keys.controller_tls.certificate)
        if len(served) == 2:
            again.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(controller, "_serve", serving)
    running = asyncio.create_task(controller.serve(place.site, place.store, None))  # type: ignore[arg-type]
    await asyncio.wait_for(again.wait(), 10)
    first, second = served
    assert first.not_valid_after_utc - pki.utc_now() < timedelta(days=21)  # type: ignore[attr-defined]
    assert second.not_valid_after_utc - pki.utc_now() > timedelta(days=80)  # type: ignore[attr-defined]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_certificate_that_cannot_be_renewed_goes_on_serving_and_people_are_told_once_a_day(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, looks = pki.utc_now() + timedelta(days=70), 0

    def now() -> datetime:
        nonlocal clock
        clock += timedelta(hours=1)
        return clock

    def sealed(*_: object) -> None:
        nonlocal looks
        looks += 1
        raise OpenBaoSealed("OpenBao is sealed")

    monkeypatch.setattr(keys.SiteKeys, "load", sealed)
    renewing = asyncio.create_task(renewed_keys(place.site, place.store, now, 0.0))
    while looks < 30:
        await asyncio.sleep(0.01)
    monkeypatch.undo()
    renewed = await asyncio.wait_for(renewing, 10)
    assert renewed.controller_tls.certificate != place.site.keys.controller_tls.certificate
    told = [event for event in await place.store.events() if event.kind == "certificate"]
    assert 2 <= len(told) < looks / 5  # the clock moves on by two hours and more at each look
    assert "cannot be renewed: OpenBao is sealed; after that no agent attests any more" in told[0].message
