"""Guests: connections that belong to the user, and how an engine says one statement in them without a transaction of its own.

    psycopg     Connection, AsyncConnection
    SQLAlchemy  Connection, Session, scoped_session and their asynchronous kin, on the dialect postgresql+psycopg
    Django      django.db.connection, connections["name"], on PostgreSQL with psycopg 3

A statement goes through the guest's own way of executing, so that its transaction begins as its owner expects (autobegin, atomic) and its log shows it.
None of these libraries is imported here: a guest is known by the names of its classes, and whoever made it has imported them.

SQLite has no guest. Two SQLite libraries on one file in one process drop each other's locks when one of them closes it, so a connection of the standard
library (and whatever stands on it: SQLAlchemy, Django, aiosqlite) is refused; apsw's own connections are the SQLite engine's affair.
"""

import contextlib
from importlib import import_module
from typing import Any, Literal, Protocol

from beltline.core.errors import HandleMisused

Kind = Literal["psycopg", "core", "session", "django", "async psycopg", "async core", "async session", "apsw", "sqlite", "other driver", "unknown"]
Rows = list[tuple[Any, ...]]

_KINDS: dict[str, Kind] = {
    "psycopg.Connection": "psycopg",
    "psycopg.AsyncConnection": "async psycopg",
    "sqlalchemy.engine.base.Connection": "core",
    "sqlalchemy.orm.session.Session": "session",
    "sqlalchemy.orm.scoping.scoped_session": "session",
    "sqlalchemy.ext.asyncio.engine.AsyncConnection": "async core",
    "sqlalchemy.ext.asyncio.session.AsyncSession": "async session",
    "sqlalchemy.ext.asyncio.scoping.async_scoped_session": "async session",
    "django.utils.connection.ConnectionProxy": "django",
    "django.db.backends.base.base.BaseDatabaseWrapper": "django",
    "apsw.Connection": "apsw",
    "sqlite3.Connection": "sqlite",
    "aiosqlite.core.Connection": "sqlite",
    "psycopg2.extensions.connection": "other driver",
    "asyncpg.connection.Connection": "other driver",
    "asyncpg.pool.PoolConnectionProxy": "other driver",
}
ASYNC = frozenset(["async psycopg", "async core", "async session"])
BLOCKING = frozenset(["psycopg", "core", "session", "django"])
SUPPORTED = "a connection of psycopg 3, a SQLAlchemy Connection or Session on postgresql+psycopg, or a Django connection to PostgreSQL"
ONE_LIBRARY = (
    "Two SQLite libraries on one file in one process can corrupt it: when one closes the file, the operating system drops the locks of the other."
)
USE_APSW = "Open the file with apsw.Connection, or keep your data elsewhere and let the task find it by the message's id."


class Guest(Protocol):
    """A synchronous connection of the user's. Errors of its library come through as they are."""

    def native(self) -> Any:
        """The psycopg.Connection below, connected."""
        ...

    def in_transaction(self) -> bool:
        """False: a statement now would be a transaction of its own, or begin one."""
        ...

    def begin(self) -> None:
        """Make sure that what follows is one transaction, until `commit`. Raises HandleMisused where this cannot be had."""
        ...

    def execute(self, sql: str, params: tuple[Any, ...] = ()) -> Rows:
        """One statement that returns rows, with %s for each parameter (%% for a percent sign)."""
        ...

    def commit(self) -> None:
        """An error does not tell what happened: ask the store, after `rollback`."""
        ...

    def rollback(self) -> None:
        """Never raises: a connection that cannot be rolled back is closed, which has the same effect."""
        ...


class AsyncGuest(Protocol):
    """The same for an asynchronous connection, in its own event loop."""

    async def native(self) -> Any:
        """The psycopg.AsyncConnection below, connected."""
        ...

    def in_transaction(self) -> bool: ...

    async def begin(self) -> None: ...

    async def execute(self, sql: str, params: tuple[Any, ...] = ()) -> Rows: ...

    async def commit(self) -> None: ...

    async def rollback(self) -> None: ...


