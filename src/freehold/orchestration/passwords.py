"""The BMC passwords of a site: two slots a server in the vault, and an index of digests that shows which are the same.

    bmc/<server>/current, .../pending   the credentials: the only truth about who has which password
    bmc/<server>/kept                   generated ones that are neither: a slow BMC may yet go over to one of them
    former/bmc/<server>/<UNIX time>/…   those of servers that are no longer declared
    site/audit-key                      the key of the digests
    site/passwords/<two hex digits>     {digest: servers}, for the digests that begin with them
    site/passwords/complete             is there once every credential of before has been entered

A digest is HMAC-SHA-256 of the password. It is entered *before* its password is stored, and taken out after the
password is gone. So a crash may leave an entry too many, never one too few; and since whoever finds an entry looks at
that server's credential too, an entry too many says nothing. The number of servers does not count in any of this.
"""

import asyncio
import hashlib
import hmac
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

import msgspec

from freehold.model.errors import FreeholdError
from freehold.model.resources import ERASED, FACTORY, is_factory_ref
from freehold.orchestration.view import ServerView
from freehold.out_of_band.credential_slots import StagedCredential, keeping, superseded
from freehold.out_of_band.redfish import Credential
from freehold.root_of_trust.vault import TamperedRecord, Vault, VaultError

KEY = "site/audit-key"
INDEX = "site/passwords"
COMPLETE = f"{INDEX}/complete"

T = TypeVar("T")
_Bucket = dict[str, list[str]]


class ChangedMeanwhile(FreeholdError):
    """What is in the vault is not what this change of a password began with. What it put there is kept."""


class PasswordIndex:
    """Blocking, like the vault. Threads and processes may use the index of one vault at the same time."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def digest(self, password: str) -> str:
        """Shows whether two passwords are the same, to whoever may use the vault, without showing them."""
        return hmac.digest(self._key(), password.encode(), hashlib.sha256).hex()

    def add(self, server: str, password: str) -> None:
        """To be called before the server's credential is stored."""
        self._add([(server, password)])

    def remove(self, server: str, password: str) -> None:
        """To be called after a credential is gone. Does nothing while the server has that password still."""
        digest = self.digest(password)
        if digest in self._digests_of(server) or server not in self._bucket(digest).get(digest, ()):
            return

        def without(stored: bytes | None) -> bytes:
            bucket = _decoded(stored)
            left = [name for name in bucket.pop(digest, ()) if name != server]
            return msgspec.json.encode(bucket | ({digest: left} if left else {}))

        self._vault.update(_path(digest), without)

    def shared_with(self, server: str, password: str) -> tuple[str, ...]:
        """The other servers whose BMC has, or may have, this password."""
        self.complete()
        digest = self.digest(password)
        others = (name for name in self._bucket(digest).get(digest, ()) if name != server)
        return tuple(name for name in others if digest in self._digests_of(name))

    def complete(self) -> None:
        """Enter what a vault without an index holds, once."""
        if self._vault.get(COMPLETE) is not None:
            return
        servers = dict.fromkeys(path.split("/")[1] for path in self._vault.paths("bmc"))
        self._add([(server, password) for server in servers for password in self.passwords_of(server)])
        self._vault.put(COMPLETE, b"1")

    def _add(self, entries: Iterable[tuple[str, str]]) -> None:
        wanted: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for server, password in entries:
            digest = self.digest(password)
            if server not in self._bucket(digest).get(digest, ()):
                wanted[_path(digest)].append((digest, server))
        for path, missing in wanted.items():

            def with_missing(stored: bytes | None, missing: list[tuple[str, str]] = missing) -> bytes:
                bucket = _decoded(stored)
                for digest, server in missing:
                    bucket[digest] = sorted({*bucket.get(digest, ()), server})
                return msgspec.json.encode(bucket)

            self._vault.update(path, with_missing)

    def _key(self) -> bytes:
        found = self._vault.get(KEY)
        if found is None:
            self._vault.update(KEY, lambda stored: stored or secrets.token_bytes(32))
            found = self._vault.get(KEY)
        assert found is not None
        return found

    def _bucket(self, digest: str) -> _Bucket:
        return _decoded(self._vault.get(_path(digest)))

    def _digests_of(self, server: str) -> set[str]:
        return {self.digest(password) for password in self.passwords_of(server)}

    def passwords_of(self, server: str) -> list[str]:
        current, pending = self._vault.get(f"bmc/{server}/current"), self._vault.get(f"bmc/{server}/pending")
        passwords = [msgspec.json.decode(current, type=Credential).password] if current is not None else []
        if pending is not None:
            passwords.append(msgspec.json.decode(pending, type=StagedCredential).credential.password)
        return passwords


def _path(digest: str) -> str:
    return f"{INDEX}/{digest[:2]}"


