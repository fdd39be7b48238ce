"""UpdateService: firmware inventory, update by download (SimpleUpdate) and by upload (multipart push)."""

import hashlib
import json
from collections.abc import Iterable

from aiohttp import BodyPartReader, web
from cryptography.hazmat.primitives.serialization import Encoding

from freehold_lab import firmware_package
from freehold_lab.bmc.certificates import certificate_body, read_pem
from freehold_lab.bmc.core import OK, ROOT, Action, Call, JsonObject, Reply, Resource, collection, created, link
from freehold_lab.bmc.events import trust
from freehold_lab.bmc.fields import ListOf, OneOf
from freehold_lab.bmc.media import download
from freehold_lab.bmc.messages import RedfishError
from freehold_lab.bmc.systems import bios_version
from freehold_lab.bmc.tasks import Task, start_task

SERVICE = f"{ROOT}/UpdateService"
PUSH_PATH = f"{SERVICE}/update-multipart"
INVENTORY = f"{SERVICE}/FirmwareInventory"
CERTIFICATES = f"{SERVICE}/RemoteServerCertificates"
MAX_IMAGE_BYTES = 64 << 20
FIRMWARE = {"BIOS": "System BIOS", "BMC": "Management Controller"}


async def _service(call: Call) -> JsonObject:
    uploads = {} if call.bmc.hardware.faults.uploads_refused else {"MultipartHttpPushUri": PUSH_PATH}
    return {
        "Name": "Update Service",
        "Status": OK,
        "ServiceEnabled": True,
        **uploads,
        "MaxImageSizeBytes": MAX_IMAGE_BYTES,
        "FirmwareInventory": link(INVENTORY),
        "RemoteServerCertificates": link(CERTIFICATES),
        "VerifyRemoteServerCertificate": call.bmc.store.data.verify_update_server,
    }


async def _patch(call: Call) -> None:
    call.bmc.store.data.verify_update_server = call.body["VerifyRemoteServerCertificate"]
    call.bmc.store.save()


async def _certificates(call: Call) -> Iterable[str]:
    return call.bmc.store.data.update_certificates


async def _certificate(call: Call) -> JsonObject:
    pem = call.bmc.store.data.update_certificates.get(call["certificate"])
    if pem is None:
        raise call.missing()
    return certificate_body(read_pem(pem), "Certificate of an update server's CA")


async def _add_certificate(call: Call) -> Reply:
    pem, store = call.body["CertificateString"], call.bmc.store
    number = hashlib.sha256(read_pem(pem).public_bytes(Encoding.DER)).hexdigest()[:16]
    if number in store.data.update_certificates:
        raise RedfishError("ResourceAlreadyExists", "Certificate", "Id", number)
    store.data.update_certificates[number] = pem
    store.save()
    return created(f"{call.uri}/{number}")


async def _delete_certificate(call: Call) -> None:
    if call.bmc.store.data.update_certificates.pop(call["certificate"], None) is None:
        raise call.missing()
    call.bmc.store.save()


async def _members(_: Call) -> Iterable[str]:
    return FIRMWARE


async def _firmware(call: Call) -> JsonObject:
    bmc, item = call.bmc, call["firmware"]
    if item not in FIRMWARE:
        raise call.missing()
    version = bios_version(bmc.hardware) if item == "BIOS" else bmc.version
    part = f"{ROOT}/Systems/1/Bios" if item == "BIOS" else f"{ROOT}/Managers/1"
    return {
        "Name": FIRMWARE[item],
        "Manufacturer": bmc.config.manufacturer,
        "Version": version,
        "SoftwareId": f"halden-{item.lower()}",
        "Updateable": True,
        "RelatedItem": [link(part)],
        "Status": OK,
    }


async def _simple_update(call: Call) -> Reply:
    uri = call.body["ImageURI"]
    item = _target(call.body.get("Targets", []))
    if not uri.startswith(("http://", "https://")):
        raise RedfishError("ActionParameterValueError", "ImageURI", "UpdateService.SimpleUpdate")
    bmc = call.bmc

    async def work(task: Task) -> None:
        image = bmc.config.state_dir / "media" / f"firmware-{task.id}.bin"
        remembered = bmc.store.data
        known = trust(bmc.config.trusted_ca, *remembered.update_certificates.values())
        await download(uri, image, known if remembered.verify_update_server else False)
        task.percent = 50
        content = image.read_bytes()
        image.unlink()
        await _install(call, item, content)

    return start_task(call, f"{item} update from {uri}", work)


async def push(call: Call) -> Reply:
    """POST to MultipartHttpPushUri (DSP0266, 7.11.2): parts UpdateParameters (JSON) and UpdateFile."""
    if call.bmc.hardware.faults.uploads_refused:
        raise call.missing()
    if call.http is None or not call.http.content_type.startswith("multipart/"):
        raise RedfishError("UnrecognizedRequestBody", status=415)
    parameters, content = await _read_parts(call.http)
    if content is None:
        raise RedfishError("PropertyMissing", "UpdateFile", pointer="UpdateFile")
    item, image = _target(parameters.get("Targets", [])), content

    async def work(_: Task) -> None:
        await _install(call, item, image)

    return start_task(call, f"{item} update by upload", work)


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


def _target(targets: list[str]) -> str:
    """The member of the inventory that is meant; without a target it is the BIOS."""
    known = {f"{INVENTORY}/{item}": item for item in FIRMWARE}
    known |= {f"{ROOT}/Systems/1/Bios": "BIOS", f"{ROOT}/Systems/1": "BIOS", f"{ROOT}/Managers/1": "BMC"}
    for target in targets:
        if target not in known or known[target] != known[targets[0]]:
            raise RedfishError("PropertyValueNotInList", target, "Targets", pointer="Targets")
    return known[targets[0]] if targets else "BIOS"


async def _install(call: Call, item: str, image: bytes) -> None:
    """A BMC starts anew into its own; a BIOS waits for the next start of the machine."""
    bmc = call.bmc
    version = await bmc.hardware.install_firmware(image) if item == "BIOS" else firmware_package.bmc_version(image)
    bmc.record("FirmwareInstalled", version, origin=f"{INVENTORY}/{item}", log="System")
    if item == "BMC":
        bmc.store.data.bmc_version = version
        bmc.store.save()
        bmc.restart_soon()


RESOURCES = (
    Resource(
        SERVICE,
        "UpdateService.v1_17_0.UpdateService",
        _service,
        fields={"VerifyRemoteServerCertificate": bool},
        patch=_patch,
        actions=(
            Action(
                "UpdateService.SimpleUpdate",
                _simple_update,
                {"ImageURI": str, "TransferProtocol": OneOf(("HTTP", "HTTPS")), "Targets": ListOf(str)},
                ("ImageURI",),
            ),
        ),
    ),
    collection(
        CERTIFICATES,
        "Certificate",
        "Remote Server Certificate Collection",
        _certificates,
        create=_add_certificate,
        create_fields={"CertificateString": str, "CertificateType": OneOf(("PEM",))},
        create_required=("CertificateString", "CertificateType"),
        privilege="ConfigureManager",
    ),
    Resource(
        f"{CERTIFICATES}/{{certificate}}",
        "Certificate.v1_11_0.Certificate",
        _certificate,
        delete=_delete_certificate,
        privilege="ConfigureManager",
    ),
    collection(INVENTORY, "SoftwareInventory", "Firmware Inventory Collection", _members),
    Resource(f"{INVENTORY}/{{firmware}}", "SoftwareInventory.v1_13_0.SoftwareInventory", _firmware),
)
