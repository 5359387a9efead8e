"""What administrators set for a role or a server: honoured with a clear error, or refused where a promise would break."""

import asyncio
from collections.abc import Iterator

import psycopg
import pytest

from beltline.core.capabilities import Durability
from beltline.core.errors import EngineUnavailable, EngineUnsafe
from beltline.core.outcome import Ack, Settlement
from beltline.core.queues import QueueSpec
from beltline.engines.postgres import PostgresEngine
from tests.engines.postgres_faults_kit import WORK, asked, insist, message, opened, until
from tests.services.postgres import USER, PostgresServer

ROLE = "app"


@pytest.fixture
def role_url(own_postgres: PostgresServer) -> Iterator[str]:
    """A database for a role that is no superuser; the role's settings are for the next connections."""
    own_postgres.execute(f"CREATE ROLE {ROLE} LOGIN")
    own_postgres.execute(f"CREATE DATABASE app OWNER {ROLE}")
    return own_postgres.url("app").replace(f"{USER}@", f"{ROLE}@")


def alter(server: PostgresServer, setting: str) -> None:
    server.execute(f"ALTER ROLE {ROLE} SET {setting}")


@pytest.mark.parametrize("setting", ["statement_timeout = '300ms'", "lock_timeout = '300ms'"])
async def test_a_time_out_of_the_role_has_no_effect_and_says_so(own_postgres: PostgresServer, role_url: str, setting: str) -> None:
    alter(own_postgres, setting)
    async with opened(role_url) as engine:
        await engine.send([message()])
        with psycopg.connect(role_url) as other:
            other.execute("LOCK TABLE beltline.ready IN ACCESS EXCLUSIVE MODE")
            for work in (engine.send([message()]), engine.receive([WORK], limit=1, lease_s=9.0)):
                with pytest.raises(EngineUnavailable, match="gave up") as caught:
                    await work
                assert caught.value.effect == "none"
        [delivery] = await engine.receive([WORK], limit=9, lease_s=9.0)
        assert delivery.receipt.epoch == 1
        assert (await engine.counts(WORK)).ready == 0


async def test_a_statement_time_out_that_nothing_can_meet_is_an_error_of_open(own_postgres: PostgresServer, role_url: str) -> None:
    alter(own_postgres, "statement_timeout = '1ms'")
    engine = PostgresEngine(role_url)
    with pytest.raises(EngineUnavailable) as caught:
        await engine.open()
    assert caught.value.effect == "none"
    await engine.close()
    assert asked(own_postgres.url("app"), "SELECT 1 FROM pg_namespace WHERE nspname = 'beltline'") == []


async def test_connections_that_were_idle_too_long_are_replaced_in_silence(own_postgres: PostgresServer, role_url: str) -> None:
    alter(own_postgres, "idle_session_timeout = '50ms'")
    async with opened(role_url) as engine:
        for _ in range(3):
            assert (await engine.send([message()]))[0].new
            await until(lambda: not asked(own_postgres.url(), "SELECT 1 FROM pg_stat_activity WHERE usename = %s", ROLE))
        assert (await engine.counts(WORK)).ready == 3


async def test_a_role_that_may_not_make_tables_is_told_what_it_lacks(own_postgres: PostgresServer, role_url: str) -> None:
    own_postgres.execute(f"ALTER DATABASE app OWNER TO {USER}")
    engine = PostgresEngine(role_url)
    with pytest.raises(EngineUnavailable, match="permission denied") as caught:
        await engine.open()
    assert (caught.value.effect, caught.value.forbidden) == ("none", True)
    await engine.close()


async def test_a_role_that_nobody_knows_is_no_missing_database(own_postgres: PostgresServer) -> None:
    engine = PostgresEngine(own_postgres.url().replace(f"{USER}@", "nobody_here@"))
    with pytest.raises(EngineUnavailable, match="nobody_here") as caught:
        await engine.open()
    assert "user and password" in caught.value.help
    await engine.close()
    engine = PostgresEngine(own_postgres.url("no_such_database"))
    with pytest.raises(EngineUnavailable, match="no_such_database") as caught:
        await engine.open()
    assert "createdb" in caught.value.help
    await engine.close()


# ---------------------------------------------------------------------------------------------------------------- durability
@pytest.mark.parametrize("setting", ["synchronous_commit", "fsync"])
async def test_a_server_that_may_forget_is_refused_unless_less_was_asked_for(own_postgres: PostgresServer, role_url: str, setting: str) -> None:
    if setting == "fsync":
        own_postgres.stop()
        own_postgres.settings["fsync"] = "off"
        own_postgres.start()
    else:
        alter(own_postgres, "synchronous_commit = off")
    engine = PostgresEngine(role_url)
    with pytest.raises(EngineUnsafe, match=setting):
        await engine.open()
    await engine.close()
    async with opened(role_url, durability=Durability.OS) as engine:
        assert (await engine.send([message()]))[0].new


# Written at the commit itself, by a trigger that waits for it.
WATCH = """
CREATE TABLE public.seen(name text, setting text);
CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$
  BEGIN INSERT INTO public.seen VALUES (TG_TABLE_NAME, current_setting('synchronous_commit')); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER note AFTER INSERT ON beltline.body DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.note();
CREATE CONSTRAINT TRIGGER note AFTER INSERT OR UPDATE ON beltline.lease DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.note();
CREATE CONSTRAINT TRIGGER note AFTER INSERT ON beltline.done DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.note()"""


@pytest.mark.parametrize("how", ["server", "role"])
async def test_synchronous_commit_turned_off_while_the_engine_runs_changes_nothing(own_postgres: PostgresServer, role_url: str, how: str) -> None:
    async with opened(role_url) as engine:
        asked(own_postgres.url("app"), WATCH)
        asked(own_postgres.url("app"), "GRANT ALL ON public.seen TO app")
        if how == "server":
            own_postgres.execute("ALTER SYSTEM SET synchronous_commit = off")
            own_postgres.execute("SELECT pg_reload_conf()")
        else:
            alter(own_postgres, "synchronous_commit = off")
            own_postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (ROLE,))
        await until(lambda: asked(role_url, "SHOW synchronous_commit") == [("off",)])
        await asyncio.gather(*(insist(lambda: engine.send([message()])) for _ in range(5)))
        for _ in range(5):
            [delivery], _ = await insist(lambda: engine.receive([WORK], limit=1, lease_s=9.0))
            await engine.renew([delivery.receipt], lease_s=9.0)
            await engine.settle([Settlement(delivery.receipt, Ack())])
        await engine.declare([QueueSpec(name=WORK, max_backlog=9)])
        await engine.send([message()])
        seen = asked(role_url, "SELECT DISTINCT name, setting FROM public.seen ORDER BY name")
    assert seen == [("body", "on"), ("done", "on"), ("lease", "on")]


async def test_commits_are_synchronous_at_every_level(own_postgres: PostgresServer, role_url: str) -> None:
    """durability=os opens such a server, but a receive that its crash had undone would hand the same epoch out twice."""
    async with opened(role_url):
        asked(own_postgres.url("app"), WATCH)
        asked(own_postgres.url("app"), "GRANT ALL ON public.seen TO app")
    alter(own_postgres, "synchronous_commit = off")
    async with opened(role_url, durability=Durability.OS) as engine:
        await engine.send([message()])
        [delivery] = await engine.receive([WORK], limit=1, lease_s=9.0)
        await engine.settle([Settlement(delivery.receipt, Ack())])
        seen = asked(role_url, "SELECT DISTINCT name, setting FROM public.seen ORDER BY name")
    assert seen == [("body", "on"), ("done", "on"), ("lease", "on")]
