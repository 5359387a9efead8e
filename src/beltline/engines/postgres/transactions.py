"""Messages and settles in a transaction that holds the user's own writes: the same functions of the database, said through a connection of the user's.

Nothing in such a transaction takes a lock that other verbs wait for, except where the order of things needs it: a FIFO group's lane, a bounded queue, a dedup key, a run.
Those are held to the end of the transaction, so it should be short. The functions make the commit synchronous, whatever the connection says.
"""

import threading
import weakref
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import psycopg

from beltline.core.errors import EngineUnsafe, HandleMisused
from beltline.core.message import Gather, Message
from beltline.core.outcome import Sent, Settled, Settlement
from beltline.engines.guests import AsyncGuest, Guest, async_guest, guest
from beltline.engines.postgres import trouble
from beltline.engines.postgres.address import Address
from beltline.engines.postgres.batches import SEND, SETTLE, Batch, Parcel
from beltline.engines.postgres.browsing import KNOWN_QUEUES, undeclared
from beltline.engines.postgres.desk import Connection, Row

IDLE = 8  # connections kept for the next transaction
ITS_STORE = "SELECT value FROM beltline.meta WHERE key = 'store'"
IS_THERE = "SELECT to_regclass('beltline.meta') IS NOT NULL"
HELP = "Give a connection to the database of the engine's URL."


class Home(Protocol):
    """What a transaction needs of its engine."""

    address: Address

    def sql(self, text: str) -> str: ...

    @property
    def store(self) -> str: ...

    @property
    def now_ms(self) -> int | None: ...


_checked: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()  # native connections, and the store they lead to


def _refuse(home: Home, found: str | None) -> None:
    if found != home.store:
        what = "holds no Beltline schema of this name" if found is None else "leads to another Beltline"
        raise HandleMisused(f"This connection {what} than {home.address.shown}." if found else f"This connection's database {what}.", help=HELP)


def check(home: Home, mine: Guest) -> None:
    """That it leads to the engine's very store: asked once per connection, without an error in its transaction. Raises HandleMisused."""
    native = mine.native()
    if _checked.get(native) != home.store:
        there = mine.execute(home.sql(IS_THERE))[0][0]
        _refuse(home, mine.execute(home.sql(ITS_STORE))[0][0] if there else None)
        _checked[native] = home.store


async def acheck(home: Home, mine: AsyncGuest) -> None:
    native = await mine.native()
    if _checked.get(native) != home.store:
        there = (await mine.execute(home.sql(IS_THERE)))[0][0]
        _refuse(home, (await mine.execute(home.sql(ITS_STORE)))[0][0] if there else None)
        _checked[native] = home.store


# ------------------------------------------------------------------------------------------------------------------ send
def send(home: Home, connection: Any, messages: Sequence[Message], gathers: Sequence[Gather]) -> list[Sent]:
    mine = guest(connection)
    check(home, mine)
    parcel = Parcel(messages, gathers)
    rows = mine.execute(home.sql(SEND), (home.now_ms, True, *parcel.arguments))
    if parcel.refused(rows):
        raise undeclared(rows[0][3], mine.execute(home.sql(KNOWN_QUEUES)))
    return parcel.read(rows)


async def asend(home: Home, connection: Any, messages: Sequence[Message], gathers: Sequence[Gather]) -> list[Sent]:
    mine = async_guest(connection)
    await acheck(home, mine)
    parcel = Parcel(messages, gathers)
    rows = await mine.execute(home.sql(SEND), (home.now_ms, True, *parcel.arguments))
    if parcel.refused(rows):
        raise undeclared(rows[0][3], await mine.execute(home.sql(KNOWN_QUEUES)))
    return parcel.read(rows)


# ------------------------------------------------------------------------------------------------------------------ settle
class PostgresTransaction:
    """`connection`: a psycopg.Connection of the engine's own, or the one that was given."""

    def __init__(self, home: Home, connection: Any, let_go: Callable[[Any], None] | None) -> None:
        self.connection = connection
        self._home = home
        self._guest = guest(connection)
        self._let_go = let_go
        self._open = True
        try:
            check(home, self._guest)
            self._guest.begin()
        except BaseException:
            self._end()
            raise

    def settle(self, settlement: Settlement) -> Settled:
        _in_use(self._open, self._guest.in_transaction())
        batch = Batch([settlement])
        rows = self._guest.execute(self._home.sql(SETTLE), (self._home.now_ms, True, *batch.arguments))
        if batch.refused(rows):
            raise undeclared(rows[0][2], self._guest.execute(self._home.sql(KNOWN_QUEUES)))
        return batch.read(rows)[0]

    def commit(self) -> None:
        _in_use(self._open, self._guest.in_transaction())
        self._guest.commit()
        self._end()

    def rollback(self) -> None:
        if self._open:
            self._guest.rollback()
            self._end()

    def _end(self) -> None:
        self._open = False
        if self._let_go is not None:
            self._let_go(self.connection)

    def __del__(self) -> None:
        if getattr(self, "_open", False) and self._let_go is not None:
            self.rollback()


