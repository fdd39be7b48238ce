"""Keeper of what concerns no single server: findings about the site, and what the evidence log has or shall hear."""

from typing import Any

import msgspec
from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from freehold.evidence import Predicate
from freehold.model.findings import Finding
from freehold.orchestration.database import Database
from freehold.orchestration.schema import evidence_due, site_findings, told

_FINDINGS = tuple[Finding, ...]


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """A statement that the controller has to append: whoever made it cannot write the log."""

    id: int
    predicate: Predicate
    subject: str
    facts: dict[str, Any]


class SiteLedger:
    """`store.site`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def findings(self) -> tuple[Finding, ...]:
        """All findings about the site."""
        async with self._database.read() as connection:
            rows = await connection.execute(select(site_findings.c.findings).order_by(site_findings.c.source))
            return tuple(each for text in rows.scalars() for each in msgspec.json.decode(text, type=_FINDINGS))

    async def set_findings(self, source: str, findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
        """What `source` finds now takes the place of what it found before; those that are new."""

        async def work(connection: AsyncConnection) -> tuple[Finding, ...]:
            mine = site_findings.c.source == source
            old = await connection.scalar(select(site_findings.c.findings).where(mine))
            before = msgspec.json.decode(old, type=_FINDINGS) if old is not None else ()
            if before != findings:
                await connection.execute(delete(site_findings).where(mine))
                text = msgspec.json.encode(findings).decode()
                await connection.execute(insert(site_findings).values(source=source, findings=text))
            return tuple(each for each in findings if each not in before)

        return await self._database.write(work)

    async def told(self, source: str) -> frozenset[str]:
        """Digests of what `source` has in the evidence log."""
        async with self._database.read() as connection:
            return frozenset((await connection.execute(select(told.c.digest).where(told.c.source == source))).scalars())

    async def tell(self, source: str, digest: str) -> None:
        await self._database.write(
            lambda connection: connection.execute(insert(told).values(source=source, digest=digest))
        )

    async def due(self) -> list[Due]:
        """What the evidence log shall hear, oldest first."""
        async with self._database.read() as connection:
            rows = await connection.execute(select(evidence_due).order_by(evidence_due.c.id))
            return [
                Due(
                    id=row.id,
                    predicate=Predicate(row.predicate),
                    subject=row.subject,
                    facts=msgspec.json.decode(row.facts),
                )
                for row in rows
            ]

    async def settled(self, due: Due) -> None:
        """The evidence log has it."""
        await self._database.write(
            lambda connection: connection.execute(delete(evidence_due).where(evidence_due.c.id == due.id))
        )


async def owe(connection: AsyncConnection, predicate: Predicate, subject: str, facts: dict[str, Any]) -> None:
    """The evidence log shall hear this."""
    text = msgspec.json.encode(facts).decode()
    await connection.execute(insert(evidence_due).values(predicate=predicate.value, subject=subject, facts=text))
