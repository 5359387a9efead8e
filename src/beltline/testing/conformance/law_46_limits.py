"""Never do more messages start in any time than a limit's burst and rate allow: the receive itself counts, and what waits behind a closed limit blocks nobody else."""

from beltline.core.flow import Claim, Limit
from beltline.core.names import MessageId, QueueName
from beltline.core.outcome import Ack
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Harness, Time
from beltline.testing.conformance.kit import API, LEASE_S, NEXT, TWO, WORK

POWERS = ("Limits", "Control", "Browse")


async def _started(engine: Full, limit: int = 100, queue: QueueName = WORK) -> int:
    """How many start now; each is acknowledged at once."""
    deliveries = await kit.take(engine, queue, limit=limit)
    for delivery in deliveries:
        await kit.ok(engine, delivery)
    return len(deliveries)


async def the_burst_may_start_at_once_and_then_the_rate(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, rate=2.0, burst=3.0)
    await kit.send(engine, *kit.limited(10))
    assert await _started(engine) == 3
    time.advance(0.25)
    assert await _started(engine) == 0
    time.advance(0.25)
    assert await _started(engine) == 1
    time.advance(1.0)
    assert await _started(engine) == 2


async def one_receive_closes_about_a_thousand_lanes_and_whoever_waits_looks_on(engine: Full) -> None:
    await kit.set_limit(engine, concurrency=0)
    await kit.send(engine, *(kit.shaped(claims=(Claim(API, f"key {number}"),)) for number in range(1200)))
    free = await kit.send_one(engine)
    found: list[MessageId] = []
    for _ in range(3):  # a store may find it in the second look
        found += kit.ids(await engine.receive([WORK], limit=1, lease_s=LEASE_S, wait_s=0.0 if found else 5.0))
    assert found == [free.id]
    assert (await engine.counts(WORK)).held == 1200


async def after_a_rest_the_burst_may_start_and_no_more(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, rate=2.0, burst=3.0)
    await kit.send(engine, *kit.limited(20))
    await _started(engine)
    time.advance(3600.0)
    assert await _started(engine) == 3


async def without_a_burst_a_fifth_of_a_second_and_at_least_one_may_start_at_once(engine: Full) -> None:
    await kit.set_limit(engine, "fast", rate=50.0)
    await kit.set_limit(engine, "slow", rate=1.0, per_s=3600.0)
    await kit.send(engine, *kit.limited(20, limit="fast"), *kit.limited(3, NEXT, limit="slow"))
    assert (await _started(engine), await _started(engine, queue=NEXT)) == (10, 1)


async def a_rate_may_be_said_over_any_time(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, rate=4.0, per_s=3600.0, burst=1.0)
    await kit.send(engine, *kit.limited(3))
    assert await _started(engine) == 1
    time.advance(899.0)
    assert await _started(engine) == 0
    time.advance(1.0)
    assert await _started(engine) == 1


async def a_cost_uses_up_as_many_starts(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, rate=1.0, burst=4.0)
    await kit.send(engine, *kit.limited(4, cost=1.5))
    assert await _started(engine) == 2
    time.advance(0.25)
    assert await _started(engine) == 0
    time.advance(0.25)
    assert await _started(engine) == 1


async def a_cost_of_nothing_never_waits(engine: Full) -> None:
    await kit.set_limit(engine, rate=1.0, burst=1.0)
    await kit.send(engine, *kit.limited(1))
    assert await _started(engine) == 1
    await kit.send(engine, *kit.limited(5, cost=0.0, tenant="t"))
    assert await _started(engine) == 5


async def a_cost_above_the_burst_may_start_when_all_has_come_back(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, rate=1.0, burst=2.0)
    await kit.send(engine, *kit.limited(2, cost=5.0))
    assert await _started(engine) == 1
    time.advance(4.75)
    assert await _started(engine) == 0
    time.advance(0.25)
    assert await _started(engine) == 1


async def each_key_has_a_bucket_of_its_own(engine: Full) -> None:
    await kit.set_limit(engine, rate=1.0, burst=2.0)
    for key in ("x", "y", ""):
        await kit.send(engine, *kit.limited(3, key=key))
    deliveries = await kit.take(engine)
    assert sorted(claim.key for delivery in deliveries if delivery.message.flow for claim in delivery.message.flow.claims) == [
        "",
        "",
        "x",
        "x",
        "y",
        "y",
    ]


async def what_waits_behind_a_limit_blocks_nobody(engine: Full) -> None:
    await kit.set_limit(engine, rate=1.0, burst=1.0)
    await kit.send(engine, *kit.limited(50, priority=5), *kit.limited(50, tenant="t"))
    assert await _started(engine) == 1
    free = await kit.send(engine, *kit.messages(3), *(kit.shaped(tenant="t") for _ in range(3)))
    assert {each.message.id for each in await kit.take(engine)} == {message.id for message in free}


