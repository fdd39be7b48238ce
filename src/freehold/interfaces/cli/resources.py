"""`freehold get`, `describe`, `events` and `watch`: what is declared, what is known, and what happens."""

import time
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from freehold.interfaces.cli import following, rendering
from freehold.interfaces.cli.common import (
    moment,
    output_option,
    printable,
    run,
    show_json,
    show_page,
    show_table,
    since,
    site_store,
    state_option,
)
from freehold.model.findings import Finding
from freehold.model.resources import KINDS, ServerSpec
from freehold.model.status import ServerState
from freehold.orchestration.store import Event, Store, Stored
from freehold.orchestration.view import ServerView

SHORT = {
    "Site": ("sites",),
    "Network": ("networks", "net"),
    "Policy": ("policies", "pol"),
    "Image": ("images", "img"),
    "WorkloadClass": ("workloadclasses", "wc"),
    "FirmwareBaseline": ("firmwarebaselines", "fb"),
    "Server": ("servers", "srv"),
    "Assignment": ("assignments", "as"),
    "Waiver": ("waivers",),
}
_KIND_OF = {name: kind for kind in KINDS for name in (kind.lower(), *SHORT[kind])}

STATE = click.Choice([state.value for state in ServerState])

limit_option = click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Length of a page."
)


class Kind(click.ParamType[str]):
    """A kind by any of its names: `Server`, `servers`, `srv`."""

    name = "kind"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        found = _KIND_OF.get(value.lower())
        if found is None:
            self.fail(
                f"there is no kind {value!r}; there are {', '.join(SHORT[kind][0] for kind in KINDS)}", param, ctx
            )
        return found

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(SHORT[kind][0]) for kind in KINDS if SHORT[kind][0].startswith(incomplete.lower())]


@click.command()
@click.argument("kind", type=Kind())
@click.argument("name", required=False)
@click.option("--in", "lifecycle", type=STATE, metavar="STATE", help="Only servers in this state.")
@limit_option
@click.option("--after", default="", metavar="NAME", help="Begin behind this name: the next page.")
@state_option
@output_option("wide", "yaml")
def get(kind: str, name: str | None, lifecycle: str | None, limit: int, after: str, state: Path, output: str) -> None:
    """List resources of a KIND (servers, images, networks, policies, assignments, …), or show the one called NAME.

    `-o wide` says of each server what it does, what it waits for, its image, BMC, OS and attestation; `-o yaml` prints
    documents as they were declared, passwords masked.

    \b
    Example:
      freehold get servers -o wide
      freehold get servers --in quarantined
      freehold get policy strict -o yaml
    """
    if lifecycle is not None and kind != "Server":
        raise click.UsageError("--in is for servers only")
    wanted = ServerState(lifecycle) if lifecycle else None

    async def work() -> list[rendering.Shown]:
        async with site_store(state) as store:
            if name is not None:
                found = [await store.get(kind, name)]
            else:
                found = await store.list_resources(kind, after=(kind, after), limit=limit + 1, state=wanted)
            return [rendering.Shown(each, await _view(store, each, full=output in ("wide", "json"))) for each in found]

    found = run(work())
    page = found[:limit]
    following_name = page[-1].stored.resource.name if len(found) > limit else None
    if output == "json" and name is not None:
        show_json(page[0].to_dict())
        return
    if output == "yaml":
        click.echo(rendering.as_yaml([each.stored.resource for each in page]), nl=False)
    elif output != "json":
        headers, rows = rendering.table(kind, page, time.time(), wide=output == "wide")
        show_table(headers, rows)
    show_page("--after", [each.to_dict() for each in page], following_name, output)


