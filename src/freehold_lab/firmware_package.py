"""Firmware packages of the lab: a header line of JSON before an OVMF code image, or before what stands for a BMC's.

    FREEHOLD-LAB-FIRMWARE {"version": "1.1.0", "sha256": "…"}\n<OVMF_CODE image>
    FREEHOLD-LAB-BMC {"version": "4.13.00", "sha256": "…"}\n<anything>

The hash protects against a broken upload, not against an attacker: whether a package may be installed at all is for
the one who sends it to decide.
"""

import hashlib
import json

from freehold_lab.errors import LabError

MAGIC, BMC_MAGIC = b"FREEHOLD-LAB-FIRMWARE ", b"FREEHOLD-LAB-BMC "
CODE_BYTES = 0x37C000  # size of OVMF_CODE_4M.fd: the flash of the machine


NEW_VERSION, NEW_BMC_VERSION = "1.1.0", "4.13.00"
"""What the lab's vendor offers; servers leave the factory with 1.0.0, and 4.12.03 on the BMC."""
BMC_MODEL = "HMC-4"


def package_name(model: str) -> str:
    return f"{model}-{NEW_VERSION}.fwpkg"


def bmc_package_name() -> str:
    return f"{BMC_MODEL}-{NEW_BMC_VERSION}.fwpkg"


def pack(version: str, code: bytes, magic: bytes = MAGIC) -> bytes:
    header = {"version": version, "sha256": hashlib.sha256(code).hexdigest()}
    return magic + json.dumps(header).encode() + b"\n" + code


def unpack(package: bytes) -> tuple[str, bytes]:
    """`(version, code)`; LabError if the package is not whole or does not fit the flash."""
    version, code = _opened(package, MAGIC)
    if len(code) != CODE_BYTES:
        raise LabError(f"the firmware image has {len(code)} bytes, the flash of this machine {CODE_BYTES}")
    return version, code


def bmc_version(package: bytes) -> str:
    """Of a BMC's package; LabError if it is not whole."""
    return _opened(package, BMC_MAGIC)[0]


def _opened(package: bytes, magic: bytes) -> tuple[str, bytes]:
    header, newline, code = package.partition(b"\n")
    if not newline or not header.startswith(magic):
        raise LabError(
            "this is no firmware package of the lab", remedy="Make one with `freehold_lab.firmware_package.pack`."
        )
    try:
        fields = json.loads(header.removeprefix(magic))
        version, digest = str(fields["version"]), str(fields["sha256"])
    except (ValueError, KeyError, TypeError) as exc:
        raise LabError("the header of the firmware package cannot be read") from exc
    if hashlib.sha256(code).hexdigest() != digest:
        raise LabError(
            "the firmware package is damaged: its SHA-256 differs from its header", remedy="Upload it again."
        )
    return version, code
