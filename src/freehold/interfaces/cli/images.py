"""`freehold image`: build what Freehold boots, import images of your own, list what is there."""

import hashlib
import hmac
import json
import mmap
import os
import re
import shutil
from pathlib import Path

import click
import msgspec
import yaml
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from freehold.interfaces.cli.common import output_option, show_json, show_page, show_table, state_option
from freehold.interfaces.cli.replacing import replace_image_key
from freehold.model.errors import FreeholdError
from freehold.provisioning.images.artifacts import Cache, Step, default_root
from freehold.provisioning.images.build import build_base
from freehold.provisioning.images.kernel import Flavour
from freehold.provisioning.images.manifest import Content, describe

FLAVOURS = {"cloud": Flavour.CLOUD, "amd64": Flavour.GENERIC}
RAW, CONTENT = "image.raw", "content.json"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9._+-]{1,64}")
_NOT_RAW = {
    b"QFI\xfb": "qcow2", b"\xfd7zXZ\x00": "xz", b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"KDMV": "vmdk",
    b"vhdxfile": "vhdx",
}  # fmt: skip


class ImageRefusedError(FreeholdError):
    """The file is not what it was said to be."""


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """`content.json` of an imported image. `chunks` are SHA-256 digests of one chunk each, or `zero`."""

    name: str
    version: str
    size: int
    sha256: str
    chunks: tuple[str, ...]
    signed_by: str | None = None


@click.group()
def image() -> None:
    """Build or import OS images and the agent.

    \b
    Example:
      sudo freehold image build
      freehold image list
      freehold image replace-key --reason "its key was stolen"
    """


image.add_command(replace_image_key)


@image.command()
@click.option("--mirror", metavar="URL", help="Debian mirror; default: the host's own APT sources.")
@click.option("--kernel", type=click.Choice(list(FLAVOURS)), default="cloud", show_default=True,
              help="cloud: virtual machines, small and fast; amd64: drivers of real servers.")  # fmt: skip
@output_option()
def build(mirror: str | None, kernel: str, output: str) -> None:
    """Build kernel, agent and OS image into the cache (FREEHOLD_CACHE). What is built already is not built again.

    \b
    Example:
      sudo freehold image build --kernel amd64
    """
    base = build_base(Cache(default_root(), show_step), mirror=mirror, flavour=FLAVOURS[kernel])
    files = {"kernel": base.kernel.tree, "initrd": base.initrd, "stage2": base.stage2, "os": base.os_root.ext4}
    if output == "json":
        show_json({"version": base.version, **{name: str(path) for name, path in files.items()}})
        return
    click.echo(f"version {base.version}")
    for name, path in files.items():
        click.echo(f"  {name + ':':<8}{path}")


def show_step(step: Step) -> None:
    took = f" ({step.seconds:.1f} s)" if step.state == "done" else ""
    click.echo(f"  {step.name}: {step.state}{took}", err=True)


@image.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", required=True, help="Name of the image: a-z, 0-9 and -.")
@click.option("--version", "version", required=True, help="Its version.")
@click.option("--sha256", "digest", required=True, metavar="HEX", help="SHA-256 of the file, from whoever made it.")
@click.option("--signature", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Detached signature of the file: `openssl dgst -sha256 -sign` (RSA, ECDSA), "
              "or `openssl pkeyutl -sign -rawin` (Ed25519).")  # fmt: skip
