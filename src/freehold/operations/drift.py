"""Drift: what the landlord's door shows now, compared with what it showed when the server was accepted.

Pure. `diff` says what differs, `response` what policy wants done about it; the doers are in `orchestration.steps`.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from freehold.model.findings import Finding, Severity


class DriftKind(StrEnum):
    SECURE_BOOT = "secure-boot-off"
    SECURE_BOOT_KEYS = "secure-boot-keys-changed"
    BOOT_ORDER = "boot-order-changed"
    FOREIGN_ACCOUNT = "foreign-bmc-account"
    ACCOUNT_ROLE = "bmc-account-changed"
    BIOS_ATTRIBUTE = "bios-attribute-changed"
    FIRMWARE_VERSION = "firmware-version-changed"
    IPMI = "ipmi-enabled"


class Response(StrEnum):
    REMEDIATE = "remediate"
    QUARANTINE = "quarantine"
    REPORT = "report"


# What is done when the Policy says nothing. Firmware and Secure Boot keys that change by themselves mean that somebody
# else holds the machine: nothing that we could write to it would make it trustworthy again, so a person decides.
DEFAULT_RESPONSE: Mapping[DriftKind, Response] = {
    DriftKind.SECURE_BOOT: Response.QUARANTINE,
    DriftKind.SECURE_BOOT_KEYS: Response.QUARANTINE,
    DriftKind.FIRMWARE_VERSION: Response.QUARANTINE,
    DriftKind.BOOT_ORDER: Response.REMEDIATE,
    DriftKind.FOREIGN_ACCOUNT: Response.REMEDIATE,
    DriftKind.ACCOUNT_ROLE: Response.REMEDIATE,
    DriftKind.BIOS_ATTRIBUTE: Response.REMEDIATE,
    DriftKind.IPMI: Response.REMEDIATE,
}


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of one server as its BMC reports it. `accounts` maps user name to role, enabled accounts only;
    `firmware` maps component to version; `secure_boot_keys` maps database to its certificates' SHA-256, sorted."""

    secure_boot: bool
    boot_order: tuple[str, ...]
    accounts: dict[str, str]
    bios: dict[str, str | int | bool | None]
    firmware: dict[str, str]
    ipmi: bool
    secure_boot_keys: dict[str, tuple[str, ...]] = {}


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """One difference. `subject` names the thing inside the server: an account, an attribute, a component."""

    kind: DriftKind
    subject: str
    expected: str
    found: str

    def sentence(self) -> str:
        return f"{self.kind}: {self.subject} is {self.found}, declared {self.expected}"


def diff(baseline: Observation, observed: Observation) -> tuple[Drift, ...]:
    """Every difference, in a stable order: trust first, convenience last."""
    found: list[Drift] = []
    if baseline.secure_boot and not observed.secure_boot:
        found.append(Drift(kind=DriftKind.SECURE_BOOT, subject="Secure Boot", expected="on", found="off"))
    for kind, before, now in (
        (DriftKind.SECURE_BOOT_KEYS, baseline.secure_boot_keys, observed.secure_boot_keys),
        (DriftKind.FIRMWARE_VERSION, baseline.firmware, observed.firmware),
        (DriftKind.BIOS_ATTRIBUTE, baseline.bios, observed.bios),
    ):
        found += _changed(kind, before, now)
    for user, role in sorted(observed.accounts.items()):
        if user not in baseline.accounts:
            found.append(Drift(kind=DriftKind.FOREIGN_ACCOUNT, subject=user, expected="absent", found=role))
        elif baseline.accounts[user] != role:
            found.append(Drift(kind=DriftKind.ACCOUNT_ROLE, subject=user, expected=baseline.accounts[user], found=role))
    if observed.ipmi and not baseline.ipmi:
        found.append(Drift(kind=DriftKind.IPMI, subject="IPMI over LAN", expected="off", found="on"))
    if observed.boot_order != baseline.boot_order:
        expected, now_ = " ".join(baseline.boot_order), " ".join(observed.boot_order)
        found.append(Drift(kind=DriftKind.BOOT_ORDER, subject="boot order", expected=expected, found=now_))
    return tuple(found)


def _changed(kind: DriftKind, before: Mapping[str, object], now: Mapping[str, object]) -> list[Drift]:
    return [
        Drift(kind=kind, subject=name, expected=_text(before.get(name)), found=_text(now.get(name)))
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _text(value: object) -> str:
    if value is None:
        return "absent"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def response(drift: Drift, policy: Mapping[str, str]) -> Response:
    """What is to be done about it. An unknown word means quarantine: a policy that cannot be read is no licence."""
    wanted = policy.get(drift.kind)
    if wanted is None:
        return DEFAULT_RESPONSE[drift.kind]
    return Response(wanted) if wanted in set(Response) else Response.QUARANTINE


def finding(server: str, drift: Drift, wanted: Response) -> Finding:
    remedy = {
        Response.REMEDIATE: "Freehold puts it back; find out who changed it (`freehold events SERVER`)",
        Response.QUARANTINE: f"find out who changed it, then `freehold release {server}`",
        Response.REPORT: "policy says report only; put it back, or declare the new value",
    }[wanted]
    severity = Severity.CRITICAL if wanted is Response.QUARANTINE else Severity.WARNING
    return Finding(severity=severity, kind=drift.kind, subject=server, detail=drift.sentence(), remedy=remedy)