def _decoded(stored: bytes | None) -> _Bucket:
    return msgspec.json.decode(stored, type=_Bucket) if stored is not None else {}


def _kept(stored: bytes | None) -> tuple[StagedCredential, ...]:
    return msgspec.json.decode(stored, type=tuple[StagedCredential, ...]) if stored is not None else ()


def _same(stored: bytes, staged: StagedCredential) -> bool:
    return msgspec.json.decode(stored, type=StagedCredential).credential == staged.credential


def set_aside(vault: Vault, server: str, now: float) -> None:
    """The server is no longer declared: its BMC's passwords are kept, but not under a name that another may get."""
    index = PasswordIndex(vault)
    before = index.passwords_of(server)
    for slot in ("current", "pending"):
        if (stored := vault.get(f"bmc/{server}/{slot}")) is not None:
            vault.put(f"{former(server)}/{now:.0f}/{slot}", stored)
    for number, each in enumerate(_kept(vault.get(f"bmc/{server}/kept"))):
        vault.put(f"{former(server)}/{now:.0f}/kept-{number}", msgspec.json.encode(each.credential))
    vault.destroy(f"bmc/{server}")
    for password in before:
        index.remove(server, password)


def former(server: str) -> str:
    """Where the vault keeps the passwords of BMCs whose servers had this name."""
    return f"former/bmc/{server}"


def factory_ref(ref: str, server: str) -> str:
    """`ref`, if a document may name it. Checked again at use: the store may be older than the rule."""
    if not is_factory_ref(ref):
        raise FreeholdError(
            f"its document names {ref} of the vault as the credential of its BMC; nothing was sent to it",
            server=server,
            expected=f"a vaultRef below {FACTORY}/",
            remedy=f"`freehold credential set --ref {FACTORY}/NAME`, and declare that",
        )
    return ref


def recorded(vault: Vault, server: str) -> list[Credential]:
    """What may open the BMC, the likeliest first: the current password, one whose change was interrupted, earlier ones,
    and if the server is no longer declared, those that it and others of its name had. Raises `FreeholdError` if there
    is none."""
    current, pending = vault.get(f"bmc/{server}/current"), vault.get(f"bmc/{server}/pending")
    found = [msgspec.json.decode(current, type=Credential)] if current is not None else []
    if pending is not None:
        found.append(msgspec.json.decode(pending, type=StagedCredential).credential)
    found += [each.credential for each in _kept(vault.get(f"bmc/{server}/kept"))]
    for path in reversed(vault.paths(former(server))):
        if (stored := vault.get(path)) is not None:
            staged = path.endswith("/pending")
            found.append(
                msgspec.json.decode(stored, type=StagedCredential).credential
                if staged
                else msgspec.json.decode(stored, type=Credential)
            )
    if not found:
        raise FreeholdError("the vault holds no credential for its BMC yet", server=server)
    return list(dict.fromkeys(found))


