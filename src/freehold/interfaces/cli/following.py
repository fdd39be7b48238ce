"""Following servers live: for `watch`, `events --follow` and `--wait`."""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Sequence

import click
import msgspec

from freehold.interfaces.cli.common import printable, since
from freehold.interfaces.cli.rendering import full_status
from freehold.model.errors import FreeholdError
from freehold.model.status import ServerState
from freehold.orchestration.store import Event, Store, Stored

Reached = Callable[[Stored], bool]
INTERVAL = 0.5
PAGE = 500


class NotReachedError(FreeholdError):
    """The time that `--timeout` gave is over, or what was waited for cannot come."""


def in_state(state: ServerState | None) -> Reached:
    """Whether a server is in `state`; None: never."""
    return lambda server: server.status is not None and server.status.state is state


async def follow(
    store: Store,
    names: Sequence[str],
    *,
    reached: Reached,
    wanted: str,
    timeout: float | None = None,
    output: str = "table",
    hopeless: Reached = lambda _: False,
    intent: int | None = None,
    err: bool = False,
) -> None:
    """Print where the servers are (all of them, if `names` is empty), then each event, until every one has `reached`,
    and the engine has answered `intent`, if one is given.

    Raises `NotReachedError` when `timeout` seconds are over, or a server is `hopeless`; it says where each one hangs.
    """
    last = await last_event_id(store)
    end = None if timeout is None else time.monotonic() + timeout
    for server in await _servers(store, names):
        show_state(server, output, err=err)
    while True:
        news = await store.events(since=last, server=names[0] if len(names) == 1 else None, limit=PAGE)
        for event in news:
            last = event.id
            show_event(event, output, err=err)
        if len(news) == PAGE:
            continue
        servers = await _servers(store, names)
        answered = intent is None or await store.outcome(intent) is not None
        late = [server for server in servers if not (answered and reached(server))]
        if servers and not late:
            return
        if lost := [server for server in late if hopeless(server)]:
            raise _not_reached("cannot come to", wanted, lost)
        if end is not None and time.monotonic() >= end:
            raise _not_reached(f"after {timeout:g} s not yet", wanted, late)
        await asyncio.sleep(INTERVAL if end is None else max(0.0, min(INTERVAL, end - time.monotonic())))


def _not_reached(how: str, wanted: str, servers: Sequence[Stored]) -> NotReachedError:
    if not servers:
        return NotReachedError(f"{how} {wanted}: no servers are declared")
    where = "; ".join(whereabouts(server) for server in servers[:10])
    more = f"; and {len(servers) - 10} more" if len(servers) > 10 else ""
    return NotReachedError(
        f"{how} {wanted}: {where}{more}",
        remedy=f"`freehold describe server {servers[0].resource.name}` says what to do",
    )


def whereabouts(server: Stored) -> str:
    """`server-1 is provisioning for 5m at write_image, 2 attempts failed, stuck: its last word`."""
    status = server.status
    assert status is not None
    parts = [f"{server.resource.name} is {status.state} for {since(status.state_since)}"]
    parts += [f"at {status.step}"] if status.step else []
    parts += [f"waiting for {status.waiting_for}"] if status.waiting_for else []
    parts += [f"{status.attempts} attempts failed"] if status.attempts else []
    parts += ["paused"] if server.paused else []
    parts += ["stuck"] if status.stuck else []
    return ", ".join(parts) + (f": {status.reason}" if status.reason else "")


def show_event(event: Event, output: str, *, err: bool = False) -> None:
    """One line; with json, one object (JSON Lines)."""
    if output == "json":
        _json_line({"event": event}, err=err)
    else:
        clock = time.strftime("%H:%M:%S", time.localtime(event.at))
        click.echo(printable(f"{clock}  {event.server or '-'}  {event.kind}  {event.message}"), err=err)


def show_state(server: Stored, output: str, *, err: bool = False) -> None:
    if output == "json":
        _json_line(
            {
                "server": server.resource.name,
                "status": server.status and full_status(server.status),
                "paused": server.paused,
            },
            err=err,
        )
    else:
        click.echo(printable(f"{time.strftime('%H:%M:%S')}  {whereabouts(server)}"), err=err)


def _json_line(value: object, *, err: bool) -> None:
    click.echo(json.dumps(msgspec.to_builtins(value)), err=err)


async def last_events(store: Store, server: str, count: int) -> list[Event]:
    """The newest `count` events of a server, oldest first."""
    kept: deque[Event] = deque(maxlen=count)
    while page := await store.events(since=kept[-1].id if kept else 0, server=server, limit=PAGE):
        kept.extend(page)
    return list(kept)


async def last_event_id(store: Store) -> int:
    """Id of the newest event. Ids only grow, so it is found by halving, without reading what lies before it."""
    low, high = 0, 1
    while await store.events(since=high, limit=1):
        low, high = high, high * 2
    while low < high:
        middle = (low + high) // 2
        if await store.events(since=middle, limit=1):
            low = middle + 1
        else:
            high = middle
    return low


async def _servers(store: Store, names: Sequence[str]) -> list[Stored]:
    if names:
        return [await store.get("Server", name) for name in names]
    found: list[Stored] = []
    while page := await store.list_resources("Server", after=found[-1].resource.key if found else ("", "")):
        found += page
    return found
