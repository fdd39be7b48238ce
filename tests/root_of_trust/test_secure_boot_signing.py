"""Signatures that firmware verifies, checked by other people's tools. OVMF has its say in tests/lab."""

import subprocess
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from secure_boot_support import LOADER, NOW, der, signer

from freehold.root_of_trust import pki, secure_boot
from freehold.root_of_trust.attestation.pe import authenticode
from freehold.root_of_trust.secure_boot_signing import (
    NotSignable,
    authenticated_variable,
    sign_image,
    signers_of,
)

OLD, NEW = "db", "db-new"


def sbverify(image: bytes, name: str, work: Path) -> bool:
    (work / "image.efi").write_bytes(image)
    (work / "db.pem").write_bytes(pki.pem(signer(name).certificate))
    command = ["sbverify", "--cert", work / "db.pem", work / "image.efi"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.host
def test_every_signature_verifies_and_no_other_does(tmp_path: Path) -> None:
    both = sign_image(LOADER.read_bytes(), [signer(OLD), signer(NEW)])
    assert [sbverify(both, name, tmp_path) for name in (OLD, NEW, "foreign")] == [True, True, False]
    assert signers_of(both) == (der(OLD), der(NEW))
    one = sign_image(LOADER.read_bytes(), [signer(NEW)])
    assert [sbverify(one, name, tmp_path) for name in (OLD, NEW)] == [False, True]


@pytest.mark.host
def test_a_changed_image_does_not_verify(tmp_path: Path) -> None:
    signed = bytearray(sign_image(LOADER.read_bytes(), [signer(OLD)]))
    signed[0x2000] ^= 1
    assert not sbverify(bytes(signed), OLD, tmp_path)


@pytest.mark.host
def test_the_digest_is_that_of_sbsign_and_does_not_depend_on_who_signed(tmp_path: Path) -> None:
    plain = signer(OLD).key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(plain)
    (tmp_path / "db.pem").write_bytes(pki.pem(signer(OLD).certificate))
    image = LOADER.read_bytes() + b"odd"  # so that it has to be padded
    one, two = sign_image(image, [signer(OLD)]), sign_image(image, [signer(OLD), signer(NEW)])
    (tmp_path / "image.efi").write_bytes(image)
    command = ["sbsign", "--key", "key.pem", "--cert", "db.pem", "--output", "signed.efi", "image.efi"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    theirs = (tmp_path / "signed.efi").read_bytes()
    assert authenticode(one) == authenticode(two) == authenticode(theirs)
    assert signers_of(theirs) == (der(OLD),)


@pytest.mark.host
def test_what_is_signed_is_not_signed_again() -> None:
    signed = sign_image(LOADER.read_bytes(), [signer(OLD)])
    with pytest.raises(NotSignable, match="signed already"):
        sign_image(signed, [signer(NEW)])


@pytest.mark.host
def test_an_unsigned_image_has_no_signers_and_a_broken_table_is_refused() -> None:
    assert signers_of(LOADER.read_bytes()) == ()
    signed = bytearray(sign_image(LOADER.read_bytes(), [signer(OLD)]))
    at = len(LOADER.read_bytes()) + -len(LOADER.read_bytes()) % 8
    for offset, value, words in ((6, 0xEF, "type 0x00ef"), (8, 0x31, "cannot be read"), (2, 0xFF, "bytes")):
        broken = bytearray(signed)
        broken[at + offset] = value
        with pytest.raises(NotSignable, match=words):
            signers_of(bytes(broken))


@pytest.mark.host
def test_an_authenticated_variable_verifies_as_pkcs7_over_what_uefi_says(tmp_path: Path) -> None:
    content = secure_boot.hash_database(UUID(int=7), [b"\1" * 32])
    variable = authenticated_variable("dbx", content, signer("KEK"), NOW + timedelta(hours=1))
    assert variable[:7] == (2026).to_bytes(2, "little") + bytes([11, 23, 1, 0, 0])
    size = int.from_bytes(variable[16:20], "little")
    assert variable[16 + size :] == content
    data = variable[40 : 16 + size]
    wrapped = bytes.fromhex("06092a864886f70d010702") + b"\xa0\x82" + len(data).to_bytes(2, "big") + data
    (tmp_path / "sig.der").write_bytes(b"\x30\x82" + len(wrapped).to_bytes(2, "big") + wrapped)
    guid = secure_boot.EFI_IMAGE_SECURITY_DATABASE.bytes_le
    message = "dbx".encode("utf-16-le") + guid + b"\x27\0\0\0" + variable[:16] + content
    (tmp_path / "message").write_bytes(message)
    command = ["openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", "sig.der", "-content", "message"]
    command += ["-noverify", "-out", "verified"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "message").write_bytes(message[:-1] + b"\2")
    refused = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True)
    assert refused.returncode != 0
