"""Recovery without the key-encryption key: two people together, by age (X25519 recipients of the age-encryption.org v1
format).

    key = RecoveryKey.generate()
    recovery = share(key, {"alice": "age1…", "bob": "age1…", "carol": "age1…"})   # public; in the vault's header
    wrapped = wrap(data_key, recovery.recipient)                                    # with every record; needs no secret
    combine(recovery, [alice_identity, carol_identity]).unwrap(wrapped)             # any two of them

The recovery key is an age identity. For each pair of people it is split by XOR with a one-time pad, and one half is
encrypted to each of the two: a pair has the key, one person has random bytes. For the handful of people of a site that
is as small as Shamir's scheme, and has no arithmetic that could be wrong.

Anybody can encrypt to a recipient, so a wrap does not say who made it. Header and wraps are therefore authenticated by
`RecoveryKey.authentication`, which follows from the recovery key. Whoever replaces all of it needs another recovery
key: so its public half, `recipient`, is what people write down, and compare before they recover.
"""

import itertools
import os
import re
from collections.abc import Mapping, Sequence

import msgspec
import pyrage
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from freehold.model.errors import FreeholdError

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")
_IDENTITY = re.compile(r"AGE-SECRET-KEY-1[0-9A-Z]+\Z")


class RecoveryRefused(FreeholdError):
    """People who cannot recover, or would not be two."""


class Pair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Two people, and the half that is encrypted to each."""

    people: tuple[str, str]
    halves: tuple[bytes, bytes]


class Recovery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All public. `recipient`: of the recovery key; `people`: name -> their own recipient."""

    recipient: str
    people: dict[str, str]
    pairs: tuple[Pair, ...]


class RecoveryKey:
    """An age identity; exists while a vault is made, rekeyed or recovered, and nowhere else in one piece."""

    def __init__(self, identity: str) -> None:
        self._identity = _identity(identity)
        self._secret = identity.encode("ascii")
        self.recipient = str(self._identity.to_public())

    def __repr__(self) -> str:
        return f"RecoveryKey({self.recipient})"

    @classmethod
    def generate(cls) -> "RecoveryKey":
        return cls(str(pyrage.x25519.Identity.generate()))

    @property
    def authentication(self) -> bytes:
        """32 bytes that authenticate and open nothing (HKDF-SHA256, RFC 5869)."""
        return HKDF(SHA256(), 32, salt=None, info=b"freehold-vault authentication").derive(self._secret)

    def unwrap(self, wrapped: bytes) -> bytes:
        """Raises ValueError if it was not made for this key."""
        return _decrypt(wrapped, self._identity)


def wrap(data_key: bytes, recipient: str) -> bytes:
    return bytes(pyrage.encrypt(data_key, [_recipient(recipient)]))


def share(key: RecoveryKey, people: Mapping[str, str]) -> Recovery:
    """Splits `key` so that any two of `people` (name -> `age1…`) have it. Raises `RecoveryRefused`."""
    if len(people) < 2:
        raise RecoveryRefused(
            "recovery needs two people", remedy="name at least two, each with the recipient that `age-keygen` printed"
        )
    for name in people:
        if not _NAME.match(name):
            raise RecoveryRefused(f"{name!r} is no name", expected="1 to 32 of a-z, 0-9 and -, a letter first")
    recipients = {name: _recipient(text) for name, text in people.items()}
    if len(set(map(str, recipients.values()))) < len(people):
        raise RecoveryRefused(
            "two people have the same recipient, so one person could recover alone",
            remedy="each makes a key of their own with `age-keygen`",
        )
    pairs = []
    for first, second in itertools.combinations(people, 2):
        pad = os.urandom(len(key._secret))
        halves = pad, bytes(a ^ b for a, b in zip(pad, key._secret, strict=True))
        sealed = [pyrage.encrypt(half, [recipients[name]]) for name, half in zip((first, second), halves, strict=True)]
        pairs.append(Pair((first, second), (sealed[0], sealed[1])))
    return Recovery(key.recipient, {name: str(value) for name, value in recipients.items()}, tuple(pairs))


def combine(recovery: Recovery, identities: Sequence[str]) -> RecoveryKey:
    """The recovery key out of the age identities of two people. Raises `RecoveryRefused`, which says who is missing."""
    opened: dict[str, str] = {}
    for text in identities:
        identity = _identity(text)
        opened |= {name: text for name, theirs in recovery.people.items() if theirs == str(identity.to_public())}
    pair = next((pair for pair in recovery.pairs if set(pair.people) <= set(opened)), None)
    if pair is None:
        raise RecoveryRefused(
            f"these identities are of {', '.join(sorted(opened)) or 'nobody who can recover'}",
            expected=f"two of: {', '.join(sorted(recovery.people))}",
            remedy="the second person comes with their own identity file",
        )
    try:
        first, second = (
            _decrypt(half, _identity(opened[name])) for name, half in zip(pair.people, pair.halves, strict=True)
        )
        key = RecoveryKey(bytes(a ^ b for a, b in zip(first, second, strict=True)).decode("ascii"))
    except (ValueError, RecoveryRefused):
        key = None
    if key is None or key.recipient != recovery.recipient:
        raise RecoveryRefused(
            f"the halves of {' and '.join(pair.people)} do not make the recovery key: the vault's header was changed",
            remedy="restore vault/vault.json from a copy, or try another pair of people",
        )
    return key


def read_identity(text: str) -> str:
    """The one identity in a file as `age-keygen` writes it. Raises `RecoveryRefused`."""
    found = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    if len(found) != 1 or not _IDENTITY.match(found[0]):
        raise RecoveryRefused(
            "this is no age identity file", expected="one line AGE-SECRET-KEY-1…, as `age-keygen` writes it"
        )
    return found[0]


def _identity(text: str) -> pyrage.x25519.Identity:
    try:
        return pyrage.x25519.Identity.from_str(text)
    except pyrage.IdentityError:
        raise RecoveryRefused("this is no age identity", expected="AGE-SECRET-KEY-1…") from None


def _recipient(text: str) -> pyrage.x25519.Recipient:
    try:
        return pyrage.x25519.Recipient.from_str(text)
    except pyrage.RecipientError:
        raise RecoveryRefused(
            "this is no age recipient", expected="age1…, as `age-keygen` prints it; never the secret key"
        ) from None


def _decrypt(data: bytes, identity: pyrage.x25519.Identity) -> bytes:
    try:
        return bytes(pyrage.decrypt(data, [identity]))
    except pyrage.DecryptError:
        raise ValueError("not for this identity, or changed") from None
