"""What the machine is made of: processors, memory, network, storage, chassis."""

from collections.abc import Iterable

from freehold_lab.bmc.core import OK, ROOT, Action, Call, JsonObject, Reply, Resource, collection, link
from freehold_lab.bmc.fields import OneOf
from freehold_lab.bmc.systems import SYSTEM
from freehold_lab.bmc.tasks import Task, start_task
from freehold_lab.hardware import DriveInfo, NicInfo

CHASSIS = f"{ROOT}/Chassis/1"
STORAGE = f"{SYSTEM}/Storage/1"


def _drive(call: Call) -> DriveInfo:
    for drive in call.bmc.hardware.info.drives:
        if drive.id == call["drive"]:
            return drive
    raise call.missing()


def _nic(call: Call) -> NicInfo:
    for nic in call.bmc.hardware.info.nics:
        if nic.id == call["nic"]:
            return nic
    raise call.missing()


async def _one(_: Call) -> Iterable[str]:
    return ["1"]


async def _processors(_: Call) -> Iterable[str]:
    return ["CPU0"]


async def _processor(call: Call) -> JsonObject:
    info = call.bmc.hardware.info
    return {
        "Name": "Processor",
        "ProcessorType": "CPU",
        "ProcessorArchitecture": "x86",
        "InstructionSet": "x86-64",
        "Socket": "CPU0",
        "Model": info.cpu_model,
        "TotalCores": info.cores,
        "TotalThreads": info.cores,
        "Status": OK,
    }


async def _modules(_: Call) -> Iterable[str]:
    return ["DIMM0"]


async def _module(call: Call) -> JsonObject:
    return {
        "Name": "DIMM 0",
        "MemoryType": "DRAM",
        "CapacityMiB": call.bmc.hardware.info.memory_mib,
        "Status": OK,
    }


async def _nics(call: Call) -> Iterable[str]:
    return [nic.id for nic in call.bmc.hardware.info.nics]


async def _show_nic(call: Call) -> JsonObject:
    nic = _nic(call)
    return {
        "Name": f"Ethernet {nic.id}",
        "Description": f"{nic.network} network",
        "MACAddress": nic.mac,
        "PermanentMACAddress": nic.mac,
        "LinkStatus": "LinkUp" if await call.bmc.hardware.power_state() == "On" else "NoLink",
        "InterfaceEnabled": True,
        "Status": OK,
    }


async def _storage(call: Call) -> JsonObject:
    drives = call.bmc.hardware.info.drives
    return {
        "Name": "Local Storage",
        "Status": OK,
        "Drives": [link(f"{STORAGE}/Drives/{drive.id}") for drive in drives],
        "Drives@odata.count": len(drives),
    }


async def _show_drive(call: Call) -> JsonObject:
    drive = _drive(call)
    return {
        "Name": f"Drive {drive.id}",
        "Manufacturer": drive.model.split()[0],
        "Model": drive.model,
        "SerialNumber": drive.serial,
        "CapacityBytes": drive.capacity_bytes,
        "Protocol": drive.protocol,
        "MediaType": drive.media,
        "Status": OK,
        "StatusIndicator": "OK",
        "Links": {"Chassis": link(CHASSIS)},
    }


async def _erase(call: Call) -> Reply:
    drive, hardware = _drive(call), call.bmc.hardware

    async def work(_: Task) -> None:
        await hardware.secure_erase(drive.id)
        call.bmc.record("DriveErased", drive.serial, origin=f"{STORAGE}/Drives/{drive.id}", log="System")

    return start_task(call, f"Secure erase of drive {drive.serial}", work)


async def _chassis(call: Call) -> JsonObject:
    info = call.bmc.hardware.info
    body: JsonObject = {
        "Name": "Computer System Chassis",
        "ChassisType": "RackMount",
        "Manufacturer": info.manufacturer,
        "Model": info.model,
        "SerialNumber": info.serial,
        "PowerState": await call.bmc.hardware.power_state(),
        "Status": OK,
        "Links": {
            "ComputerSystems": [link(SYSTEM)],
            "ManagedBy": [link(f"{ROOT}/Managers/1")],
            "ManagersInChassis": [link(f"{ROOT}/Managers/1")],
            "Drives": [link(f"{STORAGE}/Drives/{drive.id}") for drive in info.drives],
        },
    }
    return body | ({"TrustedComponents": link(f"{CHASSIS}/TrustedComponents")} if info.has_tpm else {})


async def _trusted(call: Call) -> Iterable[str]:
    return ["TPM"] if call.bmc.hardware.info.has_tpm else []


async def _tpm(call: Call) -> JsonObject:
    if not call.bmc.hardware.info.has_tpm:
        raise call.missing()
    return {
        "Name": "Trusted Platform Module",
        "TrustedComponentType": "Discrete",
        "TPM": {"CapabilitiesVendorID": "IBM"},
        "Status": OK,
        "Links": {"ComponentsProtected": [link(SYSTEM)]},
    }


_SANITIZATION = OneOf(("BlockErase", "CryptographicErase", "Overwrite"))

RESOURCES = (
    collection(f"{SYSTEM}/Processors", "Processor", "Processors Collection", _processors),
    Resource(f"{SYSTEM}/Processors/CPU0", "Processor.v1_22_0.Processor", _processor),
    collection(f"{SYSTEM}/Memory", "Memory", "Memory Collection", _modules),
    Resource(f"{SYSTEM}/Memory/DIMM0", "Memory.v1_23_0.Memory", _module),
    collection(f"{SYSTEM}/EthernetInterfaces", "EthernetInterface", "Ethernet Interface Collection", _nics),
    Resource(f"{SYSTEM}/EthernetInterfaces/{{nic}}", "EthernetInterface.v1_12_4.EthernetInterface", _show_nic),
    collection(f"{SYSTEM}/Storage", "Storage", "Storage Collection", _one),
    Resource(STORAGE, "Storage.v1_21_0.Storage", _storage),
    Resource(
        f"{STORAGE}/Drives/{{drive}}",
        "Drive.v1_22_0.Drive",
        _show_drive,
        actions=(Action("Drive.SecureErase", _erase, {"SanitizationType": _SANITIZATION, "OverwritePasses": int}),),
    ),
    collection(f"{ROOT}/Chassis", "Chassis", "Chassis Collection", _one),
    Resource(CHASSIS, "Chassis.v1_28_0.Chassis", _chassis),
    collection(f"{CHASSIS}/TrustedComponents", "TrustedComponent", "Trusted Component Collection", _trusted),
    Resource(f"{CHASSIS}/TrustedComponents/TPM", "TrustedComponent.v1_4_0.TrustedComponent", _tpm),
)
