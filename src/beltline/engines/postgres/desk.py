"""The connections of one event loop: at most `pool` of them, made when they are needed, each statement a transaction of its own.

A statement that was sent and has no answer is *unknown*; the desk repeats only what certainly did not happen (deadlock, a prepared statement that a pooler does not
know, a connection that had died while nobody used it). What it has begun it finishes, even if the caller is cancelled meanwhile.

No wait is endless. When an answer is overdue the server is asked to stop, which frees what waits for a lock over there too; a server that does not hear that either
is hung up on. A commit that waits for its synchronous standby answers a request to stop with *done*, so an overdue answer is never believed.
"""

import asyncio
import contextlib
import os
import random
import select
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg
from psycopg.adapt import Loader
from psycopg.pq import Format

from beltline.core.errors import EngineUnavailable, HandleMisused
from beltline.engines.postgres import trouble
from beltline.engines.postgres.address import Address
from beltline.engines.postgres.wire import clean, statement

T = TypeVar("T")
Row = tuple[Any, ...]
Connection = psycopg.AsyncConnection[Row]
Greeting = Callable[[Connection], Awaitable[bool]]

REPEATS = 30  # of one statement that met a deadlock; each time there is one transaction less in the way
PAUSE_S = 0.005
STOP_S = 1.0  # for a server that is asked to stop a statement, and as long again for its answer
CLOSE_S = 5.0  # for what is under way when the engine is closed
GONE_S = 0.5  # for what has lost its connection to notice


class HexLoader(Loader):
    """Ids are 32 hex digits on our side."""

    format = Format.BINARY

    def load(self, data: Any) -> str:
        return bytes(data).hex()


