"""Closing the engine and opening it again on the same store changes nothing: messages in all states, counters, results, progress, chains, pauses and the memory of ids and dedup keys are as before."""

from beltline.core.codec import pack
from beltline.core.outcome import Ack, Admission, Release, Settled
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Harness, Time
from beltline.testing.conformance.kit import LAST, LEASE_S, NEXT, OTHER, QUEUES, WORK

POWERS = ("Browse", "Results", "Control", "Runs")


async def _again(harness: Harness, engine: Full) -> Full:
    return await harness.restart(engine)  # type: ignore[return-value]


async def a_message_of_every_state_is_found_unchanged(engine: Full, harness: Harness) -> None:
    await kit.dead_one(engine)
    await kit.send_one(engine)
    await kit.ok(engine, await kit.take_one(engine), Ack(result=pack(1), note="fine"))
    await kit.send_one(engine)
    held = await kit.take_one(engine)
    await engine.progress([(held.receipt, pack(0.5))])
    await kit.send_one(engine, delay_s=60.0, headers={"ü": "\x00"}, group="g", priority=3)
    await kit.send_one(engine, expires_s=90.0)
    before = [await engine.get(view.message.id) for view in await kit.everything(engine)]
    counts = [await engine.counts(queue) for queue in QUEUES]
    again = await _again(harness, engine)
    try:
        assert {view.state for view in before} == {"dead", "done", "leased", "delayed", "ready"}
        assert [await again.get(view.message.id) for view in await kit.everything(again)] == before
        assert [await again.counts(queue) for queue in QUEUES] == counts
    finally:
        await again.close()


async def a_receipt_from_before_settles_after(engine: Full, harness: Harness) -> None:
    await kit.send_one(engine)
    held = await kit.take_one(engine)
    again = await _again(harness, engine)
    try:
        assert await again.renew([held.receipt], lease_s=LEASE_S) == [Settled.DONE]
        await kit.ok(again, held)
    finally:
        await again.close()


async def a_lease_from_before_still_keeps_others_out_until_it_ends(engine: Full, harness: Harness, time: Time) -> None:
    await kit.send_one(engine)
    held = await kit.take_one(engine)
    again = await _again(harness, engine)
    try:
        time.advance(LEASE_S - 1)
        assert await kit.take(again) == []
        time.advance(1)
        taken = await kit.take_one(again)
        assert taken.receipt.epoch > held.receipt.epoch
        assert await kit.settle(again, held) is Settled.LEASE_LOST
    finally:
        await again.close()


async def ids_and_dedup_keys_are_remembered(engine: Full, harness: Harness) -> None:
    waiting, ended = await kit.send(engine, kit.message(NEXT, dedup_key="k"), kit.message())
    await kit.ok(engine, await kit.take_one(engine))
    again = await _again(harness, engine)
    try:
        twin = kit.message(NEXT, dedup_key="k")
        answers = await again.send([waiting, ended, twin])
        assert [sent.admission for sent in answers] == [Admission.SAME_ID, Admission.SAME_ID, Admission.DEDUPLICATED]
        assert answers[2].id == waiting.id
    finally:
        await again.close()


async def results_and_progress_are_remembered(engine: Full, harness: Harness) -> None:
    ended, held = await kit.send(engine, *kit.messages(2))
    first, second = await kit.take(engine)
    await kit.ok(engine, first, Ack(result=pack({"width": 1920})))
    await engine.progress([(second.receipt, pack("half"))])
    before = await engine.results([ended.id, held.id])
    again = await _again(harness, engine)
    try:
        assert await again.results([ended.id, held.id]) == before
        assert before[0] is not None
        assert before[0].result == pack({"width": 1920})
    finally:
        await again.close()


async def pauses_and_declared_numbers_are_remembered(engine: Full, harness: Harness) -> None:
    await engine.declare([kit.specs(OTHER, max_backlog=2, ageing_s=5.0, max_deliveries=7, on_dead="skip")])
    await engine.pause(WORK)
    declared = await engine.queues()
    again = await _again(harness, engine)
    try:
        assert await again.queues() == declared
        assert (await again.counts(WORK)).paused
        assert not (await again.counts(NEXT)).paused
    finally:
        await again.close()


async def a_gather_goes_on_counting(engine: Full, harness: Harness) -> None:
    run, _ = await kit.split_run(engine, 2)
    first, second = await kit.take(engine, NEXT)
    await kit.answer(engine, first, "a")
    before = (await engine.run(run), await engine.gathers(run))
    again = await _again(harness, engine)
    try:
        assert (await again.run(run), await again.gathers(run)) == before
        await kit.answer(again, second, "b")
        assert await kit.ready(again, LAST) == 1
    finally:
        await again.close()


async def the_order_of_a_queue_and_of_a_group_stays(engine: Full, harness: Harness) -> None:
    sent = [await kit.send_one(engine) for _ in range(5)]
    grouped = [await kit.send_one(engine, NEXT, group="g") for _ in range(3)]
    head = await kit.take_one(engine, NEXT)
    await kit.ok(engine, head, Release())
    again = await _again(harness, engine)
    try:
        assert await kit.finish(again) == [message.id for message in sent]
        assert await kit.finish(again, NEXT) == [message.id for message in grouped]
    finally:
        await again.close()
