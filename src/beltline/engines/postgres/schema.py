"""The tables and functions, their versions, and how an older schema becomes a newer one.

A migration is a name and SQL. *expand* steps leave processes of the version before working: they add; functions keep their signatures or get new names beside the
old ones. *contract* steps take away what the version before needed, and raise `min_reader`: a process whose newest step is below it refuses to start (EngineTooNew), and
one that runs already says so when a function it calls has gone.
A process works with every schema from `oldest` on, so that it may be started before the migration; what is new in it waits until the step was taken.

An empty database is set up by whoever opens it first. An existing schema is changed by `beltline migrate` alone, never by starting a worker.
"""

import asyncio
import functools
import importlib.resources
import random
import time
from collections.abc import Callable

import psycopg
from msgspec import Struct
from psycopg.errors import DeadlockDetected, InsufficientPrivilege, LockNotAvailable

from beltline.core.errors import EngineForeign, EngineTooNew, EngineTooOld, EngineUnavailable
from beltline.engines.postgres.address import Address
from beltline.engines.postgres.desk import Connection
from beltline.engines.postgres.wire import statement

LOCK_S = 0.3  # how long others may have to wait behind a step that waits for a lock itself
PAUSE_S = 0.4


class Migration(Struct, frozen=True):
    """`number` from 1 in order; `min_reader`: the lowest newest schema of a process that works with the store after it."""

    number: int
    name: str
    sql: str
    min_reader: int


class History(Struct, frozen=True):
    """What a process knows: the steps, and the oldest schema it can still work with."""

    steps: tuple[Migration, ...]
    oldest: int = 1

    @property
    def newest(self) -> int:
        return self.steps[-1].number

    def missing(self, have: int) -> list[Migration]:
        return [step for step in self.steps if step.number > have]


def _files(*names: str) -> str:
    folder = importlib.resources.files("beltline.engines.postgres") / "sql"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


@functools.cache
def history() -> History:
    """Of this version."""
    functions = ("endings.sql", "send.sql", "receive.sql", "settle.sql", "control.sql", "upkeep.sql", "moving.sql")
    first = _files("tables.sql", *functions)
    flow = ("flow.sql", "flow_limits.sql", "flow_lanes.sql", "flow_pick.sql", "flow_receive.sql", "flow_unique.sql", "flow_views.sql")
    second = _files("schedules.sql", "fleets.sql", *flow, *functions)
    steps = (Migration(1, "0001_expand_first_tables", first, 1), Migration(2, "0002_expand_schedules_limits_fleets", second, 1))
    return History(steps, oldest=2)


def in_schema(sql: str, schema: str) -> str:
    """SQL written for schema `beltline`, for another one. The name has been checked by `address`."""
    return sql if schema == "beltline" else sql.replace("beltline.", f"{schema}.")


async def version(connection: Connection, schema: str) -> tuple[int, int]:
    """Number of the last migration and min_reader; (0, 0) if the schema is not there, or empty. Raises EngineForeign."""
    [[there, ours]] = await (
        await connection.execute(
            "SELECT count(*) > 0, coalesce(bool_or(relname = 'meta'), false) FROM pg_catalog.pg_class"
            " WHERE relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %s)",
            (schema,),
        )
    ).fetchall()
    if not ours:
        if there:
            raise EngineForeign(
                f"Schema {schema} holds tables of something else.",
                why="Nothing in it was changed.",
                help="Give Beltline a schema of its own: ?schema=beltline",
            )
        return 0, 0
    rows = await (await connection.execute(statement(f"SELECT key, value FROM {schema}.meta WHERE key IN ('schema', 'min_reader')"))).fetchall()
    found = {str(key): int(str(value)) for key, value in rows}
    if set(found) != {"schema", "min_reader"}:
        raise EngineForeign(
            f"Schema {schema} holds tables of something else.",
            why="Nothing in it was changed.",
            help="Give Beltline a schema of its own: ?schema=beltline",
        )
    return found["schema"], found["min_reader"]


def check(found: tuple[int, int], address: Address, known: History) -> None:
    """Whether a process of this history can work with the store. Raises EngineTooNew, EngineTooOld."""
    have, min_reader = found
    if min_reader > known.newest:
        raise EngineTooNew(
            f"Schema {address.schema} of {address.shown} needs a newer Beltline (it needs {min_reader}; this one knows up to {known.newest}).",
            why="Nothing in it was changed.",
            help="Upgrade this installation and start it again: pip install --upgrade beltline",
        )
    if have < known.oldest:
        raise EngineTooOld(
            f"Schema {address.schema} of {address.shown} is at version {have}; this Beltline needs at least {known.oldest}.",
            why="Nothing in it was changed.",
            help="Run `beltline migrate` once; workers of the version before go on working.",
        )


