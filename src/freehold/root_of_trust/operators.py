"""The people whose signatures count, and what two of them approved together. Pure: bytes in, names out.

    people = Operators.of({"alice": alice_pub, "bob": bob_pub, "carol": carol_pub})
    request = Request(act=Act.REFERENCE_VALUES, subject="acme/r1/BIOS 1.1", details={...}, expires=...)
    signed = [approve(request, alice_key), approve(request, bob_key)]     # each where their key is
    require_approval(request, signed, people, now)                        # ("alice", "bob"), or NotApproved

Rules, in order: one person has one key and one key has one person; an approval is a DSSE envelope by one key over
exactly the canonical bytes of the request; two signatures of one person count once; a request that has expired
approves nothing. So a signature can neither be carried to another request nor be used twice by one pair of hands.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

import msgspec

from freehold.evidence import PublicKey, Signer, approvals, canonical, dsse
from freehold.model.errors import FreeholdError

PAYLOAD_TYPE = approvals.PAYLOAD_TYPE
THRESHOLD = 2
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")


class OperatorsRefused(FreeholdError):
    """A registry of people that would let one person be two."""


class NotApproved(FreeholdError):
    """Fewer than two people approved, or they approved something else."""


class Act(StrEnum):
    """What needs two people."""

    REFERENCE_VALUES = "reference-values"
    BREAK_GLASS = "break-glass"
    DOWNGRADE = "downgrade"
    WAIVER = "waiver"
    BMC_KEY = "bmc-key"
    OPERATORS = "operators"
    SITE_KEY = "site-key"


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be approved. `details` is JSON data that says all of it; times are UNIX seconds (UTC)."""

    act: Act
    subject: str
    details: dict[str, Any]
    requested_by: str
    at: float
    expires: float

    def to_bytes(self) -> bytes:
        """Canonical JSON: what is signed."""
        return canonical.dumps(msgspec.to_builtins(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Request":
        """Raises `NotApproved` for anything that is not the canonical form of a request."""
        try:
            return msgspec.convert(canonical.loads_strictly(data), cls)
        except (canonical.NotCanonicalError, msgspec.ValidationError) as error:
            raise NotApproved(f"this is not a request for approval: {error}") from error

    @property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of its bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()[:16]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request, the people whose signatures of it count, and when it was spent (UNIX seconds; None: still open)."""

    request: Request
    approved_by: tuple[str, ...]
    spent: float | None


class Signed(msgspec.Struct, frozen=True, kw_only=True):
    """One person's approval: the envelope, and the key that it verifies with."""

    name: str
    key: PublicKey
    envelope: bytes


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """What two people approved, with all that it takes to verify that again. `at`: when it counted, UNIX seconds."""

    request: Request
    signatures: tuple[Signed, ...]
    at: float

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.signatures)


class Operators(msgspec.Struct, frozen=True):
    """Name -> public key. Make it with `of`, which refuses one key under two names."""

    people: Mapping[str, PublicKey]

    @classmethod
    def of(cls, people: Mapping[str, PublicKey]) -> "Operators":
        """Raises `OperatorsRefused`."""
        owner: dict[str, str] = {}
        for name, key in sorted(people.items()):
            if not _NAME.match(name):
                raise OperatorsRefused(
                    f"{name!r} is not a name for an operator", expected="1 to 32 of a-z, 0-9 and -, a letter first"
                )
            if (other := owner.setdefault(key.key_id, name)) != name:
                raise OperatorsRefused(
                    f"{other} and {name} have the same key",
                    expected="one key a person: two signatures of one key are one person's",
                    remedy=f"{name} makes a key of their own with `freehold operator keygen`",
                )
        return cls(dict(people))

    def name_of(self, key_id: str) -> str | None:
        return next((name for name, key in self.people.items() if key.key_id == key_id), None)


def approve(request: Request, signer: Signer) -> dsse.Envelope:
    """One person's approval."""
    return dsse.sign(request.to_bytes(), PAYLOAD_TYPE, signer)


def approvers(payload: bytes, payload_type: str, envelopes: Iterable[bytes], operators: Operators) -> tuple[str, ...]:
    """The people who signed exactly these bytes, each once, sorted. What does not verify counts for nobody."""
    names = set()
    for data in envelopes:
        try:
            name = operators.name_of(dsse.Envelope.from_bytes(data).key_id)
            if name is not None and dsse.verify(data, payload_type, operators.people[name]) == payload:
                names.add(name)
        except dsse.EnvelopeRefused:
            continue
    return tuple(sorted(names))


def grant(request: Request, envelopes: Iterable[bytes], operators: Operators, at: float) -> Granted:
    """The approval of `request` as it stood at `at`, by those who were operators then. Raises `NotApproved`."""
    given = list(envelopes)
    require_approval(request, given, operators, at)
    signed = [
        Signed(name=name, key=operators.people[name], envelope=each)
        for each in given
        for name in approvers(request.to_bytes(), PAYLOAD_TYPE, [each], operators)
    ]
    return Granted(request=request, signatures=tuple(sorted(signed, key=lambda each: each.name)), at=at)


def as_evidence(request: Request, envelopes: Iterable[bytes], operators: Operators) -> dict[str, Any]:
    """What was asked, who approved it with which key, and their signatures over `request`, from which anybody with the
    operators' public keys can tell that it was so. `freehold.evidence.approvals` verifies it."""
    payload, approved = request.to_bytes(), []
    for data in envelopes:
        for name in approvers(payload, PAYLOAD_TYPE, [data], operators):
            key = operators.people[name]
            approved.append({"name": name, "key_id": key.key_id, "public_key": key.pem.decode(),
                             "envelope": msgspec.json.decode(data)})  # fmt: skip
    approved.sort(key=lambda each: str(each["name"]))
    return {"request_id": request.id, "request": msgspec.to_builtins(request), "approved_by": approved}


def require_approval(
    request: Request, envelopes: Iterable[bytes], operators: Operators, now: float, *, threshold: int = THRESHOLD
) -> tuple[str, ...]:
    """The names of at least `threshold` people who approved `request`. Raises `NotApproved`."""
    if now >= request.expires:
        raise NotApproved(
            f"the request {request.id} ({request.act} for {request.subject}) has expired", remedy="ask for it anew"
        )
    names = approvers(request.to_bytes(), PAYLOAD_TYPE, envelopes, operators)
    if len(names) < threshold:
        who = ", ".join(names) or "nobody"
        missing = ", ".join(sorted(set(operators.people) - set(names))) or "nobody else is registered"
        raise NotApproved(
            f"{request.act} for {request.subject} was approved by {who}",
            expected=f"{threshold} different people",
            remedy=f"one of these signs it too with `freehold approval sign {request.id} --key FILE`: {missing}",
        )
    return names
