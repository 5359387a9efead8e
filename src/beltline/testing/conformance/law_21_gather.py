"""A gather fires exactly once, in the settle of the part that completes it, with the answers in part order; a part that dies does what the stage's policy says."""

from beltline.core.capabilities import HandOff
from beltline.core.codec import pack
from beltline.core.message import Part
from beltline.core.outcome import Ack, Settled, Settlement
from beltline.core.views import MessageFilter
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LAST, LEASE_S, NEXT, OTHER, WORK

NEEDS = {"hand_off": HandOff.ATOMIC}
POWERS = ("Browse", "Results", "Control", "Runs")


async def the_last_answer_sends_the_next_message(engine: Full) -> None:
    run, gather = await kit.split_run(engine, 3)
    deliveries = await kit.take(engine, NEXT)
    for delivery in deliveries[:-1]:
        await kit.answer(engine, delivery, delivery.message.place and delivery.message.place.item)
        assert await kit.ready(engine, LAST) == 0
    await kit.answer(engine, deliveries[-1], "2")
    delivery = await kit.take_one(engine, LAST)
    assert gather.then is not None
    assert (delivery.message.id, delivery.message.body) == (gather.then.id, pack({"thumbs": ["0", "1", "2"]}))
    [view] = await engine.gathers(run)
    assert (view.missing, view.fired) == (0, True)


async def the_answers_stand_in_part_order_however_they_came(engine: Full) -> None:
    await kit.split_run(engine, 5)
    deliveries = await kit.take(engine, NEXT)
    for index in (3, 0, 4, 1, 2):
        await kit.answer(engine, deliveries[index], index)
    assert (await kit.take_one(engine, LAST)).message.body == pack({"thumbs": [0, 1, 2, 3, 4]})


async def it_fires_once_when_all_parts_end_at_once(engine: Full) -> None:
    for _ in range(5):
        await kit.split_run(engine, 8)
        deliveries = await kit.take(engine, NEXT)
        await kit.in_threads(*(lambda each=each: kit.answer(engine, each, 1) for each in deliveries))
        assert (await kit.take_one(engine, LAST)).message.body == pack({"thumbs": [1] * 8})
        assert await kit.take(engine, LAST) == []


async def it_fires_once_when_all_parts_end_in_one_batch(engine: Full) -> None:
    await kit.split_run(engine, 4)
    batch = [Settlement(each.receipt, Ack(part=pack(1))) for each in await kit.take(engine, NEXT)]
    assert await engine.settle(batch + batch) == [Settled.DONE] * 4 + [Settled.LEASE_LOST] * 4
    assert await kit.ready(engine, LAST) == 1


async def a_part_redriven_after_it_was_counted_changes_nothing(engine: Full) -> None:
    run, _ = await kit.split_run(engine, 2, on_dead="skip")
    first, second = await kit.take(engine, NEXT)
    await kit.bury(engine, first)
    await kit.answer(engine, second, "b")
    assert (await kit.take_one(engine, LAST)).message.body == pack({"thumbs": ["b"]})
    await engine.redrive(MessageFilter(run=run), limit=10)
    await kit.answer(engine, await kit.take_one(engine, NEXT), "late")
    assert await kit.take(engine, LAST) == []
    assert (await engine.counts(LAST)).leased == 1


async def an_empty_gather_fires_at_once(engine: Full) -> None:
    run, _ = await kit.split_run(engine, 0)
    assert (await kit.take_one(engine, LAST)).message.body == pack({"thumbs": []})
    [view] = await engine.gathers(run)
    assert (view.expected, view.missing, view.fired) == (0, 0, True)


async def an_empty_gather_without_a_next_stage_is_an_empty_result(engine: Full) -> None:
    run, _ = await kit.split_run(engine, 0, then=None)
    [view] = await engine.results([run])
    assert view is not None
    assert (view.state, view.result) == ("done", pack([]))


async def without_a_next_stage_the_list_is_the_result_of_the_run(engine: Full, time: Time) -> None:
    run, _ = await kit.split_run(engine, 2, then=None, result_ttl_s=60.0)
    for delivery, value in zip(await kit.take(engine, NEXT), ("a", None), strict=True):
        await kit.answer(engine, delivery, value)
    [view] = await engine.results([run])
    assert view is not None
    assert (view.state, view.outcome, view.result) == ("done", "succeeded", pack(["a", None]))
    assert (await engine.run(run)).state == "done"
    time.advance(60.0)
    [view] = await engine.results([run])
    assert view is not None
    assert (view.result, view.expired) == (None, True)


