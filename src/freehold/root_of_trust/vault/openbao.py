"""The vault in OpenBao's KV engine (version 2): secrets lie there, nothing on our disk.

A secret is one KV entry `{"secret": base64}`. Every write is a check-and-set against the version that was read, and the
version before is destroyed after it, so a call that was cut off by a restart can simply be repeated. `destroy` destroys
the data of every version and keeps the entry's metadata, which is what a repeated call reports from. What is left in
OpenBao's own files is under OpenBao's barrier key; it is not shredded as the embedded vault shreds its records.
"""

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import msgspec
from hvac.exceptions import InvalidPath, InvalidRequest

from freehold.root_of_trust.openbao import OpenBao, OpenBaoUnreachable
from freehold.root_of_trust.vault.interface import (
    DestroyedKey,
    RecordReport,
    TamperedRecord,
    VaultError,
    check_path,
)

_ROUNDS = 100
_ONCE_ACTIVE = "do this again once it is active; if it stays so, restore OpenBao from its last raft snapshot"
_ACTIVE = 200
_NOT_ACTIVE = {
    429: "a standby node",
    472: "a recovery node",
    473: "a standby node",
    501: "not initialized",
    503: "sealed",
}
"""Status codes of `/v1/sys/health`."""


class _Version(msgspec.Struct, frozen=True):
    created_time: datetime
    deletion_time: str
    destroyed: bool


class _Entry(msgspec.Struct, frozen=True):
    """KV metadata: `GET /v1/<mount>/metadata/<path>`."""

    current_version: int
    versions: dict[int, _Version]

    @property
    def live(self) -> bool:
        current = self.versions.get(self.current_version)
        return current is not None and not current.destroyed and not current.deletion_time


