from pathlib import Path

import pytest
from cli_support import Shell


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path / "state", monkeypatch, capsys)


@pytest.fixture
def site(shell: Shell) -> Shell:
    """A shell at a site where the rack is declared."""
    shell.declare()
    return shell
