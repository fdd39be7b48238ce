"""Firmware updates through Redfish `UpdateService` (DSP0266 1.20, 7.11.2; UpdateService v1.17).

The bytes that are sent are the caller's, and are verified there: no standard property says whether a BMC checks what it
is given, and some BMCs' own check can be walked around (CVE-2024-10237, CVE-2025-7937). A push is never repeated
blindly: nothing is sent while a task of the BMC is not over, and whoever does not know how a push ended
(`BmcUnreachable`) looks at the version before the next one.
"""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

import msgspec

from freehold.out_of_band.download_trust import trust_server
from freehold.out_of_band.errors import BmcError, BmcUnreachable, NotSupported, UpdateUnderWay
from freehold.out_of_band.firmware_names import Component, FirmwareItem, firmware_of
from freehold.out_of_band.inventory import first_member
from freehold.out_of_band.redfish import Json, RedfishClient, link
from freehold.out_of_band.transport import Answer

RUNNING = ("New", "Starting", "Running", "Pending", "Stopping", "Service")
SIMPLE_UPDATE = "UpdateService.SimpleUpdate"
_STARTING = frozenset({502, 503, 504})  # what a BMC answers, or the web server before it, while it is not there yet
_POLL_SECONDS = 2.0

SLOWEST = 128 << 10
"""Bytes a second: what a management network carries at its worst, so how long an upload may take."""

PUSHED, FETCHED = "multipart HTTP push", "SimpleUpdate, by HTTPS from the controller"


class FileServer(NamedTuple):
    """Where a BMC may fetch what it takes no upload of. `serve(content, name)` yields the `https` URL while its context
    is entered; `ca_pem` is whom the BMC has to trust for it."""

    serve: Callable[[bytes, str], AbstractAsyncContextManager[str]]
    ca_pem: str


class Sent(NamedTuple):
    """`by`: `PUSHED` or `FETCHED`. `seen`: the BMC told how the update ended; else it started anew and forgot."""

    by: str
    seen: bool


def send_seconds(size: int) -> float:
    """How long an upload of so many bytes may take."""
    return 20.0 + size / SLOWEST


async def find_firmware(client: RedfishClient, component: Component) -> FirmwareItem:
    """Raises `NotSupported` if the BMC does not tell which of its firmware that is, or does not update it."""
    path = link(await _service(client), "FirmwareInventory")
    members = await client.members(path) if path is not None else []
    part = await _part(client, component)
    found = firmware_of(component, members, active=link(part, "Links", "ActiveSoftwareImage"), part=link(part))
    if found is None or not found.updateable:
        raise NotSupported(
            f"the BMC lists no {component} that it could update"
            if found is None
            else f"the BMC does not update the {component}",
            server=client.server,
            remedy=f"update the {component} by the vendor's own way, and declare the version that it then has",
        )
    return found


async def find_bios(client: RedfishClient) -> FirmwareItem:
    return await find_firmware(client, "BIOS")


async def _part(client: RedfishClient, component: Component) -> Json:
    """The resource that the firmware belongs to: Manager, or Bios (of which some BMCs have none)."""
    if component == "BMC":
        return await first_member(client, "Managers")
    path = link(await first_member(client, "Systems"), "Bios")
    return await client.get(path) if path is not None else {}


async def firmware_version(client: RedfishClient, component: Component) -> str:
    """`ComputerSystem.BiosVersion` or `Manager.FirmwareVersion`: what inventory, baselines and reference values go
    by. FirmwareInventory may write the same version in another way."""
    if component == "BMC":
        return str((await first_member(client, "Managers")).get("FirmwareVersion") or "").strip()
    return str((await first_member(client, "Systems")).get("BiosVersion") or "").strip()


async def bios_version(client: RedfishClient) -> str:
    return await firmware_version(client, "BIOS")


async def update_running(client: RedfishClient) -> bool:
    """Whether some task of the BMC is not over: then nothing new is begun."""
    tasks = link(await client.get(link(client.root, "Tasks") or ""), "Tasks") if link(client.root, "Tasks") else None
    members = await client.members(tasks) if tasks is not None else []
    return any(member.get("TaskState") in RUNNING for member in members)


