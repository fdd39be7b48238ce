"""Virtual media: one virtual CD, shown under the system and (for older clients) under the manager."""

import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import aiohttp

from freehold_lab.bmc.core import ROOT, Action, Call, JsonObject, Resource, collection
from freehold_lab.bmc.events import trust
from freehold_lab.bmc.fields import Fields, OneOf
from freehold_lab.bmc.messages import RedfishError

if TYPE_CHECKING:
    from freehold_lab.bmc.context import Bmc

CHUNK = 1 << 20


async def download(uri: str, target: Path, verified: ssl.SSLContext | Literal[False]) -> None:
    """Fetch `uri` (http, or https with the server `verified`) to `target`, which appears only when complete."""
    partial = target.with_suffix(".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            async with session.get(uri, ssl=verified) as answer:
                answer.raise_for_status()
                with partial.open("wb") as file:
                    async for chunk in answer.content.iter_chunked(CHUNK):
                        file.write(chunk)
    except (aiohttp.ClientError, TimeoutError) as error:
        partial.unlink(missing_ok=True)
        raise RedfishError("CouldNotEstablishConnection", uri, str(error) or type(error).__name__) from error
    partial.replace(target)


async def restore(bmc: "Bmc") -> None:
    """Insert again what was inserted when the BMC stopped."""
    if not bmc.store.data.media_uri:
        return
    image = _image(bmc)
    if image.exists():
        await bmc.hardware.insert_media(image)
    else:
        bmc.store.data.media_uri = ""
        bmc.store.save()


def _image(bmc: "Bmc") -> Path:
    return bmc.config.state_dir / "media" / "cd1.img"


async def _members(_: Call) -> Iterable[str]:
    return ["CD1"]


async def _media(call: Call) -> JsonObject:
    uri = call.bmc.store.data.media_uri
    return {
        "Name": "Virtual CD",
        "MediaTypes": ["CD", "DVD"],
        "Image": uri or None,
        "ImageName": urlsplit(uri).path.rsplit("/", 1)[-1] or None,
        "Inserted": bool(uri),
        "ConnectedVia": "URI" if uri else "NotConnected",
        "WriteProtected": True,
        "TransferMethod": "Upload",
        "VerifyCertificate": True,
    }


async def _insert(call: Call) -> None:
    bmc, uri = call.bmc, call.body["Image"]
    if bmc.store.data.media_uri:
        raise RedfishError("ResourceInUse", "a medium is inserted; eject it first")
    if call.body.get("Inserted") is False or call.body.get("WriteProtected") is False:
        raise RedfishError("ActionParameterValueError", "Inserted/WriteProtected", "VirtualMedia.InsertMedia")
    if not uri.startswith(("http://", "https://")):
        raise RedfishError("ActionParameterValueError", "Image", "VirtualMedia.InsertMedia")
    bmc.store.data.media_uri = uri  # already now: a second request during the download is refused
    try:
        await download(uri, _image(bmc), trust(bmc.config.trusted_ca))
        await bmc.hardware.insert_media(_image(bmc))
    except BaseException:
        bmc.store.data.media_uri = ""
        raise
    bmc.record("MediaInserted", uri, origin=call.uri)


async def _eject(call: Call) -> None:
    bmc = call.bmc
    await bmc.hardware.eject_media()
    _image(bmc).unlink(missing_ok=True)
    if bmc.store.data.media_uri:
        bmc.store.data.media_uri = ""
        bmc.record("MediaEjected", origin=call.uri)


def _under(parent: str) -> tuple[Resource, ...]:
    fields: Fields = {
        "Image": str,
        "Inserted": bool,
        "WriteProtected": bool,
        "TransferMethod": OneOf(("Upload", "Stream")),
        "TransferProtocolType": OneOf(("HTTP", "HTTPS")),
        "MediaType": str,
    }
    return (
        collection(f"{parent}/VirtualMedia", "VirtualMedia", "Virtual Media Collection", _members),
        Resource(
            f"{parent}/VirtualMedia/CD1",
            "VirtualMedia.v1_6_5.VirtualMedia",
            _media,
            actions=(
                Action("VirtualMedia.InsertMedia", _insert, fields, ("Image",)),
                Action("VirtualMedia.EjectMedia", _eject),
            ),
        ),
    )


RESOURCES = (*_under(f"{ROOT}/Systems/1"), *_under(f"{ROOT}/Managers/1"))
