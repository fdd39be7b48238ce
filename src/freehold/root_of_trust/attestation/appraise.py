"""The decider: verified evidence and a policy in, a verdict in words out. Pure, and it never raises: what cannot be
appraised is untrusted (CVE-2022-3500, CVE-2023-3674).

Policy is over event *digests*: types and most data of events are not protected. Data only helps to name what differs,
and only where a digest vouches for it. Every event of a policed PCR must be expected; there is no "ignore the rest".
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial

from freehold.root_of_trust.attestation import event_log, predict, uefi
from freehold.root_of_trust.attestation.errors import AttestationError, MalformedEvidenceError
from freehold.root_of_trust.attestation.event_log import Event, EventLog
from freehold.root_of_trust.attestation.predict import ExpectedEvent
from freehold.root_of_trust.attestation.structures import ClockInfo

BANK = "sha256"
SEPARATOR, CALLING, RETURNING = (
    hashlib.sha256(data).digest() for data in (predict.SEPARATOR, predict.CALLING, predict.RETURNING)
)
MEASURED_BY_FIRMWARE = range(8)  # the PCRs that the firmware closes with a separator (Profile, 3.3.4)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What `session.verify_response` proved: PCR values that this TPM signed, and a log that replays to them."""

    ek_identity: str
    pcrs: Mapping[int, bytes]
    log: EventLog
    clock: ClockInfo
    firmware_version: int
    quoted_at: datetime


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What must have booted. Digests and values are SHA-256.

    `pcr4` and `pcr7` are whole event lists as `predict` makes them; `pcr11` lists the permitted values. `reference`
    has for PCR 0 and 2 the approved digests in order; a PCR that is absent or None is only recorded.
    """

    id: str
    ek_identity: str
    pcr4: Sequence[ExpectedEvent]
    pcr7: Sequence[ExpectedEvent]
    pcr11: Sequence[bytes]
    reference: Mapping[int, Sequence[bytes] | None] = field(default_factory=dict)
    untouched: Sequence[int] = (12, 13)
    max_age: timedelta = timedelta(minutes=5)


class PcrStatus(StrEnum):
    MATCHED = "matched"
    MISMATCHED = "mismatched"
    RECORDED = "recorded"


@dataclass(frozen=True, kw_only=True)
class PcrResult:
    """The quoted value of a PCR and what policy made of it; `reasons` is empty unless mismatched."""

    status: PcrStatus
    value: bytes
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`reasons` are sentences that name the failing event; there is at least one if not trusted."""

    trusted: bool
    reasons: tuple[str, ...]
    policy_id: str
    pcrs: Mapping[int, PcrResult] = field(default_factory=dict)


def appraise(evidence: Evidence, policy: Policy, now: datetime) -> Verdict:
    """Trusted only if every check ran and found nothing."""
    try:
        return _appraise(evidence, policy, now)
    except Exception as error:  # fail closed: whatever went wrong, nothing was proven
        what = error.what if isinstance(error, AttestationError) else f"{type(error).__name__}: {error}"
        return Verdict(trusted=False, reasons=(f"the evidence could not be appraised: {what}",), policy_id=policy.id)


def _appraise(evidence: Evidence, policy: Policy, now: datetime) -> Verdict:
    reasons = []
    if evidence.ek_identity != policy.ek_identity:
        reasons.append(f"the TPM is {evidence.ek_identity[:16]}…, not this server's {policy.ek_identity[:16]}…")
    if not timedelta(0) <= now - evidence.quoted_at <= policy.max_age:
        reasons.append(f"the quote of {evidence.quoted_at:%Y-%m-%d %H:%M:%S} is not of the last {policy.max_age}")
    replayed = event_log.replay(evidence.log, BANK)
    checks: dict[int, Callable[[], list[str]]] = {
        **{pcr: partial(_untouched, evidence, pcr) for pcr in policy.untouched},
        **{
            pcr: partial(_reference, evidence.log, pcr, digests)
            for pcr, digests in policy.reference.items()
            if digests is not None
        },
        4: partial(_pcr4, evidence.log, policy.pcr4),
        7: partial(_pcr7, evidence.log, policy.pcr7),
        11: partial(_pcr11, evidence, policy.pcr11),
    }
    if unquoted := sorted(checks.keys() - evidence.pcrs.keys()):
        reasons.append(f"the quote does not cover PCR {', '.join(map(str, unquoted))}, which policy needs")
    results = {}
    for pcr, value in sorted(evidence.pcrs.items()):
        found = [f"PCR {pcr}: {what}" for what in checks[pcr]()] if pcr in checks else []
        found += [f"PCR {pcr}: {what}" for what in _separator(evidence.log, pcr)]
        if pcr != 11 and replayed.get(pcr) != value:  # 11 is also extended by the running system, see _pcr11
            found.append(f"PCR {pcr}: the event log does not replay to the quoted value")
        fine = PcrStatus.MATCHED if pcr in checks else PcrStatus.RECORDED
        results[pcr] = PcrResult(status=PcrStatus.MISMATCHED if found else fine, value=value, reasons=tuple(found))
        reasons += found
    return Verdict(trusted=not reasons, reasons=tuple(reasons), policy_id=policy.id, pcrs=results)


def _separator(log: EventLog, pcr: int) -> list[str]:
    """Exactly one separator of zeros in each PCR that the firmware closes; ones mean that the firmware failed."""
    if pcr not in MEASURED_BY_FIRMWARE:
        return []
    separators = [e for e in log.of_pcr(pcr) if e.type == event_log.EV_SEPARATOR or e.digests[BANK] == SEPARATOR]
    if any(event.digests[BANK] != SEPARATOR for event in separators):
        return ["the firmware reported an error: its separator is not zero"]
    return [] if len(separators) == 1 else [f"there are {len(separators)} separators where one belongs"]


