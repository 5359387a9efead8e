"""What `beltline doctor` wants to know of the server: what it promises, what stands in its way, and how full it is.

A table whose rows come and go stays fast only if vacuum may take away what is gone, and it may not while any transaction is older than that. So the oldest one
is named. What another role does is hidden from an ordinary one; its process and its age are not.
"""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import psycopg

from beltline.core.views import Remark
from beltline.engines.postgres.address import Address
from beltline.engines.postgres.desk import Connection
from beltline.engines.postgres.schema import History, version
from beltline.engines.postgres.wire import statement

OLD_S = 300.0  # of a transaction that holds back vacuum
SKEW_S = 2.0
MANY_DEAD = 100_000  # rows that are gone and still there, of a table that should hold few
CROWDED = 0.8  # of max_connections
HEARD_S = 2.0

_SERVER = """SELECT current_setting('server_version'), current_setting('synchronous_commit'), current_setting('fsync'), current_setting('full_page_writes'),
    current_setting('autovacuum'), current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,
    (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE usesysid IS NOT NULL), pg_backend_pid()"""
_OLDEST = """SELECT * FROM (
    SELECT 'backend ' || pid || coalesce(' (' || nullif(application_name, '') || ')', '') AS who, age(backend_xmin) AS age,
        extract(epoch FROM clock_timestamp() - xact_start)::float8 AS open_s, to_char(query_start AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS since
      FROM pg_catalog.pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND coalesce(backend_type, '') <> 'autovacuum worker'
    UNION ALL SELECT 'prepared transaction ' || gid, age(transaction), extract(epoch FROM clock_timestamp() - prepared)::float8, NULL FROM pg_catalog.pg_prepared_xacts
    UNION ALL SELECT 'replication slot ' || slot_name, age(xmin), NULL, NULL FROM pg_catalog.pg_replication_slots WHERE xmin IS NOT NULL) holders
  ORDER BY age DESC, open_s DESC NULLS LAST LIMIT 1"""
_DEAD_ROWS = """SELECT relname, n_dead_tup, n_live_tup FROM pg_catalog.pg_stat_user_tables
  WHERE schemaname = %s AND relname IN ('ready', 'lease', 'delayed', 'blocked', 'delta', 'run_delta', 'clock') ORDER BY n_dead_tup DESC LIMIT 1"""


async def inspect(connection: Connection, address: Address, known: History) -> list[Remark]:
    [server] = await _rows(connection, _SERVER)
    have, min_reader = await version(connection, address.schema)
    return [
        *_of_server(server),
        _of_schema(have, min_reader, known),
        *_of_vacuum(await _rows(connection, _OLDEST), await _rows(connection, _DEAD_ROWS, (address.schema,))),
        await _listening(connection, address, pid=server[7]),
        await _skew(connection),
    ]


async def _rows(connection: Connection, sql: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
    return await (await connection.execute(statement(sql), values or None)).fetchall()


def _of_server(server: tuple[Any, ...]) -> Iterator[Remark]:
    number, sync, fsync, pages, autovacuum, most, used, _ = server
    yield Remark(check="postgresql", verdict="ok", found=f"version {number}")
    unsafe = [f"{name} = off" for name, value in (("synchronous_commit", sync), ("fsync", fsync), ("full_page_writes", pages)) if value == "off"]
    yield Remark(
        check="durability",
        verdict="problem" if unsafe else "ok",
        found=", ".join(unsafe) or f"fsync and full_page_writes on, synchronous_commit {sync}",
        help="What was acknowledged may be lost in a crash: set it on." if unsafe else "",
    )
    yield Remark(
        check="autovacuum",
        verdict="ok" if autovacuum == "on" else "problem",
        found=autovacuum,
        help="" if autovacuum == "on" else "Without it the tables of a queue grow for ever: autovacuum = on in postgresql.conf.",
    )
    crowded = used >= CROWDED * most
    yield Remark(
        check="connections",
        verdict="note" if crowded else "ok",
        found=f"{used} of {most} in use",
        help="Lower ?pool=, raise max_connections, or put a pooler between." if crowded else "",
    )


def _of_schema(have: int, min_reader: int, known: History) -> Remark:
    missing = [step.name for step in known.missing(have)]
    if min_reader > known.newest:
        return Remark(check="tables", verdict="problem", found=f"schema {have} needs a newer Beltline", help="pip install --upgrade beltline")
    return Remark(
        check="tables",
        verdict="note" if missing else "ok",
        found=f"schema {have}, this version's is {known.newest}",
        help=f"Missing: {', '.join(missing)}. Run beltline migrate." if missing else "",
    )


def _of_vacuum(oldest: list[tuple[Any, ...]], dead: list[tuple[Any, ...]]) -> Iterator[Remark]:
    for who, age, open_s, since in oldest:
        old = open_s is None or open_s > OLD_S
        long = f", open for {open_s:.0f} s" if open_s is not None else ""
        last = f", its last statement began {since}" if since else ""
        yield Remark(
            check="oldest",
            verdict="note" if old else "ok",
            found=f"{who} holds back vacuum by {age} transactions{long}{last}",
            help="What is received stays in the tables until it ends: shorten it, or end it (SELECT pg_terminate_backend(PID))." if old else "",
        )
    for table, gone, live in dead:
        many = gone > MANY_DEAD and gone > live
        yield Remark(
            check="dead rows",
            verdict="note" if many else "ok",
            found=f"at most {gone:,}, in {table}",
            help="Receives slow down. Look for an old transaction, and whether autovacuum keeps up." if many else "",
        )


async def _listening(connection: Connection, address: Address, *, pid: int) -> Remark:
    """A hint is sent and must be heard here. Behind a pooler that lends sessions by the transaction it is not."""
    if not address.listen:
        return Remark(check="wakeups", verdict="ok", found="switched off by ?listen=0: polling alone")
    polling = Remark(
        check="wakeups",
        verdict="note",
        found="no hints are heard, a pooler stands between: polling alone",
        help="A receive notices a message up to 2 s later. ?listen=0 saves the attempt; a direct URL brings the hints back.",
    )
    if pid != connection.pgconn.backend_pid:
        return polling
    heard = asyncio.Event()
    connection.add_notify_handler(lambda _: heard.set())
    try:
        await connection.execute("LISTEN beltline_doctor")
        await connection.execute("SELECT pg_notify('beltline_doctor', '')")
        until = time.monotonic() + HEARD_S
        while not heard.is_set() and time.monotonic() < until:
            await connection.execute("SELECT 1")  # what was sent comes along with the answer
        await connection.execute("UNLISTEN beltline_doctor")
    except psycopg.NotSupportedError:
        return polling
    return Remark(check="wakeups", verdict="ok", found="hints are heard") if heard.is_set() else polling


async def _skew(connection: Connection) -> Remark:
    before = time.time()
    [[there]] = await _rows(connection, "SELECT extract(epoch FROM clock_timestamp())::float8")
    apart_s = there - (before + time.time()) / 2
    far = abs(apart_s) > SKEW_S
    return Remark(
        check="clock",
        verdict="note" if far else "ok",
        found=f"the server's clock is {abs(apart_s):.3f} s {'ahead of' if apart_s > 0 else 'behind'} this host's",
        help="Delays and leases follow the server's. Set both by NTP." if far else "",
    )
