"""Firmware by upload or download: the right member is found on vendors' trees, the lab's BMC installs what it is sent,
and what goes wrong on the way never sends anything twice."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from oob_support import TREES, Ca, Keys, running, tree_handler, unpack_trees
from test_oob_lab_bmc import FACTORY, bmc

from freehold.out_of_band.errors import BmcError, BmcUnreachable, NotSupported, UpdateUnderWay
from freehold.out_of_band.firmware_names import Component, firmware_of
from freehold.out_of_band.redfish import Credential, RedfishClient
from freehold.out_of_band.server import power
from freehold.out_of_band.transport import BmcIdentity, HttpsTransport, fetch_identity
from freehold.out_of_band.update import (
    FETCHED,
    FileServer,
    Sent,
    bios_version,
    find_bios,
    find_firmware,
    firmware_version,
    multipart,
    push_firmware,
    update_running,
)
from freehold_lab.bmc import updates
from freehold_lab.bmc.memory import MemoryHardware, example_info

INVENTORY = "/redfish/v1/UpdateService/FirmwareInventory"
PACKAGE = b"HALDEN-BIOS 2.0.0\n" + bytes(4 << 20)


class Hardware(MemoryHardware):
    """Counts what it is given to install, and can be made to take its time over it."""

    def __init__(self) -> None:
        super().__init__(example_info())
        self.installs = 0
        self.proceed = asyncio.Event()
        self.proceed.set()

    async def install_firmware(self, image: bytes) -> str:
        self.installs += 1
        await self.proceed.wait()
        return await super().install_firmware(image)

    async def begun(self) -> None:
        while not self.installs:
            await asyncio.sleep(0.01)


@pytest.fixture
def hardware() -> Hardware:
    return Hardware()


@pytest.fixture
async def place(tmp_path: Path, hardware: Hardware) -> AsyncIterator[tuple[str, BmcIdentity]]:
    async with bmc(tmp_path, hardware) as where:
        yield where


async def blink(_: float) -> None:
    await asyncio.sleep(0.01)


@pytest.fixture
async def client(place: tuple[str, BmcIdentity], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RedfishClient]:
    """Waits a hundredth of a second wherever it would wait for longer."""
    monkeypatch.setattr("freehold.out_of_band.update._POLL_SECONDS", 0.01)
    transport = HttpsTransport(*place, server="server-1", sleep=blink)
    async with RedfishClient(transport, FACTORY, server="server-1", sleep=blink) as logged_in:
        yield logged_in


async def push(client: RedfishClient, package: bytes = PACKAGE, **rest: Any) -> Sent:
    return await push_firmware(client, package, f"{INVENTORY}/BIOS", name="HX-100.fwpkg", **rest)


async def restart(place: tuple[str, BmcIdentity]) -> None:
    async with RedfishClient.connect(*place, FACTORY) as other:
        await other.action(await other.get("/redfish/v1/Managers/1"), "Manager.Reset", {"ResetType": "ForceRestart"})


# which firmware is which


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_trees(tmp_path_factory.mktemp("trees"))


@pytest.mark.parametrize(
    ("tree", "component", "member", "listed", "told"),
    [
        (TREES[0], "BIOS", "2", "A42 v3.72 (05/16/2025)", "A42 v3.72 (05/16/2025)"),
        (TREES[0], "BMC", "1", "3.14 Jun 16 2025", "iLO 5 v3.14"),
        (TREES[1], "BIOS", "BIOS", "P79 v1.45", "P79 v1.45 (12/06/2017)"),
        (TREES[1], "BMC", "BMC", "1.45.455b66-rev4", "1.45.455b66-rev4"),
    ],
)
@pytest.mark.slow
async def test_bios_and_bmc_are_found_on_real_trees(
    tmp_path: Path, trees: Path, tree: str, component: Component, member: str, listed: str, told: str
) -> None:
    async with running(Keys(tmp_path, "bmc"), tree_handler(trees / tree)) as served:
        identity = BmcIdentity(spki_sha256=(await fetch_identity(served.address)).spki_sha256)
        async with RedfishClient.connect(served.address, identity, Credential("root", "x")) as client:
            found = await find_firmware(client, component)
            assert (found.uri.rsplit("/", 1)[-1], found.version) == (member, listed)
            assert await firmware_version(client, component) == told


def members(*listed: tuple[str, str], related: str = "") -> list[dict[str, Any]]:
    link = {"RelatedItem": [{"@odata.id": related}]} if related else {}
    return [{"@odata.id": f"{INVENTORY}/{id}", "Id": id, "Name": name, **link} for id, name in listed]


DELL = members(
    ("Current-159-2.27.0__BIOS.Setup.1-1", "BIOS"),
    ("Installed-159-2.27.0__BIOS.Setup.1-1", "BIOS"),
    ("Previous-159-2.26.1__BIOS.Setup.1-1", "BIOS"),
    ("Installed-25227-7.00.00.184__iDRAC.Embedded.1-1", "Integrated Dell Remote Access Controller"),
    ("Previous-25227-7.00.00.183__iDRAC.Embedded.1-1", "Integrated Dell Remote Access Controller"),
)
XCC = members(("BMC-Backup", "Firmware:BMC-Backup"), ("BMC-Primary", "Firmware:BMC-Primary"), ("UEFI", "Firmware:UEFI"))
SUPERMICRO = members(
    ("BIOS", "BIOS Firmware"), ("BMC", "BMC Firmware"), ("Backup_BIOS", "Backup BIOS"), ("Golden_BIOS", "Golden BIOS")
)
OPENBMC = members(("a1b2c3d4", "Software Inventory"), ("bios_active", "Software Inventory"), ("bmc_active", "x"))


@pytest.mark.parametrize(
    ("listed", "bios", "bmc"),
    [
        (DELL, "Installed-159-2.27.0__BIOS.Setup.1-1", "Installed-25227-7.00.00.184__iDRAC.Embedded.1-1"),
        (XCC, "UEFI", "BMC-Primary"),
        (SUPERMICRO, "BIOS", "BMC"),
        (OPENBMC, "bios_active", "bmc_active"),
    ],
    ids=["dell", "lenovo", "supermicro", "openbmc"],
)
def test_the_installed_copy_is_found_among_what_vendors_list(listed: Sequence[Any], bios: str, bmc: str) -> None:
    for component, expected in (("BIOS", bios), ("BMC", bmc)):
        found = firmware_of(component, listed, active=None, part=None)  # type: ignore[arg-type]
        assert found is not None
        assert found.uri == f"{INVENTORY}/{expected}"


def test_the_standard_s_own_link_is_believed_first() -> None:
    found = firmware_of("BMC", OPENBMC, active=f"{INVENTORY}/a1b2c3d4/", part=None)
    assert found is not None
    assert found.uri.endswith("/a1b2c3d4")


def test_a_related_item_tells_what_no_name_does() -> None:
    listed = members(("7f3a", "Host image"), related="/redfish/v1/Systems/system/Bios")
    found = firmware_of("BIOS", listed, active=None, part="/redfish/v1/Systems/system/Bios")
    assert found is not None
    assert firmware_of("BMC", listed, active=None, part="/redfish/v1/Managers/bmc") is None


def test_what_cannot_be_told_apart_is_not_guessed() -> None:
    twice = members(("BIOS", "BIOS"), ("bios", "BIOS"))
    assert firmware_of("BIOS", twice, active=None, part=None) is None
    assert firmware_of("BIOS", [], active=None, part=None) is None
    assert firmware_of("BIOS", members(("8", "Redundant System ROM")), active=None, part=None) is None


async def test_a_bmc_that_does_not_update_itself_is_said_so(
    client: RedfishClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await firmware_version(client, "BMC") == "4.12.03"
    assert (await find_firmware(client, "BMC")).uri == f"{INVENTORY}/BMC"
    full = RedfishClient.get

    async def get(self: RedfishClient, path: str, **rest: Any) -> dict[str, Any]:
        return await full(self, path, **rest) | ({"Updateable": False} if path.endswith("/BMC") else {})

    monkeypatch.setattr(RedfishClient, "get", get)
    with pytest.raises(NotSupported, match="does not update the BMC"):
        await find_firmware(client, "BMC")


# by upload


@given(st.binary(max_size=300), st.text(max_size=30))
async def test_a_push_reads_back_as_it_was_sent(package: bytes, name: str) -> None:
    content, content_type = multipart({"Targets": ["/x"]}, package, name)
    boundary = content_type.partition("boundary=")[2].encode()
    assert content.count(b"--" + boundary) == 3
    _, first, second, _ = content.split(b"--" + boundary)
    assert json.loads(first.partition(b"\r\n\r\n")[2]) == {"Targets": ["/x"]}
    assert second.partition(b"\r\n\r\n")[2] == package + b"\r\n"
    assert make_mocked_request("POST", "/", {"Content-Type": content_type}).content_type == "multipart/form-data"


async def test_the_lab_s_bmc_installs_what_it_is_sent(client: RedfishClient, hardware: Hardware) -> None:
    assert (await find_bios(client)).uri == f"{INVENTORY}/BIOS"
    await push(client)
    await power(client, "reset")
    assert await bios_version(client) == "2.0.0"  # in force from the next start on
    assert not await update_running(client)
    assert hardware.installs == 1


async def test_a_package_that_the_bmc_refuses_is_an_error_in_its_words(client: RedfishClient) -> None:
    before = await bios_version(client)
    with pytest.raises(BmcError, match="is not a BIOS image"):
        await push(client, b"no firmware at all")
    assert await bios_version(client) == before


async def test_a_package_that_is_too_large_is_not_sent(client: RedfishClient, hardware: Hardware) -> None:
    with pytest.raises(NotSupported, match="the BMC takes 67108864"):
        await push(client, bytes((64 << 20) + 1))
    assert hardware.installs == 0


async def test_firmware_for_a_part_that_is_not_updated_is_refused_before_it_is_installed(
    client: RedfishClient, hardware: Hardware
) -> None:
    with pytest.raises(BmcError, match="FirmwareInventory/NIC"):
        await push_firmware(client, PACKAGE, f"{INVENTORY}/NIC", name="x")
    assert hardware.installs == 0


# what goes wrong on the way


async def test_nothing_is_sent_while_a_task_of_the_bmc_runs(client: RedfishClient, hardware: Hardware) -> None:
    hardware.proceed.clear()
    async with asyncio.TaskGroup() as both:
        first = both.create_task(push(client))
        await hardware.begun()
        with pytest.raises(UpdateUnderWay):
            await push(client)
        hardware.proceed.set()
    await first
    assert hardware.installs == 1


@pytest.mark.parametrize("fault", ["bmc_errors", "connection_resets"])
async def test_a_post_that_broke_is_never_sent_again(client: RedfishClient, hardware: Hardware, fault: str) -> None:
    service = await client.get("/redfish/v1/UpdateService")
    posts = 0
    send = client.upload

    async def upload(*args: Any, **rest: Any) -> Any:
        nonlocal posts
        posts += 1
        setattr(hardware.faults, fault, 1)
        return await send(*args, **rest)

    client.upload = upload  # type: ignore[method-assign]
    with pytest.raises((BmcError, BmcUnreachable)):
        await push(client)
    assert (posts, hardware.installs, getattr(hardware.faults, fault)) == (1, 0, 0)
    assert service["MultipartHttpPushUri"]


@pytest.mark.parametrize("fault", ["bmc_errors", "connection_resets"])
async def test_faults_while_the_task_runs_are_waited_out(client: RedfishClient, hardware: Hardware, fault: str) -> None:
    hardware.proceed.clear()
    async with asyncio.TaskGroup() as both:
        both.create_task(push(client))
        await hardware.begun()
        setattr(hardware.faults, fault, 7)  # more than the transport tries by itself
        hardware.proceed.set()
    assert hardware.installs == 1
    assert getattr(hardware.faults, fault) == 0


async def test_a_restart_of_the_bmc_in_the_middle_leaves_the_outcome_open_and_a_second_try_ends_it(
    place: tuple[str, BmcIdentity], client: RedfishClient, hardware: Hardware
) -> None:
    hardware.proceed.clear()
    attempt = asyncio.create_task(push(client))
    await hardware.begun()
    await restart(place)
    with pytest.raises(BmcUnreachable, match="forgotten the task"):
        await attempt
    assert not await update_running(client)
    hardware.proceed.set()
    await push(client)
    await power(client, "reset")
    assert await bios_version(client) == "2.0.0"
    assert hardware.installs == 2


async def test_a_task_that_never_ends_is_an_error_and_keeps_the_next_push_back(
    client: RedfishClient, hardware: Hardware
) -> None:
    hardware.faults.extra["task_stuck"] = "on"
    with pytest.raises(BmcError, match="is still Running after"):
        await push(client, timeout=0.1)
    with pytest.raises(UpdateUnderWay):
        await push(client)
    assert hardware.installs == 0


# by download


@pytest.fixture
def no_upload(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The BMC's UpdateService has no MultipartHttpPushUri, as that of an iLO 5; what else it is to say can be added."""
    more: dict[str, Any] = {}
    full = RedfishClient.get

    async def get(self: RedfishClient, path: str, **rest: Any) -> dict[str, Any]:
        body = await full(self, path, **rest)
        if path == updates.SERVICE:
            return {name: value for name, value in body.items() if name != "MultipartHttpPushUri"} | more
        return body

    monkeypatch.setattr(RedfishClient, "get", get)
    return more


