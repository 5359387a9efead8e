"""The tables from version to version: two versions at once on both sides of a step, refusals that say what to do, and nobody held up by a step that has to wait.

The steps after the first are made up here: what a next version might add and take away.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from beltline.core.errors import EngineForeign, EngineTooNew, EngineTooOld, EngineUnavailable
from beltline.core.outcome import Settlement
from beltline.core.queues import QueueSpec
from beltline.engines.postgres import PostgresEngine
from beltline.engines.postgres.schema import History, Migration, history
from beltline.testing.conformance import kit
from beltline.testing.conformance.kit import WORK
from tests.services.postgres import PostgresServer

BEFORE = history()
NEXT_ONE = BEFORE.newest + 1
EXPAND = Migration(
    NEXT_ONE,
    f"{NEXT_ONE:04}_expand_a_colour_per_queue",
    "ALTER TABLE beltline.queue ADD COLUMN colour text NOT NULL DEFAULT 'grey';"
    "CREATE FUNCTION beltline.paint(p_queue text, p_colour text) RETURNS void LANGUAGE sql AS $$ UPDATE beltline.queue SET colour = p_colour WHERE name = p_queue $$;"
    "CREATE OR REPLACE FUNCTION beltline._is_parked(p_why text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT coalesce(p_why = 'no worker knows this task', false) $$;",
    1,
)
CONTRACT = Migration(NEXT_ONE + 1, f"{NEXT_ONE + 1:04}_contract_no_hurry", "DROP FUNCTION beltline.hurry(bigint, uuid[]);", NEXT_ONE)
EXPANDED = History((*BEFORE.steps, EXPAND))
CONTRACTED = History((*BEFORE.steps, EXPAND, CONTRACT), oldest=NEXT_ONE)
BOUND_S = 40.0


@asynccontextmanager
async def opened(url: str, known: History = BEFORE) -> AsyncIterator[PostgresEngine]:
    engine = PostgresEngine(url, history=known)
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


async def rounds(engine: PostgresEngine, enough: Callable[[], bool]) -> int:
    """Send, receive, renew and settle until it is enough; any error is the test's."""
    count = 0
    while count < 3 or not enough():
        await engine.send([kit.message(), kit.message()])
        held = await engine.receive([WORK], limit=2, lease_s=30.0)
        await engine.renew([each.receipt for each in held], lease_s=30.0)
        await engine.settle([Settlement(each.receipt, kit.Ack()) for each in held])
        count += 1
    return count


async def during(work: Callable[[], Awaitable[Any]], *engines: PostgresEngine) -> Any:
    """Do `work` while every engine is at work, and until each has done some rounds after it."""
    over = False
    async with asyncio.timeout(BOUND_S), asyncio.TaskGroup() as group:
        loads = [group.create_task(rounds(engine, lambda: over)) for engine in engines]
        answer = await work()
        over = True
    assert all(load.result() >= 3 for load in loads)
    return answer


async def test_the_version_before_works_on_both_sides_of_an_expand_step(postgres_url):
    async with opened(postgres_url) as old:
        await old.declare([QueueSpec(name=WORK)])
        mover = PostgresEngine(postgres_url, history=EXPANDED)
        assert (await mover.schema()).missing == (EXPAND.name,)
        async with opened(postgres_url, EXPANDED) as early:  # started before the step: it works with the older tables too
            assert await during(mover.migrate, old, early) == [EXPAND.name]
            async with opened(postgres_url, EXPANDED) as new, opened(postgres_url) as late:
                await during(lambda: asyncio.sleep(0), old, early, new, late)
        state = await old.schema()
        assert (state.have, state.newest, state.min_reader, state.missing) == (NEXT_ONE, BEFORE.newest, 1, ())
        counts = await old.counts(WORK)
        assert counts.ready + counts.leased == 0


async def test_a_contract_step_is_refused_clearly_by_who_is_too_old(postgres_url):
    async with opened(postgres_url) as old:
        await old.declare([QueueSpec(name=WORK)])
        [sent] = await kit.send(old, kit.message(delay_s=100.0))
        async with opened(postgres_url, EXPANDED) as new:
            told: list[str] = []
            mover = PostgresEngine(postgres_url, history=CONTRACTED)
            with pytest.raises(EngineTooOld, match="beltline migrate"):
                await mover.open()
            assert await during(lambda: mover.migrate(tell=told.append), old, new) == [EXPAND.name, CONTRACT.name]
            assert told == [f"{EXPAND.name} taken", f"{CONTRACT.name} taken"]
            await during(lambda: asyncio.sleep(0), new)
        with pytest.raises(EngineTooNew, match="needs a newer Beltline"):  # it runs already: what it calls has gone
            await old.hurry([sent.id])
        late = PostgresEngine(postgres_url, history=BEFORE)
        with pytest.raises(EngineTooNew, match="pip install --upgrade"):
            await late.open()
        with pytest.raises(EngineTooNew):
            await late.migrate()
        assert (await old.get(sent.id)).state == "delayed"
    async with opened(postgres_url, CONTRACTED) as newest:
        assert await newest.migrate() == []


