"""What the hostile tests of the PostgreSQL engine share: traffic that keeps a record of what it was promised, and a recount of the tables themselves."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import psycopg

from beltline.core.errors import EngineUnavailable
from beltline.core.outcome import Ack, Admission, Settled, Settlement
from beltline.core.queues import QueueSpec
from beltline.engines.postgres import PostgresEngine
from beltline.testing.conformance.kit import NEXT, QUEUES, WORK, message

T = TypeVar("T")
BOUND_S = 30.0
PATIENT = 10_000  # deliveries: answers that we make get lost are not the fault of a message

RECOUNT = """
SELECT q.name,
  ARRAY[(SELECT count(*) FROM beltline.ready WHERE queue = q.n) + (SELECT count(*) FROM beltline.flow_ready WHERE queue = q.n)
          + (SELECT count(*) FROM beltline.blocked WHERE queue = q.n AND was = 1),
        (SELECT count(*) FROM beltline.delayed WHERE queue = q.n) + (SELECT count(*) FROM beltline.blocked WHERE queue = q.n AND was = 0),
        (SELECT count(*) FROM beltline.lease WHERE queue = q.n), (SELECT count(*) FROM beltline.dead WHERE queue = q.n),
        (SELECT count(*) FROM beltline.done WHERE queue = q.n)]::bigint[],
  ARRAY(SELECT unnest(ARRAY[sum(ready), sum(delayed), sum(leased), sum(dead), sum(done)])::bigint
    FROM (SELECT queue, ready, delayed, leased, dead, done FROM beltline.tally UNION ALL SELECT queue, ready, delayed, leased, dead, done FROM beltline.delta) c
    WHERE c.queue = q.n)
FROM beltline.queue q"""
PLACES = """
SELECT b.id, count(p.id) FROM beltline.body b LEFT JOIN (
  SELECT id FROM beltline.ready UNION ALL SELECT id FROM beltline.flow_ready UNION ALL SELECT id FROM beltline.blocked UNION ALL SELECT id FROM beltline.delayed
  UNION ALL SELECT id FROM beltline.lease UNION ALL SELECT id FROM beltline.dead UNION ALL SELECT id FROM beltline.done) p ON p.id = b.id
GROUP BY b.id HAVING count(p.id) <> 1"""
RUNS = """
SELECT r.id, r.open, r.dead, count(b.id) FILTER (WHERE l.id IS NOT NULL), count(b.id) FILTER (WHERE d.id IS NOT NULL AND g.on_dead IS DISTINCT FROM 1)
FROM beltline.run r LEFT JOIN beltline.body b ON b.run = r.id LEFT JOIN beltline.dead d ON d.id = b.id
  LEFT JOIN beltline.gather g ON g.id = b.gather LEFT JOIN (   -- a dead part whose gather skips it does not count
  SELECT id FROM beltline.ready UNION ALL SELECT id FROM beltline.flow_ready UNION ALL SELECT id FROM beltline.blocked UNION ALL SELECT id FROM beltline.delayed
  UNION ALL SELECT id FROM beltline.lease) l ON l.id = b.id
GROUP BY r.id HAVING r.open <> count(b.id) FILTER (WHERE l.id IS NOT NULL) OR r.dead <> count(b.id) FILTER (WHERE d.id IS NOT NULL AND g.on_dead IS DISTINCT FROM 1)"""

LANES = """
SELECT l.n, l.name, l.messages + e.messages, l.leased + e.leased, l.heads + e.heads, l.ready + e.ready, n.messages, n.leased, n.heads, n.heads + n.behind
FROM beltline.flow_lane l CROSS JOIN LATERAL (
  SELECT coalesce(sum(messages), 0) AS messages, coalesce(sum(leased), 0) AS leased, coalesce(sum(heads), 0) AS heads, coalesce(sum(ready), 0) AS ready
  FROM beltline.flow_event WHERE lane = l.n) e CROSS JOIN LATERAL (
  SELECT count(*) AS messages, count(x.id) AS leased, count(r.id) AS heads, count(b.id) AS behind
  FROM beltline.flow_message m LEFT JOIN beltline.lease x ON x.id = m.id LEFT JOIN beltline.flow_ready r ON r.id = m.id
    LEFT JOIN beltline.blocked b ON b.id = m.id AND b.was = 1 WHERE m.lane = l.n) n
WHERE (l.messages + e.messages, l.leased + e.leased, l.heads + e.heads, l.ready + e.ready) <> (n.messages, n.leased, n.heads, n.heads + n.behind)"""
SHARES = """
SELECT s.n, s.tenant, s.leased, l.leased FROM beltline.flow_share s
  CROSS JOIN LATERAL (SELECT coalesce(sum(leased), 0) AS leased FROM beltline.flow_lane WHERE share = s.n) l WHERE NOT s.nobody AND s.leased <> l.leased
