"""LVFS packages: the cabinet, and the jcat catalogue of signatures in it (gzip of JSON, libjcat 0.2). No trust here.

A catalogue has an item for each file, an item has blobs: checksums, and detached signatures of the file or of its
checksum. Parsers of hostile input: lengths are limited before anything is unpacked, and every failure is
`VendorSignatureRefused`.
"""

import base64
import binascii
import struct
import zlib
from typing import NamedTuple

import msgspec
from cabarchive import CabArchive

from freehold.root_of_trust.depot.errors import PackageRefused, VendorSignatureRefused

GPG, PKCS7 = 2, 3  # kinds of blobs (jcat-blob.h)
_SHA256 = 1
_IS_TEXT = 1
_CATALOGUE_LIMIT = 4 << 20
_UNPACKED_LIMIT = 1 << 30
_BLOCK = 32 << 10  # [MS-CAB] 2.4: a CFDATA block holds at most so much
_HEADER = struct.Struct("<4sIIIIIBBHHHHH")  # CFHEADER without its optional parts, [MS-CAB] 2.1
_FOLDER = struct.Struct("<IHH")
_RESERVE_PRESENT = 0x0004


class Signature(NamedTuple):
    """`over_digest`: the file's SHA-256 in hex is what is signed, not the file."""

    data: bytes
    over_digest: bool


class Member(NamedTuple):
    """A file out of a cabinet, and the catalogue beside it. `signed_by`: what may hold its signature."""

    data: bytes
    catalogue: bytes | None
    signed_by: tuple[str, ...] = ()


class _Blob(msgspec.Struct, rename="pascal"):
    kind: int
    data: str
    flags: int = 0
    target: int | None = None


class _Item(msgspec.Struct, rename="pascal"):
    id: str
    blobs: list[_Blob]
    alias_ids: list[str] = []


class _Catalogue(msgspec.Struct, rename="pascal"):
    items: list[_Item]


def signature_files(name: str) -> tuple[str, ...]:
    """What vendors call a detached signature of the file `name`."""
    return tuple(f"{name}{ending}" for ending in (".asc", ".sig", ".p7s", ".p7b", ".p7c", ".jcat"))


def is_jcat(data: bytes) -> bool:
    """Whether this is a gzip stream."""
    return data.startswith(b"\x1f\x8b")


def is_cabinet(head: bytes) -> bool:
    """Whether a file that begins so is a Microsoft cabinet."""
    return head.startswith(b"MSCF")


def signatures(catalogue: bytes, name: str, digest: str, kind: int) -> list[Signature]:
    """The signatures of one kind for the file `name` with this SHA-256. Raises `VendorSignatureRefused`."""
    try:
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)  # gzip; what trails behind its end is ignored, as fwupd does
        text = unpacker.decompress(catalogue, _CATALOGUE_LIMIT)
        if not unpacker.eof:
            raise VendorSignatureRefused("the catalogue is cut, or has more than 4 MiB")
        items = msgspec.json.decode(text, type=_Catalogue).items
        found = [item for item in items if name in (item.id, *item.alias_ids)]
        if len(found) != 1:
            raise VendorSignatureRefused(
                f"the catalogue has {len(found)} items named {name}",
                expected=f"one of: {', '.join(sorted(item.id for item in items))}",
                remedy="name the file as its vendor does",
            )
        for blob in found[0].blobs:
            if blob.kind == _SHA256 and _bytes(blob) != digest.encode():
                raise VendorSignatureRefused(f"{name} has another SHA-256 than its catalogue says", expected=blob.data)
        return [
            Signature(_bytes(blob), blob.target == _SHA256)
            for blob in found[0].blobs
            if blob.kind == kind and blob.target in (None, 0, _SHA256)
        ]
    except (zlib.error, msgspec.MsgspecError, binascii.Error, ValueError) as error:
        raise VendorSignatureRefused(f"the catalogue cannot be read: {error}") from error


def extract(cabinet: bytes, name: str) -> Member:
    """The file `name` of a cabinet and its only `.jcat`. Raises `PackageRefused`."""
    if _unpacked_bound(cabinet) > _UNPACKED_LIMIT:
        raise PackageRefused("the cabinet may unpack to more than 1 GiB", remedy="do not use it; ask the vendor")
    try:
        archive = CabArchive(cabinet)
    except Exception as error:  # the parser raises what it stumbles over
        raise PackageRefused(f"the cabinet cannot be read: {error}", remedy="fetch it anew from its maker") from error
    if name not in archive:
        raise PackageRefused(
            f"the cabinet holds no {name}", expected=f"one of: {', '.join(sorted(archive))}", remedy="say --member NAME"
        )
    catalogues = [file.buf for member, file in archive.items() if member.endswith(".jcat")]
    signed_by = tuple(sorted(each for each in archive if each.endswith(".jcat") or each in signature_files(name)))
    catalogue = bytes(catalogues[0] or b"") if len(catalogues) == 1 else None
    return Member(bytes(archive[name].buf or b""), catalogue, signed_by)


def _unpacked_bound(cabinet: bytes) -> int:
    """The most that the cabinet's blocks can hold."""
    try:
        fields = _HEADER.unpack_from(cabinet)
        folders, flags, offset, reserve = fields[8], fields[10], _HEADER.size, 0
        if flags & _RESERVE_PRESENT:
            header, reserve, _ = struct.unpack_from("<HBB", cabinet, offset)
            offset += 4 + header
        return sum(
            _FOLDER.unpack_from(cabinet, offset + i * (_FOLDER.size + reserve))[1] * _BLOCK for i in range(folders)
        )
    except struct.error as error:
        raise PackageRefused("the cabinet is cut", remedy="fetch it anew from its maker") from error


def _bytes(blob: _Blob) -> bytes:
    return blob.data.encode() if blob.flags & _IS_TEXT else base64.b64decode(blob.data, validate=True)
