import hashlib

import pytest

from freehold.agent import images
from freehold.agent.errors import AgentError
from freehold.agent.manifest import Manifest, verify_envelope
from freehold.agent.orders import Context, execute

CHUNK = 64 << 10


def write(machine, image, url, serial="N0"):
    args = {"device_serial": serial, "image_url": url, "manifest_envelope": image.envelope}
    return execute("write_image", args, Context(machine.root, lambda *_: None))


@pytest.mark.parametrize("encoding", ["raw", "zstd-chunks"])
def test_writes_every_byte_over_a_disk_full_of_old_data(machine, make_image, serve, encoding):
    image = make_image(encoding)
    disk = machine.disk("N0", 4 << 20, fill=b"old data")
    server = serve(image.file)
    answer = write(machine, image, server.url)
    assert answer["error"] is None
    assert disk.read_bytes()[: len(image.content)] == image.content
    assert answer["result"]["bytes_zeroed"] == 5 * CHUNK
    assert answer["result"]["chunks_verified"] == 10
    assert sum(end + 1 - start for start, end in server.requests) < len(image.content) - 4 * CHUNK


def test_old_backup_partition_table_at_the_end_is_gone(machine, make_image, serve):
    image = make_image()
    disk = machine.disk("N0", 4 << 20, fill=b"EFI PART")
    assert write(machine, image, serve(image.file).url)["ok"]
    assert disk.read_bytes()[-(1 << 20) :].count(0) == 1 << 20


def test_tampered_byte_names_chunk_offset_and_both_digests_and_leaves_nothing_bootable(machine, make_image, serve):
    image = make_image()
    disk = machine.disk("N0", 4 << 20, fill=b"old data")
    bad = bytearray(image.file)
    bad[4 * CHUNK + 77] ^= 1
    answer = write(machine, image, serve(bytes(bad)).url)
    found = hashlib.sha256(bad[4 * CHUNK : 5 * CHUNK]).hexdigest()
    what = answer["error"]["what"]
    assert not answer["ok"]
    assert f"chunk 4 at byte {4 * CHUNK} is wrong" in what
    assert f"expected {image.document['chunks'][4]}, found {found}" in what
    assert disk.read_bytes()[:CHUNK] == bytes(CHUNK)


def test_tampered_zstd_frame_is_refused_with_its_chunk(machine, make_image, serve):
    image = make_image("zstd-chunks")
    machine.disk("N0", 4 << 20)
    bad = bytearray(image.file)
    bad[image.document["parts"][4][0] + 500] ^= 0x55
    answer = write(machine, image, serve(bytes(bad)).url)
    assert "chunk 4 at byte" in answer["error"]["what"]


@pytest.mark.parametrize("encoding", ["raw", "zstd-chunks"])
def test_broken_connection_resumes_where_it_broke(machine, make_image, serve, encoding, monkeypatch):
    monkeypatch.setattr(images.time, "sleep", lambda _: None)
    image = make_image(encoding)
    disk = machine.disk("N0", 4 << 20)
    server = serve(image.file)
    server.cuts = [CHUNK + 1000, 0]
    answer = write(machine, image, server.url)
    assert answer["result"]["resumed"] == 2
    assert server.requests[1][0] == server.requests[0][0] + CHUNK + 1000
    assert disk.read_bytes()[: len(image.content)] == image.content


def test_server_that_stays_away_is_an_error_and_not_a_hang(machine, make_image, serve, monkeypatch):
    monkeypatch.setattr(images.time, "sleep", lambda _: None)
    image = make_image()
    machine.disk("N0", 4 << 20)
    server = serve(image.file)
    server.cuts = [0] * 50
    assert "6 attempts" in write(machine, image, server.url)["error"]["what"]


def test_short_disk_is_refused_before_the_first_byte(machine, make_image, serve):
    image = make_image()
    disk = machine.disk("N0", 9 * CHUNK, fill=b"old data")
    before = disk.read_bytes()
    answer = write(machine, image, "http://127.0.0.1:1/x")
    assert f"disk N0 has {9 * CHUNK} bytes" in answer["error"]["what"]
    assert disk.read_bytes() == before


