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

from freehold.model.findings import Finding, Severity
from freehold.root_of_trust.attestation import event_log, predict, uefi
from freehold.root_of_trust.attestation.errors import AttestationError
from freehold.root_of_trust.attestation.event_log import EV_NO_ACTION, Event, EventLog
from freehold.root_of_trust.attestation.predict import ExpectedEvent
from freehold.root_of_trust.attestation.reader import printable
from freehold.root_of_trust.attestation.reference import PCRS, ReferenceValues, leading
from freehold.root_of_trust.attestation.structures import ClockInfo
from freehold.root_of_trust.attestation.words import (
    describe_event,
    describe_image,
    describe_variable,
    few,
    name_event,
    read_variable,
)

BANK = "sha256"
SEPARATOR, CALLING, RETURNING = (
    hashlib.sha256(data).digest() for data in (predict.SEPARATOR, predict.CALLING, predict.RETURNING)
)
MEASURED_BY_FIRMWARE = range(8)  # the PCRs that the firmware closes with a separator (Profile, 3.3.4)


@dataclass(frozen=True, kw_only=True)
class TpmState:
    """What a quote says of its TPM beside the PCRs. `banks` says of each PCR bank whether it is active; one that the
    TPM does not have is not there.

    Kept from quote to quote: counters only grow until TPM2_Clear, and banks do not leave a TPM.
    """

    clock: ClockInfo
    firmware_version: int
    banks: Mapping[str, bool]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What `session.verify_response` proved: PCR values that this TPM signed, and a log that replays to them."""

    ek_identity: str
    ak_name: bytes
    nonce: bytes
    pcrs: Mapping[int, bytes]
    log: EventLog
    tpm: TpmState
    quoted_at: datetime


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What must have booted. Digests and values are SHA-256.

    `pcr4` and `pcr7` are whole event lists as `predict` makes them; `pcr11` lists the permitted values. `reference` are
    the approved variants of the firmware: PCR 0 must be as one of them has it, and so must PCR 2; None: both are only
    recorded. `last_seen` is of this TPM's last quote; None if there was none, or a TPM2_Clear was ordered since.
    """

    id: str
    ek_identity: str
    pcr4: Sequence[ExpectedEvent]
    pcr7: Sequence[ExpectedEvent]
    pcr11: Sequence[bytes]
    reference: Sequence[ReferenceValues] | None = None
    last_seen: TpmState | None = None
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
    """`reasons` are sentences that name the failing event; there is at least one if not trusted. `findings` are what
    should be put right, and does not make the server untrusted."""

    trusted: bool
    reasons: tuple[str, ...]
    policy_id: str
    findings: tuple[Finding, ...] = ()
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
    reasons += _went_back(evidence.tpm, policy.last_seen)
    replayed = event_log.replay(evidence.log, BANK)
    reasons += few(_disagreeing(evidence))
    checks: dict[int, Callable[[], list[str]]] = {
        **{pcr: partial(_untouched, evidence, pcr) for pcr in policy.untouched},
        **{
            pcr: partial(_reference, evidence.log, pcr, policy.reference)
            for pcr in PCRS
            if policy.reference is not None
        },
        4: partial(_pcr4, evidence.log, policy.pcr4),
        7: partial(_pcr7, evidence.log, policy.pcr7),
        11: partial(_pcr11, evidence, policy.pcr11),
    }
    if unquoted := sorted(checks.keys() - evidence.pcrs.keys()):
        reasons.append(f"the quote does not cover PCR {', '.join(map(str, unquoted))}, which policy needs")
    results = {}
    for pcr, value in sorted(evidence.pcrs.items()):
        found = [f"PCR {pcr}: {what}" for what in few(checks[pcr]())] if pcr in checks else []
        found += [f"PCR {pcr}: {what}" for what in _separator(evidence.log, pcr)]
        if pcr != 11 and replayed.get(pcr) != value:  # 11 is also extended by the running system, see _pcr11
            found.append(f"PCR {pcr}: the event log does not replay to the quoted value")
        fine = PcrStatus.MATCHED if pcr in checks else PcrStatus.RECORDED
        results[pcr] = PcrResult(status=PcrStatus.MISMATCHED if found else fine, value=value, reasons=tuple(found))
        reasons += found
    return Verdict(
        trusted=not reasons,
        reasons=tuple(reasons),
        policy_id=policy.id,
        findings=_findings(evidence, policy.last_seen),
        pcrs=results,
    )