def _pcr4(log: EventLog, expected: Sequence[ExpectedEvent]) -> list[str]:
    """Action, separator, images: in order and nothing else.

    A boot option that fails without starting anything (a blank disk before the network) leaves "Returning …" and
    "Calling …" behind; such pairs are allowed between the separator and the first image, nowhere else.
    """
    events = list(log.of_pcr(4))
    while [event.digests[BANK] for event in events[2:4]] == [RETURNING, CALLING]:
        del events[2:4]
    return _in_order(events, expected, _describe_image)


def _pcr7(log: EventLog, expected: Sequence[ExpectedEvent]) -> list[str]:
    events = log.of_pcr(7)
    reasons = []
    for event, wanted in zip(events, expected, strict=False):
        if event.digests[BANK] != wanted.digest:
            reasons += _variable_differences(event, wanted)
    reasons += _surplus(events, expected, _describe_variable)
    return reasons


def _pcr11(evidence: Evidence, permitted: Sequence[bytes]) -> list[str]:
    """By value: the boot phases of a running system are in no log of the firmware."""
    if (value := evidence.pcrs[11]) in permitted:
        return []
    wanted = " or ".join(known.hex() for known in permitted) or "none"
    return [
        f"the unified kernel image measured {value.hex()}, expected {wanted}: kernel, initrd or command line differ"
    ]


def _reference(log: EventLog, pcr: int, digests: Sequence[bytes]) -> list[str]:
    expected = [ExpectedEvent(digest=digest, label=f"reference event {n}") for n, digest in enumerate(digests)]
    return _in_order(log.of_pcr(pcr), expected, _describe_event)


def _untouched(evidence: Evidence, pcr: int) -> list[str]:
    if not any(evidence.pcrs[pcr]):
        return []
    names = ", ".join(_describe_event(event) for event in evidence.log.of_pcr(pcr)) or "something after boot"
    return [f"it must be untouched, but {names} was measured into it"]


def _in_order(
    events: Sequence[Event], expected: Sequence[ExpectedEvent], describe: Callable[[Event], str]
) -> list[str]:
    """The first event that is not the expected one, or what is missing or too much."""
    for event, wanted in zip(events, expected, strict=False):
        if event.digests[BANK] != wanted.digest:
            return [f"{describe(event)} that is not the expected {wanted.digest.hex()} ({wanted.label})"]
    return _surplus(events, expected, describe)


def _surplus(events: Sequence[Event], expected: Sequence[ExpectedEvent], describe: Callable[[Event], str]) -> list[str]:
    if len(events) < len(expected):
        return [f"{wanted.label} was not measured" for wanted in expected[len(events) :]]
    return [f"{describe(event)} that nothing expects" for event in events[len(expected) :]]


def _describe_event(event: Event) -> str:
    return f"event {event.number} ({event.type_name}) with digest {event.digests[BANK].hex()}"


def _describe_image(event: Event) -> str:
    if event.type != event_log.EV_EFI_BOOT_SERVICES_APPLICATION:
        return _describe_event(event)
    try:
        origin = f" (by the firmware's word from {uefi.parse_image_load(event.data).device_path})"
    except MalformedEvidenceError:
        origin = ""
    return f"booted an image with Authenticode digest {event.digests[BANK].hex()}{origin}"


def _describe_variable(event: Event) -> str:
    variable = _variable(event.vouched_data(BANK))
    return f"variable {variable.name}" if variable else _describe_event(event)


def _variable_differences(event: Event, wanted: ExpectedEvent) -> list[str]:
    """What differs in a Secure Boot variable, certificate by certificate."""
    found, expected = _variable(event.vouched_data(BANK)), _variable(wanted.data)
    if found is None or expected is None or found.name != expected.name:
        return [f"{_describe_variable(event)} stands where {wanted.label} was expected"]
    if found.name == "SecureBoot":
        state = "on" if found.data == b"\1" else "off"
        return [f"Secure Boot is {state}, against policy"]
    if event.type == event_log.EV_EFI_VARIABLE_AUTHORITY:
        # An authority is one EFI_SIGNATURE_DATA: the owner's GUID (16 bytes), which vouches for nothing, and the entry.
        if wanted.data is not None and found.data[16:] == expected.data[16:]:
            return []
        return [f"the image was admitted by {uefi.describe_certificate(found.data[16:])}, not by {wanted.label}"]
    # Firmware trusts the entries, whoever is named as their owner: BMCs write a GUID of their own there.
    there = {(entry.type, entry.data): entry for entry in _entries(found)}
    own = {(entry.type, entry.data): entry for entry in _entries(expected)}
    foreign = [entry for key, entry in there.items() if key not in own]
    missing = [entry for key, entry in own.items() if key not in there]
    reasons = [f"{found.name} holds a {entry.describe()} that is not the operator's" for entry in foreign]
    return sorted(reasons + [f"{found.name} lacks the {entry.describe()}" for entry in missing])


def _entries(variable: uefi.VariableData) -> tuple[uefi.SignatureEntry, ...]:
    return uefi.parse_signature_lists(variable.data)


def _variable(data: bytes | None) -> uefi.VariableData | None:
    if data is None:
        return None
    try:
        return uefi.parse_variable(data)
    except MalformedEvidenceError:
        return None