async def a_part_may_pass_through_stages_before_it_answers(engine: Full) -> None:
    run, _ = await kit.split_run(engine, 2)
    for delivery in await kit.take(engine, NEXT):
        await kit.ok(engine, delivery, Ack(then=(kit.follower(delivery.message, OTHER),)))
    assert [view.missing for view in await engine.gathers(run)] == [2]
    for delivery in await kit.take(engine, OTHER):
        await kit.answer(engine, delivery, 1)
    assert await kit.ready(engine, LAST) == 1


async def a_gather_within_a_gather_answers_the_outer_one(engine: Full) -> None:
    run, outer = await kit.split_run(engine, 2)
    for number, delivery in enumerate(await kit.take(engine, NEXT)):
        ack, _, _ = kit.fan(delivery.message, 2, queue=OTHER, then=None, outer=Part(outer.id, number))
        await kit.ok(engine, delivery, ack)
    inner = await kit.take(engine, OTHER)
    for number, delivery in enumerate(inner[:-1]):
        await kit.answer(engine, delivery, number)
    assert [view.missing for view in await engine.gathers(run)] == [1, 0, 1]
    assert await kit.ready(engine, LAST) == 0
    await kit.answer(engine, inner[-1], 3)
    assert (await kit.take_one(engine, LAST)).message.body == pack({"thumbs": [[0, 1], [2, 3]]})


async def a_gather_within_a_gather_may_have_a_stage_of_its_own(engine: Full) -> None:
    await kit.split_run(engine, 1)
    part = await kit.take_one(engine, NEXT)
    ack, _, _ = kit.fan(part.message, 2, queue=OTHER, then=WORK)
    await kit.ok(engine, part, ack)
    for delivery in await kit.take(engine, OTHER):
        await kit.answer(engine, delivery, 1)
    inner = await kit.take_one(engine, WORK)
    assert inner.message.body == pack({"thumbs": [1, 1]})
    assert await kit.ready(engine, LAST) == 0
    await kit.answer(engine, inner, "album")
    assert (await kit.take_one(engine, LAST)).message.body == pack({"thumbs": ["album"]})


async def an_empty_gather_within_a_gather_answers_at_once(engine: Full) -> None:
    _, outer = await kit.split_run(engine, 1)
    part = await kit.take_one(engine, NEXT)
    ack, _, _ = kit.fan(part.message, 0, then=None, outer=Part(outer.id, 0))
    await kit.ok(engine, part, ack)
    assert (await kit.take_one(engine, LAST)).message.body == pack({"thumbs": [[]]})


async def on_hold_a_dead_part_waits_for_its_redrive(engine: Full) -> None:
    run, _ = await kit.split_run(engine, 2, on_dead="hold")
    first, second = await kit.take(engine, NEXT)
    await kit.answer(engine, first, "a")
    await kit.bury(engine, second)
    [view] = await engine.gathers(run)
    assert (view.missing, view.dead, view.fired) == (1, 1, False)
    assert (await engine.run(run)).state == "dead"
    assert await engine.redrive(MessageFilter(run=run), limit=10) == [second.message.id]
    [view] = await engine.gathers(run)
    assert (view.missing, view.dead) == (1, 0)
    assert (await engine.run(run)).state == "running"
    await kit.answer(engine, await kit.take_one(engine, NEXT), "b")
    assert (await kit.take_one(engine, LAST)).message.body == pack({"thumbs": ["a", "b"]})


async def on_skip_a_dead_part_is_left_out(engine: Full) -> None:
    run, _ = await kit.split_run(engine, 3, on_dead="skip")
    first, second, third = await kit.take(engine, NEXT)
    await kit.answer(engine, third, "c")
    await kit.bury(engine, second)
    await kit.answer(engine, first, "a")
    assert (await kit.take_one(engine, LAST)).message.body == pack({"thumbs": ["a", "c"]})
    assert (await engine.run(run)).state == "running"


async def on_skip_the_death_of_the_last_part_fires(engine: Full) -> None:
    await kit.split_run(engine, 2, on_dead="skip")
    first, second = await kit.take(engine, NEXT)
    await kit.answer(engine, first, "a")
    await kit.bury(engine, second)
    assert (await kit.take_one(engine, LAST)).message.body == pack({"thumbs": ["a"]})


async def on_skip_all_parts_may_die(engine: Full) -> None:
    await kit.split_run(engine, 2, on_dead="skip")
    for delivery in await kit.take(engine, NEXT):
        await kit.bury(engine, delivery)
    assert (await kit.take_one(engine, LAST)).message.body == pack({"thumbs": []})


