"""The ready messages that no further slot would let start, behind their group, a limit, or in a queue that stands still, are counted apart: no fleet grows for them."""

from typing import Any

from beltline.core.flow import KillSwitch
from beltline.core.outcome import Ack, RetryAfter, Settlement
from beltline.core.queues import COUNTED
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import API, LEASE_S, NEXT, WORK

POWERS = ("Limits", "Control")


async def _ready_and_held(engine: Full) -> tuple[int, int]:
    counts = await engine.counts(WORK)
    return counts.ready, counts.held


async def of_a_group_only_the_head_could_start_and_nothing_while_it_is_leased(engine: Full) -> None:
    await kit.send(engine, *kit.messages(5, group="g"), *kit.messages(3, group="h"), *kit.messages(2), *kit.messages(4, NEXT, group="g"))
    assert await _ready_and_held(engine) == (10, 6)
    deliveries = await kit.take(engine)
    assert len(deliveries) == 4
    assert await _ready_and_held(engine) == (6, 6)
    for delivery in deliveries:
        await kit.ok(engine, delivery)
    assert await _ready_and_held(engine) == (6, 4)


async def behind_a_head_that_is_delayed_or_dead_nothing_could_start(engine: Full, time: Time) -> None:
    await kit.send(engine, kit.message(group="g", delay_s=60.0), *kit.messages(2, group="g", delay_s=30.0), *kit.messages(2, group="g"))
    assert await _ready_and_held(engine) == (2, 2)
    time.advance(30.0)
    assert await _ready_and_held(engine) == (4, 4)
    assert await kit.take(engine) == []
    assert await _ready_and_held(engine) == (4, 4)
    time.advance(30.0)
    assert await _ready_and_held(engine) == (5, 4)
    await kit.bury(engine, await kit.take_one(engine))
    assert await _ready_and_held(engine) == (4, 4)


async def a_lease_that_is_over_could_start_and_those_behind_it_could_not(engine: Full, time: Time) -> None:
    await kit.send(engine, *kit.messages(3, group="g"), kit.message())
    assert len(await kit.take(engine)) == 2
    time.advance(LEASE_S)
    assert await _ready_and_held(engine) == (4, 2)
    assert len(await kit.take(engine)) == 2


async def beyond_what_the_limits_of_a_queue_allow_nothing_could_start(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, rate=1.0, burst=4.0)
    await kit.set_limit(engine, "places", concurrency=6)
    await engine.declare([kit.specs(WORK, limits=(API, "places"))])
    await kit.send(engine, *kit.messages(10))
    assert await _ready_and_held(engine) == (10, 6)
    assert len(await kit.take(engine)) == 4
    assert await _ready_and_held(engine) == (6, 6)
    time.advance(1.0)
    assert await _ready_and_held(engine) == (6, 5)
    time.advance(3.0)
    assert await _ready_and_held(engine) == (6, 4)  # two places
    await kit.set_limit(engine, concurrency=2)
    assert await _ready_and_held(engine) == (6, 6)
    await engine.declare([kit.specs(WORK)])
    assert await _ready_and_held(engine) == (6, 0)


async def of_those_behind_a_closed_limit_none_is_counted_twice(engine: Full) -> None:
    """Their lane is closed, most of them stand behind their group too, and the limit of the queue lets a few of the others start."""
    await kit.set_limit(engine, concurrency=1)
    await kit.send(engine, *kit.limited(4, group="g", key="x"), *kit.limited(3, key="x"), *kit.limited(2, group="h", key="y"))
    assert len(await kit.take(engine)) == 2
    assert await _ready_and_held(engine) == (7, 7)
    await kit.send(engine, *kit.messages(3, group="i"), kit.message(), kit.shaped(tenant="t"), *(kit.shaped(tenant="t", group="j") for _ in range(5)))
    assert await _ready_and_held(engine) == (17, 13)
    await kit.set_limit(engine, "places", concurrency=4)
    await engine.declare([kit.specs(WORK, limits=("places",))])
    assert await _ready_and_held(engine) == (17, 15)
    assert len(await kit.take(engine)) == 2


