"""What of flow control is SQLite's own: what is remembered between two transactions, what wakes a receiver, and what retention forgets."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from beltline.core.capabilities import Durability
from beltline.core.flow import Claim, Flow, KillSwitch, Limit, keeper
from beltline.core.message import Delivery
from beltline.core.names import WorkerId
from beltline.core.outcome import Ack, Cause, Failure, RetryAfter, Settlement
from beltline.core.queues import QueueSpec
from beltline.core.views import WorkerView
from beltline.engines.sqlite import SqliteEngine, place, writer
from beltline.engines.sqlite.ledger import Ledger
from beltline.engines.sqlite.shares import decode, encode
from beltline.testing.clock import ManualClock
from tests.engines.sqlite_kit import BOUND_S, WORK, child, message, opened, output

API = Flow(claims=(Claim("api"),))


def rows(path: Path, sql: str) -> list[Any]:
    db = place.connect(path, Durability.OS, read_only=True)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close(True)


def looking(path: Path, ask: Callable[[Ledger], Any], now: int) -> Any:
    ledger = Ledger(place.connect(path, Durability.OS, read_only=True))
    ledger.look(now)
    try:
        return ask(ledger)
    finally:
        ledger.sql("COMMIT")
        ledger.db.close(True)


async def take(engine: SqliteEngine, limit: int = 10, **options: Any) -> list[Delivery]:
    return await engine.receive([WORK], limit=limit, lease_s=30.0, **options)


async def settle(engine: SqliteEngine, delivery: Delivery, outcome: Any = None) -> None:
    await engine.settle([Settlement(delivery.receipt, outcome or Ack(ran_s=1.0))])


def test_buckets_as_bytes_sort_and_read_as_they_are():
    lists = [[], [("a", "")], [("a", ""), ("b", "x")], [("a", "k")], [("ab", "")], [("a", "\x01")], [("b", "\u00fc\U0001f600")]]
    assert sorted(lists) == sorted(lists, key=encode)
    assert [decode(encode(each)) for each in lists] == lists


async def test_a_place_given_back_by_another_process_is_seen(tmp_path):
    path = tmp_path / "queue.db"
    async with opened(path) as engine:
        await engine.set_limit(Limit(name="api", concurrency=1))
        await engine.send([message(flow=API), message(flow=API)])
        [held] = await take(engine)
        assert await take(engine) == []
        program = """
import asyncio, sys
from beltline.core.message import Receipt
from beltline.core.outcome import Ack, Settlement
from beltline.engines.sqlite import SqliteEngine
async def main():
    engine = SqliteEngine(sys.argv[1])
    await engine.open()
    print(await engine.settle([Settlement(Receipt(sys.argv[2], 1), Ack())]))
    await engine.close()
