"""The messages of a FIFO group are delivered in the order they were sent, whatever fails, is retried, is released or is delayed on the way; other groups never wait."""

from itertools import pairwise

from beltline.core.capabilities import Order
from beltline.core.outcome import Ack, Outcome, Release, RetryAfter, Settled
from beltline.core.views import MessageFilter
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LEASE_S, NEXT, WORK

NEEDS = {"order": Order.GROUP}
POWERS = ("Browse", "Control")


async def a_group_comes_in_the_order_it_was_sent(engine: Full) -> None:
    sent = await kit.send(engine, *kit.messages(10, group="g"))
    assert await kit.finish(engine) == [message.id for message in sent]


async def one_that_was_redriven_goes_before_one_that_comes_back(engine: Full) -> None:
    """It was sent first; only the delivery that was under way kept it from its place."""
    await engine.declare([kit.specs(WORK, on_dead="skip")])
    first, second = await kit.send(engine, *kit.messages(2, group="g"))
    for end in (kit.release, kit.retry):
        await kit.bury(engine, await kit.take_one(engine))
        leased = await kit.take_one(engine)
        assert leased.message.id == second.id
        assert await engine.redrive(MessageFilter(ids=(first.id,)), limit=1) == [first.id]
        await end(engine, leased)
        [delivery] = await kit.take(engine)
        assert delivery.message.id == first.id
        await kit.ok(engine, delivery)
        assert await kit.finish(engine) == [second.id]
        first, second = await kit.send(engine, *kit.messages(2, group="g"))


async def priority_does_not_change_the_order_within_a_group(engine: Full) -> None:
    sent = await kit.send(engine, *(kit.message(group="g", priority=priority) for priority in (0, 100, -100, 50)))
    assert await kit.finish(engine) == [message.id for message in sent]


async def a_retry_keeps_its_place_in_the_group(engine: Full, time: Time) -> None:
    sent = await kit.send(engine, *kit.messages(3, group="g"))
    await kit.retry(engine, await kit.take_one(engine), 60.0)
    assert await kit.take(engine) == []
    time.advance(60.0)
    assert await kit.finish(engine) == [message.id for message in sent]


async def a_release_keeps_its_place_in_the_group(engine: Full, time: Time) -> None:
    sent = await kit.send(engine, *kit.messages(3, group="g"))
    await kit.release(engine, await kit.take_one(engine))
    await kit.release(engine, await kit.take_one(engine), 5.0)
    assert await kit.take(engine) == []
    time.advance(5.0)
    assert await kit.finish(engine) == [message.id for message in sent]


async def a_lost_lease_keeps_its_place_in_the_group(engine: Full, time: Time) -> None:
    sent = await kit.send(engine, *kit.messages(3, group="g"))
    await kit.take_one(engine)
    time.advance(LEASE_S)
    assert await kit.finish(engine) == [message.id for message in sent]


async def a_delayed_head_holds_its_group(engine: Full, time: Time) -> None:
    sent = await kit.send(engine, kit.message(group="g", delay_s=60.0), kit.message(group="g"))
    assert await kit.take(engine) == []
    view = await engine.get(sent[1].id)
    assert (view.state, view.blocked) == ("ready", True)
    time.advance(60.0)
    assert await kit.finish(engine) == [message.id for message in sent]


async def a_redriven_head_comes_before_those_behind_it(engine: Full) -> None:
    sent = await kit.send(engine, *kit.messages(3, group="g"))
    await kit.bury(engine, await kit.take_one(engine))
    assert await kit.take(engine) == []
    await engine.redrive(MessageFilter(ids=(sent[0].id,)), limit=1)
    assert await kit.finish(engine) == [message.id for message in sent]


async def handed_on_messages_keep_the_order_of_their_settles(engine: Full) -> None:
    sent = await kit.send(engine, *kit.messages(5, group="g"))
    for _ in sent:
        delivery = await kit.take_one(engine)
        await kit.ok(engine, delivery, Ack(then=(kit.message(NEXT, group="g", headers={"after": delivery.message.id}),)))
    after = []
    while deliveries := await kit.take(engine, NEXT):
        [delivery] = deliveries
        after.append(delivery.message.headers["after"])
        await kit.ok(engine, delivery)
    assert after == [message.id for message in sent]


async def the_group_epoch_grows_at_every_hand_out(engine: Full, time: Time) -> None:
    await kit.send(engine, *kit.messages(3, group="g"))
    seen = []
    for end in (Release(), RetryAfter(delay_s=0.0, failure=kit.failure()), Ack(), None, Ack(), Ack()):
        delivery = await kit.take_one(engine)
        seen.append(delivery.group_epoch)
        if end is None:
            time.advance(LEASE_S)
        else:
            await kit.ok(engine, delivery, end)
    assert seen[0] >= 1
    assert all(before < after for before, after in pairwise(seen))


async def eight_receivers_with_random_failures_keep_the_order_of_every_group(engine: Full) -> None:
    groups = [f"g{number}" for number in range(7)]
    sent = {group: [message.id for message in kit.messages(12, group=group)] for group in groups}
    for place in range(12):
        await kit.send(engine, *(kit.message(id=sent[group][place], group=group) for group in groups))
    first_seen: dict[str, list[str]] = {group: [] for group in groups}
    running: set[str] = set()

    async def receiver(seed: int) -> None:
        dice = kit.dice(seed)
        idle = 0
        while idle < 50:
            deliveries = await kit.take(engine, limit=dice.randint(1, 3))
            idle = 0 if deliveries else idle + 1
            for delivery in deliveries:
                group = delivery.message.group
                assert group is not None
                assert group not in running, "two messages of one group are leased at once"
                running.add(group)
                if delivery.message.id not in first_seen[group]:
                    first_seen[group].append(delivery.message.id)
            for delivery in deliveries:
                draw, outcome = dice.random(), Ack()
                end: Outcome = outcome
                if draw < 0.2:
                    end = RetryAfter(delay_s=0.0, failure=kit.failure())
                elif draw < 0.4:
                    end = Release()
                assert delivery.message.group is not None
                running.discard(delivery.message.group)
                assert await kit.settle(engine, delivery, end) is Settled.DONE

    await kit.in_threads(*(lambda seed=seed: receiver(seed) for seed in range(8)))
    await kit.finish(engine)
    assert first_seen == sent
    assert (await engine.counts(WORK)).done == 12 * 7
