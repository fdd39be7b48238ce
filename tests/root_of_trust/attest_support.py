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
from freehold.root_of_trust.attestation.appraise import Evidence, Policy, TpmState
from freehold.root_of_trust.attestation.event_log import EventLog, parse_event_log, replay
from freehold.root_of_trust.attestation.predict import ExpectedEvent
from freehold.root_of_trust.attestation.reference import PCRS, ReferenceValues
from freehold.root_of_trust.attestation.structures import ClockInfo

DATA = Path(__file__).parent / "attest_data"
RECORDED = json.loads((DATA / "recorded.json").read_text())
OWNER = uuid.UUID(RECORDED["owner"])
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
EK_IDENTITY = "ab" * 32
CLOCK = ClockInfo(clock=1000, reset_count=3, restart_count=0, safe=True)
TPM = TpmState(clock=CLOCK, firmware_version=0x0007_0055_0000_0000, banks={"sha256": True, "sha384": False})
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


def reference(log: EventLog | None = None, **changes: object) -> ReferenceValues:
    """The firmware of the recorded boots as one approved variant."""
    log = log or parse_event_log(log_bytes())
    digests = {str(pcr): tuple(event.digests["sha256"].hex() for event in log.of_pcr(pcr)) for pcr in PCRS}
    given = {
        "vendor": "Example",
        "model": "R1",
        "version": "1.1",
        "digests": digests,
    }
    return ReferenceValues(**(given | changes))  # type: ignore[arg-type]


def policy(mode: str = "secure-boot", **changes: object) -> Policy:
    given = {
        "id": "test",
        "ek_identity": EK_IDENTITY,
        "pcr4": pcr4(mode),
        "pcr7": pcr7(mode),
        "pcr11": (bytes.fromhex(RECORDED["pcr11"]),),
        "reference": (reference(),),
    }
    return Policy(**(given | changes))  # type: ignore[arg-type]


def evidence(log: EventLog | bytes | None = None, **changes: object) -> Evidence:
    """Evidence whose quote fits the log, as `session.verify_response` gives it."""
    log = log if isinstance(log, EventLog) else parse_event_log(log or log_bytes())
    given = {
        "ek_identity": EK_IDENTITY,
        "pcrs": {pcr: value for pcr, value in replay(log, "sha256").items() if pcr not in (10, 15)},
        "log": log,
        "tpm": TPM,
        "ak_name": b"\0\x0b" + bytes(32),
        "nonce": bytes(32),
        "quoted_at": NOW,
    }
    return Evidence(**(given | changes))  # type: ignore[arg-type]


def two_banks(log: bytes = b"", last_lacks: str = "") -> bytes:
    """The recorded log as firmware with a SHA-384 bank beside SHA-256 would have written it; the last event may leave
    one of the two out."""
    specification = SPECIFICATION[:24] + struct.pack("<I", 2) + struct.pack("<HHHH", 0x0B, 32, 0x0C, 48) + b"\0"
    out = header(specification)
    events = parse_event_log(log or log_bytes()).events
    for one in events:
        digest = one.digests["sha256"]
        measured = one.data if one.vouched_data("sha256") is not None else digest  # of an image there is no data
        second = hashlib.sha384(measured).digest() if any(digest) else bytes(48)
        digests = {"sha256": struct.pack("<H", 0x0B) + digest, "sha384": struct.pack("<H", 0x0C) + second}
        if one is events[-1]:
            digests.pop(last_lacks, None)
        out += struct.pack("<III", one.pcr, one.type, len(digests)) + b"".join(digests.values())
        out += struct.pack("<I", len(one.data)) + one.data
    return out


SPECIFICATION = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, 1) + struct.pack("<HHB", 0x0B, 32, 0)


def header(specification: bytes = SPECIFICATION) -> bytes:
    return struct.pack("<II20sI", 0, 3, bytes(20), len(specification)) + specification


def event(pcr: int, kind: int, data: bytes, digest: bytes | None = None) -> bytes:
    """One crypto-agile event of a log with a SHA-256 bank."""
    digest = hashlib.sha256(data).digest() if digest is None else digest
    return struct.pack("<IIIH", pcr, kind, 1, 0x0B) + digest + struct.pack("<I", len(data)) + data
