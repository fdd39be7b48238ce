"""The system as the BMC shows and changes it: what reaches the hardware, and when."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from bmc_rig import ROOT, SYSTEM, Rig, certificate, der, error_key, pem, running

from freehold_lab import firmware_package
from freehold_lab.bmc.memory import MemoryHardware
from freehold_lab.hardware import BootOverride, BootTarget

BIOS = f"{SYSTEM}/Bios"
SECURE_BOOT = f"{SYSTEM}/SecureBoot"
DATABASES = f"{SECURE_BOOT}/SecureBootDatabases"
MEDIA = f"{SYSTEM}/VirtualMedia/CD1"
UPDATE = f"{ROOT}/UpdateService"
URI = "http://172.30.2.2/agent.efi"
FIRMWARE = b"HALDEN-BIOS 2.05.0\n" + bytes(1000)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as rig:
        yield rig


@pytest.fixture
async def depot() -> AsyncIterator[str]:
    """The address of an HTTP server with an image and a firmware."""

    async def answer(request: web.Request) -> web.Response:
        files = {"/boot.iso": b"image" * 1000, "/bios.bin": FIRMWARE}
        return web.Response(body=files[request.path]) if request.path in files else web.Response(status=404)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("/")).rstrip("/")


# power and boot


@pytest.mark.parametrize(
    ("before", "kind", "status", "after", "boots"),
    [
        ("Off", "On", 204, "On", 1),
        ("Off", "ForceOn", 204, "On", 1),
        ("On", "On", 204, "On", 0),
        ("On", "ForceOff", 204, "Off", 0),
        ("Off", "ForceOff", 204, "Off", 0),
        ("On", "GracefulShutdown", 204, "Off", 0),
        ("On", "ForceRestart", 204, "On", 1),
        ("On", "GracefulRestart", 204, "On", 1),
        ("On", "PowerCycle", 204, "On", 1),
        ("On", "PushPowerButton", 204, "Off", 0),
        ("Off", "PushPowerButton", 204, "On", 1),
        ("Off", "ForceRestart", 409, "Off", 0),
    ],
)
async def test_reset(rig: Rig, before: str, kind: str, status: int, after: str, boots: int) -> None:
    if before == "On":
        await rig.hardware.power_on()
        rig.hardware.boots.clear()
    assert await rig.reset(kind) == status
    assert (await rig.get(SYSTEM))[1]["PowerState"] == after
    assert len(rig.hardware.boots) == boots


async def test_reset_that_takes_long_is_answered_before_it_is_done(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    go = asyncio.Event()
    power_on = rig.hardware.power_on

    async def slow() -> None:
        await go.wait()
        await power_on()

    monkeypatch.setattr(rig.hardware, "power_on", slow)
    monkeypatch.setattr("freehold_lab.bmc.systems.POWER_ANSWER_SECONDS", 0.05)
    assert await rig.reset("On") == 204
    assert (await rig.get(SYSTEM))[1]["PowerState"] == "Off"
    go.set()
    await asyncio.sleep(0)
    assert (await rig.get(SYSTEM))[1]["PowerState"] == "On"


async def test_reset_that_fails_is_told_and_logged(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken() -> None:
        raise OSError("no memory for the guest")

    monkeypatch.setattr(rig.hardware, "power_on", broken)
    status, body = await rig.post(f"{SYSTEM}/Actions/ComputerSystem.Reset", {"ResetType": "On"})
    assert (status, error_key(body)) == (500, "GeneralError")
    assert "no memory for the guest" in body["error"]["message"]
    assert "PowerFailed" in await rig.log(f"{SYSTEM}/LogServices/EventLog")


async def override(rig: Rig, **boot: Any) -> tuple[int, dict[str, Any]]:
    return await rig.patch(SYSTEM, {"Boot": boot})


async def test_override_once_is_consumed_by_one_boot(rig: Rig) -> None:
    status, body = await override(
        rig, BootSourceOverrideTarget="UefiHttp", BootSourceOverrideEnabled="Once", HttpBootUri=URI
    )
    assert status == 200
    assert body["Boot"]["HttpBootUri"] == URI
    await rig.reset("On")
    assert rig.hardware.boots == [BootOverride(BootTarget.UEFI_HTTP, "Once", URI)]
    boot = (await rig.get(SYSTEM))[1]["Boot"]
    assert (boot["BootSourceOverrideEnabled"], boot["BootSourceOverrideTarget"]) == ("Disabled", "None")
    await rig.reset("ForceRestart")
    assert rig.hardware.boots[1].target is BootTarget.NONE


async def test_override_continuous_stays_until_it_is_disabled(rig: Rig) -> None:
    await override(rig, BootSourceOverrideTarget="Cd", BootSourceOverrideEnabled="Continuous")
    await rig.reset("On")
    await rig.reset("ForceRestart")
    assert [boot.target for boot in rig.hardware.boots] == [BootTarget.CD, BootTarget.CD]
    await override(rig, BootSourceOverrideEnabled="Disabled")
    await rig.reset("ForceRestart")
    assert rig.hardware.boots[-1].target is BootTarget.NONE


async def test_target_alone_means_once(rig: Rig) -> None:
    _, body = await override(rig, BootSourceOverrideTarget="Hdd")
    assert body["Boot"]["BootSourceOverrideEnabled"] == "Once"


async def test_boot_uri_must_be_http(rig: Rig) -> None:
    boot = {"BootSourceOverrideTarget": "UefiHttp", "HttpBootUri": "tftp://a/b"}
    status, body = await rig.patch(SYSTEM, {"AssetTag": "changed", "Boot": boot})
    assert (status, error_key(body)) == (400, "PropertyValueFormatError")
    assert (await rig.get(SYSTEM))[1]["AssetTag"] == "rack-1-u1"


async def test_boot_order(rig: Rig) -> None:
    _, body = await rig.get(f"{SYSTEM}/BootOptions")
    references = [member["@odata.id"].rsplit("/", 1)[-1] for member in body["Members"]]
    assert references == ["Boot0000", "Boot0001", "Boot0002"]
    _, option = await rig.get(f"{SYSTEM}/BootOptions/Boot0001")
    assert "NVMe" in option["UefiDevicePath"]
    assert (await override(rig, BootOrder=references[::-1]))[0] == 200
    assert rig.hardware.active.boot_order == references
    await rig.reset("On")
    assert rig.hardware.active.boot_order == references[::-1]
    status, body = await override(rig, BootOrder=["Boot0099"])
    assert (status, error_key(body)) == (400, "PropertyValueNotInList")


# BIOS


async def test_bios_changes_wait_for_the_next_reset(rig: Rig) -> None:
    await rig.reset("On")
    _, body = await rig.get(BIOS)
    settings = body["@Redfish.Settings"]["SettingsObject"]["@odata.id"]
    assert (await rig.patch(settings, {"Attributes": {"SriovGlobalEnable": True}}))[0] == 200
    assert (await rig.get(settings))[1]["Attributes"]["SriovGlobalEnable"] is True
    assert (await rig.get(BIOS))[1]["Attributes"]["SriovGlobalEnable"] is False
    await rig.reset("ForceRestart")
    assert (await rig.get(BIOS))[1]["Attributes"]["SriovGlobalEnable"] is True
    assert (await rig.post(f"{BIOS}/Actions/Bios.ResetBios"))[0] == 204
    await rig.reset("ForceRestart")
    assert (await rig.get(BIOS))[1]["Attributes"]["SriovGlobalEnable"] is False


@pytest.mark.parametrize(
    ("attributes", "key"),
    [({"Turbo": True}, "PropertyUnknown"), ({"NumLock": 1}, "PropertyValueTypeError")],
)
async def test_wrong_bios_attributes(rig: Rig, attributes: dict[str, Any], key: str) -> None:
    status, body = await rig.patch(f"{BIOS}/Settings", {"Attributes": {"TpmSecurity": False, **attributes}})
    assert (status, error_key(body)) == (400, key)
    assert rig.hardware.pending.bios["TpmSecurity"] is True


# Secure Boot


async def enroll(rig: Rig, database: str, item: Any) -> tuple[int, dict[str, Any]]:
    return await rig.post(
        f"{DATABASES}/{database}/Certificates", {"CertificateString": pem(item), "CertificateType": "PEM"}
    )


async def test_enrolled_keys_reach_the_firmware_at_the_next_boot(rig: Rig) -> None:
    keys = {name: certificate(name) for name in ("PK", "KEK", "db")}
    assert (await rig.get(SECURE_BOOT))[1]["SecureBootMode"] == "SetupMode"
    status, body = await rig.patch(SECURE_BOOT, {"SecureBootEnable": True})
    assert (status, error_key(body)) == (400, "PropertyValueConflict")
    for name, key in keys.items():
        status, body = await enroll(rig, name, key)
        assert status == 201
        assert body["CertificateString"] == pem(key)
        assert (await rig.get(body["@odata.id"]))[1]["Subject"]["CommonName"] == name
    assert (await rig.patch(SECURE_BOOT, {"SecureBootEnable": True}))[0] == 200
    assert rig.hardware.active.certificates == {}
    assert (await rig.get(SECURE_BOOT))[1]["SecureBootCurrentBoot"] == "Disabled"
    await rig.reset("On")
    assert rig.hardware.active.certificates == {name: [der(key)] for name, key in keys.items()}
    _, body = await rig.get(SECURE_BOOT)
    assert (body["SecureBootMode"], body["SecureBootCurrentBoot"]) == ("UserMode", "Enabled")


async def test_a_bmc_from_before_there_were_secure_boot_databases(rig: Rig) -> None:
    rig.hardware.faults.secure_boot_hidden = True
    _, body = await rig.get(SECURE_BOOT)
    assert ("SecureBootDatabases" in body, body["SecureBootMode"]) == (False, "SetupMode")
    assert (await rig.get(DATABASES))[0] == 404
    assert (await enroll(rig, "db", certificate("db")))[0] == 404
    assert (await rig.post(f"{SECURE_BOOT}/Actions/SecureBoot.ResetKeys", {"ResetKeysType": "DeleteAllKeys"}))[0] == 204


async def test_secure_boot_database_members(rig: Rig) -> None:
    first, second = certificate("first"), certificate("second")
    _, body = await enroll(rig, "db", first)
    await enroll(rig, "db", second)
    assert (await enroll(rig, "db", first))[0] == 400
    assert rig.hardware.pending.certificates["db"] == [der(first), der(second)]
    assert (await rig.delete(body["@odata.id"]))[0] == 204
    assert (await rig.delete(body["@odata.id"]))[0] == 404
    assert rig.hardware.pending.certificates["db"] == [der(second)]
    digest = {"SignatureString": "AB" * 32, "SignatureType": "EFI_CERT_SHA256_GUID", "SignatureTypeRegistry": "UEFI"}
    status, body = await rig.post(f"{DATABASES}/dbx/Signatures", digest)
    assert (status, body["SignatureString"]) == (201, "ab" * 32)
    assert rig.hardware.pending.signatures["dbx"] == ["ab" * 32]
    assert (await rig.delete(body["@odata.id"]))[0] == 204
    assert rig.hardware.pending.signatures["dbx"] == []
    assert (await rig.post(f"{DATABASES}/dbx/Signatures", {**digest, "SignatureString": "xyz"}))[0] == 400
    path = f"{DATABASES}/db/Actions/SecureBootDatabase.ResetKeys"
    assert (await rig.post(path, {"ResetKeysType": "DeleteAllKeys"}))[0] == 204
    assert rig.hardware.pending.certificates["db"] == []


async def test_there_is_one_platform_key(rig: Rig) -> None:
    await enroll(rig, "PK", certificate("one"))
    assert (await enroll(rig, "PK", certificate("two")))[0] == 409


async def test_wrong_certificate_and_wrong_database(rig: Rig) -> None:
    body = {"CertificateString": "hello", "CertificateType": "PEM"}
    status, answer = await rig.post(f"{DATABASES}/db/Certificates", body)
    assert (status, error_key(answer)) == (400, "PropertyValueFormatError")
    assert (await enroll(rig, "dbz", certificate("x")))[0] == 404


async def test_reset_keys(tmp_path: Path) -> None:
    vendor = certificate("vendor")
    hardware = MemoryHardware(factory_keys={"PK": der(vendor), "db": der(vendor)})
    async with running(tmp_path, hardware) as rig:
        path = f"{SECURE_BOOT}/Actions/SecureBoot.ResetKeys"
        assert (await rig.get(SECURE_BOOT))[1]["SecureBootMode"] == "UserMode"
        await rig.post(path, {"ResetKeysType": "DeletePK"})
        assert (await rig.get(SECURE_BOOT))[1]["SecureBootMode"] == "SetupMode"
        assert hardware.pending.certificates["db"] == [der(vendor)]
        await rig.post(path, {"ResetKeysType": "DeleteAllKeys"})
        assert not any(hardware.pending.certificates.values())
        await rig.post(path, {"ResetKeysType": "ResetAllKeysToDefault"})
        assert hardware.pending.certificates["PK"] == [der(vendor)]


# tasks: drives and firmware


async def finished(rig: Rig) -> tuple[int, dict[str, Any]]:
    """Follow the task monitor of the last answer to its end; returns the last answer of the monitor."""
    monitor = rig.headers["Location"]
    for _ in range(100):
        status, body = await rig.get(monitor)
        if status != 202:
            return status, body
        await asyncio.sleep(0.01)
    raise AssertionError("the task did not end")


async def test_secure_erase_is_a_task(rig: Rig) -> None:
    _, storage = await rig.get(f"{SYSTEM}/Storage/1")
    drive = storage["Drives"][0]["@odata.id"]
    _, shown = await rig.get(drive)
    target = shown["Actions"]["#Drive.SecureErase"]["target"]
    status, task = await rig.post(target, {"SanitizationType": "CryptographicErase"})
    assert status == 202
    assert task["@odata.type"].startswith("#Task.")
    assert (await finished(rig))[0] == 204
    assert rig.hardware.erased == ["nvme0"]
    _, task = await rig.get(task["@odata.id"])
    assert (task["TaskState"], task["TaskStatus"], task["PercentComplete"]) == ("Completed", "OK", 100)
    assert (await rig.delete(task["@odata.id"]))[0] == 204
    assert (await rig.get(task["@odata.id"]))[0] == 404


async def test_drive_that_skips_its_erase_reports_success(rig: Rig) -> None:
    rig.hardware.faults.drive_skips_erase = True
    assert (await rig.post(f"{SYSTEM}/Storage/1/Drives/nvme0/Actions/Drive.SecureErase"))[0] == 202
    assert (await finished(rig))[0] == 204
    assert rig.hardware.erased == []


async def test_erase_of_no_drive(rig: Rig) -> None:
    assert (await rig.post(f"{SYSTEM}/Storage/1/Drives/nvme9/Actions/Drive.SecureErase"))[0] == 404


async def test_stuck_task_goes_on_running(rig: Rig) -> None:
    rig.hardware.faults.extra["task_stuck"] = "1"
    _, task = await rig.post(f"{SYSTEM}/Storage/1/Drives/nvme0/Actions/Drive.SecureErase")
    await asyncio.sleep(0.05)
    assert (await rig.get(rig.headers["Location"]))[0] == 202
    assert (await rig.get(task["@odata.id"]))[1]["TaskState"] == "Running"
    assert (await rig.delete(task["@odata.id"]))[0] == 204


async def push(rig: Rig, content: bytes, parameters: str = "{}") -> tuple[int, dict[str, Any]]:
    form = aiohttp.FormData()
    form.add_field("UpdateParameters", parameters, content_type="application/json")
    form.add_field("UpdateFile", content, filename="bios.bin", content_type="application/octet-stream")
    return await rig.send("POST", f"{UPDATE}/update-multipart", data=form)


async def test_pushed_firmware_is_active_after_the_next_boot(rig: Rig) -> None:
    assert (await rig.get(UPDATE))[1]["MultipartHttpPushUri"] == f"{UPDATE}/update-multipart"
    assert (await push(rig, FIRMWARE, f'{{"Targets": ["{UPDATE}/FirmwareInventory/BIOS"]}}'))[0] == 202
    assert (await finished(rig))[0] == 204
    assert (await rig.get(f"{UPDATE}/FirmwareInventory/BIOS"))[1]["Version"] == "2.04.1"
    await rig.reset("On")
    assert (await rig.get(f"{UPDATE}/FirmwareInventory/BIOS"))[1]["Version"] == "2.05.0"


async def test_a_bmc_starts_anew_into_its_own_new_firmware(rig: Rig) -> None:
    to_the_bmc = f'{{"Targets": ["{UPDATE}/FirmwareInventory/BMC"]}}'
    assert (await push(rig, FIRMWARE, to_the_bmc))[0] == 202  # that of the BIOS
    assert (await finished(rig))[0] == 500
    package = firmware_package.pack("4.13.00", b"x", firmware_package.BMC_MAGIC)
    assert (await push(rig, package, to_the_bmc))[0] == 202
    assert (await finished(rig))[0] == 204
    assert (await rig.get(f"{UPDATE}/FirmwareInventory/BMC"))[1]["Version"] == "4.13.00"
    assert (await rig.get(f"{ROOT}/Managers/1"))[1]["FirmwareVersion"] == "4.13.00"


async def test_firmware_that_the_hardware_refuses_fails_the_task(rig: Rig) -> None:
    _, task = await push(rig, b"garbage")
    status, body = await finished(rig)
    assert status == 500
    assert "not a BIOS image" in body["error"]["message"]
    _, task = await rig.get(task["@odata.id"])
    assert (task["TaskState"], task["TaskStatus"]) == ("Exception", "Critical")
    assert "TaskFailed" in await rig.log()


async def test_wrong_pushes(rig: Rig) -> None:
    assert (await rig.post(f"{UPDATE}/update-multipart", {"a": 1}))[0] == 415
    for targets in ('"NIC"', '"BIOS", "BMC"'):
        named = targets.replace('"B', f'"{UPDATE}/FirmwareInventory/B')
        assert (await push(rig, FIRMWARE, f'{{"Targets": [{named}]}}'))[0] == 400
    assert (await push(rig, FIRMWARE, "{"))[0] == 400


async def test_simple_update_downloads(rig: Rig, depot: str) -> None:
    action = f"{UPDATE}/Actions/UpdateService.SimpleUpdate"
    assert (await rig.post(action, {"ImageURI": f"{depot}/bios.bin"}))[0] == 202
    assert (await finished(rig))[0] == 204
    assert rig.hardware.pending.version == "2.05.0"
    assert (await rig.post(action, {"ImageURI": f"{depot}/missing"}))[0] == 202
    status, body = await finished(rig)
    assert (status, "404" in body["error"]["message"]) == (500, True)


# virtual media


@pytest.mark.parametrize("where", ["Systems/1", "Managers/1"])
async def test_virtual_media(rig: Rig, depot: str, where: str) -> None:
    media = f"{ROOT}/{where}/VirtualMedia/CD1"
    insert, uri = f"{media}/Actions/VirtualMedia.InsertMedia", f"{depot}/boot.iso"
    assert (await rig.post(insert, {"Image": uri, "Inserted": True, "WriteProtected": True}))[0] == 204
    assert rig.hardware.media is not None
    assert rig.hardware.media.read_bytes() == b"image" * 1000
    _, shown = await rig.get(media)
    assert (shown["Inserted"], shown["Image"], shown["ImageName"]) == (True, uri, "boot.iso")
    status, body = await rig.post(insert, {"Image": uri})
    assert (status, error_key(body)) == (409, "ResourceInUse")
    assert (await rig.post(f"{media}/Actions/VirtualMedia.EjectMedia"))[0] == 204
    assert rig.hardware.media is None
    assert (await rig.get(media))[1]["Inserted"] is False


async def test_media_that_cannot_be_fetched_is_not_inserted(rig: Rig, depot: str) -> None:
    insert = f"{MEDIA}/Actions/VirtualMedia.InsertMedia"
    for uri in (f"{depot}/missing.iso", "http://127.0.0.1:9/none.iso"):
        status, body = await rig.post(insert, {"Image": uri})
        assert (status, error_key(body)) == (400, "CouldNotEstablishConnection")
    assert (await rig.post(insert, {"Image": "nfs://a/b"}))[0] == 400
    assert rig.hardware.media is None
    assert (await rig.get(MEDIA))[1]["Inserted"] is False


async def test_media_stays_inserted_over_a_restart_of_the_bmc(tmp_path: Path, depot: str) -> None:
    async with running(tmp_path) as first:
        await first.post(f"{MEDIA}/Actions/VirtualMedia.InsertMedia", {"Image": f"{depot}/boot.iso"})
    async with running(tmp_path) as second:
        assert second.hardware.media is not None
        assert (await second.get(MEDIA))[1]["Inserted"] is True
    second.hardware.media.unlink()
    async with running(tmp_path) as third:
        assert (await third.get(MEDIA))[1]["Inserted"] is False
