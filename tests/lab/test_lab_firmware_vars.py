"""Editing a variable store: what is written is what OVMF's own format gives back."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from freehold_lab import device_path, firmware_vars, qemu
from freehold_lab.errors import LabError
from freehold_lab.firmware_vars import ResetKeys, SetBootOrder, SetSecureBoot, set_database

pytestmark = pytest.mark.host  # the Debian package ovmf
DIGEST = "ab" * 32


def certificate(name: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return Path(shutil.copyfile(qemu.VARS_TEMPLATE, tmp_path / "vars.fd"))


def edit(store: Path, *edits: firmware_vars.Edit) -> firmware_vars.Variables:
    firmware_vars.write(store, firmware_vars.read(store, edits))
    return firmware_vars.read(store)


def test_new_machine_is_in_setup_mode(store: Path) -> None:
    variables = firmware_vars.read(store)
    assert variables.setup_mode()
    assert not variables.secure_boot_enabled()
    assert variables.certificates("db") == []


def test_databases_read_back_as_written_and_the_flash_keeps_its_size(store: Path) -> None:
    size = store.stat().st_size
    one, two = certificate("one"), certificate("two")
    variables = edit(
        store,
        set_database("db", [one, two], []),
        set_database("dbx", [], [DIGEST]),
        set_database("PK", [one], []),
        SetSecureBoot(True),
    )
    assert variables.certificates("db") == [one, two]
    assert variables.signatures("dbx") == [DIGEST]
    assert variables.secure_boot_enabled()
    assert store.stat().st_size == size


def test_secure_boot_is_off_without_platform_key_whatever_the_switch_says(store: Path) -> None:
    assert not edit(store, SetSecureBoot(True)).secure_boot_enabled()


@pytest.mark.parametrize("mode", ["DeletePK", "DeleteAllKeys", "ResetAllKeysToDefault"])
def test_without_platform_key_secure_boot_is_off(store: Path, mode: firmware_vars.ResetMode) -> None:
    edit(
        store,
        set_database("db", [certificate("db")], []),
        set_database("PK", [certificate("pk")], []),
        SetSecureBoot(True),
    )
    variables = edit(store, ResetKeys(mode))
    assert variables.setup_mode()
    assert not variables.secure_boot_enabled()
    assert len(variables.certificates("db")) == (1 if mode == "DeletePK" else 0)


def test_override_is_next_and_not_in_the_order(store: Path) -> None:
    variables = firmware_vars.read(store)
    path = device_path.http(2, "52:54:00:00:00:10", "http://172.30.2.2/agent.efi")
    variables.set_override_entry("BMC: UEFI HTTP", path)
    firmware_vars.write(store, variables)
    again = firmware_vars.read(store)
    assert again.boot_next() == firmware_vars.OVERRIDE_ENTRY
    assert again.boot_order() == []
    [option] = again.boot_options()
    assert option.device_path == (
        "PciRoot(0x0)/Pci(0x2,0x0)/MAC(525400000010,0x1)/IPv4(0.0.0.0)/Uri(http://172.30.2.2/agent.efi)"
    )


def test_override_stays_until_the_firmware_has_used_it(store: Path) -> None:
    variables = firmware_vars.read(store)
    variables.set_override_entry("BMC: virtual CD", device_path.scsi(qemu.CD_SLOT))
    variables.remove_spent_override()
    assert len(variables.boot_options()) == 1
    del variables.raw["BootNext"]  # as the firmware does when it boots it
    variables.remove_spent_override()
    assert variables.boot_options() == []


def test_first_disk_skips_the_cd_and_the_network(store: Path) -> None:
    variables = firmware_vars.read(store)
    paths = [
        device_path.scsi(qemu.CD_SLOT),
        device_path.pxe(2, "52:54:00:00:00:10"),
        device_path.path(
            *device_path.pci(qemu.NVME_SLOT), device_path.node(3, 0x17, (1).to_bytes(4, "little") + bytes(8))
        ),
    ]
    for number, path in enumerate(paths):
        variables.raw.set_boot_entry(number, "entry", path)
    variables.apply(SetBootOrder((0, 1, 2)))
    assert variables.first_disk(qemu.CD_SLOT) == 2


def test_boot_order_refuses_what_does_not_exist(store: Path) -> None:
    with pytest.raises(LabError, match="Boot0042, which does not exist"):
        firmware_vars.read(store, [SetBootOrder((0x42,))])


def test_request_for_setup_keeps_other_indications(store: Path) -> None:
    variables = firmware_vars.read(store)
    variables.raw.create("OsIndications").data = (0x40).to_bytes(8, "little")
    variables.request_firmware_ui()
    assert int.from_bytes(variables.raw["OsIndications"].data, "little") == 0x41


@pytest.mark.parametrize(
    "value",
    [SetBootOrder((1, 2)), SetSecureBoot(False), set_database("db", [b"\x30\x00"], [DIGEST]), ResetKeys("DeletePK")],
)
def test_edits_survive_the_way_through_json(value: firmware_vars.Edit) -> None:
    assert firmware_vars.edit_from_json(firmware_vars.edit_to_json(value)) == value


def test_a_store_that_is_none_is_refused_in_words(tmp_path: Path) -> None:
    broken = tmp_path / "vars.fd"
    broken.write_bytes(bytes(4096))
    with pytest.raises(LabError, match="is no OVMF variable store"):
        firmware_vars.read(broken)


def test_a_store_that_is_full_is_left_as_it_was(store: Path) -> None:
    before = store.read_bytes()
    variables = firmware_vars.read(store)
    variables.raw.create("Huge").data = bytes(1 << 20)
    with pytest.raises(LabError, match="do not fit"):
        firmware_vars.write(store, variables)
    assert store.read_bytes() == before
