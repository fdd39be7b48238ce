"""The image manifest (docs/architecture.md, "Image manifest"): what an image is, chunk by chunk, and how it boots.

Pure but for `describe`, which reads the image. It is signed elsewhere: `payload()` gives the bytes for the envelope.
"""

import hashlib
import re
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import msgspec

from freehold.provisioning.images.errors import ManifestError

PAYLOAD_TYPE = "application/vnd.freehold.image-manifest+json"
CHUNK_SIZE = 1 << 20  # smaller ones find more zeros, which need not travel; the manifest grows
ZERO = "zero"  # in place of the digest of a chunk that is all zeros: it need not travel

Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Chunk = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64}|zero)$")]
Size = Annotated[int, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class BootValues(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a TPM must show after this image has started: SHA-256 values in hex.

    `pcr4` are the values that are allowed, `pcr11` is the one of the UKI's sections. `loader_sha256` is of the file on
    the ESP; the Authenticode digests are those of the event log.
    """

    secure_boot: bool
    pcr4: tuple[Digest, ...]
    pcr11: Digest
    loader_sha256: Digest
    uki_authenticode: Digest
    kernel_authenticode: Digest


class Content(msgspec.Struct, frozen=True):
    """What is measured from a raw image: its size in bytes, its chunks, the digest of the whole."""

    size: int
    sha256: str
    chunks: tuple[str, ...]


class ImageManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The payload. `parts[i]` is [offset, length] of chunk i in the served file, absent for the raw image."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    version: Annotated[str, msgspec.Meta(min_length=1)]
    size: Size
    chunk_size: Size
    chunks: tuple[Chunk, ...]
    encoding: Literal["raw", "zstd-chunks"]
    sha256: Digest
    boot: BootValues
    parts: tuple[tuple[Count, Count], ...] | None = None

    def payload(self) -> bytes:
        """The bytes to sign: JSON with sorted keys, the same for the same manifest."""
        return msgspec.json.encode(self, order="deterministic")


def describe(raw: Path, chunk_size: int = CHUNK_SIZE) -> Content:
    """Read a raw image once."""
    with raw.open("rb") as file:
        return describe_file(file, chunk_size)


def describe_file(file: BinaryIO, chunk_size: int = CHUNK_SIZE) -> Content:
    """From where it stands: whole chunks but for the last, which may be shorter."""
    whole, chunks, size = hashlib.sha256(), [], 0
    while chunk := file.read(chunk_size):
        whole.update(chunk)
        size += len(chunk)
        chunks.append(ZERO if chunk.count(0) == len(chunk) else hashlib.sha256(chunk).hexdigest())
    return Content(size, whole.hexdigest(), tuple(chunks))


def image_manifest(name: str, version: str, content: Content, boot: BootValues) -> ImageManifest:
    """The manifest of an image that is served as it is."""
    made = ImageManifest(name, version, content.size, CHUNK_SIZE, content.chunks, "raw", content.sha256, boot)
    check(made)
    return made


def parse(payload: bytes) -> ImageManifest:
    """A manifest from the payload of an envelope whose signature was verified. Raises ManifestError."""
    try:
        manifest = msgspec.json.decode(payload, type=ImageManifest)
    except msgspec.MsgspecError as error:
        raise _refused(str(error)) from error
    check(manifest)
    return manifest


def check(manifest: ImageManifest) -> None:
    """What the types cannot say: sizes and counts must agree. Raises ManifestError."""
    m = manifest
    if m.chunk_size % 4096:
        raise _refused(f"chunk_size {m.chunk_size} is not a multiple of 4096")
    if m.size % 512:
        raise _refused(f"size {m.size} is not whole sectors of 512 bytes")
    if len(m.chunks) != (expected := -(-m.size // m.chunk_size)):
        raise _refused(f"{len(m.chunks)} chunks, but a size of {m.size} makes {expected} of {m.chunk_size} bytes")
    if not m.boot.pcr4:
        raise _refused("boot.pcr4 allows no value")
    if not re.fullmatch(r"[A-Za-z0-9._+-]+", m.name + m.version):
        raise _refused("name and version may have letters, digits and . _ + - only")
    if m.encoding != "raw" and m.parts is None:
        raise _refused(f"encoding {m.encoding} needs parts")
    if m.parts is not None and len(m.parts) != len(m.chunks):
        raise _refused(f"{len(m.parts)} parts for {len(m.chunks)} chunks")


def _refused(what: str) -> ManifestError:
    return ManifestError(f"image manifest refused: {what}", remedy="import the image again")