def _went_back(tpm: TpmState, last: TpmState | None) -> list[str]:
    """Against the last quote of the same TPM. Clock counts within one boot only: after a power loss it may repeat."""
    if last is None:
        return []
    now, then = tpm.clock, last.clock
    boot, last_boot = (now.reset_count, now.restart_count), (then.reset_count, then.restart_count)
    reasons = []
    if boot < last_boot:
        reasons.append(f"the TPM's reset counters went back from {last_boot[0]}/{last_boot[1]} to {boot[0]}/{boot[1]}")
    if boot == last_boot and now.clock < then.clock:
        reasons.append(f"the TPM's clock went back from {then.clock} to {now.clock} ms within one boot")
    if tpm.firmware_version < last.firmware_version:
        old, new = _version(last.firmware_version), _version(tpm.firmware_version)
        reasons.append(f"the TPM's firmware went back from {old} to {new}")
    if gone := last.banks.keys() - tpm.banks.keys():
        reasons.append(f"the quote leaves out PCR banks that this TPM has: {', '.join(sorted(gone))}")
    return reasons


def _disagreeing(evidence: Evidence) -> list[str]:
    """Data that one bank vouches for and another does not: the banks were not extended by one measurement."""
    log = evidence.log
    others = [bank for bank, active in evidence.tpm.banks.items() if active and bank != BANK and bank in log.banks]
    if not others:
        return []
    events = [event for event in log.events if event.type != EV_NO_ACTION and event.vouched_data(BANK) is not None]
    return [
        f"PCR {event.pcr}: {name_event(event, BANK)} has a {bank} digest of something else than its {BANK} digest"
        for event in events
        for bank in others
        if event.vouched_data(bank) is None
    ]


def _findings(evidence: Evidence, last: TpmState | None) -> tuple[Finding, ...]:
    tpm, logged = evidence.tpm, evidence.log.banks
    unquoted = [bank for bank in logged if bank not in tpm.banks]
    unlogged = [bank for bank, active in tpm.banks.items() if active and bank not in logged]
    findings = []
    if unquoted:
        findings.append(
            Finding(
                severity=Severity.WARNING,
                kind="pcr-banks",
                subject=", ".join(unquoted),
                detail=f"the firmware measures into PCR banks that are not in the quote: {', '.join(unquoted)}",
                remedy="turn these banks off in the firmware's setup",
            )
        )
    if unlogged:
        findings.append(
            Finding(
                severity=Severity.WARNING,
                kind="pcr-banks",
                subject=", ".join(unlogged),
                detail=f"PCR banks are active that the firmware does not measure into: {', '.join(unlogged)}."
                " Whatever runs can fill them as it likes (CVE-2021-42299)",
                remedy="turn these banks off in the firmware's setup, and seal nothing to them",
            )
        )
    if last is not None and tpm.firmware_version > last.firmware_version:
        old, new = _version(last.firmware_version), _version(tpm.firmware_version)
        findings.append(
            Finding(
                severity=Severity.WARNING,
                kind="tpm-firmware",
                subject=new,
                detail=f"the TPM's firmware was {old} at the last quote, and is {new}",
                remedy="if nobody updated it, find out who did",
            )
        )
    return tuple(findings)


def _version(firmware_version: int) -> str:
    """As vendors print it: four 16-bit numbers of TPM_PT_FIRMWARE_VERSION_1 and _2."""
    return ".".join(str(firmware_version >> shift & 0xFFFF) for shift in (48, 32, 16, 0))


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
    for event, wanted in zip(events, expected, strict=False):
        if event.digests[BANK] != wanted.digest:
            words = describe_image(event, BANK)
            return [f"{words} that is not the expected {wanted.digest.hex()} ({wanted.label})"]
    return _surplus(events, expected, describe_image)


