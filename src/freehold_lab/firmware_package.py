"""Firmware packages of the lab: a header line of JSON before an OVMF code image.

    FREEHOLD-LAB-FIRMWARE {"version": "1.1.0", "sha256": "…"}\n<OVMF_CODE image>

The hash protects against a broken upload, not against an attacker: whether a package may be installed at all is for
the one who sends it to decide.
"""

import hashlib
import json

from freehold_lab.errors import LabError

MAGIC = b"FREEHOLD-LAB-FIRMWARE "
CODE_BYTES = 0x37C000  # size of OVMF_CODE_4M.fd: the flash of the machine


NEW_VERSION = "1.1.0"
"""What the lab's vendor offers; servers leave the factory with 1.0.0."""


def package_name(model: str) -> str:
    return f"{model}-{NEW_VERSION}.fwpkg"


def pack(version: str, code: bytes) -> bytes:
    header = {"version": version, "sha256": hashlib.sha256(code).hexdigest()}
    return MAGIC + json.dumps(header).encode() + b"\n" + code


def unpack(package: bytes) -> tuple[str, bytes]:
    """`(version, code)`; LabError if the package is not whole or does not fit the flash."""
    header, newline, code = package.partition(b"\n")
    if not newline or not header.startswith(MAGIC):
        raise LabError(
            "this is no firmware package of the lab", remedy="Make one with `freehold_lab.firmware_package.pack`."
        )
    try:
        fields = json.loads(header.removeprefix(MAGIC))
        version, digest = str(fields["version"]), str(fields["sha256"])
    except (ValueError, KeyError, TypeError) as exc:
        raise LabError("the header of the firmware package cannot be read") from exc
    if hashlib.sha256(code).hexdigest() != digest:
        raise LabError(
            "the firmware package is damaged: its SHA-256 differs from its header", remedy="Upload it again."
        )
    if len(code) != CODE_BYTES:
        raise LabError(f"the firmware image has {len(code)} bytes, the flash of this machine {CODE_BYTES}")
    return version, code
