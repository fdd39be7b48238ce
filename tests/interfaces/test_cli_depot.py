"""`freehold depot`: the whole story by its commands, what they say, and how they end."""

import base64
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cabarchive import CabArchive, CabFile
from cli_support import Answer, Shell
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from freehold.interfaces.cli.depot_packages import Meter
from freehold.model.status import Facts, FirmwareFact, ServerState, ServerStatus
from freehold.orchestration.measurements import BootedImage
from freehold.orchestration.opening import open_vault
from freehold.provisioning.images import disk, uki
from freehold.root_of_trust.depot import Depot, Kind, Wanted
from freehold.root_of_trust.keys import depot_key
from freehold_lab import firmware_package

PEOPLE = ("alice", "bob", "carol")
CODE = bytes(firmware_package.CODE_BYTES)
PACKAGE = firmware_package.pack("1.1.0", CODE)
WORDS = ("--vendor", "QEMU", "--component", "bios", "--version", "1.1.0", "--model", "Standard PC", "--by", "alice")
PUBLIC = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
PASSPHRASE = "correct horse"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Key files of four people; alice's has a passphrase."""
    folder = tmp_path / "keys"
    folder.mkdir()
    for name in (*PEOPLE, "dave"):
        key = ed25519.Ed25519PrivateKey.generate()
        cipher: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if name == "alice":
            cipher = serialization.BestAvailableEncryption(PASSPHRASE.encode())
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, cipher)
        (folder / f"{name}.pem").write_bytes(pem)
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(*PUBLIC))
    (folder / "passphrase").write_text(f"{PASSPHRASE}\n")
    return folder


def operators(keys: Path, *people: str) -> list[str]:
    return [word for name in people or PEOPLE for word in ("--operator", f"{name}={keys / f'{name}.pub'}")]


def sign(shell: Shell, keys: Path, name: str, *more: object) -> Answer:
    return shell(
        "depot", "sign", "--key", keys / f"{name}.pem", "--passphrase-file", keys / "passphrase", "--yes", *more
    )


@pytest.fixture
def package(tmp_path: Path) -> Path:
    path = tmp_path / "bios-1.1.0.fw"
    path.write_bytes(PACKAGE)
    return path


@pytest.fixture
def founded(shell: Shell, keys: Path) -> Shell:
    assert shell("depot", "init", *operators(keys)).code == 0
    return shell


@pytest.fixture
def published(founded: Shell, keys: Path, package: Path) -> Shell:
    """One package of the lab's firmware is out."""
    assert founded("depot", "import", package, *WORDS, "--unsigned-because", "made in the lab").code == 0
    for name in ("alice", "bob"):
        assert sign(founded, keys, name).code == 0
    assert founded("depot", "publish").code == 0
    return founded


def test_the_whole_story(shell: Shell, keys: Path, package: Path, tmp_path: Path) -> None:
    answer = shell("depot", "init", *operators(keys))
    assert answer.code == 0, answer
    assert "two operators sign it: freehold depot sign --key FILE" in answer.out
    answer = shell("depot", "import", package, *WORDS, "--floor", "1.0", "--unsigned-because", "made in the lab")
    digest = hashlib.sha256(PACKAGE).hexdigest()
    assert answer.out.startswith(f"imported firmware/bios-1.1.0.fw: {len(PACKAGE)} bytes, SHA-256 {digest}\n")
    assert "vendor's signature: none: made in the lab" in answer.out

    answer = sign(shell, keys, "alice")
    assert answer.code == 0, answer
    for shown in ("OPERATOR", "carol", "firmware/bios-1.1.0.fw", "Standard PC", "1.0", "made in the lab", digest):
        assert shown in answer.out
    assert answer.out.endswith("root: signed by alice\ntargets: signed by alice\n")
    answer = shell("depot", "publish")
    assert answer.code == 1
    assert "root version 1 has 1 of 2 signatures (alice); 1 more of bob, carol must sign" in answer.err
    assert sign(shell, keys, "carol").out.endswith("root: signed by alice, carol\ntargets: signed by alice, carol\n")
    answer = shell("depot", "publish")
    assert answer.code == 0, answer
    root = (shell.state / "depot/repository/metadata/1.root.json").read_bytes()
    assert f"root version 1, SHA-256 {hashlib.sha256(root).hexdigest()}" in answer.out
    assert "published targets version 1 with 1 packages" in answer.out

    assert "published   firmware/bios-1.1.0.fw   QEMU" in shell("depot", "list").out
    assert shell("depot", "verify").out.endswith("verified\n")
    client = Depot(shell.state / "depot").client()
    _, data = client.fetch(Wanted(Kind.FIRMWARE, "QEMU", "bios", "1.1.0", "Standard PC"))
    assert firmware_package.unpack(data) == ("1.1.0", CODE)

    medium = tmp_path / "medium"
    shutil.copytree(shell.state / "depot/repository", medium)
    shell.state = tmp_path / "site"
    first = medium / "metadata/1.root.json"
    answer = shell("depot", "init", "--root", first, "--sha256", hashlib.sha256(root).hexdigest().upper())
    assert answer.code == 0, answer
    assert "freehold depot mirror SOURCE" in answer.out
    answer = shell("depot", "mirror", medium)
    assert answer.out.startswith("new  firmware/bios-1.1.0.fw\ntargets version 1, 1 packages, to be used until ")
    assert shell("depot", "mirror", medium, "-o", "json").json()["copied"] == []
    assert shell("depot", "list", "-o", "json").json()["items"][0]["about"]["models"] == ["Standard PC"]


