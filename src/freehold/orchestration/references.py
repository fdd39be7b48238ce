"""Keeper of firmware reference values: proposed by a measurement, approved by two people, superseded, revoked."""

from typing import Any

import msgspec
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from freehold.evidence import canonical
from freehold.model.errors import FreeholdError
from freehold.model.status import IntentKind, ServerStatus
from freehold.orchestration.approvals import ask_for, expired, granted, require_signatures, spend
from freehold.orchestration.conditions import OS_RUNS
from freehold.orchestration.database import Database
from freehold.orchestration.schema import intents, reference_values, servers
from freehold.root_of_trust.attestation.reference import ReferenceState, ReferenceValues, become, firmware_id
from freehold.root_of_trust.operators import Act, Granted, NotApproved, Request

PATIENCE = 30 * 86400.0
"""Seconds for which a proposal waits for its two signatures."""


class UnknownReference(FreeholdError):
    """There are no reference values of that id."""


class KnownReference(msgspec.Struct, frozen=True, kw_only=True):
    """`origin` says where the values were measured; `approval` is the request that two people sign."""

    values: ReferenceValues
    state: ReferenceState
    origin: str
    approval: str


class ReferenceLedger:
    """`store.references`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def propose(
        self,
        values: ReferenceValues,
        origin: str,
        by: str,
        now: float,
        *,
        compared: str = "",
        doubted: bool = False,
    ) -> KnownReference:
        """Put values before the operators, unless they are known already. `compared`: what the depot had to say of them
        then, for those who sign. `doubted`: known or not, because the approval that they have does not verify."""
        details = {"id": values.id, "origin": origin, "values": msgspec.to_builtins(values)}
        request = Request(
            act=Act.REFERENCE_VALUES,
            subject=values.title,
            details=details | ({"depot": compared} if compared else {}),
            requested_by=by,
            at=now,
            expires=now + PATIENCE,
        )

        async def work(connection: AsyncConnection) -> KnownReference:
            known = await _one(connection, values.id)
            pending = known is not None and known.state is ReferenceState.PENDING
            stale = doubted or (pending and known is not None and await expired(connection, known.approval, now))
            if known is not None and not stale:
                return known
            await ask_for(connection, request, now)
            if known is not None:  # the same values, asked for anew
                mine, state = reference_values.c.id == values.id, ReferenceState.PENDING
                anew = {"approval": request.id, "state": state.value, "changed": now}
                await connection.execute(update(reference_values).where(mine).values(**anew))
                return msgspec.structs.replace(known, approval=request.id, state=state)
            row = {
                "id": values.id,
                "vendor": values.vendor,
                "model": values.model,
                "version": values.version,
                "state": ReferenceState.PENDING.value,
                "document": msgspec.json.encode(values).decode(),
                "origin": origin,
                "approval": request.id,
                "changed": now,
            }
            await connection.execute(insert(reference_values).values(**row))
            return KnownReference(values=values, state=ReferenceState.PENDING, origin=origin, approval=request.id)

        return await self._database.write(work)

    async def approve(self, reference_id: str, now: float) -> tuple[str, ...]:
        """Pending values become approved if two people signed; their names. Raises `NotApproved`."""

        async def work(connection: AsyncConnection) -> tuple[str, ...]:
            known = await _required(connection, reference_id)
            names = await require_signatures(connection, known.approval, now)
            await _become(connection, known, ReferenceState.APPROVED, now)
            await spend(connection, known.approval, now)
            return names

        return await self._database.write(work)

    async def granted(self, known: KnownReference) -> Granted:
        """The approval of these very values, verified again: what the table says is not taken for it. Raises
        `NotApproved`."""
        async with self._database.read() as connection:
            found = await granted(connection, known.approval)
        request = found.request
        wanted = canonical.dumps(msgspec.to_builtins(known.values))
        if request.act is not Act.REFERENCE_VALUES or canonical.dumps(request.details.get("values")) != wanted:
            raise NotApproved(
                f"the request {request.id} is about {request.act} for {request.subject}",
                expected=f"an approval of reference values {known.values.id}",
            )
        return found

    async def withdraw(self, reference_id: str, wanted: ReferenceState, now: float) -> None:
        """Supersede or revoke: one person may, since it only ever takes trust away. Who was staged with revoked values
        has to attest at once, and is quarantined by that."""

        async def work(connection: AsyncConnection) -> None:
            known = await _required(connection, reference_id)
            await _become(connection, known, wanted, now)
            if known.state is ReferenceState.PENDING:
                await spend(connection, known.approval, now)
            if wanted is ReferenceState.REVOKED:
                await _demand_attestations(connection, known.values, now)
            await connection.execute(update(servers).values(next_due=now, wakes=servers.c.wakes + 1))

        await self._database.write(work)

    async def show(self, reference_id: str) -> KnownReference:
        """Raises `UnknownReference`."""
        async with self._database.read() as connection:
            return await _required(connection, reference_id)

    async def revoked(self, digests: dict[str, tuple[str, ...]]) -> KnownReference | None:
        """Revoked values that are these measurements, whichever board and version they were revoked for: a version
        string is what a BMC says."""
        query = select(reference_values).where(reference_values.c.state == ReferenceState.REVOKED.value)
        async with self._database.read() as connection:
            rows = (await connection.execute(query.order_by(reference_values.c.id))).all()
        wanted = firmware_id(digests)
        return next((known for known in map(_known, rows) if known.values.firmware == wanted), None)

    async def list(self, *, after: str = "", limit: int = 500, **board: str) -> list[KnownReference]:
        """A page in the order of the ids. `board`: only of this `vendor`, `model`, `version`."""
        query = select(reference_values).where(reference_values.c.id > after)
        for column, value in board.items():
            query = query.where(reference_values.c[column] == value)
        async with self._database.read() as connection:
            rows = await connection.execute(query.order_by(reference_values.c.id).limit(limit))
            return [_known(row) for row in rows]


async def _one(connection: AsyncConnection, reference_id: str) -> KnownReference | None:
    query = select(reference_values).where(reference_values.c.id == reference_id)
    row = (await connection.execute(query)).one_or_none()
    return _known(row) if row is not None else None


async def _demand_attestations(connection: AsyncConnection, values: ReferenceValues, now: float) -> None:
    """Of every server whose OS runs on firmware that measures `values`."""
    rows = await connection.execute(select(servers.c.name, servers.c.status).where(servers.c.state.in_(OS_RUNS)))
    concerned = [
        row.name
        for row in rows.all()
        if (held := msgspec.json.decode(row.status, type=ServerStatus).facts.reference_values) is not None
        and firmware_id(held) == values.firmware
    ]
    asked = {"kind": IntentKind.ATTEST.value, "by": "revocation", "args": "{}", "at": now}
    reason = f"the reference values {values.id} were revoked"
    if concerned:
        every = [{"server": name, "reason": reason, **asked} for name in concerned]
        await connection.execute(insert(intents), every)


async def _required(connection: AsyncConnection, reference_id: str) -> KnownReference:
    known = await _one(connection, reference_id)
    if known is None:
        raise UnknownReference(
            f"there are no reference values {reference_id}", remedy="`freehold baseline list` shows those that are"
        )
    return known


async def _become(connection: AsyncConnection, known: KnownReference, wanted: ReferenceState, now: float) -> None:
    state = become(known.state, wanted)
    mine = reference_values.c.id == known.values.id
    await connection.execute(update(reference_values).where(mine).values(state=state.value, changed=now))


def _known(row: Any) -> KnownReference:
    return KnownReference(
        values=msgspec.json.decode(row.document, type=ReferenceValues),
        state=ReferenceState(row.state),
        origin=row.origin,
        approval=row.approval,
    )
