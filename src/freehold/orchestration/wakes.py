"""Waking: makes a server due now, even while it is in flight."""

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from freehold.orchestration.schema import servers


async def wake(connection: AsyncConnection, server: str) -> None:
    """A completion that saw fewer wake-ups than there are leaves the server due at once (`Ledger.complete`)."""
    row = update(servers).where(servers.c.name == server)
    await connection.execute(row.values(next_due=0.0, wakes=servers.c.wakes + 1))
