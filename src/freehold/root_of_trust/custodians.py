"""Two of n custodians: a secret that no one of them can open, and any two can.

For every pair of custodians the secret is cut into two halves, `random` and `secret XOR random`; each of the pair
gets one. What one custodian holds, one half of every pair that they are in, is uniformly random whatever the secret
is: it says nothing about it. Any two hold both halves of their pair. A custodian's halves are one file, encrypted under
their passphrase (scrypt, AES-256-GCM), so a stolen file is no share yet.

    shares = split(secret, {"alice": "…", "bob": "…", "carol": "…"})      # name -> bytes of the share file
    join([(shares["alice"], "…"), (shares["carol"], "…")]) == secret
"""

import itertools
import re
import secrets
from collections.abc import Mapping, Sequence

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from freehold.model.errors import FreeholdError

FEWEST = 3
SHORTEST_PASSPHRASE = 12
COST = 1 << 17
"""scrypt's N: 128 MiB and about half a second for one guess (RFC 7914)."""
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")


class CustodyRefused(FreeholdError):
    """Too few custodians, a wrong passphrase, or shares that do not belong together."""


class Share(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file of one custodian. `split` names the occasion: shares of two occasions do not fit."""

    custodian: str
    custodians: tuple[str, ...]
    split: str
    salt: bytes
    cost: int
    nonce: bytes
    sealed: bytes

    @classmethod
    def from_bytes(cls, data: bytes) -> "Share":
        try:
            share = msgspec.json.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise CustodyRefused(f"this is not a custodian's share: {error}") from error
        if share.cost not in {1 << bits for bits in range(1, 21)}:
            raise CustodyRefused("the share's scrypt cost is malformed", expected="a power of two, at most 1 GiB")
        return share

    def halves(self, passphrase: str) -> dict[str, bytes]:
        """The other custodian of the pair -> our half. Raises `CustodyRefused`."""
        try:
            plain = _cipher(passphrase, self.salt, self.cost).decrypt(self.nonce, self.sealed, self._context())
        except InvalidTag:
            raise CustodyRefused(
                f"the passphrase of {self.custodian} is wrong, or the share was changed", remedy="try again"
            ) from None
        return msgspec.json.decode(plain, type=dict[str, bytes])

    def _context(self) -> bytes:
        return _context(self.split, self.custodian)


def split(secret: bytes, passphrases: Mapping[str, str], *, cost: int = COST) -> dict[str, bytes]:
    """Name -> share file, for at least three custodians, any two of whom can `join`. Raises `CustodyRefused`."""
    names = sorted(passphrases)
    if len(names) < FEWEST:
        raise CustodyRefused(
            f"{len(names)} custodians cannot lose one of them", expected=f"{FEWEST} custodians or more"
        )
    if odd := [name for name in names if not _NAME.match(name)]:
        raise CustodyRefused(f"{odd[0]!r} is not a name", expected="1 to 32 of a-z, 0-9 and -, a letter first")
    if short := [name for name in names if len(passphrases[name]) < SHORTEST_PASSPHRASE]:
        raise CustodyRefused(
            f"the passphrase of {', '.join(short)} is too short", expected=f"{SHORTEST_PASSPHRASE} characters or more"
        )
    halves: dict[str, dict[str, bytes]] = {name: {} for name in names}
    for one, other in itertools.combinations(names, 2):
        halves[one][other] = secrets.token_bytes(len(secret))
        halves[other][one] = _xor(secret, halves[one][other])
    occasion = secrets.token_hex(16)
    return {name: _seal(name, names, occasion, halves[name], passphrases[name], cost) for name in names}


def join(shares: Sequence[tuple[bytes, str]]) -> bytes:
    """The secret, from two custodians' (share file, passphrase). Raises `CustodyRefused`."""
    read = [(Share.from_bytes(data), passphrase) for data, passphrase in shares]
    if len({share.custodian for share, _ in read}) != 2 or len(read) != 2:
        who = ", ".join(share.custodian for share, _ in read) or "nobody"
        raise CustodyRefused(f"the shares are of {who}", expected="the shares of two different custodians")
    (one, word), (other, other_word) = read
    if one.split != other.split:
        raise CustodyRefused("the two shares were not made together", expected="two shares of one ceremony")
    return _xor(one.halves(word)[other.custodian], other.halves(other_word)[one.custodian])


def _seal(
    name: str, names: Sequence[str], occasion: str, halves: dict[str, bytes], passphrase: str, cost: int
) -> bytes:
    salt, nonce = secrets.token_bytes(32), secrets.token_bytes(12)
    sealed = _cipher(passphrase, salt, cost).encrypt(nonce, msgspec.json.encode(halves), _context(occasion, name))
    share = Share(
        custodian=name, custodians=tuple(names), split=occasion, salt=salt, cost=cost, nonce=nonce, sealed=sealed
    )
    return msgspec.json.format(msgspec.json.encode(share))


def _cipher(passphrase: str, salt: bytes, cost: int) -> AESGCM:
    return AESGCM(Scrypt(salt=salt, length=32, n=cost, r=8, p=1).derive(passphrase.encode("utf-8")))


def _context(occasion: str, name: str) -> bytes:
    return f"freehold-share/1\0{occasion}\0{name}".encode()


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
