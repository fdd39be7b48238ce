"""Checks an evidence bundle offline. Every file is read once; nothing in the bundle is believed before it is checked.

The order: files on disk -> key -> manifest signature -> each file's digest -> checkpoint -> tree -> every statement ->
everything that follows from the log, recomputed and compared byte for byte.
"""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from freehold.evidence import approvals, artifacts, bundle, canonical, checkpoint, dsse, merkle, statement, tiles
from freehold.evidence.checkpoint import Checkpoint
from freehold.evidence.signer import KeyRefused, PublicKey
from freehold.evidence.statement import Predicate, Statement
from freehold.model.errors import FreeholdError

MAX_BYTES = 4 << 30
_CERTIFICATE = "destruction certificate"


class BundleRefused(FreeholdError):
    """`file` (relative to the bundle; "" for the whole) failed `check`."""

    def __init__(self, file: str, check: str, why: str, *, expected: str | None = None) -> None:
        self.file, self.check = file, check
        super().__init__(
            f"evidence refused: {file or 'the bundle'}: {check}: {why}",
            expected=expected,
            remedy="do not rely on it; get a fresh copy from the site that made it",
        )


class BundleVerification(msgspec.Struct, frozen=True, kw_only=True):
    """What was checked. `key_pinned` is False if the only witness for the key was the bundle itself."""

    checks: tuple[str, ...]
    key_fingerprint: str
    key_pinned: bool
    origin: str
    files: int
    entries: int
    root: str
    statements: dict[str, int]
    certificates: int


class CertificateVerification(msgspec.Struct, frozen=True, kw_only=True):
    """A destruction certificate that stands on its own: entry `index` of the log `origin` of `size` entries."""

    key_fingerprint: str
    origin: str
    index: int
    size: int
    statement: Statement


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str
    size: int


class _Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    origin: str
    files: dict[str, _File]


class _Certificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    index: int
    envelope: dict[str, object]
    inclusion_proof: list[str]
    checkpoint: str


def verify_bundle(path: Path, trusted_key: bytes | None = None) -> BundleVerification:
    """Checks the bundle directory `path`; `trusted_key` is the site's evidence key in PEM, got by another way.

    Raises `BundleRefused` that names the first file and the check that fails.
    """
    return read_bundle(path, trusted_key)[0]


def read_bundle(path: Path, trusted_key: bytes | None = None) -> tuple[BundleVerification, list[bytes]]:
    """As `verify_bundle`; and the envelopes of the log's entries, in order."""
    files = _read_files(path)
    for needed in (bundle.MANIFEST, bundle.EVIDENCE_KEY, bundle.REPORT, "log/checkpoint"):
        if needed not in files:
            raise BundleRefused(needed, "layout", "the file is missing")
    key = _key(files[bundle.EVIDENCE_KEY], trusted_key)
    manifest = _manifest(files.pop(bundle.MANIFEST), key)
    _check_digests(files, manifest)
    with _refusing("log/checkpoint", "checkpoint signature"):
        signed = checkpoint.verify(files["log/checkpoint"], manifest.origin, key)
    envelopes = _entries(files, signed.size)
    tree = merkle.Tree(map(merkle.leaf_hash, envelopes))
    _check_root("log/checkpoint", tree.root(), signed)
    claims: list[Statement] = []
    for index, envelope in enumerate(envelopes):
        with _refusing(f"log/{tiles.tile_path('entries', index // tiles.WIDTH)}", f"statement {index}"):
            claim = statement.verify(envelope, key)
            claims.append(claim)
        _check_artifacts(files, index, claim)
    approved = _check_approvals(files, claims)
    kinds = [claim.kind for claim in claims]
    certificates = [index for index, kind in enumerate(kinds) if kind is Predicate.DECOMMISSION_CERTIFICATE]
    _check_derived(files, bundle.log_files(files["log/checkpoint"], tree, envelopes, certificates))
    with _refusing(bundle.REPORT, "report"):
        if not isinstance(canonical.loads(files[bundle.REPORT]), dict):
            raise canonical.NotCanonicalError("not a JSON object")
    verification = BundleVerification(
        checks=(
            "layout: only regular files, exactly those that the manifest lists",
            "key: " + ("the trusted key" if trusted_key else "taken from the bundle, not confirmed by anyone else"),
            "manifest: signed by the evidence key",
            "files: size and SHA-256 of each",
            "checkpoint: signed by the evidence key",
            "log: the RFC 6962 root of all entries is the checkpoint's",
            "statements: each is an in-toto Statement v1 signed by the evidence key",
            "artifacts: each that a statement names is there, and is what its name says",
            f"approvals: the signatures of all {approved} that statements carry verify, by the operators of that time",
            "tiles and certificates: recomputed from the entries, equal byte for byte",
        ),
        key_fingerprint=key.key_id,
        key_pinned=trusted_key is not None,
        origin=manifest.origin,
        files=len(files) + 1,
        entries=signed.size,
        root=signed.root.hex(),
        statements={str(kind): count for kind, count in sorted(Counter(kinds).items())},
        certificates=len(certificates),
    )
    return verification, envelopes