async def on_fail_a_dead_part_ends_the_run(engine: Full) -> None:
    run, _ = await kit.split_run(engine, 3, on_dead="fail")
    first, second = await kit.take(engine, NEXT, limit=2)
    await kit.bury(engine, first)
    view = await engine.run(run)
    assert view.state == "failed"
    assert await kit.take(engine, NEXT) == []
    await kit.ok(engine, second, Ack(part=pack("b")))
    assert await kit.take(engine, LAST) == []
    [result] = await engine.results([run])
    assert result is not None
    assert (result.state, result.result) == ("dead", None)


async def poison_counts_like_any_death(engine: Full, time: Time) -> None:
    await engine.declare([kit.specs(NEXT, max_deliveries=1)])
    await kit.split_run(engine, 2, on_dead="skip")
    first, second = await kit.take(engine, NEXT)
    await kit.answer(engine, first, "a")
    time.advance(LEASE_S)
    assert await kit.take(engine, NEXT) == []
    assert await kit.settle(engine, second, Ack(part=pack("late"))) is Settled.LEASE_LOST
    assert (await kit.take_one(engine, LAST)).message.body == pack({"thumbs": ["a"]})


async def cancelled_expired_deleted_and_purged_parts_are_left_out(engine: Full, time: Time) -> None:
    [root] = await kit.send(engine, kit.placed())
    ack, parts, _ = kit.fan(root, 6)
    parts[1] = kit.message(NEXT, id=parts[1].id, place=parts[1].place, expires_s=10.0)
    parts[4] = kit.message(OTHER, id=parts[4].id, place=parts[4].place)
    await kit.ok(engine, await kit.take_one(engine), Ack(then=tuple(parts), gathers=ack.gathers))
    await engine.cancel([parts[0].id])
    time.advance(10.0)
    deliveries = {delivery.message.id: delivery for delivery in await kit.take(engine, NEXT)}
    assert set(deliveries) == {parts[2].id, parts[3].id, parts[5].id}
    await kit.bury(engine, deliveries[parts[2].id])
    assert [view.missing for view in await engine.gathers(kit.run_of(root))] == [4]
    assert await engine.delete(MessageFilter(ids=(parts[2].id,)), limit=1) == 1
    assert await engine.purge(OTHER) == 1
    await kit.ok(engine, deliveries[parts[3].id], kit.cancelled("not needed"))
    assert await kit.ready(engine, LAST) == 0
    await kit.answer(engine, deliveries[parts[5].id], "only one")
    assert (await kit.take_one(engine, LAST)).message.body == pack({"thumbs": ["only one"]})


async def on_hold_a_cancelled_part_is_left_out_since_it_cannot_come_back(engine: Full) -> None:
    await kit.split_run(engine, 2, on_dead="hold")
    [first] = await kit.take(engine, NEXT, limit=1)
    await kit.answer(engine, first, "a")
    [waiting] = await kit.everything(engine, queues=(NEXT,), states=("ready",))
    await engine.cancel([waiting.message.id])
    assert (await kit.take_one(engine, LAST)).message.body == pack({"thumbs": ["a"]})


async def on_fail_a_cancelled_part_ends_the_run(engine: Full) -> None:
    run, _ = await kit.split_run(engine, 2, on_dead="fail")
    [first, second] = await kit.everything(engine, queues=(NEXT,))
    await engine.cancel([first.message.id])
    assert (await engine.run(run)).state == "failed"
    assert await kit.state_of(engine, second.message.id) == "done"


async def a_retried_or_released_part_has_not_answered(engine: Full, time: Time) -> None:
    run, _ = await kit.split_run(engine, 1)
    await kit.retry(engine, await kit.take_one(engine, NEXT))
    await kit.release(engine, await kit.take_one(engine, NEXT))
    await kit.take_one(engine, NEXT)
    time.advance(LEASE_S)
    assert [view.missing for view in await engine.gathers(run)] == [1]
    await kit.answer(engine, await kit.take_one(engine, NEXT), "a")
    assert await kit.ready(engine, LAST) == 1


async def gathers_of_many_runs_do_not_mix(engine: Full) -> None:
    for _ in range(10):
        await kit.split_run(engine, 3)
    deliveries = await kit.take(engine, NEXT)
    kit.dice(7).shuffle(deliveries)
    for delivery in deliveries:
        assert delivery.message.place is not None
        await kit.answer(engine, delivery, [delivery.message.place.run, delivery.message.place.item])
    for delivery in await kit.take(engine, LAST):
        assert delivery.message.place is not None
        run = delivery.message.place.run
        assert delivery.message.body == pack({"thumbs": [[run, "0"], [run, "1"], [run, "2"]]})
    assert (await engine.counts(LAST)).leased == 10
