"""The counts of a queue are exact at every moment, and browsing finds every message once, whatever happens meanwhile."""

from typing import Any

import pytest

from beltline.core.capabilities import Counting
from beltline.core.errors import NotFound
from beltline.core.names import TaskName
from beltline.core.outcome import Ack, DeadLetter, Release, RetryAfter, Settlement
from beltline.core.views import MessageFilter
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LEASE_S, NEVER_SENT, NEXT, OTHER, QUEUES, WORK

NEEDS = {"counts": Counting.EXACT}
POWERS = ("Browse", "Results", "Control", "Upkeep")


async def a_new_queue_is_empty(engine: Full) -> None:
    counts = await engine.counts(WORK)
    assert (counts.ready, counts.delayed, counts.leased, counts.dead, counts.done, counts.parked) == (0, 0, 0, 0, 0, 0)
    assert (counts.oldest_ready_s, counts.paused) == (0.0, False)


async def every_state_is_counted(engine: Full) -> None:
    await kit.dead_one(engine)
    await kit.send(engine, *kit.messages(4))
    for delivery in await kit.take(engine, limit=3):
        await kit.ok(engine, delivery)
    await kit.send(engine, *kit.messages(2, delay_s=60.0), *kit.messages(3))
    await kit.take(engine, limit=2)
    counts = await engine.counts(WORK)
    assert (counts.ready, counts.delayed, counts.leased, counts.dead, counts.done) == (2, 2, 2, 1, 3)


async def the_oldest_ready_message_tells_its_age(engine: Full, time: Time) -> None:
    await kit.send_one(engine)
    time.advance(10.0)
    await kit.send_one(engine)
    time.advance(5.0)
    assert (await engine.counts(WORK)).oldest_ready_s == 15.0
    await kit.take_one(engine)
    assert (await engine.counts(WORK)).oldest_ready_s == 5.0


async def counts_equal_what_browsing_finds_after_a_random_history(engine: Full, time: Time) -> None:
    dice = kit.dice(34)
    for step in range(150):
        draw = dice.random()
        queue = dice.choice(QUEUES)
        if draw < 0.35:
            options = {"delay_s": dice.choice((0.0, 0.0, 20.0)), "group": dice.choice((None, "g", "h")), "expires_s": dice.choice((None, 40.0))}
            await engine.send([kit.message(queue, **options) for _ in range(dice.randint(1, 4))])
        elif draw < 0.8:
            batch = []
            for delivery in await kit.take(engine, queue, limit=3):
                outcome = dice.choice(
                    [
                        Ack(then=(kit.message(dice.choice(QUEUES)),)) if dice.random() < 0.3 else Ack(),
                        RetryAfter(delay_s=dice.choice((0.0, 15.0)), failure=kit.failure()),
                        Release(delay_s=dice.choice((0.0, 15.0))),
                        DeadLetter(reason="x", failure=kit.failure()),
                        None,
                    ]
                )
                if outcome is not None:
                    batch.append(Settlement(delivery.receipt, outcome))
            await engine.settle(batch)
        elif draw < 0.9:
            time.advance(dice.choice((1.0, 10.0, LEASE_S)))
        elif draw < 0.95:
            await engine.redrive(MessageFilter(queues=(queue,)), limit=2, queue=dice.choice((None, OTHER)))
        elif draw < 0.97:
            await engine.purge(queue)
        else:
            waiting = (await engine.browse(MessageFilter(queues=(queue,), states=("ready", "leased", "delayed")), limit=3)).messages
            await engine.cancel([view.message.id for view in waiting])
        if step % 10 == 9:
            await kit.assert_counts_agree(engine)
    await kit.assert_counts_agree(engine)


async def messages_are_browsed_in_the_order_they_were_sent(engine: Full, time: Time) -> None:
    sent = []
    for number in range(10):
        sent += await kit.send(engine, *(kit.message(queue, priority=number) for queue in (NEXT, WORK)))
        time.advance(1.0)
    assert [view.message.id for view in await kit.everything(engine)] == [message.id for message in sent]


async def pages_have_no_gaps_and_no_repeats(engine: Full) -> None:
    sent = await kit.send(engine, *kit.messages(50), *kit.messages(25, NEXT))
    for page in (1, 7, 25, 75, 1000):
        assert [view.message.id for view in await kit.everything(engine, page=page)] == [message.id for message in sent]
    assert [view.message.id for view in await kit.everything(engine, page=7, queues=(NEXT,))] == [message.id for message in sent[50:]]


async def pages_hold_while_others_send_receive_and_settle(engine: Full) -> None:
    sent = await kit.send(engine, *kit.messages(100))

    async def reader() -> list[str]:
        return [view.message.id for view in await kit.everything(engine, page=5)]

    async def worker() -> None:
        for _ in range(10):
            await kit.send(engine, *kit.messages(3))
            for delivery in await kit.take(engine, limit=4):
                await kit.ok(engine, delivery)

    for seen in (await kit.in_threads(reader, worker, worker, reader))[::3]:
        assert len(set(seen)) == len(seen)
        assert {message.id for message in sent} <= set(seen)


async def filters_narrow_what_is_found(engine: Full, time: Time) -> None:
    dead = await kit.dead_one(engine, error=kit.failure("app.Broken"))
    time.advance(100.0)
    run = kit.placed(group="g", task=TaskName("thumb"))
    await kit.send(engine, run, kit.message(NEXT, delay_s=60.0))
    now = await engine.now()
    delayed = (await kit.everything(engine, states=("delayed",)))[0].message

    async def found(**where: Any) -> list[str]:
        return [view.message.id for view in await kit.everything(engine, **where)]

    assert await found(error="app.Broken") == [dead.id]
    assert await found(error="Broken") == []
    assert await found(states=("dead", "delayed")) == [dead.id, delayed.id]
    assert await found(tasks=("thumb",)) == [run.id]
    assert await found(run=kit.run_of(run)) == [run.id]
    assert await found(group="g") == [run.id]
    assert await found(queues=(NEXT, OTHER)) == [delayed.id]
    assert await found(sent_before=now - 50.0) == [dead.id]
    assert await found(sent_after=now - 50.0) == [run.id, delayed.id]
    assert await found(ids=(delayed.id, dead.id, NEVER_SENT)) == [dead.id, delayed.id]
    assert await found(ids=(dead.id,), queues=(NEXT,)) == []
    assert await found(queues=("nowhere",)) == []
    assert await found() == [dead.id, run.id, delayed.id]


async def a_message_is_found_by_its_id_in_every_state(engine: Full) -> None:
    sent = await kit.send_one(engine)
    states = [(await engine.get(sent.id)).state]
    delivery = await kit.take_one(engine)
    states.append((await engine.get(sent.id)).state)
    await kit.retry(engine, delivery, 1.0)
    states.append((await engine.get(sent.id)).state)
    await engine.hurry([sent.id])
    await kit.bury(engine, await kit.take_one(engine))
    states.append((await engine.get(sent.id)).state)
    await engine.cancel([sent.id])
    states.append((await engine.get(sent.id)).state)
    assert states == ["ready", "leased", "delayed", "dead", "done"]
    with pytest.raises(NotFound):
        await engine.get(NEVER_SENT)


async def done_does_not_sink_when_history_is_dropped(engine: Full, time: Time) -> None:
    await kit.send(engine, *kit.messages(3))
    await kit.finish(engine)
    time.advance(kit.FAR_S)
    await engine.retain(history_s=0.0)
    assert await kit.everything(engine) == []
    assert (await engine.counts(WORK)).done == 3
