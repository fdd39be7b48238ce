"""Downgrade tickets: two people let one server's firmware fall below its security floor, once. Pure.

A ticket is a request for approval like any other (`freehold approval`): what is signed says server, board, the version
that is installed, the one that is wanted, and the SHA-256 of its package.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from freehold.orchestration.approvals import Approved
from freehold.root_of_trust.depot import Downgrade, DowngradeTicket, Target, Wanted
from freehold.root_of_trust.operators import Act, Request


def subject_of(server: str) -> str:
    return f"server/{server}"


def request_for(
    server: str, wanted: Wanted, installed: str, target: Target, *, reason: str, by: str, at: float, expires: float
) -> Request:
    """What two people are asked to sign. Times are UNIX seconds."""
    details = {
        "vendor": wanted.vendor,
        "component": wanted.component,
        "model": wanted.model,
        "from": installed,
        "to": wanted.version,
        "sha256": target.sha256,
        "reason": reason,
    }
    return Request(
        act=Act.DOWNGRADE, subject=subject_of(server), details=details, requested_by=by, at=at, expires=expires
    )


def ticket_of(request: Request) -> DowngradeTicket:
    """Raises `msgspec.ValidationError` for details that are no ticket's."""
    named = {name: value for name, value in request.details.items() if name != "reason"}
    server = request.subject.removeprefix("server/")
    expires = datetime.fromtimestamp(request.expires, UTC)
    return msgspec.convert(named | {"server": server, "expires": expires}, DowngradeTicket)


def fitting(approved: Sequence[Approved], wanted: Wanted, installed: str) -> Approved | None:
    """The newest one for this change of versions. Whether it holds is for `downgrade_allowed` to say."""
    change = (wanted.component, installed, wanted.version)
    found = (
        each
        for each in reversed(approved)
        if tuple(each.request.details.get(name) for name in ("component", "from", "to")) == change
    )
    return next(found, None)


def used(approved: Approved, server: str, installed: str) -> Downgrade:
    """The ticket as it is to be used on `server`."""
    return Downgrade(ticket_of(approved.request), approved.by, server, installed)
