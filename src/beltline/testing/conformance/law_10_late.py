"""A settle that comes late is accepted as long as nobody else has received the message: only a new hand-out takes it from its holder."""

from beltline.core.codec import pack
from beltline.core.outcome import Ack, Settled
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import FAR_S, LEASE_S, NEXT, WORK

POWERS = ("Browse", "Results", "Upkeep")


async def a_late_ack_that_nobody_overtook_counts(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    held = await kit.take_one(engine)
    time.advance(LEASE_S * 10)
    await kit.ok(engine, held, Ack(result=pack("late"), then=(kit.message(NEXT),)))
    [view] = await engine.results([sent.id])
    assert view is not None
    assert (view.state, view.result) == ("done", pack("late"))
    assert await kit.ready(engine, NEXT) == 1
    assert await kit.take(engine) == []


async def a_late_ack_counts_as_no_lost_delivery(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    held = await kit.take_one(engine)
    time.advance(LEASE_S * 10)
    await kit.ok(engine, held)
    view = await engine.get(sent.id)
    assert (view.lost, [attempt.outcome for attempt in view.attempts]) == (0, ["succeeded"])


async def a_late_retry_and_a_late_release_count(engine: Full, time: Time) -> None:
    await kit.send(engine, *kit.messages(2))
    first, second = await kit.take(engine)
    time.advance(LEASE_S + 1)
    await kit.retry(engine, first)
    await kit.release(engine, second)
    assert sorted((each.failed, each.lost) for each in await kit.take(engine)) == [(0, 0), (1, 0)]


async def a_late_renewal_that_nobody_overtook_holds_the_message_again(engine: Full, time: Time) -> None:
    await kit.send_one(engine)
    held = await kit.take_one(engine)
    time.advance(LEASE_S * 10)
    assert await engine.renew([held.receipt], lease_s=LEASE_S) == [Settled.DONE]
    assert await kit.take(engine) == []
    await kit.ok(engine, held)


async def a_sweep_takes_nothing_from_a_late_holder(engine: Full, time: Time) -> None:
    await kit.send_one(engine)
    held = await kit.take_one(engine)
    time.advance(LEASE_S + 1)
    await engine.sweep()
    await kit.ok(engine, held)


async def receiving_from_another_queue_takes_nothing_from_a_late_holder(engine: Full, time: Time) -> None:
    await kit.send_one(engine, WORK)
    held = await kit.take_one(engine, WORK)
    time.advance(FAR_S)
    assert await kit.take(engine, NEXT) == []
    await kit.ok(engine, held)
