"""Approvals that statements carry, verified again: who signed what, with which key, and that they were operators then.

A statement carries them in one of two forms:

    "artifacts": {"request", "approval-<name>", "operator-<name>", …}, "approved_by": [name, …], "approved_at": seconds
    "request": {…}, "approved_by": [{"name", "key_id", "public_key", "envelope"}, …], "at": seconds

A `waiver` has the second form below `approval`, and the time at which it was relied on as `at`: it counts by the word
of those who are operators then. Earlier statements have names only; of these nothing is verified.

Each envelope (DSSE) is one person's signature over the canonical JSON of the request. Who the operators were is said by
the statements `approval` that have `operators`: the newest one before the approval counts.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from freehold.evidence import artifacts, canonical, dsse
from freehold.evidence.signer import PublicKey
from freehold.evidence.statement import Predicate, Statement

PAYLOAD_TYPE = "application/vnd.freehold.approval+json"

Circle = tuple[float, dict[str, str]]
"""Since when (UNIX seconds), and the operators: name -> key id."""


class _Person(msgspec.Struct, frozen=True):
    name: str
    key_id: str
    public_key: str
    envelope: dict[str, Any] = {}

    @property
    def key(self) -> PublicKey:
        key = PublicKey.from_pem(self.public_key.encode())
        if key.key_id != self.key_id:
            raise ValueError(f"the key of {self.name} is {key.key_id}, not {self.key_id}")
        return key


class _Approval(msgspec.Struct, frozen=True):
    at: float
    payload: bytes
    signed: tuple[tuple[str, PublicKey, bytes], ...]


def circles(claims: Iterable[Statement]) -> tuple[Circle, ...]:
    """The operators of a site over time, oldest first, as its log says."""
    found = []
    for claim in claims:
        if claim.kind is Predicate.APPROVAL and "operators" in claim.predicate:
            people = msgspec.convert(claim.predicate["operators"], tuple[_Person, ...])
            since = msgspec.convert(claim.predicate.get("at"), float)
            found.append((since, {each.name: each.key.key_id for each in people}))
    return tuple(sorted(found, key=lambda each: each[0]))


def check(claim: Statement, files: Mapping[str, bytes], known: tuple[Circle, ...]) -> bool:
    """Whether `claim` carries an approval; it verifies then. `files`: artifacts by SHA-256. Raises `EnvelopeRefused`,
    `KeyRefused`, or `ValueError` in words."""
    approval = _of_artifacts(claim.predicate, files) or _inline(claim) or _of_waiver(claim)
    if approval is None:
        return False
    people = next((people for since, people in reversed(known) if since < approval.at), None)
    for name, key, envelope in approval.signed:
        if dsse.verify(envelope, PAYLOAD_TYPE, key) != approval.payload:
            raise ValueError(f"what {name} signed is another request")
        if people is not None and people.get(name) != key.key_id:
            raise ValueError(f"{name} (key {key.key_id}) was no operator of the site then")
    if len({key.key_id for _, key, _ in approval.signed}) != len(approval.signed):
        raise ValueError("one key signed under two names")
    return True


def _of_artifacts(predicate: dict[str, Any], files: Mapping[str, bytes]) -> _Approval | None:
    named = artifacts.named_by(predicate)
    names = [kind.removeprefix("approval-") for kind in named if kind.startswith("approval-")]
    if not names:
        return None
    if sorted(names) != sorted(predicate.get("approved_by", [])) or "request" not in named:
        raise ValueError("its artifacts are not the approvals that it names")
    payload = files[named["request"]]
    if canonical.loads_strictly(payload)["details"].get("values", {}).get("digests") != predicate.get("digests"):
        raise ValueError("what was approved is not what it says")
    keys = {name: PublicKey.from_pem(files[named.get(f"operator-{name}", "")]) for name in names}
    signed = tuple((name, keys[name], files[named[f"approval-{name}"]]) for name in names)
    return _Approval(at=msgspec.convert(predicate.get("approved_at"), float), payload=payload, signed=signed)


def _inline(claim: Statement) -> _Approval | None:
    predicate = claim.predicate
    if claim.kind is not Predicate.APPROVAL or "approved_by" not in predicate:
        return None
    people = msgspec.convert(predicate["approved_by"], tuple[_Person, ...])
    return _Approval(
        at=msgspec.convert(predicate.get("at"), float),
        payload=canonical.dumps(predicate.get("request")),
        signed=tuple((each.name, each.key, canonical.dumps(each.envelope)) for each in people),
    )


def _of_waiver(claim: Statement) -> _Approval | None:
    said = claim.predicate
    if claim.kind is not Predicate.WAIVER or not said.get("approval"):
        return None
    given = msgspec.convert(said["approval"], dict[str, Any])
    people = msgspec.convert(given.get("approved_by"), tuple[_Person, ...])
    request, at = msgspec.convert(given.get("request"), dict[str, Any]), msgspec.convert(said.get("at"), float)
    asked = msgspec.convert(request.get("details"), dict[str, Any])
    same_name = asked.get("waiver") == said.get("name")
    if request.get("act") != "waiver" or not same_name or asked.get("server") != said.get("server"):
        raise ValueError("what was approved is another waiver")
    if any(asked.get(name) != said.get(name) for name in ("finding", "reason", "account")):
        raise ValueError("what was waived is not what it says")
    if at >= msgspec.convert(request.get("expires"), float):
        raise ValueError("the waiver had ended")
    if len(people) < 2 or sorted(each.name for each in people) != sorted(said.get("approved_by", ())):
        raise ValueError("its approvals are not those of the people that it names")
    return _Approval(
        at=at,
        payload=canonical.dumps(request),
        signed=tuple((each.name, each.key, canonical.dumps(each.envelope)) for each in people),
    )
