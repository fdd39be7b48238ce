"""EFI_SIGNATURE_LIST: the content of PK, KEK, db and dbx (UEFI 2.10, 32.4.1). Pure."""

import struct
from collections.abc import Iterable
from uuid import UUID

EFI_CERT_X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
EFI_CERT_SHA256 = UUID("c1c41626-504c-4092-aca9-41f936934328")
EFI_GLOBAL_VARIABLE = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
EFI_IMAGE_SECURITY_DATABASE = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")

VARIABLE_VENDOR = {
    "SecureBoot": EFI_GLOBAL_VARIABLE,
    "PK": EFI_GLOBAL_VARIABLE,
    "KEK": EFI_GLOBAL_VARIABLE,
    "db": EFI_IMAGE_SECURITY_DATABASE,
    "dbx": EFI_IMAGE_SECURITY_DATABASE,
}
"""The vendor GUID of each variable that PCR 7 measures."""

_HEADER = struct.Struct("<16sIII")


def signature_list(kind: UUID, owner: UUID, values: Iterable[bytes]) -> bytes:
    """One list of signatures of one type, size and owner. Raises ValueError if sizes differ or none is given."""
    entries = [owner.bytes_le + value for value in values]
    if len({len(entry) for entry in entries}) != 1:
        raise ValueError("an EFI_SIGNATURE_LIST holds at least one signature, all of one size")
    body = b"".join(entries)
    return _HEADER.pack(kind.bytes_le, _HEADER.size + len(body), 0, len(entries[0])) + body


def certificate_database(owner: UUID, certificates: Iterable[bytes]) -> bytes:
    """DER certificates as a variable's content: a list of its own for each, as their sizes differ."""
    return b"".join(signature_list(EFI_CERT_X509, owner, [certificate]) for certificate in certificates)


def hash_database(owner: UUID, digests: Iterable[bytes]) -> bytes:
    """SHA-256 digests (Authenticode) as a variable's content, for dbx; empty for none."""
    values = list(digests)
    if any(len(value) != 32 for value in values):
        raise ValueError("a SHA-256 digest has 32 bytes")
    return signature_list(EFI_CERT_SHA256, owner, values) if values else b""
