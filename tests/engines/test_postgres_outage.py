"""The server goes away under traffic, in every way it can: what was acknowledged is there, what is unsure is safe to repeat, and work goes on by itself."""

import asyncio
import contextlib
import os
import signal

import psycopg
import pytest

from beltline.core.errors import EngineUnavailable
from beltline.engines.postgres import PostgresEngine
from tests.engines.postgres_faults_kit import BOUND_S, WORK, asked, assert_sound, begun, insist, message, more, opened, traffic, until
from tests.services.ports import free_port
from tests.services.postgres import PostgresServer
from tests.services.proxy import Proxy

KILL_BACKENDS = "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'beltline'"


@pytest.mark.parametrize("how", ["immediate", "fast", "kill"])
async def test_a_server_that_ends_under_traffic_and_comes_back_loses_nothing(own_postgres: PostgresServer, how: str) -> None:
    url = own_postgres.url()
    async with opened(url) as engine:
        async with traffic(engine) as going:
            for _ in range(3):
                await more(going)
                going.errors.clear()
                if how == "kill":
                    await asyncio.to_thread(own_postgres.kill)
                else:
                    await asyncio.to_thread(own_postgres.stop, how)
                await until(lambda: any("cannot be reached" in error.what for error in going.errors))
                await asyncio.to_thread(own_postgres.start)
                await more(going)
        assert going.errors
        going.assert_nothing_lost(url)


async def test_killed_connections_are_made_again(own_postgres: PostgresServer) -> None:
    url = own_postgres.url()
    async with opened(url) as engine:
        killed = set()
        async with traffic(engine) as going:
            for _ in range(20):
                await more(going, 2)
                killed |= {pid for pid, _ in await asyncio.to_thread(asked, url, KILL_BACKENDS)}
            await more(going)
        assert len(killed) >= 20
        assert all(error.effect == "unknown" or "cannot be reached" in error.what for error in going.errors)
        going.assert_nothing_lost(url)


async def test_a_backend_that_crashes_takes_the_others_with_it_and_nothing_is_lost(own_postgres: PostgresServer) -> None:
    """After a SIGKILL of one of its processes the server ends all others and recovers from its log."""
    url = own_postgres.url()
    async with opened(url) as engine:
        async with traffic(engine) as going:
            for _ in range(2):
                await more(going)
                before = len(going.errors)
                [pid, *_] = [
                    pid for (pid,) in await asyncio.to_thread(asked, url, "SELECT pid FROM pg_stat_activity WHERE application_name = 'beltline'")
                ]
                os.kill(pid, signal.SIGKILL)
                await until(lambda before=before: len(going.errors) > before)
                await more(going)
        going.assert_nothing_lost(url)


async def test_idle_connections_that_died_are_noticed_before_they_are_used(own_postgres: PostgresServer) -> None:
    """After a restart in quiet times the first call simply works: what certainly did not happen is nobody's business."""
    async with opened(own_postgres.url()) as engine:
        for how in ("fast", "immediate", "kill"):
            await asyncio.gather(*(engine.counts(WORK) for _ in range(8)))
            await asyncio.to_thread(own_postgres.kill if how == "kill" else lambda how=how: own_postgres.stop(how))
            await asyncio.to_thread(own_postgres.start)
            assert (await engine.send([message()]))[0].new
        assert (await engine.counts(WORK)).ready == 3


# ------------------------------------------------------------------------------------------------------- nobody there, nobody answers
async def test_open_where_nobody_listens_says_so() -> None:
    engine = PostgresEngine(f"postgresql://somebody@127.0.0.1:{free_port()}/app")
    with pytest.raises(EngineUnavailable, match="cannot be reached") as caught:
        await asyncio.wait_for(engine.open(), BOUND_S)
    assert caught.value.effect == "none"
    await engine.close()


async def test_open_at_a_server_that_is_silent_gives_up(postgres: PostgresServer, postgres_url: str) -> None:
    with Proxy(postgres.port) as proxy:
        proxy.blackhole()
        engine = PostgresEngine(f"{through(postgres_url, proxy)}?timeout=1")
        with pytest.raises(EngineUnavailable, match="cannot be reached") as caught:
            await asyncio.wait_for(engine.open(), BOUND_S)
        assert caught.value.effect == "none"
        await engine.close()


async def test_a_silent_server_is_given_up_and_found_again(postgres: PostgresServer, postgres_url: str) -> None:
    with Proxy(postgres.port) as proxy:
        async with opened(f"{through(postgres_url, proxy)}?timeout=0.5") as engine:
            await engine.send([message()])
            proxy.blackhole()
            unsure = message()
            with pytest.raises(EngineUnavailable, match="did not answer") as caught:
                await asyncio.wait_for(engine.send([unsure]), BOUND_S)
            assert caught.value.effect == "unknown"
            with pytest.raises(EngineUnavailable):
                await asyncio.wait_for(engine.receive([WORK], limit=1, lease_s=30.0, wait_s=BOUND_S), BOUND_S)
            proxy.pass_through()
            await insist(lambda: engine.send([unsure]))
            assert (await engine.counts(WORK)).ready == 2


