"""The pure parts of the agent's ramdisk: archive, module order, the site's part."""

import json
from pathlib import Path

import pytest

from freehold.provisioning.images import cpio
from freehold.provisioning.images.agent_ramdisk import DHCP, INIT, SitePart
from freehold.provisioning.images.debian import offers_debian
from freehold.provisioning.images.errors import ImageBuildError
from freehold.provisioning.images.kernel import Flavour, Kernel
from freehold.provisioning.images.tools import run


def members(archive: bytes) -> dict[str, bytes]:
    """Read a newc archive: an independent reader for the writer under test."""
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        start = (at + 110 + fields[11] + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = archive[start : start + fields[6]]
        at = (start + fields[6] + 3) & ~3


def test_an_archive_has_its_directories_before_its_files() -> None:
    made = cpio.archive([cpio.file("a/b/c", b"12345"), cpio.link("a/l", "b/c")])
    assert list(members(made).items()) == [("a", b""), ("a/b", b""), ("a/b/c", b"12345"), ("a/l", b"b/c")]
    assert len(made) % 4 == 0


def test_a_path_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="twice"):
        cpio.archive([cpio.file("a", b""), cpio.file("a", b"")])


@pytest.mark.host
def test_cpio_reads_the_archive(tmp_path: Path) -> None:
    made = cpio.archive([cpio.file("x/run", b"#!/bin/sh\n", 0o755)])
    run("cpio", "-i", "--quiet", stdin=made, cwd=tmp_path)
    assert (tmp_path / "x/run").stat().st_mode & 0o777 == 0o755


@pytest.mark.host
@pytest.mark.parametrize("script", [INIT, DHCP])
def test_the_scripts_are_shell(script: str, tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text(script)
    assert run("busybox", "sh", "-n", path) == ""


def test_the_sites_part_binds_the_second_stage() -> None:
    part = SitePart("lab", "https://172.30.2.2:8443", "http://172.30.2.2:8080/boot/s", "ab" * 32, b"CA", b"PUB")
    found = members(part.archive())
    facts = json.loads(found["etc/freehold/site.json"])
    assert facts == {
        "site": "lab",
        "controller": "https://172.30.2.2:8443",
        "stage2_url": "http://172.30.2.2:8080/boot/s",
        "stage2_sha256": "ab" * 32,
    }
    assert found["etc/freehold/stage2.sha256"].decode() == f"{'ab' * 32}  stage2\n"
    assert (found["etc/freehold/ca.pem"], found["etc/freehold/image.pub"]) == (b"CA", b"PUB")


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    directory = tmp_path / "lib/modules/6.1.0-test"
    directory.mkdir(parents=True)
    (directory / "modules.dep").write_text(
        "net/nic-x.ko: bus/bus.ko bus/ring.ko\nbus/bus.ko: bus/ring.ko\nbus/ring.ko:\n"
    )
    (directory / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    return Kernel(tmp_path, Flavour.CLOUD)


def test_modules_come_after_what_they_need(kernel: Kernel) -> None:
    assert kernel.version == "6.1.0-test"
    assert kernel.modules("nic_x", "ext4", "bus") == ["bus/ring.ko", "bus/bus.ko", "net/nic-x.ko"]


def test_a_module_that_does_not_exist_is_an_error(kernel: Kernel) -> None:
    assert kernel.has("ext4")
    assert not kernel.has("zfs")
    with pytest.raises(ImageBuildError, match="no module zfs"):
        kernel.modules("zfs")


@pytest.mark.parametrize(
    ("text", "debian"),
    [
        ("Types: deb\nURIs: http://x\nSuites: bookworm bookworm-updates\nComponents: main\n", True),
        ("deb [arch=amd64] http://x bookworm-security main\n", True),
        ("deb http://x cloud-sdk-bookworm main\n", False),
        ("Types: deb\nURIs: http://x\nSuites: nodistro\n", False),
    ],
)
def test_only_sources_of_debian_are_used(text: str, debian: bool) -> None:
    assert offers_debian(text) is debian
