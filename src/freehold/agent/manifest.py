# See blockdev.py for why os and not pathlib.
"""The image manifest: signature first, then its shape, then a plan. Nothing is used before the signature holds.

The envelope is DSSE (secure-systems-lab/dsse v1.0.2); the key is the site's Ed25519 image key. The agent has no
cryptography library, so the signature is checked by `openssl pkeyutl`, which the ramdisk carries.
"""

import base64
import binascii
import json
import os

from freehold.agent.errors import AgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PAYLOAD_TYPE = "application/vnd.freehold.image-manifest+json"
ENCODINGS = ("raw", "zstd-chunks")
ZERO = "zero"
MAX_CHUNK_BYTES = 64 << 20


def bad_manifest(what: str) -> AgentError:
    """Every refusal of a manifest ends in the same remedy."""
    return AgentError(
        f"image manifest refused: {what}",
        remedy="import the image again, so that it is signed by this site's image key",
    )


class Manifest:
    """A verified manifest. `chunks[i]` is a SHA-256 in hex or "zero"; `parts[i]` is (offset, length) in the file."""

    def __init__(self, document: "dict[str, Any]") -> None:
        try:
            self.name, self.version = str(document["name"]), str(document["version"])
            self.size, self.chunk_size = document["size"], document["chunk_size"]
            self.chunks: list[str] = document["chunks"]
            self.encoding = document["encoding"]
            parts = document.get("parts")
        except KeyError as error:
            raise bad_manifest(f"field {error} is missing") from error
        if type(self.size) is not int or type(self.chunk_size) is not int or self.size <= 0:
            raise bad_manifest("size and chunk_size must be positive whole numbers")
        if not 4096 <= self.chunk_size <= MAX_CHUNK_BYTES or self.chunk_size % 4096:
            raise bad_manifest(f"chunk_size {self.chunk_size} is not a multiple of 4096 up to {MAX_CHUNK_BYTES}")
        if self.size % 512:
            raise bad_manifest(f"size {self.size} is not whole sectors")
        if self.encoding not in ENCODINGS:
            raise bad_manifest(f"encoding {self.encoding!r} is not one of {', '.join(ENCODINGS)}")
        if len(self.chunks) != -(-self.size // self.chunk_size) or not all(map(_is_digest, self.chunks)):
            raise bad_manifest("chunks are not one SHA-256 or 'zero' for each chunk_size of size")
        if parts is None and self.encoding != "raw":
            raise bad_manifest("parts are missing")
        self.parts = self._raw_parts() if parts is None else self._checked(parts)

    def extent(self, index: int) -> tuple[int, int]:
        """(offset, length) of a chunk on the disk, in bytes."""
        offset = index * self.chunk_size
        return offset, min(self.chunk_size, self.size - offset)

    def data_chunks(self) -> list[int]:
        """Indices of the chunks that travel."""
        return [index for index, digest in enumerate(self.chunks) if digest != ZERO]

    def zero_runs(self) -> list[tuple[int, int]]:
        """(offset, length) on the disk of each run of zero chunks."""
        return coalesce([self.extent(index) for index, digest in enumerate(self.chunks) if digest == ZERO])

    def ranges(self) -> list[tuple[int, int]]:
        """(offset, length) in the image file of what must be fetched, in chunk order, neighbours joined."""
        return coalesce([self.parts[index] for index in self.data_chunks()])

    def _raw_parts(self) -> list[tuple[int, int]]:
        return [self.extent(index) for index in range(len(self.chunks))]

    def _checked(self, parts: "Any") -> list[tuple[int, int]]:
        if not isinstance(parts, list) or len(parts) != len(self.chunks):
            raise bad_manifest("parts are not one [offset, length] for each chunk")
        for index, part in enumerate(parts):
            good = isinstance(part, list) and len(part) == 2 and all(type(n) is int and n >= 0 for n in part)
            if not good or (self.encoding == "raw" and self.chunks[index] != ZERO and part[1] != self.extent(index)[1]):
                raise bad_manifest(f"part {index} is not [offset, length] of its chunk")
        return [(offset, length) for offset, length in parts]


def coalesce(extents: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join neighbours: [(0, 4), (4, 4), (12, 4)] -> [(0, 8), (12, 4)]."""
    joined: list[tuple[int, int]] = []
    for offset, length in extents:
        if joined and sum(joined[-1]) == offset:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        else:
            joined.append((offset, length))
    return joined


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """DSSE PAE: what is really signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def verify_envelope(envelope: "dict[str, Any]", public_key_path: str) -> "tuple[Manifest, bytes]":
    """The manifest and its exact payload bytes; AgentError unless one signature verifies with the site's image key."""
    try:
        payload = base64.b64decode(envelope["payload"], validate=True)
        signatures = [base64.b64decode(entry["sig"], validate=True) for entry in envelope["signatures"]]
        payload_type = envelope["payloadType"]
    except (KeyError, TypeError, binascii.Error) as error:
        raise bad_manifest(f"not a DSSE envelope ({error})") from error
    if payload_type != PAYLOAD_TYPE:
        raise bad_manifest(f"payloadType is {payload_type!r}, not {PAYLOAD_TYPE!r}")
    message = pre_authentication_encoding(payload_type, payload)
    if not any(ed25519_verifies(public_key_path, message, signature) for signature in signatures[:8]):
        raise bad_manifest("no signature of this site's image key")
    try:
        document = json.loads(payload)
    except ValueError as error:
        raise bad_manifest(f"payload is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise bad_manifest("payload is not a JSON object")
    return Manifest(document), payload


def ed25519_verifies(public_key_path: str, message: bytes, signature: bytes) -> bool:
    """True only if openssl says so; a missing openssl or key is an AgentError, never a pass."""
    import subprocess
    import tempfile

    if not os.path.exists(public_key_path):
        raise AgentError(f"{public_key_path} is missing", remedy="rebuild the agent's image with the site's image key")
    with tempfile.TemporaryDirectory() as directory:
        paths = [os.path.join(directory, name) for name in ("message", "signature")]
        for path, data in zip(paths, (message, signature), strict=True):
            with open(path, "wb") as file:
                file.write(data)
        command = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", public_key_path]
        command += ["-sigfile", paths[1], "-in", paths[0]]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except FileNotFoundError as error:
            raise AgentError("openssl is not in the agent's image", remedy="rebuild the agent's image") from error
    return done.returncode == 0 and b"Signature Verified Successfully" in done.stdout


def _is_digest(value: object) -> bool:
    return value == ZERO or (isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"))
