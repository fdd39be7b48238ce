"""TCG event logs: strict parsing and replay (TCG PC Client Platform Firmware Profile 1.06, 10).

Both forms are read: SHA-1 only (TCG_PCR_EVENT) and crypto-agile (TCG_PCR_EVENT2), as is a confidential guest's CCEL,
where the index counts registers (0 MRTD, then RTMR 0 to 3) and the one bank is SHA-384. Only PCR index and digests are
protected by the quote; type and data are a stranger's words until a digest vouches for them, so `Event.vouched_data`
is None where it does not.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from freehold.root_of_trust.attestation.errors import MalformedEvidenceError
from freehold.root_of_trust.attestation.reader import Reader

MOST_BYTES, MOST_EVENTS = 1 << 20, 4096
DIGEST_SIZES = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64, "sm3_256": 32}
ALGORITHMS = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512", 0x0012: "sm3_256"}
NO_PCR = 0xFFFFFFFF
EV_NO_ACTION, EV_SEPARATOR, EV_S_CRTM_VERSION = 0x00000003, 0x00000004, 0x00000008
EV_EFI_PLATFORM_FIRMWARE_BLOB = 0x80000008
EV_EFI_VARIABLE_DRIVER_CONFIG, EV_EFI_VARIABLE_BOOT, EV_EFI_VARIABLE_BOOT2 = 0x80000001, 0x80000002, 0x8000000C
EV_EFI_BOOT_SERVICES_APPLICATION, EV_EFI_BOOT_SERVICES_DRIVER, EV_EFI_RUNTIME_SERVICES_DRIVER = (
    0x80000003,
    0x80000004,
    0x80000005,
)
EV_EFI_ACTION, EV_EFI_VARIABLE_AUTHORITY, EV_IPL = 0x80000007, 0x800000E0, 0x0000000D
TYPE_NAMES = {
    0x00: "EV_PREBOOT_CERT", 0x01: "EV_POST_CODE", 0x03: "EV_NO_ACTION", 0x04: "EV_SEPARATOR", 0x05: "EV_ACTION",
    0x06: "EV_EVENT_TAG", 0x07: "EV_S_CRTM_CONTENTS", 0x08: "EV_S_CRTM_VERSION", 0x09: "EV_CPU_MICROCODE",
    0x0A: "EV_PLATFORM_CONFIG_FLAGS", 0x0B: "EV_TABLE_OF_DEVICES", 0x0C: "EV_COMPACT_HASH", 0x0D: "EV_IPL",
    0x0E: "EV_IPL_PARTITION_DATA", 0x0F: "EV_NONHOST_CODE", 0x10: "EV_NONHOST_CONFIG", 0x11: "EV_NONHOST_INFO",
    0x12: "EV_OMIT_BOOT_DEVICE_EVENTS", 0x13: "EV_POST_CODE2",
    0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG", 0x80000002: "EV_EFI_VARIABLE_BOOT",
    0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION", 0x80000004: "EV_EFI_BOOT_SERVICES_DRIVER",
    0x80000005: "EV_EFI_RUNTIME_SERVICES_DRIVER", 0x80000006: "EV_EFI_GPT_EVENT", 0x80000007: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB", 0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2", 0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    0x8000000C: "EV_EFI_VARIABLE_BOOT2", 0x8000000D: "EV_EFI_GPT_EVENT2", 0x80000010: "EV_EFI_HCRTM_EVENT",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY", 0x800000E1: "EV_EFI_SPDM_FIRMWARE_BLOB",
    0x800000E2: "EV_EFI_SPDM_FIRMWARE_CONFIG",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Event:
    """One measurement. `digests` maps bank to digest, of every bank of its log at least; `number` counts from 0 with
    the log's header."""

    number: int
    pcr: int
    type: int
    digests: Mapping[str, bytes]
    data: bytes

    @property
    def type_name(self) -> str:
        return TYPE_NAMES.get(self.type, f"event type {self.type:#x}")

    def vouched_data(self, bank: str) -> bytes | None:
        """The data, if this bank's digest is its hash; events of images and some vendors measure something else."""
        return self.data if hashlib.new(bank, self.data).digest() == self.digests[bank] else None


@dataclass(frozen=True, kw_only=True)
class EventLog:
    """`banks` in the header's order: those that every event has a digest for. One that an event leaves out cannot be
    replayed, so a quote over it meets no log. `locality` is where PCR 0 starts (StartupLocality: 0, 3, or 4 after an
    H-CRTM)."""

    banks: tuple[str, ...]
    events: tuple[Event, ...]
    locality: int = 0

    def of_pcr(self, pcr: int) -> tuple[Event, ...]:
        """The events that extended this PCR, in order."""
        return tuple(event for event in self.events if event.pcr == pcr and event.type != EV_NO_ACTION)


