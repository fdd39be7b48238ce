"""A log's signed word on how many entries it has and what their root is: C2SP tlog-checkpoint in a C2SP signed note.

freehold.dev/site/lab
42
<base64 of the root>
<empty line>
— freehold.dev/site/lab <base64 of 4-byte key hash and 64-byte Ed25519 signature>
"""

import hashlib
import re

import msgspec

from freehold.evidence import canonical
from freehold.evidence.signer import PublicKey, Signer
from freehold.model.errors import FreeholdError

_ALGORITHM_ED25519 = b"\x01"
_ORIGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9./_-]{0,199}\Z")
_SIZE = re.compile(r"(0|[1-9][0-9]{0,18})\Z")


class CheckpointRefused(FreeholdError):
    """A checkpoint that is malformed, of another log, or not signed by the expected key."""


class Checkpoint(msgspec.Struct, frozen=True):
    """`origin` names the log (a schema-less URL); `size` counts entries; `root` is 32 bytes."""

    origin: str
    size: int
    root: bytes

    def body(self) -> bytes:
        """The signed text, its final newline included."""
        return f"{self.origin}\n{self.size}\n{canonical.b64encode(self.root)}\n".encode()


def check_origin(origin: str) -> str:
    """`origin` if it can name a log and a note key: no spaces, no plus (signed-note). Raises `CheckpointRefused`."""
    if not _ORIGIN.match(origin) or origin.startswith("DSSEv1"):  # one key signs both kinds of text
        raise CheckpointRefused(f"{origin!r} cannot name a log", expected="letters, digits and ./_-, up to 200")
    return origin


def sign(checkpoint: Checkpoint, signer: Signer) -> bytes:
    """The note: body, empty line, one signature line."""
    check_origin(checkpoint.origin)
    body = checkpoint.body()
    public = PublicKey.from_pem(signer.public_key_pem)
    signature = canonical.b64encode(_key_hash(checkpoint.origin, public) + signer.sign(body))
    return body + f"\n— {checkpoint.origin} {signature}\n".encode()


def verify(note: bytes, origin: str, key: PublicKey) -> Checkpoint:
    """The checkpoint in `note`, signed by `key` and by no one else, or `CheckpointRefused`."""
    try:
        lines = note.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointRefused("the checkpoint is not UTF-8") from error
    if len(lines) != 6 or lines[3] or lines[5]:
        raise CheckpointRefused("the checkpoint is not three lines, an empty line and one signature")
    if lines[0] != origin:
        raise CheckpointRefused(f"the checkpoint is of log {lines[0]!r}", expected=origin)
    mark, _, rest = lines[4].partition(" ")
    name, _, encoded = rest.partition(" ")
    if mark != "—" or name != origin or not _SIZE.match(lines[1]):
        raise CheckpointRefused("a line of the checkpoint is malformed")
    try:
        blob, root = canonical.b64decode(encoded), canonical.b64decode(lines[2])
    except canonical.NotCanonicalError as error:
        raise CheckpointRefused(f"the checkpoint has {error}") from error
    checkpoint = Checkpoint(origin, int(lines[1]), root)
    if blob[:4] != _key_hash(origin, key) or not key.verifies(blob[4:], checkpoint.body()) or len(root) != 32:
        raise CheckpointRefused("the checkpoint's signature does not match", expected=f"key {key.key_id}")
    return checkpoint


def verifier_key(origin: str, key: PublicKey) -> str:
    """The key as other note tools take it: `<name>+<hash>+<base64 of algorithm and key>` (signed-note)."""
    return f"{origin}+{_key_hash(origin, key).hex()}+{canonical.b64encode(_ALGORITHM_ED25519 + key.raw)}"


def _key_hash(origin: str, key: PublicKey) -> bytes:
    """SHA-256(name || LF || 0x01 || key), first 4 bytes (signed-note, "Ed25519 signatures")."""
    return hashlib.sha256(origin.encode() + b"\n" + _ALGORITHM_ED25519 + key.raw).digest()[:4]
