import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crash_points import run_until_crash

from freehold.evidence import (
    CheckpointRefused,
    Ed25519Signer,
    EvidenceLog,
    LogBusy,
    LogRefused,
    LogView,
    Predicate,
    Statement,
    StatementRefused,
    StatementTooLarge,
    Subject,
    checkpoint,
    durable,
    merkle,
    statement,
    tiles,
)

SIGNER = Ed25519Signer.generate()
KEY = SIGNER.public_key
ORIGIN = "freehold.dev/site/test"


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page cache survives whatever these tests do; waiting for the disk would only make them slow."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def claim(number: int) -> Statement:
    return Statement.claim(Predicate.TRANSITION, [Subject.of_name("server/r1")], {"number": number})


def writer(directory: Path) -> EvidenceLog:
    return EvidenceLog.open_for_writing(directory, SIGNER, ORIGIN)


def numbers(log: LogView) -> list[int]:
    return [statement.verify(entry.envelope, KEY).predicate["number"] for entry in log.entries()]


def filled(directory: Path, count: int) -> Path:
    with writer(directory) as log:
        log.append_all([claim(i) for i in range(count)])
    return directory


def test_entries_come_back_after_reopening_with_proofs(tmp_path: Path) -> None:
    with writer(tmp_path / "log") as log:
        old = log.checkpoint()
        entries = [log.append(claim(i)) for i in range(5)]
        old_size = checkpoint.verify(old, ORIGIN, KEY)
    with writer(tmp_path / "log") as log:
        assert numbers(log) == [0, 1, 2, 3, 4]
        head = checkpoint.verify(log.checkpoint(), ORIGIN, KEY)
        assert head.size == log.size == 5
        for entry in entries:
            assert log.entry(entry.index) == entry
            proof = log.inclusion_proof(entry.index)
            assert merkle.verify_inclusion(entry.index, 5, entry.leaf_hash, proof, head.root)
        proof = log.consistency_proof(old_size.size)
        assert merkle.verify_consistency(old_size.size, 5, old_size.root, head.root, proof)
        with pytest.raises(IndexError):
            log.entry(5)


def test_bundles_of_256_are_crossed_one_by_one_and_together(tmp_path: Path) -> None:
    with writer(tmp_path) as log:
        log.append_all([claim(i) for i in range(254)])
        for i in range(254, 258):
            log.append(claim(i))
        log.append_all([claim(i) for i in range(258, 800)])
    with writer(tmp_path) as log:
        assert numbers(log) == list(range(800))
        assert [entry.index for entry in log.entries(500)] == list(range(500, 800))
        assert log.cut_bytes == 0
    assert len(tiles.decode_entries((tmp_path / "tile/entries/000").read_bytes())[0]) == 256


def test_a_reader_sees_the_log_while_it_is_written(tmp_path: Path) -> None:
    with writer(tmp_path) as log:
        log.append(claim(0))
        view = LogView.open(tmp_path, KEY, ORIGIN)
        log.append(claim(1))
        assert numbers(view) == [0]
        assert numbers(LogView.open(tmp_path, KEY, ORIGIN)) == [0, 1]
        assert len(view.snapshot()[1]) == 1


def test_a_torn_tail_is_cut_at_every_byte_and_nothing_committed_is_lost(tmp_path: Path) -> None:
    torn = filled(tmp_path / "torn", 3)
    entry = tiles.encode_entry(statement.sign(claim(3), SIGNER).to_bytes())
    for cut in range(1, len(entry) + 1):
        with (torn / "tile/entries/000").open("ab") as file:
            file.write(entry[:cut])
        assert LogView.open(torn, KEY, ORIGIN).size == 3
        with writer(torn) as log:
            assert (log.size, log.cut_bytes) == (3, cut)
            assert numbers(log) == [0, 1, 2]
    with writer(torn) as log:
        log.append(claim(3))
        assert numbers(log) == [0, 1, 2, 3]


def test_zeros_behind_the_tail_as_power_loss_leaves_them_are_cut(tmp_path: Path) -> None:
    with (filled(tmp_path, 2) / "tile/entries/000").open("ab") as file:
        file.write(bytes(4096))
    with writer(tmp_path) as log:
        assert (log.size, log.cut_bytes) == (2, 4096)


@pytest.mark.parametrize("before", [0, 1, 255])
def test_every_crash_point_of_an_append_keeps_what_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    start = filled(tmp_path / "start", before)
    last = [before - 1] if before else []
    for dies_at in range(100):
        directory = tmp_path / f"crash{dies_at}"
        shutil.copytree(start, directory)
        log = writer(directory)
        died = run_until_crash(monkeypatch, dies_at, lambda log=log: log.append_all([claim(-1), claim(-2)]))
        log.close()
        with writer(directory) as log:
            assert log.size in ({before, before + 2} if died else {before + 2})
            if died:
                log.append(claim(7))
            tail = list(log.entries(max(0, before - 1)))  # opening has checked the hash of every entry
        with writer(directory) as log:
            assert list(log.entries(max(0, before - 1))) == tail
        found = [statement.verify(entry.envelope, KEY).predicate["number"] for entry in tail]
        assert found in ([*last, 7], [*last, -1, -2, 7], [*last, -1, -2])
        if not died:
            break
    assert dies_at > 5


def test_every_crash_point_of_the_creation_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for dies_at in range(100):
        directory = tmp_path / str(dies_at) / "evidence"
        died = run_until_crash(monkeypatch, dies_at, lambda directory=directory: filled(directory, 1))
        with writer(directory) as log:
            assert log.size in ({0, 1} if died else {1})
        if not died:
            break
    assert dies_at > 5