def kind(connection: object) -> Kind:
    """What this is, by the names of its classes."""
    for cls in type(connection).__mro__:
        found = _KINDS.get(f"{cls.__module__}.{cls.__qualname__}")
        if found is not None:
            return found
    return "unknown"


def is_async(connection: object) -> bool:
    """Whether its statements are awaited."""
    return kind(connection) in ASYNC


def keeps_others_out(connection: Any) -> bool:
    """Whether nobody else can write to the store while this connection's transaction is open, as it stands now."""
    return connection is not None and kind(connection) == "apsw" and connection.txn_state() == 2  # SQLITE_TXN_WRITE


def check_apsw(connection: Any) -> None:
    """For the engine `sqlite`. Raises HandleMisused for anything else than an apsw.Connection."""
    found = kind(connection)
    if found == "apsw":
        return
    if found == "sqlite":
        raise HandleMisused(f"{_name(connection)} stands on another SQLite library than Beltline.", why=ONE_LIBRARY, help=USE_APSW)
    if found in ("core", "async core"):
        _refuse_dialect(connection.dialect)
    if found == "session":
        _refuse_dialect(_real(connection).get_bind().dialect)
    if found == "async session":
        _refuse_dialect(_real(connection).sync_session.get_bind().dialect)
    if found == "django" and connection.vendor == "sqlite":
        raise HandleMisused("This Django connection stands on the standard library's SQLite.", why=ONE_LIBRARY, help=USE_APSW)
    raise HandleMisused(f"{_name(connection)} is no connection to the file of this engine.", help="Give an apsw.Connection to it, in a transaction.")


def guest(connection: Any) -> Guest:
    """Raises HandleMisused: not synchronous, or not PostgreSQL by way of psycopg 3."""
    match kind(connection):
        case "psycopg":
            return _Psycopg(connection)
        case "core":
            return _Core(_on_psycopg(connection, connection.dialect))
        case "session":
            session = _real(connection)
            return _Session(session)
        case "django":
            return _Django(_django_on_psycopg(connection))
        case found if found in ASYNC:
            raise HandleMisused(
                f"{_name(connection)} is asynchronous.",
                why="This call is not.",
                help="Use the asynchronous one: asend, atransaction, in its event loop.",
            )
        case found:
            raise _refused(connection, found)


def async_guest(connection: Any) -> AsyncGuest:
    """Raises HandleMisused: not asynchronous, or not PostgreSQL by way of psycopg 3."""
    match kind(connection):
        case "async psycopg":
            return _AsyncPsycopg(connection)
        case "async core":
            return _AsyncCore(_on_psycopg(connection, connection.dialect))
        case "async session":
            return _AsyncSession(_real(connection))
        case found if found in BLOCKING:
            raise HandleMisused(
                f"{_name(connection)} is synchronous: it would stop the event loop.",
                help="Use the synchronous call (send, transaction) in a thread, or an asynchronous connection.",
            )
        case found:
            raise _refused(connection, found)


def _refused(connection: object, found: Kind) -> HandleMisused:
    if found in ("apsw", "sqlite"):
        return HandleMisused(f"{_name(connection)} is a connection to SQLite; the engine is PostgreSQL.", help=f"Give {SUPPORTED}.")
    if found == "other driver":
        return HandleMisused(f"{_name(connection)} cannot carry a message.", why="Only connections of psycopg 3 can.", help=f"Give {SUPPORTED}.")
    return HandleMisused(f"{_name(connection)} is no connection Beltline knows.", help=f"Give {SUPPORTED}; for SQLite, an apsw.Connection.")


def _name(connection: object) -> str:
    return f"{type(connection).__module__}.{type(connection).__qualname__}"


def _real(session: Any) -> Any:
    """The session of a scoped one."""
    return session() if "scoped_session" in type(session).__name__ else session


def _refuse_dialect(dialect: Any) -> None:
    if dialect.name == "sqlite":
        raise HandleMisused("This SQLAlchemy connection stands on the standard library's SQLite.", why=ONE_LIBRARY, help=USE_APSW)


