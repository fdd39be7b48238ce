import base64
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.evidence import (
    Artifacts,
    BundleRefused,
    Ed25519Signer,
    EvidenceLog,
    ExportFailed,
    Predicate,
    Statement,
    Subject,
    canonical,
    dsse,
    export,
    verify_bundle,
    verify_certificate,
)

SIGNER = Ed25519Signer.generate()
DIGEST = hashlib.sha256(b"q").hexdigest()
ORIGIN = "freehold.dev/site/test"


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def claim(predicate: Predicate, number: int) -> Statement:
    return Statement.claim(predicate, [Subject.of_name("server/r1")], {"n": number})


def made(directory: Path, signer: Ed25519Signer = SIGNER, more: int = 0) -> Path:
    with EvidenceLog.open_for_writing(directory / "log", signer, ORIGIN) as log:
        kinds = [Predicate.TRANSITION, Predicate.SANITIZATION, Predicate.DECOMMISSION_CERTIFICATE, Predicate.EGRESS]
        log.append_all([claim(kind, n) for n, kind in enumerate(kinds + [Predicate.DRIFT] * more)])
        return export(
            log,
            directory / "run-1",
            signer,
            report={"verdict": "PASS"},
            artifacts={"r1/event-log.bin": b"\x00\x01", "empty": b""},
            public_keys={"db": b"pem of db"},
        )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("bundle"))


def test_a_bundle_verifies_and_says_what_was_checked(bundle: Path) -> None:
    found = verify_bundle(bundle, SIGNER.public_key_pem)
    assert (found.entries, found.certificates, found.key_pinned, found.origin) == (4, 1, True, ORIGIN)
    assert found.key_fingerprint == SIGNER.key_id
    assert found.statements == {"decommission-certificate": 1, "egress": 1, "sanitization": 1, "transition": 1}
    assert found.files == len([path for path in bundle.rglob("*") if path.is_file()])
    assert len(found.checks) == 10
    assert not verify_bundle(bundle).key_pinned


def test_the_layout_is_the_documented_one(bundle: Path) -> None:
    assert sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()) == [
        "artifacts/empty",
        "artifacts/r1/event-log.bin",
        "bundle.json",
        "certificates/2.json",
        "keys/db.pem",
        "keys/evidence.pem",
        "log/checkpoint",
        "log/tile/0/000.p/4",
        "log/tile/entries/000.p/4",
        "report.json",
    ]


def test_a_bundle_of_several_tiles_verifies(tmp_path: Path) -> None:
    assert verify_bundle(made(tmp_path, more=600), SIGNER.public_key_pem).entries == 604


