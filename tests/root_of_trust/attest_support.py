"""Shared by the attestation tests: the recorded boots, the policy that fits them, and event logs to build by hand."""

import hashlib
import json
import struct
import uuid
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from freehold.root_of_trust.attestation import predict, uefi
from freehold.root_of_trust.attestation.appraise import Evidence, Policy
from freehold.root_of_trust.attestation.event_log import EventLog, parse_event_log, replay
from freehold.root_of_trust.attestation.predict import ExpectedEvent
from freehold.root_of_trust.attestation.structures import ClockInfo

DATA = Path(__file__).parent / "attest_data"
RECORDED = json.loads((DATA / "recorded.json").read_text())
OWNER = uuid.UUID(RECORDED["owner"])
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
EK_IDENTITY = "ab" * 32
CLOCK = ClockInfo(clock=1000, reset_count=3, restart_count=0, safe=True)
DBX = uefi.signature_list(
    uefi.CERT_SHA256, uuid.UUID("a0baa8a3-041d-48a8-bc87-c36d121b5e3d"), (hashlib.sha256(b"").digest(),)
)


def log_bytes(mode: str = "secure-boot") -> bytes:
    return (DATA / f"ovmf-{mode}.log").read_bytes()


def certificate(name: str) -> bytes:
    return x509.load_pem_x509_certificate((DATA / f"{name}.pem").read_bytes()).public_bytes(Encoding.DER)


def keys() -> predict.SecureBootKeys:
    """What virt-fw-vars enrolled; its dbx is one entry, the hash of nothing, so that the variable exists."""
    lists = (uefi.signature_list(uefi.CERT_X509, OWNER, (certificate(name),)) for name in ("PK", "KEK", "db"))
    pk, kek, db = lists
    return predict.SecureBootKeys(pk=pk, kek=kek, db=db, dbx=DBX)


def pcr7(mode: str = "secure-boot") -> tuple[ExpectedEvent, ...]:
    if mode == "setup-mode":
        return predict.pcr7_events(predict.SecureBootKeys(), secure_boot=False)
    used = uefi.parse_signature_lists(keys().db)
    return predict.pcr7_events(keys(), secure_boot=True, authorities=used)


def pcr4(mode: str = "secure-boot") -> tuple[ExpectedEvent, ...]:
    """As `predict.pcr4_events` computed it from the UKI's file, which is too large to keep."""
    image = ExpectedEvent(digest=bytes.fromhex(RECORDED["uki_authenticode"]), label="the signed image")
    kernel = ExpectedEvent(digest=bytes.fromhex(RECORDED["kernel_authenticode"]), label="the kernel inside the image")
    start = (predict.measure(predict.CALLING, "the action"), predict.measure(predict.SEPARATOR, "the separator"))
    return (*start, image) if mode == "secure-boot" else (*start, image, kernel)


def policy(mode: str = "secure-boot", **changes: object) -> Policy:
    log = parse_event_log(log_bytes())
    reference = {pcr: tuple(event.digests["sha256"] for event in log.of_pcr(pcr)) for pcr in (0, 2)}
    given = {
        "id": "test",
        "ek_identity": EK_IDENTITY,
        "pcr4": pcr4(mode),
        "pcr7": pcr7(mode),
        "pcr11": (bytes.fromhex(RECORDED["pcr11"]),),
        "reference": reference,
    }
    return Policy(**(given | changes))  # type: ignore[arg-type]


def evidence(log: EventLog | bytes | None = None, **changes: object) -> Evidence:
    """Evidence whose quote fits the log, as `session.verify_response` gives it."""
    log = log if isinstance(log, EventLog) else parse_event_log(log or log_bytes())
    given = {
        "ek_identity": EK_IDENTITY,
        "pcrs": {pcr: value for pcr, value in replay(log, "sha256").items() if pcr not in (10, 15)},
        "log": log,
        "clock": CLOCK,
        "firmware_version": 1,
        "quoted_at": NOW,
    }
    return Evidence(**(given | changes))  # type: ignore[arg-type]


SPECIFICATION = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, 1) + struct.pack("<HHB", 0x0B, 32, 0)


def header(specification: bytes = SPECIFICATION) -> bytes:
    return struct.pack("<II20sI", 0, 3, bytes(20), len(specification)) + specification


def event(pcr: int, kind: int, data: bytes, digest: bytes | None = None) -> bytes:
    """One crypto-agile event of a log with a SHA-256 bank."""
    digest = hashlib.sha256(data).digest() if digest is None else digest
    return struct.pack("<IIIH", pcr, kind, 1, 0x0B) + digest + struct.pack("<I", len(data)) + data
