"""SMBIOS structure table (DMTF DSP0134 3.7): the few structures that identify a server and its memory."""

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MEMORY_TYPES = {
    0x18: "DDR3",
    0x1A: "DDR4",
    0x20: "HBM",
    0x21: "HBM2",
    0x22: "DDR5",
    0x23: "LPDDR5",
    0x24: "HBM3",
    0x07: "RAM",
}
PLACEHOLDERS = {"", "not specified", "to be filled by o.e.m.", "none", "n/a", "unknown", "default string"}


class Structure:
    """One structure: type, handle, the formatted area from its first byte, and its strings."""

    def __init__(self, kind: int, handle: int, data: bytes, strings: list[str]) -> None:
        self.kind, self.handle, self.data, self.strings = kind, handle, data, strings

    def number(self, offset: int, size: int) -> int | None:
        """Little-endian field; None where this version of the structure is too short to have it."""
        field = self.data[offset : offset + size]
        return int.from_bytes(field, "little") if len(field) == size else None

    def text(self, offset: int) -> str | None:
        """String field; None if absent or a maker's placeholder."""
        index = self.number(offset, 1)
        if not index or index > len(self.strings):
            return None
        value = self.strings[index - 1].strip()
        return None if value.lower() in PLACEHOLDERS else value


def structures(table: bytes) -> "Iterator[Structure]":
    """Every structure up to type 127; stops at the first that runs out of bounds (firmware pads and truncates)."""
    at = 0
    while at + 4 <= len(table):
        kind, length, handle = struct.unpack_from("<BBH", table, at)
        end = table.find(b"\0\0", at + length)
        if length < 4 or end < 0:
            return
        raw = table[at + length : end]
        yield Structure(kind, handle, table[at : at + length], [s.decode("utf-8", "replace") for s in raw.split(b"\0")])
        if kind == 127:
            return
        at = end + 2


def system_uuid(structure: Structure) -> str | None:
    """Type 1 UUID; the first three fields are little-endian (7.2.1). None when unset."""
    raw = structure.data[8:24]
    if len(raw) < 16 or raw in (bytes(16), b"\xff" * 16):
        return None
    words = struct.unpack("<IHH8s", raw)
    tail = words[3].hex()
    return f"{words[0]:08x}-{words[1]:04x}-{words[2]:04x}-{tail[:4]}-{tail[4:]}"


def dimm(structure: Structure) -> dict[str, object] | None:
    """A populated type 17 memory device; None for an empty slot."""
    size = structure.number(0x0C, 2)
    if not size or size == 0xFFFF:
        return None
    if size == 0x7FFF:
        size_bytes = ((structure.number(0x1C, 4) or 0) & 0x7FFFFFFF) << 20
    else:
        size_bytes = (size & 0x7FFF) << (10 if size & 0x8000 else 20)
    return {
        "locator": structure.text(0x10), "bank": structure.text(0x11), "size_bytes": size_bytes,
        "type": MEMORY_TYPES.get(structure.number(0x12, 1) or 0), "speed_mts": structure.number(0x15, 2) or None,
        "manufacturer": structure.text(0x17), "serial": structure.text(0x18), "part_number": structure.text(0x1A),
    }  # fmt: skip


def summary(table: bytes) -> dict[str, object]:
    """{"system", "board", "chassis", "bios": each a dict or {}, "dimms": [...]}; the first of a type counts."""
    found: dict[str, object] = {"system": {}, "board": {}, "chassis": {}, "bios": {}}
    dimms: list[dict[str, object]] = []
    for one in structures(table):
        if one.kind == 0 and not found["bios"]:
            found["bios"] = {"vendor": one.text(4), "version": one.text(5), "date": one.text(8)}
        elif one.kind == 1 and not found["system"]:
            fields = {
                "manufacturer": one.text(4),
                "product": one.text(5),
                "version": one.text(6),
                "serial": one.text(7),
            }
            found["system"] = {**fields, "uuid": system_uuid(one), "sku": one.text(0x19)}
        elif one.kind == 2 and not found["board"]:
            fields = {
                "manufacturer": one.text(4),
                "product": one.text(5),
                "version": one.text(6),
                "serial": one.text(7),
            }
            found["board"] = fields
        elif one.kind == 3 and not found["chassis"]:
            fields = {"manufacturer": one.text(4), "serial": one.text(7), "asset_tag": one.text(8)}
            found["chassis"] = {**fields, "type": (one.number(5, 1) or 0) & 0x7F}
        elif one.kind == 17 and (module := dimm(one)):
            dimms.append(module)
    return {**found, "dimms": dimms}
