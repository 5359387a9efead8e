"""A paused queue hands out nothing until it is resumed; everything else goes on: sending, renewing, settling, and time."""

from beltline.core.outcome import Ack, Settled
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Harness, Time
from beltline.testing.conformance.kit import LEASE_S, NEXT, TWO, WORK

POWERS = ("Browse", "Control", "Upkeep")


async def a_paused_queue_hands_out_nothing(engine: Full) -> None:
    sent = await kit.send_one(engine)
    await engine.pause(WORK)
    assert await kit.take(engine) == []
    counts = await engine.counts(WORK)
    assert (counts.ready, counts.paused) == (1, True)
    await engine.resume(WORK)
    assert not (await engine.counts(WORK)).paused
    assert await kit.finish(engine) == [sent.id]


async def other_queues_go_on(engine: Full) -> None:
    await kit.send(engine, kit.message(WORK), kit.message(NEXT))
    await engine.pause(WORK)
    deliveries = await engine.receive([WORK, NEXT], limit=10, lease_s=LEASE_S)
    assert [each.message.queue for each in deliveries] == [NEXT]


async def what_is_held_goes_on(engine: Full, time: Time) -> None:
    await kit.send(engine, *kit.messages(3))
    first, second, third = await kit.take(engine)
    await engine.pause(WORK)
    time.advance(20.0)
    assert await engine.renew([first.receipt], lease_s=LEASE_S) == [Settled.DONE]
    await kit.ok(engine, first, Ack(then=(kit.message(NEXT),)))
    await kit.retry(engine, second)
    await kit.release(engine, third)
    assert await kit.ready(engine, NEXT) == 1
    assert await kit.take(engine) == []
    await engine.resume(WORK)
    assert len(await kit.take(engine)) == 2


async def a_lease_that_runs_out_in_a_pause_waits_for_its_end(engine: Full, time: Time) -> None:
    await kit.send_one(engine)
    held = await kit.take_one(engine)
    await engine.pause(WORK)
    time.advance(LEASE_S)
    assert await kit.take(engine, worker=TWO) == []
    await engine.sweep()
    await kit.ok(engine, held)


async def sending_to_a_paused_queue_is_allowed(engine: Full) -> None:
    await engine.pause(WORK)
    sent = [await kit.send_one(engine) for _ in range(3)]
    await engine.resume(WORK)
    assert await kit.finish(engine) == [message.id for message in sent]


async def pausing_and_resuming_twice_is_the_same_as_once(engine: Full) -> None:
    await kit.send_one(engine)
    for _ in range(2):
        await engine.pause(WORK)
    assert await kit.take(engine) == []
    for _ in range(2):
        await engine.resume(WORK)
    assert len(await kit.take(engine)) == 1


async def declaring_a_paused_queue_anew_does_not_resume_it(engine: Full) -> None:
    await engine.pause(WORK)
    await engine.declare([kit.specs(WORK, max_backlog=10)])
    assert (await engine.counts(WORK)).paused


async def messages_of_a_paused_queue_can_be_cancelled_hurried_and_purged(engine: Full) -> None:
    sent = await kit.send(engine, kit.message(), kit.message(delay_s=60.0), kit.message())
    await engine.pause(WORK)
    await engine.cancel([sent[0].id])
    assert await engine.hurry([sent[1].id]) == 1
    assert (await engine.counts(WORK)).ready == 2
    assert await engine.purge(WORK) == 2


async def a_resume_wakes_a_waiting_receive(harness: Harness) -> None:
    engine: Full = harness.engine()  # type: ignore[assignment]
    await engine.open()
    try:
        await engine.declare([kit.specs(WORK)])
        await engine.pause(WORK)
        await kit.send_one(engine)
        [got, _] = await kit.together(
            lambda: engine.receive([WORK], limit=1, lease_s=LEASE_S, wait_s=20.0), lambda: kit.in_threads(lambda: engine.resume(WORK))
        )
        assert len(got) == 1
    finally:
        await engine.close()
