"""Keeper of the work in hand: replicas and their leases, claims with fences, the journal, completions.

Rules that are not optional (measured; a naive design sent stale commands):
a server in flight carries the epoch of its replica and a fence that grew at the claim; an epoch that lapsed is never
renewed; a completion counts only `WHERE name AND fence`.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Row, Select, case, delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from freehold.model.resources import AssignmentSpec, FirmwareBaselineSpec, PolicySpec, ServerSpec, WaiverSpec
from freehold.model.status import AgentSession, Intent, IntentKind, Order, ServerStatus
from freehold.orchestration.approvals import asked_among, signed_waivers, spend_approved
from freehold.orchestration.database import Database
from freehold.orchestration.pace import Pace
from freehold.orchestration.schema import (
    about,
    agent_sessions,
    events,
    intents,
    journal,
    orders,
    replicas,
    resources,
    servers,
)
from freehold.orchestration.view import Assigned, ServerView
from freehold.orchestration.wakes import wake

S = TypeVar("S")
PACE = "rotation-pace"

SECURE_BOOT, AGENT_CA, IMAGE_KEY = "secure-boot-generation", "agent-ca-generation", "image-key-generation"
BMC_CA = "bmc-ca-key-id"
"""What is announced of the site's keys: the newest generation of each; of the BMC CA its `pki.key_id`, once it is not
the first one any more."""

LISTENING = "listening-since"
"""Announced too: when a controller last began to listen to agents, UNIX seconds."""

_status = msgspec.json.Decoder(ServerStatus)


class Claim(msgspec.Struct, frozen=True):
    """A server that is ours to work on until our lease ends or we complete it."""

    server: str
    fence: int
    wakes: int


class Note(msgspec.Struct, frozen=True):
    """An event in the making."""

    kind: str
    message: str


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """What a reconcile came to. Written in one transaction, or not at all."""

    status: ServerStatus
    next_due: float | None
    notes: tuple[Note, ...] = ()
    journal: tuple[int, str] | None = None  # (row, outcome)
    handled: tuple[int, str] | None = None  # (intent, outcome)
    spent: str | None = None  # the request for approval that was carried out
    dropped_orders: tuple[str, ...] | None = ()  # keys; None: all of them


class Ledger:
    """`store.ledger`: used by the engine only."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def enter(self, epoch: str, now: float, ttl: float) -> None:
        """Register a fresh epoch; rows that lapsed long ago go."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(delete(replicas).where(replicas.c.expires_at < now - 10 * ttl))
            await connection.execute(insert(replicas).values(epoch=epoch, expires_at=now + ttl))

        await self._database.write(work)

    async def renew(self, epoch: str, now: float, ttl: float) -> bool:
        """Prolong a lease that has not lapsed. False: it has, and whatever it held may be another's by now."""

        async def work(connection: AsyncConnection) -> bool:
            alive = (replicas.c.epoch == epoch) & (replicas.c.expires_at > now)
            changed = await connection.execute(update(replicas).where(alive).values(expires_at=now + ttl))
            return changed.rowcount == 1

        return await self._database.write(work)

    async def leave(self, epoch: str) -> None:
        """A replica that ends in good order frees what it held."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(delete(replicas).where(replicas.c.epoch == epoch))

        await self._database.write(work)

    async def disown_others(self) -> None:
        """End every lease. Only for a process that knows it is the only one (it holds the site's lock)."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(delete(replicas))

        await self._database.write(work)

    async def claim(self, epoch: str, now: float, limit: int) -> list[Claim]:
        """Take up to `limit` servers that are due and in nobody's hands. Takes none if `epoch` has lapsed."""

        async def work(connection: AsyncConnection) -> list[Claim]:
            alive = select(replicas.c.epoch).where(replicas.c.expires_at > now)
            if await connection.scalar(alive.where(replicas.c.epoch == epoch)) is None:
                return []
            free = or_(servers.c.epoch.is_(None), servers.c.epoch.not_in(alive))
            due = select(servers.c.name).where(servers.c.next_due <= now, free).order_by(servers.c.next_due)
            if connection.dialect.name == "postgresql":
                due = due.with_for_update(skip_locked=True)
            taken = await connection.execute(
                update(servers)
                .where(servers.c.name.in_(due.limit(limit).scalar_subquery()))
                .values(epoch=epoch, fence=servers.c.fence + 1)
                .returning(servers.c.name, servers.c.fence, servers.c.wakes)
            )
            return [Claim(*row) for row in taken]

        # Looking first is a read; an idle fleet must not cost a write a second.
        async with self._database.read() as connection:
            if await connection.scalar(select(servers.c.name).where(servers.c.next_due <= now).limit(1)) is None:
                return []
        return await self._database.write(work)

    async def next_due(self) -> float | None:
        """When the first server that nobody holds becomes due."""
        async with self._database.read() as connection:
            first = select(servers.c.next_due).where(servers.c.epoch.is_(None), servers.c.next_due.is_not(None))
            return await connection.scalar(first.order_by(servers.c.next_due).limit(1))

    async def open_journal(self, claim: Claim, step: str, key: str, now: float) -> tuple[int, bool] | None:
        """Journal the intent *before* its side effect: (row, whether an earlier attempt at `key` was cut off). None if
        the claim is stale: then nothing may be done."""

        async def work(connection: AsyncConnection) -> tuple[int, bool] | None:
            mine = (servers.c.name == claim.server) & (servers.c.fence == claim.fence)
            if await connection.scalar(select(servers.c.name).where(mine)) is None:
                return None
            unfinished = (journal.c.server == claim.server) & journal.c.finished.is_(None)
            cut_off = (await connection.execute(select(journal.c.key).where(unfinished))).scalars().all()
            if cut_off:
                await connection.execute(update(journal).where(unfinished).values(finished=now, outcome="cut off"))
                text = f"{', '.join(cut_off)} was cut off; it is looked at again"
                await connection.execute(
                    insert(events).values(at=now, server=claim.server, kind="resumed", message=text)
                )
            row = await connection.execute(
                insert(journal).values(server=claim.server, step=step, key=key, fence=claim.fence, started=now)
            )
            assert row.inserted_primary_key is not None
            return int(row.inserted_primary_key[0]), key in cut_off

        return await self._database.write(work)

    async def at_work(self, server: str, now: float) -> str | None:
        """The step that a controller whose lease lives is doing on the server."""
        alive = select(replicas.c.epoch).where(replicas.c.expires_at > now)
        held = select(servers.c.name).where(servers.c.name == server, servers.c.epoch.in_(alive)).exists()
        unfinished = (journal.c.server == server) & journal.c.finished.is_(None)
        async with self._database.read() as connection:
            return await connection.scalar(select(journal.c.key).where(unfinished, held).limit(1))

    async def complete(self, claim: Claim, completion: Completion, now: float) -> bool:
        """Write the outcome and let go of the server. False if the fence has moved on: then nothing is written."""

        async def work(connection: AsyncConnection) -> bool:
            status = completion.status
            changed = await connection.execute(
                update(servers)
                .where(servers.c.name == claim.server, servers.c.fence == claim.fence)
                .values(
                    status=msgspec.json.encode(status).decode(),
                    state=status.state.value,
                    epoch=None,
                    next_due=case((servers.c.wakes != claim.wakes, 0.0), else_=completion.next_due),
                )
            )
            if changed.rowcount != 1:
                return False
            if completion.journal is not None:
                row, outcome = completion.journal
                await connection.execute(
                    update(journal).where(journal.c.id == row).values(finished=now, outcome=outcome)
                )
            if completion.handled is not None:
                intent, outcome = completion.handled
                await connection.execute(
                    update(intents).where(intents.c.id == intent).values(handled=now, outcome=outcome)
                )
            if completion.spent is not None:
                await spend_approved(connection, completion.spent, claim.server, now)
            if completion.dropped_orders is None:
                await connection.execute(delete(orders).where(orders.c.server == claim.server))
            elif completion.dropped_orders:
                stale = (orders.c.server == claim.server) & orders.c.key.in_(completion.dropped_orders)
                await connection.execute(delete(orders).where(stale))
            if completion.notes:
                rows = [
                    {"at": now, "server": claim.server, "kind": note.kind, "message": note.message}
                    for note in completion.notes
                ]
                await connection.execute(insert(events), rows)
            return True

        return await self._database.write(work)

    async def take_turn(self, now: float) -> int:
        """A slot for one rotation, that nobody else gets."""

        async def work(connection: AsyncConnection) -> int:
            slot, left = (await rotation_pace(connection, change=True)).take(now)
            await set_rotation_pace(connection, left)
            return slot

        return await self._database.write(work)

    async def let_go(self, claim: Claim, next_due: float) -> None:
        """Free a server whose reconcile could not be completed; its status stays as it was."""

        async def work(connection: AsyncConnection) -> None:
            mine = (servers.c.name == claim.server) & (servers.c.fence == claim.fence)
            await connection.execute(update(servers).where(mine).values(epoch=None, next_due=next_due))

        await self._database.write(work)

    async def wake(self, names: Sequence[str]) -> None:
        async def work(connection: AsyncConnection) -> None:
            for name in names:
                await wake(connection, name)

        await self._database.write(work)

    async def identities(self) -> tuple[dict[str, str], dict[str, list[str]]]:
        """Which server a bound endorsement key is (by its SHA-256), and which servers a MAC address is declared for."""
        mine = (resources.c.name == servers.c.name) & (resources.c.kind == "Server")
        async with self._database.read() as connection:
            query = select(servers.c.name, servers.c.status, resources.c.document).join(resources, mine)
            rows = [tuple(row) for row in await connection.execute(query)]
        return await asyncio.to_thread(_identities, rows)

    async def view(self, name: str) -> ServerView | None:
        """The view of one server; None if it is not declared."""
        return (await self.views([name])).get(name)

    async def views(self, names: Sequence[str]) -> dict[str, ServerView]:
        """All that a decision about these servers may rest on, as of one moment. Read together: seven queries, and two
        more for each waiver, three for each approval that an intent names."""
        async with self._database.read() as connection:
            mine = (resources.c.name == servers.c.name) & (resources.c.kind == "Server")
            rows = await _all(
                connection,
                select(servers, resources.c.document, resources.c.generation)
                .join(resources, mine)
                .where(servers.c.name.in_(names)),
            )
            related = await _all(
                connection,
                select(
                    resources.c.kind, resources.c.name, resources.c.document, resources.c.server, resources.c.revision
                ).where(resources.c.kind.in_(("Policy", "FirmwareBaseline")) | resources.c.server.in_(names)),
            )
            wishes = await _all(
                connection,
                select(intents).where(intents.c.server.in_(names), intents.c.handled.is_(None)).order_by(intents.c.id),
            )
            told, pace = await announced(connection), await rotation_pace(connection)
            sessions = await _all(connection, select(agent_sessions).where(agent_sessions.c.server.in_(names)))
            given = await _all(connection, select(orders).where(orders.c.server.in_(names)))
            declared = [(row.name, _spec(row.document, WaiverSpec)) for row in related if row.kind == "Waiver"]
            waivers = await signed_waivers(connection, declared)
            named = {each.id: msgspec.json.decode(each.args).get("approval") for each in wishes}
            asked = await asked_among(connection, {request for request in named.values() if request is not None})
        policies = {row.name: _spec(row.document, PolicySpec) for row in related if row.kind == "Policy"}
        baselines = tuple(
            _spec(row.document, FirmwareBaselineSpec) for row in related if row.kind == "FirmwareBaseline"
        )
        assigned = {row.server: row for row in related if row.kind == "Assignment"}
        agents = {row.server: msgspec.json.decode(row.session, type=AgentSession) for row in sessions}
        views = {}
        for row in rows:
            spec = _spec(row.document, ServerSpec)
            views[row.name] = ServerView(
                name=row.name,
                spec=spec,
                status=_status.decode(row.status),
                policy=policies.get(spec.policy or "", PolicySpec()),
                assignment=_assigned(assigned.get(row.name)),
                baselines=baselines,
                generation=row.generation,
                secure_boot_generation=int(told.get(SECURE_BOOT, 1)),
                agent_trust=(int(told.get(AGENT_CA, 1)), int(told.get(IMAGE_KEY, 1))),
                bmc_ca=told.get(BMC_CA),
                listening_since=float(told.get(LISTENING, 0.0)),
                pace=pace,
                paused=row.paused,
                waivers=tuple(waivers.get(row.name, ())),
                asked=asked,
                intents=tuple(_intent(each) for each in wishes if each.server == row.name),
                agent=agents.get(row.name),
                orders={
                    each.key: msgspec.json.decode(each.data, type=Order) for each in given if each.server == row.name
                },
            )
        return views


class _Bound(msgspec.Struct, frozen=True):
    """Of a server's status, the one fact that it is recognized by: the rest is not decoded."""

    ek_sha256: str | None = None


class _Known(msgspec.Struct, frozen=True):
    facts: _Bound = _Bound()


_known = msgspec.json.Decoder(_Known)


def _identities(rows: Sequence[tuple[Any, ...]]) -> tuple[dict[str, str], dict[str, list[str]]]:
    keys: dict[str, str] = {}
    macs: dict[str, list[str]] = defaultdict(list)
    for name, status, document in rows:
        if (key := _known.decode(status).facts.ek_sha256) is not None:
            keys[key] = name
        for nic in _spec(document, ServerSpec).nics:
            macs[nic.mac.lower()].append(name)
    return keys, macs


async def announced(connection: AsyncConnection) -> dict[str, str]:
    """What was announced of the site's keys, by name; with what the database says of itself."""
    return {row.name: row.value for row in await _all(connection, select(about))}


async def rotation_pace(connection: AsyncConnection, *, change: bool = False) -> Pace:
    """At which rate passwords are changed, and which turns are given. `change`: it is written in this transaction."""
    query = select(about.c.value).where(about.c.name == PACE)
    found = await connection.scalar(query.with_for_update() if change else query)
    return msgspec.json.decode(found, type=Pace) if found is not None else Pace()


async def set_rotation_pace(connection: AsyncConnection, pace: Pace) -> None:
    text = msgspec.json.encode(pace).decode()
    changed = await connection.execute(update(about).where(about.c.name == PACE).values(value=text))
    if changed.rowcount == 0:
        await connection.execute(insert(about).values(name=PACE, value=text))


async def _all(connection: AsyncConnection, query: Select[Any]) -> Sequence[Row[Any]]:
    rows: Sequence[Row[Any]] = (await connection.execute(query)).all()
    return rows


def _assigned(row: Row[Any] | None) -> Assigned | None:
    return Assigned(row.name, _spec(row.document, AssignmentSpec), row.revision) if row is not None else None


def _intent(row: Row[Any]) -> Intent:
    args = msgspec.json.decode(row.args)
    return Intent(id=row.id, at=row.at, kind=IntentKind(row.kind), reason=row.reason, by=row.by, args=args)


def _spec(document: str, kind: type[S]) -> S:
    return msgspec.convert(msgspec.json.decode(document)["spec"], kind)
