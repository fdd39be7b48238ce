"""A key sealed in a software TPM (swtpm) by the real tools: released under the same PCR 7 only, and never seen."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from custody_support import PEOPLE, identities
from swtpm_support import Vendor, running

from freehold.root_of_trust import custody, site_vault
from freehold.root_of_trust.custody import Choice, TpmPlace
from freehold.root_of_trust.kek import CustodyUnavailable
from freehold.root_of_trust.kek.tpm import SealedKeyRefused, TpmSealedKek
from freehold.root_of_trust.vault import EmbeddedVault, WrongKeyEncryptionKey

pytestmark = pytest.mark.host
SECRET = b"correct horse"


@contextlib.contextmanager
def powered(state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The TPM of the machine that the vault is on; libtss2-tcti-swtpm wants its control channel beside the other."""
    with running(state) as data:
        control = data.with_name("data.sock.ctrl")
        control.unlink(missing_ok=True)
        control.symlink_to(data.with_name("control.sock"))
        monkeypatch.setenv("TPM2TOOLS_TCTI", f"swtpm:path={data}")
        yield data


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Vendor:
    return Vendor(tmp_path_factory.mktemp("vendor"))


@pytest.fixture
def state(vendor: Vendor, request: pytest.FixtureRequest) -> Path:
    return vendor.make(f"tpm-{abs(hash(request.node.name))}", certificate=False)


def extend_pcr_7() -> None:
    digest = "7:sha256=" + "11" * 32
    subprocess.run(["tpm2_pcrextend", digest], check=True, capture_output=True, timeout=30)


@pytest.mark.slow
def test_it_opens_after_a_reboot_and_not_when_pcr_7_differs(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with powered(state, monkeypatch):
        kek = TpmSealedKek.create()
        vault = EmbeddedVault.create(tmp_path / "vault", kek, PEOPLE)
        vault.put("bmc/r1/current", SECRET)
        for _ in range(4):  # more often than a TPM has slots
            opened = TpmSealedKek.open(kek.public, kek.private)
        assert opened.key_id == kek.key_id
    with powered(state, monkeypatch):
        opened = TpmSealedKek.open(kek.public, kek.private)
        assert EmbeddedVault.open(vault.directory, opened).get("bmc/r1/current") == SECRET
        extend_pcr_7()
        with pytest.raises(SealedKeyRefused, match="PCR 7 is not what it was when the key was sealed") as refused:
            TpmSealedKek.open(kek.public, kek.private)
        assert "freehold vault recover" in str(refused.value)
        # Two people, and a new key under the new state.
        recovered = EmbeddedVault.recover(vault.directory, identities("alice", "carol"))
        fresh = TpmSealedKek.create()
        recovered.rekey(fresh)
        assert EmbeddedVault.open(vault.directory, TpmSealedKek.open(fresh.public, fresh.private)).get(
            "bmc/r1/current"
        ) == (SECRET)
        with pytest.raises(WrongKeyEncryptionKey):
            EmbeddedVault.open(vault.directory, kek)
    with powered(state, monkeypatch), pytest.raises(SealedKeyRefused, match="PCR 7"):
        TpmSealedKek.open(fresh.public, fresh.private)  # the old state is another state now


def test_a_site_moves_into_its_tpm_and_no_key_stays_on_its_disk(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    site_vault.open_vault(site).put("bmc/r1/current", SECRET)
    with powered(state, monkeypatch):
        site_vault.rekey(site, site_vault.open_embedded(site), Choice(TpmPlace, custody.new_tpm), PEOPLE)
    assert not list(site.glob("vault*.key"))
    with powered(state, monkeypatch):
        assert site_vault.open_vault(site).get("bmc/r1/current") == SECRET
        extend_pcr_7()
        with pytest.raises(SealedKeyRefused, match="PCR 7"):
            site_vault.open_vault(site)


def test_another_tpm_and_a_cleared_one_do_not_open_it(
    state: Path, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with powered(state, monkeypatch):
        kek = TpmSealedKek.create()
    with powered(vendor.make("another", certificate=False), monkeypatch):
        with pytest.raises(SealedKeyRefused, match="this TPM did not seal the vault's key"):
            TpmSealedKek.open(kek.public, kek.private)
    with powered(state, monkeypatch):
        subprocess.run(["tpm2_clear", "-c", "p"], check=True, capture_output=True, timeout=30)
        with pytest.raises(SealedKeyRefused, match=r"this TPM did not seal[\s\S]*cleared"):
            TpmSealedKek.open(kek.public, kek.private)


@pytest.mark.parametrize("at", [0, 10, 60, -1])
@pytest.mark.slow
def test_changed_blobs_are_refused(state: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    with powered(state, monkeypatch):
        kek = TpmSealedKek.create()
        for public, private in ((flipped(kek.public, at), kek.private), (kek.public, flipped(kek.private, at))):
            with pytest.raises(CustodyUnavailable):
                TpmSealedKek.open(public, private)


def flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def test_no_tpm_and_no_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPM2TOOLS_TCTI", f"swtpm:path={tmp_path}/nothing")
    with pytest.raises(CustodyUnavailable, match=r"tpm2_createprimary failed[\s\S]*group tss"):
        TpmSealedKek.create()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CustodyUnavailable, match=r"is not installed[\s\S]*apt-get install tpm2-tools"):
        TpmSealedKek.create()


def test_the_key_is_in_no_argument_in_no_file_and_not_on_the_bus(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tool that runs is replaced by one that copies its arguments and its folder, then runs the real one; swtpm
    writes down every byte that crosses the bus."""
    seen, bus = tmp_path / "seen", tmp_path / "bus.log"
    (tmp_path / "bin").mkdir()
    seen.mkdir()
    for tool in Path("/usr/bin").glob("tpm2_*"):
        spy = tmp_path / "bin" / tool.name
        spy.write_text(
            f'#!/bin/sh\nd=$(mktemp -d {seen}/XXXXXX)\necho "$@" > $d/args\n{tool} "$@"\nr=$?\ncp -r . $d/\nexit $r\n'
        )
        spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(os, "urandom", lambda _: KNOWN)
    with sniffed(state, bus, monkeypatch):
        kek = TpmSealedKek.create()
        again = TpmSealedKek.open(kek.public, kek.private)
    assert again.key_id == kek.key_id
    looked_at = [path.read_bytes() for path in seen.rglob("*") if path.is_file()]
    assert len(looked_at) > 20
    assert not any(KNOWN in data or KNOWN.hex().encode() in data for data in looked_at)
    crossed = "".join(bus.read_text().split()).lower()
    assert kek.public[2:].hex() in crossed  # what is public is seen there
    assert KNOWN.hex() not in crossed


KNOWN = bytes.fromhex("5ec4e700") * 8


@contextlib.contextmanager
def sniffed(state: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    data = state / "data.sock"
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--server", f"type=unixio,path={data}"]
    command += ["--ctrl", f"type=unixio,path={data}.ctrl", "--flags", "startup-clear,not-need-init"]
    command += ["--log", f"file={log},level=20"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            monkeypatch.setenv("TPM2TOOLS_TCTI", f"swtpm:path={data}")
            while not data.exists():
                assert process.poll() is None
            yield
        finally:
            process.terminate()
            process.wait(10)
