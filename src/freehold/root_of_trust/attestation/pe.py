"""PE/COFF images (Microsoft PE specification): sections as systemd-stub sees them, and the Authenticode digest."""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from freehold.root_of_trust.attestation.reader import Reader

CHECKSUM_AT, CERTIFICATE_DIRECTORY = 64, 4  # offset in the optional header; index of the data directory
MOST_SECTIONS = 96  # what Windows' loader takes, and more than any UKI has
MOST_BEYOND = 64 << 20  # bytes of zeros that sections may add in memory to what the file holds


@dataclass(frozen=True, kw_only=True)
class Image:
    """What both uses need: `skip_at` are the (start, end) ranges of the headers that a signature changes."""

    data: bytes
    headers_size: int
    skips: tuple[tuple[int, int], tuple[int, int]]
    certificates_size: int
    section_ranges: tuple[tuple[int, int], ...]
    sections: Mapping[str, bytes]


def parse_image(data: bytes) -> Image:
    """A PE32 or PE32+ image; raises MalformedEvidenceError (this is our own artifact, but it may be a damaged one)."""
    reader = Reader(data, "PE image", "little")
    if reader.take(2) != b"MZ":
        raise reader.wrong("no MZ header")
    reader.at = 0x3C
    reader.at = reader.u32()
    if reader.take(4) != b"PE\0\0":
        raise reader.wrong("no PE signature")
    _, count = reader.u16(), reader.u16()
    reader.take(12)
    optional_size, _ = reader.u16(), reader.u16()
    optional = reader.at
    directories = {0x10B: 96, 0x20B: 112}.get(reader.u16())
    if directories is None:
        raise reader.wrong("neither PE32 nor PE32+")
    directory = optional + directories + 8 * CERTIFICATE_DIRECTORY
    try:
        (headers_size,) = struct.unpack_from("<I", data, optional + 60)
        (directory_count,) = struct.unpack_from("<I", data, optional + directories - 4)
        _, certificates_size = struct.unpack_from("<II", data, directory)
    except struct.error as error:
        raise reader.wrong("its optional header is cut off") from error
    if directory_count <= CERTIFICATE_DIRECTORY or headers_size > len(data) or certificates_size > len(data):
        raise reader.wrong("its headers have impossible sizes")
    if count > MOST_SECTIONS:
        raise reader.wrong(f"{count} sections, at most {MOST_SECTIONS} are loaded")
    reader.at = optional + optional_size
    ranges, sections, beyond = [], {}, 0
    for _ in range(count):
        name = reader.take(8).rstrip(b"\0").decode("latin-1")
        virtual_size, _, raw_size, start = (reader.u32() for _ in range(4))
        reader.take(16)
        if raw_size and start + raw_size > len(data):
            raise reader.wrong(f"section {name} runs past the end")
        if raw_size:
            ranges.append((start, start + raw_size))
        beyond += max(0, virtual_size - raw_size)
        if beyond > MOST_BEYOND:
            raise reader.wrong(f"section {name} claims {virtual_size} bytes")
        # In memory a section has its virtual size: cut, or filled up with zeros.
        sections[name] = data[start : start + min(raw_size, virtual_size)].ljust(virtual_size, b"\0")
    return Image(
        data=data,
        headers_size=headers_size,
        skips=((optional + CHECKSUM_AT, optional + CHECKSUM_AT + 4), (directory, directory + 8)),
        certificates_size=certificates_size,
        section_ranges=tuple(sorted(ranges)),
        sections=sections,
    )


def authenticode(image: bytes, algorithm: str = "sha256") -> bytes:
    """The digest that firmware measures and that a signature covers (Windows Authenticode PE Format, "Calculating").

    Signing pads an image to 8 bytes, so of an unsigned one only the padded form has the digest of the signed one.
    """
    pe = parse_image(image)
    (checksum, after_checksum), (directory, after_directory) = pe.skips
    view, digest = memoryview(image), hashlib.new(algorithm)
    for start, end in ((0, checksum), (after_checksum, directory), (after_directory, pe.headers_size)):
        digest.update(view[start:end])
    hashed = pe.headers_size
    for start, end in pe.section_ranges:
        digest.update(view[start:end])
        hashed += end - start
    digest.update(view[hashed : len(image) - pe.certificates_size])
    return digest.digest()
