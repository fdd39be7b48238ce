"""The benchmarks run, in small: what they measure is for `make bench`, that they measure at all for this."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench"


def result(script: str, *arguments: str) -> dict[str, Any]:
    """What it printed last. The exit status depends on the machine's speed, so it does not count here."""
    command = [sys.executable, str(BENCH / f"{script}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_rotation_of_a_few_bmcs_is_measured_and_every_password_is_new() -> None:
    found = result("rotate", "--servers", "4")
    assert (found["servers"], found["different_passwords"], found["proven_unique"], found["wrong"]) == (4, 4, 4, [])
    assert found["seconds"] > 0


@pytest.mark.slow
def test_an_attestation_is_measured_with_and_without_a_cached_chain() -> None:
    found = result("appraise", "--runs", "2")
    assert min(found["cached_ms"], found["uncached_ms"]) > 0


@pytest.mark.slow
def test_an_import_into_the_depot_is_measured_against_sha256sum(tmp_path: Path) -> None:
    found = result("depot", "--megabytes", "4", "--runs", "1", "--directory", str(tmp_path))
    assert min(found["import_ratio"], found["use_ratio"]) > 0
