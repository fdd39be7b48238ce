"""The service root, and the documents about the service: versions, OData, $metadata, registries."""

from collections.abc import Iterable, Mapping

from freehold_lab.bmc.core import ROOT, Call, JsonObject, Resource, Tree, collection, link
from freehold_lab.bmc.messages import BASE, REGISTRIES, Message

SERVICES = (
    "SessionService", "AccountService", "Systems", "Chassis", "Managers", "Registries", "CertificateService",
    "UpdateService", "EventService",
)  # fmt: skip
BIOS_REGISTRY = "BiosAttributeRegistry.v1_0_0"
SCHEMA_BASE = "http://redfish.dmtf.org/schemas/v1"


async def _root(call: Call) -> JsonObject:
    config = call.bmc.config
    return {
        "@odata.id": f"{ROOT}/",
        "Id": "RootService",
        "Name": config.service_name,
        "RedfishVersion": "1.21.0",
        "UUID": call.bmc.store.data.service_uuid,
        "Vendor": config.manufacturer,
        "Product": config.model,
        "ProtocolFeaturesSupported": {
            "ExpandQuery": {"ExpandAll": False, "Levels": False, "Links": False, "NoLinks": False},
            "FilterQuery": False,
            "OnlyMemberQuery": False,
            "SelectQuery": False,
            "ExcerptQuery": False,
            "DeepOperations": {"DeepPATCH": False, "DeepPOST": False},
        },
        **{service: link(f"{ROOT}/{service}") for service in SERVICES},
        "Tasks": link(f"{ROOT}/TaskService"),
        "Links": {"Sessions": link(f"{ROOT}/SessionService/Sessions")},
    }


def versions() -> JsonObject:
    """GET /redfish (DSP0266, 6.2)."""
    return {"v1": f"{ROOT}/"}


def odata() -> JsonObject:
    """The OData service document (DSP0266, 8.4.3)."""
    names = (*SERVICES, "Tasks")
    entries = [
        {"name": name, "kind": "Singleton", "url": f"{ROOT}/{'TaskService' if name == 'Tasks' else name}"}
        for name in ("Service", *names)
    ]
    entries[0]["url"] = f"{ROOT}/"
    return {"@odata.context": f"{ROOT}/$metadata", "value": entries}


def metadata(tree: Tree) -> str:
    """The OData metadata document: references to the schemas in use (DSP0266, 8.4.2)."""
    namespaces: dict[str, set[str]] = {}
    for resource_type in (*tree.types(), "RedfishExtensions.v1_0_0.RedfishExtensions", "Message.v1_2_1.Message"):
        parts = resource_type.split(".")
        namespaces.setdefault(parts[0], set()).update((parts[0], ".".join(parts[:-1])))
    references = "".join(
        f'<edmx:Reference Uri="{SCHEMA_BASE}/{schema}_v1.xml">'
        + "".join(f'<edmx:Include Namespace="{name}"/>' for name in sorted(names))
        + "</edmx:Reference>"
        for schema, names in sorted(namespaces.items())
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<edmx:Edmx xmlns:edmx="http://docs.oasis-open.org/odata/ns/edmx" Version="4.0">'
        f"{references}<edmx:DataServices>"
        '<Schema xmlns="http://docs.oasis-open.org/odata/ns/edm" Namespace="Service">'
        '<EntityContainer Name="Service" Extends="ServiceRoot.v1_20_0.ServiceContainer"/>'
        "</Schema></edmx:DataServices></edmx:Edmx>"
    )


def _file_name(registry: str) -> str:
    return f"{registry}.0" if registry in REGISTRIES else registry


async def _registries(_: Call) -> Iterable[str]:
    return [_file_name(name) for name in (*REGISTRIES, BIOS_REGISTRY)]


async def _registry_file(call: Call) -> JsonObject:
    if call["registry"] not in await _registries(call):
        raise call.missing()
    registry = BIOS_REGISTRY if call["registry"] == BIOS_REGISTRY else call["registry"].removesuffix(".0")
    return {
        "Name": f"{registry} Registry File",
        "Languages": ["en"],
        "Registry": registry,
        "Location": [{"Language": "en", "Uri": f"{ROOT}/RegistryStore/{call['registry']}.json"}],
    }


async def _registry(call: Call) -> JsonObject:
    name = call["registry"].removesuffix(".0")
    if name not in REGISTRIES:
        raise call.missing()
    prefix, _, version = name.partition(".")
    return {
        "Id": f"{name}.0",
        "Name": f"{prefix} Message Registry",
        "Language": "en",
        "Description": f"The messages of the {prefix} registry that this service sends",
        "RegistryPrefix": prefix,
        "RegistryVersion": f"{version}.0",
        "OwningEntity": "DMTF" if name == BASE else call.bmc.config.manufacturer,
        "Messages": {key: _message(message) for key, message in REGISTRIES[name].items()},
    }


def _message(message: Message) -> JsonObject:
    count = sum(f"%{number}" in message.text for number in range(1, 6))
    return {
        "Description": message.text,
        "Message": message.text,
        "MessageSeverity": message.severity,
        "NumberOfArgs": count,
        "ParamTypes": ["string"] * count,
        "Resolution": message.resolution,
    }


async def _bios_registry(call: Call) -> JsonObject:
    attributes: Mapping[str, str | int | bool] = await call.bmc.hardware.bios_attributes()
    kinds = {bool: "Boolean", int: "Integer", str: "String"}
    return {
        "Id": BIOS_REGISTRY,
        "Name": "BIOS Attribute Registry",
        "Language": "en",
        "RegistryVersion": "1.0.0",
        "OwningEntity": call.bmc.config.manufacturer,
        "RegistryEntries": {
            "Attributes": [
                {"AttributeName": name, "DisplayName": name, "Type": kinds[type(value)], "ResetRequired": True}
                for name, value in attributes.items()
            ]
        },
    }


RESOURCES = (
    Resource(ROOT, "ServiceRoot.v1_20_0.ServiceRoot", _root, public=("GET", "HEAD")),
    collection(f"{ROOT}/Registries", "MessageRegistryFile", "Registry File Collection", _registries),
    Resource(f"{ROOT}/Registries/{{registry}}", "MessageRegistryFile.v1_1_5.MessageRegistryFile", _registry_file),
    Resource(
        f"{ROOT}/RegistryStore/{BIOS_REGISTRY}.json", "AttributeRegistry.v1_4_0.AttributeRegistry", _bios_registry
    ),
    Resource(f"{ROOT}/RegistryStore/{{registry}}.json", "MessageRegistry.v1_7_0.MessageRegistry", _registry),
)