def test_absent_and_ambiguous_serials_are_refused_by_name(machine, make_image):
    machine.disk("N0", 1 << 20)
    machine.disk("N0", 1 << 20, name="nvme1n1")
    image = make_image()
    assert "no disk has the serial number 'N9'" in write(machine, image, "http://x/", "N9")["error"]["what"]
    assert "nvme0n1, nvme1n1 share" in write(machine, image, "http://x/", "N0")["error"]["what"]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("proc/self/mounts", "/dev/nvme0n1p2 / ext4 rw 0 0\n"),
        ("proc/swaps", "Filename\n/dev/nvme0n1p3 partition 1 0 -2\n"),
    ],
)
def test_disk_in_use_is_refused(machine, make_image, file, text):
    disk = machine.disk("N0", 4 << 20, fill=b"live")
    for number in (2, 3):
        machine.write(f"sys/block/nvme0n1/nvme0n1p{number}/partition", str(number))
    machine.write(file, text)
    assert "is in use" in write(machine, make_image(), "http://x/")["error"]["what"]
    assert disk.read_bytes()[:4] == b"live"


def test_held_disk_is_refused(machine, make_image):
    machine.disk("N0", 4 << 20)
    machine.write("sys/block/nvme0n1/holders/dm-0/x", "")
    assert "held by dm-0" in write(machine, make_image(), "http://x/")["error"]["what"]


def test_drive_that_does_not_keep_what_was_written_is_caught(machine, make_image, serve, monkeypatch):
    image = make_image()
    disk = machine.disk("N0", 4 << 20)
    real = images.BlockDevice.write

    def lying(self, view, offset):
        real(self, memoryview(images.new_buffer(CHUNK))[: len(view)] if offset == CHUNK else view, offset)

    monkeypatch.setattr(images.BlockDevice, "write", lying)
    answer = write(machine, image, serve(image.file).url)
    assert "chunk 1" in answer["error"]["what"]
    assert "on the disk" in answer["error"]["what"]
    assert disk.read_bytes()[:CHUNK] == bytes(CHUNK)


def test_drive_that_wraps_its_addresses_is_caught(machine, make_image, serve, monkeypatch):
    image = make_image()
    disk = machine.disk("N0", 4 << 20)
    monkeypatch.setattr(images, "WINDOW_BYTES", CHUNK)  # each chunk is right when it is read back
    last = max(index for index, digest in enumerate(image.document["chunks"]) if digest != "zero")
    real = images.BlockDevice.write

    def wrapping(self, view, offset):
        real(self, view, offset)
        if offset == last * CHUNK:
            real(self, memoryview(images.new_buffer(CHUNK)), CHUNK)

    monkeypatch.setattr(images.BlockDevice, "write", wrapping)
    answer = write(machine, image, serve(image.file).url)
    assert "chunk 1" in answer["error"]["what"]
    assert "which was right before" in answer["error"]["what"]
    assert disk.read_bytes()[:CHUNK] == bytes(CHUNK)


def test_drive_that_does_not_zero_is_caught(machine, make_image, serve, monkeypatch):
    image = make_image()
    machine.disk("N0", 4 << 20, fill=b"old data")
    zero = image.document["chunks"].index("zero")
    real = images.BlockDevice.zero

    def lazy(self, offset, length):
        if offset != zero * CHUNK:
            real(self, offset, length)

    monkeypatch.setattr(images.BlockDevice, "zero", lazy)
    assert f"chunk {zero}" in write(machine, image, serve(image.file).url)["error"]["what"]


def test_manifest_of_another_key_is_refused(machine, make_image):
    image = make_image()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    other = Ed25519PrivateKey.generate().public_key()
    machine.write("etc/freehold/image.pub", other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(AgentError, match="no signature of this site's image key"):
        verify_envelope(image.envelope, f"{machine.root}/etc/freehold/image.pub")


@pytest.mark.parametrize(
    "change", [{"payloadType": "text/plain"}, {"payload": "e30="}, {"signatures": []}, {"payload": "!"}]
)
def test_changed_envelope_is_refused(machine, make_image, change):
    with pytest.raises(AgentError, match="refused"):
        verify_envelope(make_image().envelope | change, f"{machine.root}/etc/freehold/image.pub")


def test_missing_key_is_no_pass(machine, make_image):
    image = make_image()
    (machine.path / "etc/freehold/image.pub").unlink()
    with pytest.raises(AgentError, match="is missing"):
        verify_envelope(image.envelope, f"{machine.root}/etc/freehold/image.pub")


@pytest.mark.parametrize(
    "change",
    [{"size": 0}, {"size": True}, {"chunk_size": 1000}, {"encoding": "gzip"}, {"chunks": []},
     {"chunks": ["A" * 64] * 10}, {"parts": [[0, 1]]}, {"parts": [[-1, 4]] * 10}, {"size": 9 * CHUNK + 513}],
)  # fmt: skip
def test_impossible_manifest_is_refused(make_image, change):
    with pytest.raises(AgentError, match="image manifest refused"):
        Manifest(make_image().document | change)
