"""When a lease runs out the message is handed out again, before anything that is waiting, with the next epoch, and the unanswered delivery is counted as lost."""

from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LEASE_S, NEXT, ONE, TWO, WORK

POWERS = ("Browse",)


async def the_next_delivery_has_the_next_epoch_and_attempt(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    first = await kit.take_one(engine)
    time.advance(LEASE_S)
    second = await kit.take_one(engine)
    assert second.message == first.message == sent
    assert second.receipt.epoch == first.receipt.epoch + 1
    assert (first.attempt, second.attempt) == (1, 2)
    assert (second.failed, second.lost) == (0, 1)
    assert second.sent_at == first.sent_at


async def an_expired_message_goes_before_all_that_waits(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    await kit.take_one(engine)
    await kit.send_one(engine, priority=100)
    time.advance(LEASE_S)
    assert kit.ids(await kit.take(engine, limit=1)) == [sent.id]


async def the_longest_expired_goes_first(engine: Full, time: Time) -> None:
    slow, quick = await kit.send(engine, *kit.messages(2))
    await kit.take_one(engine, lease_s=20.0)
    await kit.take_one(engine, lease_s=10.0)
    time.advance(25.0)
    assert kit.ids(await kit.take(engine)) == [quick.id, slow.id]


async def a_message_whose_lease_is_over_counts_as_ready(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    await kit.take_one(engine)
    time.advance(LEASE_S)
    counts = await engine.counts(WORK)
    assert (counts.ready, counts.leased) == (1, 0)
    assert await kit.state_of(engine, sent.id) == "ready"
    assert [view.message.id for view in await kit.everything(engine, states=("ready",))] == [sent.id]
    assert await kit.everything(engine, states=("leased",)) == []


async def the_history_names_the_worker_that_never_answered(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    first = await kit.take_one(engine, worker=ONE)
    started_at = await engine.now()
    time.advance(LEASE_S + 5)
    await kit.take_one(engine, worker=TWO)
    view = await engine.get(sent.id)
    assert [(attempt.epoch, attempt.outcome, attempt.worker, attempt.started_at) for attempt in view.attempts] == [
        (first.receipt.epoch, "lost", ONE, started_at)
    ]
    assert (view.state, view.worker, view.lost) == ("leased", TWO, 1)


async def only_the_leases_that_are_over_come_back(engine: Full, time: Time) -> None:
    sent = await kit.send(engine, *kit.messages(2))
    await kit.take_one(engine, lease_s=10.0)
    await kit.take_one(engine, lease_s=60.0)
    time.advance(10.0)
    assert kit.ids(await kit.take(engine)) == [sent[0].id]


async def expiry_respects_the_limit_of_the_receive(engine: Full, time: Time) -> None:
    await kit.send(engine, *kit.messages(10))
    await kit.take(engine)
    time.advance(LEASE_S)
    assert [len(await kit.take(engine, limit=4)) for _ in range(4)] == [4, 4, 2, 0]


async def queues_are_served_in_the_order_given(engine: Full, time: Time) -> None:
    await kit.send(engine, *kit.messages(2), *kit.messages(2, NEXT))
    await kit.take(engine, NEXT)
    time.advance(LEASE_S)
    deliveries = await engine.receive([WORK, NEXT], limit=3, lease_s=LEASE_S)
    assert [delivery.message.queue for delivery in deliveries] == [WORK, WORK, NEXT]
    assert [delivery.lost for delivery in deliveries] == [0, 0, 1]