async def a_message_starts_when_each_of_its_limits_allows_it(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, "a", rate=1.0, burst=1.0)
    await kit.set_limit(engine, "b", rate=0.5, burst=1.0)
    await kit.send(engine, *(kit.shaped(claims=[Claim("a"), Claim("b", "k")]) for _ in range(3)))
    assert await _started(engine) == 1
    time.advance(1.0)
    assert await _started(engine) == 0
    time.advance(1.0)
    assert await _started(engine) == 1


async def a_start_that_one_limit_refuses_uses_up_nothing_of_the_others(engine: Full) -> None:
    await kit.set_limit(engine, "a", rate=1.0, burst=1.0)
    await kit.set_limit(engine, "b", concurrency=0)
    await kit.send(engine, kit.shaped(claims=[Claim("a"), Claim("b")]))
    assert await _started(engine) == 0
    await kit.send(engine, kit.shaped(claims=[Claim("a")]))
    assert await _started(engine) == 1


async def the_first_of_its_limits_that_refuses_is_told(engine: Full) -> None:
    for name in ("a", "b"):
        await kit.set_limit(engine, name, concurrency=0)
    await kit.send(engine, kit.shaped(claims=[Claim("b"), Claim("a")]), kit.shaped(claims=[Claim("a"), Claim("b")]))
    await kit.send(engine, kit.shaped(claims=[Claim("free"), Claim("b")]))
    assert await _started(engine) == 0
    assert [(view.name, view.waiting) for view in await engine.limits()] == [("a", 1), ("b", 2)]


async def a_limit_that_nobody_has_told_bounds_nothing(engine: Full) -> None:
    await kit.send(engine, *kit.limited(30))
    assert len(await kit.take(engine, limit=20)) == 20
    await kit.set_limit(engine, concurrency=21)
    assert len(await kit.take(engine)) == 1


async def a_limit_of_a_queue_counts_every_start_in_it(engine: Full, time: Time) -> None:
    await engine.declare([kit.specs(WORK, limits=(API,))])
    await engine.declare_limits([Limit(name=API, rate=2.0, burst=3.0)])
    await kit.send(engine, *kit.messages(3), *(kit.shaped(tenant="t") for _ in range(3)), *kit.messages(3, NEXT))
    assert await _started(engine, limit=2) == 2
    assert await _started(engine) == 1
    assert await _started(engine, queue=NEXT) == 3
    time.advance(0.5)
    assert await _started(engine) == 1
    time.advance(60.0)
    assert await _started(engine) == 2


async def a_limit_of_two_queues_and_of_messages_is_one(engine: Full) -> None:
    await engine.declare([kit.specs(WORK, limits=(API,)), kit.specs(NEXT, limits=(API,))])
    await kit.set_limit(engine, rate=1.0, burst=4.0)
    await kit.send(engine, *kit.messages(2), *kit.messages(9, NEXT), *kit.limited(3, kit.OTHER))
    assert await _started(engine) == 2
    assert await _started(engine, 1, kit.OTHER) == 1
    assert await _started(engine, queue=NEXT) == 1
    assert await _started(engine, queue=kit.OTHER) == 0


async def a_claim_on_a_limit_of_its_own_queue_is_charged_beside_the_queues_start(engine: Full, time: Time) -> None:
    await engine.declare([kit.specs(WORK, limits=(API,))])
    await kit.set_limit(engine, rate=1.0, burst=4.0)
    await kit.send(engine, *kit.limited(6))
    assert await _started(engine) == 2
    time.advance(4.0)
    assert await _started(engine, limit=1) == 1
    assert await _started(engine) == 1
    time.advance(2.0)
    assert await _started(engine) == 1


async def all_limits_of_a_queue_are_kept(engine: Full) -> None:
    await engine.declare([kit.specs(WORK, limits=("a", "b", "free"))])
    await kit.set_limit(engine, "a", rate=1.0, burst=4.0)
    await kit.set_limit(engine, "b", concurrency=2)
    await kit.send(engine, *kit.messages(9))
    assert len(await kit.take(engine)) == 2
    assert len(await kit.take(engine)) == 0


async def every_hand_out_is_a_start_also_after_a_retry_a_release_and_a_lost_lease(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, rate=0.125, burst=1.0)
    await kit.send(engine, *kit.limited(1))
    await kit.retry(engine, await kit.take_one(engine))
    assert await kit.take(engine) == []
    time.advance(8.0)
    await kit.release(engine, await kit.take_one(engine))
    assert await kit.take(engine) == []
    time.advance(8.0)
    await kit.take_one(engine, lease_s=2.0)
    time.advance(2.0)
    assert await kit.take(engine) == []
    time.advance(6.0)
    assert (await kit.take_one(engine)).lost == 1


