"""Time is the engine's and never runs backwards: a clock that is set back or far forward may cost duplicates or delay, never safety, and nothing stalls for longer than a lease."""

from beltline.core.outcome import Admission, Settled
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Harness, Time
from beltline.testing.conformance.kit import FAR_S, LEASE_S, NEXT, WORK

POWERS = ("Browse", "Control", "Upkeep")


async def engine_time_never_runs_backwards(engine: Full, time: Time) -> None:
    seen = []
    for step in (10.0, -3600.0, 1.0, -1.0, 0.0, 86400.0, -86400.0 * 400, 5.0):
        if step < 0:
            time.set_back(-step)
        else:
            time.advance(step)
        seen.append(await engine.now())
    assert seen == sorted(seen)


async def after_a_step_back_time_goes_on(engine: Full, time: Time) -> None:
    before = await engine.now()
    time.set_back(3600.0)
    await engine.now()
    time.advance(60.0)
    assert await engine.now() >= before + 60.0


async def a_lease_ends_in_time_though_the_clock_was_set_back(engine: Full, time: Time) -> None:
    for back_s in (3600.0, 86400.0, 400 * 86400.0):
        sent = await kit.send_one(engine)
        held = await kit.take_one(engine)
        time.set_back(back_s)
        assert await kit.take(engine) == []
        time.advance(LEASE_S)
        taken = await kit.take_one(engine)
        assert (taken.message.id, taken.receipt.epoch) == (sent.id, held.receipt.epoch + 1)
        assert await kit.settle(engine, held) is Settled.LEASE_LOST
        await kit.ok(engine, taken)


async def a_delay_ends_in_time_though_the_clock_was_set_back(engine: Full, time: Time) -> None:
    await kit.send_one(engine, delay_s=10.0)
    time.set_back(86400.0)
    assert await kit.take(engine) == []
    time.advance(10.0)
    assert len(await kit.take(engine)) == 1


async def after_a_step_back_a_message_sent_now_is_received_now(engine: Full, time: Time) -> None:
    await kit.send_one(engine)
    await kit.finish(engine)
    time.set_back(86400.0)
    sent = await kit.send_one(engine)
    delivery = await kit.take_one(engine)
    assert delivery.message.id == sent.id
    assert delivery.lease_until == await engine.now() + LEASE_S


async def a_far_step_forward_costs_leases_not_messages(engine: Full, time: Time) -> None:
    sent = await kit.send(engine, *kit.messages(5))
    held = await kit.take(engine, limit=2)
    time.advance(FAR_S)
    assert [await kit.settle(engine, each) for each in held[:1]] == [Settled.DONE]
    deliveries = await kit.take(engine)
    assert sorted(kit.ids(deliveries)) == sorted(message.id for message in sent[1:])
    assert await kit.settle(engine, held[1]) is Settled.LEASE_LOST


async def a_step_forth_and_back_again_loses_nothing(engine: Full, time: Time) -> None:
    await kit.send(engine, *kit.messages(3), kit.message(delay_s=3600.0))
    time.advance(400 * 86400.0)
    assert len(await kit.take(engine, limit=1)) == 1
    time.set_back(400 * 86400.0)
    rest = await kit.take(engine)
    assert len(rest) == 3
    for delivery in rest:
        await kit.ok(engine, delivery)
    time.advance(LEASE_S)
    assert len(await kit.take(engine)) == 1


async def no_age_and_no_instant_is_negative(engine: Full, time: Time) -> None:
    await kit.send_one(engine)
    time.set_back(1000.0)
    counts = await engine.counts(WORK)
    assert counts.oldest_ready_s >= 0.0
    delivery = await kit.take_one(engine)
    await kit.ok(engine, delivery)
    [view] = await kit.everything(engine)
    assert view.sent_at <= view.ended_at
    assert all(attempt.started_at <= attempt.ended_at for attempt in (await engine.get(view.message.id)).attempts)


async def a_dedup_window_ends_in_time_though_the_clock_was_set_back(engine: Full, time: Time) -> None:
    await kit.send_one(engine, dedup_key="k", dedup_window_s=60.0)
    time.set_back(86400.0)
    [inside] = await engine.send([kit.message(dedup_key="k", dedup_window_s=60.0)])
    time.advance(60.0)
    [outside] = await engine.send([kit.message(dedup_key="k", dedup_window_s=60.0)])
    assert (inside.admission, outside.admission) == (Admission.DEDUPLICATED, Admission.STORED)


async def the_highest_instant_is_remembered_over_a_restart(engine: Full, harness: Harness, time: Time) -> None:
    await kit.send_one(engine)
    held = await kit.take_one(engine)
    before = await engine.now()
    time.set_back(86400.0)
    again: Full = await harness.restart(engine)  # type: ignore[assignment]
    try:
        assert await again.now() >= before
        time.advance(LEASE_S)
        assert len(await kit.take(again)) == 1
        assert await kit.settle(again, held) is Settled.LEASE_LOST
    finally:
        await again.close()


async def retention_after_a_step_forward_drops_only_what_has_ended(engine: Full, time: Time) -> None:
    alive, dead = await kit.send_one(engine, NEXT), await kit.dead_one(engine)
    time.advance(FAR_S)
    await engine.retain(history_s=60.0)
    assert [await kit.state_of(engine, message.id) for message in (alive, dead)] == ["ready", "dead"]
