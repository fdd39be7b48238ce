"""From a BMC's refusal to a typed error in words. Pure: an answer in, an exception out (DSP0266, 8.6; DSP8011)."""

from typing import Any

from freehold.out_of_band.errors import (
    AccountLocked,
    BmcError,
    NotSupported,
    PasswordChangeRequired,
    WrongCredential,
)
from freehold.out_of_band.transport import Answer


def extended_info(body: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The messages of an answer: under `error`, at the top, or a task's `Messages`. iDRAC sends one object, no list."""
    body = body or {}
    error = body.get("error")
    info: Any = error.get("@Message.ExtendedInfo") if isinstance(error, dict) else None
    info = info or body.get("@Message.ExtendedInfo") or body.get("Messages") or []
    return [message for message in (info if isinstance(info, list) else [info]) if isinstance(message, dict)]


def text(body: dict[str, Any] | None) -> str:
    """What the BMC says, as one line; empty if it says nothing."""
    said = []
    for message in extended_info(body):
        words = message.get("Message") or message.get("MessageId")
        if isinstance(words, str) and words not in said:
            said.append(words)
    if not said and body and isinstance(error := body.get("error"), dict) and isinstance(error.get("message"), str):
        said.append(error["message"])
    return " ".join(said)


def password_change_account(body: dict[str, Any] | None) -> str | None:
    """The account that must change its password, if an answer says so; "" if it does not name it."""
    for message in extended_info(body):
        if str(message.get("MessageId", "")).endswith("PasswordChangeRequired"):
            arguments = message.get("MessageArgs")
            first = arguments[0] if isinstance(arguments, list) and arguments else ""
            return first if isinstance(first, str) and first.startswith("/") else ""
    return None


def wrong_credential(server: str | None, said: str = "") -> WrongCredential:
    return WrongCredential(
        f"the BMC refused user name or password{f' ({said})' if said else ''}; tried once, it will not be retried",
        server=server,
        remedy="`freehold credential set` the right one; every further attempt counts against the BMC's lockout",
    )


def raise_for(answer: Answer, method: str, path: str, *, server: str | None, logging_in: bool = False) -> None:
    """Raise what a status of 300 or more means; return on success."""
    status, said = answer.status, text(answer.body)
    if status < 300:
        return
    ids = tuple(str(message.get("MessageId", "")) for message in extended_info(answer.body))
    if status in (400, 401, 403) and (account := password_change_account(answer.body)) is not None:
        raise PasswordChangeRequired(
            f"{method} {path}: the account must change its password before it may do anything else",
            account=account,
            server=server,
            remedy="take the server over (`freehold apply`), which sets a unique password",
        )
    if status in (401, 403) and (any(i.endswith("AccountLocked") for i in ids) or "locked" in said.lower()):
        raise AccountLocked(
            f"the BMC has locked the account: {said}",
            server=server,
            remedy="wait for the lockout to end (AccountLockoutDuration); nothing is tried meanwhile",
        )
    if status == 401 or (logging_in and status in (400, 403)):
        raise wrong_credential(server, said)
    if status in (404, 405, 410, 501):
        raise NotSupported(f"{method} {path}: HTTP {status}{f', {said}' if said else ''}", status=status, server=server)
    raise BmcError(
        f"{method} {path}: HTTP {status}: {said or 'the BMC gives no reason'}",
        status=status,
        message_ids=ids,
        server=server,
        remedy="this account lacks the privilege" if status == 403 else None,
    )
