"""The connections of one event loop: at most `pool` of them, made when they are needed, each statement a transaction of its own.

A statement that was sent and has no answer is *unknown*; the desk repeats only what certainly did not happen (deadlock, a prepared statement that a pooler does not
know, a connection that had died while nobody used it). What it has begun it finishes, even if the caller is cancelled meanwhile.
"""

import asyncio
import random
import select
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg.adapt import Loader
from psycopg.pq import Format

from beltline.core.errors import EngineUnavailable, HandleMisused
from beltline.engines.postgres import trouble
from beltline.engines.postgres.address import Address

T = TypeVar("T")
Row = tuple[Any, ...]
Connection = psycopg.AsyncConnection[Row]
Greeting = Callable[[Connection], Awaitable[None]]

REPEATS = 30  # of one statement that met a deadlock; each time there is one transaction less in the way
PAUSE_S = 0.005
STALE_S = 0.5  # a connection unused for longer is looked at before it is used


class HexLoader(Loader):
    """Ids are 32 hex digits on our side."""

    format = Format.BINARY

    def load(self, data: Any) -> str:
        return bytes(data).hex()


class Desk:
    """Made in the loop whose it is. `greet` checks every new connection and raises what is wrong with it."""

    def __init__(self, address: Address, greet: Greeting) -> None:
        self.closed = False
        self._address = address
        self._greet = greet
        self._idle: list[tuple[Connection, float]] = []
        self._all: set[Connection] = set()
        self._free = asyncio.Semaphore(address.pool)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._prepare = address.prepare

    # ------------------------------------------------------------------------------------------------ statements
    async def ask(self, sql: str, params: Sequence[object] = ()) -> list[Row]:
        """The rows of one statement. Raises EngineUnavailable, EngineForeign, EngineError, HandleMisused."""
        for repeat in range(REPEATS):
            connection = await self._take()
            try:
                async with asyncio.timeout(self._address.timeout_s):
                    cursor = await connection.execute(sql, params or None, prepare=None if self._prepare else False, binary=True)
                    rows = await cursor.fetchall() if cursor.description is not None else []
            except psycopg.Error as error:
                what = trouble.remedy(error)
                if trouble.broken(error) or connection.broken:
                    await self._discard(connection)
                    await self._drop_idle()
                elif what is trouble.Remedy.UNPREPARED:
                    self._prepare = False
                    await self._discard(connection)
                else:
                    self._give(connection)
                if what is trouble.Remedy.NONE or repeat == REPEATS - 1:
                    raise trouble.asking(error, self._address.shown, self._address.schema) from error
                await asyncio.sleep(PAUSE_S * random.random() * (repeat + 1))  # noqa: S311 - jitter
            except TimeoutError:
                await self._discard(connection)
                raise EngineUnavailable(
                    f"{self._address.shown} did not answer within {self._address.timeout_s:g} s.", effect="unknown", help="?timeout= sets the limit."
                ) from None
            except BaseException:
                await self._discard(connection)
                raise
            else:
                self._give(connection)
                return rows
        raise AssertionError("the last repeat raises")

    async def finish(self, work: Coroutine[Any, Any, T], *, undo: Callable[[T], Coroutine[Any, Any, object] | None] | None = None) -> T:
        """Run it to its end whatever happens to the caller; `undo` makes good an answer that nobody takes any more."""
        task = self.own(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if undo is not None:
                task.add_done_callback(lambda done: self._undo(done, undo))
            raise

    def _undo(self, task: "asyncio.Task[T]", undo: Callable[[T], Coroutine[Any, Any, object] | None]) -> None:
        if task.cancelled() or task.exception() is not None or self.closed:
            return
        work = undo(task.result())
        if work is not None:
            self.own(work)

    def own(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller has it, or has gone

    # ------------------------------------------------------------------------------------------------ connections
    async def connect(self) -> Connection:
        """A connection outside of the pool, checked. The caller closes it with `discard`."""
        try:
            connection = await psycopg.AsyncConnection.connect(self._address.conninfo, autocommit=True)
        except psycopg.Error as error:
            raise trouble.connecting(error, self._address.shown) from error
        self._all.add(connection)
        connection.adapters.register_loader("uuid", HexLoader)
        try:
            await self._greet(connection)
        except psycopg.Error as error:
            await self.discard(connection)
            raise trouble.connecting(error, self._address.shown) from error
        except BaseException:
            await self.discard(connection)
            raise
        return connection

    async def _take(self) -> Connection:
        if self.closed:
            raise HandleMisused("The PostgreSQL engine is closed.", help="Nothing may be asked after close().")
        try:
            async with asyncio.timeout(self._address.timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise EngineUnavailable(
                f"All {self._address.pool} connections to {self._address.shown} are busy.", effect="none", help="?pool= sets their number."
            ) from None
        try:
            while self._idle:
                connection, since = self._idle.pop()
                if not connection.closed and (time.monotonic() - since < STALE_S or _alive(connection)):
                    return connection
                await self.discard(connection)
            return await self.connect()
        except BaseException:
            self._free.release()
            raise

    def _give(self, connection: Connection) -> None:
        self._free.release()
        if self.closed or connection.closed:
            self._all.discard(connection)
            connection.pgconn.finish()
        else:
            self._idle.append((connection, time.monotonic()))

    async def _discard(self, connection: Connection) -> None:
        self._free.release()
        await self.discard(connection)

    async def discard(self, connection: Connection) -> None:
        self._all.discard(connection)
        connection.pgconn.finish()  # no farewell: the server may not be there to hear it
        await connection.close()

    async def _drop_idle(self) -> None:
        """One connection broke: the others lead to the same server."""
        idle, self._idle = self._idle, []
        for connection, _ in idle:
            await self.discard(connection)

    # ------------------------------------------------------------------------------------------------ the end
    async def close(self) -> None:
        """What is under way is finished first. In the loop of the desk."""
        self.closed = True
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        for connection in list(self._all):
            self._all.discard(connection)
            await connection.close()
        self._idle.clear()

    def abandon(self) -> None:
        """From anywhere, when the loop of the desk has ended without closing the engine."""
        self.closed = True
        for connection in self._all:
            connection.pgconn.finish()
        self._all.clear()
        self._idle.clear()


def _alive(connection: Connection) -> bool:
    """A server that goes away leaves something to read, or the end of the stream, on a connection that waits for nothing."""
    try:
        readable, _, _ = select.select([connection.pgconn.socket], [], [], 0)
    except (ValueError, OSError, psycopg.Error):
        return False
    return not readable
