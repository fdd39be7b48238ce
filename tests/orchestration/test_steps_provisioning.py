"""Provisioning: which disk bears the OS, and what is refused before a byte is written."""

import time
from typing import Any

import pytest
from site_support import SERVER, Place

from freehold.model.errors import FreeholdError
from freehold.model.resources import AssignmentSpec, RootDisk
from freehold.model.status import ImageFact, Tenancy
from freehold.orchestration.steps.provisioning import root_disk

SMALL = {"name": "nvme1n1", "serial": "N1", "size_bytes": 2 << 30}
LARGE = {"name": "nvme0n1", "serial": "N0", "size_bytes": 8 << 30}
TINY_SATA = {"name": "sda", "serial": "S0", "size_bytes": 1 << 30}
NAMELESS = {"name": "nvme2n1", "serial": "", "size_bytes": 1 << 20}
GIVEN = Tenancy(name="web-1", revision="a" * 64, spec=AssignmentSpec(server=SERVER, image="debian", hostname="web-1"))


async def with_disks(place: Place, *disks: dict[str, Any]) -> Any:
    await place.establish(inband_inventory={"disks": list(disks)}, tenancy=GIVEN)
    return await place.context("write_image")


async def test_the_smallest_nvme_namespace_bears_the_os(place: Place) -> None:
    assert root_disk(await with_disks(place, LARGE, SMALL, TINY_SATA, NAMELESS)) == SMALL


async def test_of_two_equal_disks_the_serial_number_decides_so_that_it_is_always_the_same(place: Place) -> None:
    twin = SMALL | {"serial": "A1", "name": "nvme3n1"}
    for disks in ((SMALL, twin), (twin, SMALL)):
        assert root_disk(await with_disks(place, *disks)) == twin


async def test_the_declared_disk_bears_the_os_whatever_it_is(place: Place) -> None:
    await place.declare(root_disk=RootDisk(serial="S0"))
    assert root_disk(await with_disks(place, LARGE, SMALL, TINY_SATA)) == TINY_SATA


async def test_no_suitable_disk_is_an_error_that_lists_what_there_is(place: Place) -> None:
    with pytest.raises(FreeholdError, match="server server-1: there is no NVMe disk") as refused:
        root_disk(await with_disks(place, TINY_SATA))
    assert "one of: S0 (sda)" in str(refused.value)
    assert "declare spec.rootDisk.serial" in str(refused.value)
    with pytest.raises(FreeholdError, match="expected: one of: none"):
        root_disk(await with_disks(place))
    await place.declare(root_disk=RootDisk(serial="gone"))
    with pytest.raises(FreeholdError, match="there is no disk with serial gone"):
        root_disk(await with_disks(place, LARGE))


async def test_a_disk_smaller_than_the_image_is_refused_before_an_order_is_given(place: Place) -> None:
    await with_disks(place, SMALL | {"size_bytes": 1 << 20})
    with pytest.raises(FreeholdError, match="disk N1 has 1048576 bytes, image debian needs 1073741824") as refused:
        await place.step("write_image")
    assert "declare a larger disk as spec.rootDisk.serial, or assign a smaller image" in str(refused.value)
    assert await place.store.agents.next_order(SERVER) is None


async def test_an_agent_that_wrote_another_image_is_not_believed(place: Place) -> None:
    await with_disks(place, SMALL)
    args = await place.answer("write_image", {"manifest_sha256": "cd" * 32})
    assert args["device_serial"] == "N1"
    assert args["image_url"].endswith("/images/os.raw")
    with pytest.raises(FreeholdError, match="the agent wrote another manifest"):
        await place.step("write_image")


async def test_an_image_that_is_not_built_names_those_that_are(place: Place) -> None:
    await with_disks(place, SMALL)
    place.site.images["other"] = place.site.images.pop("debian")
    with pytest.raises(FreeholdError, match="image debian is declared but not built") as refused:
        await place.step("write_image")
    assert "assign one of: other" in str(refused.value)


async def test_an_installed_os_gets_an_address_of_ours_and_nothing_to_boot(owned: Place) -> None:
    await owned.establish(image=ImageFact(name="debian", version="12", manifest="ab" * 32))
    assert (await owned.step("boot_agent")).done
    assert [host.boots for host in owned.site.due_to_boot[SERVER]] == [True]
    session = await owned.speak("os")
    assert (await owned.step("boot_os", agent=session)).done
    assert [host.boots for host in owned.site.due_to_boot[SERVER]] == [False]


async def test_a_boot_that_replaces_a_lost_agent_says_so(owned: Place) -> None:
    assert (await owned.step("boot_agent")).events == ()
    await owned.establish(agent_booted_at=time.time() - 901)
    assert (await owned.step("boot_agent")).events == (
        "no agent came within 901 s of the start; the machine is started into it anew",
    )
    lost = await owned.speak("ramdisk", started=time.time() + 1, last_seen=time.time() - 130)
    assert (await owned.step("boot_agent", agent=lost)).events == (
        "the agent fell silent 130 s ago; the machine is started into it anew",
    )
