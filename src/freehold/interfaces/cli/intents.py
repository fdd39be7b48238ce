"""`freehold pause`, `resume`, `decommission`, `retire`, `release`, `confirm`: what people ask of the engine.

These commands record an intent, nothing else; the engine moves the server, and refuses what makes no sense.
"""

import os
import pwd
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from freehold.interfaces.cli import following
from freehold.interfaces.cli.common import output_option, run, show_json, site_store, state_option
from freehold.model.errors import FreeholdError
from freehold.model.status import IntentKind, ServerState
from freehold.orchestration import bmc_keys
from freehold.orchestration.lifecycle import IntentRefusedError, check_intent
from freehold.orchestration.store import Store, Stored
from freehold.orchestration.view import ServerView
from freehold.root_of_trust.operators import NotApproved

F = TypeVar("F", bound=Callable[..., Any])
K, S = IntentKind, ServerState


class NotConfirmedError(FreeholdError):
    """Data would be destroyed, and nobody said yes."""


def _paused(server: Stored, wanted: bool) -> bool:
    return server.status is not None and server.status.paused is wanted


REACHED: dict[IntentKind, tuple[str, following.Reached]] = {
    K.PAUSE: ("paused", lambda server: _paused(server, True)),
    K.RESUME: ("resumed", lambda server: _paused(server, False)),
    K.DECOMMISSION: ("available", following.in_state(S.AVAILABLE)),
    K.RETIRE: ("retired", following.in_state(S.RETIRED)),
    K.CONFIRM: ("pinned", lambda server: server.status is not None and server.status.facts.bmc_identity is not None),
    K.RELEASE: ("released", lambda server: server.status is not None and server.status.state is not S.QUARANTINED),
}
"""What `--wait` waits for: in words, and as a condition."""


class Fingerprint(click.ParamType[str]):
    """64 hexadecimal digits, with or without colons."""

    name = "HEX"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        digits = value.replace(":", "").lower()
        if not re.fullmatch("[0-9a-f]{64}", digits):
            self.fail(f"{value!r} is not the SHA-256 of a public key: 64 hexadecimal digits", param, ctx)
        return digits


def intent_options(command: F) -> F:
    for option in reversed(
        (
            click.argument("server"),
            click.option("--reason", default="", help="Why; it is recorded beside your login name."),
            click.option("--wait", is_flag=True, help="Follow the server until it is done."),
            click.option(
                "--timeout", type=click.FloatRange(min=0.0), metavar="SECONDS", help="End --wait with 1 then."
            ),
            state_option,
            output_option(),
        )
    ):
        command = option(command)
    return command


@click.command()
@intent_options
def pause(server: str, reason: str, wait: bool, timeout: float | None, state: Path, output: str) -> None:
    """Leave a server alone, whatever its state, until it is resumed. What is under way at it is finished first.

    \b
    Example:
      freehold pause server-1 --reason "replacing a fan"
    """
    run(ask(state, server, K.PAUSE, reason, output, wait=wait, timeout=timeout))


@click.command()
@intent_options
def resume(server: str, reason: str, wait: bool, timeout: float | None, state: Path, output: str) -> None:
    """Go on with a paused server where it stopped. Its deadline begins anew.

    \b
    Example:
      freehold resume server-1
    """
    run(ask(state, server, K.RESUME, reason, output, wait=wait, timeout=timeout))


