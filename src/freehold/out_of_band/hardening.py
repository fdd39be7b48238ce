"""What a BMC need not serve is closed: plain HTTP, Telnet, SNMP, SSDP, the way from the server's own OS to its BMC, and
the directories whose users it would let in.
IPMI has a step of its own (`server.set_ipmi`), because its port is probed afterwards."""

from collections.abc import Iterable

import msgspec

from freehold.out_of_band.errors import BmcError, NotSupported
from freehold.out_of_band.inventory import first_member
from freehold.out_of_band.posture import Posture, read_posture
from freehold.out_of_band.redfish import Json, RedfishClient, link

UNWANTED = ("HTTP", "Telnet", "SNMP", "SSDP")
_DIRECTORY = "directory "
_PASSING = frozenset({502, 503, 504})  # a BMC that is busy or starts has refused nothing: it is asked again


class Hardened(msgspec.Struct, frozen=True, kw_only=True):
    """`closed`: what was open and is not any more; `open`: what this BMC does not let us close, with its reason."""

    closed: tuple[str, ...]
    open: tuple[str, ...]


class Closing(msgspec.Struct, frozen=True):
    """One PATCH that closes `what`."""

    what: str
    uri: str
    body: Json


def closings(posture: Posture, network_protocol: str | None) -> tuple[Closing, ...]:
    """What is to be sent, one thing at a time: a BMC that refuses one of two in a PATCH may do neither. Pure."""
    found = []
    if network_protocol is not None:
        found += [
            Closing(name, network_protocol, {name: {"ProtocolEnabled": False}})
            for name in UNWANTED
            if posture.enabled(name)
        ]
    for interface in posture.host_interfaces:
        if interface.bootstrapping:
            body: Json = {"CredentialBootstrapping": {"Enabled": False}}
            found.append(Closing(f"credential bootstrapping at {interface.uri}", interface.uri, body))
        if interface.enabled:
            found.append(Closing(f"host interface {interface.uri}", interface.uri, {"InterfaceEnabled": False}))
    found += [Closing(_DIRECTORY + each.name, each.uri, each.off) for each in posture.external_providers]
    return tuple(found)


def opened(posture: Posture) -> tuple[str, ...]:
    """What stands open that should not, by name, in order: what `harden` would close, and the ways to a vendor's cloud,
    which it cannot. Pure."""
    connectors = (f"connector {each.name}" for each in posture.connectors if each.enabled)
    return tuple(sorted((*(each.what for each in closings(posture, "")), *connectors)))


def directories(open_: Iterable[str]) -> tuple[str, ...]:
    """Those of `opened` that are directories whose users the BMC lets in. Pure."""
    return tuple(name for name in open_ if name.startswith(_DIRECTORY))


async def harden(client: RedfishClient, *, keep_directories: bool = False) -> Hardened:
    """Close everything of `closings`, and look again. Safe to repeat; what cannot be closed is told, not
    raised. Raises `BmcError` if the BMC is not ready to answer: that is no refusal. `keep_directories`: people signed
    that they may stay."""
    path = link(await first_member(client, "Managers"), "NetworkProtocol")
    wanted = [
        each
        for each in closings(await read_posture(client), path)
        if not (keep_directories and each.what.startswith(_DIRECTORY))
    ]
    refused: dict[str, str] = {}
    for each in wanted:
        try:
            await client.wait_task(await client.patch(each.uri, each.body))
        except (NotSupported, BmcError) as error:
            if isinstance(error, BmcError) and error.status in _PASSING:
                raise
            refused[each.what] = error.what
    left = sorted(each.what for each in closings(await read_posture(client), path)) if wanted else []
    ignored = "the BMC accepted the change and ignored it"
    return Hardened(
        closed=tuple(each.what for each in wanted if each.what not in left),
        open=tuple(f"{what}: {refused.get(what, ignored)}" for what in left),
    )
