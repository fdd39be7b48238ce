"""What every vault can do, and how it fails."""

import re
from collections.abc import Callable
from typing import Protocol

import msgspec

from freehold.model.errors import FreeholdError

_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}(/[A-Za-z0-9][A-Za-z0-9._:-]{0,99}){0,7}\Z")


class VaultError(FreeholdError):
    """The vault cannot be used as asked."""


class WrongKeyEncryptionKey(VaultError):
    """The vault was made with another key-encryption key."""


class TamperedRecord(VaultError):
    """A record that does not decrypt: changed, moved, or cut."""


class DestroyedKey(msgspec.Struct, frozen=True, kw_only=True):
    """For the key-destruction statement. Neither field helps to recover the key.

    `key_id`: SHA-256, hex, of the wrapped key and its context; in OpenBao, of the name of what was destroyed. `kek_id`:
    which KEK had wrapped it, or which OpenBao had it.
    """

    path: str
    version: int
    key_id: str
    kek_id: str


class RecordReport(msgspec.Struct, frozen=True, kw_only=True):
    """One record without its secret. `at`: when the secret was written (UNIX seconds), None if format 1 did not say.

    `recoverable`: whether two people can recover it without the KEK; None where that is OpenBao's own business.
    `problem`: why it is not a record of this vault, in words.
    """

    path: str
    version: int
    at: int | None
    kek_id: str
    recoverable: bool | None
    problem: str | None = None


class Vault(Protocol):
    """Blocking. Threads may share one. Paths are up to 8 names of letters, digits and `._:-`.

    Every call raises `VaultError` for what cannot be (`TamperedRecord` for what must not be), and `CustodyUnavailable`
    if token, TPM or server are out of reach: then nothing is lost, and the caller may repeat the same call.
    """

    def get(self, path: str) -> bytes | None:
        """The secret at `path`, or None if there is none (any more)."""

    def put(self, path: str, secret: bytes) -> None:
        """Stores `secret` at `path`. On return it is durable, and the version before it is destroyed."""

    def update(self, path: str, change: Callable[[bytes | None], bytes]) -> None:
        """`put(path, change(get(path)))` with nobody in between. `change` may be called again, if somebody was."""

    def paths(self, prefix: str = "") -> list[str]:
        """The paths that hold a secret, sorted: `prefix` itself and all below it."""

    def destroy(self, prefix: str) -> list[DestroyedKey]:
        """Destroys every version of `prefix` and of all below it.

        Can be repeated after a crash: what an earlier call destroyed is reported until its path is reused.
        """

    def audit(self) -> list[RecordReport]:
        """Every record, read and checked; sorted by path."""


def is_path(path: str) -> bool:
    return _PATH.match(path) is not None


def check_path(path: str) -> str:
    """`path`, or `VaultError`."""
    if not is_path(path):
        raise VaultError(f"{path!r} is not a path of the vault", expected="up to 8 names of letters, digits and ._:-")
    return path


def is_below(path: str, prefix: str) -> bool:
    """Whether `path` is `prefix` or below it; the empty prefix is above all."""
    return not prefix or path == prefix or path.startswith(prefix + "/")
