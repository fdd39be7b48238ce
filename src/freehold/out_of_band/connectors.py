"""The vendors' ways home that a BMC's OEM data tells of. One that is on talks to its vendor, past every policy here."""

from typing import Any

import msgspec

from freehold.out_of_band.errors import BmcAnswerUnreadable, BmcError, NotSupported
from freehold.out_of_band.redfish import Json, RedfishClient, link


class CloudConnector(msgspec.Struct, frozen=True, kw_only=True):
    """`name` is the vendor's word, `state` its value as read, `source` the resource and property that held it."""

    name: str
    state: str
    source: str
    enabled: bool


def connectors_in(
    manager: Json, *, remote_support: Json, dell_attributes: Json, service_advisor: Json
) -> tuple[CloudConnector, ...]:
    """HPE's Compute Ops Management and Insight Remote Support, Dell's SupportAssist and CloudIQ, Lenovo's call home.

    Pure; a resource that the BMC does not have is empty. The names were read in HPE's iLO 5 tree, a dump of iDRAC 9's
    attributes and Lenovo's own Redfish examples; CloudIQ's was seen nowhere, and is matched by its likely name.
    """
    found = []
    status = at(manager, "Oem", "Hpe", "CloudConnect", "CloudConnectStatus")
    if isinstance(status, str):
        source = _source(manager, "Oem.Hpe.CloudConnect.CloudConnectStatus")
        off = ("NotEnabled", "Disabled", "DisabledByCOM")
        found.append(_connector("HPE Compute Ops Management", status, source, off=off))
    enabled = remote_support.get("RemoteSupportEnabled")
    if isinstance(enabled, bool):
        source = _source(remote_support, "RemoteSupportEnabled")
        found.append(_connector("HPE Insight Remote Support", str(enabled), source, off=("False",)))
    attributes = dell_attributes.get("Attributes")
    if isinstance(attributes, dict):
        for name, value in sorted(attributes.items()):
            switch = name.endswith(("Enable", "Enabled", "EnableState"))
            if switch and name.startswith(("SupportAssist.1.", "CloudIQ.1.")):
                source = _source(dell_attributes, f"Attributes.{name}")
                found.append(_connector(f"Dell {name}", str(value), source, off=("Disabled", "False", "0")))
    call_home = service_advisor.get("CallHomeEnabled")
    if isinstance(call_home, bool):
        source = _source(service_advisor, "CallHomeEnabled")
        found.append(_connector("Lenovo call home", str(call_home), source, off=("False",)))
    return tuple(found)


def _connector(name: str, state: str, source: str, *, off: tuple[str, ...]) -> CloudConnector:
    return CloudConnector(name=name, state=state, source=source, enabled=state not in off)


def _source(resource: Json, name: str) -> str:
    """`/redfish/v1/Managers/1: Oem.Hpe.…`. A resource that does not say its own URI is called the BMC's."""
    return f"{resource.get('@odata.id') or 'the BMC'}: {name}"


def dell_attributes_uri(manager: Json) -> str | None:
    """iDRAC's attribute group of the manager itself; `Links.Oem.Dell.DellAttributes` lists several groups, all of them
    below the iDRAC's URI. Older firmware has `Managers/<group>/Attributes` for each."""
    groups = at(manager, "Links", "Oem", "Dell", "DellAttributes")
    uris = [link(group) or "" for group in groups] if isinstance(groups, list) else []
    return next((uri for uri in uris if _group(uri).startswith("iDRAC.")), None)


def _group(uri: str) -> str:
    return uri.rstrip("/").removesuffix("/Attributes").rpartition("/")[2]


def service_advisor_uri(manager: Json) -> str | None:
    """Lenovo writes the URI itself where others write a link."""
    found = at(manager, "Oem", "Lenovo", "ServiceAdvisor")
    return (
        found if isinstance(found, str) and found.startswith("/") else link(manager, "Oem", "Lenovo", "ServiceAdvisor")
    )


async def optional(client: RedfishClient, path: str | None, unread: dict[str, str]) -> Json:
    """The resource; empty if there is none. One that is there and cannot be read goes to `unread`, by URI, with why."""
    if path is None:
        return {}
    try:
        return await client.get(path)
    except (NotSupported, BmcError, BmcAnswerUnreadable) as error:
        note_unread(unread, path, error)
        return {}


def note_unread(unread: dict[str, str], path: str, error: NotSupported | BmcError | BmcAnswerUnreadable) -> None:
    """Unless the BMC says that it has no such resource: HTTP 404 or 410."""
    if not (isinstance(error, NotSupported) and error.status in (404, 410)):
        unread[path] = error.what


def at(value: Any, *names: str) -> Any:
    """What lies along `names` in untyped OEM data; None if any step is absent."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value