def test_a_full_disk_commits_nothing_and_the_log_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with writer(tmp_path) as log:
        log.append(claim(0))
        for place in ("write_at", "replace"):
            with monkeypatch.context() as patch:

                def full(*_: object) -> None:
                    raise OSError(28, "No space left on device")

                patch.setattr(durable, place, full)
                with pytest.raises(OSError, match="No space"):
                    log.append(claim(13))
            assert numbers(log) == [0]
        log.append(claim(1))
        assert numbers(log) == [0, 1]
    assert numbers(LogView.open(tmp_path, KEY, ORIGIN)) == [0, 1]


def test_a_checkpoint_that_was_written_and_then_doubted_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rename worked and the folder's fsync failed: going on from memory would fork the log."""
    with writer(tmp_path) as log:
        log.append(claim(0))
        with monkeypatch.context() as patch:
            real = durable.sync_directory
            patch.setattr(durable, "sync_directory", lambda path: real(path) or (tmp_path / "nowhere").stat())
            with pytest.raises(FileNotFoundError):
                log.append(claim(1))
        log.append(claim(2))
        assert numbers(log) == [0, 1, 2]
    assert numbers(writer(tmp_path)) == [0, 1, 2]


def test_any_changed_byte_of_a_committed_log_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    for name in ("checkpoint", "tile/entries/000"):
        path = tmp_path / name
        good = path.read_bytes()
        for at in range(0, len(good), 3):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            with pytest.raises((LogRefused, CheckpointRefused)):
                LogView.open(tmp_path, KEY, ORIGIN)
        for at in range(0, len(good), 29):
            path.write_bytes(good[:at])
            with pytest.raises((LogRefused, CheckpointRefused)):
                writer(tmp_path)
        path.write_bytes(good)
    assert writer(tmp_path).size == 2


def test_a_tampered_directory_is_refused_in_words(tmp_path: Path) -> None:
    filled(tmp_path / "a", 300)
    (tmp_path / "a/tile/entries/001").unlink()
    with pytest.raises(LogRefused, match=r"entry 256 .* missing[\s\S]*300 entries[\s\S]*restore"):
        writer(tmp_path / "a")
    filled(tmp_path / "b", 1)
    (tmp_path / "b/checkpoint").unlink()
    with pytest.raises(LogRefused, match="entries and no checkpoint"):
        writer(tmp_path / "b")
    filled(tmp_path / "c", 1)
    (tmp_path / "c/tile/entries/007").write_bytes(b"")
    with pytest.raises(LogRefused, match="007 is no part of the evidence log"):
        writer(tmp_path / "c")
    with pytest.raises(LogRefused, match="holds no evidence log"):
        LogView.open(tmp_path / "nothing", KEY, ORIGIN)


def test_an_entry_that_changes_behind_an_open_log_is_refused(tmp_path: Path) -> None:
    with writer(tmp_path) as log:
        log.append(claim(0))
        path = tmp_path / "tile/entries/000"
        path.write_bytes(path.read_bytes().replace(b"sig", b"gis"))
        with pytest.raises(LogRefused, match="were changed"):
            log.entry(0)


def test_another_key_or_origin_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    with pytest.raises(CheckpointRefused):
        EvidenceLog.open_for_writing(tmp_path, Ed25519Signer.generate(), ORIGIN)
    with pytest.raises(CheckpointRefused):
        EvidenceLog.open_for_writing(tmp_path, SIGNER, "freehold.dev/site/other")
    assert writer(tmp_path).size == 1


def test_a_second_writer_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    with writer(tmp_path), pytest.raises(LogBusy, match=f"pid {os.getpid()}"):
        writer(tmp_path)
    with writer(tmp_path) as log:
        log.append(claim(0))
    with pytest.raises(LogBusy, match="closed"):
        log.append(claim(1))


def test_a_statement_that_is_too_large_or_malformed_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    with writer(tmp_path) as log:
        large = Statement.claim(Predicate.INVENTORY, [Subject.of_name("r1")], {"x": "y" * 60_000})
        with pytest.raises(StatementTooLarge, match=r"inventory statement of \d+ bytes[\s\S]*artifact"):
            log.append_all([claim(0), large])
        with pytest.raises(StatementRefused):
            log.append(Statement.claim(Predicate.DRIFT, [], {}))
        assert log.size == 0
        assert log.append_all([]) == []


APPENDER = """
import sys
from pathlib import Path
from freehold.evidence import *
signer = Ed25519Signer.from_private_pem(Path(sys.argv[2]).read_bytes())
log = EvidenceLog.open_for_writing(Path(sys.argv[1]), signer, "freehold.dev/site/test")
while True:
    entry = log.append(Statement.claim(Predicate.TRANSITION, [Subject.of_name("r1")], {"number": log.size}))
    print(entry.index, flush=True)
"""


def test_kill_9_while_appending_loses_nothing_that_was_reported(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    private = SIGNER._key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "key").write_bytes(private)
    reported = -1
    for _ in range(2):
        command = [sys.executable, "-c", APPENDER, str(tmp_path / "log"), str(tmp_path / "key")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            first = process.stdout.readline()
            time.sleep(0.05)
            process.kill()
            lines = [first, *process.stdout]
        reported = max(reported, *(int(line) for line in lines if line.endswith("\n")))
        view = LogView.open(tmp_path / "log", KEY, ORIGIN)
        assert view.size >= reported + 1
        assert numbers(view) == list(range(view.size))
    assert reported > 1