async def _view(store: Store, each: Stored, *, full: bool = True) -> ServerView | None:
    """What is known of a server; unless `full`, only what is at hand: a fleet's table should not take a second."""
    name, spec = each.resource.name, each.resource.spec
    if not isinstance(spec, ServerSpec) or each.status is None:
        return None
    if full:
        return await store.ledger.view(name)
    return ServerView(name=name, spec=spec, status=each.status, paused=each.paused)


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="[server|site] NAME")
@state_option
@output_option()
def describe(words: tuple[str, ...], state: Path, output: str) -> None:
    """Everything that is known about one server: why it is in its state, what it waits for, what is wrong with it and
    what to do, who it is, what it runs, and what happened last.

    \b
    Example:
      freehold describe server server-1
      freehold describe server-1 -o json
      freehold describe site lab
    """
    kind = _KIND_OF.get(words[0].lower()) if len(words) == 2 else "Server"
    if len(words) > 2 or kind not in ("Server", "Site"):
        raise click.UsageError(
            "describe takes the name of one server, or site NAME; other kinds: `freehold get KIND NAME -o yaml`"
        )
    if kind == "Site":
        _describe_site(words[-1], state, output)
        return

    async def work() -> tuple[rendering.Shown, list[Event]]:
        async with site_store(state) as store:
            stored = await store.get("Server", words[-1])
            shown = rendering.Shown(stored, await _view(store, stored))
            return shown, await following.last_events(store, words[-1], 15)

    shown, recent = run(work())
    if output == "json":
        show_json({**shown.to_dict(), "events": recent})
        return
    for line in rendering.description(shown, recent, time.time()):
        click.echo(printable(line))


def _describe_site(name: str, state: Path, output: str) -> None:
    async def work() -> tuple[Stored, tuple[Finding, ...]]:
        async with site_store(state) as store:
            return await store.get("Site", name), await store.site.findings()

    stored, findings = run(work())
    if output == "json":
        show_json({**rendering.Shown(stored, None).to_dict(), "findings": findings})
        return
    for line in rendering.site_description(stored, findings):
        click.echo(printable(line))


@click.command()
@click.argument("server", required=False)
@click.option(
    "--since", "after", type=click.IntRange(min=0), default=0, metavar="ID", help="Only events after this id."
)
@limit_option
@click.option("--follow", is_flag=True, help="Go on with new events as they come, until interrupted.")
@state_option
@output_option()
def events(server: str | None, after: int, limit: int, follow: bool, state: Path, output: str) -> None:
    """What happened at the site, or to one SERVER, oldest first. With --follow and json: one event a line.

    \b
    Example:
      freehold events server-1
      freehold events --since 1200 --limit 50 -o json
      freehold events --follow
    """

    async def work() -> list[Event]:
        async with site_store(state) as store:
            if server is not None:
                await store.get("Server", server)
            if follow:
                async for event in store.watch(since=after, server=server):
                    following.show_event(event, output)
            return await store.events(since=after, server=server, limit=limit + 1)

    found = run(work())
    page = found[:limit]
    if output != "json":
        now = time.time()
        rows = [(e.id, moment(e.at), since(e.at, now), e.server or "-", e.kind, e.message) for e in page]
        show_table(("ID", "TIME", "AGE", "SERVER", "KIND", "WHAT"), rows)
    show_page("--since", page, page[-1].id if len(found) > limit else None, output)


@click.command()
@click.argument("server", required=False)
@click.option("--until", type=STATE, metavar="STATE", help="End, with 0, when the servers are in this state.")
@click.option("--timeout", type=click.FloatRange(min=0.0), metavar="SECONDS", help="End, with 1, after this long.")
@state_option
@output_option()
def watch(server: str | None, until: str | None, timeout: float | None, state: Path, output: str) -> None:
    """Follow all servers, or one SERVER, live: where each is now, then every event. Ends with Ctrl-C or --until.

    A server that is stuck or quarantined does not end the watch; --timeout does, and says where each one hangs.

    \b
    Example:
      freehold watch
      freehold watch server-1 --until active --timeout 1800
    """

    async def work() -> None:
        async with site_store(state) as store:
            names = (server,) if server else ()
            if server:
                await store.get("Server", server)
            reached = following.in_state(ServerState(until) if until else None)
            await following.follow(
                store, names, reached=reached, wanted=until or "the end", timeout=timeout, output=output
            )

    run(work())
