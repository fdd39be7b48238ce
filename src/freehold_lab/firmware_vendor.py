"""The lab's firmware vendor: what `up` puts into `<lab>/firmware/`, as a vendor's web site would have it.

    HX-100-1.1.0.fwpkg       a newer BIOS: the other of Debian's OVMF builds
    HMC-4-4.13.00.fwpkg      newer firmware of the BMC
    *.fwpkg.p7s              the vendor's signature over each (PKCS #7, detached, DER)
    vendor.pem               the vendor's CA

The servers leave the factory with version 1.0.0 and the first build, their BMCs with 4.12.03.
"""

from pathlib import Path

from freehold_lab import qemu
from freehold_lab.firmware_package import BMC_MAGIC, NEW_BMC_VERSION, NEW_VERSION, bmc_package_name, pack, package_name
from freehold_lab.processes import run

CA, KEY, SIGNER = "vendor.pem", "signer.key", "signer.pem"


def establish(directory: Path, vendor: str, model: str) -> Path:
    """Make the CA, the signer and the signed packages, unless they are there. Returns the path of the BIOS."""
    bios, bmc = directory / package_name(model), directory / bmc_package_name()
    if _signature(bmc).exists():  # that is made last
        return bios
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
    bios.write_bytes(pack(NEW_VERSION, qemu.OTHER_CODE.read_bytes()))
    bmc.write_bytes(pack(NEW_BMC_VERSION, b"for a management controller that is a process", BMC_MAGIC))
    for package in (bios, bmc):
        run(
            *("openssl", "cms", "-sign", "-binary", "-outform", "DER", "-signer", signer, "-inkey", key),
            *("-in", package, "-out", _signature(package)),
        )
    return bios


def _signature(package: Path) -> Path:
    return package.with_name(package.name + ".p7s")
