"""What keeps a controller from starting is told in words: a port that is taken, an address that is not here."""

import asyncio
import socket
from contextlib import AsyncExitStack

import msgspec
import pytest
from aiohttp import web
from site_support import Place

from freehold.model.errors import FreeholdError
from freehold.orchestration import controller
from freehold.orchestration.controller import dhcp_settings, interface_of
from freehold.orchestration.site import BOOT_PORT


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


async def test_a_provisioning_network_without_a_range_says_what_to_declare(place: Place) -> None:
    networks = place.site.networks
    assert dhcp_settings(place.site, "eth0").netmask == "255.255.255.0"
    networks["provisioning"] = msgspec.structs.replace(networks["provisioning"], dhcp_range=None)
    with pytest.raises(FreeholdError, match="Network provisioning has no dhcpRange") as no:
        dhcp_settings(place.site, "eth0")
    assert "declare spec.dhcpRange {start, end}" in str(no.value)
