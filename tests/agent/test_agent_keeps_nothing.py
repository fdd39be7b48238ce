"""What other agents left open or lying about (docs/attestation.md): ports, files, sockets, secrets for all to read."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from test_protocol import issue

from freehold.agent import orders
from freehold.orchestration.opening import open_vault, serving
from freehold.root_of_trust.keys import SiteKeys

SOURCES = Path(__file__).parents[2] / "src/freehold"
OPENS_A_PORT = {"bind", "listen", "create_server", "start_server", "start_unix_server", "HTTPServer", "TCPServer"}
LOCAL = {"AF_UNIX", "UnixSite", "start_unix_server", "create_unix_server", "UnixStreamServer", "mkfifo"}

SESSION = """
import os, ssl, sys
written = []
def watch(event, args):
    if event == "open" and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        written.append(str(args[0]))
from freehold.agent.client import Controller
from freehold.agent.session_key import SessionKey
certificate, sys.dont_write_bytecode = {certificate!r}, True
sys.addaudithook(watch)
key = SessionKey()
try:
    Controller("https://127.0.0.1:1", ssl.create_default_context).enter(certificate, key, 60.0)
except ssl.SSLError as error:  # it was read, and is of another key
    print(error.reason)
print(written)
"""


def names(module: Path) -> set[str]:
    """Every name and attribute that the module uses."""
    tree = ast.parse(module.read_text())
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return found | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_cve_2021_43310_the_agent_listens_on_nothing_and_does_only_what_it_knows() -> None:
    for module in (SOURCES / "agent").glob("*.py"):
        assert not names(module) & OPENS_A_PORT, module.name
    context = orders.Context("/nowhere", lambda done, total, phase: None)
    for kind in ("autorun.sh", "payload", "run", "__import__", ""):
        refused = orders.execute(kind, {"command": "id"}, context)
        assert refused["ok"] is False
        assert "unknown" in refused["error"]["what"].lower()


def test_cve_2022_23948_what_a_session_rests_on_is_in_no_file() -> None:
    certificate = issue("somebody")[0].public_bytes(Encoding.PEM).decode()
    done = subprocess.run(
        [sys.executable, "-c", SESSION.format(certificate=certificate)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(SOURCES.parent)},
    )
    assert done.stdout.split() == ["KEY_VALUES_MISMATCH", "[]"]


@pytest.mark.slow
def test_cve_2022_23950_nothing_makes_a_local_socket() -> None:
    """`agent/tpm.py` connects to one that is there: a TPM in a test."""
    using = {path.relative_to(SOURCES).as_posix() for path in SOURCES.rglob("*.py") if names(path) & LOCAL}
    assert using == {"agent/tpm.py"}
    assert not names(SOURCES / "agent/tpm.py") & OPENS_A_PORT


@pytest.mark.slow
def test_cve_2022_23952_nobody_else_can_read_a_file_with_a_secret(tmp_path: Path) -> None:
    state = tmp_path / "state"
    before = os.umask(0)  # as careless as a service manager can be
    try:
        with serving(state):
            vault = open_vault(state)
            SiteKeys.create(state, vault, "lab", ["127.0.0.1"], bmc_networks=["127.0.0.0/8"])
            vault.put("bmc/s1/current", b"secret")
    finally:
        os.umask(before)
    assert state.stat().st_mode & 0o077 == 0
    for path in (state / "vault").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    for path in state.rglob("*"):
        if path.is_file() and not path.is_relative_to(state / "vault"):
            assert b"PRIVATE KEY" not in path.read_bytes(), path
