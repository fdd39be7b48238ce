"""FAT file systems and the GPT of the OS image, made by unprivileged tools."""

import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from freehold.provisioning.images.errors import ImageBuildError
from freehold.provisioning.images.tools import run

MIB = 1 << 20
ESP_START_MIB, ESP_MIB = 1, 36  # FAT32 needs at least 33 MiB
SEED_START_MIB, SEED_MIB = 37, 1
ROOT_START_MIB = 40  # a multiple of the manifest's chunk size
LOADER_PATH = "EFI/BOOT/BOOTX64.EFI"  # UEFI 2.10, 3.5.1.1: where firmware looks on a medium without a boot entry
ESP_LABEL, SEED_LABEL, ROOT_LABEL = "ESP", "CIDATA", "root"


def fat_image(
    path: Path, mib: int, label: str, files: Mapping[str, bytes], *, fat32: bool = False, offset: int = 0
) -> None:
    """A FAT file system of `mib` MiB with the files, at `offset` bytes of a file that may exist already.

    The volume's serial number and the times of the files are constants, so that the same files give the same bytes.
    """
    image = f"{path}@@{offset}" if offset else str(path)
    kind = ("-F",) if fat32 else ()
    create = () if path.exists() else ("-C",)
    geometry = ("-T", str(mib * 2048), "-h", "64", "-s", "32", "-N", "46524545")
    environment = {"SOURCE_DATE_EPOCH": "0", "MTOOLS_SKIP_CHECK": "1"}
    run("mformat", "-i", image, *create, *geometry, *kind, "-v", label, "::", env=environment)
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents if str(parent) != "."}
    if folders:
        run("mmd", "-i", image, *(f"::/{folder}" for folder in sorted(folders)), env=environment)
    with tempfile.TemporaryDirectory(prefix="freehold-fat-") as work:
        for name, data in files.items():
            source = Path(work, PurePosixPath(name).name)
            source.write_bytes(data)
            run("mcopy", "-i", image, source, f"::/{name}", env=environment)


def loader_of(image: BinaryIO) -> bytes:
    """What firmware starts from this raw disk image: the file at `LOADER_PATH` of its ESP, which lies where `assemble`
    puts it. Raises ImageBuildError."""
    with tempfile.TemporaryDirectory(prefix="freehold-esp-") as work:
        esp, loader = Path(work, "esp"), Path(work, "loader")
        image.seek(ESP_START_MIB * MIB)
        with esp.open("wb") as file:
            for _ in range(ESP_MIB):
                file.write(image.read(MIB))
        try:
            run("mcopy", "-i", esp, f"::/{LOADER_PATH}", loader, env={"MTOOLS_SKIP_CHECK": "1"})
        except ImageBuildError as error:
            raise ImageBuildError(
                f"the image has no {LOADER_PATH} in an ESP at {ESP_START_MIB} MiB of {ESP_MIB} MiB",
                expected="an image that this Freehold built: os.raw of `freehold image list`",
                remedy="what a server starts must be one signed file, or nobody can attest it",
            ) from error
        return loader.read_bytes()


def make_seed(files: Mapping[str, bytes]) -> bytes:
    """The content of the seed partition (NoCloud): FAT with the label CIDATA and e.g. meta-data, user-data."""
    with tempfile.TemporaryDirectory(prefix="freehold-seed-") as work:
        path = Path(work, "seed")
        fat_image(path, SEED_MIB, SEED_LABEL, files)
        return path.read_bytes()


def partition_table(root_mib: int, root_partuuid: str, disk_uuid: str) -> str:
    """The script for sfdisk: ESP, seed, and the root last, so that it can grow."""
    return (
        f"label: gpt\nlabel-id: {disk_uuid}\n"
        f"start={ESP_START_MIB}MiB, size={ESP_MIB}MiB, type=uefi, name={ESP_LABEL}, uuid={derived(disk_uuid, 1)}\n"
        f"start={SEED_START_MIB}MiB, size={SEED_MIB}MiB, type=linux, name={SEED_LABEL}, uuid={derived(disk_uuid, 2)}\n"
        f"start={ROOT_START_MIB}MiB, size={root_mib}MiB, type=linux, name={ROOT_LABEL}, uuid={root_partuuid}\n"
    )


def derived(uuid: str, number: int) -> str:
    """A UUID that follows from another one."""
    return f"{uuid[:-4]}{number:04x}"


def assemble(out: Path, root: Path, root_partuuid: str, disk_uuid: str, esp_files: Mapping[str, bytes]) -> None:
    """The raw disk image: GPT, ESP with the files, an empty seed partition, the ext4 root."""
    root_mib = -(-root.stat().st_size // MIB)
    with out.open("wb") as file:
        file.truncate((ROOT_START_MIB + root_mib + 1) * MIB)  # one more for the second copy of the table
    run("sfdisk", "-q", out, stdin=partition_table(root_mib, root_partuuid, disk_uuid).encode())
    fat_image(out, ESP_MIB, ESP_LABEL, esp_files, fat32=True, offset=ESP_START_MIB * MIB)
    fat_image(out, SEED_MIB, SEED_LABEL, {}, offset=SEED_START_MIB * MIB)
    write_sparse(root, out, ROOT_START_MIB * MIB)


def write_sparse(source: Path, target: Path, offset: int) -> None:
    """Copy a file into another at an offset; blocks of zeros stay holes."""
    with source.open("rb") as reader, target.open("r+b") as writer:
        while block := reader.read(MIB):
            if block.count(0) != len(block):
                writer.seek(offset)
                writer.write(block)
            offset += len(block)
