"""The few fields of Redfish resources that are used, and a reader that bears what real BMCs send.

Every field is optional. A null is absent. A value of the wrong type becomes absent too, and a finding says so: an
oddity in one field must not hide the rest of a server. Names follow DMTF's schemas (DSP8010).
"""

import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from freehold.model.findings import Finding, Severity

T = TypeVar("T", bound=msgspec.Struct)


class _Shape(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Base: snake_case here, PascalCase on the wire."""


class Link(_Shape, frozen=True):
    uri: str | None = msgspec.field(name="@odata.id", default=None)


class Status(_Shape, frozen=True):
    state: str | None = None
    health: str | None = None


class Boot(_Shape, frozen=True):
    boot_source_override_enabled: str | None = None
    boot_source_override_target: str | None = None
    boot_source_override_mode: str | None = None
    http_boot_uri: str | None = None
    boot_order: tuple[str, ...] = ()
    boot_options: Link = Link()


class TrustedModule(_Shape, frozen=True):
    firmware_version: str | None = None
    interface_type: str | None = None
    status: Status = Status()


class System(_Shape, frozen=True):
    uri: str | None = msgspec.field(name="@odata.id", default=None)
    uuid: str | None = msgspec.field(name="UUID", default=None)
    serial_number: str | None = None
    model: str | None = None
    manufacturer: str | None = None
    sku: str | None = msgspec.field(name="SKU", default=None)
    bios_version: str | None = None
    power_state: str | None = None
    boot: Boot = Boot()
    trusted_modules: tuple[TrustedModule, ...] = ()
    processors: Link = Link()
    memory: Link = Link()
    ethernet_interfaces: Link = Link()
    storage: Link = Link()
    bios: Link = Link()
    secure_boot: Link = Link()
    log_services: Link = Link()
    virtual_media: Link = Link()


class BootOption(_Shape, frozen=True):
    boot_option_reference: str | None = None
    display_name: str | None = None
    uefi_device_path: str | None = None


class Bios(_Shape, frozen=True):
    attributes: dict[str, Any] = {}


class SecureBoot(_Shape, frozen=True):
    secure_boot_enable: bool | None = None
    secure_boot_current_boot: str | None = None
    secure_boot_mode: str | None = None
    secure_boot_databases: Link = Link()


class SecureBootDatabase(_Shape, frozen=True):
    id: str | None = None
    database_id: str | None = None
    certificates: Link = Link()
    signatures: Link = Link()


class Processor(_Shape, frozen=True):
    id: str | None = None
    processor_type: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    total_cores: int | None = None
    total_threads: int | None = None
    status: Status = Status()


class Memory(_Shape, frozen=True):
    id: str | None = None
    capacity_mib: int | None = msgspec.field(name="CapacityMiB", default=None)
    serial_number: str | None = None
    status: Status = Status()


class EthernetInterface(_Shape, frozen=True):
    id: str | None = None
    mac_address: str | None = msgspec.field(name="MACAddress", default=None)
    permanent_mac_address: str | None = msgspec.field(name="PermanentMACAddress", default=None)
    ethernet_interface_type: str | None = None
    speed_mbps: int | None = None
    link_status: str | None = None


class Storage(_Shape, frozen=True):
    id: str | None = None
    drives: tuple[Link, ...] = ()


class Drive(_Shape, frozen=True):
    id: str | None = None
    serial_number: str | None = None
    model: str | None = None
    capacity_bytes: int | None = None
    protocol: str | None = None
    media_type: str | None = None
    status: Status = Status()


class Manager(_Shape, frozen=True):
    uri: str | None = msgspec.field(name="@odata.id", default=None)
    model: str | None = None
    firmware_version: str | None = None
    network_protocol: Link = Link()
    ethernet_interfaces: Link = Link()
    log_services: Link = Link()
    virtual_media: Link = Link()


class Service(_Shape, frozen=True):
    protocol_enabled: bool | None = None
    port: int | None = None


class CredentialBootstrapping(_Shape, frozen=True):
    enabled: bool | None = None


class HostInterface(_Shape, frozen=True):
    uri: str | None = msgspec.field(name="@odata.id", default=None)
    interface_enabled: bool | None = None
    authentication_modes: tuple[str, ...] = ()
    credential_bootstrapping: CredentialBootstrapping = CredentialBootstrapping()


class AccountService(_Shape, frozen=True):
    accounts: Link = Link()
    min_password_length: int | None = None
    max_password_length: int | None = None
    account_lockout_threshold: int | None = None
    account_lockout_duration: int | None = None
    account_lockout_counter_reset_after: int | None = None
    http_basic_auth: str | None = msgspec.field(name="HTTPBasicAuth", default=None)


class Account(_Shape, frozen=True):
    uri: str | None = msgspec.field(name="@odata.id", default=None)
    user_name: str | None = None
    role_id: str | None = None
    enabled: bool | None = None
    locked: bool | None = None
    password_change_required: bool | None = None


class FirmwareInventory(_Shape, frozen=True):
    id: str | None = None
    name: str | None = None
    version: str | None = None
    software_id: str | None = None
    updateable: bool | None = None


class VirtualMedia(_Shape, frozen=True):
    uri: str | None = msgspec.field(name="@odata.id", default=None)
    media_types: tuple[str, ...] = ()
    image: str | None = None
    inserted: bool | None = None


class LogEntry(_Shape, frozen=True):
    id: str | None = None
    created: str | None = None
    severity: str | None = None
    message_id: str | None = None
    message: str | None = None


def read(shape: type[T], raw: Any, findings: list[Finding], *, subject: str = "") -> T:
    """`raw` as `shape`. Absent and null fields take the default; wrong-typed ones too, with one finding each."""
    if not isinstance(raw, dict):
        findings.append(_oddity(subject or shape.__name__, _kind(raw), f"is {_kind(raw)} instead of an object"))
        return shape()
    subject = subject or str(raw.get("@odata.id") or shape.__name__)
    hints = get_type_hints(shape)
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(shape):
        value = raw.get(field.encode_name)
        if value is not None:
            taken = _take(hints[field.name], value, findings, f"{subject}#{field.encode_name}")
            if taken is not None:
                values[field.name] = taken
    return shape(**values)


def _take(hint: Any, value: Any, findings: list[Finding], subject: str) -> Any:
    """`value` as `hint`, or None with a finding."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        if isinstance(value, dict):
            return read(hint, value, findings, subject=subject)
    elif get_origin(hint) is tuple:
        if isinstance(value, list):
            items = [_take(get_args(hint)[0], item, findings, subject) for item in value if item is not None]
            return tuple(item for item in items if item is not None)
    elif hint is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 96.0 for 96: JSON knows no difference
    else:
        try:
            return msgspec.convert(value, hint)
        except msgspec.ValidationError:
            pass
    seen = _kind(value)
    findings.append(_oddity(subject, seen, f"is {seen}, which the schema does not allow; it is treated as absent"))
    return None


def _kind(value: Any) -> str:
    return f"a {type(value).__name__} ({str(value)[:40]!r})"


def _oddity(subject: str, seen: str, detail: str) -> Finding:
    return Finding(
        severity=Severity.INFO,
        kind="redfish-oddity",
        subject=subject,
        detail=detail,
        remedy="update the BMC's firmware, or report it to the vendor",
        evidence=f"{subject}: {seen}",
    )
