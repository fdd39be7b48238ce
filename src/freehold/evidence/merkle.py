"""The Merkle tree of RFC 6962, section 2.1: pure; SHA-256; no I/O.

Sizes are numbers of leaves. A proof is a list of 32-byte hashes in the order of the RFC.
"""

import hashlib
from collections.abc import Iterable, Sequence

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256(0x00 || entry)."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """Grows by leaf hashes. Keeps every complete subtree, so an append is amortized O(1) and a proof O(log² n).

    `levels[k][i]` is the hash of the complete subtree over leaves `i·2^k .. (i+1)·2^k - 1`.
    """

    def __init__(self, leaf_hashes: Iterable[bytes] = ()) -> None:
        self.levels: list[list[bytes]] = [[]]
        for leaf in leaf_hashes:
            self.append(leaf)

    @property
    def size(self) -> int:
        """The number of leaves."""
        return len(self.levels[0])

    def append(self, leaf: bytes) -> None:
        """Adds one leaf hash and completes the subtrees that it completes."""
        level, node = 0, leaf
        while True:
            if level == len(self.levels):
                self.levels.append([])
            nodes = self.levels[level]
            nodes.append(node)
            if len(nodes) % 2:
                return
            node, level = node_hash(nodes[-2], nodes[-1]), level + 1

    def root(self, size: int | None = None) -> bytes:
        """MTH(D[size]); the whole tree's root by default."""
        size = self._checked(size)
        return self._range(0, size) if size else EMPTY_ROOT

    def root_after(self, leaf_hashes: Iterable[bytes]) -> bytes:
        """The root that the tree would have with these leaves appended; the tree stays as it is."""
        stack = [(k, nodes[-1]) for k, nodes in enumerate(self.levels) if self.size >> k & 1][::-1]
        for leaf in leaf_hashes:
            stack.append((0, leaf))
            while len(stack) > 1 and stack[-2][0] == stack[-1][0]:
                (level, left), (_, right) = stack[-2:]
                stack[-2:] = [(level + 1, node_hash(left, right))]
        if not stack:
            return EMPTY_ROOT
        root = stack.pop()[1]
        while stack:
            root = node_hash(stack.pop()[1], root)
        return root

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """PATH(index, D[size]). Raises IndexError unless 0 <= index < size <= self.size."""
        size = self._checked(size)
        if not 0 <= index < size:
            raise IndexError(f"leaf {index} is not in a tree of {size}")
        proof: list[bytes] = []
        start, end = 0, size
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                proof.append(self._range(middle, end))
                end = middle
            else:
                proof.append(self._range(start, middle))
                start = middle
        return proof[::-1]

    def consistency_proof(self, old: int, size: int | None = None) -> list[bytes]:
        """PROOF(old, D[size]); empty for old 0 and old = size. Raises IndexError unless old <= size <= self.size."""
        size = self._checked(size)
        if not 0 <= old <= size:
            raise IndexError(f"a tree of {old} does not precede a tree of {size}")
        if old in (0, size):
            return []
        proof: list[bytes] = []
        start, end, known = 0, size, True
        while old != end:
            middle = start + _split(end - start)
            if old <= middle:
                proof.append(self._range(middle, end))
                end = middle
            else:
                proof.append(self._range(start, middle))
                start, known = middle, False
        return ([] if known else [self._range(start, end)]) + proof[::-1]

    def _checked(self, size: int | None) -> int:
        size = self.size if size is None else size
        if not 0 <= size <= self.size:
            raise IndexError(f"this tree has {self.size} leaves, not {size}")
        return size

    def _range(self, start: int, end: int) -> bytes:
        """MTH over leaves start..end-1, where `start` is a multiple of the largest complete subtree in it."""
        width = end - start
        if width & (width - 1) == 0:
            return self.levels[width.bit_length() - 1][start // width]
        middle = start + _split(width)
        return node_hash(self._range(start, middle), self._range(middle, end))


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `leaf` (a leaf hash) is number `index` of the tree of `size` with `root` (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    fn, sn, found = index, size - 1, leaf
    for sibling in proof:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            found = node_hash(sibling, found)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            found = node_hash(found, sibling)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and found == root


def verify_consistency(old: int, size: int, old_root: bytes, root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the tree of `size` is the tree of `old` with leaves appended (RFC 9162, 2.1.4.2)."""
    if not 0 <= old <= size:
        return False
    if old == size:
        return not proof and old_root == root
    if old == 0:
        return not proof and old_root == EMPTY_ROOT
    path = list(proof) if old & (old - 1) else [old_root, *proof]
    if not path:
        return False
    fn, sn = old - 1, size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    found_old = found = path[0]
    for sibling in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            found_old, found = node_hash(sibling, found_old), node_hash(sibling, found)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            found = node_hash(found, sibling)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and found_old == old_root and found == root


def _split(width: int) -> int:
    """The largest power of two smaller than `width` (> 1)."""
    return 1 << (width - 1).bit_length() - 1
