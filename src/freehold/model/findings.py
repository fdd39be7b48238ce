"""A finding: something that is not as declared, said so that a tired operator can act on it."""

from enum import StrEnum

import msgspec

from freehold.model.errors import FreeholdError


class Severity(StrEnum):
    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """`kind` is a stable kebab-case word for machines; `detail` and `remedy` are sentences for people. `evidence` is
    what was read or sent, and what came back, never a secret; an audit shows no finding without."""

    severity: Severity
    kind: str
    subject: str
    detail: str
    remedy: str
    evidence: str = ""


def refusal_of(where: str, error: FreeholdError | OSError) -> str:
    """Evidence of what cannot be used: where it was read, what kind of error that was, and what was expected there."""
    expected = error.expected if isinstance(error, FreeholdError) else None
    return f"{where}: {type(error).__name__}" + (f", expected {expected}" if expected else "")