def test_any_byte_changed_in_any_file_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    tried = 0
    for path in [path for path in copy.rglob("*") if path.is_file()]:
        good = path.read_bytes()
        for at in range(0, len(good), 1 if len(good) < 200 else 17):  # test_dsse and test_log flip every bit
            path.write_bytes(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
            with pytest.raises(BundleRefused):
                verify_bundle(copy)
            tried += 1
        path.write_bytes(good)
    assert tried > 500
    verify_bundle(copy)


def test_any_truncation_or_addition_is_refused_with_the_files_name(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    for path in [path for path in copy.rglob("*") if path.is_file()]:
        good, name = path.read_bytes(), path.relative_to(copy).as_posix()
        for changed in (good[:-1], good[: len(good) // 2], good + b"\n", good + b"\0", good + good):
            if changed == good:
                continue  # the empty artifact
            path.write_bytes(changed)
            with pytest.raises(BundleRefused) as refused:
                verify_bundle(copy)
            assert refused.value.file == name
        path.unlink()
        with pytest.raises(BundleRefused, match=r"missing|folder is empty") as refused:
            verify_bundle(copy)
        assert name.startswith(refused.value.file)
        path.write_bytes(good)


def link(at: Path) -> None:
    target = at / "report.json"
    target.rename(at.parent / "elsewhere.json")
    target.symlink_to(at.parent / "elsewhere.json")


def link_folder(at: Path) -> None:
    (at / "artifacts").rename(at.parent / "artifacts")
    (at / "artifacts").symlink_to(at.parent / "artifacts")


def swap(at: Path) -> None:
    first, second = at / "report.json", at / "log/checkpoint"
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda at: (at / "extra.txt").write_text("x"), r"extra\.txt: layout: the manifest does not list"),
        (lambda at: (at / "artifacts/.hidden").write_text(""), "hidden: layout: the manifest does not list"),
        (lambda at: (at / "artifacts/new").mkdir(), "artifacts/new: layout: the folder is empty"),
        (lambda at: (at / "certificates/3.json").write_text("{}"), "does not list"),
        (lambda at: os.mkfifo(at / "pipe"), "pipe: layout: this is neither"),
        (link, r"report\.json: layout: this is neither"),
        (link_folder, "artifacts: layout: this is neither"),
        (swap, "size"),
        (lambda at: shutil.rmtree(at / "log"), "log/checkpoint: layout: the file is missing"),
        (lambda at: (at / "bundle.json").unlink(), r"bundle\.json: layout: the file is missing"),
        (lambda at: shutil.rmtree(at), "not a directory"),
    ],
)
def test_a_changed_layout_is_refused_in_words(
    bundle: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    change(copy)
    with pytest.raises(BundleRefused, match=message):
        verify_bundle(copy, SIGNER.public_key_pem)


def test_a_bundle_signed_anew_by_another_key_is_refused_if_the_key_is_pinned(tmp_path: Path) -> None:
    forged = made(tmp_path, Ed25519Signer.generate())
    assert not verify_bundle(forged).key_pinned
    with pytest.raises(BundleRefused, match=rf"keys/evidence\.pem: trusted key[\s\S]*{SIGNER.key_id}"):
        verify_bundle(forged, SIGNER.public_key_pem)
    with pytest.raises(BundleRefused, match="the trusted key"):
        verify_bundle(forged, b"no key")


def resigned(at: Path, name: str, data: bytes) -> None:
    """What an insider with the key could do: change a file and sign the manifest again."""
    (at / name).write_bytes(data)
    envelope = dsse.Envelope.from_bytes((at / "bundle.json").read_bytes())
    manifest = json.loads(envelope.payload)
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    signed = dsse.sign(canonical.dumps(manifest), envelope.payload_type, SIGNER)
    (at / "bundle.json").write_bytes(signed.to_bytes())


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("certificates/2.json", b"{}\n", r"certificates/2\.json: recomputation"),
        ("log/tile/0/000.p/4", bytes(128), "log/tile/0/000.p/4: recomputation"),
        ("log/tile/1/000.p/1", bytes(32), "log/tile/1/000.p/1: recomputation"),
        ("log/tile/entries/000.p/4", bytes(8), "Merkle root"),
        ("log/tile/entries/000.p/4", b"\0", "entries: 0 whole entries"),
        ("log/checkpoint", b"x", "checkpoint signature"),
        ("report.json", b"[]", r"report\.json: report: not a JSON object"),
    ],
)
def test_the_manifest_is_not_believed_about_the_log(
    bundle: Path, tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    resigned(copy, name, data)
    with pytest.raises(BundleRefused, match=message):
        verify_bundle(copy, SIGNER.public_key_pem)


def test_a_certificate_stands_on_its_own(bundle: Path) -> None:
    data = (bundle / "certificates/2.json").read_bytes()
    found = verify_certificate(data, SIGNER.public_key_pem)
    assert (found.index, found.size, found.origin) == (2, 4, ORIGIN)
    assert found.statement == claim(Predicate.DECOMMISSION_CERTIFICATE, 2)
    with pytest.raises(BundleRefused):
        verify_certificate(data, Ed25519Signer.generate().public_key_pem)


def test_any_byte_of_a_certificate_counts(bundle: Path) -> None:
    data = (bundle / "certificates/2.json").read_bytes()
    for at in range(len(data)):
        with pytest.raises(BundleRefused):
            verify_certificate(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :], SIGNER.public_key_pem)
        with pytest.raises(BundleRefused):
            verify_certificate(data[:at], SIGNER.public_key_pem)


