"""Do the BMC and the machine describe the same server? Pure."""

from collections.abc import Mapping
from typing import Any

MEMORY_TOLERANCE = 0.15
"""Share of memory that firmware and kernel may keep from the OS's count."""


def compare(out_of_band: Mapping[str, Any], in_band: Mapping[str, Any]) -> tuple[str, ...]:
    """Every contradiction, in words. What one side does not tell contradicts nothing, except a TPM and the disks."""
    found: list[str] = []
    system = in_band.get("system") or {}
    for name in ("uuid", "serial"):
        told, seen = str(out_of_band.get(name) or "").lower(), str(system.get(name) or "").lower()
        if told and seen and told != seen:
            found.append(f"{name} is {told} by the BMC, {seen} by SMBIOS")
    cores = sum(cpu["cores"] for cpu in out_of_band.get("cpus") or ())
    seen_cores = sum(int(cpu.get("cores") or 0) for cpu in in_band.get("cpus") or ())
    if cores and seen_cores and cores != seen_cores:
        found.append(f"{cores} CPU cores by the BMC, {seen_cores} seen")
    told_mib = int(out_of_band.get("memory_mib") or 0)
    seen_mib = int((in_band.get("memory") or {}).get("total_bytes") or 0) >> 20
    if told_mib and seen_mib and not told_mib * (1 - MEMORY_TOLERANCE) <= seen_mib <= told_mib:
        found.append(f"{told_mib} MiB of memory by the BMC, {seen_mib} MiB seen")
    found += _sets("NIC", _macs(out_of_band), _macs(in_band))
    found += _sets("disk", _serials(out_of_band.get("drives")), _serials(in_band.get("disks")))
    if out_of_band.get("tpm") and not in_band.get("tpm"):
        found.append("the BMC tells of a TPM, the machine has none")
    return tuple(found)


def _sets(what: str, told: set[str], seen: set[str]) -> list[str]:
    """A BMC that lists none of a kind does not contradict; one that lists some must list all."""
    if not told:
        return []
    hidden = [f"{what} {name} is in the machine, but the BMC does not know it" for name in sorted(seen - told)]
    return hidden + [f"{what} {name} is told by the BMC, but not in the machine" for name in sorted(told - seen)]


def _macs(inventory: Mapping[str, Any]) -> set[str]:
    return {str(nic["mac"]).lower() for nic in inventory.get("nics") or () if nic.get("mac")}


def _serials(disks: Any) -> set[str]:
    return {str(disk["serial"]).strip() for disk in disks or () if disk.get("serial")}
