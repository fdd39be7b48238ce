"""The file layout of C2SP tlog-tiles: where entries and hashes of a log lie, as pure functions over bytes.

An entry bundle is up to 256 entries, each behind its length as a big-endian uint16; a hash tile is up to 256 hashes.
A bundle of width w is a prefix of the bundle of width w+1, so the keeper appends to one file; only an export names it
`.p/W`.
"""

from collections.abc import Iterable, Sequence

from freehold.evidence.merkle import Tree

WIDTH = 256
MAX_ENTRY = 0xFFFF


def tile_path(kind: str, index: int, width: int = WIDTH) -> str:
    """`tile/<kind>/x001/x234/067[.p/<width>]` (tlog-tiles, "Merkle Tree"); `kind` is a level or "entries"."""
    groups = [f"{index % 1000:03d}"]
    while index := index // 1000:
        groups.insert(0, f"x{index % 1000:03d}")
    return f"tile/{kind}/{'/'.join(groups)}" + (f".p/{width}" if width < WIDTH else "")


def encode_entry(entry: bytes) -> bytes:
    """Length and bytes. Raises ValueError beyond 65,535 bytes, the format's limit."""
    if len(entry) > MAX_ENTRY:
        raise ValueError(f"an entry of {len(entry)} bytes; tlog-tiles allows {MAX_ENTRY}")
    return len(entry).to_bytes(2, "big") + entry


def decode_entries(data: bytes) -> tuple[list[bytes], int]:
    """The complete entries at the start of `data`, and how many bytes they take; what follows is a torn tail."""
    entries: list[bytes] = []
    at = 0
    while at + 2 <= len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end > len(data):
            break
        entries.append(data[at + 2 : end])
        at = end
    return entries, at


def entry_bundles(entries: Sequence[bytes]) -> dict[str, bytes]:
    """Every entry bundle of a log, by path."""
    parts = [entries[start : start + WIDTH] for start in range(0, len(entries), WIDTH)]
    return {
        tile_path("entries", index, len(part)): b"".join(map(encode_entry, part)) for index, part in enumerate(parts)
    }


def hash_tiles(tree: Tree) -> dict[str, bytes]:
    """Every hash tile of a log, by path: tile level L holds the tree's level 8·L."""
    found: dict[str, bytes] = {}
    for level, nodes in enumerate(tree.levels[::8]):
        for index, part in enumerate(_chunks(nodes)):
            found[tile_path(str(level), index, len(part))] = b"".join(part)
    return found


def _chunks(nodes: Sequence[bytes]) -> Iterable[Sequence[bytes]]:
    return (nodes[start : start + WIDTH] for start in range(0, len(nodes), WIDTH))