asyncio.run(main())
"""
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(take(engine, wait_s=BOUND_S))
            assert "DONE" in await asyncio.to_thread(output, child(program, path, held.message.id))
        [other] = waiting.result()
        assert other.message.id != held.message.id


async def test_a_place_given_back_in_a_users_transaction_is_seen(tmp_path):
    async with opened(tmp_path / "queue.db") as engine:
        await engine.set_limit(Limit(name="api", concurrency=1))
        await engine.send([message(flow=API), message(flow=API)])
        [held] = await take(engine)
        assert await take(engine) == []
        transaction = engine.transaction()
        transaction.settle(Settlement(held.receipt, Ack()))
        transaction.commit()
        assert len(await take(engine)) == 1


async def test_a_lease_that_may_not_start_again_keeps_nobody_awake(tmp_path):
    path, clock = tmp_path / "queue.db", ManualClock()
    async with opened(path, clock=clock) as engine:
        await engine.set_limit(Limit(name="api", rate=1.0, per_s=60.0, burst=1.0))
        await engine.send([message(flow=API)])
        await take(engine)
        clock.advance(30.0)
        assert await take(engine) == []
        now = round(clock.now() * 1000)

        def wakes_at(ledger: Ledger) -> float | None:
            ledger.flow.refused[ledger.queue(WORK).n] = now + 30_000
            return writer._next_instant(ledger, ledger.queue(WORK), now)

        assert looking(path, wakes_at, now) == now + 30_000
        clock.advance(30.0)
        [again] = await take(engine)
        assert again.lost == 1


async def test_a_receiver_wakes_when_a_lane_opens_and_when_a_snooze_ends(tmp_path):
    path, clock = tmp_path / "queue.db", ManualClock()
    async with opened(path, clock=clock) as engine:
        await engine.set_limit(Limit(name="api", rate=1.0, per_s=10.0, burst=1.0))
        await engine.send([message(flow=API), message(flow=API)])
        assert len(await take(engine)) == 1
        now = round(clock.now() * 1000)
        assert looking(path, lambda ledger: writer._next_instant(ledger, ledger.queue(WORK), now), now) == now + 10_000
        await engine.snooze(WORK, seconds=60.0)
        assert looking(path, lambda ledger: writer._next_instant(ledger, ledger.queue(WORK), now), now) == now + 60_000


async def test_every_receiver_is_asked_where_workers_keep_keys(tmp_path):
    async with opened(tmp_path / "queue.db") as engine:
        for name in ("w1", "w2"):
            await engine.beat(WorkerView(id=name, host="h", pid=1, started_at=0.0, age_s=0.0, state="up", queues={WORK: 1}))
        keys = "abcdef"
        async with asyncio.timeout(BOUND_S), asyncio.TaskGroup() as group:
            waiting = [group.create_task(take(engine, limit=1, wait_s=BOUND_S, worker=WorkerId(name))) for name in ("w1", "w2")]
            for key in keys:
                await engine.send([message(flow=Flow(sticky=key))])
        owners = {keeper(task.result()[0].message.flow.sticky, ("w1", "w2")) for task in waiting}
        assert owners == {"w1", "w2"}  # each has one of its own, whoever stood first in line


async def test_retention_forgets_what_says_nothing_any_more(tmp_path):
    path, clock = tmp_path / "queue.db", ManualClock()
    async with opened(path, clock=clock) as engine:
        await engine.set_limit(Limit(name="api", rate=10.0, concurrency=5))
        flows = [Flow(tenant=f"t{n}", claims=(Claim("api", f"k{n}"),)) for n in range(5)]
        await engine.send([message(flow=flow) for flow in flows])
        for delivery in await take(engine):
            await settle(engine, delivery)
        clock.advance(1000.0)
        await engine.retain(history_s=10.0)
        assert rows(path, "SELECT (SELECT count(*) FROM lane), (SELECT count(*) FROM share)") == [(0, 6)]  # they are a turn ahead of others
        clock.advance(8 * 86400.0)
        await engine.retain(history_s=10.0)
        assert rows(
            path, "SELECT (SELECT count(*) FROM lane), (SELECT count(*) FROM share), (SELECT count(*) FROM bucket), (SELECT count(*) FROM hold)"
        ) == [(0, 1, 0, 0)]
        await engine.send([message(flow=flow) for flow in flows])
        assert len(await take(engine)) == 5


async def test_a_queue_without_lanes_and_limits_has_no_row_of_flow_control(tmp_path):
    path = tmp_path / "queue.db"
    async with opened(path) as engine:
        await engine.send([message(), message(priority=3)])
        for delivery in await take(engine):
            await settle(engine, delivery)
        assert rows(path, "SELECT (SELECT count(*) FROM flow), (SELECT count(*) FROM share), (SELECT count(*) FROM lane), sum(flow) FROM tally") == [
            (0, 0, 0, 0)
        ]


async def test_numbers_beside_the_rows_are_those_of_the_rows(tmp_path):
    path = tmp_path / "queue.db"
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(opened(path))
        await engine.declare([QueueSpec(name=WORK, kill_switch=KillSwitch(least=1000))])
        await engine.set_limit(Limit(name="api", concurrency=2))
        flows = [None, API, Flow(tenant="t"), Flow(tenant="t", claims=(Claim("api", "k"),)), Flow(tenant="u", sticky="s")]
        await engine.send([message(flow=flows[n % 5], delay_s=n % 7 // 6 * 100.0, group=("g", None)[n % 2]) for n in range(60)])
        for n in range(20):
            for place_, delivery in enumerate(await take(engine, limit=4)):
                if (n + place_) % 3:
                    failed = RetryAfter(delay_s=0.0, failure=Failure(Cause.ERROR, "E", "e"))
                    await settle(engine, delivery, failed if place_ % 2 else None)
        counted = """SELECT n, sum(state = 1), sum(state = 2), sum(state IN (0, 4)) FROM
          (SELECT l.n, m.state FROM lane l LEFT JOIN message m ON m.lane = l.n AND m.state <> 3) GROUP BY n ORDER BY n"""
        kept = "SELECT n, ready, leased, other FROM lane ORDER BY n"
        assert [tuple(value or 0 for value in row) for row in rows(path, counted)] == rows(path, kept)
        heads = """SELECT l.n FROM lane l WHERE (l.head_rank, l.head_seq) IS NOT
          (SELECT rank, seq FROM message m WHERE m.lane = l.n AND state = 1 AND blocked = 0 ORDER BY rank, seq LIMIT 1)"""
        assert rows(path, heads) == []
        assert rows(path, "SELECT sum(leased) FROM share") == rows(path, "SELECT sum(leased) FROM lane")
        held = "SELECT coalesce(sum(ready), 0) FROM lane WHERE closed_by IS NOT NULL"
        assert rows(path, held) == rows(path, "SELECT coalesce(sum(waiting), 0) FROM bucket") == rows(path, "SELECT held FROM flow")
        holds = "SELECT count(*) FROM hold WHERE seq NOT IN (SELECT seq FROM message WHERE state = 2)"
        assert rows(path, holds) == [(0,)]