def verify_certificate(data: bytes, trusted_key: bytes) -> CertificateVerification:
    """Checks one `certificates/<index>.json` without its bundle, against the site's evidence key in PEM."""
    with _refusing(_CERTIFICATE, "key"):
        key = PublicKey.from_pem(trusted_key)
    with _refusing(_CERTIFICATE, "format"):
        if not data.endswith(b"\n"):
            raise canonical.NotCanonicalError("the final newline is missing")
        found = msgspec.convert(canonical.loads_strictly(data[:-1]), _Certificate)
        envelope, note = canonical.dumps(found.envelope), found.checkpoint.encode()
        proof = [canonical.b64decode(node) for node in found.inclusion_proof]
        if found.version != 1:
            raise canonical.NotCanonicalError(f"version {found.version} is unknown")
    with _refusing(_CERTIFICATE, "checkpoint signature"):
        signed = checkpoint.verify(note, found.checkpoint.partition("\n")[0], key)
    with _refusing(_CERTIFICATE, "statement"):
        claim = statement.verify(envelope, key)
    if claim.kind is not Predicate.DECOMMISSION_CERTIFICATE:
        raise BundleRefused(_CERTIFICATE, "statement", f"this is a {claim.kind} statement")
    if not merkle.verify_inclusion(found.index, signed.size, merkle.leaf_hash(envelope), proof, signed.root):
        raise BundleRefused(_CERTIFICATE, "inclusion proof", "it does not lead to the checkpoint's root")
    return CertificateVerification(
        key_fingerprint=key.key_id, origin=signed.origin, index=found.index, size=signed.size, statement=claim
    )


def _read_files(path: Path) -> dict[str, bytes]:
    """Every file below `path`, by relative path; refuses whatever is not a plain file or a folder that holds one."""
    if path.is_symlink() or not path.is_dir():
        raise BundleRefused("", "layout", f"{path} is not a directory")
    files: dict[str, bytes] = {}
    total = 0
    for folder, folders, names in os.walk(path, onerror=_raise):
        relative = Path(folder).relative_to(path)
        if not folders and not names:
            raise BundleRefused(relative.as_posix(), "layout", "the folder is empty")
        for name in folders + names:
            file = (relative / name).as_posix()
            status = os.lstat(path / file)
            if stat.S_ISREG(status.st_mode):
                total += status.st_size
                if total > MAX_BYTES:
                    raise BundleRefused(file, "layout", f"the bundle is larger than {MAX_BYTES} bytes")
                files[file] = _read(path / file)
            elif name in names or not stat.S_ISDIR(status.st_mode):
                raise BundleRefused(file, "layout", "this is neither a regular file nor a folder")
    return files


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read()


def _raise(error: OSError) -> None:
    raise error