@click.command()
@intent_options
@click.option("--to", type=click.Choice([S.DECOMMISSIONING.value]), help="Erase it instead of going on with it.")
@click.option("--remeasure", is_flag=True, help="Its firmware is another, and rightly so: measure and approve it anew.")
@click.option("--accept-bmc-key", type=Fingerprint(), help="Ask two operators to accept this key of its BMC.")
@click.option("--approved", metavar="ID", help="Pin the BMC key of this request: two operators have signed it.")
def release(
    server: str,
    to: str | None,
    remeasure: bool,
    accept_bmc_key: str | None,
    approved: str | None,
    reason: str,
    wait: bool,
    timeout: float | None,
    state: Path,
    output: str,
) -> None:
    """Let a server out of quarantine, back to what was interrupted. Read first why it is there: `freehold describe`.

    With --remeasure its reference values are forgotten: the next boot of the agent is measured, and two operators
    approve what it measured before the server joins the pool. A server with a tenant's data goes by way of the erase.

    Whoever has the pinned key of its BMC is sent the password in the vault, so another one takes two people:
    --accept-bmc-key asks them, --approved releases the server with that key alone. As long as none was ever pinned,
    --accept-bmc-key releases it by itself.

    \b
    Example:
      freehold release server-1 --reason "firmware update of 3 May, approved"
      freehold release server-1 --to decommissioning --reason "not trusted any more"
      freehold release server-1 --to decommissioning --remeasure --reason "the mainboard was replaced under ticket 7"
      freehold release server-1 --accept-bmc-key 5e0c…f1 --reason "its BMC was set back to factory defaults"
      freehold release server-1 --approved 3f2a9c0d11223344 --reason "its BMC was set back to factory defaults"
    """
    if accept_bmc_key and approved:
        raise click.UsageError("give either --accept-bmc-key, to ask, or --approved ID")
    if accept_bmc_key and (request := run(_ask_for_key(state, server, accept_bmc_key, reason))) is not None:
        if output == "json":
            show_json({"request": request})
        else:
            then = f"freehold release {server} --approved {request}"
            click.echo(f"{request}: two operators sign it: freehold approval sign {request} --key FILE; then: {then}")
        return
    key = run(_accepted(state, server, approved)) if approved else accept_bmc_key
    given = {"to": to, "remeasure": remeasure, "accept_bmc_key": key, "approval": approved}
    args = {name: value for name, value in given.items() if value}
    run(ask(state, server, K.RELEASE, reason, output, wait=wait, timeout=timeout, args=args))


async def _ask_for_key(state: Path, server: str, key: str, reason: str) -> str | None:
    """The request that two people are to sign; None: no key was pinned yet, so one person may."""
    async with site_store(state) as store:
        view = await _releasable(store, server)
        now = time.time()
        if bmc_keys.unapproved(view, key, None, now) is None:
            return None
        request = await store.approvals.ask(bmc_keys.request_of(view, key, by=login_name(), reason=reason, at=now))
        await store.add_event(
            server, "bmc-key", f"{login_name()} asks to accept BMC key {key}: {reason or 'no reason'}"
        )
        return request


async def _accepted(state: Path, server: str, request_id: str) -> str:
    """The key that two people accepted. Raises `UnknownRequest`, `NotApproved`; the engine checks again."""
    async with site_store(state) as store:
        view = await _releasable(store, server)
        asked = await store.approvals.show(request_id)
        key = str(asked.request.details.get("spki_sha256"))
        if (lacking := bmc_keys.unapproved(view, key, asked, time.time())) is not None:
            signed = ", ".join(asked.approved_by) or "nobody"
            raise NotApproved(
                lacking, server=server, expected="two different people", remedy=f"signed so far: {signed}"
            )
        return key


async def _releasable(store: Store, server: str) -> ServerView:
    view = await server_view(store, server)
    try:
        check_intent(view.status.state, K.RELEASE)
    except IntentRefusedError as error:
        raise IntentRefusedError(error.what, server=server, expected=error.expected, remedy=error.remedy) from error
    return view


@click.command()
@intent_options
@click.option("--fingerprint", type=Fingerprint(), help="The key, read from the BMC's own screen. Without it: asked.")
def confirm(
    server: str, fingerprint: str | None, reason: str, wait: bool, timeout: float | None, state: Path, output: str
) -> None:
    """Confirm the key that a BMC showed at first contact, as policy `firstContact: confirm` wants it. Compare it with
    the BMC's own screen, or its label: if the BMC shows another one at the next attempt, the server is quarantined.

    \b
    Example:
      freehold confirm server-1
      freehold confirm server-1 --fingerprint 5e0c…f1
    """
    key = fingerprint or run(seen_key(state, server))
    run(ask(state, server, K.CONFIRM, reason, output, wait=wait, timeout=timeout, args={"fingerprint": key}))


@click.command()
@intent_options
@click.option("--yes", is_flag=True, help="Do not ask. All data on the server will be destroyed.")
def decommission(
    server: str, yes: bool, reason: str, wait: bool, timeout: float | None, state: Path, output: str
) -> None:
    """Destroy all data on a server, read back that it is gone, certify it, and give the server back to the pool.

    \b
    Example:
      freehold decommission server-1 --reason "end of project" --wait
    """
    run(ask(state, server, K.DECOMMISSION, reason, output, wait=wait, timeout=timeout, confirm=not yes))