class OpenBaoVault:
    """A `Vault` in the KV mount `mount`, all of which is ours."""

    def __init__(self, bao: OpenBao, mount: str) -> None:
        self._bao, self._mount = bao, mount

    def __repr__(self) -> str:
        return f"OpenBaoVault({self._bao.address!r}, {self._mount!r})"

    def get(self, path: str) -> bytes | None:
        """See `Vault.get`."""
        return self._read(check_path(path))[0]

    def put(self, path: str, secret: bytes) -> None:
        """See `Vault.put`."""
        self.update(path, lambda _: secret)

    def update(self, path: str, change: Callable[[bytes | None], bytes]) -> None:
        """See `Vault.update`. `change` is called again after each writer who came first."""
        check_path(path)
        for _ in range(_ROUNDS):
            found, version = self._read(path)
            if self._write(path, change(found), version):
                entry = self._entry(path)
                if entry is not None and entry.current_version > version:  # the only one there is never destroyed
                    self._destroy_versions(path, [old for old in _undestroyed(entry) if old <= version])
                return
        raise VaultError(f"others write {path} all the time", remedy="do this again")

    def paths(self, prefix: str = "") -> list[str]:
        """See `Vault.paths`."""
        return [path for path, entry in self._entries(prefix) if entry.live]

    def destroy(self, prefix: str) -> list[DestroyedKey]:
        """See `Vault.destroy`."""
        found = []
        for path, entry in self._entries(check_path(prefix)):
            self._destroy_versions(path, _undestroyed(entry))
            made = entry.versions[entry.current_version].created_time.isoformat()
            name = f"openbao-kv\0{self._mount}\0{path}\0{entry.current_version}\0{made}"
            found.append(
                DestroyedKey(
                    path=path,
                    version=entry.current_version,
                    key_id=hashlib.sha256(name.encode()).hexdigest(),
                    kek_id=self._kek_id,
                )
            )
        return found

    def audit(self) -> list[RecordReport]:
        """See `Vault.audit`. OpenBao authenticates what it stores; what is checked here is that each entry is ours."""
        return [self._report(path, entry) for path, entry in self._entries("") if entry.live]

    @property
    def _kek_id(self) -> str:
        return f"{self._bao.address}/{self._mount}"

    def _report(self, path: str, entry: _Entry) -> RecordReport:
        problem = None
        try:
            check_path(path)
            self._read(path)
        except VaultError as error:
            problem = error.what
        at = int(entry.versions[entry.current_version].created_time.timestamp())
        return RecordReport(
            path=path,
            version=entry.current_version,
            at=at,
            kek_id=self._kek_id,
            recoverable=None,
            problem=problem,
        )

    def _read(self, path: str) -> tuple[bytes | None, int]:
        """The secret, and the version to check against: 0 for an entry that never was."""

        def read(client: Any) -> Any:
            try:
                return client.secrets.kv.v2.read_secret_version(
                    path, mount_point=self._mount, raise_on_deleted_version=True
                )["data"]
            except InvalidPath as error:  # 404: with the metadata of a version that was deleted, or without
                if error.errors:
                    raise  # no such engine, say: then nothing is known of any entry
                return (error.json or {}).get("data")

        answer = self._bao.call(f"read {path}", read)
        if (answer is None or answer["data"] is None) and (known := self._known_all_the_same(path)) is not None:
            answer = self._bao.call(f"read {path}", read)  # somebody may have stored it in between
            if answer is None or (answer["data"] is None and known.live):
                raise OpenBaoUnreachable(
                    f"OpenBao at {self._bao.address} says that there is no {path}, and knows of its version "
                    f"{known.current_version}",
                    remedy=_ONCE_ACTIVE,
                )
        if answer is None:
            return None, 0
        version = int(answer["metadata"]["version"])
        if answer["data"] is None:
            return None, version
        try:
            return b64decode(answer["data"]["secret"], validate=True), version
        except (KeyError, TypeError, ValueError):
            raise TamperedRecord(
                f"the entry {path} (version {version}) in {self._kek_id} was not written by Freehold",
                remedy="find out who writes there; the mount belongs to the vault alone",
            ) from None

    def _known_all_the_same(self, path: str) -> _Entry | None:
        """What OpenBao knows of an entry's versions of which it just said that there is no secret. That is believed of
        the active node only, and only if it knows of no live version either: it would mean that nobody knows a BMC's
        password. Raises `CustodyUnavailable`."""
        self._require_active(f"there is no {path}")
        entry = self._entry(path)
        return entry if entry is not None and entry.versions else None

    def _require_active(self, word: str) -> None:
        """A standby node may be behind, and one that has just started is a standby node. Raises
        `CustodyUnavailable`."""
        status = self._bao.call(
            f"tell whether {word}", lambda client: client.sys.read_health_status(method="HEAD").status_code
        )
        if status != _ACTIVE:
            state = _NOT_ACTIVE.get(status, f"not ready (health {status})")
            raise OpenBaoUnreachable(
                f"OpenBao at {self._bao.address} is {state}, so its word that {word} does not count",
                remedy=_ONCE_ACTIVE,
            )

    def _write(self, path: str, secret: bytes, version: int) -> bool:
        """False if `version` is not the current one any more."""

        def write(client: Any) -> Any:
            try:
                return client.secrets.kv.v2.create_or_update_secret(
                    path, {"secret": b64encode(secret).decode("ascii")}, cas=version, mount_point=self._mount
                )
            except InvalidRequest as error:
                if "check-and-set" in str(error):
                    return None
                raise

        answer = self._bao.call(f"write {path}", write)
        if answer is None:
            return False
        if _version_of(answer) != version + 1:
            raise OpenBaoUnreachable(
                f"OpenBao at {self._bao.address} does not say that it has stored version {version + 1} of {path}",
                remedy=_ONCE_ACTIVE,
            )
        return True

    def _destroy_versions(self, path: str, versions: list[int]) -> None:
        if versions:
            self._bao.call(
                f"destroy {path}",
                lambda client: client.secrets.kv.v2.destroy_secret_versions(path, versions, mount_point=self._mount),
            )

    def _entries(self, prefix: str) -> Iterator[tuple[str, _Entry]]:
        """Every entry at or below `prefix` that has or had a version, sorted."""
        for path in sorted({prefix, *self._list(prefix)} - {""}):
            if (entry := self._entry(path)) is not None and entry.versions:
                yield path, entry

    def _list(self, folder: str) -> Iterator[str]:
        def names(client: Any) -> list[str]:
            try:
                answer = client.secrets.kv.v2.list_secrets(folder, mount_point=self._mount)
            except InvalidPath as error:
                if error.errors:
                    raise
                return []
            return [str(name) for name in answer["data"]["keys"]]

        what = f"list {folder or 'all secrets'}"
        found = self._bao.call(what, names)
        if not found:  # else a destruction could find nothing to destroy
            self._require_active(f"nothing is in {folder or 'the vault'}")
            found = self._bao.call(what, names)
        for name in found:
            path = f"{folder}/{name}" if folder else name
            if name.endswith("/"):
                yield from self._list(path.rstrip("/"))
            else:
                yield path

    def _entry(self, path: str) -> _Entry | None:
        def metadata(client: Any) -> Any:
            try:
                return client.secrets.kv.v2.read_secret_metadata(path, mount_point=self._mount)["data"]
            except InvalidPath as error:
                if error.errors:
                    raise
                return None

        answer = self._bao.call(f"read the versions of {path}", metadata)
        return None if answer is None else msgspec.convert(answer, _Entry, strict=False)


def _version_of(written: Any) -> int | None:
    """The version that the answer to a write names; None if it names none."""
    try:
        return int(written["data"]["version"])
    except (KeyError, TypeError, ValueError):
        return None


def _undestroyed(entry: _Entry) -> list[int]:
    return sorted(number for number, version in entry.versions.items() if not version.destroyed)
