"""in-toto Statement v1: who or what is spoken of (subjects, by digest), and what is claimed (a typed predicate)."""

import hashlib
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import msgspec

from freehold.evidence import canonical, dsse
from freehold.evidence.signer import PublicKey, Signer
from freehold.model.errors import FreeholdError

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


class StatementRefused(FreeholdError):
    """Bytes that are not a statement of this product."""


class Predicate(StrEnum):
    """What a statement can claim; the table of docs/architecture.md."""

    TRANSITION = "transition"
    BMC_IDENTITY = "bmc-identity"
    CERTIFICATE = "certificate"
    CREDENTIAL = "credential"
    POSTURE = "posture"
    INVENTORY = "inventory"
    SECURE_BOOT = "secure-boot"
    ATTESTATION = "attestation"
    ADMISSION = "admission"
    IMAGE = "image"
    BOOT_CONFIG = "boot-config"
    FIRMWARE = "firmware"
    DRIFT = "drift"
    REMEDIATION = "remediation"
    SANITIZATION = "sanitization"
    KEY_DESTRUCTION = "key-destruction"
    DECOMMISSION_CERTIFICATE = "decommission-certificate"
    WAIVER = "waiver"
    APPROVAL = "approval"
    DEPOT = "depot"
    EGRESS = "egress"
    SOVEREIGNTY_TEST = "sovereignty-test"

    @property
    def uri(self) -> str:
        """The `predicateType`."""
        return f"https://freehold.dev/{self.value}/v1"

    @classmethod
    def from_uri(cls, uri: str) -> "Predicate":
        """The inverse of `uri`. Raises `StatementRefused`."""
        for predicate in cls:
            if predicate.uri == uri:
                return predicate
        raise StatementRefused(f"unknown predicateType {uri!r}", expected="one of " + ", ".join(cls))


class Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An in-toto ResourceDescriptor with a SHA-256; `digest` is `{"sha256": <64 hex digits>}`."""

    name: str
    digest: dict[str, str]

    @classmethod
    def of_bytes(cls, name: str, data: bytes) -> "Subject":
        """A subject that is these bytes (a file, a certificate, an EK public area)."""
        return cls(name, {"sha256": hashlib.sha256(data).hexdigest()})

    @classmethod
    def of_name(cls, name: str) -> "Subject":
        """A subject that has no bytes of its own yet: its digest is that of the name in UTF-8."""
        return cls.of_bytes(name, name.encode("utf-8"))


class Statement(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A claim about subjects. `predicate` is JSON data; bulk is an artifact that the predicate names by digest."""

    subject: tuple[Subject, ...]
    predicate_type: str
    predicate: dict[str, Any]
    type: str = msgspec.field(default=STATEMENT_TYPE, name="_type")

    @classmethod
    def claim(cls, predicate: Predicate, subject: Sequence[Subject], facts: dict[str, Any]) -> "Statement":
        """A new statement; `facts` must carry the time that it speaks of."""
        return cls(subject=tuple(subject), predicate_type=predicate.uri, predicate=facts)

    @property
    def kind(self) -> Predicate:
        """The predicate as this product knows it."""
        return Predicate.from_uri(self.predicate_type)

    def to_bytes(self) -> bytes:
        """Canonical JSON. Raises `StatementRefused` for facts that JSON cannot hold."""
        try:
            data = canonical.dumps(msgspec.to_builtins(self))
        except (TypeError, ValueError) as error:
            raise StatementRefused(f"the facts of this {self.predicate_type} cannot be written: {error}") from error
        Statement.from_bytes(data)
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> "Statement":
        """Decodes and checks the shape; `StatementRefused` says what is wrong."""
        try:
            found = msgspec.convert(canonical.loads_strictly(data), cls)
        except (canonical.NotCanonicalError, msgspec.ValidationError) as error:
            raise StatementRefused(f"this is not an in-toto statement: {error}") from error
        if found.type != STATEMENT_TYPE:
            raise StatementRefused(f"the statement is a {found.type!r}", expected=STATEMENT_TYPE)
        if not found.subject:
            raise StatementRefused("the statement has no subject", expected="at least one")
        for subject in found.subject:
            if set(subject.digest) != {"sha256"} or not _SHA256.match(subject.digest["sha256"]):
                raise StatementRefused(f"the digest of subject {subject.name!r} is malformed", expected="one sha256")
        Predicate.from_uri(found.predicate_type)
        return found


def sign(statement: Statement, signer: Signer) -> dsse.Envelope:
    """The statement in a DSSE envelope."""
    return dsse.sign(statement.to_bytes(), PAYLOAD_TYPE, signer)


def verify(envelope: bytes, key: PublicKey) -> Statement:
    """The statement inside; raises `EnvelopeRefused` or `StatementRefused`."""
    return Statement.from_bytes(dsse.verify(envelope, PAYLOAD_TYPE, key))
