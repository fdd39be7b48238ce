"""Unified Kernel Images (UAPI.5): the systemd stub with a kernel, an initrd and a command line in one file to sign."""

import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

from freehold.provisioning.images.disk import LOADER_PATH, fat_image
from freehold.provisioning.images.errors import ImageBuildError
from freehold.provisioning.images.tools import run

STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
SECTION_HEADER = struct.Struct("<8s6I2HI")  # PE format, "Section Table": 40 bytes
READ_ONLY_DATA = 0x40000040
FILE_ALIGNMENT, PAGE = 512, 4096


def assemble(linux: bytes, cmdline: str, osrel: bytes, initrd: bytes | None = None, stub: bytes | None = None) -> bytes:
    """An unsigned UKI. The command line is part of what is signed and measured (PCR 11, and PCR 12 stays empty).

    Raises ImageBuildError if the stub is missing or has no room for more sections.
    """
    # The kernel comes last: it decompresses in place and may overwrite what follows.
    parts = [(".osrel", osrel), (".cmdline", f"{cmdline}\0".encode()), (".initrd", initrd), (".linux", linux)]
    sections = [(name, data) for name, data in parts if data is not None]
    return add_sections(stub if stub is not None else read_stub(), sections)


def read_stub() -> bytes:
    """The systemd stub of the host."""
    if not STUB.exists():
        raise ImageBuildError(f"the systemd EFI stub {STUB} is missing", remedy="apt-get install systemd-boot-efi")
    return STUB.read_bytes()


def add_sections(stub: bytes, sections: Sequence[tuple[str, bytes]]) -> bytes:
    """Append read-only sections to a PE32+ file, each at a page boundary when loaded."""
    image = bytearray(stub)
    pe = struct.unpack_from("<I", image, 0x3C)[0]
    if image[:2] != b"MZ" or image[pe : pe + 4] != b"PE\0\0":
        raise ImageBuildError("the stub is not a PE file", remedy="reinstall systemd-boot-efi")
    count, optional_size = struct.unpack_from("<H", image, pe + 6)[0], struct.unpack_from("<H", image, pe + 20)[0]
    optional, table = pe + 24, pe + 24 + optional_size
    header_end = struct.unpack_from("<I", image, optional + 60)[0]
    headers = [SECTION_HEADER.unpack_from(image, table + i * SECTION_HEADER.size) for i in range(count)]
    if table + (count + len(sections)) * SECTION_HEADER.size > min([header_end, *(h[4] for h in headers if h[4])]):
        raise ImageBuildError(f"the stub has no room for {len(sections)} more sections")
    address = max(header[2] + header[1] for header in headers)
    for name, data in sections:
        address = -(-address // PAGE) * PAGE
        image += bytes(-len(image) % FILE_ALIGNMENT)
        raw = data + bytes(-len(data) % FILE_ALIGNMENT)
        header = (name.encode(), len(data), address, len(raw), len(image), 0, 0, 0, 0, READ_ONLY_DATA)
        SECTION_HEADER.pack_into(image, table + count * SECTION_HEADER.size, *header)
        image += raw
        address += len(data)
        count += 1
    alignment = struct.unpack_from("<I", image, optional + 32)[0]
    struct.pack_into("<H", image, pe + 6, count)
    struct.pack_into("<I", image, optional + 56, -(-address // alignment) * alignment)  # SizeOfImage
    struct.pack_into("<I", image, optional + 64, 0)  # CheckSum: EFI does not use it
    return bytes(image)


def sections_of(image: bytes) -> dict[str, bytes]:
    """The sections of a PE file by name, cut to their size when loaded (no padding)."""
    pe = struct.unpack_from("<I", image, 0x3C)[0]
    count, optional_size = struct.unpack_from("<H", image, pe + 6)[0], struct.unpack_from("<H", image, pe + 20)[0]
    found = {}
    for i in range(count):
        name, size, _, raw, offset, *_ = SECTION_HEADER.unpack_from(image, pe + 24 + optional_size + i * 40)
        found[name.rstrip(b"\0").decode()] = image[offset : offset + min(size, raw)]
    return found


def make_iso(uki: bytes, out: Path) -> Path:
    """A CD image for virtual media: El Torito with one FAT image, which holds the UKI at the default path."""
    with tempfile.TemporaryDirectory(prefix="freehold-iso-") as work:
        tree = Path(work, "tree")
        tree.mkdir()
        fat_image(tree / "efi.img", (len(uki) >> 20) + 2, "FREEHOLD", {LOADER_PATH: uki})
        run("xorriso", "-as", "mkisofs", "-quiet", "-V", "FREEHOLD", "-e", "efi.img", "-no-emul-boot", "-o", out, tree)
    return out