def parse_event_log(data: bytes) -> EventLog:
    """A whole log as the kernel gives it, with zero or 0xFF padding behind; raises MalformedEvidenceError."""
    if len(data) > MOST_BYTES:
        raise MalformedEvidenceError(f"event log: {len(data)} bytes, at most {MOST_BYTES} are read")
    reader = Reader(data, "event log", "little")
    first = _legacy_event(reader, 0)
    agile = first.data.startswith(b"Spec ID Event03\0")
    if agile and (first.pcr > 1 or first.type != EV_NO_ACTION or any(first.digests["sha1"])):
        raise reader.wrong("the specification header is not a NO_ACTION event of PCR 0 (or register 1 in a CCEL)")
    banks = _specification(reader, first.data) if agile else ("sha1",)
    events = [] if agile else [first]
    # Behind the last event there may be the unused rest of the firmware's buffer: all zeros, or all ones.
    used = min(len(data.rstrip(b"\0")), len(data.rstrip(b"\xff")))
    while reader.left and reader.at < used:
        if len(events) >= MOST_EVENTS:
            raise reader.wrong(f"more than {MOST_EVENTS} events")
        number = len(events) + agile
        events.append(_event(reader, number, banks) if agile else _legacy_event(reader, number))
    whole = tuple(bank for bank in banks if all(bank in event.digests for event in events))
    if not whole:
        raise reader.wrong(f"no bank has a digest for every event; declared are {', '.join(banks)}")
    return EventLog(banks=whole, events=tuple(events), locality=_startup_locality(events))


def replay(log: EventLog, bank: str) -> dict[int, bytes]:
    """Values of PCR 0 to 15, and of others the log extends, after the log's events."""
    if bank not in log.banks or bank not in hashlib.algorithms_available:
        raise MalformedEvidenceError(f"event log: no {bank} bank can be replayed; it has {', '.join(log.banks)}")
    size = DIGEST_SIZES[bank]
    values = {pcr: bytes(size) for pcr in range(16)}
    values[0] = bytes(size - 1) + bytes([log.locality])
    for event in log.events:
        if event.type != EV_NO_ACTION:
            # PCRs 17 to 22 start as all ones (Profile, 3.3); 16 and 23 as zeros.
            before = values.get(event.pcr, (b"\xff" if 17 <= event.pcr <= 22 else b"\0") * size)
            values[event.pcr] = extend(bank, before, event.digests[bank])
    return values


def extend(bank: str, value: bytes, digest: bytes) -> bytes:
    """TPM2_PCR_Extend."""
    return hashlib.new(bank, value + digest).digest()


def extend_all(bank: str, digests: Iterable[bytes]) -> bytes:
    """The value of a PCR that starts at zero and is extended by these digests."""
    value = bytes(DIGEST_SIZES[bank])
    for digest in digests:
        value = extend(bank, value, digest)
    return value


def _specification(log: Reader, data: bytes) -> tuple[str, ...]:
    """TCG_EfiSpecIDEvent (10.4.5.1): the banks of the log, each with the size that its algorithm has. Some writers do
    not count vendorInfo in the event's size; it is then skipped in the log."""
    reader = Reader(data, "event log header", "little")
    reader.take(16 + 4 + 4)  # signature, platformClass, versions and uintnSize
    if not 1 <= (count := reader.u32()) <= len(ALGORITHMS):
        raise reader.wrong(f"{count} banks")
    banks: list[str] = []
    for _ in range(count):
        algorithm, size = reader.u16(), reader.u16()
        bank = ALGORITHMS.get(algorithm)
        if bank is None or DIGEST_SIZES[bank] != size or bank in banks:
            raise reader.wrong(f"bank {algorithm:#06x} with digests of {size} bytes is unknown or there twice")
        banks.append(bank)
    vendor_info = reader.u8()
    (reader if reader.left else log).take(vendor_info)
    reader.end()
    return tuple(banks)


def _legacy_event(reader: Reader, number: int) -> Event:
    pcr, kind = _target(reader, number)
    digest = reader.take(20)
    return Event(number=number, pcr=pcr, type=kind, digests={"sha1": digest}, data=reader.take(reader.u32()))


def _event(reader: Reader, number: int, banks: tuple[str, ...]) -> Event:
    pcr, kind = _target(reader, number)
    if not 1 <= (count := reader.u32()) <= len(banks):
        raise reader.wrong(f"event {number} has {count} digests for {len(banks)} banks")
    digests: dict[str, bytes] = {}
    for _ in range(count):
        bank = ALGORITHMS.get(algorithm := reader.u16())
        if bank not in banks or bank in digests:
            raise reader.wrong(f"event {number} has a digest of {algorithm:#06x}, which is not declared or there twice")
        digests[bank] = reader.take(DIGEST_SIZES[bank])
    return Event(number=number, pcr=pcr, type=kind, digests=digests, data=reader.take(reader.u32()))


def _target(reader: Reader, number: int) -> tuple[int, int]:
    pcr, kind = reader.u32(), reader.u32()
    if pcr > 23 and (pcr, kind) != (NO_PCR, EV_NO_ACTION):
        raise reader.wrong(f"event {number} measures into PCR {pcr}, which does not exist")
    return pcr, kind


def _startup_locality(events: Iterable[Event]) -> int:
    """TCG_EfiStartupLocalityEvent (10.4.5.3): at most one, before PCR 0 is extended."""
    locality: int | None = None
    extended = False
    for event in events:
        extended |= event.pcr == 0 and event.type != EV_NO_ACTION
        if event.type == EV_NO_ACTION and event.data.startswith(b"StartupLocality\0"):
            if extended or locality is not None or len(event.data) != 17 or event.data[16] not in (0, 3, 4):
                raise MalformedEvidenceError(f"event log: event {event.number} is not a valid startup locality")
            locality = event.data[16]
    return locality or 0
