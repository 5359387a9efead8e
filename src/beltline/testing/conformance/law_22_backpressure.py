"""A full next stage stalls the receive of the stage before it, never a settle: above its high-water mark nothing more is handed out upstream, and it goes on at the low-water mark."""

from beltline.core.capabilities import HandOff
from beltline.core.message import Delivery
from beltline.core.outcome import Ack
from beltline.core.queues import Feed
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LAST, LEASE_S, NEXT, OTHER, WORK

NEEDS = {"hand_off": HandOff.ATOMIC}
POWERS = ("Browse",)


async def _line(engine: Full, *, fan_out: int = 1, high: float = 5, low: float = 2) -> None:
    await engine.declare([kit.specs(WORK, feeds=(Feed(NEXT, fan_out),)), kit.specs(NEXT, high_water=high, low_water=low)])


async def _hand_on(engine: Full, deliveries: list[Delivery], fan_out: int = 1) -> None:
    for delivery in deliveries:
        await kit.ok(engine, delivery, Ack(then=tuple(kit.messages(fan_out, NEXT))))


async def the_stage_before_stops_at_high_water(engine: Full) -> None:
    await _line(engine)
    await kit.send(engine, *kit.messages(20))
    for _ in range(10):
        await _hand_on(engine, await kit.take(engine, limit=2))
        assert await kit.ready(engine, NEXT) <= 5
    assert await kit.ready(engine, NEXT) >= 4
    assert await kit.take(engine) == []


async def what_is_on_its_way_counts(engine: Full) -> None:
    await _line(engine)
    await kit.send(engine, *kit.messages(20))
    held = await kit.take(engine, limit=100)
    assert len(held) == 5
    assert await kit.take(engine) == []
    await _hand_on(engine, held)
    assert await kit.ready(engine, NEXT) == 5
    assert await kit.take(engine) == []


async def it_goes_on_at_low_water_not_before(engine: Full) -> None:
    await _line(engine)
    await kit.send(engine, *kit.messages(20))
    await _hand_on(engine, await kit.take(engine))
    assert await kit.take(engine) == []
    for left in (4, 3):
        await kit.ok(engine, await kit.take_one(engine, NEXT))
        assert await kit.ready(engine, NEXT) == left
        assert await kit.take(engine) == []
    await kit.ok(engine, await kit.take_one(engine, NEXT))
    assert 0 < len(await kit.take(engine)) <= 3


async def a_settle_is_never_stalled(engine: Full) -> None:
    await _line(engine, fan_out=1, high=2, low=1)
    await kit.send(engine, *kit.messages(2))
    held = await kit.take(engine)
    await kit.send(engine, *kit.messages(10, NEXT))
    await _hand_on(engine, held, fan_out=3)
    assert await kit.ready(engine, NEXT) == 16


async def a_split_counts_with_its_fan_out(engine: Full) -> None:
    await _line(engine, fan_out=3, high=10, low=3)
    await kit.send(engine, *kit.messages(20))
    held = await kit.take(engine)
    assert len(held) == 3
    await _hand_on(engine, held, fan_out=3)
    assert await kit.ready(engine, NEXT) == 9


async def an_empty_stage_always_gets_one_item_however_wide_the_split(engine: Full) -> None:
    await _line(engine, fan_out=100, high=10, low=3)
    await kit.send(engine, *kit.messages(3))
    held = await kit.take(engine)
    assert len(held) == 1
    await _hand_on(engine, held, fan_out=100)
    assert await kit.take(engine) == []
    await kit.finish(engine, NEXT)
    assert len(await kit.take(engine)) == 1


async def a_stalled_stage_stalls_nobody_else(engine: Full) -> None:
    await _line(engine)
    await kit.send(engine, *kit.messages(10, NEXT), *kit.messages(3), *kit.messages(3, OTHER))
    deliveries = await engine.receive([WORK, OTHER, NEXT], limit=5, lease_s=LEASE_S)
    assert [each.message.queue for each in deliveries] == [OTHER] * 3 + [NEXT] * 2


async def of_two_next_stages_the_fuller_one_decides(engine: Full) -> None:
    await engine.declare(
        [kit.specs(WORK, feeds=(Feed(NEXT), Feed(LAST))), kit.specs(NEXT, high_water=100, low_water=50), kit.specs(LAST, high_water=2, low_water=1)]
    )
    await kit.send(engine, *kit.messages(10))
    assert len(await kit.take(engine)) == 2


async def two_stages_before_share_the_room(engine: Full) -> None:
    await engine.declare([kit.specs(WORK, feeds=(Feed(NEXT),)), kit.specs(OTHER, feeds=(Feed(NEXT),)), kit.specs(NEXT, high_water=6, low_water=3)])
    await kit.send(engine, *kit.messages(10), *kit.messages(10, OTHER))
    assert len(await kit.take(engine, WORK, limit=4)) == 4
    assert len(await kit.take(engine, OTHER)) == 2
    assert await kit.take(engine, WORK) == []


async def a_lease_lost_upstream_comes_back_even_when_stalled(engine: Full, time: Time) -> None:
    """Its room is taken already; otherwise a crash would dead-lock the line."""
    await _line(engine)
    await kit.send(engine, *kit.messages(20))
    held = await kit.take(engine)
    assert await kit.take(engine) == []
    time.advance(LEASE_S)
    back = await kit.take(engine)
    assert {delivery.message.id for delivery in held} <= {delivery.message.id for delivery in back}


async def the_whole_line_drains(engine: Full) -> None:
    await engine.declare(
        [
            kit.specs(WORK, feeds=(Feed(NEXT, 3),)),
            kit.specs(NEXT, high_water=7, low_water=2, feeds=(Feed(LAST),)),
            kit.specs(LAST, high_water=2, low_water=1),
        ]
    )
    await kit.send(engine, *kit.messages(30))
    for _ in range(1000):
        await _hand_on(engine, await kit.take(engine, limit=2), fan_out=3)
        for delivery in await kit.take(engine, NEXT, limit=3):
            await kit.ok(engine, delivery, Ack(then=(kit.message(LAST),)))
        for delivery in await kit.take(engine, LAST, limit=1):
            await kit.ok(engine, delivery)
        if (await engine.counts(LAST)).done == 90:
            break
    assert (await engine.counts(LAST)).done == 90