def test_everything_in_json(shell: Shell, keys: Path, package: Path) -> None:
    assert shell("depot", "init", *operators(keys), "-o", "json").json()["staged"].endswith("depot/staged")
    more = (
        "--unsigned-because",
        "lab",
        "--pcr",
        f"0={'ab' * 32}",
        "--pcr",
        f"0={'cd' * 32}",
        "--sbom-sha256",
        "ef" * 32,
    )
    found = shell("depot", "import", package, *WORDS, *more, "-o", "json").json()["target"]["about"]
    assert found["measurements"] == {"0": ["ab" * 32, "cd" * 32]}
    assert found["sbom_sha256"] == "ef" * 32
    assert sign(shell, keys, "bob", "-o", "json").json()["signatures"] == {"root": ["bob"], "targets": ["bob"]}
    shown = sign(shell, keys, "carol").out
    assert f"measures into PCR 0: {'ab' * 32}, {'cd' * 32}" in shown
    assert f"bill of materials {'ef' * 32}" in shown
    found = shell("depot", "publish", "-o", "json").json()
    assert (found["seen"]["targets"], len(found["root_sha256"])) == (1, 64)
    assert shell("depot", "verify", "-o", "json").json()["packages"] == ["firmware/bios-1.1.0.fw"]
    assert shell("depot", "withdraw", "firmware/bios-1.1.0.fw", "-o", "json").json()["withdrawn"]
    assert shell("depot", "list", "-o", "json").json()["items"][0]["condition"] == "withdrawal staged"
    assert shell("depot", "rotate", "-o", "json").json()["operators"] == list(PEOPLE)


def test_a_signature_is_given_only_with_a_yes(founded: Shell, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def confirm(text: str, **_: object) -> bool:
        asked.append(text)
        return False

    monkeypatch.setattr("click.confirm", confirm)
    answer = founded("depot", "sign", "--key", keys / "bob.pem")
    assert (answer.code, asked) == (1, ["Sign this?"])
    assert "nothing was signed" in answer.err
    assert founded("depot", "sign", "--key", keys / "bob.pem", "-o", "json").code == 1
    assert not any(each.signatures for each in Depot(founded.state / "depot").staged().waiting.values())


def test_a_passphrase_is_asked_for_and_a_wrong_one_is_named(
    founded: Shell, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["wrong", PASSPHRASE]
    monkeypatch.setattr("click.prompt", lambda *_, **__: answers.pop(0))
    answer = founded("depot", "sign", "--key", keys / "alice.pem", "--yes")
    assert answer.code == 1
    assert "the passphrase is wrong, or the file is no key" in answer.err
    assert founded("depot", "sign", "--key", keys / "alice.pem", "--yes").code == 0


def other_key(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    plain = serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (other_key, "holds a ECPrivateKey"),
        (lambda path: path.write_bytes(b"nonsense"), "cannot be read: the file is no private key"),
        (lambda path: shutil.copy(path.with_name("dave.pem"), path), "has nothing to sign"),
    ],
)
def test_keys_that_cannot_sign(founded: Shell, keys: Path, make: Callable[[Path], object], words: str) -> None:
    make(keys / "x.pem")
    answer = sign(founded, keys, "x")
    assert answer.code == 1
    assert words in answer.err


def test_the_carried_directory_comes_back(founded: Shell, keys: Path, tmp_path: Path) -> None:
    for name in ("alice", "carol"):
        shutil.copytree(founded.state / "depot/staged", tmp_path / name)
        assert sign(founded, keys, name, tmp_path / name).code == 0
    answer = founded("depot", "publish", "--signed", tmp_path / "alice", "--signed", tmp_path / "carol")
    assert answer.code == 0, answer


def test_an_operator_is_replaced(published: Shell, keys: Path) -> None:
    answer = published("depot", "rotate", *operators(keys, "alice", "carol", "dave"), "--online-days", "90")
    assert "with operators alice, carol, dave" in answer.out
    for name in ("alice", "bob", "dave"):
        assert sign(published, keys, name).code == 0
    answer = published("depot", "publish")
    assert answer.code == 0, answer
    until = datetime.now(UTC) + timedelta(days=90)
    assert f"to be used until {until:%Y-%m-%d}" in answer.out
    assert "operators alice, carol, dave" in published("depot", "verify").out


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--root", "ROOT"),
        ("--sha256", "ab" * 32),
        ("--root", "ROOT", "--sha256", "beef"),
        ("--operator", "alice"),
        ("--operator", "alice=PUB", "--operator", "alice=PUB"),
    ],
)
def test_wrong_words_at_init_are_usage_errors(shell: Shell, keys: Path, words: tuple[str, ...]) -> None:
    (keys / "root.json").write_text("{}")
    told = [each.replace("ROOT", str(keys / "root.json")).replace("PUB", str(keys / "alice.pub")) for each in words]
    assert shell("depot", "init", *told).code == 2


