"""The vault of one site: opened by whatever key it was given, and given another one.

Changing the key takes three steps, each of which may be the last before a crash:

    custody.next.json names the new key -> the vault's header switches -> custody.json names it, the old key file goes

Whoever opens the vault looks which of the two files the header means, and finishes what was begun.
"""

import ctypes
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from freehold.evidence import durable
from freehold.root_of_trust import custody
from freehold.root_of_trust.custody import CUSTODY, DEFAULT_KEY_FILE, NEXT, Choice, CustodyRefused, KvPlace
from freehold.root_of_trust.kek import FileKek, KeyEncryptionKey, PassphraseKek
from freehold.root_of_trust.vault import EmbeddedVault, Vault, VaultError, read_header

logger = logging.getLogger(__name__)
_PR_SET_DUMPABLE = 4
_NEEDS_PEOPLE = (custody.Pkcs11Place, custody.TpmPlace, custody.TransitPlace)


def directory_of(state: Path) -> Path:
    return state / "vault"


def exists(state: Path) -> bool:
    """Whether this site has a vault, wherever it is."""
    return (directory_of(state) / "vault.json").exists() or isinstance(_place(state / CUSTODY), KvPlace)


def open_vault(state: Path) -> Vault:
    """The site's vault. A site that chose none gets one under a key file, for development, and is told so.

    Raises `CustodyUnavailable` if token, TPM or server are out of reach, `VaultError`, `KeyFileRefused`.
    """
    _keep_out_of_core_files()
    place = custody.read_place(state / CUSTODY)
    if isinstance(place, KvPlace):
        return open_kv(place)
    if (directory_of(state) / "vault.json").exists():
        return open_embedded(state)
    if place is not None:
        raise CustodyRefused(
            f"{state / CUSTODY} names a key, but there is no vault: making it was cut off",
            remedy="repeat `freehold vault init`",
        )
    file = state / DEFAULT_KEY_FILE
    if not file.exists():
        FileKek.create(file)
        logger.warning("made %s: whoever reads this file reads the vault; keep it off backups", file)
    kek = FileKek.open(file)
    _warn(kek)
    return EmbeddedVault.create(directory_of(state), kek)


def open_embedded(state: Path) -> EmbeddedVault:
    """The vault in the state directory; finishes a change of its key that a crash cut short."""
    directory = directory_of(state)
    place = custody.place_of(state, read_header(directory).kek_id)
    kek = custody.open_kek(state, place)
    _warn(kek)
    vault = EmbeddedVault.open(directory, kek)
    _finish(state, vault)
    vault.sweep()
    return vault


def open_kv(place: KvPlace, secret_id: custody.Secret = custody.given_secret_id) -> Vault:
    from freehold.root_of_trust.vault.openbao import OpenBaoVault

    return OpenBaoVault(custody.connect(place.server, secret_id), place.mount)


def found(state: Path, choice: Choice, people: Mapping[str, str]) -> EmbeddedVault:
    """A new vault under a new key. A creation that was cut off can be repeated."""
    _keep_out_of_core_files()
    _refuse_second(state)
    _require_people(choice, people)
    durable.make_directory(state, 0o700)
    place, kek = choice.make()
    custody.write_place(state / CUSTODY, place)
    _warn(kek)
    return EmbeddedVault.create(directory_of(state), kek, people)


def found_kv(state: Path, place: KvPlace, secret_id: custody.Secret = custody.given_secret_id) -> Vault:
    """From now on the vault is in OpenBao. Refuses a mount that holds secrets already, or cannot be listed."""
    _refuse_second(state)
    vault = open_kv(place, secret_id)
    if there := vault.paths():
        raise VaultError(
            f"the KV mount {place.mount} of OpenBao at {place.server.address} holds {len(there)} secrets already",
            expected="a mount of this site's own",
            remedy="make one: `bao secrets enable -path=freehold kv-v2`",
        )
    durable.make_directory(state, 0o700)
    custody.write_place(state / CUSTODY, place)
    return vault


def rekey(state: Path, vault: EmbeddedVault, choice: Choice, people: Mapping[str, str] | None) -> None:
    """Gives an opened or recovered vault another key, and new people unless None keeps those of before.

    Raises and leaves all as it was if the new key cannot be made, or a record cannot be read.
    """
    kept = vault.header.recovery.people if vault.header.recovery else {}
    _require_people(choice, kept if people is None else people)
    _finish(state, vault)  # what another change left to do: then a key that NEXT names opens nothing
    place, kek = choice.make()
    custody.forget(state, _place(state / NEXT))
    custody.write_place(state / NEXT, place)
    vault.rekey(kek, people)
    _finish(state, vault)
    _warn(kek)


def recover(state: Path, identities: Sequence[str]) -> EmbeddedVault:
    """Opens the vault with the age identities of two people; `rekey` it then. Raises `RecoveryRefused`."""
    _keep_out_of_core_files()
    return EmbeddedVault.recover(directory_of(state), identities)


def stale_key_files(state: Path) -> list[str]:
    """Key files that neither custody.json nor the default means: a crash's leftovers."""
    places = [_place(state / CUSTODY) or custody.FilePlace(key_id=""), _place(state / NEXT)]
    meant = {place.file for place in places if isinstance(place, custody.FilePlace | custody.PassphrasePlace)}
    return sorted(file.name for file in state.iterdir() if custody.is_key_file(file.name) and file.name not in meant)


def _finish(state: Path, vault: EmbeddedVault) -> None:
    place = _place(state / NEXT)
    if place is None or isinstance(place, KvPlace) or place.key_id != vault.header.kek_id:
        return
    old = _place(state / CUSTODY)
    if old != place:
        custody.forget(state, old or custody.FilePlace(key_id=""))
    custody.write_place(state / CUSTODY, place)
    durable.remove(state / NEXT)


def _place(path: Path) -> custody.Place | None:
    """As `read_place`, but a file that nobody can read names nothing."""
    try:
        return custody.read_place(path)
    except CustodyRefused:
        return None


def _refuse_second(state: Path) -> None:
    if exists(state):
        raise VaultError(
            f"{state} has a vault already", remedy="give it another key: `freehold vault rekey`; or use another --state"
        )


def _require_people(choice: Choice, people: Mapping[str, str]) -> None:
    if issubclass(choice.kind, _NEEDS_PEOPLE) and len(people) < 2:
        raise VaultError(
            "a key that cannot be copied can be lost, and everything with it",
            expected="two people who can recover together",
            remedy="name them: --recovery alice=age1… --recovery bob=age1…",
        )


def _warn(kek: KeyEncryptionKey) -> None:
    if isinstance(kek, FileKek | PassphraseKek):
        logger.warning("%s", kek.warning)


def _keep_out_of_core_files() -> None:
    """prctl(2): no core file of this process, and no other process of this user may read its memory."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