def _on_psycopg(connection: Any, dialect: Any) -> Any:
    _refuse_dialect(dialect)
    if dialect.driver not in ("psycopg", "psycopg_async"):
        raise HandleMisused(
            f"This SQLAlchemy connection uses {dialect.name}+{dialect.driver}.",
            why="Only psycopg 3 can carry a message.",
            help="Use postgresql+psycopg.",
        )
    return connection


def _django_on_psycopg(connection: Any) -> Any:
    if connection.vendor == "sqlite":
        raise HandleMisused("This Django connection stands on the standard library's SQLite.", why=ONE_LIBRARY, help=USE_APSW)
    if connection.vendor != "postgresql":
        raise HandleMisused(f"This Django connection is to {connection.vendor}; the engine is PostgreSQL.")
    connection.ensure_connection()
    if kind(connection.connection) != "psycopg":
        raise HandleMisused("This Django connection uses psycopg2.", why="Only psycopg 3 can carry a message.", help="pip install 'psycopg[binary]'")
    return connection


def _refuse_autocommit(native: Any) -> None:
    if native.autocommit:
        raise HandleMisused("This connection commits every statement by itself (AUTOCOMMIT).", help="Give one that does not.")


class _Psycopg:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def native(self) -> Any:
        return self._connection

    def in_transaction(self) -> bool:
        return bool(self._connection.info.transaction_status)  # 0 = idle

    def begin(self) -> None:
        if self._connection.autocommit and not self.in_transaction():
            self._connection.execute("BEGIN")  # commit() and rollback() end it all the same

    def execute(self, sql: str, params: tuple[Any, ...] = ()) -> Rows:
        tuple_row = import_module("psycopg.rows").tuple_row
        with self._connection.cursor(row_factory=tuple_row) as cursor:  # whatever kind of rows its owner likes
            rows: Rows = cursor.execute(sql, params).fetchall()
            return rows

    def commit(self) -> None:
        self._connection.commit()

    def rollback(self) -> None:
        try:
            self._connection.rollback()
        except Exception:  # noqa: BLE001 - its end is what counts
            _close(self._connection)


class _Core:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def native(self) -> Any:
        return self._connection.connection.driver_connection

    def in_transaction(self) -> bool:
        return bool(self._connection.in_transaction())

    def begin(self) -> None:
        _refuse_autocommit(self.native())
        if not self._connection.in_transaction():
            self._connection.begin()

    def execute(self, sql: str, params: tuple[Any, ...] = ()) -> Rows:
        return [tuple(row) for row in self._connection.exec_driver_sql(sql, params)]

    def commit(self) -> None:
        self._connection.commit()

    def rollback(self) -> None:
        try:
            self._connection.rollback()
        except Exception:  # noqa: BLE001 - its end is what counts
            with contextlib.suppress(Exception):
                self._connection.invalidate()


