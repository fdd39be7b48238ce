"""Firmware updates through Redfish `UpdateService` (DSP0266 1.20, 7.11.2; UpdateService v1.17).

The bytes that are sent are the caller's, and are verified there: no standard property says whether a BMC checks what it
is given, and some BMCs' own check can be walked around (CVE-2024-10237, CVE-2025-7937). A push is never repeated
blindly: whoever does not know how one ended looks at the tasks and at the version first.
"""

import secrets
from collections.abc import Sequence

import msgspec

from freehold.out_of_band.errors import NotSupported
from freehold.out_of_band.inventory import first_member
from freehold.out_of_band.redfish import Json, RedfishClient, link

BIOS_NAMES = ("bios", "system bios", "system rom", "uefi", "bios firmware")
"""What vendors call the BIOS in FirmwareInventory: Dell, Supermicro and the standard's mock-up by `Id` or a name that
ends so, HPE "System ROM" ("Redundant System ROM" is the other copy)."""

RUNNING = ("New", "Starting", "Running", "Pending", "Stopping", "Service")


class FirmwareItem(msgspec.Struct, frozen=True, kw_only=True):
    """A SoftwareInventory resource that can be updated: its URI is what `Targets` names."""

    uri: str
    name: str
    version: str
    updateable: bool


def bios_of(members: Sequence[Json]) -> FirmwareItem | None:
    """The BIOS among the members of a FirmwareInventory; None if none, or more than one, is called so. Pure."""
    found = []
    for member in members:
        uri, name = link(member), str(member.get("Name") or "").strip()
        related = [link(each) or "" for each in member.get("RelatedItem") or []]
        called = str(member.get("Id") or "").lower() == "bios" or name.lower() in BIOS_NAMES
        if uri is not None and (called or any(each.endswith("/Bios") for each in related)):
            version, updateable = str(member.get("Version") or "").strip(), member.get("Updateable") is not False
            found.append(FirmwareItem(uri=uri, name=name, version=version, updateable=updateable))
    return found[0] if len(found) == 1 else None


async def find_bios(client: RedfishClient) -> FirmwareItem:
    """Raises `NotSupported` if the BMC does not tell which of its firmware is the BIOS, or does not update it."""
    service = await _service(client)
    path = link(service, "FirmwareInventory")
    bios = bios_of(await client.members(path)) if path is not None else None
    if bios is None or not bios.updateable:
        raise NotSupported(
            "the BMC lists no BIOS that it could update" if bios is None else "the BMC does not update the BIOS",
            server=client.server,
            remedy="update the BIOS by the vendor's own way, and declare the version that it then has",
        )
    return bios


async def bios_version(client: RedfishClient) -> str:
    """`ComputerSystem.BiosVersion`: what inventory, baselines and reference values go by."""
    return str((await first_member(client, "Systems")).get("BiosVersion") or "").strip()


async def update_running(client: RedfishClient) -> bool:
    """Whether some task of the BMC is not over: then nothing new is begun."""
    tasks = link(await client.get(link(client.root, "Tasks") or ""), "Tasks") if link(client.root, "Tasks") else None
    members = await client.members(tasks) if tasks is not None else []
    return any(member.get("TaskState") in RUNNING for member in members)


async def push_firmware(
    client: RedfishClient, package: bytes, target: str, *, name: str, send_timeout: float, timeout: float = 1800.0
) -> None:
    """Send `package` for the firmware at `target` and follow the task to its end. `send_timeout` (seconds) bounds the
    upload. It is in force from the server's next start on.

    Raises `NotSupported` if the BMC takes no uploads or not of this size, `BmcError` if the task failed, and
    `BmcUnreachable` if the outcome is unknown.
    """
    service = await _service(client)
    uri, largest = service.get("MultipartHttpPushUri"), service.get("MaxImageSizeBytes")
    if not isinstance(uri, str):
        raise NotSupported(
            "the BMC takes no firmware by upload (no MultipartHttpPushUri)",
            server=client.server,
            remedy="update the BMC's firmware by the vendor's own way first",
        )
    if isinstance(largest, int) and len(package) > largest:
        raise NotSupported(
            f"the package has {len(package)} bytes, the BMC takes {largest}",
            server=client.server,
            remedy="import the package that the vendor makes for updates by Redfish",
        )
    content, content_type = multipart({"Targets": [target]}, package, name)
    answer = await client.upload(uri, content, content_type, timeout=send_timeout)
    await client.wait_task(answer, timeout=timeout)


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
