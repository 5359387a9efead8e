"""Connections of users' own libraries, on a real PostgreSQL: a statement of ours becomes part of their transaction, and everything else is refused with the reason."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import apsw
import pytest

from beltline.core.errors import HandleMisused
from beltline.engines import guests
from beltline.engines.guests import AsyncGuest, Guest

psycopg = pytest.importorskip("psycopg")
sqlalchemy = pytest.importorskip("sqlalchemy")
orm = pytest.importorskip("sqlalchemy.orm")
aio = pytest.importorskip("sqlalchemy.ext.asyncio")
django_db = pytest.importorskip("django.db")

WRITE = "INSERT INTO mine VALUES (%s, '100%%') RETURNING x, %s"


@pytest.fixture
def url(postgres_url: str) -> str:
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute("CREATE TABLE mine(x integer, note text)")
        db.execute("CREATE TABLE strict(x integer UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    return postgres_url


def rows(url: str) -> list[int]:
    with psycopg.connect(url) as db:
        return [x for (x,) in db.execute("SELECT x FROM mine ORDER BY x")]


@contextmanager
def of_psycopg(url: str) -> Iterator[Any]:
    with psycopg.connect(url, row_factory=psycopg.rows.dict_row) as db:  # a factory of the owner's does not reach us
        yield db


@contextmanager
def of_psycopg_autocommit(url: str) -> Iterator[Any]:
    with psycopg.connect(url, autocommit=True) as db:
        yield db


def made(url: str) -> Any:
    return sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))


@contextmanager
def of_core(url: str) -> Iterator[Any]:
    engine = made(url)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@contextmanager
def of_session(url: str) -> Iterator[Any]:
    engine = made(url)
    with orm.Session(engine) as session:
        yield session
    engine.dispose()


@contextmanager
def of_scoped_session(url: str) -> Iterator[Any]:
    engine = made(url)
    session = orm.scoped_session(orm.sessionmaker(engine))
    yield session
    session.remove()
    engine.dispose()


@contextmanager
def of_django(url: str) -> Iterator[Any]:
    from django.db import connections
    from django.db.backends.postgresql.base import DatabaseWrapper

    with psycopg.connect(url) as db:
        info = db.info.get_parameters()
        settings = {"NAME": db.info.dbname, "USER": db.info.user, "PASSWORD": db.info.password, "HOST": info["host"], "PORT": info.get("port", "")}
    settings |= {"ENGINE": "django.db.backends.postgresql", "OPTIONS": {}, "TIME_ZONE": None, "CONN_MAX_AGE": 0, "CONN_HEALTH_CHECKS": False}
    settings |= {"AUTOCOMMIT": True, "ATOMIC_REQUESTS": False, "TEST": {}}
    configure_django()
    connections["default"] = wrapper = DatabaseWrapper(settings, "default")
    yield wrapper
    wrapper.close()


def configure_django() -> None:
    import django
    from django.conf import settings

    if not settings.configured:
        settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql"}}, USE_TZ=True, LOGGING_CONFIG=None)
        django.setup()


KINDS = [of_psycopg, of_psycopg_autocommit, of_core, of_session, of_scoped_session, of_django]
ids = [kind.__name__.removeprefix("of_") for kind in KINDS]


def number(db: Any) -> Guest:
    """A guest that has written 1 in a transaction."""
    guest = guests.guest(db)
    guest.begin()
    assert guest.execute(WRITE, (1, b"\x00x")) == [(1, b"\x00x")]
    assert guest.in_transaction()
    return guest


@pytest.mark.parametrize("kind", KINDS, ids=ids)
def test_a_statement_is_part_of_the_transaction(url: str, kind: Any) -> None:
    for end, expected in (("rollback", []), ("commit", [1])):
        with kind(url) as db:
            guest = number(db)
            assert rows(url) == []
            getattr(guest, end)()
            assert not guest.in_transaction()
            assert rows(url) == expected


@pytest.mark.parametrize("kind", KINDS, ids=ids)
def test_below_every_one_is_a_connection_of_psycopg(url: str, kind: Any) -> None:
    with kind(url) as db:
        native = guests.guest(db).native()
        assert isinstance(native, psycopg.Connection)
        assert native.info.dbname in url


@pytest.mark.parametrize("kind", KINDS, ids=ids)
def test_a_commit_that_fails_raises_and_a_rollback_ends_it(url: str, kind: Any) -> None:
    with kind(url) as db:
        guest = number(db)
        for _ in range(2):
            guest.execute("INSERT INTO strict VALUES (7) RETURNING x")
        with pytest.raises(Exception, match="unique"):
            guest.commit()
        guest.rollback()
        guest.rollback()
        assert rows(url) == []


@pytest.mark.parametrize("kind", KINDS, ids=ids)
def test_a_rollback_never_raises(url: str, kind: Any) -> None:
    with kind(url) as db:
        guest = number(db)
        pid = guest.native().info.backend_pid
        with psycopg.connect(url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        guest.rollback()
        assert rows(url) == []
        guest.rollback()


def test_the_owners_own_block_decides_in_psycopg(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as db:
        guest = guests.guest(db)
        with db.transaction():
            guest.execute(WRITE, (1, ""))
            with db.transaction(force_rollback=True):
                guest.execute(WRITE, (2, ""))
        assert rows(url) == [1]
        guest.execute(WRITE, (3, ""))  # autocommit, outside of a block: a transaction of its own
        assert rows(url) == [1, 3]


def test_what_a_session_holds_back_is_written_first(url: str) -> None:
    base = orm.declarative_base()

    class Mine(base):  # type: ignore[misc,valid-type]
        __tablename__ = "mine"
        x = sqlalchemy.Column(sqlalchemy.Integer, primary_key=True)

    with of_session(url) as session:
        session.add(Mine(x=5))
        assert guests.guest(session).execute("SELECT x FROM mine") == [(5,)]
        session.commit()
    assert rows(url) == [5]


def test_django_atomic_decides_and_its_hooks_run(url: str) -> None:
    from django.db import transaction

    with of_django(url) as db:
        guest = guests.guest(db)
        with transaction.atomic():
            guest.execute(WRITE, (1, ""))
            transaction.set_rollback(True)
        with transaction.atomic():
            guest.execute(WRITE, (2, ""))
            with pytest.raises(HandleMisused, match="in a transaction already"):
                guest.begin()
        assert rows(url) == [2]
        ran: list[int] = []
        guest.begin()
        with transaction.atomic():  # inside: a savepoint, as always
            guest.execute(WRITE, (3, ""))
            transaction.on_commit(lambda: ran.append(len(rows(url))))
        assert ran == []
        guest.commit()
        assert ran == [2]
        guest.begin()
        guest.execute(WRITE, (4, ""))
        db.set_rollback(True)
        with pytest.raises(HandleMisused, match="marked for rollback"):
            guest.commit()
        guest.rollback()
        assert rows(url) == [2, 3]


def test_the_proxy_that_django_gives_is_one_too(url: str) -> None:
    with of_django(url):
        guest = guests.guest(django_db.connection)
        guest.begin()
        guest.execute(WRITE, (1, ""))
        guest.commit()
        assert rows(url) == [1]


def test_a_connection_that_commits_by_itself_holds_no_transaction(url: str) -> None:
    engine = made(url).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, pytest.raises(HandleMisused, match="AUTOCOMMIT"):
        guests.guest(connection).begin()
    with orm.Session(engine) as session, pytest.raises(HandleMisused, match="AUTOCOMMIT"):
        guests.guest(session).begin()
    engine.dispose()


# ------------------------------------------------------------------------------------------------------- asynchronous


@asynccontextmanager
async def of_async_psycopg(url: str) -> AsyncIterator[Any]:
    async with await psycopg.AsyncConnection.connect(url) as db:
        yield db


@asynccontextmanager
async def of_async_psycopg_autocommit(url: str) -> AsyncIterator[Any]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as db:
        yield db


@asynccontextmanager
async def of_async_core(url: str) -> AsyncIterator[Any]:
    engine = aio.create_async_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


@asynccontextmanager
async def of_async_session(url: str) -> AsyncIterator[Any]:
    engine = aio.create_async_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    async with aio.AsyncSession(engine) as session:
        yield session
    await engine.dispose()


@asynccontextmanager
async def of_async_scoped_session(url: str) -> AsyncIterator[Any]:
    engine = aio.create_async_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    session = aio.async_scoped_session(aio.async_sessionmaker(engine), scopefunc=asyncio.current_task)
    yield session
    await session.remove()
    await engine.dispose()


ASYNC_KINDS = [of_async_psycopg, of_async_psycopg_autocommit, of_async_core, of_async_session, of_async_scoped_session]
async_ids = [kind.__name__.removeprefix("of_async_") for kind in ASYNC_KINDS]


@pytest.mark.parametrize("kind", ASYNC_KINDS, ids=async_ids)
async def test_an_asynchronous_one_has_the_same(url: str, kind: Any) -> None:
    for end, expected in (("rollback", []), ("commit", [1])):
        async with kind(url) as db:
            assert guests.is_async(db)
            guest: AsyncGuest = guests.async_guest(db)
            assert isinstance(await guest.native(), psycopg.AsyncConnection)
            await guest.begin()
            assert await guest.execute(WRITE, (1, b"\x00x")) == [(1, b"\x00x")]
            assert guest.in_transaction()
            assert await asyncio.to_thread(rows, url) == []
            await getattr(guest, end)()
            assert not guest.in_transaction()
            assert await asyncio.to_thread(rows, url) == expected


@pytest.mark.parametrize("kind", ASYNC_KINDS, ids=async_ids)
async def test_an_asynchronous_rollback_never_raises(url: str, kind: Any) -> None:
    async with kind(url) as db:
        guest = guests.async_guest(db)
        await guest.begin()
        await guest.execute(WRITE, (1, ""))
        pid = (await guest.native()).info.backend_pid
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as other:
            await other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        await guest.rollback()
        await guest.rollback()
        assert await asyncio.to_thread(rows, url) == []


# --------------------------------------------------------------------------------------------------------------- refused


def test_what_cannot_carry_a_message_is_refused_with_the_reason() -> None:
    plain, other = sqlite3.connect(":memory:"), apsw.Connection(":memory:")
    for found in (plain, other):
        with pytest.raises(HandleMisused, match="a connection to SQLite; the engine is PostgreSQL"):
            guests.guest(found)
        with pytest.raises(HandleMisused, match="a connection to SQLite; the engine is PostgreSQL"):
            guests.async_guest(found)
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as connection, pytest.raises(HandleMisused, match="standard library's SQLite"):
        guests.guest(connection)
    engine.dispose()
    with pytest.raises(HandleMisused, match="no connection Beltline knows"):
        guests.guest(object())
    plain.close()
    other.close()


async def test_the_wrong_kind_of_call_is_told_which_is_right(url: str) -> None:
    async with of_async_psycopg(url) as db:
        with pytest.raises(HandleMisused, match="asend"):
            guests.guest(db)
    with of_psycopg(url) as db, pytest.raises(HandleMisused, match="would stop the event loop"):
        guests.async_guest(db)


def test_a_subclass_of_the_users_is_known_by_its_parents(url: str) -> None:
    class Mine(psycopg.Connection):  # type: ignore[misc,name-defined]
        pass

    with Mine.connect(url) as db:
        assert guests.kind(db) == "psycopg"
