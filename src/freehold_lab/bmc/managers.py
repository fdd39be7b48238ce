"""Managers/1: the BMC itself, its network protocols and its interface."""

from collections.abc import Iterable

from freehold_lab.bmc.certificates import HTTPS_CERTIFICATES
from freehold_lab.bmc.core import OK, ROOT, Action, Call, JsonObject, Resource, collection, link
from freehold_lab.bmc.fields import ListOf, OneOf, Range
from freehold_lab.bmc.messages import RedfishError

MANAGER = f"{ROOT}/Managers/1"
PROTOCOLS = f"{MANAGER}/NetworkProtocol"
SNMP_VERSIONS = {"EnableSNMPv1": "v1", "EnableSNMPv2c": "v2c", "EnableSNMPv3": "v3"}


async def _one(_: Call) -> Iterable[str]:
    return ["1"]


async def _manager(call: Call) -> JsonObject:
    config = call.bmc.config
    return {
        "Name": "Manager",
        "ManagerType": "BMC",
        "Manufacturer": config.manufacturer,
        "Model": config.model,
        "FirmwareVersion": call.bmc.version,
        "UUID": call.bmc.store.data.service_uuid,
        "ServiceEntryPointUUID": call.bmc.store.data.service_uuid,
        "DateTime": call.bmc.now(),
        "DateTimeLocalOffset": "+00:00",
        "PowerState": "On",
        "Status": OK,
        **{
            part: link(f"{MANAGER}/{part}")
            for part in ("NetworkProtocol", "EthernetInterfaces", "HostInterfaces", "LogServices", "VirtualMedia")
        },
        "Links": {
            "ManagerForServers": [link(f"{ROOT}/Systems/1")],
            "ManagerForChassis": [link(f"{ROOT}/Chassis/1")],
            "ManagerInChassis": link(f"{ROOT}/Chassis/1"),
        },
    }


async def _reset(call: Call) -> None:
    bmc = call.bmc
    bmc.record("ManagerReset", call.body["ResetType"], call.user, origin=MANAGER)
    if not bmc.restart_soon():
        raise RedfishError("ActionNotSupported", "Manager.Reset")


async def _protocols(call: Call) -> JsonObject:
    data = call.bmc.store.data
    body: JsonObject = {
        "Name": "Manager Network Protocol",
        "Status": OK,
        "HostName": data.host_name,
        "FQDN": data.host_name,
        **{name: {"ProtocolEnabled": it.enabled, "Port": it.port} for name, it in data.protocols.items()},
    }
    body["HTTPS"]["Certificates"] = link(HTTPS_CERTIFICATES)
    body["NTP"]["NTPServers"] = data.ntp_servers
    body["SNMP"] |= {name: getattr(data.snmp, attribute) for name, attribute in SNMP_VERSIONS.items()}
    body["SNMP"]["HideCommunityStrings"] = False
    body["SNMP"]["CommunityStrings"] = [
        {"Name": "read", "CommunityString": data.snmp.community, "AccessMode": "Limited"}
    ]
    return body


async def _patch_protocols(call: Call) -> None:
    data = call.bmc.store.data
    if call.body.get("HTTPS", {}).get("ProtocolEnabled") is False:
        raise RedfishError("PropertyValueNotInList", False, "ProtocolEnabled", pointer="HTTPS/ProtocolEnabled")
    data.host_name = call.body.get("HostName", data.host_name)
    data.ntp_servers = call.body.get("NTP", {}).get("NTPServers", data.ntp_servers)
    for name, attribute in SNMP_VERSIONS.items():
        setattr(data.snmp, attribute, call.body.get("SNMP", {}).get(name, getattr(data.snmp, attribute)))
    changed = []
    for name, service in data.protocols.items():
        wanted = call.body.get(name, {})
        service.enabled = wanted.get("ProtocolEnabled", service.enabled)
        service.port = wanted.get("Port", service.port)
        changed += [f"{name}.{key}={value}" for key, value in wanted.items()]
    call.bmc.record("NetworkProtocolChanged", ", ".join(changed) or "names", origin=PROTOCOLS)
    await call.bmc.settle_ipmi()


