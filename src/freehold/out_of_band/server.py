"""The doers on one server. Each has one side effect, looks at the state first, and is safe to repeat after a crash."""

import asyncio
from typing import Any, Literal

import msgspec

from freehold.out_of_band import resources as r
from freehold.out_of_band.errors import BmcError, NotSupported
from freehold.out_of_band.inventory import OobInventory, firmware_versions, first_member, read_inventory
from freehold.out_of_band.posture import Posture, posture_findings, read_posture
from freehold.out_of_band.posture import read_accounts as accounts
from freehold.out_of_band.quirks import Behaviour, behaviour_of
from freehold.out_of_band.redfish import Json, RedfishClient, link
from freehold.out_of_band.secure_boot import SecureBootState, enroll_secure_boot, reset_secure_boot, secure_boot_state

__all__ = [
    "OobInventory",
    "Posture",
    "SecureBootState",
    "accounts",
    "bios_attributes",
    "boot_cd",
    "boot_order",
    "clear_boot_override",
    "delete_account",
    "disable_account",
    "eject_media",
    "enroll_secure_boot",
    "firmware_versions",
    "insert_media",
    "ipmi_port",
    "log_entries",
    "posture_findings",
    "power",
    "power_state",
    "read_inventory",
    "read_posture",
    "reset_secure_boot",
    "secure_boot_state",
    "set_bios_attributes",
    "set_boot_http",
    "set_boot_order",
    "set_ipmi",
]

