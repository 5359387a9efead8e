"""In a transaction of the user's, at whatever isolation level: it works, or ends with the very error their transaction would have met anyway."""

import threading
from collections.abc import Callable

import psycopg
import pytest
from psycopg import IsolationLevel

from beltline.core.errors import QueueFull, QueueNotDeclared
from beltline.core.names import QueueName
from beltline.core.outcome import Ack, Settled, Settlement
from beltline.core.queues import QueueSpec
from beltline.engines.postgres import PostgresEngine
from beltline.testing.conformance.kit import LEASE_S, message, placed, run_of, take, take_one
from tests.engines.postgres_faults_kit import BOUND_S, WORK, asked, assert_sound, opened

LEVELS = (IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE)
level = pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name.lower())


def connect(url: str, level: IsolationLevel) -> "psycopg.Connection[tuple[object, ...]]":
    connection = psycopg.connect(url)
    connection.isolation_level = level
    return connection


@level
async def test_sends_and_refusals_in_a_transaction_of_any_level(postgres_url: str, level: IsolationLevel) -> None:
    async with opened(postgres_url) as engine:
        await engine.declare([QueueSpec(name=WORK, max_backlog=3)])
        with connect(postgres_url, level) as connection:
            connection.execute("CREATE TABLE public.orders(n int)")
            connection.execute("INSERT INTO public.orders VALUES (1)")
            for _ in range(2):
                assert engine.send_with(connection, [message(group="g")])[0].new
            with pytest.raises(QueueNotDeclared):
                engine.send_with(connection, [message(QueueName("nobody"))])
            with pytest.raises(QueueFull):
                engine.send_with(connection, [message(), message()])
            assert (await engine.counts(WORK)).ready == 0
        assert (await engine.counts(WORK)).ready == 2
        assert asked(postgres_url, "SELECT count(*) FROM public.orders") == [(1,)]
        with connect(postgres_url, level) as connection:
            engine.send_with(connection, [message()])
            connection.rollback()
        assert (await engine.counts(WORK)).ready == 2
    assert_sound(postgres_url)


@level
async def test_what_was_sent_before_a_snapshot_is_the_same_id_and_after_it_is_their_serialization_error(
    postgres_url: str, level: IsolationLevel
) -> None:
    async with opened(postgres_url) as engine:
        before, after = message(), message()
        await engine.send([before])
        with connect(postgres_url, level) as connection:
            connection.execute("SELECT count(*) FROM beltline.body")
            assert not engine.send_with(connection, [before])[0].new
            await engine.send([after])
            if level is IsolationLevel.READ_COMMITTED:
                assert not engine.send_with(connection, [after])[0].new
            else:
                with pytest.raises(Exception) as caught:
                    engine.send_with(connection, [after])
                assert "serialize" in str(caught.value)
                connection.rollback()
                assert not engine.send_with(connection, [after])[0].new
        assert (await engine.counts(WORK)).ready == 2
    assert_sound(postgres_url)


@level
async def test_a_settle_in_a_transaction_of_any_level(postgres_url: str, level: IsolationLevel) -> None:
    async with opened(postgres_url) as engine:
        entered = placed()
        await engine.send([entered, message()])
        deliveries = await take(engine)
        with connect(postgres_url, level) as connection:
            transaction = engine.transaction(connection)
            assert transaction.settle(Settlement(deliveries[0].receipt, Ack(result=b"\x01"))) is Settled.DONE
            transaction.commit()
        assert (await engine.run(run_of(entered))).state == "done"
        with connect(postgres_url, level) as connection:
            transaction = engine.transaction(connection)
            assert transaction.settle(Settlement(deliveries[0].receipt, Ack())) is Settled.LEASE_LOST
            transaction.rollback()
        counts = await engine.counts(WORK)
        assert (counts.done, counts.leased) == (1, 1)
    assert_sound(postgres_url)


@level
async def test_many_transactions_at_once_end_or_say_why_and_lose_nothing(postgres_url: str, level: IsolationLevel) -> None:
    async with opened(postgres_url) as engine:
        committed: list[str] = []
        others: list[BaseException] = []

        def life(number: int) -> None:
            with connect(postgres_url, level) as connection:
                for turn in range(15):
                    sent = message(group=str(turn % 2))
                    for _ in range(200):
                        try:
                            engine.send_with(connection, [sent])
                            connection.commit()
                            committed.append(sent.id)
                            break
                        except Exception as error:  # noqa: BLE001 - judged below
                            connection.rollback()
                            if "serialize" not in str(error) and "deadlock" not in str(error):
                                others.append(error)
                                return
            assert number >= 0

        in_threads([lambda number=number: life(number) for number in range(4)])
        assert others == []
        assert len(committed) == 60
        assert (await engine.counts(WORK)).ready == 60
        ended = []
        while deliveries := await take(engine):
            ended += [delivery.message.id for delivery in deliveries]
            await engine.settle([Settlement(delivery.receipt, Ack()) for delivery in deliveries])
        assert sorted(ended) == sorted(committed)
    assert_sound(postgres_url)


def in_threads(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
        assert not thread.is_alive()


async def test_a_transaction_that_idles_for_long_holds_nobody_up(postgres_url: str) -> None:
    """It has sent to the same queue and the same run of others; only a group it has sent to waits for it."""
    async with opened(postgres_url) as engine:
        with connect(postgres_url, IsolationLevel.READ_COMMITTED) as connection:
            engine.send_with(connection, [message(), message(group="slow"), placed()])
            engine_two = PostgresEngine(postgres_url)
            await engine_two.open()
            await engine_two.send([message(), message(group="fast"), placed()])
            delivery = await take_one(engine_two)
            await engine_two.renew([delivery.receipt], lease_s=LEASE_S)
            await engine_two.settle([Settlement(delivery.receipt, Ack())])
            await engine_two.sweep()
            await engine_two.close()
        assert (await engine.counts(WORK)).ready == 5
    assert_sound(postgres_url)