@pytest.mark.parametrize("options", ["timeout=30", "timeout=30&pool=1", "timeout=30&listen=0"])
async def test_close_does_not_wait_for_a_silent_server(postgres: PostgresServer, postgres_url: str, options: str) -> None:
    """Less than ?timeout= is the point: the calls under way end with `unknown`, the idle connections are dropped."""
    with Proxy(postgres.port) as proxy:
        engine = PostgresEngine(f"{through(postgres_url, proxy)}?{options}")
        async with opened(f"{through(postgres_url, proxy)}?{options}"):
            pass
        await engine.open()
        waiting = begun(engine.receive([WORK], limit=1, lease_s=30.0, wait_s=BOUND_S))
        await asyncio.gather(*(engine.counts(WORK) for _ in range(4)))
        proxy.blackhole()
        sends = [begun(engine.send([message()])) for _ in range(6)]
        await asyncio.sleep(0)  # they are on their way
        await asyncio.wait_for(engine.close(), 28.0)
        answers = await asyncio.wait_for(asyncio.gather(waiting, *sends, return_exceptions=True), BOUND_S)
        assert all(isinstance(answer, Exception) or answer == [] for answer in answers)


async def test_a_process_that_was_told_to_end_while_the_server_is_silent_ends(postgres: PostgresServer, postgres_url: str) -> None:
    """The caller's task is cancelled, the loop ends: nothing of the engine keeps it."""

    def life() -> None:
        async def use() -> None:
            engine = PostgresEngine(f"{through(postgres_url, proxy)}?timeout=1&listen=0")
            await engine.open()
            await engine.declare([])
            proxy.blackhole()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(engine.send([message()]), 0.05)
            await engine.close()

        asyncio.run(use())

    with Proxy(postgres.port) as proxy:
        await asyncio.wait_for(asyncio.to_thread(life), BOUND_S)
        proxy.pass_through()


def through(url: str, proxy: Proxy) -> str:
    head, _, database = url.rpartition("/")
    return f"{head.rpartition(':')[0]}:{proxy.port}/{database}"


# ------------------------------------------------------------------------------------------------------------------- no room
async def test_more_callers_than_connections_wait_for_their_turn(postgres_url: str) -> None:
    async with opened(f"{postgres_url}?pool=2&listen=0") as engine:
        answers = await asyncio.gather(*(engine.send([message()]) if n % 2 else engine.counts(WORK) for n in range(50)))
        assert len(answers) == 50
        assert len(asked(postgres_url, "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'beltline'")) <= 2


async def test_callers_stuck_behind_a_lock_are_told_so_and_leave_nothing_behind(postgres_url: str) -> None:
    async with opened(f"{postgres_url}?pool=2&timeout=0.5&listen=0") as engine:
        with psycopg.connect(postgres_url) as other:
            other.execute("LOCK TABLE beltline.ready IN ACCESS EXCLUSIVE MODE")
            made = [message() for _ in range(6)]
            answers = await asyncio.gather(*(engine.receive([WORK], limit=1, lease_s=9.0) for _ in made), engine.send(made), return_exceptions=True)
            assert all(isinstance(answer, EngineUnavailable) for answer in answers)
            assert {answer.effect for answer in answers} == {"none"}  # type: ignore[union-attr] - as just asserted
            busy = "SELECT pid FROM pg_stat_activity WHERE application_name = 'beltline' AND datname = current_database() AND state = 'active'"
            await until(lambda: not asked(postgres_url, busy))  # they do not queue up over there
        assert (await engine.counts(WORK)).ready == 0
        await engine.send(made)
        assert (await engine.counts(WORK)).ready == 6


async def test_a_server_without_a_free_connection_says_so(own_postgres: PostgresServer) -> None:
    own_postgres.stop()
    own_postgres.settings["max_connections"] = "10"
    own_postgres.start()
    url = own_postgres.url()
    async with opened(f"{url}?listen=0") as engine:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(psycopg.OperationalError):
                for _ in range(11):
                    stack.enter_context(psycopg.connect(url))
            late = PostgresEngine(url)
            with pytest.raises(EngineUnavailable, match="too many clients") as caught:
                await late.open()
            await late.close()
            assert caught.value.effect == "none"
            assert "pool" in caught.value.help
            await asyncio.gather(*(engine.send([message()]) for _ in range(3)), return_exceptions=True)
        await insist(late.open)
        await late.close()
        await insist(lambda: engine.send([message()]))
    assert_sound(url)
