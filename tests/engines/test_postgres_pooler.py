"""Behind pgbouncer in transaction mode everything is the same, found by polling: no LISTEN, no prepared statement, nothing kept in a session."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from beltline.engines.postgres import PostgresEngine
from beltline.testing import conformance
from beltline.testing.conformance.runner import laws, run
from tests.engines.postgres_faults_kit import BOUND_S, WORK, assert_sound, begun, message, more, opened, traffic
from tests.engines.postgres_kit import PostgresHarness, empty_beltline, shared_server
from tests.services import fixtures, pooler
from tests.services.pooler import Pooler
from tests.services.postgres import PostgresServer

ORIGIN = "system"
NUMBERS = ("L01", "L03", "L04", "L07", "L10", "L15", "L18", "L21", "L24", "L25", "L26", "L35", "L38")
CHOSEN = [(law, name, test) for law in laws() if law.number in NUMBERS for name, test in law.tests.items()]


def between() -> Pooler:
    """The session's pooler before the shared server of ORIGIN."""
    if reason := pooler.missing():
        fixtures.refuse("pgbouncer", reason)
    server = shared_server(ORIGIN)
    if server.found.name not in fixtures.poolers:
        fixtures.poolers[server.found.name] = Pooler(server, session=True)
        fixtures.poolers[server.found.name].start()
    return fixtures.poolers[server.found.name]


class PooledHarness(PostgresHarness):
    """As PostgresHarness, with a pooler of four sessions between."""

    origin = ORIGIN

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.url = between().url(empty_beltline(self.origin).rpartition("/")[2])


@pytest.mark.parametrize(("law", "test"), [pytest.param(law, test, id=f"{law.number} {name}") for law, name, test in CHOSEN])
def test_laws_hold_behind_a_pooler(tmp_path: Path, law: conformance.runner.Law, test: conformance.runner.Test) -> None:
    assert run(law, test, PooledHarness(tmp_path)) == ""


def plain(url: str, server: PostgresServer) -> str:
    return server.url(url.rpartition("/")[2])


async def test_traffic_of_several_engines_shares_the_sessions(pooler_url: str, postgres: PostgresServer) -> None:
    async with opened(pooler_url) as one, opened(pooler_url) as two:
        async with traffic(one) as first, traffic(two) as second:
            await more(first, 100)
            await more(second, 100)
        ids = first.acknowledged | second.acknowledged
        assert (await one.counts(WORK)).done == len(ids)
        assert len(first.settled) + len(second.settled) == len(ids)
        assert first.errors == second.errors == []
    assert_sound(plain(pooler_url, postgres))


async def test_two_schemas_behind_one_pooler_never_meet(pooler_url: str, postgres: PostgresServer) -> None:
    """Prepared statements have the same names in every client: one that is prepared in a shared session would be run by another client."""
    async with opened(f"{pooler_url}?schema=one") as one, opened(f"{pooler_url}?schema=two") as two:
        sent: dict[PostgresEngine, set[str]] = {one: set(), two: set()}
        for _ in range(30):  # often enough for psycopg to prepare
            for engine in (one, two):
                batch = [message() for _ in range(2)]
                sent[engine] |= {made.id for made in batch}
                await asyncio.gather(engine.send(batch), engine.counts(WORK), engine.send([]), engine.renew([], lease_s=9.0))
        for engine in (one, two):
            deliveries = await engine.receive([WORK], limit=1000, lease_s=30.0)
            assert {delivery.message.id for delivery in deliveries} == sent[engine]
        assert plain(pooler_url, postgres)


async def test_nothing_is_prepared_and_nobody_listens_in_the_shared_sessions(pooler_url: str, postgres: PostgresServer) -> None:
    async with opened(pooler_url) as engine:
        for _ in range(20):
            await engine.send([message()])
        waiting = begun(engine.receive([WORK], limit=100, lease_s=30.0, wait_s=BOUND_S))
        assert await asyncio.wait_for(waiting, BOUND_S)
        waiting = begun(engine.receive([WORK], limit=100, lease_s=30.0, wait_s=BOUND_S))
        await engine.send([message()])
        assert await asyncio.wait_for(waiting, BOUND_S)
        assert [row for _ in range(8) for row in await engine._ask("SELECT name, statement FROM pg_prepared_statements")] == []
        assert [row for _ in range(8) for row in await engine._ask("SELECT pg_listening_channels()")] == []
    assert postgres


async def test_a_direct_connection_prepares(postgres_url: str) -> None:
    """The proof that the test before can fail."""
    async with opened(f"{postgres_url}?pool=1") as engine:
        for _ in range(20):
            await engine.send([message()])
        names = await engine._ask("SELECT statement FROM pg_prepared_statements")
        assert any("beltline.send" in statement for (statement,) in names)


@pytest.fixture
def restarted_pooler(own_postgres: PostgresServer) -> Iterator[Pooler]:
    if reason := pooler.missing():
        fixtures.refuse("pgbouncer", reason)
    with Pooler(own_postgres) as pooler_:
        yield pooler_


async def test_a_server_restart_behind_the_pooler_loses_nothing(own_postgres: PostgresServer, restarted_pooler: Pooler) -> None:
    """A stock pgbouncer asks a server that has refused it again only after 15 s (server_login_retry); until then its clients wait."""
    async with opened(restarted_pooler.url()) as engine:
        async with traffic(engine) as going:
            await more(going)
            await asyncio.to_thread(own_postgres.restart, "immediate")
            await more(going)
        going.assert_nothing_lost(own_postgres.url())