class Patience:
    """The wait for one answer. `lost`: it was overdue, and whatever has come since is not the whole truth."""

    __slots__ = ("_connection", "_desk", "_timer", "ended", "lost")

    def __init__(self, desk: "Desk", connection: Connection, seconds: float) -> None:
        self.lost = False
        self.ended = False
        self._desk = desk
        self._connection = connection
        self._timer = asyncio.get_running_loop().call_later(seconds, self._lose)

    def _lose(self) -> None:
        self.lost = True
        self._desk.own(self._stop())

    async def _stop(self) -> None:
        with contextlib.suppress(psycopg.Error, OSError):
            await self._connection.cancel_safe(timeout=STOP_S)
        pause_s = STOP_S / 20
        for _ in range(20):
            if self.ended:
                return
            await asyncio.sleep(pause_s)
        hang_up(self._connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended = True
        self._timer.cancel()


class Desk:
    """Made in the loop whose it is. `greet` checks every new connection and raises what is wrong with it; it says whether the session behind it is ours alone."""

    def __init__(self, address: Address, greet: Greeting, recheck: Callable[[Connection], Awaitable[None]] | None = None) -> None:
        self.closed = False
        self.pooled = False  # somebody between us and the server hands sessions out by the transaction
        self._address = address
        self._greet = greet
        self._recheck = recheck  # raises what it means that a function or table is not there any more
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._free = asyncio.Semaphore(address.pool)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._prepare = address.prepare

    # ------------------------------------------------------------------------------------------------ statements
    async def ask(self, sql: str, params: Sequence[object] = ()) -> list[Row]:
        """The rows of one statement. Raises EngineUnavailable, EngineForeign, EngineError, HandleMisused."""
        for repeat in range(REPEATS):
            connection = await self._take()
            patience = self.patience(connection)
            try:
                with patience:
                    rows = await self._execute(connection, sql, params)
            except psycopg.Error as error:
                if patience.lost:
                    await self._discard(connection)  # the request to stop may be on its way still: it must not meet the next statement
                    raise trouble.overdue(error, self._address.shown, self._address.timeout_s) from error
                what = trouble.remedy(error)
                if trouble.broken(error) or connection.broken:
                    await self._discard(connection)
                    await self._drop_idle()
                elif what is trouble.Remedy.UNPREPARED:
                    what = what if self._prepare else trouble.Remedy.NONE  # nothing was prepared: it means something else
                    self._prepare = False
                    await self._discard(connection)
                else:
                    self._give(connection)
                if what is trouble.Remedy.NONE or repeat == REPEATS - 1:
                    await self._look_for(error)
                    raise trouble.asking(error, self._address.shown, self._address.schema) from error
                await asyncio.sleep(PAUSE_S * random.random() * (repeat + 1))  # noqa: S311 - jitter
            except BaseException:
                await self._discard(connection)
                raise
            else:
                if patience.lost:
                    await self._discard(connection)
                    raise trouble.overdue(None, self._address.shown, self._address.timeout_s)
                self._give(connection)
                return rows
        raise AssertionError("the last repeat raises")

    async def _execute(self, connection: Connection, sql: str, params: Sequence[object]) -> list[Row]:
        prepare = None if self._prepare and not self.pooled else False
        try:
            cursor = await connection.execute(statement(sql), params or None, prepare=prepare, binary=True)
        except (UnicodeEncodeError, psycopg.DataError) as error:
            if isinstance(error, psycopg.DataError) and error.sqlstate is not None:
                raise
            # A text that PostgreSQL cannot hold. Nothing was sent; looked for as it would have been stored, it is found or unknown.
            cleaned = [clean(value) if isinstance(value, str) else value for value in params]
            cursor = await connection.execute(statement(sql), cleaned, prepare=prepare, binary=True)
        return await cursor.fetchall() if cursor.description is not None else []

    async def _look_for(self, error: psycopg.Error) -> None:
        if self._recheck is None or not trouble.missing(error):
            return
        connection = await self.connect()
        try:
            await self._recheck(connection)
        except psycopg.Error:
            return  # the first error says enough
        finally:
            await self.discard(connection)

    def patience(self, connection: Connection, seconds: float | None = None) -> Patience:
        """`with` it, whoever waits for this connection waits at most so long (None: ?timeout=) and a little; then he gets an error of psycopg."""
        return Patience(self, connection, self._address.timeout_s if seconds is None else seconds)

    async def finish(self, work: Coroutine[Any, Any, T], *, undo: Callable[[T], Coroutine[Any, Any, object] | None] | None = None) -> T:
        """Run it to its end whatever happens to the caller; `undo` makes good an answer that nobody takes any more."""
        task = self.own(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if task.cancelled() and caller is not None and not caller.cancelling():
                raise self.cut_short() from None
            if undo is not None:
                task.add_done_callback(lambda done: self._undo(done, undo))
            raise

    def _undo(self, task: "asyncio.Task[T]", undo: Callable[[T], Coroutine[Any, Any, object] | None]) -> None:
        if task.cancelled() or task.exception() is not None or self.closed:
            return
        work = undo(task.result())
        if work is not None:
            self.own(work)

    def cut_short(self) -> EngineUnavailable:
        """For whoever was waiting when the engine was closed and the server silent."""
        return EngineUnavailable(f"The engine was closed before {self._address.shown} answered.", effect="unknown")

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
            with self.patience(connection):
                self.pooled = not await self._greet(connection)
        except psycopg.Error as error:
            await self.discard(connection)
            raise trouble.connecting(error, self._address.shown) from error
        except BaseException:
            await self.discard(connection)
            raise
        return connection

    async def _take(self) -> Connection:
        try:
            async with asyncio.timeout(self._address.timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise EngineUnavailable(
                f"All {self._address.pool} connections to {self._address.shown} are busy.", effect="none", help="?pool= sets their number."
            ) from None
        try:
            if self.closed:
                raise HandleMisused("The PostgreSQL engine is closed.", help="Nothing may be asked after close().")
            while self._idle:
                connection = self._idle.pop()
                if not connection.closed and _alive(connection):
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
            self._idle.append(connection)

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
        for connection in idle:
            await self.discard(connection)

    # ------------------------------------------------------------------------------------------------ the end
    async def close(self) -> None:
        """What is under way is finished first, and given back what nobody waits for any more; but a silent server is not waited for. In the loop of the desk."""
        await self._drained(min(CLOSE_S, self._address.timeout_s))
        self.closed = True
        if self._tasks:
            self.hang_up()
        await self._drained(GONE_S)
        for task in self._tasks:
            task.cancel()
        await self._drained(GONE_S)
        for connection in list(self._all):
            await self.discard(connection)
        self._idle.clear()

    async def _drained(self, seconds: float) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while self._tasks and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(set(self._tasks), timeout=left, return_when=asyncio.FIRST_COMPLETED)

    def hang_up(self) -> None:
        """Whoever waits for an answer gets an error now. From any thread."""
        for connection in list(self._all):
            hang_up(connection)

    def abandon(self) -> None:
        """From anywhere, when the loop of the desk has ended without closing the engine."""
        self.closed = True
        for connection in list(self._all):
            connection.pgconn.finish()
        self._all.clear()
        self._idle.clear()


def _alive(connection: Connection) -> bool:
    """A server that goes away leaves something to read, or the end of the stream, on a connection that waits for nothing."""
    try:
        if not hasattr(select, "poll"):
            return not select.select([connection.pgconn.socket], [], [], 0)[0]
        look = select.poll()  # unlike select it knows files beyond the 1024th
        look.register(connection.pgconn.socket, select.POLLIN | select.POLLHUP | select.POLLERR)
        return not look.poll(0)
    except (ValueError, OSError, psycopg.Error):
        return False


def hang_up(connection: Connection) -> None:
    """Nothing more will come: whoever waits for this connection gets an error now. Its file stays open until he closes it, so that no other takes its number."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.pgconn.socket)) as line:
        line.shutdown(socket.SHUT_RDWR)