async def a_lease_that_is_over_and_may_not_start_again_stays_its_holders(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, rate=0.01, burst=1.0)
    await kit.send(engine, *kit.limited(1))
    held = await kit.take_one(engine)
    time.advance(LEASE_S)
    assert await kit.take(engine, worker=TWO) == []
    view = await engine.get(held.message.id)
    assert (view.state, view.epoch, view.lost) == ("ready", held.receipt.epoch, 0)
    await kit.ok(engine, held)


async def one_that_may_not_start_again_can_be_cancelled(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, rate=0.01, burst=1.0)
    await kit.send(engine, *kit.limited(1))
    held = await kit.take_one(engine)
    time.advance(LEASE_S)
    assert await kit.take(engine) == []
    await engine.cancel([held.message.id])
    assert await kit.take(engine) == []
    assert (await engine.get(held.message.id)).outcome == "cancelled"


async def hand_offs_wait_for_their_limits_too(engine: Full) -> None:
    await kit.set_limit(engine, rate=1.0, burst=2.0)
    await kit.send_one(engine)
    await kit.ok(engine, await kit.take_one(engine), Ack(then=tuple(kit.limited(5, NEXT))))
    assert await _started(engine, queue=NEXT) == 2


async def a_lane_that_has_emptied_is_open_again(engine: Full) -> None:
    await kit.set_limit(engine, rate=1.0, per_s=3600.0)
    await kit.send(engine, *kit.limited(1))
    await kit.take_one(engine)
    [waiting] = await kit.send(engine, *kit.limited(1))
    assert await kit.take(engine) == []
    assert (await engine.counts(WORK)).held == 1
    await engine.cancel([waiting.id])
    await kit.send(engine, *kit.limited(1))
    assert (await engine.counts(WORK)).held == 0
    assert await kit.take(engine) == []
    assert (await engine.counts(WORK)).held == 1


async def at_most_two_hundred_lanes_are_opened_by_one_receive_the_first_to_open_first(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, rate=1.0, burst=1.0)
    await kit.send(engine, *(message for number in range(250) for message in kit.limited(2, key=f"k{number:03}")))
    assert len(await kit.take(engine, limit=250)) == 250
    assert await kit.take(engine, limit=250) == []
    time.advance(1.0)
    first = await kit.take(engine, limit=500)
    assert sorted(claim.key for each in first if each.message.flow for claim in each.message.flow.claims) == [
        f"k{number:03}" for number in range(200)
    ]
    assert len(await kit.take(engine, limit=500)) == 50


async def never_more_start_than_burst_and_rate_allow_whoever_asks_and_when(engine: Full, time: Time) -> None:
    """I15: starts in any window T <= burst + rate * T, for every key."""
    rate, burst, dice = 4.0, 3.0, kit.dice(15)
    await kit.set_limit(engine, rate=rate, burst=burst)
    await engine.declare([kit.specs(NEXT, limits=(API,))])
    starts: dict[str, list[float]] = {"": [], "x": []}
    for _ in range(150):
        await kit.send(engine, *kit.limited(dice.randint(0, 2), key="x", tenant=dice.choice(("", "t"))), *kit.messages(dice.randint(0, 2), NEXT))
        for delivery in await engine.receive(
            [WORK, NEXT], limit=dice.randint(1, 9), lease_s=dice.choice((1.0, LEASE_S)), worker=dice.choice((kit.ONE, TWO))
        ):
            starts["x" if delivery.message.flow is not None else ""].append(await engine.now())
            if dice.random() < 0.7:
                await kit.ok(engine, delivery, dice.choice((Ack(), kit.retried())))
        time.advance(dice.choice((0.0, 0.05, 0.1, 0.25, 0.3, 2.0)))
    for key, instants in starts.items():
        assert len(instants) > 60, key
        for first in range(len(instants)):
            for last in range(first, len(instants)):
                assert last - first + 1 <= burst + rate * (instants[last] - instants[first]) + 0.01


async def of_many_receivers_at_once_together_no_more_start(engine: Full) -> None:
    await kit.set_limit(engine, rate=1.0, burst=5.0)
    await kit.send(engine, *kit.limited(30, key="x"))
    batches = await kit.in_threads(*[lambda: kit.take(engine, limit=3)] * 8)
    assert sum(len(batch) for batch in batches) == 5


async def time_alone_opens_a_limit_and_wakes_a_waiting_receive(harness: Harness) -> None:
    engine: Full = harness.engine()  # type: ignore[assignment]
    await engine.open()
    try:
        await engine.declare([kit.specs(WORK), kit.specs(NEXT, limits=("queue",))])
        await kit.set_limit(engine, rate=10.0, burst=1.0)
        await kit.set_limit(engine, "queue", rate=10.0, burst=1.0)
        await kit.send(engine, *kit.limited(2), *kit.messages(2, NEXT))
        for queue in (WORK, NEXT):
            await kit.take_one(engine, queue)
            assert len(await kit.wait_for_one(engine, queue)) == 1
    finally:
        await engine.close()
