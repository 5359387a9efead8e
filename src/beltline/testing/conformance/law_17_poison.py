"""A message whose deliveries never answer is given up as poison after exactly max_deliveries of them; failed attempts and releases do not count towards it."""

from beltline.core.outcome import Ack, DeadLetter, Settled
from beltline.core.policy import MAX_DELIVERIES, poison
from beltline.core.views import MessageFilter
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LEASE_S, NEXT, ONE, WORK

POWERS = ("Browse", "Results", "Control", "Upkeep")


async def _lose(engine: Full, time: Time, times: int) -> None:
    for lost in range(times):
        assert (await kit.take_one(engine)).lost == lost
        time.advance(LEASE_S)


async def it_is_delivered_exactly_so_often(engine: Full, time: Time) -> None:
    for most in (1, 2, 5):
        await engine.declare([kit.specs(WORK, max_deliveries=most)])
        sent = await kit.send_one(engine)
        await _lose(engine, time, most)
        assert await kit.take(engine) == []
        view = await engine.get(sent.id)
        assert (view.state, view.why, view.lost, view.failed) == ("dead", poison(most), most, 0)


async def three_is_the_default(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    await _lose(engine, time, MAX_DELIVERIES)
    assert await kit.take(engine) == []
    assert (await engine.get(sent.id)).why == poison(3)


async def the_last_delivery_may_still_succeed(engine: Full, time: Time) -> None:
    await kit.send_one(engine)
    await _lose(engine, time, 2)
    await kit.ok(engine, await kit.take_one(engine))
    assert (await engine.counts(WORK)).dead == 0


async def failures_and_releases_do_not_count(engine: Full) -> None:
    await kit.send_one(engine)
    for _ in range(5):
        await kit.retry(engine, await kit.take_one(engine))
        await kit.release(engine, await kit.take_one(engine))
    assert (await kit.take_one(engine)).lost == 0


async def runners_that_died_count_like_leases_that_ran_out(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    await _lose(engine, time, 1)
    await kit.retry(engine, await kit.take_one(engine), lost=True)
    assert await kit.state_of(engine, sent.id) == "ready"
    await kit.retry(engine, await kit.take_one(engine), lost=True)
    view = await engine.get(sent.id)
    assert (view.state, view.why, view.lost) == ("dead", poison(3), 3)


async def the_history_has_one_entry_per_delivery(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    await _lose(engine, time, 3)
    await engine.sweep()
    attempts = (await engine.get(sent.id)).attempts
    assert [(each.epoch, each.worker) for each in attempts] == [(1, ONE), (2, ONE), (3, ONE)]
    assert {each.outcome for each in attempts} <= {"lost", "dead_letter"}


async def its_caller_is_told(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    await _lose(engine, time, 3)
    assert await kit.take(engine) == []
    [view] = await engine.results([sent.id])
    assert view is not None
    assert (view.state, view.why) == ("dead", poison(3))
    assert view.failure is not None


async def a_late_settle_of_poison_is_refused(engine: Full, time: Time) -> None:
    await engine.declare([kit.specs(WORK, max_deliveries=1)])
    await kit.send_one(engine)
    held = await kit.take_one(engine)
    time.advance(LEASE_S)
    assert await kit.take(engine) == []
    assert await kit.settle(engine, held, Ack(then=(kit.message(NEXT),))) is Settled.LEASE_LOST
    assert ((await engine.counts(WORK)).dead, await kit.ready(engine, NEXT)) == (1, 0)


async def a_sweep_finds_poison_where_nobody_receives(engine: Full, time: Time) -> None:
    await engine.declare([kit.specs(WORK, max_deliveries=1)])
    await kit.send_one(engine)
    await kit.take_one(engine)
    time.advance(LEASE_S)
    assert await engine.sweep() == 1
    assert (await engine.counts(WORK)).dead == 1


async def redriven_poison_may_be_lost_as_often_again(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    for _ in range(2):
        await _lose(engine, time, 3)
        assert await kit.take(engine) == []
        assert await engine.redrive(MessageFilter(ids=(sent.id,)), limit=1) == [sent.id]
    await kit.ok(engine, await kit.take_one(engine), DeadLetter(reason="enough", failure=kit.failure()))


async def innocent_messages_are_not_touched(engine: Full, time: Time) -> None:
    await engine.declare([kit.specs(WORK, max_deliveries=1)])
    await kit.send(engine, *kit.messages(2))
    await kit.take_one(engine, lease_s=LEASE_S)
    innocent = await kit.take_one(engine, lease_s=LEASE_S * 3)
    time.advance(LEASE_S)
    assert await kit.take(engine) == []
    assert (await engine.counts(WORK)).dead == 1
    await kit.ok(engine, innocent)
