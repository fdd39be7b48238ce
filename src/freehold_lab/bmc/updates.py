"""UpdateService: firmware inventory, update by download (SimpleUpdate) and by upload (multipart push)."""

import json
from collections.abc import Iterable

from aiohttp import BodyPartReader, web

from freehold_lab.bmc.core import OK, ROOT, Action, Call, JsonObject, Reply, Resource, collection, link
from freehold_lab.bmc.fields import ListOf, OneOf
from freehold_lab.bmc.media import download
from freehold_lab.bmc.messages import RedfishError
from freehold_lab.bmc.systems import bios_version
from freehold_lab.bmc.tasks import Task, start_task

SERVICE = f"{ROOT}/UpdateService"
PUSH_PATH = f"{SERVICE}/update-multipart"
INVENTORY = f"{SERVICE}/FirmwareInventory"
MAX_IMAGE_BYTES = 64 << 20
FIRMWARE = {"BIOS": "System BIOS", "BMC": "Management Controller"}


async def _service(_: Call) -> JsonObject:
    return {
        "Name": "Update Service",
        "Status": OK,
        "ServiceEnabled": True,
        "MultipartHttpPushUri": PUSH_PATH,
        "MaxImageSizeBytes": MAX_IMAGE_BYTES,
        "FirmwareInventory": link(INVENTORY),
    }


async def _members(_: Call) -> Iterable[str]:
    return FIRMWARE


async def _firmware(call: Call) -> JsonObject:
    bmc, item = call.bmc, call["firmware"]
    if item not in FIRMWARE:
        raise call.missing()
    version = bios_version(bmc.hardware) if item == "BIOS" else bmc.config.bmc_firmware_version
    part = f"{ROOT}/Systems/1/Bios" if item == "BIOS" else f"{ROOT}/Managers/1"
    return {
        "Name": FIRMWARE[item],
        "Manufacturer": bmc.config.manufacturer,
        "Version": version,
        "SoftwareId": f"halden-{item.lower()}",
        "Updateable": item == "BIOS",
        "RelatedItem": [link(part)],
        "Status": OK,
    }


async def _simple_update(call: Call) -> Reply:
    uri = call.body["ImageURI"]
    _check_targets(call.body.get("Targets", []), "ImageURI")
    if not uri.startswith(("http://", "https://")):
        raise RedfishError("ActionParameterValueError", "ImageURI", "UpdateService.SimpleUpdate")
    bmc = call.bmc

    async def work(task: Task) -> None:
        image = bmc.config.state_dir / "media" / f"firmware-{task.id}.bin"
        await download(uri, image, bmc.config.trusted_ca)
        task.percent = 50
        content = image.read_bytes()
        image.unlink()
        await _install(call, content)

    return start_task(call, "BIOS update from " + uri, work)


async def push(call: Call) -> Reply:
    """POST to MultipartHttpPushUri (DSP0266, 7.11.2): parts UpdateParameters (JSON) and UpdateFile."""
    if call.http is None or not call.http.content_type.startswith("multipart/"):
        raise RedfishError("UnrecognizedRequestBody", status=415)
    parameters, content = await _read_parts(call.http)
    if content is None:
        raise RedfishError("PropertyMissing", "UpdateFile", pointer="UpdateFile")
    _check_targets(parameters.get("Targets", []), "Targets")
    image = content

    async def work(_: Task) -> None:
        await _install(call, image)

    return start_task(call, "BIOS update by upload", work)


async def _read_parts(request: web.Request) -> tuple[JsonObject, bytes | None]:
    parameters: JsonObject = {}
    content: bytes | None = None
    async for part in await request.multipart():
        if not isinstance(part, BodyPartReader):
            continue
        name = part.name
        if name == "UpdateParameters":
            try:
                parameters = json.loads(await part.read())
            except ValueError as error:
                raise RedfishError("MalformedJSON") from error
        elif name == "UpdateFile":
            content = bytes(await part.read())
    if not isinstance(parameters, dict):
        raise RedfishError("UnrecognizedRequestBody")
    return parameters, content


def _check_targets(targets: list[str], name: str) -> None:
    """Only the BIOS can be updated; no target means the BIOS."""
    for target in targets:
        if target not in (f"{INVENTORY}/BIOS", f"{ROOT}/Systems/1/Bios", f"{ROOT}/Systems/1"):
            raise RedfishError("PropertyValueNotInList", target, name, pointer="Targets")


async def _install(call: Call, image: bytes) -> None:
    version = await call.bmc.hardware.install_firmware(image)
    call.bmc.record("FirmwareInstalled", version, origin=f"{INVENTORY}/BIOS", log="System")


RESOURCES = (
    Resource(
        SERVICE,
        "UpdateService.v1_17_0.UpdateService",
        _service,
        actions=(
            Action(
                "UpdateService.SimpleUpdate",
                _simple_update,
                {"ImageURI": str, "TransferProtocol": OneOf(("HTTP", "HTTPS")), "Targets": ListOf(str)},
                ("ImageURI",),
            ),
        ),
    ),
    collection(INVENTORY, "SoftwareInventory", "Firmware Inventory Collection", _members),
    Resource(f"{INVENTORY}/{{firmware}}", "SoftwareInventory.v1_13_0.SoftwareInventory", _firmware),
)
