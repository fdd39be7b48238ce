"""Waivers: what a server may lack for a while, because two people signed for it. Pure.

A `Waiver` document asks; it counts once two operators have approved exactly what it says, and until it expires.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from freehold.model.findings import Finding, Severity
from freehold.model.resources import Waivable, WaiverSpec
from freehold.model.status import Facts
from freehold.out_of_band.hardening import directories
from freehold.root_of_trust.operators import (
    PAYLOAD_TYPE,
    THRESHOLD,
    Act,
    Operators,
    Request,
    approvers,
    as_evidence,
)


class ActiveWaiver(msgspec.Struct, frozen=True, kw_only=True):
    """A waiver that enough people signed. `expires`: UNIX seconds; whoever relies on it compares. `approval`: what they
    signed, with their signatures."""

    name: str
    finding: Waivable
    reason: str
    expires: float
    approved_by: tuple[str, ...]
    account: str | None = None
    approval: dict[str, Any] = {}


def request_of(name: str, spec: WaiverSpec) -> Request:
    """What two people are asked to sign. The same document always asks for the same thing."""
    return Request(
        act=Act.WAIVER,
        subject=f"server/{spec.server}",
        details={"waiver": name, **msgspec.to_builtins(spec)},
        requested_by="declared",
        at=0.0,
        expires=moment(spec.expires).timestamp(),
    )


def signed(name: str, spec: WaiverSpec, envelopes: Iterable[bytes], people: Operators) -> ActiveWaiver | None:
    """The waiver, if enough of today's operators signed what it says now."""
    request, given = request_of(name, spec), tuple(envelopes)
    names = approvers(request.to_bytes(), PAYLOAD_TYPE, given, people)
    if len(names) < THRESHOLD:
        return None
    return ActiveWaiver(
        name=name,
        finding=spec.finding,
        reason=spec.reason,
        expires=request.expires,
        approved_by=names,
        account=spec.account,
        approval=as_evidence(request, given, people),
    )


def waiver_for(waivers: Iterable[ActiveWaiver], finding: Waivable, now: float) -> ActiveWaiver | None:
    """The waiver of `finding` that holds now."""
    return next((each for each in waivers if each.finding == finding and now < each.expires), None)


def of_accounts(waivers: Iterable[ActiveWaiver], now: float) -> dict[str, ActiveWaiver]:
    """The accounts on the BMC that may stay now beside ours, and who said so."""
    found = (each for each in waivers if each.finding is Waivable.BMC_ACCOUNT and now < each.expires)
    return {each.account: each for each in found if each.account is not None}


ENDED = "waiver-ended"


def exceptions(waivers: Iterable[ActiveWaiver], facts: Facts, server: str, now: float) -> tuple[Finding, ...]:
    """What the server goes without: a remark while a waiver holds; critical when it has ended and the server lives on
    without."""
    known = tuple(waivers)
    found = [_exception(known, finding, server, now) for finding in _lacking(facts)]
    for account, waiver in of_accounts(known, now).items():
        found.append(_waived(waiver, f"account {account} of its BMC, which is not ours, may stay", server))
    return tuple(found)


def _lacking(facts: Facts) -> tuple[Waivable, ...]:
    lacking = {
        Waivable.BMC_CERTIFICATE: facts.bmc_certificate is None and facts.bmc_certificate_waived,
        Waivable.SECURE_BOOT_DATABASES: not facts.secure_boot_enrolled and facts.secure_boot_waived,
        Waivable.TPM: facts.ek_sha256 is None and facts.tpm_waived,
        Waivable.MISSING_MEDIUM: bool(facts.missing_media),
        Waivable.IPMI: facts.ipmi_waived,
        Waivable.BMC_DIRECTORY: bool(directories(facts.services_left_open)),
    }
    return tuple(finding for finding, lacks in lacking.items() if lacks)


def ended(waivers: Iterable[ActiveWaiver], facts: Facts, now: float) -> tuple[Waivable, ...]:
    """What the server lives without though no waiver holds any longer. A medium that was missing when it was erased is
    the past: only that waiver's end changes nothing. A foreign account is drift from that moment on."""
    known = tuple(waivers)
    lasting = (finding for finding in _lacking(facts) if finding is not Waivable.MISSING_MEDIUM)
    return tuple(finding for finding in lasting if waiver_for(known, finding, now) is None)


def ended_finding(server: str, finding: Waivable) -> Finding:
    past = finding is Waivable.MISSING_MEDIUM
    return Finding(
        severity=Severity.WARNING if past else Severity.CRITICAL,
        kind=ENDED,
        subject=finding.value,
        detail=f"{_WITHOUT[finding]}; the waiver of that has ended",
        remedy=f"mend it, {remedy(server, finding)}",
        evidence=f"record of {server}: {_RECORDED[finding]}; no signed Waiver of {finding} holds today",
    )


_WITHOUT = {
    Waivable.BMC_CERTIFICATE: "its BMC serves no certificate of the site's BMC CA",
    Waivable.SECURE_BOOT_DATABASES: "its firmware has not the site's Secure Boot keys: it starts what anybody signed",
    Waivable.TPM: "it has no usable TPM 2.0: nothing proves what it boots",
    Waivable.MISSING_MEDIUM: "disks that were in it are unaccounted for",
    Waivable.IPMI: "its BMC answers IPMI over LAN",
    Waivable.BMC_DIRECTORY: "its BMC lets in whom a directory vouches for",
}

_RECORDED = {
    Waivable.BMC_CERTIFICATE: "no certificate was installed on its BMC, by a waiver",
    Waivable.SECURE_BOOT_DATABASES: "its Secure Boot databases were not written, by a waiver",
    Waivable.TPM: "no endorsement key was bound, by a waiver",
    Waivable.MISSING_MEDIUM: "media were missing when it was erased",
    Waivable.IPMI: "its port of IPMI answered after IPMI was turned off, by a waiver",
    Waivable.BMC_DIRECTORY: "a directory was left on when its BMC's services were closed",
}


def _exception(waivers: tuple[ActiveWaiver, ...], finding: Waivable, server: str, now: float) -> Finding:
    waiver = waiver_for(waivers, finding, now)
    if waiver is None:
        return ended_finding(server, finding)
    return _waived(waiver, _WITHOUT[finding], server)


def _waived(waiver: ActiveWaiver, what: str, server: str) -> Finding:
    until = f"{datetime.fromtimestamp(waiver.expires, UTC):%Y-%m-%d %H:%M:%SZ}"
    return Finding(
        severity=Severity.INFO,
        kind=waiver.finding.value,
        subject=server,
        detail=f"{what}; waived until {until}: {waiver.reason}",
        remedy="mend it before the waiver ends",
        evidence=f"Waiver {waiver.name}, signed by {', '.join(waiver.approved_by)}",
    )


def claim(waiver: ActiveWaiver, at: float, **what: object) -> dict[str, object]:
    """The statement `waiver`: what was gone without, and by whose word and signature, at that time (UNIX seconds)."""
    return {**msgspec.to_builtins(waiver), "at": at, **what}


def remedy(server: str, finding: Waivable) -> str:
    """What a person does who wants to go on without it."""
    return f"or declare a Waiver of {finding} for {server}, which two operators sign with `freehold approval sign`"


def moment(text: str) -> datetime:
    """An RFC 3339 date or time; UTC unless it says otherwise."""
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
