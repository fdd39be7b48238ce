"""From a BMC's refusal to a typed error in words. Pure: an answer in, an exception out (DSP0266, 8.6; DSP8011).

A BMC may well repeat what was sent to it, a refused password too, and these words go into events, findings and logs.
So what was secret in the conversation is struck out of them.
"""

import html
import re
from collections.abc import Collection
from typing import Any
from urllib.parse import quote

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


STRUCK = "[struck out]"
_LONG = 6
_SECRET_NAMES = ("password", "secret", "token")


def secrets_in(body: Any) -> set[str]:
    """The values of a request's body that nobody may be shown again: of every property that is named like a secret."""
    found: set[str] = set()
    if isinstance(body, dict):
        for name, value in body.items():
            secret = isinstance(value, str) and any(word in name.lower() for word in _SECRET_NAMES)
            found |= {value} if secret else secrets_in(value)
    elif isinstance(body, list):
        for value in body:
            found |= secrets_in(value)
    return found


def strike(words: str, secrets: Collection[str]) -> str:
    """`words` without any of `secrets`, as they are or as HTML or a URI has them. The longest first: one may be part of
    another. A very short one is struck out where it stands alone: it is part of many innocent words."""
    forms = {form for secret in secrets for form in (secret, html.escape(secret), quote(secret, safe=""))}
    for form in sorted(forms - {""}, key=len, reverse=True):
        pattern = re.escape(form) if len(form) >= _LONG else rf"(?<!\w){re.escape(form)}(?!\w)"
        words = re.sub(pattern, STRUCK, words)
    return words


def text(body: dict[str, Any] | None, secrets: Collection[str] = ()) -> str:
    """What the BMC says, as one line, with `secrets` struck out; empty if it says nothing."""
    said = []
    for message in extended_info(body):
        words = message.get("Message") or message.get("MessageId")
        if isinstance(words, str) and words not in said:
            said.append(words)
    if not said and body and isinstance(error := body.get("error"), dict) and isinstance(error.get("message"), str):
        said.append(error["message"])
    return strike(" ".join(said), secrets)


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


def raise_for(
    answer: Answer,
    method: str,
    path: str,
    *,
    server: str | None,
    logging_in: bool = False,
    secrets: Collection[str] = (),
) -> None:
    """Raise what a status of 300 or more means; return on success. `secrets` are struck out of the BMC's words."""
    status, said = answer.status, text(answer.body, secrets)
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
