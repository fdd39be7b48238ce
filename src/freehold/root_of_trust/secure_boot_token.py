"""An RSA key in a PKCS#11 token (PKCS #11 v2.40, 2.1) that signs for Secure Boot and never leaves.

`TokenKey` is an RSA private key to `cryptography`, so certificates, images and authenticated variables are signed with
it as with any other. Where it is, and the PIN that opens it, are a secret record of the vault: a controller that
restarts needs nobody.
"""

import os
from typing import Any, NoReturn

import pkcs11
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass

from freehold.model.errors import FreeholdError
from freehold.root_of_trust.kek import CustodyUnavailable
from freehold.root_of_trust.kek.pkcs11 import Where as Token
from freehold.root_of_trust.kek.pkcs11 import find_token, log_in, not_in_custody, serial_of
from freehold.root_of_trust.secure_boot_keys import TokenPlace

BITS = 2048
"""What every firmware verifies."""


class SigningTokenUnavailable(FreeholdError):
    """The token with a Secure Boot key is out of reach, so nothing can be signed with it now."""


class TokenKey(rsa.RSAPrivateKey):
    """Signs by PKCS #1 v1.5 with SHA-256 in its token; nothing else. `close` ends the session."""

    def __init__(self, place: TokenPlace, session: pkcs11.Session, private: Any, public: rsa.RSAPublicKey) -> None:
        self._place, self._session, self._private, self._public = place, session, private, public

    def close(self) -> None:
        self._session.close()

    def sign(self, data: Any, padding_: Any, algorithm: Any) -> bytes:
        if not isinstance(padding_, padding.PKCS1v15) or not isinstance(algorithm, hashes.SHA256):
            self._never()
        try:
            return bytes(self._private.sign(bytes(data), mechanism=Mechanism.SHA256_RSA_PKCS))
        except pkcs11.PKCS11Error as error:
            raise _unavailable(self._place, f"did not sign: {type(error).__name__}") from None

    def public_key(self) -> rsa.RSAPublicKey:
        return self._public

    @property
    def key_size(self) -> int:
        return self._public.key_size

    def decrypt(self, ciphertext: bytes, padding_: Any) -> bytes:
        self._never()

    def private_numbers(self) -> rsa.RSAPrivateNumbers:
        self._never()

    def private_bytes(self, encoding: Any, format_: Any, encryption_algorithm: Any) -> bytes:
        self._never()

    def __copy__(self) -> "TokenKey":
        return self

    def __deepcopy__(self, memo: Any) -> "TokenKey":
        return self

    def _never(self) -> NoReturn:
        raise TypeError("a key in a token signs by PKCS #1 v1.5 with SHA-256, and does nothing else")


def make_key(module: str, token: str, pin: str) -> tuple[TokenPlace, TokenKey]:
    """A new key in the token labelled `token`; CKA_ID is 16 random bytes. Raises `SigningTokenUnavailable`."""
    key_id = os.urandom(16)
    try:
        found = find_token(module, token, None)
        session = log_in(found, Token(module, token), lambda: pin, rw=True)
        session.generate_keypair(
            KeyType.RSA,
            BITS,
            id=key_id,
            label="freehold secure boot",
            store=True,
            capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
            private_template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
        )
        place = TokenPlace(module=module, token=token, serial=serial_of(found), key_id=key_id.hex(), pin=pin)
    except CustodyUnavailable as error:
        raise SigningTokenUnavailable(error.what, expected=error.expected, remedy="give another token or PIN") from None
    except pkcs11.PKCS11Error as error:
        raise SigningTokenUnavailable(
            f"{Token(module, token)} did not make an RSA key: {type(error).__name__}", remedy="choose one that can"
        ) from None
    return place, _in(session, place)


def open_key(place: TokenPlace) -> TokenKey:
    """Raises `SigningTokenUnavailable`; the PIN is tried once."""
    try:
        found = find_token(place.module, place.token, place.serial)
        session = log_in(found, Token(place.module, place.token), lambda: place.pin, rw=False)
    except CustodyUnavailable as error:
        raise _unavailable(place, error.what) from None
    return _in(session, place)


def _in(session: pkcs11.Session, place: TokenPlace) -> TokenKey:
    wanted = {Attribute.ID: bytes.fromhex(place.key_id), Attribute.KEY_TYPE: KeyType.RSA}
    try:
        private = list(session.get_objects({**wanted, Attribute.CLASS: ObjectClass.PRIVATE_KEY}))
        public = list(session.get_objects({**wanted, Attribute.CLASS: ObjectClass.PUBLIC_KEY}))
    except pkcs11.PKCS11Error as error:
        raise _unavailable(place, f"did not find the key: {type(error).__name__}") from None
    if (len(private), len(public)) != (1, 1):
        raise _unavailable(place, f"holds {len(private)} private and {len(public)} public keys {place.key_id}, not one")
    try:
        wrong = not_in_custody(private[0])
    except pkcs11.PKCS11Error as error:
        raise _unavailable(place, f"does not say what its key may do: {type(error).__name__}") from None
    if wrong:
        raise SigningTokenUnavailable(
            f"the key {place.key_id} in the token {place.token!r} can leave it, or once could: {', '.join(wrong)}",
            expected="CKA_SENSITIVE and CKA_NEVER_EXTRACTABLE, from its first day",
            remedy="make another: `freehold secureboot rotate`; what this key has signed may be signed by others, too",
        )
    exponent, modulus = (int.from_bytes(public[0][name]) for name in (Attribute.PUBLIC_EXPONENT, Attribute.MODULUS))
    return TokenKey(place, session, private[0], rsa.RSAPublicNumbers(exponent, modulus).public_key())


def _unavailable(place: TokenPlace, what: str) -> SigningTokenUnavailable:
    return SigningTokenUnavailable(
        f"the PKCS#11 token {place.token!r}: {what}",
        expected=f"the Secure Boot key {place.key_id} in the token with serial {place.serial}",
        remedy="plug it in and start the controller again; if it is lost, `freehold secureboot rotate` makes a new key",
    )
