"""Append-only transparency log, signed statements, bundles and their offline verifier.

    log = EvidenceLog.open_for_writing(state / "evidence", signer, origin)
    log.append(Statement.claim(Predicate.DRIFT, [Subject.of_bytes("server/r1", ek_public)], {...}))
    export(log, state / "bundles" / "run-1", signer, report={...}, artifacts={...}, public_keys={...})
    verify_bundle(path, trusted_key=pem)

Lowest to highest: `canonical`, `signer`, `dsse`, `statement`; `merkle`, `tiles`, `checkpoint`; `durable`, `log`;
`bundle`, `verify`.
"""

from freehold.evidence.artifacts import Artifacts
from freehold.evidence.bundle import ExportFailed, export
from freehold.evidence.checkpoint import Checkpoint, CheckpointRefused
from freehold.evidence.dsse import Envelope, EnvelopeRefused
from freehold.evidence.log import EvidenceLog, LogBusy, LogEntry, LogRefused, LogView, StatementTooLarge
from freehold.evidence.signer import Ed25519Signer, KeyRefused, PublicKey, Signer
from freehold.evidence.statement import Predicate, Statement, StatementRefused, Subject
from freehold.evidence.verify import (
    BundleRefused,
    BundleVerification,
    CertificateVerification,
    verify_bundle,
    verify_certificate,
)

__all__ = [
    "Artifacts",
    "BundleRefused",
    "BundleVerification",
    "CertificateVerification",
    "Checkpoint",
    "CheckpointRefused",
    "Ed25519Signer",
    "Envelope",
    "EnvelopeRefused",
    "EvidenceLog",
    "ExportFailed",
    "KeyRefused",
    "LogBusy",
    "LogEntry",
    "LogRefused",
    "LogView",
    "Predicate",
    "PublicKey",
    "Signer",
    "Statement",
    "StatementRefused",
    "StatementTooLarge",
    "Subject",
    "export",
    "verify_bundle",
    "verify_certificate",
]