def test_a_person_with_two_keys_and_a_key_with_two_people(shell: Shell, keys: Path) -> None:
    two = [*operators(keys), "--operator", f"Bob={keys / 'dave.pub'}"]
    answer = shell("depot", "init", *two)
    assert answer.code == 1
    assert "'bob' and 'Bob' are one person with two keys" in answer.err
    answer = shell("depot", "init", *operators(keys), "--operator", f"dave={keys / 'carol.pub'}")
    assert "the key of 'dave' is also that of 'carol'" in answer.err
    assert not (shell.state / "depot/staged/root.json").exists()
    assert "would have 2 operators" in shell("depot", "init", *operators(keys, "alice", "bob")).err


def test_another_root_than_the_one_on_paper(published: Shell, tmp_path: Path) -> None:
    root = published.state / "depot/repository/metadata/1.root.json"
    published.state = tmp_path / "site"
    answer = published("depot", "init", "--root", root, "--sha256", "ab" * 32)
    assert answer.code == 1
    assert "has SHA-256" in answer.err
    assert "do not adapt the digest to the file" in answer.err
    assert not (tmp_path / "site/depot").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "--trust"),
        (("--unsigned-because", "x", "--trust", "KEY"), 2, "--trust"),
        (("--unsigned-because", "x", "--signature", "KEY"), 2, "need --trust"),
        (("--trust", "KEY"), 2, "there is no signature"),
        (("--unsigned-because", "x", "--pcr", "0"), 2, "not INDEX=HEX"),
        (("--unsigned-because", "x", "--by", "mallory"), 1, "mallory is no operator"),
        (("--unsigned-because", "x", "--floor", "2.0"), 1, "below its own security floor"),
        (("--unsigned-because", "x", "--name", "../x"), 1, "cannot be a file name"),
        (("--unsigned-because", "x", "--member", "y"), 1, "is no cabinet"),
        (
            ("--unsigned-because", "x", "--kind", "os-image", "--site", "lab"),
            1,
            "has no EFI/BOOT/BOOTX64.EFI in an ESP",
        ),
        (("--unsigned-because", "x", "--kind", "agent", "--site", "lab"), 1, "no MZ header"),
        (("--unsigned-because", "x", "--kind", "os-image"), 2, "needs --site"),
        (("--unsigned-because", "x", "--site", "lab"), 2, "nothing else, needs --site"),
    ],
)
def test_imports_that_are_refused(
    founded: Shell, keys: Path, package: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    told = [each.replace("KEY", str(keys / "alice.pub")) for each in words]
    answer = founded("depot", "import", package, *WORDS, *told)
    assert answer.code == code, answer
    assert message in answer.err
    assert not list((founded.state / "depot").rglob("*.fw"))
    assert not (founded.state / "depot/incoming").exists()


def test_a_fifo_is_no_package(founded: Shell, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    answer = founded("depot", "import", tmp_path / "fifo", *WORDS, "--unsigned-because", "x")
    assert answer.code == 1
    assert "is not a regular file" in answer.err


@pytest.mark.host
def test_the_vendors_signature_is_recorded_with_who_looked(founded: Shell, package: Path, tmp_path: Path) -> None:
    def openssl(*words: object) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=ACME", "-days", "2",
            "-keyout", tmp_path / "v.key", "-out", tmp_path / "v.pem")  # fmt: skip
    openssl("cms", "-sign", "-binary", "-in", package, "-signer", tmp_path / "v.pem", "-inkey", tmp_path / "v.key",
            "-outform", "DER", "-out", tmp_path / "v.p7s")  # fmt: skip
    told = ("--signature", tmp_path / "v.p7s", "--trust", tmp_path / "v.pem")
    found = founded("depot", "import", package, *WORDS, *told, "-o", "json").json()["target"]["about"]
    signature = found["vendor_signature"]
    assert (signature["scheme"], signature["verified_by"], len(signature["fingerprint"])) == ("pkcs7", "alice", 64)
    assert datetime.fromisoformat(signature["at"]) <= datetime.now(UTC)
    package.write_bytes(PACKAGE[:-1] + b"x")
    answer = founded("depot", "import", package, *WORDS, *told, "--name", "other.fw")
    assert answer.code == 1
    assert "the vendor's PKCS #7 signature does not verify" in answer.err

    # the same signature in a catalogue, in a cabinet, as LVFS packs it
    blob = {"Kind": 3, "Flags": 0, "Data": base64.b64encode((tmp_path / "v.p7s").read_bytes()).decode()}
    archive = CabArchive()
    archive["firmware.bin"] = CabFile(PACKAGE)
    archive["firmware.jcat"] = CabFile(gzip.compress(json.dumps(
        {"JcatVersionMajor": 0, "JcatVersionMinor": 1, "Items": [{"Id": "firmware.bin", "Blobs": [blob]}]}
    ).encode()))  # fmt: skip
    (tmp_path / "acme.cab").write_bytes(archive.save(compress=True))
    words = ["Other PC" if word == "Standard PC" else word for word in WORDS]
    told = ("--member", "firmware.bin", "--trust", tmp_path / "v.pem", "--as-of", f"{datetime.now(UTC):%Y-%m-%d}")
    answer = founded("depot", "import", tmp_path / "acme.cab", *words, *told)
    assert "certificate is not yet valid" in answer.err  # made today, and a day begins at midnight
    answer = founded("depot", "import", tmp_path / "acme.cab", *words, *told[:4])
    assert "vendor's signature: jcat-pkcs7 " in answer.out, answer
    target = Depot(founded.state / "depot").packages()[-1]
    assert (target.path, target.sha256) == ("firmware/firmware.bin", hashlib.sha256(PACKAGE).hexdigest())


@pytest.mark.parametrize("beside", ["firmware.jcat", "firmware.bin.asc"])
def test_a_signed_member_of_a_cabinet_does_not_come_in_as_unsigned(founded: Shell, tmp_path: Path, beside: str) -> None:
    archive = CabArchive()
    archive["firmware.bin"], archive[beside] = CabFile(PACKAGE), CabFile(b"whatever it says")
    if beside.endswith(".jcat"):
        archive["second.jcat"] = CabFile(b"of two catalogues none is the right one, and both are there")
    (tmp_path / "acme.cab").write_bytes(archive.save(compress=True))
    told = ("--member", "firmware.bin", "--unsigned-because", "it is quicker")
    answer = founded("depot", "import", tmp_path / "acme.cab", *WORDS, *told)
    assert answer.code == 1
    assert f"firmware.bin is not unsigned: {beside}" in answer.err
    assert "give the vendor's keys with --trust" in answer.err
    assert Depot(founded.state / "depot").packages() == []


def test_a_file_with_its_signature_beside_it_does_not_come_in_as_unsigned(founded: Shell, package: Path) -> None:
    package.with_name(f"{package.name}.p7s").write_bytes(b"a signature")
    answer = founded("depot", "import", package, *WORDS, "--unsigned-because", "it is quicker")
    assert (answer.code, Depot(founded.state / "depot").packages()) == (1, [])
    assert f"is not unsigned: {package.name}.p7s lies beside it" in answer.err
    package.with_name(f"{package.name}.p7s").unlink()
    assert founded("depot", "import", package, *WORDS, "--unsigned-because", "there is none").code == 0


STARTED = ("--vendor", "Example", "--version", "12.8", "--by", "bob", "--unsigned-because", "built here")


@pytest.fixture
def loader(tmp_path: Path) -> Path:
    """A UKI, and beside it a disk that starts it."""
    path = tmp_path / "agent.efi"
    path.write_bytes(uki.assemble(uki.read_stub(), "quiet", b"ID=freehold\n"))
    (tmp_path / "root").write_bytes(b"root" * 1000)
    table = "11111111-2222-5333-8444-555555555555"
    disk.assemble(tmp_path / "os.raw", tmp_path / "root", table, table, {disk.LOADER_PATH: path.read_bytes()})
    return path


@pytest.mark.host
@pytest.mark.parametrize(("kind", "name"), [("os-image", "os.raw"), ("agent", "agent.efi")])
def test_what_servers_start_comes_in_with_what_it_will_measure(
    founded: Shell, keys: Path, loader: Path, kind: str, name: str
) -> None:
    predicted = BootedImage.of("x", loader.read_bytes()).predicted
    words = ("depot", "import", loader.with_name(name), *STARTED, "--kind", kind, "--site", "lab", "--component", "c")
    lying = founded(*words, "--pcr", f"11={'ab' * 32}")
    assert (lying.code, Depot(founded.state / "depot").packages()) == (1, [])
    assert f"PCR 11 will be {predicted[11]}, not {'ab' * 32}, as --pcr says" in lying.err
    about = founded(*words, "--pcr", f"11={predicted[11]}", "-o", "json").json()["target"]["about"]
    assert about["measurements"] == {str(index): [value] for index, value in predicted.items()}
    assert (about["site"], "models" in about) == ("lab", False)
    assert f"{kind}/{name} measures into PCR 4: {predicted[4]}" in sign(founded, keys, "bob").out
    assert "site lab" in founded("depot", "list").out
    elsewhere = ["elsewhere" if word == "lab" else word for word in words]
    assert founded(*elsewhere, "--name", f"elsewhere-{name}").code == 0
    assert "one package for each model and version" in founded(*words, "--name", f"again-{name}").err


def test_verify_says_no_with_3(published: Shell, tmp_path: Path) -> None:
    (stored,) = (published.state / "depot/repository/targets/firmware").iterdir()
    stored.write_bytes(PACKAGE[:-1] + b"x")
    answer = published("depot", "verify")
    assert answer.code == 3
    assert "is not what the operators signed" in answer.err
    assert "verified" not in answer.out
    medium = tmp_path / "medium"
    shutil.copytree(published.state / "depot/repository", medium)
    (medium / "metadata/timestamp.json").write_bytes(b"{")
    answer = published("depot", "verify", medium, "-o", "json")
    assert (answer.code, answer.out) == (3, "")
    assert "timestamp.json is refused" in answer.error()["what"]


def test_a_refused_medium_ends_with_1_and_says_why(published: Shell, tmp_path: Path) -> None:
    root = published.state / "depot/repository/metadata/1.root.json"
    digest = hashlib.sha256(root.read_bytes()).hexdigest()
    medium = tmp_path / "medium"
    shutil.copytree(published.state / "depot/repository", medium)
    next((medium / "targets/firmware").iterdir()).unlink()
    published.state = tmp_path / "site"
    assert published("depot", "init", "--root", root, "--sha256", digest).code == 0
    answer = published("depot", "mirror", medium)
    assert answer.code == 1
    assert "is missing" in answer.err
    assert "nothing was changed here" in answer.err
    assert "there is no published depot" in published("depot", "list").err


def test_where_there_is_no_depot(shell: Shell, package: Path, keys: Path) -> None:
    for words in (("list",), ("publish",), ("rotate",), ("withdraw", "x")):
        answer = shell("depot", *words)
        assert answer.code == 1, words
        assert "what to do:" in answer.err
    assert shell("depot", "verify").code == 3
    assert "no operator of the depot" in shell("depot", "import", package, *WORDS, "--unsigned-because", "x").err
    assert sign(shell, keys, "alice").code == 1
    assert not (shell.state / "vault").exists()


def test_what_expires_soon_is_said(published: Shell) -> None:
    online = depot_key(open_vault(published.state))
    Depot(published.state / "depot").publish([online], datetime.now(UTC) - timedelta(days=25))
    for words in (("list",), ("verify",)):
        answer = published("depot", *words)
        assert answer.code == 0
        assert "warning: the depot's timestamp metadata expires at" in answer.err
        assert "freehold depot publish" in answer.err
    assert "warning" not in published("depot", "publish").err


def test_packages_are_listed_in_pages(published: Shell, package: Path) -> None:
    words = [word.replace("1.1.0", "1.2.0") for word in WORDS]
    package.write_bytes(PACKAGE + b"x")
    assert published("depot", "import", package, *words, "--name", "bios-1.2.0.fw", "--unsigned-because", "x").code == 0
    first = published("depot", "list", "--limit", "1")
    assert "bios-1.1.0.fw" in first.out
    assert "bios-1.2.0.fw" not in first.out
    second = published("depot", "list", "--after", first.err.split()[-1])
    assert "staged   firmware/bios-1.2.0.fw" in second.out
    assert "bios-1.1.0.fw" not in second.out


def test_long_work_shows_its_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = Meter("import").of("big\x1b.img")
    for second in range(12):
        clock[0] = float(second)
        progress(second << 20, 12 << 20)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["  import big\\x1b.img: 2 MiB, 16 %", "  import big\\x1b.img: 7 MiB, 58 %"]


def enrol(shell: Shell, keys: Path, *people: str) -> None:
    """A site with these operators."""
    shell.declare()
    assert shell("operator", "found", *(f"{name}={keys / f'{name}.pub'}" for name in people)).code == 0


def test_a_depot_is_founded_by_the_site_s_operators_only(shell: Shell, keys: Path) -> None:
    enrol(shell, keys, "alice", "bob", "dave")
    answer = shell("depot", "init", *operators(keys))
    assert answer.code == 1
    assert "carol" in answer.err
    assert "who is no operator of the site" in answer.err
    assert not (shell.state / "depot" / "staged").exists()
    assert shell("depot", "init", *operators(keys, "alice", "bob", "dave")).code == 0


def test_a_depot_of_others_is_found_fault_with_and_publishes_nothing_until_they_are_replaced(
    published: Shell, keys: Path
) -> None:
    enrol(published, keys, "alice", "bob", "dave")  # the depot was there first, with carol
    answer = published("depot", "verify")
    assert answer.code == 0
    assert "critical: the depot counts signatures of carol" in answer.err
    (finding,) = published("depot", "verify", "-o", "json").json()["findings"]
    assert (finding["kind"], finding["subject"]) == ("depot-operator", "depot/carol")
    assert "carol" in published("depot", "publish").err
    assert published("depot", "rotate").code == 1
    assert published("depot", "rotate", *operators(keys, "alice", "bob", "dave")).code == 0
    for name in ("alice", "bob"):
        sign(published, keys, name)
    answer = published("depot", "publish")
    assert answer.code == 0, answer
    assert published("depot", "verify", "-o", "json").json()["findings"] == []


def test_a_downgrade_is_asked_for_and_signed_like_everything_that_needs_two(
    published: Shell, keys: Path, tmp_path: Path
) -> None:
    enrol(published, keys, *PEOPLE)
    words = ("depot", "downgrade", "server-1", "--version", "1.1.0", "--reason", "it loses the NIC")
    assert "its board is not known yet" in published(*words).err
    board = FirmwareFact(vendor="QEMU", model="Standard PC", version="2.0.0")
    published.set_status("server-1", ServerStatus(state=ServerState.AVAILABLE, facts=Facts(firmware=board)))
    assert "bios 1.1.0 is not below the security floor: it needs no ticket" in published(*words).err
    newer = tmp_path / "bios-2.0.0.fw"
    newer.write_bytes(firmware_package.pack("2.0.0", CODE))
    answer = published(
        "depot", "import", newer, *WORDS[:4], "--version", "2.0.0", *WORDS[6:], "--floor", "2.0.0",
        "--unsigned-because", "made in the lab",
    )  # fmt: skip
    assert answer.code == 0, answer
    for name in ("alice", "bob"):
        sign(published, keys, name)
    assert published("depot", "publish").code == 0
    request = published(*words, "-o", "json").json()["request"]
    asked = published("approval", "show", request, "-o", "json").json()["request"]
    assert (asked["act"], asked["subject"]) == ("downgrade", "server/server-1")
    assert asked["details"] == {
        "vendor": "QEMU", "component": "bios", "model": "Standard PC", "from": "2.0.0", "to": "1.1.0",
        "sha256": hashlib.sha256(PACKAGE).hexdigest(), "reason": "it loses the NIC",
    }  # fmt: skip
    assert "asks for bios 1.1.0: it loses the NIC" in published("events", "server-1").out
