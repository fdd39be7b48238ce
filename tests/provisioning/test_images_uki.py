"""UKIs, signatures and disks, checked with other people's tools."""

from pathlib import Path

import pefile
import pytest

from freehold.provisioning.images import disk, os_image, uki
from freehold.provisioning.images.errors import ImageBuildError
from freehold.provisioning.images.tools import run


def test_something_else_than_a_stub_is_refused() -> None:
    with pytest.raises(ImageBuildError, match="not a PE file"):
        uki.add_sections(bytes(4096), [(".linux", b"x")])


@pytest.mark.host
def test_a_uki_has_its_sections_in_memory_order() -> None:
    linux, initrd = b"kernel" * 1000, b"initrd" * 2000
    image = uki.assemble(linux, "console=ttyS0 quiet", b"ID=freehold\n", initrd)
    pe = pefile.PE(data=image)
    end = 0
    for section in pe.sections:
        assert section.VirtualAddress >= end
        end = section.VirtualAddress + section.Misc_VirtualSize
    assert pe.OPTIONAL_HEADER.SizeOfImage >= end
    assert pe.sections[-1].Name.rstrip(b"\0") == b".linux"
    found = uki.sections_of(image)
    assert (found[".linux"], found[".initrd"]) == (linux, initrd)
    assert (found[".cmdline"], found[".osrel"]) == (b"console=ttyS0 quiet\0", b"ID=freehold\n")


@pytest.mark.host
def test_a_stub_without_room_is_refused() -> None:
    with pytest.raises(ImageBuildError, match="no room"):
        uki.add_sections(uki.read_stub(), [(f".s{n}", b"x") for n in range(20)])


@pytest.mark.host
def test_a_cd_image_holds_the_uki(tmp_path: Path) -> None:
    iso = uki.make_iso(b"MZ" + b"x" * 70000, tmp_path / "agent.iso")
    said = run(
        "xorriso", "-indev", iso, "-report_el_torito", "plain", "-osirrox", "on", "-extract", "/efi.img", tmp_path / "e"
    )
    assert "UEFI" in said
    copied = tmp_path / "copied"
    run("mcopy", "-i", tmp_path / "e", f"::/{disk.LOADER_PATH}", copied)
    assert copied.read_bytes() == b"MZ" + b"x" * 70000


@pytest.mark.host
def test_a_seed_is_a_fat_partition_that_fits(tmp_path: Path) -> None:
    data = disk.make_seed({"meta-data": b"{}", "user-data": b"#cloud-config\n{}\n"})
    assert len(data) == disk.SEED_MIB << 20
    assert disk.make_seed({"meta-data": b"{}", "user-data": b"#cloud-config\n{}\n"}) == data
    image = tmp_path / "seed"
    image.write_bytes(data)
    assert "CIDATA" in run("mlabel", "-s", "-i", image, "::")
    assert run("mtype", "-i", image, "::/user-data") == "#cloud-config\n{}\n"


@pytest.mark.host
def test_an_os_image_has_esp_seed_and_root_last(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "etc/freehold").mkdir(parents=True)
    (tree / "etc/hostname").write_text("x\n")
    partuuid = "11111111-2222-5333-8444-555555555555"
    images = []
    for number in range(2):
        ext4, work = tmp_path / f"{number}.ext4", tmp_path / f"work{number}"
        work.mkdir()
        os_image.make_ext4(tree, ext4, partuuid)
        os_image.add_files(ext4, "/etc/freehold", {"site.json": b"{}\n"}, work)
        raw = tmp_path / f"{number}.raw"
        disk.assemble(raw, ext4, partuuid, partuuid, {disk.LOADER_PATH: b"MZ"})
        images.append(raw)
    table = run("sfdisk", "--dump", images[0])
    names = [line.partition('name="')[2].rstrip('"') for line in table.splitlines() if "name=" in line]
    assert names == ["ESP", "CIDATA", "root"]
    assert partuuid.upper() in table
    root = f"{images[0]}?offset={disk.ROOT_START_MIB << 20}"
    assert run("debugfs", "-R", "cat /etc/freehold/site.json", root).endswith("{}\n")
    assert run("mtype", "-i", f"{images[0]}@@1M", f"::/{disk.LOADER_PATH}") == "MZ"


@pytest.mark.host
def test_a_file_that_debugfs_did_not_write_is_an_error(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    ext4 = tmp_path / "root.ext4"
    os_image.make_ext4(tree, ext4, "11111111-2222-5333-8444-555555555555")
    with pytest.raises(ImageBuildError, match="did not get into"):
        os_image.add_files(ext4, "/etc/freehold", {"site.json": b"{}\n"}, tmp_path)
