"""Which key opens the vault: `custody.json` beside it, and how a key of each kind is made and opened.

The file is public and says where the key is, never what it is. It is a pointer that nobody trusts: the key proves
itself by opening the vault's authenticated header. So a person may correct by hand what moved, such as a module's path
or a server's address. `custody.next.json` is there while `rekey` is at work; the vault's header says which one counts.
"""

import re
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import msgspec

from freehold.evidence import durable
from freehold.model.errors import FreeholdError
from freehold.root_of_trust.kek import FileKek, KeyEncryptionKey, PassphraseKek
from freehold.root_of_trust.private_file import given_secret

if TYPE_CHECKING:
    from freehold.root_of_trust.openbao import OpenBao

CUSTODY, NEXT = "custody.json", "custody.next.json"
DEFAULT_KEY_FILE = "vault.key"
_KEY_FILE = re.compile(r"vault(\.key|-[0-9a-f]{8}\.(key|scrypt))\Z")
Secret: TypeAlias = Callable[[], str]


class CustodyRefused(FreeholdError):
    """A description of the key's place that cannot be used."""


class _Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", kw_only=True):
    """`key_id`: of the key-encryption key, as the vault's header names it."""

    key_id: str


class FilePlace(_Place, frozen=True, tag="file"):
    """Development: `file` lies in the state directory."""

    file: str = DEFAULT_KEY_FILE


class PassphrasePlace(_Place, frozen=True, tag="passphrase"):
    """Development: `file` has the parameters of scrypt."""

    file: str


class Pkcs11Place(_Place, frozen=True, tag="pkcs11"):
    """`module`: the token's shared library; `token` and `serial`: its label and serial number."""

    module: str
    token: str
    serial: str


class TpmPlace(_Place, frozen=True, tag="tpm"):
    """The sealed object of the controller's TPM, under PolicyPCR(sha256:7)."""

    public: bytes
    private: bytes


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An OpenBao server. `ca`: path of the operator's CA certificates (PEM); `role_id`: of our AppRole, no secret."""

    address: str
    ca: str
    role_id: str


class TransitPlace(_Place, frozen=True, tag="openbao"):
    """The key `key` of a transit engine."""

    server: Server
    mount: str
    key: str


class KvPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="openbao-kv"):
    """No key-encryption key of ours: the whole vault is in the KV engine of OpenBao."""

    server: Server
    mount: str


KekPlace: TypeAlias = FilePlace | PassphrasePlace | Pkcs11Place | TpmPlace | TransitPlace
Place: TypeAlias = KekPlace | KvPlace
Made: TypeAlias = tuple[KekPlace, KeyEncryptionKey]


class Choice(NamedTuple):
    """A key that is to be made: its kind, known before, and how."""

    kind: type[KekPlace]
    make: Callable[[], Made]


def given_pin() -> str:
    """Raises `KeyFileRefused`, like the next two."""
    return given_secret("freehold-vault-pin", "FREEHOLD_VAULT_PIN_FILE", "PIN of the PKCS#11 token")


def given_passphrase() -> str:
    return given_secret("freehold-vault-passphrase", "FREEHOLD_VAULT_PASSPHRASE_FILE", "passphrase of the vault")


def given_secret_id() -> str:
    return given_secret("freehold-openbao-secret-id", "FREEHOLD_OPENBAO_SECRET_ID_FILE", "secret id of the AppRole")


# ---- the file


def read_place(path: Path) -> Place | None:
    """None if there is no such file. Raises `CustodyRefused`."""
    try:
        place: Place = msgspec.json.decode(path.read_bytes(), type=Place)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise CustodyRefused(
            f"{path} does not say where the vault's key is: {error}", remedy="correct it, or restore it from a copy"
        ) from None
    if path.stat().st_mode & 0o022:
        raise CustodyRefused(
            f"others can write {path}, which says what library or server gets the vault's PIN",
            expected="mode 0600",
            remedy=f"check its content, then chmod 600 {path}",
        )
    return place


def write_place(path: Path, place: Place) -> None:
    durable.replace(path, msgspec.json.format(msgspec.json.encode(place), indent=2) + b"\n", 0o600)


