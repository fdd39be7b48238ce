"""One machine without a rack: Secure Boot that refuses, virtual media, queued changes, drives that lie. No root."""

import hashlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from machine_rig import real_machine, says

from freehold_lab import firmware_package, qemu
from freehold_lab.errors import LabError
from freehold_lab.hardware import BootOverride, BootTarget
from freehold_lab.machine import Machine
from freehold_lab.tpm import TpmVendor

LOADER = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
OTHER_VERSION = "9.9.9"


def sh(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


def make_iso(work: Path, name: str, loader: Path) -> Path:
    """El Torito with one FAT image that holds the loader."""
    tree, iso = work / f"{name}.tree", work / f"{name}.iso"
    tree.mkdir()
    fat = tree / "efi.img"
    sh("mformat", "-C", "-i", fat, "-T", 8192, "-h", 64, "-s", 32, "::")
    sh("mmd", "-i", fat, "::/EFI", "::/EFI/BOOT")
    sh("mcopy", "-i", fat, loader, "::/EFI/BOOT/BOOTX64.EFI")
    sh("xorriso", "-as", "mkisofs", "-quiet", "-e", "efi.img", "-no-emul-boot", "-o", iso, tree)
    return iso


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    async with real_machine(tmp_path) as machine:
        yield machine


@pytest.mark.lab
@pytest.mark.timeout(900)
async def test_secure_boot_refuses_an_unsigned_cd_and_starts_a_signed_one(machine: Machine, tmp_path: Path) -> None:
    key, pem, signed = tmp_path / "db.key", tmp_path / "db.pem", tmp_path / "signed.efi"
    sh("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=db/", "-keyout", key, "-out", pem)
    sh("sbsign", "--key", key, "--cert", pem, "--output", signed, LOADER)
    certificate = x509.load_pem_x509_certificate(pem.read_bytes()).public_bytes(Encoding.DER)
    for database in ("db", "KEK", "PK"):
        await machine.set_secure_boot_database(database, [certificate], [])
    await machine.set_secure_boot_enabled(True)
    assert await machine.secure_boot_certificates("db") == [certificate]

    cd = BootOverride(BootTarget.CD, "Once")
    await machine.insert_media(make_iso(tmp_path, "unsigned", LOADER))
    await machine.set_boot_override(cd)
    await machine.power_on()
    assert await machine.secure_boot_active()
    await says(machine, 'failed to load Boot0F00 "BMC: virtual CD"')
    assert "Access Denied" in machine.console.log.read_text()

    await machine.insert_media(make_iso(tmp_path, "signed", signed))  # while it runs
    await machine.set_boot_override(cd)
    await machine.set_secure_boot_database("dbx", [], ["ab" * 32])  # queued until the reset
    await machine.reset(force=True)
    await says(machine, 'starting Boot0F00 "BMC: virtual CD"')
    assert (await machine.boot_override()).enabled == "Disabled"
    assert await machine.secure_boot_signatures("dbx") == ["ab" * 32]
    await machine.eject_media()
    await machine.power_off(force=True)
    assert await machine.power_state() == "Off"


@pytest.mark.host
@pytest.mark.slow
async def test_secure_erase_erases_unless_the_drive_lies(machine: Machine) -> None:
    image = machine.directory / qemu.DISK_IMAGE
    image.write_bytes(b"canary".ljust(qemu.DISK_BYTES, b"\0"))
    machine.faults.drive_skips_erase = True
    await machine.secure_erase("disk0")
    assert image.read_bytes()[:6] == b"canary"
    machine.faults.drive_skips_erase = False
    await machine.secure_erase("disk0")
    assert image.stat().st_size == qemu.DISK_BYTES
    assert image.stat().st_blocks == 0
    with pytest.raises(LabError, match="server-1: there is no drive sda"):
        await machine.secure_erase("sda")


@pytest.mark.host
@pytest.mark.slow
async def test_endorsement_certificate_comes_from_the_vendor(machine: Machine, tmp_path: Path) -> None:
    vendor = TpmVendor(tmp_path / "tpm-vendor")
    root = x509.load_pem_x509_certificate(vendor.root_certificate.read_bytes())
    x509.load_pem_x509_certificate(vendor.issuing_certificate.read_bytes()).verify_directly_issued_by(root)
    state = machine.directory / "tpm/tpm2-00.permall"
    before = hashlib.sha256(state.read_bytes()).digest()
    vendor.manufacture(machine.directory, "again")
    assert hashlib.sha256(state.read_bytes()).digest() == before  # a TPM keeps its identity


@pytest.mark.host
async def test_bad_wishes_are_refused_at_once(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no http or https URI"):
        await machine.set_boot_override(BootOverride(BootTarget.UEFI_HTTP, "Once", "tftp://172.30.2.2/x"))
    with pytest.raises(LabError, match="there is no image"):
        await machine.insert_media(tmp_path / "missing.iso")
    with pytest.raises(LabError, match="'Boot3' is no boot option"):
        await machine.set_boot_order(["Boot3"])
    with pytest.raises(LabError, match="no firmware package"):
        await machine.install_firmware(b"rubbish")


@pytest.mark.host
async def test_settings_and_firmware_wait_for_the_next_boot(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    await machine.set_bios_attributes({"SriovGlobalEnable": "Enabled"})
    code = b"\xff" * firmware_package.CODE_BYTES
    assert await machine.install_firmware(firmware_package.pack(OTHER_VERSION, code)) == OTHER_VERSION
    assert (await machine.bios_attributes())["SriovGlobalEnable"] == "Disabled"
    assert (await machine.pending_bios_attributes())["SriovGlobalEnable"] == "Enabled"
    assert machine.info.bios_version != OTHER_VERSION
    launch = machine._apply_queued()
    assert launch.bios_version == machine.info.bios_version == OTHER_VERSION
    assert (await machine.bios_attributes())["SriovGlobalEnable"] == "Enabled"
    assert (machine.directory / qemu.FIRMWARE).read_bytes() == code


@pytest.mark.host
async def test_a_qemu_that_does_not_start_says_why(machine: Machine) -> None:
    (machine.directory / qemu.NVME_IMAGE).unlink()
    with pytest.raises(LabError, match=r"server-1: QEMU does not start: .*nvme0\.raw"):
        await machine.power_on()
    assert await machine.power_state() == "Off"