async def migrate(
    connection: Connection, address: Address, known: History, *, wait_s: float = 60.0, tell: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Take the steps that are missing, one process at a time. Returns their names.

    A step that changes a table waits for the transactions that use it, and whoever comes later waits behind the step. So it asks for its locks for LOCK_S
    only, then lets everybody pass for PAUSE_S, and asks again, for `wait_s` in all.
    Raises EngineForeign, EngineTooNew, EngineUnavailable (none of the steps not named was taken), psycopg.Error.
    """
    taken: list[str] = []
    deadline = time.monotonic() + wait_s
    have, min_reader = await version(connection, address.schema)
    if min_reader > known.newest:
        check((have, min_reader), address, known)
    for step in known.missing(have):
        told, done = "", None
        while done is None:
            try:
                done = await _take(connection, address, step)
            except (LockNotAvailable, DeadlockDetected) as error:
                waits_for = await _blockers(connection, address.schema) or " ".join(str(error).split())
            except InsufficientPrivilege as error:
                raise await _forbidden(connection, address, error) from error
            else:
                waits_for = "another process that migrates"
            if done is not None:
                continue
            if time.monotonic() >= deadline:
                raise EngineUnavailable(
                    f"{step.name} could not be taken within {wait_s:g} s: it waits for {waits_for}.",
                    effect="none",
                    help="End that transaction (SELECT pg_terminate_backend(PID)), or run beltline migrate --wait 10m at a quiet time.",
                )
            if waits_for.partition(",")[0] != told:
                told = waits_for.partition(",")[0]
                tell(f"{step.name} waits for {waits_for}")
            await asyncio.sleep(PAUSE_S * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
        if done:
            taken.append(step.name)
            tell(f"{step.name} taken")
    return taken


async def _take(connection: Connection, address: Address, step: Migration) -> bool | None:
    """One step in one transaction. False: somebody has taken it. None: somebody is at it."""
    async with connection.transaction():
        await connection.execute(
            # check_function_bodies: the first step creates today's functions, and some of them name tables of the second
            "SELECT set_config('lock_timeout', %s, true), set_config('client_min_messages', 'warning', true), set_config('check_function_bodies', 'off', true)",
            (f"{round(LOCK_S * 1000)}ms",),
        )
        [[mine]] = await (
            await connection.execute("SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))", (f"beltline migrate {address.schema}",))
        ).fetchall()
        if not mine:
            return None
        have, _ = await version(connection, address.schema)
        if have >= step.number:
            return False
        if have == 0 and not await _exists(connection, address.schema):
            await connection.execute(statement(f"CREATE SCHEMA IF NOT EXISTS {address.schema}"))
        await connection.execute(statement(in_schema(step.sql, address.schema)))
        await connection.execute(
            statement(
                f"INSERT INTO {address.schema}.meta(key, value) VALUES ('schema', %s), ('min_reader', %s) ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value"
            ),
            (str(step.number), str(step.min_reader)),
        )
    return True


async def _exists(connection: Connection, schema: str) -> bool:
    [[there]] = await (await connection.execute("SELECT to_regnamespace(%s) IS NOT NULL", (schema,))).fetchall()
    return bool(there)


async def _blockers(connection: Connection, schema: str) -> str:
    """The oldest transaction that holds a lock on something of the schema, in words; "" = none is seen any more."""
    rows = await (
        await connection.execute(
            "SELECT a.pid, coalesce(nullif(a.application_name, ''), 'no name'), coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8"
            " FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid JOIN pg_catalog.pg_class c ON c.oid = l.relation"
            " WHERE c.relnamespace = to_regnamespace(%s) AND l.granted AND a.pid <> pg_backend_pid() AND a.datname = current_database()"
            " ORDER BY a.xact_start LIMIT 1",
            (schema,),
        )
    ).fetchall()
    if not rows:
        return ""
    pid, name, age_s = rows[0]
    return f"a transaction of backend {pid} ({name}), open for {age_s:.0f} s"


async def _forbidden(connection: Connection, address: Address, error: psycopg.Error) -> EngineUnavailable:
    [[role, database]] = await (await connection.execute("SELECT quote_ident(current_user), quote_ident(current_database())")).fetchall()
    if await _exists(connection, address.schema):
        grant = f"As the owner of schema {address.schema}: GRANT USAGE, CREATE ON SCHEMA {address.schema} TO {role}"
    else:
        grant = f"GRANT CREATE ON DATABASE {database} TO {role}"
    text = " ".join((error.diag.message_primary or str(error)).split())
    return EngineUnavailable(
        f"Role {role} may not set up schema {address.schema} in {address.shown}: {text}.",
        effect="none",
        help=f"{grant}; or run beltline migrate once with a role that may.",
        forbidden=True,
    )