def serving(directory: Path, fetched: list[bytes], told: Ca | None = None) -> FileServer:
    """An HTTPS server as the site's own; `told` is whom the BMC is to trust, if not the server's CA."""
    ca = Ca()
    keys = Keys(directory, "site", ca=ca)

    @asynccontextmanager
    async def serve(package: bytes, name: str) -> AsyncIterator[str]:
        async def answer(_: web.Request) -> web.StreamResponse:
            fetched.append(package)
            return web.Response(body=package)

        async with running(keys, answer) as here:
            yield f"https://{here.address}/{name}"

    return FileServer(serve, (told or ca).pem)


async def test_a_bmc_without_uploads_fetches_the_package_over_verified_https(
    tmp_path: Path, client: RedfishClient, no_upload: dict[str, Any]
) -> None:
    fetched: list[bytes] = []
    server = serving(tmp_path, fetched)
    assert await push(client, server=server) == Sent(FETCHED, seen=True)
    await power(client, "reset")
    assert await bios_version(client) == "2.0.0"
    assert fetched == [PACKAGE]
    service = await client.get(updates.SERVICE)
    assert service["VerifyRemoteServerCertificate"] is True
    await push(client, server=server)  # it knows the CA already
    assert [each["CertificateString"] for each in await client.members(updates.CERTIFICATES)] == [server.ca_pem]


