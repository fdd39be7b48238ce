"""Which metadata has to be renewed, before it is too late. Pure."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from freehold.model.findings import Finding, Severity

WARNING_DAYS = {"root": 60, "targets": 30, "snapshot": 7, "timestamp": 7}
_REMEDY = {
    "root": "stage a new one with `freehold depot rotate`, let two operators sign it, publish it",
    "targets": "stage a new one with `freehold depot rotate`, let two operators sign it, publish it",
    "snapshot": "`freehold depot publish` renews it; a depot that is carried in needs newer media",
    "timestamp": "`freehold depot publish` renews it; a depot that is carried in needs newer media",
}


def expiring(expiries: Mapping[str, datetime], now: datetime) -> tuple[Finding, ...]:
    """A finding for each role that has expired (critical) or will soon (warning), by role."""
    found = []
    for role, expires in sorted(expiries.items()):
        if expires - now > timedelta(days=WARNING_DAYS[role]):
            continue
        late = now >= expires
        found.append(
            Finding(
                severity=Severity.CRITICAL if late else Severity.WARNING,
                kind="depot-expiry",
                subject=f"depot/{role}",
                detail=f"the depot's {role} metadata {'expired' if late else 'expires'} at {expires:%Y-%m-%d %H:%M:%SZ}"
                + ("; no package can be used" if late else ""),
                remedy=_REMEDY[role],
                evidence=f"signed {role} metadata of the depot: expires is {expires:%Y-%m-%dT%H:%M:%SZ}",
            )
        )
    return tuple(found)
