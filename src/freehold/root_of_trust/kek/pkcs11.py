"""A key-encryption key in a PKCS#11 token (PKCS #11 v2.40): an AES-256 key that can be used there and never read.

Data keys are wrapped by AES-GCM (CKM_AES_GCM) inside the token, with the record's context as additional authenticated
data. Not by AES key wrap (CKM_AES_KEY_WRAP, RFC 3394): it has no additional data, so a wrapped key could be moved to
another record.

A PIN is tried once per opening, and only while a failure cannot lock the token: the flags CKF_USER_PIN_COUNT_LOW,
FINAL_TRY and LOCKED (section 4.4, CK_TOKEN_INFO) are read first, and any of them stops the log-in. So a controller that
is restarted for ever with a wrong PIN has tried it exactly once.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pkcs11
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, MechanismFlag, ObjectClass, TokenFlag

from freehold.root_of_trust.kek import CustodyUnavailable

_LABEL = "freehold vault"
_NONCE = 12
# What a key must be to stay in its token; PKCS #11 section 4.9 (ALWAYS_SENSITIVE and NEVER_EXTRACTABLE are the
# token's own word on the key's whole life).
_CUSTODY = {
    Attribute.SENSITIVE: True,
    Attribute.ALWAYS_SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.NEVER_EXTRACTABLE: True,
}


class PinRefused(CustodyUnavailable):
    """The token's PIN was wrong, or was not tried so that the token does not lock."""


class Where(NamedTuple):
    """The token, as errors name it."""

    module: str
    token: str

    def __str__(self) -> str:
        return f"the PKCS#11 token {self.token!r} (module {self.module})"

    @property
    def by_hand(self) -> str:
        """How a person logs in, which clears the token's warning of a wrong PIN."""
        return f"`pkcs11-tool --module {self.module} --token-label {self.token} --login --list-objects`"


