"""A machine made of ordinary files, an image with its signature, and a small HTTP server that can misbehave."""

import base64
import hashlib
import json
import shutil
import socketserver
import struct
import subprocess
import threading
import zlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from freehold.agent.manifest import PAYLOAD_TYPE, pre_authentication_encoding

CHUNK = 64 << 10


class Machine:
    """A root directory with /sys, /proc and /dev as the agent reads them; disks are regular files."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.path = root
        for directory in ("sys/block", "dev", "proc/self", "etc/freehold", "sys/firmware/efi/efivars"):
            (root / directory).mkdir(parents=True)
        self.write("proc/self/mounts", "proc /proc proc rw 0 0\n")
        self.write("proc/swaps", "Filename Type Size Used Priority\n")

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def link(self, name: str, target: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    def disk(self, serial: str, size: int, name: str = "nvme0n1", fill: bytes = b"\0") -> Path:
        self.write(f"sys/block/{name}/device/serial", f"{serial}   \n")
        self.write(f"sys/block/{name}/size", str(size // 512))
        return self.write(f"dev/{name}", (fill * (size // len(fill) + 1))[:size])


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


class Image:
    """Disk content, the file that is served, and the signed envelope."""

    def __init__(self, content: bytes, encoding: str, key: Ed25519PrivateKey) -> None:
        self.content = content
        pieces = [content[at : at + CHUNK] for at in range(0, len(content), CHUNK)]
        chunks = [hashlib.sha256(p).hexdigest() if p.count(0) != len(p) else "zero" for p in pieces]
        document = {"name": "minimal", "version": "1", "size": len(content), "chunk_size": CHUNK, "chunks": chunks}
        document |= {"encoding": encoding, "sha256": hashlib.sha256(content).hexdigest(), "boot": {}}
        self.file = content
        if encoding == "zstd-chunks":
            self.file, parts = b"", []
            for piece, digest in zip(pieces, chunks, strict=True):
                frame = b"" if digest == "zero" else compress(piece)
                parts.append([len(self.file), len(frame)])
                self.file += frame
            document["parts"] = parts
        self.document = document
        self.envelope = sign(document, key)


def compress(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-1"], input=data, capture_output=True, check=True).stdout


def sign(document: dict, key: Ed25519PrivateKey, payload_type: str = PAYLOAD_TYPE) -> dict:
    payload = json.dumps(document).encode()
    signature = key.sign(pre_authentication_encoding(payload_type, payload))
    encoded = [base64.b64encode(one).decode() for one in (payload, signature)]
    return {"payloadType": payload_type, "payload": encoded[0], "signatures": [{"keyid": "x", "sig": encoded[1]}]}


@pytest.fixture
def image_key(machine: Machine) -> Ed25519PrivateKey:
    key = Ed25519PrivateKey.generate()
    machine.write(
        "etc/freehold/image.pub", key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    if shutil.which("openssl") is None:
        pytest.fail("these tests need the openssl program")
    return key


class RangeServer(socketserver.ThreadingTCPServer):
    """Serves one byte string with ranges; `cut_after` closes the next response after that many bytes."""

    daemon_threads = allow_reuse_address = True

    def __init__(self, data: bytes) -> None:
        super().__init__(("127.0.0.1", 0), RangeHandler)
        self.data, self.cuts, self.requests = data, [], []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/images/minimal"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class RangeHandler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = self.server
        while self.rfile.readline():
            start, end = 0, len(server.data) - 1
            while (line := self.rfile.readline().strip().lower()) != b"":
                if line.startswith(b"range: bytes="):
                    start, end = map(int, line[13:].split(b"-"))
            server.requests.append((start, end))
            body = server.data[start : end + 1]
            head = f"HTTP/1.1 206 Partial Content\r\nContent-Length: {end + 1 - start}\r\n"
            head += f"Content-Range: bytes {start}-{end}/{len(server.data)}\r\n\r\n"
            self.wfile.write(head.encode())
            if server.cuts:
                self.wfile.write(body[: server.cuts.pop(0)])
                return
            self.wfile.write(body)


@pytest.fixture
def serve():
    servers = []

    def start(data: bytes) -> RangeServer:
        servers.append(RangeServer(data))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def make_image(image_key):
    def make(encoding: str = "raw", chunks: int = 9) -> Image:
        content = bytearray(chunks * CHUNK)
        for index in (0, 1, 4, chunks - 1):
            content[index * CHUNK : (index + 1) * CHUNK] = hashlib.shake_256(bytes([index])).digest(CHUNK)
        return Image(bytes(content) + b"tail" * 128, encoding, image_key)

    return make


def make_gpt(size: int, partitions: list[tuple[str, bytes, int, int]], block: int = 512) -> bytes:
    """A disk with a primary GPT; partitions are (label, guid, first LBA, last LBA)."""
    table = b"".join(
        struct.pack("<16s16sQQQ72s", b"\x0f" * 16, guid, first, last, 0, label.encode("utf-16-le"))
        for label, guid, first, last in partitions
    ).ljust(128 * 128, b"\0")
    last_lba = size // block - 1

    def header(crc: int) -> bytes:
        fields = (1, last_lba, 34, last_lba - 33, b"\x0d" * 16, 2, 128, 128, zlib.crc32(table))
        return struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, crc, 0, *fields)

    disk = bytearray(size)
    disk[block : block + 92] = header(zlib.crc32(header(0)))
    disk[2 * block : 2 * block + len(table)] = table
    return bytes(disk)


@pytest.fixture
def gpt():
    return make_gpt
