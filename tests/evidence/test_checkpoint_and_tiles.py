import pytest

from freehold.evidence import Checkpoint, CheckpointRefused, Ed25519Signer, checkpoint, merkle, tiles

SIGNER = Ed25519Signer.generate()
KEY = SIGNER.public_key
HEAD = Checkpoint("freehold.dev/site/lab", 42, bytes(range(32)))


def test_a_checkpoint_is_a_signed_note() -> None:
    note = checkpoint.sign(HEAD, SIGNER)
    lines = note.decode().split("\n")
    assert lines[:4] == ["freehold.dev/site/lab", "42", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", ""]
    assert lines[4].startswith("— freehold.dev/site/lab ")
    assert checkpoint.verify(note, HEAD.origin, KEY) == HEAD


def test_the_key_hash_is_that_of_the_go_sumdb_example() -> None:
    """golang.org/x/mod/sumdb/note: PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW."""
    import base64

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from freehold.evidence import PublicKey

    known = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    raw = base64.b64decode(known.split("+", 2)[2])[1:]
    assert checkpoint.verifier_key("PeterNeumann", PublicKey(Ed25519PublicKey.from_public_bytes(raw))) == known


def test_every_single_bit_of_a_checkpoint_counts() -> None:
    note = checkpoint.sign(HEAD, SIGNER)
    for at in range(len(note)):
        for bit in range(8):
            changed = bytearray(note)
            changed[at] ^= 1 << bit
            with pytest.raises(CheckpointRefused):
                checkpoint.verify(bytes(changed), HEAD.origin, KEY)


def test_truncation_addition_and_a_second_signature_are_refused() -> None:
    note = checkpoint.sign(HEAD, SIGNER)
    extra = note + note.splitlines(keepends=True)[-1]
    for changed in [note[:n] for n in range(len(note))] + [note + b"\n", extra]:
        with pytest.raises(CheckpointRefused):
            checkpoint.verify(changed, HEAD.origin, KEY)


def test_a_checkpoint_of_another_log_or_key_is_refused() -> None:
    note = checkpoint.sign(HEAD, SIGNER)
    with pytest.raises(CheckpointRefused, match="of log"):
        checkpoint.verify(note, "freehold.dev/site/other", KEY)
    with pytest.raises(CheckpointRefused, match="signature does not match"):
        checkpoint.verify(note, HEAD.origin, Ed25519Signer.generate().public_key)


@pytest.mark.parametrize("size", ["042", "-1", "+1", "1 ", "", "٤"])
def test_a_size_with_another_spelling_is_refused(size: str) -> None:
    body = f"{HEAD.origin}\n{size}\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n".encode()
    prefix = checkpoint.sign(HEAD, SIGNER).splitlines()[-1].split(b" ")[2]
    key_hash = checkpoint.canonical.b64decode(prefix.decode())[:4]
    signature = checkpoint.canonical.b64encode(key_hash + SIGNER.sign(body))
    with pytest.raises(CheckpointRefused, match="malformed"):
        checkpoint.verify(body + f"\n— {HEAD.origin} {signature}\n".encode(), HEAD.origin, KEY)


@pytest.mark.parametrize("origin", ["", "a b", "a+b", "a\nb", "DSSEv1", "ä"])
def test_an_origin_that_could_confuse_is_refused(origin: str) -> None:
    with pytest.raises(CheckpointRefused, match="cannot name a log"):
        checkpoint.sign(Checkpoint(origin, 0, bytes(32)), SIGNER)


def test_tile_paths_are_those_of_tlog_tiles() -> None:
    assert tiles.tile_path("0", 1234067) == "tile/0/x001/x234/067"
    assert tiles.tile_path("entries", 0, 5) == "tile/entries/000.p/5"
    assert tiles.tile_path("1", 999) == "tile/1/999"
    assert tiles.tile_path("1", 1000) == "tile/1/x001/000"


def test_tiles_of_a_log_of_70000_entries_hold_its_tree() -> None:
    """The example of tlog-tiles: 70,000 entries are 273 full level 0 tiles and one of 112, one full level 1 tile and
    one of 17, and a level 2 tile of one hash."""
    tree = merkle.Tree([b"%032d" % i for i in range(70_000)])
    found = tiles.hash_tiles(tree)
    assert len(found) == 274 + 2 + 1
    assert len(found["tile/0/273.p/112"]) == 112 * 32
    assert len(found["tile/1/001.p/17"]) == 17 * 32
    level1 = found["tile/1/000"]
    assert found["tile/2/000.p/1"] == merkle.Tree([level1[i : i + 32] for i in range(0, 8192, 32)]).root()


def test_entries_survive_the_bundle_and_a_torn_tail_is_left() -> None:
    entries = [b"", b"a", b"x" * tiles.MAX_ENTRY]
    data = b"".join(map(tiles.encode_entry, entries))
    assert tiles.decode_entries(data) == (entries, len(data))
    assert tiles.decode_entries(data[:-1]) == (entries[:2], 5)
    assert tiles.decode_entries(data[:3]) == ([b""], 2)
    with pytest.raises(ValueError, match="65536 bytes"):
        tiles.encode_entry(b"x" * 65536)
