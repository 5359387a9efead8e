"""A FIFO group has at most one lease, and a head that is held, waits or is dead blocks only its own group; what a dead head does is declared: hold the group, or skip to the next."""

from beltline.core.capabilities import Order
from beltline.core.outcome import Ack, Release, RetryAfter, Settled, Settlement
from beltline.core.views import MessageFilter
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LEASE_S, NEXT, WORK

NEEDS = {"order": Order.GROUP}
POWERS = ("Browse", "Control")


async def only_one_message_of_a_group_is_leased(engine: Full) -> None:
    await kit.send(engine, *kit.messages(5, group="g"))
    held = await kit.take(engine, limit=100)
    assert len(held) == 1
    assert await kit.take(engine) == []
    await kit.ok(engine, held[0])
    assert len(await kit.take(engine, limit=100)) == 1


async def other_groups_and_messages_without_one_go_on(engine: Full) -> None:
    await kit.send(engine, *kit.messages(3, group="held"))
    await kit.take_one(engine)
    rest = await kit.send(engine, kit.message(group="free"), kit.message(), kit.message(group="also"), kit.message(group="free"))
    assert kit.ids(await kit.take(engine)) == [message.id for message in rest[:3]]


async def a_receive_of_many_takes_one_of_each_group(engine: Full) -> None:
    for _ in range(3):
        await kit.send(engine, *(kit.message(group=f"g{number}") for number in range(20)))
    deliveries = await kit.take(engine)
    assert [each.message.group for each in deliveries] == [f"g{number}" for number in range(20)]


async def a_group_is_that_of_one_queue(engine: Full) -> None:
    await kit.send(engine, kit.message(WORK, group="g"), kit.message(NEXT, group="g"))
    assert len(await engine.receive([WORK, NEXT], limit=10, lease_s=LEASE_S)) == 2


async def those_behind_the_head_count_as_ready_and_say_that_they_are_blocked(engine: Full) -> None:
    head, second, third = await kit.send(engine, *kit.messages(3, group="g"))
    assert (await engine.counts(WORK)).ready == 3
    views = [await engine.get(message.id) for message in (head, second, third)]
    assert [(view.state, view.blocked) for view in views] == [("ready", False), ("ready", True), ("ready", True)]
    await kit.take_one(engine)
    counts = await engine.counts(WORK)
    assert (counts.ready, counts.leased) == (2, 1)
    assert (await engine.get(second.id)).blocked


async def a_dead_head_holds_its_group(engine: Full) -> None:
    sent = await kit.send(engine, *kit.messages(2, group="g"), kit.message(group="other"))
    deliveries = await kit.take(engine)
    assert kit.ids(deliveries) == [sent[0].id, sent[2].id]
    await kit.bury(engine, deliveries[0])
    await kit.ok(engine, deliveries[1])
    assert await kit.take(engine) == []
    assert (await engine.get(sent[1].id)).blocked


async def a_dead_head_is_skipped_where_that_is_declared(engine: Full) -> None:
    await engine.declare([kit.specs(WORK, on_dead="skip")])
    sent = await kit.send(engine, *kit.messages(3, group="g"))
    await kit.bury(engine, await kit.take_one(engine))
    assert await kit.finish(engine) == [message.id for message in sent[1:]]
    assert (await engine.counts(WORK)).dead == 1


async def a_skipped_head_that_is_redriven_waits_for_the_one_that_is_held(engine: Full) -> None:
    await engine.declare([kit.specs(WORK, on_dead="skip")])
    sent = await kit.send(engine, *kit.messages(3, group="g"))
    await kit.bury(engine, await kit.take_one(engine))
    held = await kit.take_one(engine)
    await engine.redrive(MessageFilter(ids=(sent[0].id,)), limit=1)
    assert await kit.take(engine) == []
    await kit.ok(engine, held)
    assert await kit.finish(engine) == [sent[0].id, sent[2].id]


async def a_cancelled_head_frees_its_group(engine: Full) -> None:
    sent = await kit.send(engine, *kit.messages(2, group="g"))
    await engine.cancel([sent[0].id])
    assert await kit.finish(engine) == [sent[1].id]


