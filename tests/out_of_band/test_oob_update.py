"""Firmware by upload: the right member is found on real vendors' trees, and the lab's BMC installs what it is sent."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from test_oob_lab_bmc import FACTORY, bmc

from freehold.out_of_band.errors import BmcError, NotSupported
from freehold.out_of_band.redfish import RedfishClient
from freehold.out_of_band.server import power
from freehold.out_of_band.update import bios_of, bios_version, find_bios, multipart, push_firmware, update_running
from freehold_lab.bmc.memory import MemoryHardware, example_info

TREES = Path(__file__).parents[3] / "shared" / "fixtures" / "redfish"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[RedfishClient]:
    async with bmc(tmp_path, MemoryHardware(example_info())) as place:
        async with RedfishClient.connect(*place, FACTORY, server="server-1") as logged_in:
            yield logged_in


@pytest.mark.parametrize(
    ("tree", "version"),
    [("hpe-dl365-gen10plus", "A42 v3.72 (05/16/2025)"), ("dmtf-public-rackmount1", "P79 v1.45")],
)
def test_the_bios_is_found_among_what_vendors_list(tree: str, version: str) -> None:
    if not (TREES / tree).is_dir():
        pytest.skip("the trees are not beside this checkout")
    members = [json.loads(path.read_text()) for path in (TREES / tree).glob("UpdateService/FirmwareInventory/*/*.json")]
    found = bios_of(members)
    assert found is not None
    assert found.version == version


def test_what_cannot_be_told_apart_is_not_guessed() -> None:
    one = {"@odata.id": "/redfish/v1/UpdateService/FirmwareInventory/BIOS", "Id": "BIOS", "Name": "BIOS"}
    assert bios_of([one, one | {"@odata.id": "/other"}]) is None
    assert bios_of([]) is None
    assert bios_of([{"@odata.id": "/x", "Id": "8", "Name": "Redundant System ROM"}]) is None


@given(st.binary(max_size=300), st.text(max_size=30))
async def test_a_push_reads_back_as_it_was_sent(package: bytes, name: str) -> None:
    content, content_type = multipart({"Targets": ["/x"]}, package, name)
    boundary = content_type.partition("boundary=")[2].encode()
    assert content.count(b"--" + boundary) == 3
    _, first, second, _ = content.split(b"--" + boundary)
    assert json.loads(first.partition(b"\r\n\r\n")[2]) == {"Targets": ["/x"]}
    assert second.partition(b"\r\n\r\n")[2] == package + b"\r\n"
    assert make_mocked_request("POST", "/", {"Content-Type": content_type}).content_type == "multipart/form-data"


async def test_the_lab_s_bmc_installs_what_it_is_sent(client: RedfishClient) -> None:
    bios = await find_bios(client)
    package = b"HALDEN-BIOS 2.0.0\n" + bytes(4 << 20)
    await push_firmware(client, package, bios.uri, name="HX-100-2.0.0.fwpkg", send_timeout=10.0)
    await power(client, "reset")
    assert await bios_version(client) == "2.0.0"  # in force from the next start on
    assert not await update_running(client)


async def test_a_package_that_the_bmc_refuses_is_an_error_in_its_words(client: RedfishClient) -> None:
    bios = await find_bios(client)
    before = await bios_version(client)
    with pytest.raises(BmcError, match="is not a BIOS image"):
        await push_firmware(client, b"no firmware at all", bios.uri, name="x", send_timeout=10.0)
    assert await bios_version(client) == before


async def test_a_package_that_is_too_large_is_not_sent(client: RedfishClient) -> None:
    bios = await find_bios(client)
    with pytest.raises(NotSupported, match="the BMC takes 67108864"):
        await push_firmware(client, bytes((64 << 20) + 1), bios.uri, name="x", send_timeout=10.0)
