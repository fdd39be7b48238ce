"""Systems/1: power, boot override, boot order, BIOS attributes."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

from freehold_lab.bmc.core import OK, ROOT, Action, Call, JsonObject, Resource, collection, link
from freehold_lab.bmc.fields import Anything, ListOf, OneOf
from freehold_lab.bmc.messages import RedfishError
from freehold_lab.hardware import BootOption, BootOverride, BootTarget, Hardware

SYSTEM = f"{ROOT}/Systems/1"
POWER_ANSWER_SECONDS = 2.0  # a reset that takes longer is answered before it is done, as real BMCs do

_PowerWork = Callable[[Hardware], Awaitable[None]]


async def _power_cycle(hardware: Hardware) -> None:
    await hardware.power_off(force=True)
    await hardware.power_on()


async def _push_button(hardware: Hardware) -> None:
    if await hardware.power_state() == "On":
        await hardware.power_off(force=False)
    else:
        await hardware.power_on()


RESETS: Mapping[str, _PowerWork] = {
    "On": lambda hardware: hardware.power_on(),
    "ForceOn": lambda hardware: hardware.power_on(),
    "ForceOff": lambda hardware: hardware.power_off(force=True),
    "GracefulShutdown": lambda hardware: hardware.power_off(force=False),
    "GracefulRestart": lambda hardware: hardware.reset(force=False),
    "ForceRestart": lambda hardware: hardware.reset(force=True),
    "PowerCycle": _power_cycle,
    "PushPowerButton": _push_button,
}
NEED_POWER = ("GracefulRestart", "ForceRestart", "PowerCycle")
ALREADY = {"On": "On", "ForceOn": "On", "ForceOff": "Off", "GracefulShutdown": "Off"}  # nothing to do in this state


def bios_version(hardware: Hardware) -> str:
    """What the BMC says; the fault `firmware_version` makes it lie."""
    return hardware.faults.firmware_version or hardware.info.bios_version


async def _members(_: Call) -> Iterable[str]:
    return ["1"]


async def _system(call: Call) -> JsonObject:
    hardware, data = call.bmc.hardware, call.bmc.store.data
    info = hardware.info
    body: JsonObject = {
        "Name": info.name,
        "SystemType": "Physical",
        "Manufacturer": info.manufacturer,
        "Model": info.model,
        "SerialNumber": info.serial,
        "UUID": info.uuid,
        "AssetTag": info.asset_tag if data.asset_tag is None else data.asset_tag,
        "Status": OK,
        "PowerState": await hardware.power_state(),
        "LocationIndicatorActive": data.indicator,
        "BiosVersion": bios_version(hardware),
        "ProcessorSummary": {"Count": 1, "CoreCount": info.cores, "Model": info.cpu_model, "Status": OK},
        "MemorySummary": {"TotalSystemMemoryGiB": info.memory_mib / 1024, "Status": OK},
        "Boot": await _boot(hardware),
        "Links": {"Chassis": [link(f"{ROOT}/Chassis/1")], "ManagedBy": [link(f"{ROOT}/Managers/1")]},
    }
    if info.has_tpm:
        body["TrustedModules"] = [{"InterfaceType": "TPM2_0", "Status": OK}]
    parts = (
        "Bios",
        "SecureBoot",
        "Processors",
        "Memory",
        "EthernetInterfaces",
        "Storage",
        "LogServices",
        "VirtualMedia",
    )
    return body | {part: link(f"{SYSTEM}/{part}") for part in parts}


async def _boot(hardware: Hardware) -> JsonObject:
    override = await hardware.boot_override()
    return {
        "BootSourceOverrideEnabled": override.enabled,
        "BootSourceOverrideTarget": str(override.target),
        "BootSourceOverrideTarget@Redfish.AllowableValues": [str(target) for target in BootTarget],
        "BootSourceOverrideMode": "UEFI",
        "HttpBootUri": override.http_uri or None,
        "BootOrder": await hardware.boot_order(),
        "BootOptions": link(f"{SYSTEM}/BootOptions"),
    }


async def _patch_system(call: Call) -> None:
    boot = call.body.get("Boot", {})  # first, for it may be refused
    if "BootOrder" in boot:
        await _set_boot_order(call, boot["BootOrder"])
    if boot.keys() - {"BootOrder"}:
        await _set_override(call, boot)
    store = call.bmc.store
    store.data.asset_tag = call.body.get("AssetTag", store.data.asset_tag)
    store.data.indicator = call.body.get("LocationIndicatorActive", store.data.indicator)
    store.save()


async def _set_boot_order(call: Call, order: list[str]) -> None:
    known = {option.reference for option in await call.bmc.hardware.boot_options()}
    for reference in order:
        if reference not in known:
            raise RedfishError("PropertyValueNotInList", reference, "BootOrder", pointer="Boot/BootOrder")
    await call.bmc.hardware.set_boot_order(order)
    call.bmc.record("BootOrderChanged", ",".join(order), origin=SYSTEM, log="System")


async def _set_override(call: Call, boot: JsonObject) -> None:
    present = await call.bmc.hardware.boot_override()
    target = BootTarget(boot.get("BootSourceOverrideTarget", present.target))
    enabled = boot.get("BootSourceOverrideEnabled", present.enabled)
    if "BootSourceOverrideTarget" in boot and target is not BootTarget.NONE and enabled == "Disabled":
        # ComputerSystem: a target with "Disabled" would do nothing; vendors take the target as "Once" if it came alone.
        enabled = "Disabled" if "BootSourceOverrideEnabled" in boot else "Once"
    if enabled == "Disabled" or target is BootTarget.NONE:
        target, enabled = BootTarget.NONE, "Disabled"
    uri = boot.get("HttpBootUri", present.http_uri)
    if uri and not uri.startswith(("http://", "https://")):
        raise RedfishError("PropertyValueFormatError", uri, "HttpBootUri", pointer="Boot/HttpBootUri")
    await call.bmc.hardware.set_boot_override(BootOverride(target, enabled, uri))
    call.bmc.record("BootOverrideChanged", target, enabled, origin=SYSTEM, log="System")


async def _reset(call: Call) -> None:
    hardware, kind = call.bmc.hardware, call.body["ResetType"]
    state = await hardware.power_state()
    if kind in NEED_POWER and state == "Off":
        raise RedfishError("ResourceInStandby")
    call.bmc.record("PowerRequested", kind, call.user, origin=SYSTEM, log="System")
    if ALREADY.get(kind) == state:
        return

    async def work() -> None:
        try:
            await RESETS[kind](hardware)
        except Exception as error:
            call.bmc.record("PowerFailed", kind, error, origin=SYSTEM, log="System")
            raise

    task = call.bmc.background(work())
    done, _ = await asyncio.wait([task], timeout=POWER_ANSWER_SECONDS)
    if done and (error := task.exception()):
        raise RedfishError("GeneralError", f"the reset {kind} of {hardware.info.name} failed: {error}")


async def _options(call: Call) -> Iterable[str]:
    return [option.reference for option in await call.bmc.hardware.boot_options()]


async def _option(call: Call) -> JsonObject:
    options = {option.reference: option for option in await call.bmc.hardware.boot_options()}
    option: BootOption | None = options.get(call["option"])
    if option is None:
        raise call.missing()
    return {
        "Name": option.name,
        "BootOptionReference": option.reference,
        "DisplayName": option.name,
        "UefiDevicePath": option.device_path,
        "BootOptionEnabled": True,
    }


def _bios_common(attributes: Mapping[str, str | int | bool]) -> JsonObject:
    return {
        "Name": "BIOS Configuration",
        "AttributeRegistry": "BiosAttributeRegistry.v1_0_0",
        "Attributes": dict(attributes),
        "Links": {"ActiveSoftwareImage": link(f"{ROOT}/UpdateService/FirmwareInventory/BIOS")},
    }


async def _bios(call: Call) -> JsonObject:
    return _bios_common(await call.bmc.hardware.bios_attributes()) | {
        "@Redfish.Settings": {
            "@odata.type": "#Settings.v1_4_0.Settings",
            "SettingsObject": link(f"{SYSTEM}/Bios/Settings"),
            "SupportedApplyTimes": ["OnReset"],
        },
    }


async def _bios_settings(call: Call) -> JsonObject:
    return _bios_common(await call.bmc.hardware.pending_bios_attributes()) | {"Name": "BIOS Pending Settings"}


async def _patch_bios(call: Call) -> None:
    hardware, wanted = call.bmc.hardware, call.body.get("Attributes", {})
    present = await hardware.bios_attributes()
    for name, value in wanted.items():
        pointer = f"Attributes/{name}"
        if name not in present:
            raise RedfishError("PropertyUnknown", name, pointer=pointer)
        if type(value) is not type(present[name]):
            raise RedfishError("PropertyValueTypeError", value, name, pointer=pointer)
    await hardware.set_bios_attributes(wanted)
    call.bmc.record("BiosChanged", ", ".join(sorted(wanted)), origin=f"{SYSTEM}/Bios", log="System")


async def _reset_bios(call: Call) -> None:
    await call.bmc.hardware.reset_bios()
    call.bmc.record("BiosChanged", "all to their defaults", origin=f"{SYSTEM}/Bios", log="System")


_BOOT_FIELDS = {
    "BootSourceOverrideEnabled": OneOf(("Disabled", "Once", "Continuous")),
    "BootSourceOverrideTarget": OneOf(tuple(BootTarget)),
    "BootSourceOverrideMode": OneOf(("UEFI",)),
    "HttpBootUri": str,
    "BootOrder": ListOf(str),
}

RESOURCES = (
    collection(f"{ROOT}/Systems", "ComputerSystem", "Computer System Collection", _members),
    Resource(
        SYSTEM,
        "ComputerSystem.v1_27_0.ComputerSystem",
        _system,
        fields={"AssetTag": str, "LocationIndicatorActive": bool, "Boot": _BOOT_FIELDS},
        patch=_patch_system,
        actions=(Action("ComputerSystem.Reset", _reset, {"ResetType": OneOf(tuple(RESETS))}, ("ResetType",)),),
    ),
    collection(f"{SYSTEM}/BootOptions", "BootOption", "Boot Option Collection", _options),
    Resource(f"{SYSTEM}/BootOptions/{{option}}", "BootOption.v1_0_6.BootOption", _option),
    Resource(f"{SYSTEM}/Bios", "Bios.v1_2_3.Bios", _bios, actions=(Action("Bios.ResetBios", _reset_bios),)),
    Resource(
        f"{SYSTEM}/Bios/Settings",
        "Bios.v1_2_3.Bios",
        _bios_settings,
        fields={"Attributes": Anything()},
        patch=_patch_bios,
    ),
)
