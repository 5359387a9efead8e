"""A retry comes back when its delay is over, never before, and counts one failed attempt."""

from beltline.core.outcome import RetryAfter
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LEASE_S, ONE, WORK

POWERS = ("Browse",)


async def a_retry_is_not_received_before_it_is_due(engine: Full, time: Time) -> None:
    await kit.send_one(engine)
    await kit.retry(engine, await kit.take_one(engine), 60.0)
    counts = await engine.counts(WORK)
    assert (counts.delayed, counts.ready, counts.leased) == (1, 0, 0)
    time.advance(59.75)
    assert await kit.take(engine) == []
    time.advance(0.25)
    assert len(await kit.take(engine)) == 1


async def a_failed_attempt_is_counted(engine: Full) -> None:
    await kit.send_one(engine)
    for failed in range(5):
        delivery = await kit.take_one(engine)
        assert (delivery.failed, delivery.lost, delivery.attempt) == (failed, 0, failed + 1)
        assert delivery.receipt.epoch == failed + 1
        await kit.retry(engine, delivery)


async def a_runner_that_died_is_counted_as_lost_not_as_failed(engine: Full) -> None:
    await kit.send_one(engine)
    await kit.retry(engine, await kit.take_one(engine), lost=True)
    delivery = await kit.take_one(engine)
    assert (delivery.failed, delivery.lost, delivery.attempt) == (0, 1, 2)


async def a_long_retry_is_kept_as_long_as_it_says(engine: Full, time: Time) -> None:
    await kit.send_one(engine)
    await kit.retry(engine, await kit.take_one(engine), 400 * 86400.0)
    time.advance(400 * 86400.0 - 1)
    assert await kit.take(engine) == []
    time.advance(1.0)
    assert len(await kit.take(engine)) == 1


async def the_history_keeps_every_failure(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    first, second = kit.failure("requests.ConnectError", "no route"), kit.failure("builtins.OSError", "disk\x00full \U0001f5bc")
    started_at = await engine.now()
    delivery = await kit.take_one(engine, worker=ONE)
    time.advance(3.0)
    await kit.ok(engine, delivery, RetryAfter(delay_s=0.0, failure=first, ran_s=2.5))
    await kit.retry(engine, await kit.take_one(engine), error=second)
    attempts = (await engine.get(sent.id)).attempts
    assert [(each.epoch, each.outcome, each.failure) for each in attempts] == [(1, "retry", first), (2, "retry", second)]
    assert (attempts[0].worker, attempts[0].started_at, attempts[0].ended_at, attempts[0].ran_s) == (ONE, started_at, started_at + 3.0, 2.5)


async def retries_of_several_messages_come_back_by_their_due_time(engine: Full, time: Time) -> None:
    sent = await kit.send(engine, *kit.messages(3))
    for delivery, delay_s in zip(await kit.take(engine), (30.0, 10.0, 20.0), strict=True):
        await kit.retry(engine, delivery, delay_s)
    time.advance(LEASE_S)
    assert kit.ids(await kit.take(engine)) == [sent[1].id, sent[2].id, sent[0].id]


async def a_retry_without_delay_goes_behind_what_waits(engine: Full, time: Time) -> None:
    first = await kit.send_one(engine)
    second = await kit.send_one(engine)
    delivery = await kit.take_one(engine)
    time.advance(1.0)
    await kit.retry(engine, delivery)
    assert kit.ids(await kit.take(engine)) == [second.id, first.id]