def _key(pem: bytes, trusted_key: bytes | None) -> PublicKey:
    with _refusing(bundle.EVIDENCE_KEY, "key"):
        key = PublicKey.from_pem(pem)
    if trusted_key is None:
        return key
    try:
        trusted = PublicKey.from_pem(trusted_key)
    except KeyRefused as error:
        raise BundleRefused("the trusted key", "key", error.what, expected=error.expected) from error
    if trusted.key_id != key.key_id:
        raise BundleRefused(
            bundle.EVIDENCE_KEY, "trusted key", f"the bundle's key is {key.key_id}", expected=f"key {trusted.key_id}"
        )
    return key


def _manifest(data: bytes, key: PublicKey) -> _Manifest:
    with _refusing(bundle.MANIFEST, "manifest signature"):
        payload = dsse.verify(data, bundle.MANIFEST_TYPE, key)
        manifest = msgspec.convert(canonical.loads_strictly(payload), _Manifest)
        checkpoint.check_origin(manifest.origin)
        if manifest.version != 1:
            raise canonical.NotCanonicalError(f"version {manifest.version} is unknown")
        return manifest


def _check_digests(files: dict[str, bytes], manifest: _Manifest) -> None:
    for name in sorted(files.keys() ^ manifest.files.keys()):
        why = "the manifest does not list this file" if name in files else "the file is missing"
        raise BundleRefused(name, "layout", why)
    for name, data in files.items():
        listed = manifest.files[name]
        if len(data) != listed.size:
            raise BundleRefused(name, "size", f"{len(data)} bytes", expected=f"{listed.size} bytes")
        if (digest := hashlib.sha256(data).hexdigest()) != listed.sha256:
            raise BundleRefused(name, "SHA-256", digest, expected=listed.sha256)


def _entries(files: dict[str, bytes], size: int) -> list[bytes]:
    envelopes: list[bytes] = []
    for start in range(0, size, tiles.WIDTH):
        width = min(tiles.WIDTH, size - start)
        name = f"log/{tiles.tile_path('entries', start // tiles.WIDTH, width)}"
        entries, used = tiles.decode_entries(files.get(name, b""))
        if len(entries) != width or used != len(files[name]):
            raise BundleRefused(name, "entries", f"{len(entries)} whole entries", expected=f"exactly {width}")
        envelopes += entries
    return envelopes


def _check_root(name: str, root: bytes, signed: Checkpoint) -> None:
    if root != signed.root:
        raise BundleRefused(name, "Merkle root", f"the entries give {root.hex()}", expected=signed.root.hex())


def _check_artifacts(files: dict[str, bytes], index: int, claim: Statement) -> None:
    for kind, digest in artifacts.named_by(claim.predicate).items():
        name = f"artifacts/{digest}"
        if name not in files:
            raise BundleRefused(name, f"statement {index}", f"its {kind} is missing")
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise BundleRefused(name, f"statement {index}", f"this is not the {kind} that it names")


def _check_approvals(files: dict[str, bytes], claims: list[Statement]) -> int:
    """How many statements carry an approval; each verifies."""
    kept = {name.removeprefix("artifacts/"): data for name, data in files.items() if name.startswith("artifacts/")}
    with _refusing("", "operators"):
        known = approvals.circles(claims)
    count = 0
    for index, claim in enumerate(claims):
        with _refusing("", f"approval of statement {index}"):
            count += approvals.check(claim, kept, known)
    return count


def _check_derived(files: dict[str, bytes], derived: dict[str, bytes]) -> None:
    present = {name for name in files if name.startswith(("log/", "certificates/"))}
    for name in sorted(present | derived.keys()):
        if files.get(name) != derived.get(name):
            raise BundleRefused(name, "recomputation", "this file does not follow from the log's entries")


@contextmanager
def _refusing(file: str, check: str) -> Iterator[None]:
    """Whatever a parser or a signature check raises becomes `BundleRefused` with the file's name."""
    try:
        yield
    except FreeholdError as error:
        raise BundleRefused(file, check, error.what, expected=error.expected) from error
    except (ValueError, TypeError, LookupError, AttributeError, msgspec.ValidationError) as error:
        raise BundleRefused(file, check, str(error)) from error