class Pkcs11Kek:
    """Logged in until the process ends. Threads may share it: a session does one operation at a time."""

    def __init__(self, where: Where, serial: str, key_id: str, key: Any) -> None:
        self._where, self._key_id, self._key = where, key_id, key
        self.serial = serial

    def __repr__(self) -> str:
        return f"Pkcs11Kek({self.key_id}, {self._where})"

    @classmethod
    def create(cls, module: str, token: str, pin: Callable[[], str]) -> "Pkcs11Kek":
        """Makes a new key in the token labelled `token`; CKA_ID is 16 random bytes. Raises `CustodyUnavailable`."""
        where = Where(module, token)
        found = find_token(module, token, None)
        if Mechanism.AES_GCM not in found.slot.get_mechanisms():
            raise CustodyUnavailable(
                f"{where} cannot do AES-GCM",
                expected="the mechanism CKM_AES_GCM",
                remedy=f"choose one that has it; `pkcs11-tool --module {module} --list-mechanisms` lists what it can",
            )
        session = log_in(found, where, pin, rw=True)
        try:
            session.generate_key(
                KeyType.AES,
                256,
                id=(key_id := os.urandom(16)),
                label=_LABEL,
                store=True,
                capabilities=MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
                template={
                    Attribute.PRIVATE: True,
                    Attribute.SENSITIVE: True,
                    Attribute.EXTRACTABLE: False,
                    Attribute.MODIFIABLE: False,
                },
            )
        except pkcs11.PKCS11Error as error:
            raise _unavailable(where, "did not make a key", error) from None
        return cls._with(session, where, found, key_id.hex())

    @classmethod
    def open(cls, module: str, token: str, serial: str, key_id: str, pin: Callable[[], str]) -> "Pkcs11Kek":
        """The key with CKA_ID `key_id` in the token of this label and serial number. Raises `CustodyUnavailable`."""
        where = Where(module, token)
        found = find_token(module, token, serial)
        return cls._with(log_in(found, where, pin, rw=False), where, found, key_id)

    @classmethod
    def _with(cls, session: pkcs11.Session, where: Where, token: pkcs11.Token, key_id: str) -> "Pkcs11Kek":
        wanted = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.ID: bytes.fromhex(key_id)}
        try:
            keys = list(session.get_objects(wanted))
            if len(keys) != 1 or not isinstance(keys[0], pkcs11.SecretKey):
                raise CustodyUnavailable(
                    f"{where} holds {len(keys)} keys with the id {key_id}",
                    expected="exactly the vault's one",
                    remedy="give the token that the vault was made with, or recover with two people: "
                    "`freehold vault recover`",
                )
            wrong = not_in_custody(keys[0])
        except pkcs11.PKCS11Error as error:
            raise _unavailable(where, "did not find the key", error) from None
        if wrong:
            raise CustodyUnavailable(
                f"the key {key_id} in {where} can leave its token, or could once: {', '.join(wrong)}",
                expected="CKA_SENSITIVE and CKA_NEVER_EXTRACTABLE, from its first day",
                remedy="recover with two people, to a key that was made in its token: `freehold vault recover`",
            )
        return cls(where, serial_of(token), key_id, keys[0])

    @property
    def key_id(self) -> str:
        """CKA_ID of the key."""
        return self._key_id

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """96-bit random nonce and ciphertext with tag. Raises `CustodyUnavailable`."""
        nonce = os.urandom(_NONCE)
        try:
            return nonce + bytes(self._key.encrypt(key, **_gcm(nonce, context)))
        except pkcs11.PKCS11Error as error:
            raise _unavailable(self._where, "did not wrap a key", error) from None

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Raises ValueError if the key, the context or a byte is another, `CustodyUnavailable` if the token is gone."""
        nonce, sealed = wrapped[:_NONCE], wrapped[_NONCE:]
        try:
            return bytes(self._key.decrypt(sealed, **_gcm(nonce, context)))
        except pkcs11.PKCS11Error:
            # Tokens say CKR_GENERAL_ERROR for a tag that does not verify, and for their own death too. One that
            # still encrypts is alive, so then it was the ciphertext.
            self.wrap(bytes(32), b"probe")
            raise ValueError("the wrapped key does not unwrap") from None


def _gcm(nonce: bytes, context: bytes) -> dict[str, Any]:
    return {"mechanism": Mechanism.AES_GCM, "mechanism_param": GCMParams(nonce, context, 128)}


def not_in_custody(key: Any) -> list[str]:
    """The attributes by which a key can leave its token, or could once; empty: it never could."""
    return [name.name for name, value in _CUSTODY.items() if key[name] is not value]


def find_token(module: str, label: str, serial: str | None) -> pkcs11.Token:
    """The token. Raises `CustodyUnavailable` if the module cannot be loaded, or there is not exactly one such token."""
    try:
        library = pkcs11.lib(module)
        present = [slot.get_token() for slot in library.get_slots(token_present=True)]
    except (pkcs11.PKCS11Error, OSError) as error:
        raise CustodyUnavailable(
            f"the PKCS#11 module {module} cannot be used: {_reason(error)}",
            expected="the shared library that came with the token",
            remedy="install it (for SoftHSM: apt-get install softhsm2), or correct `module` in custody.json",
        ) from None
    found = [each for each in present if each.label == label and serial in (None, serial_of(each))]
    if len(found) == 1:
        return found[0]
    there = ", ".join(f"{each.label!r} (serial {serial_of(each)})" for each in present if each.label) or "none"
    raise CustodyUnavailable(
        f"{Where(module, label)} is {'not there' if not found else 'there more than once'}; tokens present: {there}",
        expected=f"one token labelled {label!r}" + (f" with serial {serial}" if serial else ""),
        remedy="plug it in, or start its service; if it is lost, recover with two people: `freehold vault recover`",
    )


def pin_danger(flags: TokenFlag) -> str | None:
    """Why a PIN must not be tried now, in words; None if a failure cannot bring the token nearer to its lock. Pure."""
    if flags & TokenFlag.USER_PIN_LOCKED:
        return "its PIN is locked"
    if flags & TokenFlag.USER_PIN_FINAL_TRY:
        return "one more wrong PIN would lock it"
    if flags & TokenFlag.USER_PIN_COUNT_LOW:
        return "a wrong PIN was given since the last right one"
    return None


def log_in(token: pkcs11.Token, where: Where, pin: Callable[[], str], *, rw: bool) -> pkcs11.Session:
    """A session of the user; one attempt at most. Raises `PinRefused` or `CustodyUnavailable`."""
    if (danger := pin_danger(token.flags)) is not None:
        raise PinRefused(
            f"{where} was not asked to log in: {danger}",
            remedy=f"check the PIN, then log in once by hand: {where.by_hand}; a locked PIN needs the token's security "
            "officer",
        )
    try:
        return token.open(rw=rw, user_pin=pin())
    except pkcs11.UserAlreadyLoggedIn:
        return token.open(rw=rw)  # by another session of this process
    except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange, pkcs11.PinLocked) as error:
        raise PinRefused(
            f"{where} refused the PIN ({_reason(error)}); it was tried once and will not be tried again",
            remedy=f"correct the PIN's file, then log in once by hand: {where.by_hand}",
        ) from None
    except pkcs11.PKCS11Error as error:
        raise _unavailable(where, "did not let us log in", error) from None


def serial_of(token: pkcs11.Token) -> str:
    """The serial number, without its padding."""
    return token.serial.decode("ascii", "replace").strip()


def _reason(error: Exception) -> str:
    """The name of a CKR code (`DeviceRemoved`), with the text if there is one."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _unavailable(where: Where, what: str, error: Exception) -> CustodyUnavailable:
    return CustodyUnavailable(
        f"{where} {what}: {_reason(error)}",
        expected="a token that is plugged in and logged in to",
        remedy="look after the token, then start the controller again; nothing in the vault was changed",
    )
