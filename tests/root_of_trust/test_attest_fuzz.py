"""Inputs of bench/fuzz_attestation.py, always the same ones: a million short event logs, and a few of everything else,
of which that script throws a million more."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "bench/fuzz_attestation.py"
FEW, MANY = 10_000, 1_000_000


@pytest.fixture(scope="module")
def fuzzer() -> ModuleType:
    specification = importlib.util.spec_from_file_location("fuzz_attestation", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["fuzz_attestation"] = module  # its NamedTuples look themselves up
    specification.loader.exec_module(module)
    return module


def test_unchanged_seeds_are_accepted_so_that_mutants_get_deep(fuzzer: ModuleType) -> None:
    accepted = {}
    for name, (given, _, action) in fuzzer.targets(fuzzer.seeds()).items():
        accepted[name] = 0
        for data in given:
            try:
                action(data)
                accepted[name] += 1
            except fuzzer.AttestationError:
                continue
    assert accepted.pop("certificate") == 3  # the others are CAs, and two leaves of TPMs that nobody has
    assert accepted.pop("event log") == 22
    assert all(accepted.values()), accepted


@pytest.mark.slow
def test_mutated_evidence_is_refused_in_words_or_read_and_nothing_else(fuzzer: ModuleType) -> None:
    result = fuzzer.fuzz(FEW, processes=1, seed=0)
    assert result["inputs"] > FEW * 0.95
    assert result["findings"] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_event_logs_are_refused_in_words_or_read_and_none_hangs(fuzzer: ModuleType) -> None:
    """Half a minute of one processor. Three events each: a change in those hits what the parser decides by."""
    name = "short event log"
    given, _, action = fuzzer.targets(fuzzer.seeds())[name]
    result = fuzzer.run(name, given, action, range(MANY))
    assert result["inputs"] == MANY
    assert result["findings"] == []
    assert 0.1 < result["accepted"] / MANY < 0.5  # neither all refused at once nor all harmless


def test_short_logs_are_the_whole_ones_in_pieces(fuzzer: ModuleType) -> None:
    for log in fuzzer.seeds().logs:
        short = [event for piece in fuzzer.pieces(log) for event in fuzzer.parse_event_log(piece).events]
        whole = fuzzer.parse_event_log(log).events
        assert [(event.type, event.digests, event.data) for event in short] == [
            (event.type, event.digests, event.data) for event in whole
        ]


def test_a_fuzzer_that_finds_something_says_which_input_it_was(fuzzer: ModuleType) -> None:
    def broken(data: bytes) -> None:
        if b"\xff" in data:
            raise KeyError("a parser that trusts its input")

    result = fuzzer.run("broken", [bytes(64)], broken, range(200))
    (first, *_) = result["findings"]
    ((_, data),) = fuzzer.inputs("broken", [bytes(64)], range(first.number, first.number + 1))
    assert b"\xff" in data
    assert first.error == "KeyError: 'a parser that trusts its input'"