class VaultSlots:
    """`CredentialSlots` on the vault. Committing keeps the old password and writes current before it destroys pending,
    so that at every crash point the working password is in one of them; the index follows."""

    def __init__(self, vault: Vault, view: ServerView) -> None:
        self._vault, self._view, self._index = vault, view, PasswordIndex(vault)
        self._path = f"bmc/{view.name}"

    async def current(self) -> Credential | None:
        """The vault's credential; before the take-over, the one that the Server document declares."""
        stored = await asyncio.to_thread(self._vault.get, f"{self._path}/current")
        if stored is not None:
            return msgspec.json.decode(stored, type=Credential)
        declared = self._view.spec.bmc.credential
        if declared.vault_ref is not None:
            kept = await asyncio.to_thread(self._vault.get, factory_ref(declared.vault_ref, self._view.name))
            return msgspec.json.decode(kept, type=Credential) if kept is not None else None
        if declared.username is None or declared.password is None:
            return None
        if declared.password == ERASED:
            raise FreeholdError(
                "the vault holds no credential for its BMC, and the factory password of its document was erased after"
                " the take-over; nothing was sent to it",
                server=self._view.name,
                remedy=f"`freehold credential set {self._view.name}`, or restore the vault",
            )
        return Credential(declared.username, declared.password)

    async def pending(self) -> StagedCredential | None:
        stored = await asyncio.to_thread(self._vault.get, f"{self._path}/pending")
        return msgspec.json.decode(stored, type=StagedCredential) if stored is not None else None

    async def kept(self) -> tuple[StagedCredential, ...]:
        return _kept(await asyncio.to_thread(self._vault.get, f"{self._path}/kept"))

    async def stage(self, staged: StagedCredential) -> None:
        await asyncio.to_thread(self._stage, staged)

    async def commit(self, staged: StagedCredential) -> None:
        await asyncio.to_thread(self._commit, staged)

    async def discard(self, staged: StagedCredential) -> None:
        await asyncio.to_thread(self._discard, staged)

    async def count(self, kept: StagedCredential) -> None:
        await asyncio.to_thread(
            self._update_kept,
            lambda before: tuple(kept if each.credential == kept.credential else each for each in before),
        )

    async def replace(self, credential: Credential) -> None:
        """A person says that `credential` is the current one. What was pending is kept: the BMC may have it, or get
        it."""
        await asyncio.to_thread(self._replace, credential)

    def _stage(self, staged: StagedCredential) -> None:
        def unless_another(stored: bytes | None) -> bytes:
            if stored is not None and not _same(stored, staged):
                raise self._another()
            return msgspec.json.encode(staged)

        self._index.add(self._view.name, staged.credential.password)
        try:
            self._vault.update(f"{self._path}/pending", unless_another)
        except ChangedMeanwhile:
            self._keep(staged)  # a record of a later try: the BMC may have it
            raise

    def _commit(self, staged: StagedCredential) -> None:
        self._require(staged)
        before = self._vault.get(f"{self._path}/current")
        current = msgspec.json.decode(before, type=Credential) if before is not None else None
        self._keep(*superseded(current, staged))

        def unless_another(stored: bytes | None) -> bytes:
            if stored != before:
                raise self._another()
            return msgspec.json.encode(staged.credential)

        self._set(staged.credential, lambda: self._vault.update(f"{self._path}/current", unless_another))

    def _discard(self, staged: StagedCredential) -> None:
        self._require(staged)
        self._keep(staged)
        self._vault.destroy(f"{self._path}/pending")
        self._index.remove(self._view.name, staged.credential.password)

    def _require(self, staged: StagedCredential) -> None:
        stored = self._vault.get(f"{self._path}/pending")
        if stored is None or not _same(stored, staged):
            self._keep(staged)
            raise self._another()

    def _another(self) -> ChangedMeanwhile:
        return ChangedMeanwhile(
            "somebody else changed the credential of its BMC in the vault while its password was being changed",
            server=self._view.name,
            expected="the pending credential of this change",
            remedy="nothing is lost: what the BMC may have is kept, and is tried if it refuses the one in the vault",
        )

    def _keep(self, *credentials: StagedCredential) -> None:
        if any(each.credential.generated for each in credentials):
            self._update_kept(lambda before: keeping(before, *credentials))

    def _update_kept(self, change: Callable[[tuple[StagedCredential, ...]], tuple[StagedCredential, ...]]) -> None:
        self._vault.update(f"{self._path}/kept", lambda stored: msgspec.json.encode(change(_kept(stored))))

    def _replace(self, credential: Credential) -> None:
        if self._readable("kept", tuple[StagedCredential, ...]) is None:
            self._vault.destroy(f"{self._path}/kept")
        given = StagedCredential(credential=credential)
        old = superseded(self._readable("current", Credential), given)
        pending = self._readable("pending", StagedCredential)
        self._keep(*filter(None, (pending, *old)))
        pending = self._take_the_place_of_pending(given) or pending
        self._keep(*filter(None, (pending,)))
        stored = msgspec.json.encode(credential)
        self._set(credential, lambda: self._vault.put(f"{self._path}/current", stored))
        if pending is not None:
            self._index.remove(self._view.name, pending.credential.password)

    def _take_the_place_of_pending(self, given: StagedCredential) -> StagedCredential | None:
        """While `given` is pending, no change of a password can stage another, which would then be destroyed unkept.
        Returns what was pending at that moment."""
        found: list[StagedCredential] = []

        def taking(stored: bytes | None) -> bytes:
            if stored is not None:
                with suppress(msgspec.MsgspecError):
                    found.append(msgspec.json.decode(stored, type=StagedCredential))
            return msgspec.json.encode(given)

        try:
            self._vault.update(f"{self._path}/pending", taking)
        except TamperedRecord:
            self._vault.put(f"{self._path}/pending", msgspec.json.encode(given))
        return found[-1] if found else None

    def _readable(self, slot: str, kind: type[T]) -> T | None:
        """None too for what cannot be read, and so cannot be kept: a person may replace it."""
        with suppress(TamperedRecord, msgspec.MsgspecError):
            if (stored := self._vault.get(f"{self._path}/{slot}")) is not None:
                return msgspec.json.decode(stored, type=kind)
        return None

    def _set(self, credential: Credential, write: Callable[[], None]) -> None:
        """`write` makes it current."""
        before: list[str] = []
        with suppress(VaultError, msgspec.MsgspecError):  # what cannot be read may be replaced; its entry says nothing
            before = self._index.passwords_of(self._view.name)
        self._index.add(self._view.name, credential.password)
        write()
        self._vault.destroy(f"{self._path}/pending")
        for password in before:
            self._index.remove(self._view.name, password)