class _Session:
    """What the session holds back is flushed before the statement, as for every statement of its own."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def _core(self) -> _Core:
        connection = self._session.connection()
        return _Core(_on_psycopg(connection, connection.dialect))

    def native(self) -> Any:
        return self._core().native()

    def in_transaction(self) -> bool:
        return bool(self._session.in_transaction())

    def begin(self) -> None:
        _refuse_autocommit(self.native())  # asking for the connection has begun it

    def execute(self, sql: str, params: tuple[Any, ...] = ()) -> Rows:
        if self._session.autoflush:
            self._session.flush()
        return self._core().execute(sql, params)

    def commit(self) -> None:
        self._session.commit()

    def rollback(self) -> None:
        try:
            self._session.rollback()
        except Exception:  # noqa: BLE001 - its end is what counts
            with contextlib.suppress(Exception):
                self._session.invalidate()


class _Django:
    """`begin` enters an atomic block, so what the user's code does inside (atomic, on_commit) means what it always means."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._atomic: Any = None

    def native(self) -> Any:
        self._connection.ensure_connection()
        return self._connection.connection

    def in_transaction(self) -> bool:
        return bool(self._connection.in_atomic_block or not self._connection.get_autocommit())

    def begin(self) -> None:
        if self.in_transaction():
            raise HandleMisused("This Django connection is in a transaction already.", help="Let the task's own be the outermost one.")
        atomic = import_module("django.db.transaction").Atomic
        self._atomic = atomic(self._connection.alias, True, True)  # savepoint, durable: it is the outermost block
        self._atomic.__enter__()

    def execute(self, sql: str, params: tuple[Any, ...] = ()) -> Rows:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, params)
            rows: Rows = cursor.fetchall()
            return rows

    def commit(self) -> None:
        atomic, self._atomic = self._atomic, None
        if atomic is None:
            self._connection.commit()
            return
        broken = self._connection.needs_rollback
        atomic.__exit__(None, None, None)
        if broken:  # the block has been rolled back without a word
            raise HandleMisused("The Django transaction was marked for rollback.", why="An error inside an atomic block was caught outside of it.")

    def rollback(self) -> None:
        try:
            atomic, self._atomic = self._atomic, None
            if atomic is None:
                if self._connection.in_atomic_block:
                    self._connection.set_rollback(True)  # its owner's block does it
                else:
                    self._connection.rollback()
            else:
                self._connection.set_rollback(True)
                atomic.__exit__(None, None, None)
        except Exception:  # noqa: BLE001 - its end is what counts
            with contextlib.suppress(Exception):
                self._connection.close()


class _AsyncPsycopg:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def native(self) -> Any:
        return self._connection

    def in_transaction(self) -> bool:
        return bool(self._connection.info.transaction_status)

    async def begin(self) -> None:
        if self._connection.autocommit and not self.in_transaction():
            await self._connection.execute("BEGIN")

    async def execute(self, sql: str, params: tuple[Any, ...] = ()) -> Rows:
        tuple_row = import_module("psycopg.rows").tuple_row
        async with self._connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(sql, params)
            rows: Rows = await cursor.fetchall()
            return rows

    async def commit(self) -> None:
        await self._connection.commit()

    async def rollback(self) -> None:
        try:
            await self._connection.rollback()
        except Exception:  # noqa: BLE001 - its end is what counts
            with contextlib.suppress(Exception):
                await self._connection.close()


class _AsyncCore:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def native(self) -> Any:
        return (await self._connection.get_raw_connection()).driver_connection

    def in_transaction(self) -> bool:
        return bool(self._connection.in_transaction())

    async def begin(self) -> None:
        _refuse_autocommit(await self.native())
        if not self._connection.in_transaction():
            await self._connection.begin()

    async def execute(self, sql: str, params: tuple[Any, ...] = ()) -> Rows:
        return [tuple(row) for row in await self._connection.exec_driver_sql(sql, params)]

    async def commit(self) -> None:
        await self._connection.commit()

    async def rollback(self) -> None:
        try:
            await self._connection.rollback()
        except Exception:  # noqa: BLE001 - its end is what counts
            with contextlib.suppress(Exception):
                await self._connection.invalidate()


class _AsyncSession:
    def __init__(self, session: Any) -> None:
        self._session = session

    async def _core(self) -> _AsyncCore:
        connection = await self._session.connection()
        return _AsyncCore(_on_psycopg(connection, connection.dialect))

    async def native(self) -> Any:
        return await (await self._core()).native()

    def in_transaction(self) -> bool:
        return bool(self._session.in_transaction())

    async def begin(self) -> None:
        _refuse_autocommit(await self.native())

    async def execute(self, sql: str, params: tuple[Any, ...] = ()) -> Rows:
        if self._session.sync_session.autoflush:
            await self._session.flush()
        return await (await self._core()).execute(sql, params)

    async def commit(self) -> None:
        await self._session.commit()

    async def rollback(self) -> None:
        try:
            await self._session.rollback()
        except Exception:  # noqa: BLE001 - its end is what counts
            with contextlib.suppress(Exception):
                await self._session.invalidate()


def _close(connection: Any) -> None:
    with contextlib.suppress(Exception):
        connection.close()