async def many_behind_one_head_are_told_from_the_few_that_could_start(engine: Full) -> None:
    """More than are walked: then what stands in front is, up to as many."""
    for _ in range(6):
        await kit.send(engine, *kit.messages(COUNTED // 5, group="g"))
    await kit.send(engine, *kit.messages(3), *(kit.shaped(tenant="t", group="h") for _ in range(4)), kit.shaped(tenant="t"))
    assert await _ready_and_held(engine) == (COUNTED // 5 * 6 + 8, COUNTED // 5 * 6 + 2)
    for _ in range(6):
        await kit.send(engine, *kit.messages(COUNTED // 5))
    ready, held = await _ready_and_held(engine)
    assert COUNTED <= ready - held <= COUNTED // 5 * 6 + 6


async def nothing_could_start_in_a_queue_that_is_paused_or_snoozed(engine: Full, time: Time) -> None:
    await kit.send(engine, *kit.messages(3), *kit.messages(2, group="g"))
    await kit.take_one(engine)
    time.advance(LEASE_S)
    await engine.pause(WORK)
    assert await _ready_and_held(engine) == (5, 5)
    await engine.resume(WORK)
    assert await _ready_and_held(engine) == (5, 1)
    await engine.snooze(WORK, seconds=60.0)
    assert await _ready_and_held(engine) == (5, 5)
    time.advance(60.0)
    assert await _ready_and_held(engine) == (5, 1)


async def of_a_queue_whose_kill_switch_has_tripped_the_few_that_may_try_could_start(engine: Full, time: Time) -> None:
    await engine.declare([kit.specs(WORK, kill_switch=KillSwitch(share=0.5, least=4, window_s=60.0, pause_s=30.0, tries=2))])
    await kit.send(engine, *kit.messages(10))
    bad = RetryAfter(delay_s=0.0, failure=kit.failure())
    await engine.settle([Settlement(delivery.receipt, bad) for delivery in await kit.take(engine, limit=4)])
    assert await _ready_and_held(engine) == (10, 10)
    time.advance(30.0)
    assert await _ready_and_held(engine) == (10, 8)
    first = await kit.take_one(engine)
    assert await _ready_and_held(engine) == (9, 8)
    await kit.ok(engine, first)
    assert await _ready_and_held(engine) == (9, 8)
    await kit.ok(engine, await kit.take_one(engine))
    assert await _ready_and_held(engine) == (8, 0)


async def what_is_not_held_is_what_a_receive_hands_out(engine: Full, time: Time) -> None:
    """After a random history, of groups, tenants, delays, leases that are over, and a queue with a limit of both kinds."""
    dice = kit.dice(55)
    await kit.set_limit(engine, rate=2.0, burst=9.0, concurrency=14)
    await engine.declare([kit.specs(WORK, limits=(API,), max_deliveries=1000)])
    for _ in range(60):
        for _ in range(dice.randint(0, 6)):
            options: dict[str, Any] = {
                "group": dice.choice((None, "g", "h", "i")),
                "delay_s": dice.choice((0.0, 0.0, 0.0, 10.0)),
                "tenant": dice.choice(("", "t", "u")),
            }
            await kit.send(engine, kit.shaped(**options))
        time.advance(dice.choice((0.0, 1.0, 5.0, LEASE_S)))
        counts = await engine.counts(WORK)
        deliveries = await kit.take(engine)
        assert len(deliveries) == counts.ready - counts.held
        for delivery in deliveries:
            way = dice.random()
            if way < 0.4:
                await kit.ok(engine, delivery, Ack())
            elif way < 0.6:
                await kit.retry(engine, delivery, dice.choice((0.0, 10.0)))
            elif way < 0.65:
                await kit.bury(engine, delivery)
            elif way < 0.7:
                await engine.cancel([delivery.message.id])
