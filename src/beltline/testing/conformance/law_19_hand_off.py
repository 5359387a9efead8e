"""Ending a message and beginning the next is one write: every item that has entered a chain is at each instant in exactly one stage, dead, or done."""

import pytest

from beltline.core.capabilities import HandOff
from beltline.core.codec import pack
from beltline.core.errors import QueueNotDeclared
from beltline.core.names import QueueName
from beltline.core.outcome import Ack, DeadLetter, Release, RetryAfter, Settled, Settlement
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LAST, LEASE_S, NEXT, WORK

NEEDS = {"hand_off": HandOff.ATOMIC}
POWERS = ("Browse", "Results", "Runs")


async def the_next_message_is_there_when_the_ack_is(engine: Full) -> None:
    sent = await kit.send_one(engine)
    follower = kit.message(NEXT, body=pack("next"), headers={"trace": "t"}, priority=7)
    await kit.ok(engine, await kit.take_one(engine), Ack(then=(follower,)))
    assert await kit.state_of(engine, sent.id) == "done"
    assert (await kit.take_one(engine, NEXT)).message == follower


async def many_next_messages_go_to_many_queues_in_order(engine: Full) -> None:
    await kit.send_one(engine)
    then = tuple(kit.message([NEXT, LAST, WORK][number % 3]) for number in range(9))
    await kit.ok(engine, await kit.take_one(engine), Ack(then=then))
    for queue in (NEXT, LAST, WORK):
        assert await kit.finish(engine, queue) == [message.id for message in then if message.queue == queue]


async def the_next_message_may_be_delayed(engine: Full, time: Time) -> None:
    await kit.send_one(engine)
    await kit.ok(engine, await kit.take_one(engine), Ack(then=(kit.message(NEXT, delay_s=60.0),)))
    assert (await engine.counts(NEXT)).delayed == 1
    time.advance(60.0)
    assert len(await kit.take(engine, NEXT)) == 1


async def only_an_ack_hands_on(engine: Full, time: Time) -> None:
    [first] = await kit.send(engine, kit.placed())
    await kit.ok(engine, await kit.take_one(engine), RetryAfter(delay_s=0.0, failure=kit.failure()))
    await kit.ok(engine, await kit.take_one(engine), Release())
    await kit.take_one(engine)
    time.advance(LEASE_S)
    await kit.ok(engine, await kit.take_one(engine), DeadLetter(reason="x", failure=kit.failure()))
    assert [view.message.id for view in await kit.everything(engine)] == [first.id]


async def a_repeated_hand_off_makes_no_second_message(engine: Full) -> None:
    follower = kit.message(NEXT)
    await kit.send(engine, *kit.messages(2))
    first, second = await kit.take(engine)
    await kit.ok(engine, first, Ack(then=(follower, follower)))
    await kit.ok(engine, await kit.take_one(engine, NEXT))
    await kit.ok(engine, second, Ack(then=(follower,)))
    assert await kit.take(engine, NEXT) == []
    assert (await engine.counts(NEXT)).done == 1


async def a_hand_off_to_an_undeclared_queue_writes_nothing(engine: Full) -> None:
    await kit.send(engine, *kit.messages(2))
    first, second = await kit.take(engine)
    batch = [
        Settlement(first.receipt, Ack(result=pack(1), then=(kit.message(NEXT),))),
        Settlement(second.receipt, Ack(then=(kit.message(NEXT), kit.message(QueueName("nowhere"))))),
    ]
    before = await kit.everything(engine)
    with pytest.raises(QueueNotDeclared):
        await engine.settle(batch)
    assert await kit.everything(engine) == before
    await kit.ok(engine, first)
    await kit.ok(engine, second)


async def a_hand_off_is_never_refused_because_the_next_queue_is_full(engine: Full) -> None:
    await engine.declare([kit.specs(NEXT, max_backlog=1)])
    await kit.send(engine, *kit.messages(5))
    for delivery in await kit.take(engine):
        await kit.ok(engine, delivery, Ack(then=(kit.message(NEXT),)))
    assert await kit.ready(engine, NEXT) == 5


async def items_are_conserved_under_eight_workers_with_failures(engine: Full) -> None:
    """Three stages, eight workers that fail, release, bury and settle twice at random; after every step each item is in exactly one place."""
    entered = [kit.placed() for _ in range(60)]
    await engine.send(entered)
    stages = {WORK: NEXT, NEXT: LAST, LAST: None}

    async def worker(seed: int) -> None:
        dice = kit.dice(seed)
        for _ in range(60):
            queue = dice.choice(list(stages))
            batch = []
            for delivery in await kit.take(engine, queue, limit=dice.randint(1, 4)):
                draw = dice.random()
                follower = stages[queue]
                then = (kit.follower(delivery.message, follower),) if follower else ()
                if draw < 0.15:
                    batch.append(Settlement(delivery.receipt, RetryAfter(delay_s=0.0, failure=kit.failure())))
                elif draw < 0.25:
                    batch.append(Settlement(delivery.receipt, Release()))
                elif draw < 0.3:
                    batch.append(Settlement(delivery.receipt, DeadLetter(reason="x", failure=kit.failure())))
                else:
                    batch.append(Settlement(delivery.receipt, Ack(then=then, result=None if follower else pack("end"))))
                if draw < 0.6:
                    batch.append(Settlement(delivery.receipt, Ack(then=then)))  # a doubled receipt: may not count
            await engine.settle(batch)
            counts = await engine.run_counts(kit.LINE)
            assert counts.entered == 60

    await kit.in_threads(*(lambda seed=seed: worker(seed) for seed in range(8)))
    places: dict[str, int] = dict.fromkeys((message.id for message in entered), 0)
    for view in await kit.everything(engine):
        assert view.message.place is not None
        if view.state != "done" or view.message.queue == LAST:
            places[view.message.place.run] += 1
    assert set(places.values()) == {1}
    await kit.assert_counts_agree(engine)


async def one_batch_hands_on_for_each_message_that_was_still_held(engine: Full, time: Time) -> None:
    await kit.send(engine, *kit.messages(100))
    deliveries = await kit.take(engine)
    time.advance(LEASE_S)
    await kit.take(engine, limit=40)
    answers = await engine.settle([Settlement(each.receipt, Ack(then=(kit.message(NEXT),))) for each in deliveries])
    assert (answers.count(Settled.LEASE_LOST), answers.count(Settled.DONE)) == (40, 60)
    assert await kit.ready(engine, NEXT) == 60
