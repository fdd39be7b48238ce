"""One database: connections, transactions, and errors in words.

Writes of a process go through one task that commits them in groups. If one of a group fails, the group is undone and
its writes are made again one by one, so that only the one that fails is refused. A write must therefore touch nothing
but its connection.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import event, exc, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from freehold.model.errors import FreeholdError
from freehold.orchestration import schema

T = TypeVar("T")
Write = Callable[[AsyncConnection], Awaitable[T]]

MAX_GROUP = 500
"""Writes in one commit."""


class StoreError(FreeholdError):
    """The store cannot be read or written now. Nothing was lost: what was committed stays committed."""


class Database:
    def __init__(self, engine: AsyncEngine, name: str) -> None:
        self._engine, self.name = engine, name
        self._queue: asyncio.Queue[tuple[Write[Any], asyncio.Future[Any]]] = asyncio.Queue()
        self._writer: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, location: str | Path, *, busy_timeout: float = 10.0) -> "Database":
        """Open (and lay out, if new) the database at a path, or at an SQLAlchemy URL. Raises `StoreError`."""
        url, name = str(location), str(location)
        if "://" not in url:
            path = Path(location)
            _private(path)
            url = f"sqlite+aiosqlite:///{path}"
        engine = create_async_engine(url, pool_size=3, max_overflow=0)
        if engine.dialect.name == "sqlite":
            _configure_sqlite(engine, busy_timeout)
        database = cls(engine, name)
        try:
            await database.write(_lay_out)
        except BaseException:
            await database.close()
            raise
        return database

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection that sees one consistent state."""
        with _in_words(self.name):
            async with self._engine.connect() as connection:
                yield connection

    async def write(self, work: Write[T]) -> T:
        """Run `work` in a transaction and return its result once it is committed. Raises `StoreError`."""
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_groups(), name="store-writer")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((work, done))
        return await done

    async def truncate_log(self) -> bool:
        """Write SQLite's write-ahead log into the database and cut it off, so that nothing of before is in it. False:
        a reader or writer is in the way. Other databases have none."""
        if self._engine.dialect.name != "sqlite":
            return True
        with _in_words(self.name):
            async with self._engine.connect() as connection:
                raw = await connection.get_raw_connection()  # a checkpoint cannot run in a transaction
                assert raw.driver_connection is not None
                async with raw.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)") as cursor:
                    busy, _, _ = await cursor.fetchone()
        return not busy

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        await self._engine.dispose()

    async def _write_groups(self) -> None:
        while True:
            group = [await self._queue.get()]
            while not self._queue.empty() and len(group) < MAX_GROUP:
                group.append(self._queue.get_nowait())
            if wanted := [(work, done) for work, done in group if not done.cancelled()]:
                await self._commit(wanted)

    async def _commit(self, group: list[tuple[Write[Any], asyncio.Future[Any]]]) -> None:
        try:
            results = await self._transact([work for work, _ in group])
        except Exception as error:
            if len(group) > 1:
                for each in group:
                    await self._commit([each])
            elif not group[0][1].done():
                group[0][1].set_exception(error)
            return
        for (_, done), result in zip(group, results, strict=True):
            if not done.done():
                done.set_result(result)

    async def _transact(self, works: list[Write[Any]]) -> list[Any]:
        with _in_words(self.name):
            async with self._engine.execution_options(freehold_write=True).begin() as connection:
                return [await work(connection) for work in works]


def _private(path: Path) -> None:
    """Create the file for its owner only, before SQLite does: the store holds what people declared, words included."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise StoreError(f"cannot open the store {path}: {error.strerror}") from error


def _configure_sqlite(engine: AsyncEngine, busy_timeout: float) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not where the driver guesses
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout={int(busy_timeout * 1000)}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON",
            "cache_size=-4096", "secure_delete=ON",
        ):  # fmt: skip
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def on_begin(connection: Any) -> None:
        # A deferred write transaction could fail half-way, when another process has written meanwhile.
        writes = connection.get_execution_options().get("freehold_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


async def _lay_out(connection: AsyncConnection) -> None:
    await connection.run_sync(schema.metadata.create_all)
    found = await connection.scalar(select(schema.about.c.value).where(schema.about.c.name == "version"))
    if found is None:
        await connection.execute(schema.about.insert().values(name="version", value=str(schema.VERSION)))
    elif found != str(schema.VERSION):
        raise StoreError(
            f"the store has layout {found}, this Freehold reads layout {schema.VERSION}",
            remedy="Use the Freehold that wrote it.",
        )


class _in_words:  # noqa: N801 - reads as the phrase that it is
    """Turns the driver's errors into `StoreError`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, exc.TimeoutError):
            what = f"the store {self.name} has more to do than it can: no connection became free in time"
            raise StoreError(what, remedy="It is tried again by itself; see what the machine is busy with.") from error
        if not isinstance(error, exc.DBAPIError) or isinstance(error, exc.IntegrityError):
            return
        text = str(error.orig)
        if "disk is full" in text:
            what, remedy = "the disk that holds the store {} is full", "Make room; work goes on where it stopped."
        elif "locked" in text:
            what, remedy = "the store {} is locked by another process", "End the process that holds it, then try again."
        elif "not a database" in text or "malformed" in text:
            what, remedy = "{} is not a sound Freehold store: " + text, "Restore it from a backup."
        elif "readonly" in text or "unable to open" in text:
            what, remedy = "cannot write the store {}: " + text, "Check the permissions of the state directory."
        else:
            what, remedy = "the store {} failed: " + text, ""
        raise StoreError(what.format(self.name), remedy=remedy or None) from error