UNION ALL SELECT g.queue, 'all', g.lent, l.leased FROM beltline.flow g
  CROSS JOIN LATERAL (SELECT coalesce(sum(leased), 0) AS leased FROM beltline.flow_share WHERE queue = g.queue AND NOT nobody) l WHERE g.lent <> l.leased"""
STRAY_PLACES = "SELECT h.id, h.name, h.key FROM beltline.flow_hold h WHERE NOT EXISTS (SELECT FROM beltline.lease l WHERE l.id = h.id)"


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[PostgresEngine]:
    """An engine on an empty Beltline, or on one that is there."""
    engine = PostgresEngine(url, **options)
    await engine.open()
    try:
        await engine.declare([QueueSpec(name=name, max_deliveries=PATIENT) for name in QUEUES])
        yield engine
    finally:
        await asyncio.wait_for(engine.close(), BOUND_S)


def asked(url: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """One statement past the engine."""
    with psycopg.connect(url.partition("?")[0], autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []


def assert_sound(url: str) -> None:
    """Every message stands in exactly one place, and every counter says what is really there."""
    assert asked(url, PLACES) == []
    for queue, rows, counters in asked(url, RECOUNT):
        assert rows == [number or 0 for number in counters], queue
    assert (found := asked(url, RUNS)) == [], found
    assert (found := asked(url, LANES)) == [], found
    assert (found := asked(url, SHARES)) == [], found
    assert asked(url, STRAY_PLACES) == []


def begun(work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """Under way; the test itself ends it."""
    return asyncio.get_running_loop().create_task(work)


async def insist(
    work: Callable[[], Awaitable[T]], *, told: list[EngineUnavailable] | None = None, bound_s: float = BOUND_S
) -> tuple[T, list[EngineUnavailable]]:
    """What every caller does: repeat as long as the store is out of order. Returns the answer and the errors before it; `told` hears of them as they come."""
    errors: list[EngineUnavailable] = []
    deadline = time.monotonic() + bound_s
    while True:
        try:
            async with asyncio.timeout(bound_s):
                return await work(), errors
        except EngineUnavailable as error:
            errors.append(error)
            if told is not None:
                told.append(error)
            if time.monotonic() > deadline:
                raise AssertionError("still out of order") from error
            await asyncio.sleep(0.02)


async def until(holds: Callable[[], Any], bound_s: float = BOUND_S) -> None:
    """Poll what nobody tells us about."""
    end = time.monotonic() + bound_s
    while not holds():
        assert time.monotonic() < end, "it never happened"
        await asyncio.sleep(0.01)


class Traffic:
    """Senders with fixed ids, receivers and settlers, on one engine, until `stop`. `lease_s` is short: what an outage lost comes again soon.

    `acknowledged`  ids of sends that were answered         `unsure`  of those, the ones whose first answer was lost
    `repeats`       unsure ones that turned out to be stored already
    """

    def __init__(self, engine: PostgresEngine, *, lease_s: float = 2.0) -> None:
        self.engine = engine
        self.lease_s = lease_s
        self.acknowledged: set[str] = set()
        self.unsure: set[str] = set()
        self.repeats = 0
        self.settled: list[str] = []
        self.errors: list[EngineUnavailable] = []
        self.stopped = False

    async def send(self) -> None:
        while not self.stopped:
            batch = [message(), message()]
            [first, second], errors = await insist(lambda batch=batch: self.engine.send(batch), told=self.errors)
            assert first.admission is second.admission, "a batch is stored whole or not at all"
            if any(error.effect == "unknown" for error in errors):
                self.unsure |= {made.id for made in batch}
                self.repeats += first.admission is Admission.SAME_ID
            else:
                assert first.new, "nobody else sends this id"
            self.acknowledged |= {made.id for made in batch}

    async def work(self) -> None:
        while not self.stopped:
            await self.work_once(wait_s=0.2)

    async def work_once(self, wait_s: float = 0.0) -> int:
        deliveries, _ = await insist(lambda: self.engine.receive([WORK], limit=20, lease_s=self.lease_s, wait_s=wait_s), told=self.errors)
        batch = [Settlement(delivery.receipt, Ack()) for delivery in deliveries]
        if batch:
            answers, _ = await insist(lambda: self.engine.settle(batch), told=self.errors)
            self.settled += [done.receipt.id for done, answer in zip(batch, answers, strict=True) if answer is Settled.DONE]
        return len(deliveries)

    async def drained(self) -> None:
        """Until nothing is left, leases that nobody answered included."""
        end = time.monotonic() + BOUND_S
        while True:
            await self.work_once(wait_s=0.2)
            counts, _ = await insist(lambda: self.engine.counts(WORK))
            if not counts.ready and not counts.leased:
                return
            assert time.monotonic() < end, f"stuck: {counts}"

    def assert_nothing_lost(self, url: str) -> None:
        """Every message that was acknowledged was there once and has ended once."""
        done = [id.hex for (id,) in asked(url, "SELECT d.id FROM beltline.done d JOIN beltline.queue q ON q.n = d.queue WHERE q.name = 'work'")]
        assert len(done) == len(set(done))
        assert (self.acknowledged - set(done), set(done) - self.acknowledged) == (set(), set())
        assert len(self.settled) == len(set(self.settled))
        assert_sound(url)


@asynccontextmanager
async def traffic(engine: PostgresEngine, *, senders: int = 3, workers: int = 2) -> AsyncIterator[Traffic]:
    """Under way inside, drained afterwards."""
    going = Traffic(engine)
    async with asyncio.TaskGroup() as group:
        for _ in range(senders):
            group.create_task(going.send())
        for _ in range(workers):
            group.create_task(going.work())
        try:
            yield going
        finally:
            going.stopped = True
    await going.drained()


async def more(going: Traffic, number: int = 20, bound_s: float = BOUND_S) -> None:
    """Until so many more have been acknowledged, and some settled."""
    sent, settled = len(going.acknowledged) + number, len(going.settled) + 1
    await until(lambda: len(going.acknowledged) >= sent and len(going.settled) >= settled, bound_s)


__all__ = ["BOUND_S", "NEXT", "WORK", "Traffic", "asked", "assert_sound", "begun", "insist", "message", "more", "opened", "traffic", "until"]
