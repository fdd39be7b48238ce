"""Which Secure Boot keys a site trusts, generation by generation. Pure.

A generation is what one enrolment writes into a server's firmware: PK, KEK, db and dbx, whole. Every change makes a new
one, and none is ever changed: a server carries the number of its own, and what its boots must measure follows from it.
Servers take the newest one over when no OS is on them, so a change disowns nothing that runs.

Rotating the key that signs images takes two generations. In the first, db holds the old key and the new one, and images
bear a signature of each. The second, `without_old_db`, is made once every server carries the first.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ssl import DER_cert_to_PEM_cert
from typing import Literal
from uuid import UUID

import msgspec

from freehold.model.errors import FreeholdError
from freehold.root_of_trust import secure_boot
from freehold.root_of_trust.attestation.predict import SecureBootKeys
from freehold.root_of_trust.attestation.uefi import CERT_X509, SignatureEntry

Role = Literal["pk", "kek", "db"]
ROLES: tuple[Role, ...] = ("pk", "kek", "db")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class GenerationRefused(FreeholdError):
    """A change of the site's Secure Boot keys that would not be right now."""


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """`pk`, `kek` and `db` name keys of the site, db in the order in which they sign; `dbx` are Authenticode digests
    (SHA-256, hex) of revoked images. `at`: UNIX seconds."""

    number: int
    pk: str
    kek: str
    db: tuple[str, ...]
    dbx: tuple[str, ...] = ()
    reason: str
    at: float

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.pk, self.kek, *self.db)


@dataclass(frozen=True, kw_only=True)
class KeySet:
    """The content of one generation: certificates (DER) and digests (32 bytes) of the four variables. `owner` is the
    SignatureOwner that the site's keys bear in PCR 7's prediction; it vouches for nothing."""

    generation: int
    owner: UUID
    pk: bytes
    kek: bytes
    db: tuple[bytes, ...]
    dbx: tuple[bytes, ...] = ()

    @property
    def pems(self) -> dict[str, tuple[str, ...]]:
        """The certificates (PEM) by variable."""
        whole = {"PK": (self.pk,), "KEK": (self.kek,), "db": self.db}
        return {name: tuple(map(DER_cert_to_PEM_cert, certificates)) for name, certificates in whole.items()}

    def variables(self) -> SecureBootKeys:
        """As EFI_SIGNATURE_LISTs, which is what PCR 7 measures."""
        database = secure_boot.certificate_database
        return SecureBootKeys(
            pk=database(self.owner, [self.pk]),
            kek=database(self.owner, [self.kek]),
            db=database(self.owner, self.db),
            dbx=secure_boot.hash_database(self.owner, self.dbx),
        )

    def authority(self, signers: Sequence[bytes]) -> SignatureEntry | None:
        """The db entry that admits an image with these signatures (DER certificates, in their order): firmware takes
        the first signature that it can trust. None: it refuses the image."""
        known = next((signer for signer in signers if signer in self.db), None)
        return SignatureEntry(type=CERT_X509, owner=self.owner, data=known) if known is not None else None


def first(at: float) -> Generation:
    """Of a site that has just made its keys."""
    return Generation(number=1, pk="pk", kek="kek", db=("db",), reason="the site's first keys", at=at)


def revoking(newest: Generation, digest: str, reason: str, at: float) -> Generation:
    """With an image's digest in dbx. Raises `GenerationRefused`."""
    if not _DIGEST.fullmatch(digest):
        raise GenerationRefused(f"{digest!r} is no SHA-256 digest", expected="64 hexadecimal digits")
    if digest in newest.dbx:
        raise GenerationRefused(f"{digest} is in dbx already, since generation {newest.number} or earlier")
    return _next(newest, reason, at, dbx=(*newest.dbx, digest))


def rotating(newest: Generation, role: Role, name: str, reason: str, at: float) -> Generation:
    """With the new key `name`. A PK or KEK takes the place of the old one at once: neither admits images, and an
    enrolment replaces all. Raises `GenerationRefused`."""
    if role != "db":
        return _next(newest, reason, at, **{role: name})
    if len(newest.db) > 1:
        raise GenerationRefused(
            f"db holds {len(newest.db)} keys: the last rotation is not finished",
            remedy="finish it first: `freehold secureboot rotate db --finish`",
        )
    return _next(newest, reason, at, db=(*newest.db, name))


def without_old_db(generations: Sequence[Generation], carried: Mapping[str, int], reason: str, at: float) -> Generation:
    """With the newest db key alone. `generations`: all there are; `carried`: server -> number of its own. Raises
    `GenerationRefused` while one carries a db without that key: what is built from then on could not start there."""
    newest = generations[-1]
    if len(newest.db) == 1:
        raise GenerationRefused("db holds one key: there is no rotation to finish", remedy="`freehold secureboot list`")
    ready = {each.number for each in generations if newest.db[-1] in each.db}
    behind = sorted(name for name, number in carried.items() if number not in ready)
    if behind:
        shown = ", ".join(behind[:10]) + (f" and {len(behind) - 10} more" if len(behind) > 10 else "")
        raise GenerationRefused(
            f"the new db key is not enrolled on {len(behind)} servers yet: {shown}",
            expected="it to be on every server that is not retired",
            remedy="wait for those that are available, decommission the others; then repeat this",
        )
    return _next(newest, reason, at, db=newest.db[-1:])


def _next(newest: Generation, reason: str, at: float, **changes: object) -> Generation:
    return msgspec.structs.replace(newest, number=newest.number + 1, reason=reason, at=at, **changes)
