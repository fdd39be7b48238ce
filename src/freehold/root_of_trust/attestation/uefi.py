"""UEFI structures inside events: variables, signature lists, image load events, device paths (UEFI 2.10).

Used to name in words what was measured; whoever decides by them must first see that a digest vouches for the bytes.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from freehold.root_of_trust.attestation.certificate import name_text, read_certificate
from freehold.root_of_trust.attestation.errors import MalformedEvidenceError
from freehold.root_of_trust.attestation.reader import Reader

GLOBAL_VARIABLE = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY_DATABASE = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
CERT_X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
CERT_SHA256 = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328")


@dataclass(frozen=True, kw_only=True)
class VariableData:
    """UEFI_VARIABLE_DATA (PC Client Platform Firmware Profile, 10.2.6)."""

    vendor: uuid.UUID
    name: str
    data: bytes

    def encode(self) -> bytes:
        """As firmware measures it."""
        sizes = len(self.name).to_bytes(8, "little") + len(self.data).to_bytes(8, "little")
        return self.vendor.bytes_le + sizes + self.name.encode("utf-16-le") + self.data


@dataclass(frozen=True, kw_only=True)
class SignatureEntry:
    """One EFI_SIGNATURE_DATA (32.4.1) with the type of its list."""

    type: uuid.UUID
    owner: uuid.UUID
    data: bytes

    def encode(self) -> bytes:
        return self.owner.bytes_le + self.data

    def describe(self) -> str:
        """`certificate CN=…`, `SHA-256 hash …`, or the type."""
        if self.type == CERT_X509:
            return f"certificate {describe_certificate(self.data)}"
        if self.type == CERT_SHA256:
            return f"SHA-256 hash {self.data.hex()}"
        return f"entry of type {self.type}"


@dataclass(frozen=True, kw_only=True)
class ImageLoad:
    """UEFI_IMAGE_LOAD_EVENT (Profile, 10.2.3): where an image came from, as the firmware says; not protected."""

    length: int
    device_path: str


def parse_variable(data: bytes) -> VariableData:
    """A whole UEFI_VARIABLE_DATA; raises MalformedEvidenceError."""
    reader = Reader(data, "UEFI variable", "little")
    vendor = uuid.UUID(bytes_le=reader.take(16))
    name_size, data_size = reader.u64(), reader.u64()
    try:
        name = reader.take(name_size * 2).decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise reader.wrong("its name is not UTF-16") from error
    value = reader.take(data_size)
    reader.end()
    return VariableData(vendor=vendor, name=name, data=value)


def parse_signature_lists(data: bytes) -> tuple[SignatureEntry, ...]:
    """The entries of concatenated EFI_SIGNATURE_LISTs (32.4.1).

    No known type has a signature header, and bytes of one must never be read as signatures (GHSA-9r4w-jg96-92mv),
    so a list with SignatureHeaderSize other than 0 is refused.
    """
    reader = Reader(data, "EFI_SIGNATURE_LIST", "little")
    entries = []
    while reader.left:
        kind = uuid.UUID(bytes_le=reader.take(16))
        list_size, header_size, size = reader.u32(), reader.u32(), reader.u32()
        if header_size:
            raise reader.wrong(f"SignatureHeaderSize is {header_size}; every defined type has 0")
        if size <= 16 or list_size < 28 or (list_size - 28) % size or (kind == CERT_SHA256 and size != 48):
            raise reader.wrong(f"a list of {list_size} bytes cannot hold entries of {size} bytes of type {kind}")
        body = Reader(reader.take(list_size - 28), "EFI_SIGNATURE_LIST", "little")
        while body.left:
            owner = uuid.UUID(bytes_le=body.take(16))
            entries.append(SignatureEntry(type=kind, owner=owner, data=body.take(size - 16)))
    return tuple(entries)


def signature_list(kind: uuid.UUID, owner: uuid.UUID, items: tuple[bytes, ...]) -> bytes:
    """One EFI_SIGNATURE_LIST; `items` (DER certificates or digests) have one length, as the format demands."""
    size = 16 + len(items[0])
    if any(len(item) + 16 != size for item in items):
        raise MalformedEvidenceError("EFI_SIGNATURE_LIST: entries of one list must have one size")
    header = kind.bytes_le + b"".join(n.to_bytes(4, "little") for n in (28 + size * len(items), 0, size))
    return header + b"".join(owner.bytes_le + item for item in items)


def parse_image_load(data: bytes) -> ImageLoad:
    """A whole UEFI_IMAGE_LOAD_EVENT; raises MalformedEvidenceError."""
    reader = Reader(data, "UEFI_IMAGE_LOAD_EVENT", "little")
    reader.u64()  # location in memory
    length = reader.u64()
    reader.u64()  # link-time address
    path = reader.take(reader.u64())
    reader.end()
    return ImageLoad(length=length, device_path=device_path(path))


def describe_certificate(der: bytes) -> str:
    """The subject, or words for what cannot be read: descriptions never fail."""
    try:
        return name_text(read_certificate(der).subject) or "without a subject"
    except MalformedEvidenceError:
        return "that cannot be read"


def device_path(data: bytes) -> str:
    """A device path as text (10.6), nodes without a text form as `Path(type,subtype)`."""
    reader = Reader(data, "device path", "little")
    nodes = []
    while reader.left:
        kind, subtype, size = reader.u8(), reader.u8(), reader.u16()
        if size < 4:
            raise reader.wrong(f"a node of {size} bytes")
        body = reader.take(size - 4)
        if (kind, subtype) == (0x7F, 0xFF):
            break
        shape = NODES.get((kind, subtype))
        nodes.append(shape(Reader(body, "device path", "little")) if shape else f"Path({kind},{subtype})")
    return "/".join(nodes)


def _hard_drive(node: Reader) -> str:
    partition, _, _ = node.u32(), node.u64(), node.u64()
    signature = node.take(16)
    return f"HD({partition},GPT,{uuid.UUID(bytes_le=signature)})" if node.u16() == 0x0202 else f"HD({partition})"


def _pci(node: Reader) -> str:
    function, device = node.u8(), node.u8()
    return f"Pci({device:#x},{function:#x})"


def _acpi(node: Reader) -> str:
    hid, uid = node.u32(), node.u32()
    return f"PciRoot({uid:#x})" if hid in (0x0A0341D0, 0x0A0841D0) else f"Acpi({hid:#x},{uid:#x})"


NODES: Mapping[tuple[int, int], Callable[[Reader], str]] = {
    (1, 1): _pci,
    (2, 1): _acpi,
    (3, 2): lambda node: f"Scsi({node.u16():#x},{node.u16():#x})",
    (3, 5): lambda node: f"USB({node.u8():#x},{node.u8():#x})",
    (3, 11): lambda node: f"MAC({node.take(32)[:6].hex(':')})",
    (3, 12): lambda _: "IPv4()",
    (3, 13): lambda _: "IPv6()",
    (3, 18): lambda node: f"Sata({node.u16():#x})",
    (3, 23): lambda node: f"NVMe({node.u32():#x})",
    (3, 24): lambda node: f"Uri({node.take(node.left).decode('ascii', 'replace')})",
    (4, 1): _hard_drive,
    (4, 2): lambda node: f"CDROM({node.u32():#x})",
    (4, 3): lambda node: f"VenMedia({uuid.UUID(bytes_le=node.take(16))})",
    (4, 4): lambda node: node.take(node.left).decode("utf-16-le", "replace").rstrip("\0"),
    (4, 6): lambda node: f"FvFile({uuid.UUID(bytes_le=node.take(16))})",
    (4, 7): lambda node: f"Fv({uuid.UUID(bytes_le=node.take(16))})",
}