PowerAction = Literal["on", "off", "graceful-off", "reset"]
_RESET_TYPES: dict[str, tuple[str, ...]] = {  # in order of preference; the BMC's AllowableValues decide
    "on": ("On", "ForceOn"),
    "off": ("ForceOff", "PushPowerButton"),
    "graceful-off": ("GracefulShutdown",),
    "reset": ("ForceRestart", "PowerCycle", "GracefulRestart"),
}
_POLL_SECONDS = 0.5


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a BMC or system log. `created` is ISO 8601 as the BMC wrote it."""

    log: str
    id: str
    created: str
    severity: str
    message: str


async def _system(client: RedfishClient) -> tuple[Json, r.System, Behaviour]:
    raw = await first_member(client, "Systems")
    system = r.read(r.System, raw, [])
    return raw, system, behaviour_of(system.manufacturer, system.model, None)


# Power


async def power_state(client: RedfishClient) -> str:
    """Redfish `PowerState`: On, Off, PoweringOn, PoweringOff, or empty if the BMC does not say."""
    _, system, _ = await _system(client)
    return system.power_state or ""


async def power(client: RedfishClient, action: PowerAction, *, timeout: float = 60.0) -> str:
    """Bring the server to on or off, or reset it, and wait for it (seconds). Returns the power state.

    On and off do nothing if it is so already. A reset of a server that is off turns it on: what is wanted is a boot.
    """
    raw, system, behaviour = await _system(client)
    if action == "reset" and system.power_state == "Off":
        action = "on"
    target = {"on": "On", "reset": "On"}.get(action, "Off")
    if action != "reset" and system.power_state == target:
        return target
    reset_type = _reset_type(client, raw, action)
    try:
        answer = await client.action(raw, "ComputerSystem.Reset", {"ResetType": reset_type})
        await client.wait_task(answer, timeout=timeout)
    except BmcError as error:
        # Some BMCs refuse with 400 or 409 when the server got there in between. The state decides, not the refusal.
        if error.status not in (400, 409) or await power_state(client) != target or action == "reset":
            raise
    await asyncio.sleep(behaviour.settle_seconds)
    state = await power_state(client)
    waited = 0.0
    while state != target and waited < timeout:
        await asyncio.sleep(_POLL_SECONDS)
        waited += _POLL_SECONDS
        state = await power_state(client)
    if state != target:
        raise BmcError(
            f"the server is {state or 'in an unknown power state'} {timeout:g} s after {reset_type}",
            status=200,
            server=client.server,
            expected=target,
            remedy="look at the server's console and its system log",
        )
    return state


def _reset_type(client: RedfishClient, system: Json, action: PowerAction) -> str:
    reset = (system.get("Actions") or {}).get("#ComputerSystem.Reset") or {}
    allowed = reset.get("ResetType@Redfish.AllowableValues") or list(_RESET_TYPES[action])
    for candidate in _RESET_TYPES[action]:
        if candidate in allowed:
            return candidate
    raise NotSupported(f"the BMC cannot do {action!r}; it offers {', '.join(map(str, allowed))}", server=client.server)


# Boot


async def set_boot_http(client: RedfishClient, uri: str, *, once: bool = True) -> None:
    """Next boot (or every boot) by UEFI HTTP Boot from `uri` (ComputerSystem `HttpBootUri`)."""
    await _override(client, "UefiHttp", once=once, http_uri=uri)


async def boot_cd(client: RedfishClient, *, once: bool = True) -> None:
    """Next boot from the virtual CD."""
    _, _, behaviour = await _system(client)
    await _override(client, behaviour.cd_target, once=once)


async def clear_boot_override(client: RedfishClient) -> None:
    """The server boots by its own order again."""
    _, system, behaviour = await _system(client)
    if system.boot.boot_source_override_enabled not in (None, "Disabled"):
        await _patch_boot(client, system, behaviour, {"BootSourceOverrideEnabled": "Disabled"})


async def _override(client: RedfishClient, target: str, *, once: bool, http_uri: str | None = None) -> None:
    raw, system, behaviour = await _system(client)
    allowed = (raw.get("Boot") or {}).get("BootSourceOverrideTarget@Redfish.AllowableValues")
    if isinstance(allowed, list) and target not in allowed:
        raise NotSupported(
            f"the BMC cannot boot from {target}; it offers {', '.join(map(str, allowed))}",
            server=client.server,
            remedy="use the other boot method (HTTP or virtual media) for this server",
        )
    present, enabled = system.boot, "Once" if once else "Continuous"
    if (
        present.boot_source_override_target == target
        and present.boot_source_override_enabled == enabled
        and (http_uri is None or present.http_boot_uri == http_uri)
    ):
        return
    wanted = {"BootSourceOverrideTarget": target, "BootSourceOverrideEnabled": enabled}
    if http_uri is not None:
        wanted["HttpBootUri"] = http_uri
    if present.boot_source_override_mode is not None and (
        behaviour.full_boot_object or present.boot_source_override_mode != "UEFI"
    ):
        wanted["BootSourceOverrideMode"] = "UEFI"
    await _patch_boot(client, system, behaviour, wanted)


async def _patch_boot(client: RedfishClient, system: r.System, behaviour: Behaviour, boot: dict[str, Any]) -> None:
    path = str(system.uri)
    if behaviour.boot_in_settings:
        settings = link(await client.get(path), "@Redfish.Settings", "SettingsObject")
        if settings is not None and "Boot" in await client.get(settings):
            path = settings
    await client.wait_task(await client.patch(path, {"Boot": boot}))


async def boot_order(client: RedfishClient) -> tuple[str, ...]:
    """`Boot.BootOrder`: references such as `Boot0003`."""
    _, system, _ = await _system(client)
    return system.boot.boot_order


async def boot_options(client: RedfishClient) -> tuple[r.BootOption, ...]:
    _, system, _ = await _system(client)
    path = system.boot.boot_options.uri
    return tuple(r.read(r.BootOption, raw, []) for raw in (await client.members(path) if path else []))


async def set_boot_order(client: RedfishClient, order: tuple[str, ...]) -> None:
    _, system, behaviour = await _system(client)
    if system.boot.boot_order != order:
        await _patch_boot(client, system, behaviour, {"BootOrder": list(order)})


# Virtual media


async def _virtual_cd(client: RedfishClient) -> tuple[Json, r.VirtualMedia]:
    """The first CD slot: of the system where it has them (Redfish 2021.1 and later), else of the manager."""
    for name in ("Systems", "Managers"):
        path = link(await first_member(client, name), "VirtualMedia")
        for raw in await client.members(path) if path else []:
            media = r.read(r.VirtualMedia, raw, [])
            if {"CD", "DVD"} & set(media.media_types):
                return raw, media
    raise NotSupported("the BMC has no virtual CD", server=client.server, remedy="boot this server by UEFI HTTP Boot")


async def insert_media(client: RedfishClient, image_url: str) -> None:
    """Put `image_url` into the virtual CD; whatever was in it is ejected first."""
    raw, media = await _virtual_cd(client)
    if media.inserted and media.image == image_url:
        return
    if media.inserted:
        await eject_media(client)
    _, _, behaviour = await _system(client)
    body: dict[str, Any] = {"Image": image_url}
    if behaviour.insert_flags:
        body |= {"Inserted": True, "WriteProtected": True}
    await client.wait_task(await client.action(raw, "VirtualMedia.InsertMedia", body))


async def eject_media(client: RedfishClient) -> None:
    raw, media = await _virtual_cd(client)
    if media.inserted:
        await client.wait_task(await client.action(raw, "VirtualMedia.EjectMedia", {}))


# BIOS


async def bios_attributes(client: RedfishClient) -> dict[str, Any]:
    """The attributes that are active now, by their registry names."""
    _, system, _ = await _system(client)
    return r.read(r.Bios, await client.get(_bios_uri(client, system)), []).attributes


async def set_bios_attributes(client: RedfishClient, wanted: dict[str, Any]) -> tuple[str, ...]:
    """Stage the attributes that differ, through the settings object where there is one. They apply at the next reset.

    Returns the names that were staged. An attribute that the BIOS does not have is an error, never ignored.
    """
    _, system, _ = await _system(client)
    bios = await client.get(_bios_uri(client, system))
    active = r.read(r.Bios, bios, []).attributes
    unknown = sorted(set(wanted) - set(active))
    if unknown:
        raise NotSupported(
            f"the BIOS has no attribute {', '.join(unknown)}", server=client.server, remedy="correct the baseline"
        )
    path = link(bios, "@Redfish.Settings", "SettingsObject")
    pending = r.read(r.Bios, await client.get(path), []).attributes if path else {}
    differing = {name: value for name, value in wanted.items() if {**active, **pending}.get(name) != value}
    if differing:
        await client.wait_task(await client.patch(path or str(bios["@odata.id"]), {"Attributes": differing}))
    return tuple(sorted(differing))


def _bios_uri(client: RedfishClient, system: r.System) -> str:
    if system.bios.uri is None:
        raise NotSupported("the BMC does not show BIOS settings", server=client.server)
    return system.bios.uri


# BMC


async def ipmi_port(client: RedfishClient) -> int:
    """The UDP port of IPMI over LAN, as the BMC says; 623 if it does not."""
    path = link(await first_member(client, "Managers"), "NetworkProtocol")
    raw = await client.get(path) if path else {}
    return r.read(r.Service, raw.get("IPMI") or {}, []).port or 623


async def set_ipmi(client: RedfishClient, enabled: bool) -> bool:
    """Switch IPMI over LAN. Returns whether it had to be changed; a BMC without an IPMI switch is `NotSupported`."""
    path = link(await first_member(client, "Managers"), "NetworkProtocol")
    raw = await client.get(path) if path else {}
    ipmi = r.read(r.Service, raw.get("IPMI") or {}, [])
    if path is None or ipmi.protocol_enabled is None:
        raise NotSupported(
            "the BMC has no IPMI switch in NetworkProtocol",
            server=client.server,
            remedy="check by a probe of UDP port 623 whether it speaks IPMI at all",
        )
    if ipmi.protocol_enabled == enabled:
        return False
    await client.wait_task(await client.patch(path, {"IPMI": {"ProtocolEnabled": enabled}}))
    after = r.read(r.Service, (await client.get(path)).get("IPMI") or {}, [])
    if after.protocol_enabled != enabled:
        raise BmcError("the BMC accepted the IPMI switch and ignored it", status=200, server=client.server)
    return True


async def disable_account(client: RedfishClient, uri: str) -> None:
    """Disable an account and read back that it is."""
    if r.read(r.Account, await client.get(uri), []).enabled is False:
        return
    await client.patch(uri, {"Enabled": False})
    if r.read(r.Account, await client.get(uri), []).enabled is not False:
        raise BmcError(f"the BMC accepted to disable {uri} and did not", status=200, server=client.server)


async def delete_account(client: RedfishClient, uri: str) -> None:
    """Delete an account; one that is gone already is success."""
    await client.delete(uri)


async def log_entries(client: RedfishClient, *, limit: int = 200) -> tuple[LogLine, ...]:
    """The newest entries of each log of the system and the manager, at most `limit` a log, oldest first."""
    lines: list[LogLine] = []
    for name in ("Systems", "Managers"):
        path = link(await first_member(client, name), "LogServices")
        for service in await client.members(path) if path else []:
            entries = link(service, "Entries")
            log = f"{name}/{service.get('Id', '')}"
            read = [r.read(r.LogEntry, raw, []) for raw in (await client.members(entries) if entries else [])]
            read.sort(key=lambda entry: entry.created or "")
            lines += [
                LogLine(
                    log=log,
                    id=entry.id or "",
                    created=entry.created or "",
                    severity=entry.severity or "",
                    message=entry.message or entry.message_id or "",
                )
                for entry in read[-limit:]
            ]
    return tuple(lines)
