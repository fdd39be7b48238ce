"""What DSP0266 asks of every request: authentication, errors, ETags; and the faults that a test may switch on."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from bmc_rig import ROOT, SYSTEM, Rig, error_key, running


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as rig:
        yield rig


@pytest.mark.parametrize("path", ["/redfish", ROOT, f"{ROOT}/", f"{ROOT}/odata", f"{ROOT}/$metadata"])
async def test_documents_before_login_are_public(rig: Rig, path: str) -> None:
    async with rig.client.get(path) as answer:
        assert answer.status == 200
        assert answer.headers["OData-Version"] == "4.0"


@pytest.mark.parametrize("path", [SYSTEM, f"{ROOT}/SessionService/Sessions", f"{ROOT}/NoSuchThing", "/other"])
async def test_everything_else_is_refused_without_login(rig: Rig, path: str) -> None:
    rig.auth = None
    status, body = await rig.get(path)
    assert status == 401
    assert error_key(body) == "NoValidSession"
    assert rig.headers["WWW-Authenticate"].startswith("Basic")


async def test_changes_are_refused_without_login(rig: Rig) -> None:
    rig.auth = None
    for method, path in [
        ("PATCH", SYSTEM),
        ("POST", f"{SYSTEM}/Actions/ComputerSystem.Reset"),
        ("POST", f"{ROOT}/UpdateService/update-multipart"),
        ("DELETE", f"{ROOT}/AccountService/Accounts/1"),
        ("GET", f"{ROOT}/EventService/SSE"),
        ("GET", f"{ROOT}/TaskService/TaskMonitors/1"),
    ]:
        assert (await rig.send(method, path, {}))[0] == 401, path
    assert rig.hardware.boots == []


@pytest.mark.parametrize("token", ["", "wrong"])
async def test_a_wrong_token_is_refused(rig: Rig, token: str) -> None:
    rig.auth = None
    assert (await rig.get(SYSTEM, headers={"X-Auth-Token": token}))[0] == 401


async def test_missing_resource_and_missing_action(rig: Rig) -> None:
    status, body = await rig.get(f"{ROOT}/Systems/2")
    assert (status, error_key(body)) == (404, "ResourceMissingAtURI")
    status, body = await rig.post(f"{SYSTEM}/Actions/ComputerSystem.Dance")
    assert (status, error_key(body)) == (404, "ActionNotSupported")


async def test_method_that_is_not_allowed_names_those_that_are(rig: Rig) -> None:
    status, body = await rig.delete(SYSTEM)
    assert (status, error_key(body)) == (405, "OperationNotAllowed")
    assert rig.headers["Allow"] == "GET, HEAD, PATCH"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"Colour": "red"}, "PropertyUnknown"),
        ({"SerialNumber": "1"}, "PropertyNotWritable"),
        ({"AssetTag": 5}, "PropertyValueTypeError"),
        ({"LocationIndicatorActive": "yes"}, "PropertyValueTypeError"),
        ({"Boot": "Pxe"}, "PropertyValueTypeError"),
        ({"Boot": {"BootSourceOverrideTarget": "Tape"}}, "PropertyValueNotInList"),
        ({"Boot": {"BootSourceOverrideColour": "red"}}, "PropertyUnknown"),
        ({}, "UnrecognizedRequestBody"),
    ],
)
async def test_wrong_changes_are_refused_and_change_nothing(rig: Rig, change: dict[str, object], key: str) -> None:
    _, before = await rig.get(SYSTEM)
    status, body = await rig.patch(SYSTEM, change)
    assert (status, error_key(body)) == (400, key)
    assert (await rig.get(SYSTEM))[1] == before


async def test_property_at_fault_is_named(rig: Rig) -> None:
    _, body = await rig.patch(SYSTEM, {"Boot": {"BootSourceOverrideTarget": "Tape"}})
    info = body["error"]["@Message.ExtendedInfo"][0]
    assert info["RelatedProperties"] == ["#/Boot/BootSourceOverrideTarget"]


async def test_malformed_json(rig: Rig) -> None:
    status, body = await rig.send("PATCH", SYSTEM, data=b"{", headers={"Content-Type": "application/json"})
    assert (status, error_key(body)) == (400, "MalformedJSON")
    status, body = await rig.send("PATCH", SYSTEM, [1])
    assert (status, error_key(body)) == (400, "UnrecognizedRequestBody")


@pytest.mark.parametrize(
    ("parameters", "key"),
    [
        ({}, "ActionParameterMissing"),
        ({"ResetType": "Dance"}, "ActionParameterValueNotInList"),
        ({"ResetType": 1}, "ActionParameterValueTypeError"),
        ({"ResetType": "On", "Speed": 1}, "ActionParameterUnknown"),
    ],
)
async def test_wrong_action_parameters(rig: Rig, parameters: dict[str, object], key: str) -> None:
    status, body = await rig.post(f"{SYSTEM}/Actions/ComputerSystem.Reset", parameters)
    assert (status, error_key(body)) == (400, key)
    assert rig.hardware.boots == []


async def test_unsupported_query_is_refused(rig: Rig) -> None:
    status, body = await rig.get(f"{ROOT}/Systems?$expand=.")
    assert (status, error_key(body)) == (501, "QueryNotSupported")


async def test_etag_guards_a_change(rig: Rig) -> None:
    _, body = await rig.get(SYSTEM)
    etag = rig.headers["ETag"]
    assert etag == body["@odata.etag"]
    assert (await rig.patch(SYSTEM, {"AssetTag": "a"}, headers={"If-Match": etag}))[0] == 200
    new = rig.headers["ETag"]
    assert new != etag
    status, body = await rig.patch(SYSTEM, {"AssetTag": "b"}, headers={"If-Match": etag})
    assert (status, error_key(body)) == (412, "PreconditionFailed")
    assert (await rig.get(SYSTEM))[1]["AssetTag"] == "a"
    assert (await rig.patch(SYSTEM, {"AssetTag": "b"}, headers={"If-Match": "*"}))[0] == 200


async def test_etag_saves_a_transfer(rig: Rig) -> None:
    await rig.get(SYSTEM)
    status, body = await rig.get(SYSTEM, headers={"If-None-Match": rig.headers["ETag"]})
    assert (status, body) == (304, {})


async def test_time_alone_does_not_change_the_managers_etag(rig: Rig) -> None:
    await rig.get(f"{ROOT}/Managers/1")
    etag = rig.headers["ETag"]
    rig.clock.now += 60
    _, body = await rig.get(f"{ROOT}/Managers/1")
    assert rig.headers["ETag"] == etag
    assert body["DateTime"] == "2027-01-15T08:01:00Z"


async def test_head_has_no_body(rig: Rig) -> None:
    status, body = await rig.send("HEAD", SYSTEM)
    assert (status, body) == (200, {})


async def test_fault_errors_are_counted(rig: Rig) -> None:
    rig.hardware.faults.bmc_errors = 2
    for expected in (503, 503, 200):
        assert (await rig.get(SYSTEM))[0] == expected
    rig.hardware.faults.bmc_errors = 1
    _, body = await rig.get(SYSTEM)
    assert error_key(body) == "ServiceTemporarilyUnavailable"
    assert rig.headers["Retry-After"]


async def test_fault_html(rig: Rig) -> None:
    rig.hardware.faults.bmc_html = True
    async with rig.client.get(SYSTEM) as answer:
        assert answer.content_type == "text/html"
        assert (await answer.text()).startswith("<!DOCTYPE html>")


async def test_fault_slow(rig: Rig) -> None:
    rig.hardware.faults.bmc_slow_seconds = 0.3
    begin = time.monotonic()
    assert (await rig.get(SYSTEM))[0] == 200
    assert time.monotonic() - begin >= 0.3


async def test_fault_connection_resets(rig: Rig) -> None:
    host, port = str(rig.client.host), rig.client.port
    rig.hardware.faults.connection_resets = 1
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET /redfish/v1 HTTP/1.1\r\nHost: bmc\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    assert (await rig.get(SYSTEM))[0] == 200


async def test_fault_firmware_version(rig: Rig) -> None:
    rig.hardware.faults.firmware_version = "9.99"
    assert (await rig.get(SYSTEM))[1]["BiosVersion"] == "9.99"
    assert (await rig.get(f"{ROOT}/UpdateService/FirmwareInventory/BIOS"))[1]["Version"] == "9.99"


async def test_failing_hardware_is_a_redfish_error(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken() -> str:
        raise OSError("QEMU is gone")

    monkeypatch.setattr(rig.hardware, "power_state", broken)
    status, body = await rig.get(SYSTEM)
    assert (status, error_key(body)) == (500, "GeneralError")
    assert "QEMU is gone" in body["error"]["message"]


async def test_server_sent_events(rig: Rig) -> None:
    headers = {"Authorization": rig.auth}
    async with rig.client.get(f"{ROOT}/EventService/SSE", headers=headers, timeout=aiohttp.ClientTimeout(5)) as stream:
        assert stream.content_type == "text/event-stream"
        assert await stream.content.readline() == b": open\n"
        await rig.post(f"{ROOT}/EventService/Actions/EventService.SubmitTestEvent")
        lines = [await stream.content.readline() for _ in range(3)]
    assert any(b"HaldenEvent.1.0.TestEvent" in line for line in lines)
