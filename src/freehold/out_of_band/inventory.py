"""What a server is, as its BMC tells it. Read only; oddities of the BMC become findings."""

import msgspec

from freehold.model.findings import Finding, Severity
from freehold.out_of_band import resources as r
from freehold.out_of_band.errors import NotSupported
from freehold.out_of_band.redfish import Json, RedfishClient, link


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    cores: int
    threads: int


class Nic(msgspec.Struct, frozen=True, kw_only=True):
    """`mac` is the permanent address in lower case."""

    id: str
    mac: str


class DriveFact(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    serial: str
    model: str
    capacity_bytes: int
    protocol: str
    media: str


class Tpm(msgspec.Struct, frozen=True, kw_only=True):
    """`interface` is a Redfish `InterfaceType`, e.g. `TPM2_0`."""

    interface: str
    firmware_version: str


class OobInventory(msgspec.Struct, frozen=True, kw_only=True):
    """Strings are empty where the BMC does not say; tuples are sorted by id, so that two readings compare equal."""

    manufacturer: str
    model: str
    serial: str
    uuid: str
    bios_version: str
    bmc_model: str
    bmc_version: str
    cpus: tuple[Cpu, ...]
    memory_mib: int
    nics: tuple[Nic, ...]
    drives: tuple[DriveFact, ...]
    tpm: Tpm | None
    findings: tuple[Finding, ...] = ()


class FirmwareVersion(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    version: str


async def first_member(client: RedfishClient, name: str) -> Json:
    """The only member of `Systems` or `Managers`. A BMC with several is a chassis manager: more than one server."""
    path = link(client.root, name)
    if path is None:
        raise NotSupported(f"the BMC has no {name}", server=client.server)
    members = await client.members(path)
    if len(members) != 1:
        raise NotSupported(
            f"the BMC has {len(members)} {name}", server=client.server, expected="exactly one server behind the address"
        )
    uri = link(members[0])
    return await client.get(uri) if uri else members[0]  # an expanded member may be abridged


async def read_inventory(client: RedfishClient) -> OobInventory:
    """Processors, memory, NICs, drives, TPM, versions and identity of the server behind `client`."""
    findings: list[Finding] = []
    system = r.read(r.System, await first_member(client, "Systems"), findings)
    manager = r.read(r.Manager, await first_member(client, "Managers"), findings)
    processors = [r.read(r.Processor, raw, findings) for raw in await _members(client, system.processors, findings)]
    memory = [r.read(r.Memory, raw, findings) for raw in await _members(client, system.memory, findings)]
    nics = [
        r.read(r.EthernetInterface, raw, findings)
        for raw in await _members(client, system.ethernet_interfaces, findings)
    ]
    modules = [module for module in system.trusted_modules if module.interface_type and _present(module.status)]
    return OobInventory(
        manufacturer=_clean(system.manufacturer),
        model=_clean(system.model),
        serial=_clean(system.serial_number),
        uuid=_clean(system.uuid).lower(),
        bios_version=_clean(system.bios_version),
        bmc_model=_clean(manager.model),
        bmc_version=_clean(manager.firmware_version),
        cpus=tuple(
            Cpu(model=_clean(p.model), cores=p.total_cores or 0, threads=p.total_threads or 0)
            for p in processors
            if p.processor_type in (None, "CPU") and _present(p.status)
        ),
        memory_mib=sum(module.capacity_mib or 0 for module in memory if _present(module.status)),
        nics=_physical(nics),
        drives=await _drives(client, system, findings),
        tpm=Tpm(interface=modules[0].interface_type or "", firmware_version=_clean(modules[0].firmware_version))
        if modules
        else None,
        findings=tuple(findings),
    )


async def firmware_versions(client: RedfishClient) -> tuple[FirmwareVersion, ...]:
    """What `UpdateService/FirmwareInventory` lists; empty if the BMC has none."""
    service = link(client.root, "UpdateService")
    if service is None:
        return ()
    path = link(await client.get(service), "FirmwareInventory")
    read = [r.read(r.FirmwareInventory, raw, []) for raw in (await client.members(path) if path else [])]
    return tuple(
        FirmwareVersion(id=item.id or "", name=_clean(item.name), version=_clean(item.version))
        for item in sorted(read, key=lambda item: item.id or "")
    )


async def _drives(client: RedfishClient, system: r.System, findings: list[Finding]) -> tuple[DriveFact, ...]:
    found: dict[str, DriveFact] = {}
    for raw in await _members(client, system.storage, findings):
        storage = r.read(r.Storage, raw, findings)
        for uri in (drive.uri for drive in storage.drives if drive.uri):
            try:
                drive = r.read(r.Drive, await client.get(uri), findings)
            except NotSupported:
                findings.append(_missing(uri))
                continue
            if _present(drive.status):
                found[uri] = DriveFact(
                    id=drive.id or uri.rsplit("/", 1)[-1],
                    serial=_clean(drive.serial_number),
                    model=_clean(drive.model),
                    capacity_bytes=drive.capacity_bytes or 0,
                    protocol=_clean(drive.protocol),
                    media=_clean(drive.media_type),
                )
    return tuple(sorted(found.values(), key=lambda drive: drive.id))


def _physical(interfaces: list[r.EthernetInterface]) -> tuple[Nic, ...]:
    """Physical ports by permanent address. VLANs repeat the address of their port; some BMCs list "" as a MAC."""
    found: dict[str, Nic] = {}
    for nic in sorted(interfaces, key=lambda nic: nic.id or ""):
        mac = _clean(nic.permanent_mac_address or nic.mac_address).lower().replace("-", ":")
        if mac and nic.ethernet_interface_type in (None, "Physical"):
            found.setdefault(mac, Nic(id=nic.id or mac, mac=mac))
    return tuple(found.values())


async def _members(client: RedfishClient, collection: r.Link, findings: list[Finding]) -> list[Json]:
    if collection.uri is None:
        return []
    missing: list[str] = []
    try:
        return await client.members(collection.uri, missing=missing)
    except NotSupported:
        missing.append(collection.uri)
        return []
    finally:
        findings.extend(_missing(uri) for uri in missing)


def _missing(uri: str) -> Finding:
    return Finding(
        severity=Severity.INFO,
        kind="redfish-oddity",
        subject=uri,
        detail="the BMC links to this resource and does not have it",
        remedy="update the BMC's firmware, or report it to the vendor",
        evidence=f"GET {uri}: not there",
    )


def _present(status: r.Status) -> bool:
    return status.state != "Absent"


def _clean(value: str | None) -> str:
    """Vendors pad strings from SMBIOS with spaces."""
    return (value or "").strip()
