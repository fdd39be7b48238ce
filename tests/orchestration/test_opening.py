"""Opening a state directory: one controller at a time, and what was made once is opened again."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from freehold.evidence import durable
from freehold.model.errors import FreeholdError
from freehold.orchestration.opening import AlreadyServed, evidence_key, open_log, open_vault, serving
from freehold.root_of_trust.keys import SiteKeys
from freehold.root_of_trust.vault import WrongKeyEncryptionKey

ADDRESSES = ["172.30.2.2", "172.30.1.2"]


def test_two_controllers_on_one_state_directory_and_the_message_names_the_first(tmp_path: Path) -> None:
    code = "import sys, pathlib; from freehold.orchestration.opening import serving\n"
    code += "with serving(pathlib.Path(sys.argv[1])):\n  print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyServed, match=rf"another controller \(pid {first.pid}\) serves") as refused:
            with serving(tmp_path):
                pass
        assert "stop it first; two controllers on one SQLite store would fight" in str(refused.value)
        first.kill()  # the lock goes with the process, however that ends
        first.wait()
    with serving(tmp_path):
        assert (tmp_path / "serve.lock").read_text() == f"{os.getpid()}\n"
    with serving(tmp_path):
        pass


def test_vault_and_keys_are_made_once_and_opened_again(tmp_path: Path) -> None:
    keys = SiteKeys.create(tmp_path, open_vault(tmp_path), "lab", ADDRESSES, bmc_networks=["172.30.1.0/24"])
    again = SiteKeys.create(tmp_path, open_vault(tmp_path), "lab", ADDRESSES, bmc_networks=["172.30.1.0/24"])
    assert again.public_files() == keys.public_files()
    assert (tmp_path / "vault.key").stat().st_mode & 0o777 == 0o600
    with open_log(tmp_path, "lab", keys) as log:
        assert log.size == 0
    assert evidence_key(tmp_path).key_id == keys.evidence.key_id


def test_a_vault_whose_key_was_lost_or_replaced_is_never_made_anew(tmp_path: Path) -> None:
    open_vault(tmp_path).put("secret", b"x")
    key = tmp_path / "vault.key"
    kept = key.read_bytes()
    key.unlink()
    with pytest.raises(FreeholdError, match=r"vault\.key"):
        open_vault(tmp_path)
    assert not key.exists()
    durable.replace(key, os.urandom(len(kept)), 0o600)
    with pytest.raises(WrongKeyEncryptionKey, match="give the key that the vault was made with"):
        open_vault(tmp_path)
    durable.replace(key, kept, 0o600)
    assert open_vault(tmp_path).get("secret") == b"x"


def test_a_key_without_a_vault_is_a_first_opening_that_was_cut_off(tmp_path: Path) -> None:
    open_vault(tmp_path)
    (tmp_path / "vault" / "vault.json").unlink()
    (tmp_path / "vault").rmdir()
    open_vault(tmp_path).put("secret", b"x")


def test_a_site_without_evidence_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FreeholdError, match="this site has no evidence yet") as refused:
        evidence_key(tmp_path)
    assert "run `freehold serve` first, or give --state" in str(refused.value)


def test_a_full_disk_leaves_neither_half_a_vault_nor_half_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int, __: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_all", full)
        with pytest.raises(OSError, match="No space left on device"):
            open_vault(tmp_path)
    assert not (tmp_path / "vault.key").exists()
    SiteKeys.create(tmp_path, open_vault(tmp_path), "lab", ADDRESSES, bmc_networks=["172.30.1.0/24"])
