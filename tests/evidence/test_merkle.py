import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.evidence import merkle
from freehold.evidence.merkle import Tree, leaf_hash, verify_consistency, verify_inclusion

# The leaves and roots of the certificate-transparency reference implementation (RFC 6962 test vectors).
LEAVES = [bytes.fromhex(h) for h in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"
)]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
HASHES = [leaf_hash(b"%d" % i) for i in range(40)]


def rfc_root(leaves: list[bytes]) -> bytes:
    """MTH, word for word from RFC 6962, 2.1: the slow, independent reference."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + rfc_root(leaves[:k]) + rfc_root(leaves[k:])).digest()


def test_roots_are_those_of_rfc_6962() -> None:
    tree = Tree(map(leaf_hash, LEAVES))
    assert [tree.root(size).hex() for size in range(1, 9)] == ROOTS
    assert tree.root(0).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_inclusion_and_consistency_proofs_are_those_of_rfc_6962() -> None:
    tree = Tree(map(leaf_hash, LEAVES))
    assert [node.hex() for node in tree.inclusion_proof(5, 8)] == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    assert [node.hex() for node in tree.consistency_proof(6, 8)] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


@pytest.mark.parametrize("size", range(1, 40))
def test_every_proof_up_to_40_leaves_verifies_against_the_reference_root(size: int) -> None:
    tree = Tree(HASHES)
    root = rfc_root(HASHES[:size])
    assert tree.root(size) == root
    for index in range(size):
        assert verify_inclusion(index, size, HASHES[index], tree.inclusion_proof(index, size), root)
    for old in range(size + 1):
        assert verify_consistency(old, size, rfc_root(HASHES[:old]), root, tree.consistency_proof(old, size))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_changed_proof_is_refused(data: st.DataObject) -> None:
    tree = Tree(HASHES)
    size = data.draw(st.integers(2, 40))
    index = data.draw(st.integers(0, size - 1))
    proof, root = tree.inclusion_proof(index, size), tree.root(size)
    other = data.draw(st.integers(0, size - 1).filter(lambda i: i != index))
    at = data.draw(st.integers(0, len(proof) - 1))
    forged = [*proof[:at], bytes(32), *proof[at + 1 :]]
    assert not verify_inclusion(index, size, HASHES[index], forged, root)
    assert not verify_inclusion(other, size, HASHES[index], proof, root)
    assert not verify_inclusion(index, size, HASHES[other], proof, root)
    assert not verify_inclusion(index, size, HASHES[index], proof[:-1], root)
    assert not verify_inclusion(index, size, HASHES[index], [*proof, proof[-1]], root)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_rewritten_history_is_not_consistent(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 40))
    old = data.draw(st.integers(1, size - 1))
    changed = data.draw(st.integers(0, old - 1))
    honest = Tree(HASHES)
    rewritten = Tree([*HASHES[:changed], leaf_hash(b"forged"), *HASHES[changed + 1 :]])
    proof = rewritten.consistency_proof(old, size)
    assert not verify_consistency(old, size, honest.root(old), rewritten.root(size), proof)
    assert not verify_consistency(old, size, honest.root(old), honest.root(size), proof[:-1])


@given(st.integers(0, 30), st.integers(0, 10))
def test_root_after_foresees_the_root_and_changes_nothing(size: int, more: int) -> None:
    tree = Tree(HASHES[:size])
    assert tree.root_after(HASHES[size : size + more]) == rfc_root(HASHES[: size + more])
    assert tree.size == size


def test_a_leaf_is_not_a_node() -> None:
    left, right = HASHES[:2]
    assert merkle.leaf_hash(left + right) != merkle.node_hash(left, right)


def test_proofs_outside_the_tree_are_errors() -> None:
    tree = Tree(HASHES[:3])
    for call in (
        lambda: tree.inclusion_proof(3),
        lambda: tree.inclusion_proof(-1),
        lambda: tree.consistency_proof(4),
        lambda: tree.root(4),
    ):
        with pytest.raises(IndexError):
            call()
    assert not verify_inclusion(3, 3, HASHES[0], [], tree.root())
    assert not verify_consistency(4, 3, tree.root(), tree.root(), [])
