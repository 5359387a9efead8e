"""Renewing holds a lease as long as the worker lives, over any number of periods."""

from beltline.core.outcome import Settled
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LEASE_S, TWO, WORK

POWERS = ("Browse", "Control")


async def a_renewed_lease_is_held_over_many_periods(engine: Full, time: Time) -> None:
    await kit.send_one(engine)
    held = await kit.take_one(engine)
    for _ in range(100):
        time.advance(LEASE_S - 1)
        assert await engine.renew([held.receipt], lease_s=LEASE_S) == [Settled.DONE]
        assert await kit.take(engine, worker=TWO) == []
    await kit.ok(engine, held)


async def a_renewed_lease_ends_lease_s_after_the_renewal(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    held = await kit.take_one(engine)
    time.advance(10.0)
    await engine.renew([held.receipt], lease_s=LEASE_S)
    assert (await engine.get(sent.id)).due_at == await engine.now() + LEASE_S
    time.advance(LEASE_S - 1)
    assert await kit.take(engine) == []
    time.advance(1.0)
    assert (await kit.take_one(engine)).lost == 1


async def renewing_changes_no_counter_and_no_epoch(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    held = await kit.take_one(engine)
    for _ in range(3):
        time.advance(20.0)
        await engine.renew([held.receipt], lease_s=LEASE_S)
    view = await engine.get(sent.id)
    assert (view.epoch, view.failed, view.lost, view.attempts) == (held.receipt.epoch, 0, 0, ())


async def every_receipt_of_a_batch_gets_its_answer(engine: Full) -> None:
    await kit.send(engine, *kit.messages(3))
    first, second, third = await kit.take(engine)
    await kit.ok(engine, second)
    await engine.cancel([third.message.id])
    answers = await engine.renew([third.receipt, second.receipt, first.receipt], lease_s=LEASE_S)
    assert answers == [Settled.CANCEL_ASKED, Settled.LEASE_LOST, Settled.DONE]


async def the_answer_cancel_asked_has_renewed_the_lease(engine: Full, time: Time) -> None:
    await kit.send_one(engine)
    held = await kit.take_one(engine)
    await engine.cancel([held.message.id])
    time.advance(LEASE_S - 1)
    assert await engine.renew([held.receipt], lease_s=LEASE_S) == [Settled.CANCEL_ASKED]
    time.advance(LEASE_S - 1)
    assert await kit.take(engine, worker=TWO) == []
    assert (await engine.counts(WORK)).leased == 1


async def a_thousand_leases_are_renewed_in_one_batch(engine: Full, time: Time) -> None:
    await kit.send(engine, *kit.messages(1000))
    deliveries = await kit.take(engine, limit=1000)
    time.advance(LEASE_S - 1)
    assert await engine.renew([each.receipt for each in deliveries], lease_s=LEASE_S) == [Settled.DONE] * 1000
    time.advance(LEASE_S - 1)
    assert await kit.take(engine) == []
