"""What a server's PCRs must be, computed from files alone: the signed UKI and the enrolled Secure Boot keys.

Measured against OVMF (edk2 2022.11) with systemd-stub 252: PCR 4, 7 and 11, with Secure Boot on and in setup mode.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from freehold.root_of_trust.attestation.errors import MalformedEvidenceError
from freehold.root_of_trust.attestation.event_log import extend_all
from freehold.root_of_trust.attestation.pe import authenticode, parse_image
from freehold.root_of_trust.attestation.uefi import (
    GLOBAL_VARIABLE,
    IMAGE_SECURITY_DATABASE,
    SignatureEntry,
    VariableData,
)

CALLING = b"Calling EFI Application from Boot Option"
RETURNING = b"Returning from EFI Application from Boot Option"
SEPARATOR = bytes(4)
STUB_VERSION = 252
STUB_SECTIONS = (
    ".linux",
    ".osrel",
    ".cmdline",
    ".initrd",
    ".splash",
    ".dtb",
    ".pcrpkey",
)  # systemd v252, fundamental/tpm-pcr.c
BOOT_PHASES = ("enter-initrd", "leave-initrd", "sysinit", "ready")  # systemd-pcrphase(8)


@dataclass(frozen=True, kw_only=True)
class ExpectedEvent:
    """One predicted measurement: its digest, what it is in words, and what was hashed, where that helps to explain.
    `authority`: what was hashed is a variable that holds one entry of db, the one that vouched for an image."""

    digest: bytes
    label: str
    data: bytes | None = None
    authority: bool = False


@dataclass(frozen=True, kw_only=True)
class SecureBootKeys:
    """The variables' contents, as concatenated EFI_SIGNATURE_LISTs; empty where a variable does not exist."""

    pk: bytes = b""
    kek: bytes = b""
    db: bytes = b""
    dbx: bytes = b""


def measure(data: bytes, label: str, *, authority: bool = False) -> ExpectedEvent:
    """An event whose digest is the SHA-256 of its data."""
    return ExpectedEvent(digest=hashlib.sha256(data).digest(), label=label, data=data, authority=authority)


def pcr4_events(uki: bytes, *, secure_boot: bool) -> tuple[ExpectedEvent, ...]:
    """PCR 4 of a first boot attempt that starts this signed UKI.

    With Secure Boot off, systemd-stub lets the firmware load the kernel inside, which measures that too; with it on,
    the stub starts the kernel itself, as the kernel carries no signature of its own.
    """
    events = [
        measure(CALLING, "the firmware's action"),
        measure(SEPARATOR, "the separator"),
        ExpectedEvent(digest=authenticode(uki), label="the signed image"),
    ]
    if not secure_boot:
        kernel = parse_image(uki).sections.get(".linux")
        if kernel is None:
            raise MalformedEvidenceError("the image has no .linux section: it is not a unified kernel image")
        events.append(ExpectedEvent(digest=authenticode(kernel), label="the kernel inside the image"))
    return tuple(events)


def pcr7_events(
    keys: SecureBootKeys, *, secure_boot: bool, authorities: Sequence[SignatureEntry] = ()
) -> tuple[ExpectedEvent, ...]:
    """PCR 7: the Secure Boot variables, the separator, then each db entry that vouched for an image, in order of use.

    Setup mode is `SecureBootKeys()` with `secure_boot=False`.
    """
    variables = (
        VariableData(vendor=GLOBAL_VARIABLE, name="SecureBoot", data=bytes([secure_boot])),
        VariableData(vendor=GLOBAL_VARIABLE, name="PK", data=keys.pk),
        VariableData(vendor=GLOBAL_VARIABLE, name="KEK", data=keys.kek),
        VariableData(vendor=IMAGE_SECURITY_DATABASE, name="db", data=keys.db),
        VariableData(vendor=IMAGE_SECURITY_DATABASE, name="dbx", data=keys.dbx),
    )
    used = (VariableData(vendor=IMAGE_SECURITY_DATABASE, name="db", data=entry.encode()) for entry in authorities)
    return (
        *(measure(variable.encode(), variable.name) for variable in variables),
        measure(SEPARATOR, "the separator"),
        *(measure(variable.encode(), "the authority in db", authority=True) for variable in used),
    )


def pcr11_events(uki: bytes, phases: Iterable[str] = ()) -> tuple[ExpectedEvent, ...]:
    """PCR 11 of a UKI on systemd-stub 252: name and content of each section, then the boot phases passed.

    Other versions measure other sections (.uname and .sbat since 253), so an image on another stub is refused.
    """
    sections = parse_image(uki).sections
    version = re.search(rb"systemd-stub (\d+)", sections.get(".sdmagic", b""))
    if version is None or int(version[1]) != STUB_VERSION:
        found = f"systemd-stub {int(version[1])}" if version else "no systemd-stub"
        raise MalformedEvidenceError(f"PCR 11 cannot be predicted for an image on {found}", expected="systemd-stub 252")
    events = []
    for name in STUB_SECTIONS:
        if name in sections:
            events.append(measure(name.encode() + b"\0", f"the name {name}"))
            events.append(ExpectedEvent(digest=hashlib.sha256(sections[name]).digest(), label=f"the content of {name}"))
    return (*events, *(measure(phase.encode(), f"boot phase {phase}") for phase in phases))


def pcr_value(events: Iterable[ExpectedEvent]) -> bytes:
    """The SHA-256 PCR value after these events."""
    return extend_all("sha256", (event.digest for event in events))
