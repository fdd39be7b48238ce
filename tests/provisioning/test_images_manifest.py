"""The image manifest: what is measured, what is refused, and that the agent reads it the same way."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from freehold.agent.manifest import Manifest
from freehold.provisioning.images.errors import ManifestError
from freehold.provisioning.images.manifest import CHUNK_SIZE, BootValues, describe, image_manifest, parse

BOOT = BootValues(True, ("a" * 64,), "b" * 64, "c" * 64, "d" * 64, "e" * 64)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "os.raw"
    with path.open("wb") as file:
        file.truncate(2 * CHUNK_SIZE + 1024)
        file.seek(CHUNK_SIZE + 5)
        file.write(b"data")
    return path


def test_an_image_is_described_chunk_by_chunk(raw: Path) -> None:
    content = describe(raw)
    data = raw.read_bytes()
    assert content.size == len(data)
    assert content.sha256 == hashlib.sha256(data).hexdigest()
    assert content.chunks == ("zero", hashlib.sha256(data[CHUNK_SIZE : 2 * CHUNK_SIZE]).hexdigest(), "zero")


def test_the_payload_is_the_same_each_time_and_comes_back(raw: Path) -> None:
    made = image_manifest("debian-12", "1", describe(raw), BOOT)
    assert made.payload() == image_manifest("debian-12", "1", describe(raw), BOOT).payload()
    assert parse(made.payload()) == made


def test_the_agent_understands_the_manifest(raw: Path) -> None:
    agents = Manifest(json.loads(image_manifest("debian-12", "1", describe(raw), BOOT).payload()))
    assert agents.data_chunks() == [1]
    assert agents.zero_runs() == [(0, CHUNK_SIZE), (2 * CHUNK_SIZE, 1024)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"chunks": ["zero"]}, "1 chunks, but a size of 2098176 makes 3 of 1048576 bytes"),
        ({"chunks": ["zero", "xyz", "zero"]}, r"at `\$.chunks\[1\]`"),
        ({"size": 0}, r"\$.size"),
        ({"size": 2098177}, "not whole sectors"),
        ({"chunk_size": 1000}, "not a multiple of 4096"),
        ({"sha256": "AA" * 32}, r"\$.sha256"),
        ({"encoding": "gzip"}, r"\$.encoding"),
        ({"encoding": "zstd-chunks"}, "needs parts"),
        ({"parts": [[0, 5]]}, "1 parts for 3 chunks"),
        ({"name": "../x"}, "name and version"),
    ],
)
def test_a_wrong_manifest_is_refused_with_the_reason(raw: Path, change: dict[str, Any], said: str) -> None:
    document = json.loads(image_manifest("debian-12", "1", describe(raw), BOOT).payload())
    with pytest.raises(ManifestError, match=said):
        parse(json.dumps(document | change).encode())


def test_boot_values_that_allow_nothing_are_refused(raw: Path) -> None:
    with pytest.raises(ManifestError, match="pcr4 allows no value"):
        image_manifest("x", "1", describe(raw), BootValues(True, (), "b" * 64, "c" * 64, "d" * 64, "e" * 64))
