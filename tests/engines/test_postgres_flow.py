"""Flow control as it is kept in PostgreSQL: rows that nobody needs any more go, and a verb of many messages is a few statements."""

from typing import Any

import psycopg
import pytest

from beltline.core.flow import Claim, Limit
from beltline.core.outcome import Ack
from beltline.engines.postgres import PostgresEngine
from beltline.testing.clock import ManualClock
from beltline.testing.conformance import kit
from beltline.testing.conformance.kit import API, WORK
from tests.engines.postgres_kit import empty_beltline

DAY_S = 86400.0


@pytest.fixture
def url() -> str:
    return empty_beltline("wheel")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def engine(url: str, clock: ManualClock) -> Any:
    engine = PostgresEngine(url, clock=clock)
    await engine.open()
    await engine.declare([kit.specs(queue) for queue in kit.QUEUES])
    try:
        yield engine
    finally:
        await engine.close()


def numbers(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query).fetchall()


async def served_once(engine: PostgresEngine, names: str) -> None:
    await kit.send(engine, *(kit.shaped(tenant=name) for name in names))
    for delivery in await kit.take(engine):
        await kit.ok(engine, delivery, Ack(ran_s=0.5))


async def test_tenants_that_came_but_once_are_forgotten_after_a_week(engine: PostgresEngine, url: str, clock: ManualClock) -> None:
    tenants = "SELECT count(*) FROM beltline.flow_share WHERE NOT nobody"
    await served_once(engine, "abcde")
    clock.advance(DAY_S)
    await served_once(engine, "f")
    await engine.retain(history_s=10.0)
    assert numbers(url, tenants) == [(6,)]  # each is a turn ahead of the queue's
    clock.advance(7 * DAY_S)
    await served_once(engine, "g")
    await engine.retain(history_s=10.0)
    assert numbers(url, tenants) == [(1,)]


async def test_a_purge_of_many_messages_with_lanes_is_told_by_lane_and_not_by_message(engine: PostgresEngine, url: str) -> None:
    await engine.declare_limits([Limit(name=API, concurrency=1)])
    await kit.send(engine, *(kit.shaped(tenant=f"t{number % 4}", claims=[Claim(API, "k")]) for number in range(1000)))
    [held] = await kit.take(engine)
    before = numbers(url, "SELECT coalesce(max(n), 0) FROM beltline.flow_event")[0][0]
    assert await engine.purge(WORK) == 999
    told = numbers(url, f"SELECT sum(ready), sum(heads), sum(messages), count(*) FROM beltline.flow_event WHERE n > {before}")
    assert told == [(-999, -999, -999, 8)]
    await kit.ok(engine, held)
    await kit.assert_counts_agree(engine)
    await kit.send(engine, *kit.limited(2, key="k"))
    assert len(await kit.take(engine)) == 1


async def test_what_was_told_in_masses_is_added_up_over_several_receives(engine: PostgresEngine, url: str) -> None:
    """Else a receive that takes longer than it may would begin anew each time."""
    told = "SELECT count(*) FROM beltline.flow_event"
    await kit.send(engine, kit.shaped(tenant="a"))
    await kit.ok(engine, await kit.take_one(engine))
    with psycopg.connect(url, autocommit=True) as connection:
        [[lane, queue]] = connection.execute("SELECT n, queue FROM beltline.flow_lane").fetchall()
        connection.execute(
            "INSERT INTO beltline.flow_event(queue, verb, lane, ready, heads) SELECT %s, -1 - n / 10, %s, x, x FROM generate_series(1, 30000) n, unnest(ARRAY[1, -1]) x",
            (queue, lane),
        )
        connection.execute("ANALYZE beltline.flow_event")  # as autovacuum may have done in between: other numbers, other plans
    late = await kit.send_one(engine, flow=kit.shaped(tenant="b").flow)
    before = numbers(url, told)[0][0]
    assert await kit.take(engine) == []
    assert 0 < numbers(url, told)[0][0] < before
    assert kit.ids(await engine.receive([WORK], limit=10, lease_s=60, wait_s=20)) == [late.id]
    assert numbers(url, told) == [(0,)]
