"""Hints make waiting short, and nothing depends on them: lost, killed, behind a pooler, everything still comes."""

import asyncio
import threading

import psycopg
import pytest

from beltline.engines.postgres import PostgresEngine
from beltline.engines.postgres.hints import channel
from tests.engines.postgres_faults_kit import BOUND_S, WORK, asked, begun, message, opened, until
from tests.services.postgres import PostgresServer

LISTENERS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%%'"
WATCH = """
CREATE TABLE public.seen(pid int);
CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.seen VALUES (pg_backend_pid()); RETURN NULL; END $$;
CREATE TRIGGER note AFTER INSERT ON beltline.body FOR EACH STATEMENT EXECUTE FUNCTION public.note()"""


async def waiting_for(engine: PostgresEngine) -> "asyncio.Future":
    """A receive that has looked once and found nothing."""
    future = begun(engine.receive([WORK], limit=1, lease_s=30.0, wait_s=BOUND_S))
    await engine.counts(WORK)
    return future


async def test_a_listener_that_was_killed_comes_back_and_meanwhile_polling_finds_everything(postgres_url: str) -> None:
    async with opened(postgres_url) as receiver, opened(postgres_url) as sender:
        for _ in range(3):
            waiting = await waiting_for(receiver)
            await until(lambda: asked(postgres_url, LISTENERS))
            [(pid,)] = asked(postgres_url, LISTENERS)
            asked(postgres_url, "SELECT pg_terminate_backend(%s)", pid)
            sent = message()
            await sender.send([sent])
            [delivery] = await asyncio.wait_for(waiting, BOUND_S)
            assert delivery.message.id == sent.id
            waiting = await waiting_for(receiver)
            await until(lambda pid=pid: any(other != pid for (other,) in asked(postgres_url, LISTENERS)))
            await sender.send([message()])
            await asyncio.wait_for(waiting, BOUND_S)


async def test_without_listen_nothing_listens_nothing_is_notified_and_polling_finds_everything(postgres_url: str) -> None:
    threads = threading.active_count()
    async with opened(f"{postgres_url}?listen=0") as receiver, opened(f"{postgres_url}?listen=0") as sender:
        waiting = await waiting_for(receiver)
        await sender.send([message()])
        await asyncio.wait_for(waiting, BOUND_S)
        assert asked(postgres_url, LISTENERS) == []
        assert threading.active_count() == threads


async def test_a_hint_that_is_nonsense_hurts_nobody(postgres_url: str) -> None:
    async with opened(postgres_url) as engine:
        waiting = await waiting_for(engine)
        await until(lambda: asked(postgres_url, LISTENERS))
        for text in ("", " ", "\N{SNOWMAN}" * 500, "no such queue", "* !"):
            asked(postgres_url, "SELECT pg_notify(%s, %s)", channel(engine.address), text)
        await engine.send([message()])
        assert await asyncio.wait_for(waiting, BOUND_S)
        assert len(asked(postgres_url, LISTENERS)) == 1


async def test_a_thousand_sends_are_few_notifications_and_none_of_them_in_a_transaction_that_stores(postgres_url: str) -> None:
    """Every transaction with a NOTIFY takes one lock of the whole server at its commit."""
    async with opened(postgres_url) as engine:
        asked(postgres_url, WATCH)
        heard: list[int] = []
        with psycopg.connect(postgres_url, autocommit=True) as ear:
            ear.execute(f"LISTEN {channel(engine.address)}".encode())
            for _ in range(10):
                await asyncio.gather(*(engine.send([message()]) for _ in range(100)))
            await until(lambda: heard.extend(note.pid for note in ear.notifies(timeout=0)) or heard)
            heard += [note.pid for note in ear.notifies(timeout=0.3)]
        assert 1 <= len(heard) <= 100
        assert not set(heard) & {pid for (pid,) in asked(postgres_url, "SELECT DISTINCT pid FROM public.seen")}


@pytest.mark.parametrize("sends", [1, 3])
async def test_hints_cross_from_one_engine_to_many(postgres_url: str, sends: int) -> None:
    async with opened(postgres_url) as one, opened(postgres_url) as two, opened(postgres_url) as three:
        waiting = [await waiting_for(one), await waiting_for(two)]
        await three.send([message() for _ in range(2)])
        for _ in range(sends):
            await three.send([message()])
        assert all(await asyncio.wait_for(asyncio.gather(*waiting), BOUND_S))


async def test_a_server_that_goes_and_comes_is_listened_to_again(own_postgres: PostgresServer) -> None:
    url = own_postgres.url()
    async with opened(url) as receiver, opened(url) as sender:
        await waiting_for_cancelled(receiver)
        await until(lambda: asked(url, LISTENERS))
        await asyncio.to_thread(own_postgres.restart, "immediate")
        await until(lambda: asked(url, LISTENERS))
        waiting = await waiting_for(receiver)
        await sender.send([message()])
        assert await asyncio.wait_for(waiting, BOUND_S)


async def waiting_for_cancelled(engine: PostgresEngine) -> None:
    """Somebody waited once: from then on the engine listens."""
    waiting = await waiting_for(engine)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