@click.command()
@intent_options
@click.option("--yes", is_flag=True, help="Do not ask. All data on the server will be destroyed.")
def retire(server: str, yes: bool, reason: str, wait: bool, timeout: float | None, state: Path, output: str) -> None:
    """Decommission a server for good: all data is destroyed and certified, and it never comes back to the pool.

    \b
    Example:
      freehold retire server-1 --reason "sold" --yes --wait --timeout 14400
    """
    run(ask(state, server, K.RETIRE, reason, output, wait=wait, timeout=timeout, confirm=not yes))


async def ask(
    state: Path,
    server: str,
    kind: IntentKind,
    reason: str,
    output: str,
    *,
    wait: bool,
    timeout: float | None,
    confirm: bool = False,
    args: dict[str, Any] | None = None,
) -> None:
    """Record the intent, and follow what comes of it. Raises `NotFoundError`, `IntentRefusedError`."""
    async with site_store(state) as store:
        view = await server_view(store, server)
        try:
            check_intent(view.status.state, kind)  # before the question: nobody should confirm what is refused
            if confirm:
                confirmed(view, kind)
            by = login_name()
            await store.record_intent(server, kind, by=by, reason=reason, args=args)
        except IntentRefusedError as error:
            raise IntentRefusedError(error.what, server=server, expected=error.expected, remedy=error.remedy) from error
        if output == "json" and not wait:
            show_json({"server": server, "intent": kind, "by": by, "reason": reason, "state": view.status.state})
        elif output != "json":
            click.echo(
                f"{server}: asked to {kind} ({view.status.state} now)"
                + ("" if wait else f"; follow it with `freehold watch {server}`")
            )
        if wait:
            await _wait(store, view, kind, timeout, output)


async def _wait(store: Store, before: ServerView, kind: IntentKind, timeout: float | None, output: str) -> None:
    wanted, condition = REACHED[kind]

    def reached(now: Stored) -> bool:
        # A server that was available already has to leave that state and come back.
        came_back = now.status is not None and now.status.state_since != before.status.state_since
        return condition(now) and (came_back or kind is not K.DECOMMISSION)

    def hopeless(now: Stored) -> bool:
        return kind in (K.DECOMMISSION, K.RETIRE, K.CONFIRM) and following.in_state(S.QUARANTINED)(now)

    await following.follow(
        store, (before.name,), reached=reached, wanted=wanted, timeout=timeout, output=output, hopeless=hopeless
    )


async def server_view(store: Store, server: str) -> ServerView:
    await store.get("Server", server)  # says which servers there are, if not this one
    view = await store.ledger.view(server)
    assert view is not None
    return view


async def seen_key(state: Path, server: str) -> str:
    """The key that first contact found, if a person says that it is the right one. Raises `NotConfirmedError`."""
    async with site_store(state) as store:
        seen = (await server_view(store, server)).facts.bmc_key_seen
    if seen is None:
        raise NotConfirmedError(
            "no key of its BMC waits for a confirmation",
            server=server,
            remedy=f"see `freehold describe {server}`; a key that you know already is given with --fingerprint",
        )
    click.echo(f"The BMC of {server} shows the key with SHA-256\n  {seen}", err=True)
    if not _yes("Is this what the BMC's own screen says?"):
        raise NotConfirmedError("nobody confirmed the key of its BMC; nothing was done", server=server)
    return seen


def _yes(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        return False


def confirmed(view: ServerView, kind: IntentKind) -> None:
    """Say what will be lost and ask. Raises `NotConfirmedError` without a yes."""
    given, assigned = view.facts.image, view.assignment
    image = f"{given.name} {given.version}" if given else "no image"
    hostname = assigned.spec.hostname if assigned else "nobody's"
    click.echo(
        f"All data on server {view.name} will be destroyed: {hostname}, running {image}, {view.status.state}.", err=True
    )
    if kind is K.RETIRE:
        click.echo("It will not come back to the pool.", err=True)
    if not _yes("Destroy it?"):
        raise NotConfirmedError(
            f"nobody confirmed to {kind} it; nothing was done", server=view.name, remedy="answer y, or give --yes"
        )


def login_name() -> str:
    """Who asks: the login name, also behind sudo."""
    user = pwd.getpwuid(os.getuid()).pw_name
    return os.environ.get("SUDO_USER") or user if os.getuid() == 0 else user