async def a_cancelled_or_deleted_dead_head_frees_its_group(engine: Full) -> None:
    for end in ("cancel", "delete"):
        sent = await kit.send(engine, *kit.messages(2, group=end))
        await kit.bury(engine, await kit.take_one(engine))
        assert await kit.take(engine) == []
        if end == "cancel":
            await engine.cancel([sent[0].id])
        else:
            await engine.delete(MessageFilter(ids=(sent[0].id,)), limit=1)
        assert await kit.finish(engine) == [sent[1].id]


async def an_expired_head_frees_its_group(engine: Full, time: Time) -> None:
    sent = await kit.send(engine, kit.message(group="g", delay_s=20.0, expires_s=10.0), kit.message(group="g"))
    time.advance(10.0)
    assert await kit.finish(engine) == [sent[1].id]


async def poison_at_the_head_is_a_dead_head(engine: Full, time: Time) -> None:
    await engine.declare([kit.specs(WORK, on_dead="skip", max_deliveries=1), kit.specs(NEXT, on_dead="hold", max_deliveries=1)])
    for queue in (WORK, NEXT):
        await kit.send(engine, *kit.messages(2, queue, group="g"))
        await kit.take_one(engine, queue)
    time.advance(LEASE_S)
    assert len(await kit.take(engine, WORK)) == 1
    assert await kit.take(engine, NEXT) == []


async def an_empty_group_starts_anew(engine: Full) -> None:
    for _ in range(3):
        sent = await kit.send(engine, *kit.messages(2, group="g"))
        assert await kit.finish(engine) == [message.id for message in sent]


async def a_hand_off_into_a_group_waits_for_its_head_that_comes_back_in_the_same_batch(engine: Full) -> None:
    """Whatever order the engine writes a batch in, nobody may see the group without the one that stood for it."""
    for end in (Release(), RetryAfter(delay_s=0.0, failure=kit.failure())):
        first = await kit.send_one(engine, NEXT, group="g")
        head = await kit.take_one(engine, NEXT)
        await kit.send_one(engine, WORK)
        before = await kit.take_one(engine, WORK)
        follower = kit.message(NEXT, group="g")
        batch = [Settlement(before.receipt, Ack(then=(follower,))), Settlement(head.receipt, end)]
        assert await engine.settle(batch) == [Settled.DONE, Settled.DONE]
        [again] = await kit.take(engine, NEXT)
        assert again.message.id == first.id
        await kit.ok(engine, again)
        assert await kit.finish(engine, NEXT) == [follower.id]


async def a_message_behind_the_head_can_be_cancelled(engine: Full) -> None:
    sent = await kit.send(engine, *kit.messages(3, group="g"))
    await engine.cancel([sent[1].id])
    assert await kit.finish(engine) == [sent[0].id, sent[2].id]


async def a_purge_frees_the_groups(engine: Full) -> None:
    await kit.send(engine, *kit.messages(3, group="g"))
    held = await kit.take_one(engine)
    assert await engine.purge(WORK) == 2
    after = await kit.send_one(engine, group="g")
    assert await kit.take(engine) == []
    await kit.ok(engine, held)
    assert await kit.finish(engine) == [after.id]


async def a_rule_for_dead_heads_declared_anew_holds_for_waiting_groups(engine: Full) -> None:
    sent = await kit.send(engine, *kit.messages(2, group="g"))
    await kit.bury(engine, await kit.take_one(engine))
    assert await kit.take(engine) == []
    await engine.declare([kit.specs(WORK, on_dead="skip")])
    assert await kit.finish(engine) == [sent[1].id]


async def a_redrive_to_another_queue_frees_the_group(engine: Full) -> None:
    sent = await kit.send(engine, *kit.messages(2, group="g"))
    await kit.bury(engine, await kit.take_one(engine))
    await engine.redrive(MessageFilter(ids=(sent[0].id,)), limit=1, queue=NEXT)
    assert await kit.finish(engine) == [sent[1].id]
    assert await kit.finish(engine, NEXT) == [sent[0].id]


async def a_hundred_groups_cost_each_other_nothing(engine: Full) -> None:
    await kit.send(engine, *(kit.message(group=f"g{number % 100}") for number in range(300)))
    deliveries = await kit.take(engine, limit=1000)
    assert len(deliveries) == len({each.message.group for each in deliveries}) == 100
