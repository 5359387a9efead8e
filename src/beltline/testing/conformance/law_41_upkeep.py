"""Upkeep only hurries what a receive would do, and drops only what has ended: any number of sweeps may run, none takes a lease from a holder, and history is kept as long as was asked."""

from beltline.core.codec import pack
from beltline.core.outcome import Ack, Admission
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LEASE_S, NEXT, WORK

POWERS = ("Browse", "Results", "Control", "Runs", "Upkeep")
DAY_S = 86400.0


async def a_sweep_of_nothing_moves_nothing(engine: Full) -> None:
    await kit.send(engine, kit.message(), kit.message(delay_s=60.0))
    await kit.take_one(engine)
    assert await engine.sweep() == 0


async def a_sweep_makes_due_messages_ready(engine: Full, time: Time) -> None:
    await kit.send(engine, *kit.messages(2, delay_s=10.0), kit.message(delay_s=60.0))
    time.advance(10.0)
    assert await engine.sweep() == 2
    assert await engine.sweep() == 0
    counts = await engine.counts(WORK)
    assert (counts.ready, counts.delayed) == (2, 1)


async def a_sweep_hands_nothing_out_and_changes_no_epoch(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    held = await kit.take_one(engine)
    time.advance(LEASE_S * 5)
    for _ in range(3):
        await engine.sweep()
    view = await engine.get(sent.id)
    assert (view.epoch, view.lost) == (held.receipt.epoch, 0)
    await kit.ok(engine, held)


async def sweeps_at_once_do_the_work_once(engine: Full, time: Time) -> None:
    await engine.declare([kit.specs(WORK, max_deliveries=1)])
    await kit.send(engine, *kit.messages(20))
    await kit.take(engine)
    await kit.send(engine, *kit.messages(10, delay_s=5.0), *kit.messages(10, expires_s=5.0))
    time.advance(LEASE_S)
    assert sum(await kit.in_threads(*[engine.sweep] * 8)) == 40
    counts = await engine.counts(WORK)
    assert (counts.dead, counts.ready, counts.done) == (20, 10, 10)


async def history_is_kept_as_long_as_asked(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    await kit.ok(engine, await kit.take_one(engine), Ack(result=pack(1), result_ttl_s=DAY_S * 30))
    time.advance(DAY_S * 7 - 1)
    assert await engine.retain(history_s=DAY_S * 7) == 0
    assert (await engine.get(sent.id)).state == "done"
    time.advance(2.0)
    assert await engine.retain(history_s=DAY_S * 7) >= 1
    assert await kit.everything(engine) == []
    assert await engine.results([sent.id]) == [None]


async def what_has_not_ended_is_never_dropped(engine: Full, time: Time) -> None:
    dead = await kit.dead_one(engine)
    held, ready = await kit.send(engine, *kit.messages(2))
    await kit.take_one(engine)
    delayed = await kit.send_one(engine, NEXT, delay_s=DAY_S * 365)
    time.advance(DAY_S * 100)
    await engine.retain(history_s=0.0)
    assert {view.message.id for view in await kit.everything(engine)} == {dead.id, held.id, ready.id, delayed.id}


async def an_id_is_forgotten_only_after_a_day_even_if_its_history_is_not_kept(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    await kit.ok(engine, await kit.take_one(engine))
    time.advance(DAY_S - 60)
    await engine.retain(history_s=60.0)
    assert [answer.admission for answer in await engine.send([sent])] == [Admission.SAME_ID]
    time.advance(120.0)
    await engine.retain(history_s=60.0)
    assert [answer.admission for answer in await engine.send([sent])] == [Admission.STORED]
    assert await kit.finish(engine) == [sent.id]


async def at_most_the_limit_is_dropped_at_once(engine: Full, time: Time) -> None:
    await kit.send(engine, *kit.messages(10))
    await kit.finish(engine)
    time.advance(DAY_S * 10)
    for left in (6, 2, 0):
        await engine.retain(history_s=DAY_S, limit=4)
        assert len(await kit.everything(engine)) == left


async def ended_runs_are_dropped_with_their_messages(engine: Full, time: Time) -> None:
    [done] = await kit.send(engine, kit.placed())
    await kit.ok(engine, await kit.take_one(engine), Ack(result=pack(1)))
    [running] = await kit.send(engine, kit.placed())
    time.advance(DAY_S * 10)
    await engine.retain(history_s=DAY_S)
    assert [view.id for view in await engine.runs(kit.LINE)] == [kit.run_of(running)]
    assert await engine.results([kit.run_of(done)]) == [None]


async def a_gather_that_waits_outlives_its_parts(engine: Full, time: Time) -> None:
    """The parts that answered are history; what they answered is not."""
    run, _ = await kit.split_run(engine, 2)
    first, second = await kit.take(engine, NEXT, limit=2)
    await kit.answer(engine, first, "a")
    await engine.renew([second.receipt], lease_s=DAY_S * 5)
    time.advance(DAY_S * 4)
    await engine.retain(history_s=DAY_S)
    assert [view.missing for view in await engine.gathers(run)] == [1]
    await kit.answer(engine, second, "b")
    assert (await kit.take_one(engine, kit.LAST)).message.body == pack({"thumbs": ["a", "b"]})


async def dedup_keys_are_dropped_after_their_window_not_before(engine: Full, time: Time) -> None:
    first = await kit.send_one(engine, dedup_key="k", dedup_window_s=DAY_S)
    await kit.ok(engine, await kit.take_one(engine))
    time.advance(DAY_S - 1)
    await engine.retain(history_s=0.0)
    [inside] = await engine.send([kit.message(dedup_key="k")])
    assert (inside.id, inside.admission) == (first.id, Admission.DEDUPLICATED)
    time.advance(1.0)
    await engine.retain(history_s=0.0)
    [outside] = await engine.send([kit.message(dedup_key="k")])
    assert outside.admission is Admission.STORED
