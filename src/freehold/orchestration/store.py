"""The store: what was declared, what was observed, what people asked for, and what happened.

    store = await Store.open(state / "freehold.db")
    changes = await store.apply(load_documents(text, name))

`store.ledger` is the engine's part, `store.agents` the agent API's.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import delete, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from freehold.evidence import Predicate
from freehold.model.documents import resource_from, validate_set
from freehold.model.errors import FreeholdError
from freehold.model.resources import AssignmentSpec, Resource, SiteSpec, Waivable, WaiverSpec
from freehold.model.status import IntentKind, ServerState, ServerStatus
from freehold.orchestration.agents import AgentLedger
from freehold.orchestration.approvals import ApprovalLedger, ask_for, signed_waivers
from freehold.orchestration.changes import Change, change_of
from freehold.orchestration.database import Database
from freehold.orchestration.ledger import SECURE_BOOT, Ledger, announced, rotation_pace, set_rotation_pace
from freehold.orchestration.lifecycle import check_intent
from freehold.orchestration.references import ReferenceLedger
from freehold.orchestration.schema import about, events, intents, resources, servers
from freehold.orchestration.site_ledger import SiteLedger, owe
from freehold.orchestration.waivers import claim, remedy, request_of, waiver_for
from freehold.orchestration.wakes import wake


class NotFoundError(FreeholdError):
    """Nothing of that kind and name is declared."""


class DeletionRefusedError(FreeholdError):
    """Deleting this would lose something, or leave something dangling."""


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A declared resource; for a server also what is known of it."""

    resource: Resource
    generation: int
    revision: str
    created: float
    updated: float
    status: ServerStatus | None = None
    paused: bool = False