class AsyncPostgresTransaction:
    """The same for a coroutine: `connection` is a psycopg.AsyncConnection, or the one that was given. Made by `begin`."""

    def __init__(self, home: Home, connection: Any, let_go: Callable[[Any], Coroutine[Any, Any, None]] | None) -> None:
        self.connection = connection
        self._home = home
        self._guest = async_guest(connection)
        self._let_go = let_go
        self._open = True

    async def begin(self) -> None:
        try:
            await acheck(self._home, self._guest)
            await self._guest.begin()
        except BaseException:
            await self._end()
            raise

    async def settle(self, settlement: Settlement) -> Settled:
        _in_use(self._open, self._guest.in_transaction())
        batch = Batch([settlement])
        rows = await self._guest.execute(self._home.sql(SETTLE), (self._home.now_ms, True, *batch.arguments))
        if batch.refused(rows):
            raise undeclared(rows[0][2], await self._guest.execute(self._home.sql(KNOWN_QUEUES)))
        return batch.read(rows)[0]

    async def commit(self) -> None:
        _in_use(self._open, self._guest.in_transaction())
        await self._guest.commit()
        await self._end()

    async def rollback(self) -> None:
        if self._open:
            await self._guest.rollback()
            await self._end()

    async def _end(self) -> None:
        self._open = False
        if self._let_go is not None:
            await self._let_go(self.connection)


def _in_use(open_: bool, in_transaction: bool) -> None:
    if not open_:
        raise HandleMisused("This transaction is over.", help="Use its connection only in the task that asked for it.")
    if not in_transaction:
        raise HandleMisused(
            "The transaction was ended by the task's own code.",
            why="So its writes and its settle cannot happen together.",
            help="Leave COMMIT and ROLLBACK to the worker: return, or raise.",
        )


# ------------------------------------------------------------------------------------------------------------------ connections of our own
class Lender:
    """Synchronous connections for the transactions of tasks in threads, kept for the next one."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._idle: list[psycopg.Connection[Row]] = []
        self._closed = False

    def lend(self) -> psycopg.Connection[Row]:
        """Raises EngineUnavailable, EngineUnsafe."""
        with self._lock:
            while self._idle:
                connection = self._idle.pop()
                if not connection.closed and _answers(connection):
                    return connection
        try:
            connection = psycopg.connect(self._address.conninfo)
            [[recovering]] = connection.execute("SELECT pg_is_in_recovery()").fetchall()
            connection.rollback()
        except psycopg.Error as error:
            raise trouble.connecting(error, self._address.shown) from error
        if recovering:
            connection.close()
            raise EngineUnsafe(
                f"{self._address.shown} is a read replica.", help="Give the URL of the primary, or of all servers: postgresql://one,two/database"
            )
        if not self._address.prepare:
            connection.prepare_threshold = None
        return connection

    def take_back(self, connection: psycopg.Connection[Row]) -> None:
        with self._lock:
            if (
                not self._closed
                and len(self._idle) < IDLE
                and not connection.closed
                and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            ):
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


def _answers(connection: psycopg.Connection[Row]) -> bool:
    """A kept connection may have died, and the first write of a task should not be the one to find out."""
    try:
        connection.execute("SELECT 1")
        connection.rollback()
    except psycopg.Error:
        connection.close()
        return False
    return True


class AsyncLender:
    """The same for the tasks of one event loop."""

    def __init__(self, connect: Callable[[], Coroutine[Any, Any, Connection]], discard: Callable[[Connection], Coroutine[Any, Any, None]]) -> None:
        self._connect = connect
        self._discard = discard
        self._idle: list[Connection] = []

    async def lend(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            try:
                await connection.execute("SELECT 1")
                await connection.rollback()
            except psycopg.Error:
                await self._discard(connection)
            else:
                return connection
        connection = await self._connect()
        await connection.set_autocommit(False)
        return connection

    async def take_back(self, connection: Connection) -> None:
        if len(self._idle) < IDLE and not connection.closed and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            self._idle.append(connection)
        else:
            await self._discard(connection)
