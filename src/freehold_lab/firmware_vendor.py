"""The lab's firmware vendor: what `up` puts into `<lab>/firmware/`, as a vendor's web site would have it.

    HX-100-1.1.0.fwpkg       a newer BIOS: the other of Debian's OVMF builds
    HX-100-1.1.0.fwpkg.p7s   the vendor's signature over it (PKCS #7, detached, DER)
    vendor.pem               the vendor's CA

The servers leave the factory with version 1.0.0 and the first build.
"""

from pathlib import Path

from freehold_lab import qemu
from freehold_lab.firmware_package import NEW_VERSION, pack, package_name
from freehold_lab.processes import run

CA, KEY, SIGNER = "vendor.pem", "signer.key", "signer.pem"


def establish(directory: Path, vendor: str, model: str) -> Path:
    """Make the CA, the signer and the signed package, unless they are there. Returns the package's path."""
    package = directory / package_name(model)
    signature = package.with_name(package.name + ".p7s")
    if signature.exists():
        return package
    directory.mkdir(parents=True, exist_ok=True)
    ca, key, signer = directory / CA, directory / KEY, directory / SIGNER
    subject = f"/O={vendor}"
    new_key = ("-newkey", "rsa:2048", "-nodes", "-days", "3650")
    run(
        *("openssl", "req", "-x509", *new_key, "-subj", f"{subject}/CN=Firmware CA"),
        *("-keyout", directory / "ca.key", "-out", ca),
    )
    run(
        *("openssl", "req", "-x509", *new_key, "-subj", f"{subject}/CN=Firmware Signing"),
        *("-CA", ca, "-CAkey", directory / "ca.key", "-keyout", key, "-out", signer),
    )
    package.write_bytes(pack(NEW_VERSION, qemu.OTHER_CODE.read_bytes()))
    run(
        *("openssl", "cms", "-sign", "-binary", "-outform", "DER", "-signer", signer, "-inkey", key),
        *("-in", package, "-out", signature),
    )
    return package
