import subprocess
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from virt.firmware.efi.siglist import EfiSigDB

from freehold.root_of_trust import pki, secure_boot

OWNER = UUID("01234567-89ab-cdef-0123-456789abcdef")
CERTIFICATE = pki.secure_boot_certificate(rsa.generate_private_key(65537, 2048), "lab", "db", pki.utc_now())


def test_a_list_has_the_layout_of_uefi_2_10() -> None:
    data = secure_boot.hash_database(OWNER, [b"\1" * 32, b"\2" * 32])
    assert data[:16].hex() == "2616c4c14c509240aca941f936934328"
    assert [int.from_bytes(data[at : at + 4], "little") for at in (16, 20, 24)] == [28 + 2 * 48, 0, 48]
    assert data[28:] == OWNER.bytes_le + b"\1" * 32 + OWNER.bytes_le + b"\2" * 32


def test_virt_firmware_reads_the_same_certificates() -> None:
    der = pki.der(CERTIFICATE)
    lists = EfiSigDB(secure_boot.certificate_database(OWNER, [der, der]))
    assert [str(one.guid) for one in lists] == [str(secure_boot.EFI_CERT_X509)] * 2
    assert [bytes(one[0]["data"]) for one in lists] == [der, der]
    assert str(lists[0][0]["guid"]) == str(OWNER)


@pytest.mark.host
def test_efitools_write_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "db.pem").write_bytes(pki.pem(CERTIFICATE))
    subprocess.run(
        ["cert-to-efi-sig-list", "-g", str(OWNER), "db.pem", "db.esl"], cwd=tmp_path, check=True, capture_output=True
    )
    written = (tmp_path / "db.esl").read_bytes()
    assert written == secure_boot.certificate_database(OWNER, [pki.der(CERTIFICATE)])


def test_empty_and_malformed_lists() -> None:
    assert secure_boot.hash_database(OWNER, []) == b""
    assert secure_boot.certificate_database(OWNER, []) == b""
    with pytest.raises(ValueError, match="32 bytes"):
        secure_boot.hash_database(OWNER, [b"short"])
    with pytest.raises(ValueError, match="all of one size"):
        secure_boot.signature_list(secure_boot.EFI_CERT_X509, OWNER, [b"a", b"bb"])
