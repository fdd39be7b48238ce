"""Keeper of what concerns no single server: findings about the site, and what the evidence log has or shall hear."""

from typing import Any

import msgspec
from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from freehold.evidence import Predicate
from freehold.model.documents import resource_from
from freehold.model.findings import Finding
from freehold.model.resources import ERASED
from freehold.model.status import ServerStatus
from freehold.orchestration.database import Database
from freehold.orchestration.schema import events, evidence_due, resources, servers, site_findings, told

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

    async def erase_factory_passwords(self, now: float) -> tuple[str, ...]:
        """Take the factory password out of every document whose BMC has one of ours by now; of which servers. It is no
        change of what is declared. SQLite overwrites what it held (`secure_delete`); `scrub` is what follows."""
        mine = (servers.c.name == resources.c.name) & (resources.c.kind == "Server")
        query = select(resources.c.name, resources.c.document, servers.c.status).join(servers, mine)
        query = query.where(resources.c.document.like('%"password":%'), resources.c.document.not_like(f"%{ERASED}%"))

        async def work(connection: AsyncConnection) -> tuple[str, ...]:
            done = []
            for row in (await connection.execute(query)).all():
                resource = resource_from(msgspec.json.decode(row.document), origin="the store")
                status = msgspec.json.decode(row.status, type=ServerStatus)
                if not resource.has_password or not status.facts.bmc_credential_committed:
                    continue
                document = msgspec.json.encode(resource.erased().to_document(reveal=True)).decode()
                this = (resources.c.kind == "Server") & (resources.c.name == row.name)
                await connection.execute(update(resources).where(this).values(document=document))
                said = "the factory password of its document is erased from the store: its BMC has one of ours"
                await connection.execute(insert(events).values(at=now, server=row.name, kind="erased", message=said))
                done.append(row.name)
            return tuple(done)

        async with self._database.read() as connection:  # looking first is a read
            if await connection.scalar(query.limit(1)) is None:
                return ()
        return await self._database.write(work)

    async def scrub(self) -> bool:
        """What was erased goes from the write-ahead log of SQLite too; False: somebody reads, try again."""
        return await self._database.truncate_log()

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
