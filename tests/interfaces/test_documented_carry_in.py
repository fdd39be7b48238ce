"""Runs every command of docs/carry-in.md as it stands there, in order, with people who answer yes."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/carry-in.md").read_text()
BLOCKS = dict(re.findall(r"^```sh ([a-z-]+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
PACKAGE = b"bios by ACME" * 1000
pytestmark = pytest.mark.host


class Site:
    """A directory in which commands are typed; `usb` stands for the medium."""

    def __init__(self, directory: Path, usb: Path) -> None:
        self.directory, self._usb = directory, usb
        directory.mkdir()

    def types(self, block: str, *replace: tuple[str, str], **names: str) -> str:
        """What a block printed. Every question is answered with yes."""
        script = BLOCKS[block].replace("/media/usb", str(self._usb)).replace(" -aes256", "")
        for old, new in replace:
            script = script.replace(old, new)
        environment = {**os.environ, **names, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        environment.pop("FREEHOLD_STATE", None)
        command = ["bash", "-euo", "pipefail", "-c", f"exec < <(yes)\n{script}"]
        done = subprocess.run(command, cwd=self.directory, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture
def usb(tmp_path: Path) -> Path:
    """A medium with what a vendor gives: package, signature, key."""
    usb, home = tmp_path / "usb", tmp_path / "gpg"
    usb.mkdir()
    home.mkdir(mode=0o700)
    (usb / "bios-2.6.1.bin").write_bytes(PACKAGE)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
    for words in (
        ["--quick-generate-key", "ACME <firmware@acme.example>", "ed25519", "sign", "never"],
        ["--armor", "--output", str(usb / "acme.asc"), "--export"],
        ["--armor", "--detach-sign", str(usb / "bios-2.6.1.bin")],
    ):
        subprocess.run([*gpg, *words], check=True, capture_output=True)
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True)
    return usb


@pytest.fixture
def keeper(tmp_path: Path, usb: Path) -> Site:
    """Where the depot is kept, with everybody's keys at hand."""
    site = Site(tmp_path / "keeper", usb)
    for name in ("alice", "bob", "carol"):
        site.types("key", ("alice", name))
    published = site.types("found")
    root = (site.directory / "state/depot/repository/metadata/1.root.json").read_bytes()
    assert hashlib.sha256(root).hexdigest() in published
    return site


def filled(keeper: Site, usb: Path) -> str:
    """Way 1; what the list shows at its end."""
    assert "vendor's signature: pgp " in keeper.types("import")
    keeper.types("carry-out")
    for name in ("alice", "bob"):
        elsewhere = Site(keeper.directory.parent / name, usb)
        (elsewhere.directory / f"{name}.pem").write_bytes((keeper.directory / f"{name}.pem").read_bytes())
        assert "bios-2.6.1.bin" in elsewhere.types("sign-elsewhere", ("alice", name))
    return keeper.types("publish")


@pytest.mark.slow
def test_way_1_the_site_keeps_the_depot(keeper: Site, usb: Path) -> None:
    shown = filled(keeper, usb)
    assert "\nverified\n" in shown
    assert re.search(r"published +firmware/bios-2\.6\.1\.bin +ACME +bios +2\.6\.1 +M1 Gen2 +2\.4\.0", shown)


@pytest.mark.slow
def test_way_2_the_depot_is_kept_outside(keeper: Site, usb: Path, tmp_path: Path) -> None:
    filled(keeper, usb)
    assert keeper.types("copy").endswith("verified\n")
    written_down = hashlib.sha256((usb / "depot/metadata/1.root.json").read_bytes()).hexdigest()
    inside = Site(tmp_path / "inside", usb)
    inside.types("follow", WRITTEN_DOWN=written_down)
    shown = inside.types("mirror")
    assert shown.startswith("new  firmware/bios-2.6.1.bin\n")
    assert "published" in shown
    assert inside.types("mirror").startswith("targets version 2")


def test_a_stolen_online_key_is_replaced_and_the_site_that_follows_hears_of_it(
    keeper: Site, usb: Path, tmp_path: Path
) -> None:
    written_down = hashlib.sha256((keeper.directory / "state/depot/repository/metadata/1.root.json").read_bytes())
    keeper.types("copy")
    inside = Site(tmp_path / "inside", usb)
    inside.types("follow", WRITTEN_DOWN=written_down.hexdigest())
    inside.types("mirror")
    shown = keeper.types("online-key")
    assert shown.count("this online key takes the place of ") == 2
    assert "the former one is destroyed" in shown
    shutil.rmtree(usb / "depot")
    keeper.types("copy")
    assert inside.types("mirror").startswith("targets version 2")


def test_every_block_was_typed() -> None:
    assert set(BLOCKS) == {
        "key", "found", "import", "carry-out", "sign-elsewhere", "publish", "copy", "follow", "mirror",
        "online-key",
    }  # fmt: skip
    assert PAGE.count("```sh") == len(BLOCKS)
