"""Drift: what the landlord's door shows now, compared with what it showed when the server was accepted.

Pure. `diff` says what differs; `PolicySpec.reaction` says what is to be done about it; the doers are in
`orchestration.steps`.
"""

from collections.abc import Mapping

import msgspec

from freehold.model.findings import Finding, Severity
from freehold.model.resources import DriftKind, Reaction
from freehold.model.status import Drift


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of one server as its BMC reports it. `accounts` maps user name to role, enabled accounts only;
    `firmware` maps component to version; `secure_boot` is None if the BMC says nothing of it; `secure_boot_keys` maps
    database to what it holds: SHA-256 of certificates, `sha256:` before digests of images."""

    secure_boot: bool | None
    boot_order: tuple[str, ...]
    accounts: dict[str, str]
    bios: dict[str, str | int | bool | None]
    firmware: dict[str, str]
    ipmi: bool
    secure_boot_keys: dict[str, tuple[str, ...]] = {}


def diff(baseline: Observation, observed: Observation) -> tuple[Drift, ...]:
    """Every difference, in a stable order: trust first, convenience last."""
    found: list[Drift] = []
    if baseline.secure_boot and not observed.secure_boot:
        found.append(Drift(kind=DriftKind.SECURE_BOOT, subject="Secure Boot", expected="on", observed="off"))
    for kind, before, now in (
        (DriftKind.SECURE_BOOT_KEYS, baseline.secure_boot_keys, observed.secure_boot_keys),
        (DriftKind.FIRMWARE_VERSION, baseline.firmware, observed.firmware),
        (DriftKind.BMC_ACCOUNT, baseline.accounts, observed.accounts),
        (DriftKind.BIOS_ATTRIBUTE, baseline.bios, observed.bios),
    ):
        found += _changed(kind, before, now)
    if observed.ipmi and not baseline.ipmi:
        found.append(Drift(kind=DriftKind.IPMI, subject="IPMI over LAN", expected="off", observed="on"))
    if observed.boot_order != baseline.boot_order:
        before_, now_ = " ".join(baseline.boot_order), " ".join(observed.boot_order)
        found.append(Drift(kind=DriftKind.BOOT_ORDER, subject="boot order", expected=before_, observed=now_))
    return tuple(found)


def _changed(kind: DriftKind, before: Mapping[str, object], now: Mapping[str, object]) -> list[Drift]:
    return [
        Drift(kind=kind, subject=name, expected=_text(before.get(name)), observed=_text(now.get(name)))
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _text(value: object) -> str:
    if value is None:
        return "absent"
    return (" ".join(map(str, value)) or "empty") if isinstance(value, tuple) else str(value)


def sentence(drift: Drift) -> str:
    return f"{drift.kind}: {drift.subject} is {drift.observed}, declared {drift.expected}"


def finding(server: str, drift: Drift, reaction: Reaction) -> Finding:
    remedy = {
        Reaction.REMEDIATE: f"Freehold puts it back; find out who changed it (`freehold events {server}`)",
        Reaction.QUARANTINE: f"find out who changed it, then `freehold release {server}`",
        Reaction.REPORT: "policy says report only; put it back, or declare the new value",
    }[reaction]
    severity = Severity.CRITICAL if reaction is Reaction.QUARANTINE else Severity.WARNING
    return Finding(severity=severity, kind=drift.kind, subject=server, detail=sentence(drift), remedy=remedy)
