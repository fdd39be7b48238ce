"""Takes evidence away: a directory that holds the whole log, the public keys, a report, and a signed list of all that.

bundle.json             DSSE envelope over the manifest: every other file's SHA-256 and size
log/checkpoint, log/tile/entries/…, log/tile/<level>/…      the log as C2SP tlog-tiles
certificates/<index>.json   one per destruction certificate, each complete in itself
keys/evidence.pem, keys/…   public halves       report.json     artifacts/<name>    what statements name by digest
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from freehold.evidence import canonical, dsse, durable, merkle, tiles
from freehold.evidence.log import LogView
from freehold.evidence.signer import Signer
from freehold.evidence.statement import Predicate
from freehold.model.errors import FreeholdError

MANIFEST = "bundle.json"
MANIFEST_TYPE = "application/vnd.freehold.bundle+json"
EVIDENCE_KEY = "keys/evidence.pem"
REPORT = "report.json"
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")


class ExportFailed(FreeholdError):
    """A bundle that cannot be written as asked."""


def export(
    log: LogView,
    out_dir: Path,
    signer: Signer,
    *,
    report: Mapping[str, Any],
    artifacts: Mapping[str, bytes],
    public_keys: Mapping[str, bytes],
) -> Path:
    """Writes the bundle `out_dir`, which must not exist; it appears there whole or not at all. Returns `out_dir`.

    `artifacts` are bytes by relative path; `public_keys` are PEM by name without suffix (`db`, `agent-ca`, `image`).
    Raises `ExportFailed`, `LogRefused`.
    """
    if signer.key_id != log.key.key_id:
        raise ExportFailed("the bundle's signer is not the log's", expected=f"key {log.key.key_id}")
    if os.path.lexists(out_dir):
        raise ExportFailed(f"{out_dir} exists", remedy="choose another name, or remove it")
    files = {EVIDENCE_KEY: log.key.pem, REPORT: canonical.dumps(dict(report)) + b"\n"}
    files |= {f"keys/{name}.pem": pem for name, pem in public_keys.items() if name != "evidence"}
    files |= {f"artifacts/{name}": data for name, data in artifacts.items()}
    note, envelopes = log.snapshot()
    files |= log_files(note, merkle.Tree(map(merkle.leaf_hash, envelopes)), envelopes, certified(envelopes))
    for path in files:
        check_path(path)
    manifest = canonical.dumps(
        {
            "version": 1,
            "origin": log.origin,
            "files": {p: {"sha256": hashlib.sha256(d).hexdigest(), "size": len(d)} for p, d in files.items()},
        }
    )
    files[MANIFEST] = dsse.sign(manifest, MANIFEST_TYPE, signer).to_bytes()
    _write_directory(out_dir, files)
    return out_dir


def log_files(
    note: bytes, tree: merkle.Tree, envelopes: Sequence[bytes], certificates: Sequence[int]
) -> dict[str, bytes]:
    """Every file of a bundle that follows from the log: tiles, checkpoint, and the entries that are certificates."""
    files = {f"log/{path}": data for path, data in {**tiles.entry_bundles(envelopes), **tiles.hash_tiles(tree)}.items()}
    files["log/checkpoint"] = note
    for index in certificates:
        proof = tree.inclusion_proof(index)
        files[f"certificates/{index}.json"] = certificate(envelopes[index], index, proof, note)
    return files


def certified(envelopes: Iterable[bytes]) -> list[int]:
    """The indices of destruction certificates among the envelopes of our own log."""
    wanted = Predicate.DECOMMISSION_CERTIFICATE.uri
    return [
        index
        for index, envelope in enumerate(envelopes)
        if json.loads(canonical.b64decode(json.loads(envelope)["payload"]))["predicateType"] == wanted
    ]


def certificate(envelope: bytes, index: int, proof: Sequence[bytes], note: bytes) -> bytes:
    """A destruction certificate with all that its verification needs but the key; canonical JSON and a newline."""
    document = {
        "version": 1,
        "index": index,
        "envelope": canonical.loads(envelope),
        "inclusion_proof": [canonical.b64encode(node) for node in proof],
        "checkpoint": note.decode("utf-8"),
    }
    return canonical.dumps(document) + b"\n"


def check_path(path: str) -> str:
    """`path` if it is plain, relative and portable, and so cannot leave the bundle. Raises `ExportFailed`."""
    if len(path) > 400 or not all(_SEGMENT.match(segment) for segment in path.split("/")):
        raise ExportFailed(f"{path!r} cannot be a file of a bundle", expected="letters, digits and ._- between slashes")
    return path


def _write_directory(out_dir: Path, files: Mapping[str, bytes]) -> None:
    aside = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        for path, data in files.items():
            target = aside / PurePosixPath(path)
            durable.make_directory(target.parent)
            durable.write_at(target, 0, data)
        aside.rename(out_dir)
        durable.sync_directory(out_dir.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