async def push_firmware(
    client: RedfishClient,
    package: bytes,
    target: str,
    *,
    name: str,
    timeout: float = 1800.0,
    server: FileServer | None = None,
    restarts: bool = False,
) -> Sent:
    """Send `package` for the firmware at `target` and follow the task to its end. It is in force from the next start of
    the server (BMC: of the BMC) on.

    `restarts`: it is the BMC's own firmware. That it starts anew and forgets the task is then an end like any other:
    what came of it, its version tells. A BMC that takes no uploads is told to fetch the package from `server`
    (SimpleUpdate), which it then verifies.

    Raises `NotSupported` if the BMC takes updates by neither way or not of this size, `UpdateUnderWay` if it is busy,
    `BmcError` if it refused or the task failed, and `BmcUnreachable` if the outcome is unknown.
    """
    service = await _service(client)
    push_uri = _accepting(client, service, package, server)
    if await update_running(client):
        raise UpdateUnderWay(
            "a task of the BMC is still running, so no firmware is sent",
            server=client.server,
            remedy="it is tried again by itself; a task that never ends goes with a restart of the BMC",
        )
    if push_uri is not None:
        content, content_type = multipart({"Targets": [target]}, package, name)
        sent = await client.upload(push_uri, content, content_type, timeout=send_seconds(len(content)))
        return Sent(PUSHED, await _follow(client, sent, timeout, restarts))
    assert server is not None
    await trust_server(client, service, server.ca_pem)
    async with server.serve(package, name) as image_uri:
        order = {"ImageURI": image_uri, "TransferProtocol": "HTTPS", "Targets": [target]}
        seen = await _follow(client, await client.action(service, SIMPLE_UPDATE, order), timeout, restarts)
    return Sent(FETCHED, seen)


def _accepting(client: RedfishClient, service: Json, package: bytes, server: FileServer | None) -> str | None:
    """Where to push to; None: it is to be fetched. Raises `NotSupported` before a byte is sent."""
    largest, push_uri = service.get("MaxImageSizeBytes"), service.get("MultipartHttpPushUri")
    why = remedy = None
    if service.get("ServiceEnabled") is False:
        why, remedy = "its update service is turned off", "enable it (UpdateService.ServiceEnabled)"
    elif isinstance(largest, int) and len(package) > largest:
        why = f"the package has {len(package)} bytes, the BMC takes {largest}"
        remedy = "import the package that the vendor makes for updates by Redfish"
    elif isinstance(push_uri, str):
        return push_uri
    elif f"#{SIMPLE_UPDATE}" not in (service.get("Actions") or {}):
        why = "it takes firmware neither by upload (MultipartHttpPushUri) nor by download (SimpleUpdate)"
        remedy = "update the BMC's firmware by the vendor's own way first"
    elif server is None:
        why = "it takes no firmware by upload (no MultipartHttpPushUri)"
        remedy = "serve the package where the BMC can fetch it (SimpleUpdate)"
    else:
        return None
    raise NotSupported(f"the BMC cannot be sent this firmware: {why}", server=client.server, remedy=remedy)


async def _follow(client: RedfishClient, answer: Answer, timeout: float, restarts: bool) -> bool:
    """To the end of what `answer` began; whether that was seen. A BMC may fall silent while it writes its own flash, or
    start anew at the end; reading is safe to repeat, so that is waited out."""
    clock = asyncio.get_running_loop().time
    end = clock() + timeout
    while True:
        try:
            await client.wait_task(answer, timeout=max(end - clock(), 0.0))
        except NotSupported as error:
            if restarts:
                return False
            raise BmcUnreachable(
                "the BMC has started anew and forgotten the task of the update; how it ended is unknown",
                server=client.server,
                remedy="nothing to do: its tasks and the version are looked at before anything is sent again",
            ) from error
        except (BmcError, BmcUnreachable) as error:
            if clock() >= end or (isinstance(error, BmcError) and error.status not in _STARTING):
                raise
            await asyncio.sleep(_POLL_SECONDS)
        else:
            return True


def multipart(parameters: Json, package: bytes, name: str) -> tuple[bytes, str]:
    """The body of a multipart HTTP push and its Content-Type: `UpdateParameters` (JSON), then `UpdateFile`. Pure but
    for its boundary, which is random so that no package can hold it."""
    boundary = f"freehold-{secrets.token_hex(16)}"
    file_name = "".join(each for each in name if each.isalnum() or each in "._-") or "package"
    parts = (
        b'Content-Disposition: form-data; name="UpdateParameters"\r\nContent-Type: application/json\r\n\r\n'
        + msgspec.json.encode(parameters),
        f'Content-Disposition: form-data; name="UpdateFile"; filename="{file_name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode()
        + package,
    )
    body = b"".join(b"--" + boundary.encode() + b"\r\n" + part + b"\r\n" for part in parts)
    return body + b"--" + boundary.encode() + b"--\r\n", f"multipart/form-data; boundary={boundary}"


async def _service(client: RedfishClient) -> Json:
    path = link(client.root, "UpdateService")
    if path is None:
        raise NotSupported("the BMC has no UpdateService", server=client.server)
    return await client.get(path)
