"""Measurements in words, for verdicts. What a digest does not vouch for is said to be the firmware's word, and nothing
that a stranger wrote gets into a sentence with control characters in it (CVE-2022-23949)."""

from collections.abc import Sequence

from freehold.root_of_trust.attestation import event_log, uefi
from freehold.root_of_trust.attestation.errors import MalformedEvidenceError
from freehold.root_of_trust.attestation.event_log import Event
from freehold.root_of_trust.attestation.reader import Reader, printable


def few(sentences: Sequence[str], most: int = 8) -> list[str]:
    """The first of them and how many there are more: whoever measures a thousand things must not fill the evidence."""
    more = len(sentences) - most
    return [*sentences[:most], f"and {more} more of this kind"] if more > 0 else list(sentences)


def describe_event(event: Event, bank: str) -> str:
    return f"{name_event(event, bank)} with digest {event.digests[bank].hex()}"


def name_event(event: Event, bank: str) -> str:
    """`event 3 (EV_S_CRTM_VERSION "1.2.3")`."""
    detail = _detail(event, bank)
    return f"event {event.number} ({event.type_name}{' ' + detail if detail else ''})"


def _detail(event: Event, bank: str) -> str:
    try:
        if event.type == event_log.EV_S_CRTM_VERSION and event.vouched_data(bank) is not None:
            return f'"{printable(event.data.decode("utf-16-le", "replace").rstrip(chr(0)))}"'
        if event.type == event_log.EV_EFI_PLATFORM_FIRMWARE_BLOB:
            # UEFI_PLATFORM_FIRMWARE_BLOB (Profile, 10.2.5)
            blob = Reader(event.data, "firmware blob", "little")
            base, length = blob.u64(), blob.u64()
            return f"of {length} bytes at {base:#x}, by the firmware's word"
        if event.type in (event_log.EV_EFI_BOOT_SERVICES_DRIVER, event_log.EV_EFI_RUNTIME_SERVICES_DRIVER):
            return f"from {printable(uefi.parse_image_load(event.data).device_path)}, by the firmware's word"
    except MalformedEvidenceError:
        pass
    return ""


def describe_image(event: Event, bank: str) -> str:
    if event.type != event_log.EV_EFI_BOOT_SERVICES_APPLICATION:
        return describe_event(event, bank)
    try:
        origin = f" (by the firmware's word from {printable(uefi.parse_image_load(event.data).device_path)})"
    except MalformedEvidenceError:
        origin = ""
    return f"booted an image with Authenticode digest {event.digests[bank].hex()}{origin}"


def describe_variable(event: Event, bank: str) -> str:
    variable = read_variable(event.vouched_data(bank))
    return f"variable {printable(variable.name)}" if variable else describe_event(event, bank)


def read_variable(data: bytes | None) -> uefi.VariableData | None:
    if data is None:
        return None
    try:
        return uefi.parse_variable(data)
    except MalformedEvidenceError:
        return None