def place_of(state: Path, kek_id: str) -> KekPlace:
    """Where the key `kek_id` of the vault's header is. Raises `CustodyRefused` if neither file says so."""
    names = []
    for name in (CUSTODY, NEXT):
        place = read_place(state / name)
        if place is None:
            continue
        if not isinstance(place, KvPlace) and place.key_id == kek_id:
            return place
        names.append(name)
    if not names:  # a site of the days before custody.json, or one that never chose
        return FilePlace(key_id=kek_id)
    raise CustodyRefused(
        f"{state} holds a vault under the key {kek_id}, but {' and '.join(names)} speak of another key",
        remedy=f"restore {CUSTODY} from a copy; or recover with two people: `freehold vault recover`",
    )


# ---- the keys


def open_kek(state: Path, place: KekPlace) -> KeyEncryptionKey:
    """Opens the key; PIN, passphrase and secret id come from where `given_…` finds them. Raises `CustodyUnavailable` if
    it is out of reach, `KeyFileRefused` for files that are missing or open to others."""
    match place:
        case FilePlace():
            return FileKek.open(_inside(state, place.file))
        case PassphrasePlace():
            return PassphraseKek.open(_inside(state, place.file), given_passphrase())
        case Pkcs11Place():
            from freehold.root_of_trust.kek.pkcs11 import Pkcs11Kek

            return Pkcs11Kek.open(place.module, place.token, place.serial, place.key_id, given_pin)
        case TpmPlace():
            from freehold.root_of_trust.kek.tpm import TpmSealedKek

            return TpmSealedKek.open(place.public, place.private)
        case TransitPlace():
            from freehold.root_of_trust.kek.transit import TransitKek

            return TransitKek.open(connect(place.server), place.mount, place.key, place.key_id)


def connect(server: Server, secret_id: Secret = given_secret_id) -> "OpenBao":
    """An AppRole session, not logged in yet."""
    from freehold.root_of_trust.openbao import OpenBao

    return OpenBao(server.address, server.ca, server.role_id, secret_id)


def new_file(state: Path) -> Made:
    """A key file under a name that no other key of this site has had: what is shredded later is never the wrong one."""
    file = f"vault-{token_hex(4)}.key"
    kek = FileKek.create(state / file)
    return FilePlace(key_id=kek.key_id, file=file), kek


def new_passphrase(state: Path, passphrase: Secret = given_passphrase) -> Made:
    """The passphrase must have 12 characters."""
    file = f"vault-{token_hex(4)}.scrypt"
    kek = PassphraseKek.create(state / file, passphrase())
    return PassphrasePlace(key_id=kek.key_id, file=file), kek


def new_pkcs11(module: str, token: str, pin: Secret = given_pin) -> Made:
    """A new key in the token; older ones stay there."""
    from freehold.root_of_trust.kek.pkcs11 import Pkcs11Kek

    kek = Pkcs11Kek.create(module, token, pin)
    return Pkcs11Place(key_id=kek.key_id, module=module, token=token, serial=kek.serial), kek


def new_tpm() -> Made:
    """A new key under today's PCR 7."""
    from freehold.root_of_trust.kek.tpm import TpmSealedKek

    kek = TpmSealedKek.create()
    return TpmPlace(key_id=kek.key_id, public=kek.public, private=kek.private), kek


def new_transit(server: Server, mount: str, key: str, secret_id: Secret = given_secret_id) -> Made:
    """A key that is in OpenBao already."""
    from freehold.root_of_trust.kek.transit import TransitKek

    kek = TransitKek.open(connect(server, secret_id), mount, key)
    return TransitPlace(key_id=kek.key_id, server=server, mount=mount, key=key), kek


def forget(state: Path, place: Place | None) -> None:
    """Shreds the file of a key that opens nothing any more. Keys in tokens and servers are their keepers' to delete."""
    if isinstance(place, FilePlace | PassphrasePlace):
        durable.shred(_inside(state, place.file))


def is_key_file(name: str) -> bool:
    """Whether a file of this name can be one that `new_file` or `new_passphrase` made."""
    return _KEY_FILE.match(name) is not None


def _inside(state: Path, name: str) -> Path:
    if name != Path(name).name or name in ("", ".", ".."):
        raise CustodyRefused(f"{name!r} in {CUSTODY} is not the name of a file in the state directory")
    return state / name