async def test_a_function_that_is_gone_without_a_newer_schema_says_what_to_compare(postgres_url):
    async with opened(postgres_url) as engine:
        await engine.declare([QueueSpec(name=WORK)])
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("DROP FUNCTION beltline.hurry(bigint, uuid[])")
        with pytest.raises(EngineForeign, match="beltline migrate --check"):
            await engine.hurry([kit.NEVER_SENT])


async def test_many_processes_that_migrate_at_once_take_each_step_once(postgres_url):
    async with opened(postgres_url):
        pass
    engines = [PostgresEngine(postgres_url, history=CONTRACTED) for _ in range(6)]
    async with asyncio.timeout(BOUND_S):
        taken = await kit.together(*(engine.migrate for engine in engines))
    assert sorted(name for names in taken for name in names) == [EXPAND.name, CONTRACT.name]


FIRST = """
import asyncio, sys
from beltline.engines.postgres import PostgresEngine

async def main(url):
    engine = PostgresEngine(url)
    print("begin", flush=True)
    sys.stdin.readline()
    await engine.open()
    await engine.close()

asyncio.run(main(sys.argv[1]))
"""


def test_eight_processes_open_an_empty_database_at_once(postgres_url):
    children = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST, postgres_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "begin\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        said = [child.communicate(timeout=BOUND_S) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert [child.returncode for child in children] == [0] * 8, said
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM beltline.clock").fetchall() == [(1,)]


async def test_a_step_behind_a_long_transaction_holds_nobody_up(postgres_url):
    async with opened(postgres_url) as old:
        await old.declare([QueueSpec(name=WORK)])
        mover = PostgresEngine(postgres_url, history=EXPANDED)
        with psycopg.connect(postgres_url, application_name="a report") as user:
            user.execute("SELECT * FROM beltline.queue")
            told: list[str] = []
            refused = await during(lambda: refusal(mover.migrate(wait_s=1.0, tell=told.append)), old)
            assert f"backend {user.info.backend_pid} (a report)" in refused.what
            assert any("waits for" in line for line in told)
            assert (await old.schema()).have == BEFORE.newest
        assert await mover.migrate() == [EXPAND.name]


async def refusal(work: Awaitable[object]) -> EngineUnavailable:
    with pytest.raises(EngineUnavailable) as told:
        await work
    return told.value


def plain_role(server: PostgresServer, database: str) -> str:
    """A role with no rights of its own."""
    server.execute("DO $$ BEGIN CREATE ROLE plain LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    return server.url(database).replace("//beltline@", "//plain@")


async def test_a_role_that_may_not_create_is_told_the_grant_it_needs(postgres, postgres_url):
    database = postgres_url.rpartition("/")[2]
    plain = PostgresEngine(plain_role(postgres, database))
    with pytest.raises(EngineUnavailable, match=f"GRANT CREATE ON DATABASE {database} TO plain"):
        await plain.open()
    postgres.execute("CREATE SCHEMA beltline", database=database)
    with pytest.raises(EngineUnavailable, match="GRANT USAGE, CREATE ON SCHEMA beltline TO plain"):
        await plain.open()
    postgres.execute("GRANT USAGE, CREATE ON SCHEMA beltline TO plain", database=database)
    await plain.open()
    await plain.close()


async def first_use(engine: PostgresEngine) -> None:
    await engine.open()
    await engine.declare([QueueSpec(name=WORK)])
    await engine.send([kit.message()])


async def test_a_role_that_may_not_use_the_tables_is_told_the_grants_it_needs(postgres, postgres_url):
    database = postgres_url.rpartition("/")[2]
    async with opened(postgres_url):
        pass
    plain = PostgresEngine(plain_role(postgres, database))
    for grant in (
        "USAGE ON SCHEMA beltline",
        "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA beltline",
        "USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA beltline",
    ):
        with pytest.raises(EngineUnavailable) as told:
            await first_use(plain)
        assert f"GRANT {grant} TO" in told.value.help
        await plain.close()
        postgres.execute(f"GRANT {grant} TO plain", database=database)
    await plain.open()
    await kit.send_one(plain)
    assert await kit.finish(plain, WORK) != []
    await plain.close()
