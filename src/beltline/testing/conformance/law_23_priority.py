"""Larger priorities go first, equal ones in the order they were sent, and waiting counts: a point of priority is worth a fixed time of waiting, so that nothing starves."""

import math

from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import WORK

NEEDS = {"priorities": math.inf}
POWERS = ("Control",)


async def larger_priorities_go_first(engine: Full) -> None:
    sent = await kit.send(engine, *(kit.message(priority=priority) for priority in (0, 5, -100, 100, -1, 5)))
    order = [sent[index].id for index in (3, 1, 5, 0, 4, 2)]
    assert await kit.finish(engine) == order


async def equal_priorities_keep_the_order_of_sending(engine: Full, time: Time) -> None:
    sent = []
    for _ in range(10):
        sent.append(await kit.send_one(engine, priority=3))
        time.advance(1.0)
    assert await kit.finish(engine) == [message.id for message in sent]


async def waiting_overtakes_priority(engine: Full, time: Time) -> None:
    await engine.declare([kit.specs(WORK, ageing_s=60.0)])
    old = await kit.send_one(engine, priority=0)
    time.advance(119.0)
    still_before = await kit.send_one(engine, priority=2)
    time.advance(2.0)
    too_late = await kit.send_one(engine, priority=2)
    assert await kit.finish(engine) == [still_before.id, old.id, too_late.id]


async def a_low_priority_message_never_starves(engine: Full, time: Time) -> None:
    await engine.declare([kit.specs(WORK, ageing_s=10.0)])
    old = await kit.send_one(engine, priority=-10)
    for _ in range(40):
        await kit.send(engine, *kit.messages(2, priority=10))
        for delivery in await kit.take(engine, limit=2):
            await kit.ok(engine, delivery)
            if delivery.message.id == old.id:
                return
        time.advance(10.0)
    raise AssertionError("it waited for more than its priority is worth")


async def strict_priorities_can_be_declared(engine: Full, time: Time) -> None:
    await engine.declare([kit.specs(WORK, ageing_s=math.inf)])
    low = await kit.send_one(engine, priority=0)
    time.advance(86400.0 * 365)
    high = await kit.send_one(engine, priority=1)
    assert await kit.finish(engine) == [high.id, low.id]


async def with_strict_priorities_equal_ones_keep_their_order(engine: Full, time: Time) -> None:
    await engine.declare([kit.specs(WORK, ageing_s=math.inf)])
    sent = []
    for _ in range(5):
        sent.append(await kit.send_one(engine, priority=100))
        time.advance(0.25)
    assert await kit.finish(engine) == [message.id for message in sent]


async def a_delayed_message_ages_from_the_instant_it_is_ready(engine: Full, time: Time) -> None:
    await engine.declare([kit.specs(WORK, ageing_s=60.0)])
    delayed = await kit.send_one(engine, delay_s=1000.0)
    time.advance(999.0)
    waiting = await kit.send_one(engine)
    time.advance(1.0)
    assert await kit.finish(engine) == [waiting.id, delayed.id]


async def a_retried_message_keeps_its_priority(engine: Full, time: Time) -> None:
    high = await kit.send_one(engine, priority=5)
    await kit.retry(engine, await kit.take_one(engine), 1.0)
    low = await kit.send_one(engine)
    time.advance(1.0)
    assert await kit.finish(engine) == [high.id, low.id]


async def priorities_are_those_of_one_queue(engine: Full) -> None:
    low, high = await kit.send(engine, kit.message(WORK, priority=-100), kit.message(kit.NEXT, priority=100))
    deliveries = await engine.receive([WORK, kit.NEXT], limit=1, lease_s=kit.LEASE_S)
    assert kit.ids(deliveries) == [low.id]
    assert await kit.finish(engine, kit.NEXT) == [high.id]