class Event(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    at: float
    server: str | None
    kind: str
    message: str


class Store:
    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock
        self.ledger, self.agents = Ledger(database), AgentLedger(database)
        self.approvals, self.references = ApprovalLedger(database), ReferenceLedger(database)
        self.site = SiteLedger(database)

    @classmethod
    async def open(
        cls, location: str | Path, *, clock: Callable[[], float] = time.time, busy_timeout: float = 10.0
    ) -> "Store":
        return cls(await Database.open(location, busy_timeout=busy_timeout), clock)

    async def close(self) -> None:
        await self._database.close()

    # declared resources

    async def apply(self, declared: Iterable[Resource], *, dry_run: bool = False) -> list[Change]:
        """Make the store hold `declared` too. Everything is checked, together with what is there already, before
        anything is written. Raises `DocumentError`."""
        wanted = list(declared)

        async def work(connection: AsyncConnection) -> list[Change]:
            present = {resource.key: resource for resource in await _all_resources(connection)}
            named = {resource.key for resource in wanted}
            validate_set([*wanted, *(resource for key, resource in present.items() if key not in named)])
            # What was erased stays so: the BMC has another password, whatever the file says that it was delivered with.
            erased = {key for key, resource in present.items() if resource.is_erased}
            kept = [resource.erased() if resource.key in erased else resource for resource in wanted]
            changes = [change_of(present.get(resource.key), resource) for resource in kept]
            for change, resource in zip(changes, kept, strict=True):
                if not dry_run and change.action != "unchanged":
                    await self._put(connection, resource, change)
            return changes

        return await self._database.write(work)

    async def _put(self, connection: AsyncConnection, resource: Resource, change: Change) -> None:
        now = self._clock()
        spec = resource.spec
        names = spec.server if isinstance(spec, AssignmentSpec | WaiverSpec) else None
        document = msgspec.json.encode(resource.to_document(reveal=True)).decode()
        row = {"document": document, "server": names, "revision": uuid.uuid4().hex, "updated": now}
        if change.action == "created":
            await connection.execute(
                insert(resources).values(kind=resource.kind, name=resource.name, generation=1, created=now, **row)
            )
            if resource.kind == "Server":
                status = ServerStatus(state_since=now)
                await connection.execute(
                    insert(servers).values(
                        name=resource.name,
                        state=status.state.value,
                        status=msgspec.json.encode(status).decode(),
                        paused=False,
                        fence=0,
                        wakes=0,
                        next_due=now,
                    )
                )
        else:
            await connection.execute(
                update(resources)
                .where(_is(resource.kind, resource.name))
                .values(generation=resources.c.generation + 1, **row)
            )
        if isinstance(spec, WaiverSpec):
            await ask_for(connection, request_of(resource.name, spec), now)
        await _note(connection, now, names or _server_of(resource), change.action, f"{resource.kind} {resource.name}")
        if concerned := names or _server_of(resource):
            await wake(connection, concerned)
        elif resource.kind in ("Policy", "Site"):
            if isinstance(spec, SiteSpec):
                old = await rotation_pace(connection, change=True)
                await set_rotation_pace(connection, old.at(spec.rotations_per_minute, now))
            await connection.execute(update(servers).values(next_due=now, wakes=servers.c.wakes + 1))

    async def get(self, kind: str, name: str) -> Stored:
        """Raises `NotFoundError`."""
        async with self._database.read() as connection:
            row = (await connection.execute(_joined().where(_is(kind, name)))).one_or_none()
            if row is None:
                known = select(resources.c.name).where(resources.c.kind == kind).order_by(resources.c.name).limit(5)
                names = ", ".join((await connection.execute(known)).scalars())
                raise NotFoundError(f"there is no {kind} named {name!r}", expected=names or None)
            return _stored(row)

    async def list_resources(
        self, kind: str | None = None, *, after: tuple[str, str] = ("", ""), limit: int = 500,
        state: ServerState | None = None,
    ) -> list[Stored]:  # fmt: skip
        """A page in the order of (kind, name). The next page starts `after` the key of the last one."""
        query = _joined().where(tuple_(resources.c.kind, resources.c.name) > tuple_(*after))
        if kind is not None:
            query = query.where(resources.c.kind == kind)
        if state is not None:
            query = query.where(servers.c.state == state.value)
        async with self._database.read() as connection:
            rows = await connection.execute(query.order_by(resources.c.kind, resources.c.name).limit(limit))
            return [_stored(row) for row in rows]

    async def states(self) -> dict[str, int]:
        """How many servers are in which state."""
        async with self._database.read() as connection:
            rows = await connection.execute(select(servers.c.state, func.count()).group_by(servers.c.state))
            return {row[0]: row[1] for row in rows}

    async def delete(self, kind: str, name: str) -> None:
        """Delete a resource that nothing refers to. A server needs a destruction certificate, or a signed
        waiver. Raises `NotFoundError`, `DeletionRefusedError`."""

        async def work(connection: AsyncConnection) -> None:
            present = await _all_resources(connection)
            gone = next((resource for resource in present if resource.key == (kind, name)), None)
            if gone is None:
                raise NotFoundError(f"there is no {kind} named {name!r}")
            going = {gone.key}
            if kind == "Server":
                await self._may_go(connection, name, present)
                going |= {
                    each.key for each in present if isinstance(each.spec, WaiverSpec) and each.spec.server == name
                }
            elif isinstance(gone.spec, AssignmentSpec):
                await self._may_end(connection, name, gone.spec.server, present)
            try:
                validate_set(resource for resource in present if resource.key not in going)
            except FreeholdError as error:
                raise DeletionRefusedError(f"{kind} {name} is in use", expected=error.what) from error
            for each in going:
                await connection.execute(delete(resources).where(_is(*each)))
            if kind == "Server":
                await connection.execute(delete(servers).where(servers.c.name == name))
            concerned = gone.spec.server if isinstance(gone.spec, AssignmentSpec) else _server_of(gone)
            await _note(connection, self._clock(), concerned, "deleted", f"{kind} {name}")

        await self._database.write(work)

    async def _may_end(self, connection: AsyncConnection, name: str, server: str, present: Iterable[Resource]) -> None:
        """An Assignment under which a server runs stands for a tenant's data: that ends by decommissioning."""
        status = await _status(connection, server)
        tenancy = status.facts.tenancy
        if tenancy is None or tenancy.name != name or await self._deletion_waived(connection, server, present):
            return
        raise DeletionRefusedError(
            f"the server is {status.state} under Assignment {name}",
            server=server,
            remedy=f"`freehold decommission {server}` first; then delete the Assignment",
        )

    async def _may_go(self, connection: AsyncConnection, name: str, present: Iterable[Resource]) -> None:
        status = await _status(connection, name)
        certified = status.facts.certificate_index is not None
        if status.state is ServerState.ENROLLED or (
            certified and status.state in (ServerState.AVAILABLE, ServerState.RETIRED)
        ):
            return
        if await self._deletion_waived(connection, name, present):
            return
        raise DeletionRefusedError(
            f"it is {status.state} and has no destruction certificate",
            server=name,
            remedy=f"`freehold decommission {name}` first, {remedy(name, Waivable.DELETION_WITHOUT_CERTIFICATE)}",
        )

    async def _deletion_waived(self, connection: AsyncConnection, name: str, present: Iterable[Resource]) -> bool:
        declared = [(each.name, each.spec) for each in present if isinstance(each.spec, WaiverSpec)]
        waivers, now = (await signed_waivers(connection, declared)).get(name, []), self._clock()
        waiver = waiver_for(waivers, Waivable.DELETION_WITHOUT_CERTIFICATE, now)
        if waiver is not None:
            said = {"server": name, **claim(waiver, now, why="deleted without a destruction certificate")}
            await owe(connection, Predicate.WAIVER, f"server/{name}", said)
        return waiver is not None

    # intents

    async def secure_boot_generation(self) -> int:
        """The newest generation of Secure Boot keys that was announced; 0: none was."""
        return int(await self.announced(SECURE_BOOT) or 0)

    async def announce_secure_boot(self, number: int) -> None:
        """There is a newer generation of Secure Boot keys. Every server is looked at."""
        await self.announce(SECURE_BOOT, str(number))

    async def announced(self, name: str) -> str | None:
        """What the planner was last told by that name."""
        async with self._database.read() as connection:
            return (await announced(connection)).get(name)

    async def announce(self, name: str, value: str) -> None:
        """Tell the planner something of the whole site: which key counts now, say. Every server is looked at."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(delete(about).where(about.c.name == name))
            await connection.execute(insert(about).values(name=name, value=value))
            await connection.execute(update(servers).values(next_due=0.0, wakes=servers.c.wakes + 1))

        await self._database.write(work)

    async def record_intent(
        self, server: str, kind: IntentKind, *, by: str, reason: str = "", args: dict[str, Any] | None = None
    ) -> int | None:
        """Ask the engine for something. Returns the intent's number; None for a pause and its end, which hold at once.
        Raises `NotFoundError`, and `IntentRefusedError` if it makes no sense now."""

        async def work(connection: AsyncConnection) -> int | None:
            state = await connection.scalar(select(servers.c.state).where(servers.c.name == server))
            if state is None:
                raise NotFoundError(f"there is no Server named {server!r}")
            check_intent(ServerState(state), kind)
            now, number = self._clock(), None
            if kind in (IntentKind.PAUSE, IntentKind.RESUME):
                paused = kind is IntentKind.PAUSE
                await connection.execute(update(servers).where(servers.c.name == server).values(paused=paused))
            else:
                text = msgspec.json.encode(args or {}).decode()
                row = await connection.execute(
                    insert(intents).values(server=server, kind=kind.value, reason=reason, by=by, args=text, at=now)
                )
                assert row.inserted_primary_key is not None
                number = int(row.inserted_primary_key[0])
            await _note(connection, now, server, "intent", f"{kind} by {by}" + (f": {reason}" if reason else ""))
            await wake(connection, server)
            return number

        return await self._database.write(work)

    async def outcome(self, intent: int) -> str | None:
        """What the engine answered to an intent; None: nothing yet."""
        async with self._database.read() as connection:
            return await connection.scalar(select(intents.c.outcome).where(intents.c.id == intent))

    # events

    async def events(self, *, since: int = 0, server: str | None = None, limit: int = 500) -> list[Event]:
        """Events after id `since`, oldest first."""
        query = select(events).where(events.c.id > since)
        if server is not None:
            query = query.where(events.c.server == server)
        async with self._database.read() as connection:
            return [Event(**row._mapping) for row in await connection.execute(query.order_by(events.c.id).limit(limit))]

    async def add_event(self, server: str | None, kind: str, message: str) -> None:
        async def work(connection: AsyncConnection) -> None:
            await _note(connection, self._clock(), server, kind, message)

        await self._database.write(work)

    async def watch(self, *, since: int = 0, server: str | None = None, interval: float = 0.5) -> AsyncIterator[Event]:
        """Events as they come, for ever."""
        while True:
            for each in await self.events(since=since, server=server):
                since = each.id
                yield each
            await asyncio.sleep(interval)


def _is(kind: str, name: str) -> Any:
    return (resources.c.kind == kind) & (resources.c.name == name)


def _server_of(resource: Resource) -> str | None:
    return resource.name if resource.kind == "Server" else None


def _joined() -> Any:
    mine = (servers.c.name == resources.c.name) & (resources.c.kind == "Server")
    return select(resources, servers.c.status, servers.c.paused).select_from(resources.outerjoin(servers, mine))


def _stored(row: Any) -> Stored:
    return Stored(
        resource=resource_from(msgspec.json.decode(row.document), origin="the store"),
        generation=row.generation,
        revision=row.revision,
        created=row.created,
        updated=row.updated,
        status=msgspec.json.decode(row.status, type=ServerStatus) if row.status else None,
        paused=bool(row.paused),
    )


async def _status(connection: AsyncConnection, server: str) -> ServerStatus:
    row = (await connection.execute(select(servers.c.status).where(servers.c.name == server))).scalar_one()
    return msgspec.json.decode(row, type=ServerStatus)


async def _all_resources(connection: AsyncConnection) -> list[Resource]:
    found = (await connection.execute(select(resources.c.document))).scalars()
    stored = [resource_from(msgspec.json.decode(document), origin="the store") for document in found]
    return [msgspec.structs.replace(resource, source=None) for resource in stored]


async def _note(connection: AsyncConnection, at: float, server: str | None, kind: str, message: str) -> None:
    await connection.execute(insert(events).values(at=at, server=server, kind=kind, message=message))
