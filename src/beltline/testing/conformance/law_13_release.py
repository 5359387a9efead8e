"""Releasing a message gives it back without costing it an attempt."""

from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LEASE_S, ONE, WORK

POWERS = ("Browse",)
UNKNOWN_TASK = "no worker knows this task"


async def a_released_message_can_be_received_at_once_and_has_lost_no_attempt(engine: Full) -> None:
    await kit.send_one(engine)
    for before in range(20):
        delivery = await kit.take_one(engine)
        assert (delivery.attempt, delivery.failed, delivery.lost) == (1, 0, 0)
        assert delivery.receipt.epoch == before + 1
        await kit.release(engine, delivery)


async def a_released_message_keeps_its_place_in_the_queue(engine: Full, time: Time) -> None:
    sent = [await kit.send_one(engine) for _ in range(3)]
    delivery = await kit.take_one(engine)
    time.advance(5.0)
    await kit.release(engine, delivery)
    assert kit.ids(await kit.take(engine)) == [message.id for message in sent]


async def a_release_keeps_the_counters_it_found(engine: Full, time: Time) -> None:
    await kit.send_one(engine)
    await kit.retry(engine, await kit.take_one(engine))
    await kit.take_one(engine)
    time.advance(LEASE_S)
    await kit.release(engine, await kit.take_one(engine))
    delivery = await kit.take_one(engine)
    assert (delivery.failed, delivery.lost, delivery.attempt) == (1, 1, 3)


async def a_release_may_wait(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    await kit.release(engine, await kit.take_one(engine), 60.0, "snoozed")
    view = await engine.get(sent.id)
    assert (view.state, view.why, view.due_at) == ("delayed", "snoozed", await engine.now() + 60.0)
    time.advance(59.0)
    assert await kit.take(engine) == []
    time.advance(1.0)
    assert (await kit.take_one(engine)).attempt == 1


async def the_history_says_that_it_was_released_and_why(engine: Full) -> None:
    sent = await kit.send_one(engine)
    await kit.release(engine, await kit.take_one(engine, worker=ONE), why="drained")
    [attempt] = (await engine.get(sent.id)).attempts
    assert (attempt.outcome, attempt.note, attempt.worker) == ("release", "drained", ONE)


async def messages_whose_task_nobody_knows_are_counted_as_parked(engine: Full, time: Time) -> None:
    await kit.send(engine, *kit.messages(3))
    for delivery in await kit.take(engine, limit=2):
        await kit.release(engine, delivery, 5.0, UNKNOWN_TASK)
    counts = await engine.counts(WORK)
    assert (counts.parked, counts.delayed, counts.ready) == (2, 2, 1)
    time.advance(5.0)
    counts = await engine.counts(WORK)
    assert (counts.parked, counts.delayed, counts.ready) == (2, 0, 3)
    await kit.take(engine)
    assert (await engine.counts(WORK)).parked == 0
