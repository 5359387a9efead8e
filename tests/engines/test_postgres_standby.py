"""A standby is no place to store anything, until it is promoted: then the engine finds it by itself, with all that was acknowledged to a synchronous one.

Without synchronous replication (synchronous_standby_names) a promotion loses what had not reached the standby yet; that is PostgreSQL's promise, not ours to mend.
"""

import asyncio

import pytest

from beltline.core.errors import EngineUnavailable, EngineUnsafe
from beltline.engines.postgres import PostgresEngine
from beltline.engines.registry import make_engine
from tests.engines.postgres_faults_kit import WORK, insist, message, more, opened, traffic, until
from tests.services.ports import HOST
from tests.services.postgres import USER, PostgresServer
from tests.services.proxy import Proxy


def both(*servers: PostgresServer) -> str:
    return f"postgresql://{USER}@{','.join(f'{HOST}:{server.port}' for server in servers)}/postgres"


async def test_a_read_replica_is_refused_by_name(own_postgres: PostgresServer) -> None:
    async with opened(own_postgres.url()):
        pass
    with await asyncio.to_thread(own_postgres.standby) as standby:
        engine = PostgresEngine(standby.url())
        with pytest.raises(EngineUnsafe, match="read replica"):
            await engine.open()
        await engine.close()


async def test_with_several_servers_in_the_url_the_one_that_can_be_written_is_used(own_postgres: PostgresServer) -> None:
    with await asyncio.to_thread(own_postgres.standby) as standby:
        for url in (both(standby, own_postgres), both(own_postgres, standby)):
            async with opened(url) as engine:
                assert (await engine.send([message()]))[0].new
            assert isinstance(make_engine(url), PostgresEngine)
        own_postgres.stop()
        engine = PostgresEngine(both(standby, own_postgres))
        with pytest.raises(EngineUnavailable) as caught:
            await engine.open()
        assert caught.value.effect == "none"
        await engine.close()


@pytest.mark.parametrize("end", ["kill", "fast"])
async def test_a_promoted_standby_has_all_that_was_acknowledged(own_postgres: PostgresServer, end: str) -> None:
    async with opened(own_postgres.url()):
        pass
    with await asyncio.to_thread(lambda: own_postgres.standby(synchronous=True)) as standby:
        async with opened(both(own_postgres, standby) + "?timeout=5") as engine, traffic(engine) as going:
            await more(going, 100)
            await asyncio.to_thread(own_postgres.kill if end == "kill" else own_postgres.stop)
            await until(lambda: going.errors)
            await asyncio.to_thread(standby.promote)
            await more(going)
        going.assert_nothing_lost(standby.url())


async def test_a_commit_whose_standby_is_gone_is_not_acknowledged(own_postgres: PostgresServer) -> None:
    """A commit that waits for its standby, asked to stop, says done: the engine knows better. The message is here, but only here."""
    async with opened(own_postgres.url()):
        pass
    with await asyncio.to_thread(lambda: own_postgres.standby(synchronous=True)) as standby:
        async with opened(own_postgres.url(timeout=1, listen=0)) as engine:
            await engine.send([message()])
            await asyncio.to_thread(standby.stop)
            unsure = message()
            with pytest.raises(EngineUnavailable) as caught:
                await engine.send([unsure])
            assert caught.value.effect == "unknown"
            own_postgres.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
            own_postgres.execute("SELECT pg_reload_conf()")
            await insist(lambda: engine.send([unsure]))
            assert (await engine.counts(WORK)).ready == 2


async def test_an_address_that_leads_to_a_standby_for_a_while_is_waited_for(own_postgres: PostgresServer) -> None:
    """As behind a virtual address or a balancer: the same host and port, the standby not promoted yet."""
    async with opened(own_postgres.url()):
        pass
    with await asyncio.to_thread(lambda: own_postgres.standby(synchronous=True)) as standby, Proxy(own_postgres.port) as proxy:
        async with opened(own_postgres.url(port=proxy.port)) as engine:
            await engine.send([message()])
            proxy.target_port = standby.port
            proxy.reset()
            await asyncio.to_thread(own_postgres.stop)
            late = message()
            with pytest.raises(EngineUnavailable, match="standby") as caught:
                await engine.send([late])
            assert caught.value.effect == "none"
            await asyncio.to_thread(standby.promote)
            await insist(lambda: engine.send([late]))
            assert (await engine.counts(WORK)).ready == 2