async def test_a_download_that_fails_is_an_error_in_the_bmc_s_words(
    tmp_path: Path, client: RedfishClient, hardware: Hardware, no_upload: dict[str, Any]
) -> None:
    fetched: list[bytes] = []
    with pytest.raises(BmcError, match=r"(?i)certificate.verify.failed"):
        await push(client, server=serving(tmp_path, fetched, told=Ca()))
    assert (fetched, hardware.installs) == ([], 0)


@pytest.mark.parametrize(
    ("says", "why"),
    [
        ({}, "no MultipartHttpPushUri"),
        ({"ServiceEnabled": False}, "turned off"),
        ({"Actions": {}}, "neither by upload"),
        ({"MaxImageSizeBytes": 10}, "the BMC takes 10"),
    ],
)
async def test_a_bmc_that_could_not_take_it_is_not_asked(
    client: RedfishClient, hardware: Hardware, no_upload: dict[str, Any], says: dict[str, Any], why: str
) -> None:
    no_upload |= says
    with pytest.raises(NotSupported, match=why):
        await push(client)
    assert not await update_running(client)


@pytest.mark.parametrize(
    ("says", "why"),
    [
        ({"RemoteServerCertificates": None}, "it cannot be given a CA"),
        ({"VerifyRemoteServerCertificate": False}, "VerifyRemoteServerCertificate stays off"),
    ],
)
async def test_a_bmc_that_would_fetch_from_anybody_is_not_told_to(
    tmp_path: Path, client: RedfishClient, no_upload: dict[str, Any], says: dict[str, Any], why: str
) -> None:
    no_upload |= says
    fetched: list[bytes] = []
    with pytest.raises(NotSupported, match="from anybody: " + why):
        await push(client, server=serving(tmp_path, fetched))
    assert not fetched
