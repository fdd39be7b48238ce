"""Keeper of agent sessions and of the orders to agents. An order is delivered until its result is in."""

import uuid
from typing import Any

import msgspec
from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from freehold.model.status import AgentSession, Order, OrderState
from freehold.orchestration.database import Database
from freehold.orchestration.schema import agent_sessions, orders, ticket_uses, tpm_states
from freehold.orchestration.wakes import wake
from freehold.root_of_trust.attestation.appraise import TpmState

_session = msgspec.json.Decoder(AgentSession)
_order = msgspec.json.Decoder(Order)
_tpm_state = msgspec.json.Decoder(TpmState)


class AgentLedger:
    """`store.agents`. Whatever the agent API learns is put here; it wakes the engine by itself."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put_session(self, server: str, session: AgentSession) -> None:
        """The session that speaks for `server` from now on; an earlier one is replaced."""
        text = msgspec.json.encode(session).decode()

        async def work(connection: AsyncConnection) -> None:
            changed = await connection.execute(
                update(agent_sessions).where(agent_sessions.c.server == server).values(session=text)
            )
            if changed.rowcount == 0:
                await connection.execute(insert(agent_sessions).values(server=server, session=text))
            await wake(connection, server)

        await self._database.write(work)

    async def change_session(self, server: str, session_id: str, **changes: Any) -> bool:
        """Change fields of the session if it still is the one that speaks for `server`. Heard-of times alone
        (`last_seen`) wake nobody."""

        async def work(connection: AsyncConnection) -> bool:
            text = await connection.scalar(select(agent_sessions.c.session).where(agent_sessions.c.server == server))
            found = _session.decode(text) if text else None
            if found is None or found.id != session_id:
                return False
            text = msgspec.json.encode(msgspec.structs.replace(found, **changes)).decode()
            await connection.execute(
                update(agent_sessions).where(agent_sessions.c.server == server).values(session=text)
            )
            if set(changes) != {"last_seen"}:
                await wake(connection, server)
            return True

        return await self._database.write(work)

    async def session(self, server: str) -> AgentSession | None:
        async with self._database.read() as connection:
            text = await connection.scalar(select(agent_sessions.c.session).where(agent_sessions.c.server == server))
            return _session.decode(text) if text else None

    async def end_session(self, server: str) -> None:
        """Forget the session: its certificate is worth nothing from now on, and the agent must say hello anew."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(delete(agent_sessions).where(agent_sessions.c.server == server))

        await self._database.write(work)

    async def last_seen(self, ek: str) -> TpmState | None:
        """The state of this TPM at its last quote, which the next one is held against. What another release wrote and
        this one cannot read is nothing: it must not lock a server out (CVE-2025-1057)."""
        async with self._database.read() as connection:
            text = await connection.scalar(select(tpm_states.c.state).where(tpm_states.c.ek == ek))
        try:
            return _tpm_state.decode(text) if text else None
        except msgspec.DecodeError:
            return None

    async def saw_tpm(self, ek: str, state: TpmState | None) -> None:
        """Its last quote said this; None: forget it, because the TPM was cleared."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(delete(tpm_states).where(tpm_states.c.ek == ek))
            if state is not None:
                text = msgspec.json.encode(state).decode()
                await connection.execute(insert(tpm_states).values(ek=ek, state=text))

        await self._database.write(work)

    async def use_ticket(self, server: str, ticket: str, boot_id: str) -> bool:
        """Whether the server's ticket (its SHA-256, hex) is this boot's: the first use decides."""

        async def work(connection: AsyncConnection) -> bool:
            mine = ticket_uses.c.server == server
            used = (await connection.execute(select(ticket_uses).where(mine))).first()
            if used is not None and used.ticket == ticket:
                return bool(used.boot_id == boot_id)
            await connection.execute(delete(ticket_uses).where(mine))
            await connection.execute(insert(ticket_uses).values(server=server, ticket=ticket, boot_id=boot_id))
            return True

        return await self._database.write(work)

    async def order(self, server: str, key: str, kind: str, args: dict[str, Any]) -> Order:
        """The order of `key`; it is given now if there is none. Idempotent: a key has one order."""

        async def work(connection: AsyncConnection) -> Order:
            of_key = (orders.c.server == server) & (orders.c.key == key)
            text = await connection.scalar(select(orders.c.data).where(of_key))
            if text is not None:
                return _order.decode(text)
            given = Order(id=uuid.uuid4().hex, key=key, kind=kind, args=args)
            await connection.execute(
                insert(orders).values(server=server, key=key, id=given.id, **_columns(given)),
            )
            return given

        return await self._database.write(work)

    async def next_order(self, server: str) -> Order | None:
        """The order that the agent is to carry out now."""
        async with self._database.read() as connection:
            wanted = (orders.c.server == server) & (orders.c.state == OrderState.PENDING)
            text = await connection.scalar(select(orders.c.data).where(wanted).limit(1))
            return _order.decode(text) if text else None

    async def progress(self, server: str, order_id: str, progress: dict[str, Any]) -> bool:
        return await self._change(server, order_id, wakes=False, progress=progress)

    async def finish(
        self, server: str, order_id: str, *, ok: bool, result: dict[str, Any], error: dict[str, Any] | None
    ) -> bool:
        """Take the result of an order. False if no such order is pending: a result is taken once."""
        state = OrderState.DONE if ok else OrderState.FAILED
        return await self._change(server, order_id, wakes=True, state=state, result=result, error=error)

    async def drop(self, server: str, key: str) -> None:
        """Forget the order of `key`, so that the next attempt gives a new one."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(delete(orders).where(orders.c.server == server, orders.c.key == key))

        await self._database.write(work)

    async def _change(self, server: str, order_id: str, *, wakes: bool, **changes: Any) -> bool:
        async def work(connection: AsyncConnection) -> bool:
            mine = (orders.c.server == server) & (orders.c.id == order_id) & (orders.c.state == OrderState.PENDING)
            text = await connection.scalar(select(orders.c.data).where(mine))
            if text is None:
                return False
            changed = msgspec.structs.replace(_order.decode(text), **changes)
            await connection.execute(update(orders).where(orders.c.id == order_id).values(**_columns(changed)))
            if wakes:
                await wake(connection, server)
            return True

        return await self._database.write(work)


def _columns(order: Order) -> dict[str, str]:
    return {"state": order.state.value, "data": msgspec.json.encode(order).decode()}
