"""`image import` and `image list`: a file is what its maker says it is, or it does not come in."""

import hashlib
import os
from pathlib import Path

import pytest
import yaml
from cli_support import Shell
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from freehold.interfaces.cli.images import read_imported
from freehold.provisioning.images import build as real
from freehold.provisioning.images.kernel import Flavour
from freehold.provisioning.images.manifest import CHUNK_SIZE

DATA = os.urandom(4096) + bytes(CHUNK_SIZE * 2) + b"tail".ljust(512, b".")
DIGEST = hashlib.sha256(DATA).hexdigest()
PUBLIC = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fedora.raw"
    path.write_bytes(DATA)
    return path


def words(file: Path, digest: str = DIGEST, version: str = "42") -> tuple[object, ...]:
    return "image", "import", file, "--name", "fedora", "--version", version, "--sha256", digest


def test_an_import_is_checked_described_and_can_be_declared(shell: Shell, file: Path, tmp_path: Path) -> None:
    answer = shell(*words(file, DIGEST.upper()))
    assert answer.code == 0, answer
    assert answer.out.startswith(f"imported fedora 42: {len(DATA)} bytes, SHA-256 {DIGEST}\nno signature was given\n")
    there = read_imported(shell.state / "images" / "imported" / "fedora")
    assert (there.sha256, there.size, len(there.chunks), there.chunks[1]) == (DIGEST, len(DATA), 3, "zero")
    document = yaml.safe_load(answer.out.partition("declare it with:\n")[2])
    (tmp_path / "image.yaml").write_text(yaml.safe_dump(document))
    assert shell("apply", "-f", tmp_path / "image.yaml").out == "Image fedora created\n"
    assert Path(document["spec"]["path"]).read_bytes() == DATA
    assert shell(*words(file), "-o", "json").json()["chunks"] == 3  # again: fine


def test_a_digest_that_does_not_match_is_refused_and_names_both(shell: Shell, file: Path) -> None:
    wrong = "ab" * 32
    answer = shell(*words(file, wrong))
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith(
        f"freehold: {file} has SHA-256 {DIGEST}\n  expected: SHA-256 {wrong}, as --sha256 says\n"
    )
    assert list((shell.state / "images" / "imported").iterdir()) == []
    assert DIGEST in shell(*words(file, wrong), "-o", "json").error()["what"]


def test_a_name_means_one_image_for_ever(shell: Shell, file: Path) -> None:
    assert shell(*words(file)).code == 0
    answer = shell(*words(file, version="43"))
    assert answer.code == 1
    assert f"fedora is imported already, as version 42 with SHA-256 {DIGEST}" in answer.err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"QFI\xfb" + bytes(508), "is a qcow2 file"),
        (b"\x1f\x8b" + bytes(510), "is a gzip file"),
        (b"x" * 513, "has 513 bytes\n  expected: whole sectors of 512 bytes"),
        (b"", "has 0 bytes"),
    ],
)
def test_what_is_no_disk_image_is_refused(shell: Shell, file: Path, data: bytes, message: str) -> None:
    file.write_bytes(data)
    answer = shell(*words(file, hashlib.sha256(data).hexdigest()))
    assert answer.code == 1
    assert message in answer.err


@pytest.mark.parametrize(
    ("option", "value"), [("--sha256", "beef"), ("--name", "../../etc"), ("--name", ""), ("--version", "a b")]
)
def test_wrong_words_are_usage_errors(shell: Shell, file: Path, option: str, value: str) -> None:
    assert shell(*words(file), option, value).code == 2


def signed(kind: str, data: bytes) -> tuple[bytes, bytes]:
    """(signature, public key in PEM), as openssl makes them."""
    if kind == "rsa":
        one = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        return one.sign(data, padding.PKCS1v15(), hashes.SHA256()), one.public_key().public_bytes(*PUBLIC)
    if kind == "ecdsa":
        two = ec.generate_private_key(ec.SECP256R1())
        return two.sign(data, ec.ECDSA(hashes.SHA256())), two.public_key().public_bytes(*PUBLIC)
    three = ed25519.Ed25519PrivateKey.generate()
    return three.sign(data), three.public_key().public_bytes(*PUBLIC)


@pytest.mark.parametrize("kind", ["rsa", "ecdsa", "ed25519"])
def test_a_signature_counts_only_over_these_bytes(shell: Shell, file: Path, tmp_path: Path, kind: str) -> None:
    signature, key = tmp_path / "sig", tmp_path / "key.pub"
    more = ("--signature", signature, "--key", key)
    made, pem = signed(kind, DATA + b"!")
    signature.write_bytes(made)
    key.write_bytes(pem)
    answer = shell(*words(file), *more)
    assert answer.code == 1
    assert f"the signature of the image does not match the key in {key}" in answer.err
    made, pem = signed(kind, DATA)
    signature.write_bytes(made)
    key.write_bytes(pem)
    assert "signed by " in shell(*words(file), *more).out
    assert read_imported(shell.state / "images" / "imported" / "fedora").signed_by
    assert shell(*words(file), "--signature", signature).code == 2


def test_images_are_listed_in_pages(shell: Shell, file: Path) -> None:
    built = shell.state / "images" / "0123abcd"
    built.mkdir(parents=True)
    (built / "content.json").write_text(f'["debian-12","3fa2",{{"size":512,"sha256":"{DIGEST}","chunks":[]}},"s2"]')
    (shell.state / "images" / "half-built").mkdir()
    shell(*words(file))
    found = shell("image", "list", "-o", "json").json()
    assert [(each["name"], each["origin"]) for each in found["items"]] == [
        ("debian-12", "built"),
        ("fedora", "imported"),
    ]
    first = shell("image", "list", "--limit", "1")
    assert "debian-12" in first.out
    assert "fedora" not in first.out
    after = first.err.split()[-1]
    assert "fedora" in shell("image", "list", "--after", after).out


def test_a_build_passes_on_what_was_asked_for(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, object]] = []

    def build_base(_cache: object, mirror: str | None, flavour: Flavour) -> real.BaseArtifacts:
        asked.append((mirror, flavour))
        raise OSError(28, "No space left on device", "/cache")

    monkeypatch.setattr("freehold.interfaces.cli.images.build_base", build_base)
    answer = shell("image", "build", "--kernel", "amd64", "--mirror", "https://mirror.example/debian")
    assert asked == [("https://mirror.example/debian", Flavour.GENERIC)]
    assert (answer.code, answer.err) == (1, "freehold: No space left on device (/cache)\n")
