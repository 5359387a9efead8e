"""A purge ends everything in the queue that nobody holds, at once; what is leased is left to its holder, and what was purged cannot be settled any more."""

from beltline.core.outcome import Ack, Admission, Settled
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LEASE_S, NEXT, WORK

POWERS = ("Browse", "Results", "Control")


async def it_ends_ready_delayed_and_dead_messages(engine: Full) -> None:
    await kit.dead_one(engine)
    await kit.send(engine, *kit.messages(3), kit.message(delay_s=60.0), *kit.messages(2, group="g"))
    assert await engine.purge(WORK) == 7
    counts = await engine.counts(WORK)
    assert (counts.ready, counts.delayed, counts.dead, counts.leased) == (0, 0, 0, 0)
    assert await kit.take(engine) == []


async def it_leaves_other_queues_alone(engine: Full) -> None:
    await kit.send(engine, *kit.messages(2), *kit.messages(3, NEXT))
    assert await engine.purge(WORK) == 2
    assert await kit.ready(engine, NEXT) == 3


async def an_empty_queue_has_nothing_to_purge(engine: Full) -> None:
    assert await engine.purge(WORK) == 0


async def what_is_leased_is_left_to_its_holder(engine: Full) -> None:
    await kit.send(engine, *kit.messages(3))
    held = await kit.take_one(engine)
    assert await engine.purge(WORK) == 2
    assert (await engine.counts(WORK)).leased == 1
    await kit.ok(engine, held)


async def what_is_done_is_not_counted_twice(engine: Full) -> None:
    await kit.send(engine, *kit.messages(2))
    await kit.ok(engine, await kit.take_one(engine))
    assert await engine.purge(WORK) == 1
    assert await engine.purge(WORK) == 0
    assert (await engine.counts(WORK)).done == 2


async def a_lease_that_was_over_is_purged_and_its_late_settle_refused(engine: Full, time: Time) -> None:
    await kit.send_one(engine)
    held = await kit.take_one(engine)
    time.advance(LEASE_S)
    assert await engine.purge(WORK) == 1
    assert await kit.settle(engine, held, Ack(then=(kit.message(NEXT),))) is Settled.LEASE_LOST
    assert await engine.renew([held.receipt], lease_s=LEASE_S) == [Settled.LEASE_LOST]
    assert await kit.ready(engine, NEXT) == 0
    assert await kit.take(engine) == []


async def a_purged_message_reads_as_cancelled(engine: Full) -> None:
    sent = await kit.send_one(engine)
    await engine.purge(WORK)
    [view] = await engine.results([sent.id])
    assert view is not None
    assert (view.state, view.outcome, view.why) == ("done", "cancelled", "purged")


async def a_purged_id_stays_remembered(engine: Full) -> None:
    sent = await kit.send_one(engine)
    await engine.purge(WORK)
    assert [answer.admission for answer in await engine.send([sent])] == [Admission.SAME_ID]
    assert await kit.take(engine) == []


async def purging_while_eight_receive_loses_and_doubles_nothing(engine: Full) -> None:
    await kit.send(engine, *kit.messages(200))

    async def receiver() -> int:
        done = 0
        while deliveries := await kit.take(engine, limit=3):
            for delivery in deliveries:
                await kit.ok(engine, delivery)
                done += 1
        return done

    async def purger() -> int:
        return await engine.purge(WORK)

    ended = await kit.in_threads(*[receiver] * 7, purger)
    assert sum(ended) == 200
    assert (await engine.counts(WORK)).done == 200
    await kit.assert_counts_agree(engine)


async def messages_sent_after_a_purge_are_received(engine: Full) -> None:
    await kit.send(engine, *kit.messages(3))
    await engine.purge(WORK)
    sent = await kit.send_one(engine)
    assert await kit.finish(engine) == [sent.id]
