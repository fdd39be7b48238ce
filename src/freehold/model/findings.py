"""A finding: something that is not as declared, said so that a tired operator can act on it."""

from enum import StrEnum

import msgspec


class Severity(StrEnum):
    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """`kind` is a stable kebab-case word for machines; `detail` and `remedy` are sentences for people. `evidence` is
    what was read or sent, and what came back; empty where that is the detail."""

    severity: Severity
    kind: str
    subject: str
    detail: str
    remedy: str
    evidence: str = ""
