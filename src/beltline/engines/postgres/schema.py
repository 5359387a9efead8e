"""The tables and functions, their versions, and how an older schema becomes a newer one.

A migration is a name and SQL. *expand* steps leave processes of the version before working: they add; functions keep their signatures or get new names beside the
old ones. *contract* steps take away what the version before needed, and raise `min_reader`: a process whose SCHEMA is below it refuses to start (EngineTooNew).
A process works with every schema from OLDEST on, so that it may be started before the migration; what is new in it waits until the step was taken.

An empty database is set up by whoever opens it first. An existing schema is changed by `beltline migrate` alone, never by starting a worker.
"""

import importlib.resources
from collections.abc import Sequence

from msgspec import Struct

from beltline.core.errors import EngineForeign, EngineTooNew, EngineTooOld
from beltline.engines.postgres.address import Address
from beltline.engines.postgres.desk import Connection


class Migration(Struct, frozen=True):
    """`number` from 1 in order; `min_reader`: the lowest SCHEMA that works with the store after it."""

    number: int
    name: str
    sql: str
    min_reader: int


def _files(*names: str) -> str:
    folder = importlib.resources.files("beltline.engines.postgres") / "sql"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def migrations() -> tuple[Migration, ...]:
    return (Migration(1, "0001_expand_first_tables", _files("tables.sql", "endings.sql", "verbs.sql", "control.sql", "upkeep.sql", "moving.sql"), 1),)


SCHEMA = 1  # what this code brings a store to
OLDEST = 1  # what it can still work with


def in_schema(sql: str, schema: str) -> str:
    """SQL written for schema `beltline`, for another one. The name has been checked by `address`."""
    return sql if schema == "beltline" else sql.replace("beltline.", f"{schema}.")


async def version(connection: Connection, schema: str) -> tuple[int, int]:
    """Number of the last migration and min_reader; (0, 0) if the schema is not there, or empty. Raises EngineForeign."""
    [[there, ours]] = await (
        await connection.execute(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE relnamespace = n.oid), to_regclass(%s) IS NOT NULL"
            " FROM (SELECT (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %s) AS oid) n",
            (f"{schema}.meta", schema),
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
    rows = await (await connection.execute(f"SELECT key, value FROM {schema}.meta WHERE key IN ('schema', 'min_reader')")).fetchall()
    found = {str(key): int(str(value)) for key, value in rows}
    if set(found) != {"schema", "min_reader"}:
        raise EngineForeign(
            f"Schema {schema} holds tables of something else.",
            why="Nothing in it was changed.",
            help="Give Beltline a schema of its own: ?schema=beltline",
        )
    return found["schema"], found["min_reader"]


def check(found: tuple[int, int], address: Address, *, schema: int = SCHEMA, oldest: int = OLDEST) -> None:
    """Whether this code can work with the store. Raises EngineTooNew, EngineTooOld."""
    have, min_reader = found
    if min_reader > schema:
        raise EngineTooNew(
            f"Schema {address.schema} of {address.shown} needs a newer Beltline (it needs {min_reader}; this one knows up to {schema}).",
            why="Nothing in it was changed.",
            help="Upgrade this installation: pip install --upgrade beltline",
        )
    if have < oldest:
        raise EngineTooOld(
            f"Schema {address.schema} of {address.shown} is at version {have}; this Beltline needs at least {oldest}.",
            why="Nothing in it was changed.",
            help="Run `beltline migrate` once; workers of the version before go on working.",
        )


async def migrate(connection: Connection, address: Address, steps: Sequence[Migration] | None = None, *, up_to: int | None = None) -> list[str]:
    """Take the steps that are missing, each in a transaction of its own, one process at a time. Returns their names. Raises EngineForeign, psycopg.Error."""
    taken = []
    for step in steps or migrations():
        if up_to is not None and step.number > up_to:
            break
        async with connection.transaction():
            await connection.execute("SELECT set_config('lock_timeout', '10s', true), set_config('client_min_messages', 'warning', true)")
            await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"beltline migrate {address.schema}",))
            have, _ = await version(connection, address.schema)
            if have >= step.number:
                continue
            if have == 0:
                await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {address.schema}")  # an identifier that is checked
            await connection.execute(in_schema(step.sql, address.schema))  # our own files
            await connection.execute(
                f"INSERT INTO {address.schema}.meta(key, value) VALUES ('schema', %s), ('min_reader', %s) ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value",
                (str(step.number), str(step.min_reader)),
            )
            taken.append(step.name)
    return taken