async def _interface(call: Call) -> JsonObject:
    address = call.bmc.config.address
    return {
        "Name": "Manager Ethernet Interface",
        "InterfaceEnabled": True,
        "LinkStatus": "LinkUp",
        "SpeedMbps": 1000,
        "FullDuplex": True,
        "MACAddress": _mac(call),
        "PermanentMACAddress": _mac(call),
        "HostName": call.bmc.store.data.host_name,
        "IPv4Addresses": [{"Address": address, "SubnetMask": "255.255.255.0", "AddressOrigin": "Static"}],
        "Status": OK,
    }


def _mac(call: Call) -> str:
    """Made up, and the same for the same server."""
    digits = call.bmc.store.data.service_uuid.replace("-", "")[:6]
    return "0a:1d:4e:" + ":".join(digits[i : i + 2] for i in (0, 2, 4))


async def _host_interface(call: Call) -> JsonObject:
    data = call.bmc.store.data.host_interface
    return {
        "Name": "Host Interface",
        "HostInterfaceType": "NetworkHostInterface",
        "InterfaceEnabled": data.enabled,
        "ExternallyAccessible": False,
        "AuthenticationModes": ["BasicAuth", "RedfishSessionAuth"],
        "CredentialBootstrapping": {
            "Enabled": data.bootstrapping,
            "EnableAfterReset": data.after_reset,
            "RoleId": "Administrator",
        },
        "NetworkProtocol": link(PROTOCOLS),
        "Links": {
            "ComputerSystems": [link(f"{ROOT}/Systems/1")],
            "CredentialBootstrappingRole": link(f"{ROOT}/AccountService/Roles/Administrator"),
        },
        "Status": OK,
    }


async def _patch_host_interface(call: Call) -> None:
    data, wanted = call.bmc.store.data.host_interface, call.body.get("CredentialBootstrapping", {})
    data.enabled = call.body.get("InterfaceEnabled", data.enabled)
    data.bootstrapping = wanted.get("Enabled", data.bootstrapping)
    data.after_reset = wanted.get("EnableAfterReset", data.after_reset)
    call.bmc.record("NetworkProtocolChanged", "HostInterface", origin=call.uri)


_SWITCH = {"ProtocolEnabled": bool, "Port": Range(1, 65535)}

RESOURCES = (
    collection(f"{ROOT}/Managers", "Manager", "Manager Collection", _one),
    Resource(
        MANAGER,
        "Manager.v1_24_0.Manager",
        _manager,
        privilege="ConfigureManager",
        actions=(
            Action("Manager.Reset", _reset, {"ResetType": OneOf(("ForceRestart", "GracefulRestart"))}, ("ResetType",)),
        ),
    ),
    Resource(
        PROTOCOLS,
        "ManagerNetworkProtocol.v1_12_0.ManagerNetworkProtocol",
        _protocols,
        fields={
            "HostName": str,
            "HTTPS": {"ProtocolEnabled": bool},
            **dict.fromkeys(("HTTP", "IPMI", "SSH", "Telnet", "KVMIP", "VirtualMedia", "SSDP"), _SWITCH),
            "SNMP": {**_SWITCH, **dict.fromkeys(SNMP_VERSIONS, bool)},
            "NTP": {**_SWITCH, "NTPServers": ListOf(str)},
        },
        patch=_patch_protocols,
        privilege="ConfigureManager",
    ),
    collection(f"{MANAGER}/EthernetInterfaces", "EthernetInterface", "Ethernet Interface Collection", _one),
    Resource(f"{MANAGER}/EthernetInterfaces/1", "EthernetInterface.v1_12_4.EthernetInterface", _interface),
    collection(f"{MANAGER}/HostInterfaces", "HostInterface", "Host Interface Collection", _one),
    Resource(
        f"{MANAGER}/HostInterfaces/1",
        "HostInterface.v1_3_3.HostInterface",
        _host_interface,
        fields={
            "InterfaceEnabled": bool,
            "CredentialBootstrapping": {"Enabled": bool, "EnableAfterReset": bool},
        },
        patch=_patch_host_interface,
        privilege="ConfigureManager",
    ),
)
