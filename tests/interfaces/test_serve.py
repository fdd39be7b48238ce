"""What people read when a site or a lab cannot start: as nobody in particular, without a lab, on a full disk."""

import errno
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_support import RACK, Shell

from freehold.interfaces.cli import serve as serve_module
from freehold.model.errors import FreeholdError
from freehold.orchestration import opening
from freehold.provisioning.images.artifacts import Cache, Step


@contextmanager
def unlogged() -> Iterator[None]:
    """Logging as in a process of its own: nobody has set it up."""
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    root.handlers.clear()
    yield
    root.handlers[:] = kept
    root.setLevel(level)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base images are in the cache."""
    monkeypatch.setattr(serve_module, "build_base", lambda *_, **__: None)


@pytest.mark.usefixtures("built")
def test_a_second_controller_is_told_who_is_the_first(shell: Shell) -> None:
    with opening.serving(shell.state):
        answer = shell("serve")
    assert answer.code == 1
    assert f"freehold: another controller (pid {os.getpid()}) serves {shell.state}" in answer.err
    assert "what to do: stop it first" in answer.err


def test_with_json_every_line_is_an_object(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(cache: Cache, **_: object) -> None:
        for state in ("cached", "started", "done"):
            cache.progress(Step("kernel", state, 1.5 if state == "done" else 0.0))  # type: ignore[arg-type]

    def full(_: Path) -> None:
        logging.getLogger("freehold.root_of_trust").warning("the key lies %s", "in a file")
        try:
            raise OSError("no")
        except OSError:
            logging.getLogger("freehold").exception("it failed")
        raise FreeholdError("the disk is full", remedy="make room")

    shell.declare()
    monkeypatch.setattr(serve_module, "build_base", build)
    monkeypatch.setattr(serve_module, "open_vault", full)
    with unlogged():
        answer = shell("serve", "-o", "json")
    started, done, warned, failed = map(json.loads, answer.out.splitlines())
    assert started | {"at": 0} == {
        "at": 0, "level": "info", "from": "freehold", "message": "kernel: started",
        "step": "kernel", "state": "started", "seconds": 0.0,
    }  # fmt: skip
    assert (done["state"], done["seconds"]) == ("done", 1.5)
    assert abs(warned.pop("at") - time.time()) < 60
    assert warned == {"level": "warning", "from": "freehold.root_of_trust", "message": "the key lies in a file"}
    assert failed["traceback"].endswith("OSError: no")
    assert answer.error() == {"what": "the disk is full", "server": None, "expected": None, "remedy": "make room"}


def test_for_people_the_same_is_told_on_stderr(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(cache: Cache, **_: object) -> None:
        cache.progress(Step("kernel", "done", 1.5))
        logging.getLogger("freehold").warning("it lies in a file")
        raise FreeholdError("the disk is full")

    monkeypatch.setattr(serve_module, "build_base", fail)
    with unlogged():
        answer = shell("serve")
    assert answer.out == ""
    assert "  kernel: done (1.5 s)\n" in answer.err
    assert " W it lies in a file\n" in answer.err


@pytest.mark.usefixtures("built")
def test_a_lab_that_is_not_there_is_said_so(shell: Shell, tmp_path: Path) -> None:
    answer = shell("serve", "--lab", tmp_path)
    assert answer.code == 1
    assert f"there is no lab in {tmp_path}" in answer.err
    assert "start one with `freehold lab up`" in answer.err


def test_images_that_cannot_be_built_say_what_to_do(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise FreeholdError("programs are missing: ukify", remedy="apt-get install systemd-ukify")

    monkeypatch.setattr(serve_module, "build_base", fail)
    answer = shell("serve")
    assert answer.code == 1
    assert "what to do: apt-get install systemd-ukify" in answer.err
    assert not (shell.state / "vault.key").exists()


@pytest.mark.usefixtures("built")
def test_a_full_disk_is_named_by_serve(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "state/vault.key")

    shell.declare()
    monkeypatch.setattr(serve_module, "open_vault", full)
    answer = shell("serve")
    assert answer.code == 1
    assert "freehold: No space left on device (state/vault.key)" in answer.err


@pytest.mark.lab
def test_apply_on_a_full_disk_says_so_and_keeps_what_was_there(tmp_path: Path) -> None:
    """On a real file system of 1 MiB, in a mount namespace of its own."""
    documents, disk = tmp_path / "many.yaml", tmp_path / "disk"
    disk.mkdir()
    large = [image(number) for number in range(30)]
    documents.write_text("---\n".join([RACK.read_text(), *large]))
    script = """mount -t tmpfs -o size=1m tmpfs "$1"; f="$2 -m freehold.interfaces.cli.main"
        $f apply --state "$1/state" -f "$4" -o json >/dev/null || exit 9
        $f apply --state "$1/state" -f "$3" -o json; code=$?
        $f get servers --state "$1/state" -o json; exit $code"""
    arguments = [disk, sys.executable, documents, RACK]
    command = ["unshare", "--mount", "sh", "-c", script, "sh", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done
    said = json.loads(done.stderr)["error"]
    assert "full" in said["what"]
    assert said["remedy"]
    assert [each["metadata"]["name"] for each in json.loads(done.stdout)["items"]] == ["server-1", "server-2"]


def image(number: int) -> str:
    metadata = f"{{name: image-{number}, labels: {{note: '{'x' * 60_000}'}}}}"
    head = f"apiVersion: freehold/v1\nkind: Image\nmetadata: {metadata}\n"
    return head + "spec: {version: '1', builtin: debian-12}\n"


@pytest.mark.lab
def test_a_lab_without_root_says_what_to_type(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "freehold.interfaces.cli.main", "lab", "up", "--dir", str(tmp_path / "lab")]
    # In a user namespace without a mapping we are nobody, and can still read this checkout.
    done = subprocess.run(["unshare", "--user", *command], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "a lab needs root, for its network namespaces" in done.stderr
    assert "Run the same command with sudo." in done.stderr