def test_another_statement_cannot_pose_as_a_certificate(bundle: Path) -> None:
    document = json.loads((bundle / "certificates/2.json").read_bytes())
    other = dsse.sign(claim(Predicate.EGRESS, 3).to_bytes(), "application/vnd.in-toto+json", SIGNER)
    forged = canonical.dumps({**document, "envelope": other.to_dict()}) + b"\n"
    with pytest.raises(BundleRefused, match="this is a egress statement"):
        verify_certificate(forged, SIGNER.public_key_pem)
    unlogged = dsse.sign(
        claim(Predicate.DECOMMISSION_CERTIFICATE, 9).to_bytes(), "application/vnd.in-toto+json", SIGNER
    )
    with pytest.raises(BundleRefused, match="inclusion proof"):
        verify_certificate(canonical.dumps({**document, "envelope": unlogged.to_dict()}) + b"\n", SIGNER.public_key_pem)


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "a/../b", ".x", "", "a\\b", "a b", "x" * 500])
def test_an_artifact_cannot_leave_the_bundle(tmp_path: Path, name: str) -> None:
    with EvidenceLog.open_for_writing(tmp_path / "log", SIGNER, ORIGIN) as log:
        with pytest.raises(ExportFailed, match="cannot be a file of a bundle"):
            export(log, tmp_path / "b", SIGNER, report={}, artifacts={name: b""}, public_keys={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]


def test_an_export_never_overwrites_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path)
    with EvidenceLog.open_for_writing(tmp_path / "log", SIGNER, ORIGIN) as log:
        with pytest.raises(ExportFailed, match="exists"):
            export(log, tmp_path / "run-1", SIGNER, report={}, artifacts={}, public_keys={})
        with pytest.raises(ExportFailed, match="signer is not the log's"):
            export(log, tmp_path / "x", Ed25519Signer.generate(), report={}, artifacts={}, public_keys={})

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            export(log, tmp_path / "x", SIGNER, report={}, artifacts={}, public_keys={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "run-1"]


def test_an_empty_log_makes_a_bundle_that_verifies(tmp_path: Path) -> None:
    with EvidenceLog.open_for_writing(tmp_path / "log", SIGNER, ORIGIN) as log:
        path = export(log, tmp_path / "b", SIGNER, report={}, artifacts={}, public_keys={})
    assert verify_bundle(path).entries == 0


def test_the_bundles_entries_can_be_read_without_this_package(bundle: Path) -> None:
    """The documented format: two bytes of length, then a DSSE envelope."""
    data = (bundle / "log/tile/entries/000.p/4").read_bytes()
    length = int.from_bytes(data[:2], "big")
    payload = json.loads(base64.b64decode(json.loads(data[2 : 2 + length])["payload"]))
    assert payload["predicateType"] == "https://freehold.dev/transition/v1"


@pytest.mark.parametrize(
    ("kept", "why"),
    [({}, "its quote is missing"), ({DIGEST: b"other"}, "this is not the quote that it names"), ({DIGEST: b"q"}, "")],
)
def test_a_statement_whose_artifact_is_missing_or_another_is_refused(
    tmp_path: Path, kept: dict[str, bytes], why: str
) -> None:
    claim = Statement.claim(
        Predicate.ATTESTATION, [Subject.of_name("server/r1")], {"at": "now", "artifacts": {"quote": DIGEST}}
    )
    with EvidenceLog.open_for_writing(tmp_path / "log", SIGNER, ORIGIN) as log:
        log.append(claim)
        path = export(log, tmp_path / "b", SIGNER, report={}, artifacts=kept, public_keys={})
    if not why:
        assert verify_bundle(path).entries == 1
        return
    with pytest.raises(BundleRefused, match=why) as refused:
        verify_bundle(path)
    assert refused.value.file == f"artifacts/{DIGEST}"


def test_artifacts_are_kept_once_under_their_digest(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path / "artifacts")
    assert artifacts.all() == {}
    assert artifacts.keep(b"q") == artifacts.keep(b"q") == DIGEST
    assert artifacts.all() == {DIGEST: b"q"}