def _pcr7(log: EventLog, expected: Sequence[ExpectedEvent]) -> list[str]:
    events = log.of_pcr(7)
    reasons = []
    for event, wanted in zip(events, expected, strict=False):
        if event.digests[BANK] != wanted.digest:
            reasons += _variable_differences(event, wanted)
    reasons += _surplus(events, expected, describe_variable)
    return reasons


def _pcr11(evidence: Evidence, permitted: Sequence[bytes]) -> list[str]:
    """By value: the boot phases of a running system are in no log of the firmware."""
    if (value := evidence.pcrs[11]) in permitted:
        return []
    wanted = " or ".join(known.hex() for known in permitted) or "none"
    return [
        f"the unified kernel image measured {value.hex()}, expected {wanted}: kernel, initrd or command line differ"
    ]


def _reference(log: EventLog, pcr: int, variants: Sequence[ReferenceValues]) -> list[str]:
    """As one approved variant has it; the closest one names what differs."""
    events = log.of_pcr(pcr)
    observed = tuple(event.digests[BANK].hex() for event in events)
    if not variants:
        return ["no reference values are approved for this server's firmware"]
    approved = max(variants, key=lambda each: leading(observed, each.digests[str(pcr)]))
    wanted = approved.digests[str(pcr)]
    if any(observed == each.digests[str(pcr)] for each in variants):
        return []
    at = leading(observed, wanted)
    if at == len(events):
        return [f"measurement {at + 1}, approved for {approved.title}, was not made: {wanted[at]}"]
    expected = wanted[at] if at < len(wanted) else "nothing more"
    name = name_event(events[at], BANK)
    return [f"{name} has digest {observed[at]}, approved for {approved.title} is {expected}"]


def _untouched(evidence: Evidence, pcr: int) -> list[str]:
    if not any(evidence.pcrs[pcr]):
        return []
    events = [describe_event(event, BANK) for event in evidence.log.of_pcr(pcr)]
    names = ", ".join(few(events)) or "something after boot"
    return [f"it must be untouched, but {names} was measured into it"]


def _surplus(
    events: Sequence[Event], expected: Sequence[ExpectedEvent], describe: Callable[[Event, str], str]
) -> list[str]:
    if len(events) < len(expected):
        return [f"{wanted.label} was not measured" for wanted in expected[len(events) :]]
    return [f"{describe(event, BANK)} that nothing expects" for event in events[len(expected) :]]


def _variable_differences(event: Event, wanted: ExpectedEvent) -> list[str]:
    """What differs in a Secure Boot variable, certificate by certificate."""
    found, expected = read_variable(event.vouched_data(BANK)), read_variable(wanted.data)
    if found is None or expected is None or (found.vendor, found.name) != (expected.vendor, expected.name):
        return [f"{describe_variable(event, BANK)} stands where {wanted.label} was expected"]
    if found.name == "SecureBoot":
        state = "on" if found.data == b"\1" else "off"
        return [f"Secure Boot is {state}, against policy"]
    if wanted.authority:  # by what is expected here: the type of what came is anybody's word
        # An authority is one EFI_SIGNATURE_DATA: the owner's GUID (16 bytes), which vouches for nothing, and the entry.
        if wanted.data is not None and found.data[16:] == expected.data[16:]:
            return []
        return [
            f"the image was admitted by {printable(uefi.describe_certificate(found.data[16:]))}, not by {wanted.label}"
        ]
    # Firmware trusts the entries, whoever is named as their owner: BMCs write a GUID of their own there.
    there = {(entry.type, entry.data): entry for entry in _entries(found)}
    own = {(entry.type, entry.data): entry for entry in _entries(expected)}
    foreign = [entry for key, entry in there.items() if key not in own]
    missing = [entry for key, entry in own.items() if key not in there]
    if found.name == "dbx":
        foreign = []  # more that is forbidden makes nothing more trusted
    reasons = [f"{found.name} holds a {printable(entry.describe())} that is not the operator's" for entry in foreign]
    return sorted(reasons + [f"{found.name} lacks the {printable(entry.describe())}" for entry in missing])


def _entries(variable: uefi.VariableData) -> tuple[uefi.SignatureEntry, ...]:
    return uefi.parse_signature_lists(variable.data)