@click.option("--key", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Public key (PEM) of the signature.")  # fmt: skip
@state_option
@output_option()
def import_image(
    file: Path, name: str, version: str, digest: str, signature: Path | None, key: Path | None, state: Path, output: str
) -> None:
    """Import a raw disk image FILE. The copy is checked against --sha256, and --signature if given.

    \b
    Example:
      freehold image import fedora.raw --name fedora --version 42 --sha256 9f86d081884c7d65… --state ./state
    """
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise click.BadParameter("must be 64 hexadecimal digits", param_hint="--sha256")
    if not _NAME.fullmatch(name):
        raise click.BadParameter("use a-z, 0-9 and -, at most 63 of them", param_hint="--name")
    if not _VERSION.fullmatch(version):
        raise click.BadParameter("use letters, digits and . _ + -", param_hint="--version")
    if (signature is None) != (key is None):
        raise click.UsageError("--signature and --key belong together")
    target = state / "images" / "imported" / name
    refuse_unless_raw(file)
    refuse_other(target, digest.lower(), version)
    found, signed_by = take(file, target, name, version, digest.lower(), signature, key)
    document = {
        "apiVersion": "freehold/v1",
        "kind": "Image",
        "metadata": {"name": name},
        "spec": {"version": version, "path": str((target / RAW).absolute()), "digest": found.sha256},
    }
    if output == "json":
        show_json({"name": name, "version": version, "size": found.size, "sha256": found.sha256,
                   "chunks": len(found.chunks), "signed_by": signed_by, "document": document})  # fmt: skip
        return
    click.echo(f"imported {name} {version}: {found.size} bytes, SHA-256 {found.sha256}")
    click.echo(f"signed by {signed_by}" if signed_by else "no signature was given")
    click.echo("declare it with:\n")
    click.echo(yaml.safe_dump(document, sort_keys=False), nl=False)


def refuse_unless_raw(file: Path) -> None:
    """A server boots what is on its disk byte by byte; containers and compressed files are not that."""
    with file.open("rb") as opened:
        head = opened.read(16)
    for magic, what in _NOT_RAW.items():
        if head.startswith(magic):
            raise ImageRefusedError(
                f"{file} is a {what} file",
                expected="a raw disk image",
                remedy=f"unpack it, e.g. `qemu-img convert -O raw {file} image.raw`",
            )
    if (size := file.stat().st_size) == 0 or size % 512:
        raise ImageRefusedError(f"{file} has {size} bytes", expected="whole sectors of 512 bytes")


def refuse_other(target: Path, digest: str, version: str) -> None:
    """A name means one image for ever: a server that was given it must find the same bytes again."""
    try:
        there = read_imported(target)
    except FileNotFoundError:
        return
    if (there.sha256, there.version) != (digest, version):
        raise ImageRefusedError(
            f"{there.name} is imported already, as version {there.version} with SHA-256 {there.sha256}",
            expected=f"version {version} with SHA-256 {digest}",
            remedy="import it under another name",
        )


def take(
    file: Path, target: Path, name: str, version: str, digest: str, signature: Path | None, key: Path | None
) -> tuple[Content, str | None]:
    """Copy beside the target, check the copy, rename it into place: what is there was checked."""
    draft = target.with_name(f".{name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        shutil.copyfile(file, draft / RAW)
        found = describe(draft / RAW)
        if not hmac.compare_digest(found.sha256, digest):
            raise ImageRefusedError(
                f"{file} has SHA-256 {found.sha256}",
                expected=f"SHA-256 {digest}, as --sha256 says",
                remedy="fetch the file anew from whoever made it; do not adapt the digest to the file",
            )
        signed_by = None
        if signature is not None and key is not None:
            signed_by = verified_by(draft / RAW, found.sha256, signature.read_bytes(), key)
        record = Imported(
            name=name, version=version, size=found.size, sha256=found.sha256, chunks=found.chunks, signed_by=signed_by
        )
        (draft / CONTENT).write_bytes(msgspec.json.encode(record))
        if not target.exists():
            draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return found, signed_by


def verified_by(file: Path, digest: str, signature: bytes, key_file: Path) -> str:
    """SHA-256 of the key (SubjectPublicKeyInfo, hex) whose signature the file bears. Raises `ImageRefusedError`."""
    try:
        key = serialization.load_pem_public_key(key_file.read_bytes())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ImageRefusedError(f"{key_file} is not a public key in PEM") from error
    prehashed = Prehashed(hashes.SHA256())
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, bytes.fromhex(digest), padding.PKCS1v15(), prehashed)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, bytes.fromhex(digest), ec.ECDSA(prehashed))
        elif isinstance(key, ed25519.Ed25519PublicKey):
            with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                with memoryview(mapped) as data:
                    key.verify(signature, data)
        else:
            raise ImageRefusedError(f"{key_file} is a {type(key).__name__}", expected="RSA, ECDSA or Ed25519")
    except InvalidSignature:
        raise ImageRefusedError(
            f"the signature of the image does not match the key in {key_file}",
            remedy="make sure that image, signature and key come from the same maker; do not use the image otherwise",
        ) from None
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def read_imported(directory: Path) -> Imported:
    """Raises `FileNotFoundError`."""
    return msgspec.json.decode((directory / CONTENT).read_bytes(), type=Imported)


class Listed(msgspec.Struct, frozen=True):
    name: str
    version: str
    origin: str
    size: int
    sha256: str
    path: str


@image.command("list")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Length of a page.")
@click.option("--after", default="", metavar="PATH", help="Begin behind this path: the next page.")
@state_option
@output_option()
def list_images(limit: int, after: str, state: Path, output: str) -> None:
    """List the images of a site: those built for it, and those imported.

    \b
    Example:
      freehold image list -o json
    """
    found = [each for each in images_of(state / "images") if each.path > after]
    page = found[:limit]
    if output != "json":
        show_table([field.upper() for field in Listed.__struct_fields__], [msgspec.structs.astuple(e) for e in page])
    show_page("--after", page, page[-1].path if len(found) > limit else None, output)


def images_of(directory: Path) -> list[Listed]:
    """By path. What is half there (a build that was cut off) is not listed."""
    found = []
    for file in directory.glob(f"*/{CONTENT}"):
        name, version, content, _ = json.loads(file.read_bytes())
        path = file.with_name("os.raw")
        found.append(Listed(name, version, "built", content["size"], content["sha256"], str(path)))
    for file in directory.glob(f"imported/[!.]*/{CONTENT}"):
        each = read_imported(file.parent)
        found.append(Listed(each.name, each.version, "imported", each.size, each.sha256, str(file.with_name(RAW))))
    return sorted(found, key=lambda each: each.path)
