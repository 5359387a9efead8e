"""A receipt whose message has been handed out again is stale: settling, renewing or reporting progress with it is answered LEASE_LOST and writes nothing at all."""

from beltline.core.codec import pack
from beltline.core.message import Delivery, Message, Receipt
from beltline.core.outcome import Ack, DeadLetter, Outcome, Release, RetryAfter, Settled, Settlement
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LAST, LEASE_S, NEVER_SENT, NEXT, OTHER, QUEUES, TWO, WORK

POWERS = ("Browse", "Results", "Control", "Runs")


async def _overtaken(engine: Full, time: Time, sent: Message | None = None) -> tuple[Delivery, Delivery]:
    """The same message handed out twice: the stale delivery and the current one."""
    await kit.send(engine, sent or kit.message())
    stale = await kit.take_one(engine)
    time.advance(LEASE_S)
    return stale, await kit.take_one(engine, worker=TWO)


async def _refused(engine: Full, stale: Delivery, outcome: Outcome) -> None:
    """The settle is refused, and nothing in the whole store differs from before."""

    async def picture() -> object:
        views = [await engine.get(view.message.id) for view in await kit.everything(engine)]
        return views, [await engine.counts(queue) for queue in QUEUES], await engine.results([stale.message.id])

    before = await picture()
    assert await kit.settle(engine, stale, outcome) is Settled.LEASE_LOST
    assert await picture() == before


async def a_stale_ack_writes_neither_result_nor_next_message(engine: Full, time: Time) -> None:
    stale, current = await _overtaken(engine, time)
    await _refused(engine, stale, Ack(result=pack("stale"), then=(kit.message(NEXT),), note="stale"))
    assert await kit.ready(engine, NEXT) == 0
    await kit.ok(engine, current, Ack(result=pack("current")))
    [view] = await engine.results([current.message.id])
    assert view is not None
    assert view.result == pack("current")


async def a_stale_retry_changes_nothing(engine: Full, time: Time) -> None:
    stale, current = await _overtaken(engine, time)
    await _refused(engine, stale, RetryAfter(delay_s=0.0, failure=kit.failure()))
    await kit.ok(engine, current)


async def a_stale_release_does_not_free_the_message(engine: Full, time: Time) -> None:
    stale, current = await _overtaken(engine, time)
    await _refused(engine, stale, Release())
    assert await kit.take(engine) == []
    await kit.ok(engine, current)


async def a_stale_dead_letter_changes_nothing(engine: Full, time: Time) -> None:
    stale, current = await _overtaken(engine, time)
    await _refused(engine, stale, DeadLetter(reason="stale", failure=kit.failure()))
    await kit.ok(engine, current)


async def a_stale_split_opens_no_gather_and_writes_no_part(engine: Full, time: Time) -> None:
    stale, current = await _overtaken(engine, time, kit.placed())
    ack, _, _ = kit.fan(stale.message, 3)
    await _refused(engine, stale, ack)
    assert await engine.gathers(kit.run_of(stale.message)) == []
    assert (await engine.run(kit.run_of(stale.message))).open == 1
    await kit.ok(engine, current)


async def a_stale_answer_does_not_count_in_the_gather(engine: Full, time: Time) -> None:
    run, _ = await kit.split_run(engine, 2)
    stale, other = await kit.take(engine, NEXT)
    await engine.renew([other.receipt], lease_s=LEASE_S * 3)
    time.advance(LEASE_S)
    current = await kit.take_one(engine, NEXT)
    await _refused(engine, stale, Ack(part=pack("stale")))
    assert [gather.missing for gather in await engine.gathers(run)] == [2]
    await kit.answer(engine, other, "other")
    assert await kit.ready(engine, LAST) == 0
    await kit.answer(engine, current, "current")
    assert await kit.ready(engine, LAST) == 1


async def a_stale_renewal_lengthens_nothing(engine: Full, time: Time) -> None:
    stale, current = await _overtaken(engine, time)
    before = await engine.get(current.message.id)
    assert await engine.renew([stale.receipt], lease_s=LEASE_S * 100) == [Settled.LEASE_LOST]
    assert await engine.get(current.message.id) == before
    time.advance(LEASE_S)
    assert (await kit.take_one(engine)).lost == 2


async def stale_progress_is_not_kept(engine: Full, time: Time) -> None:
    stale, current = await _overtaken(engine, time)
    assert await engine.progress([(current.receipt, pack(1)), (stale.receipt, pack(2))]) == [Settled.DONE, Settled.LEASE_LOST]
    assert (await engine.get(current.message.id)).progress == pack(1)


async def a_receipt_is_spent_once_its_delivery_has_ended(engine: Full) -> None:
    for outcome in (Ack(), RetryAfter(delay_s=0.0, failure=kit.failure()), Release(), DeadLetter(reason="x", failure=kit.failure())):
        await kit.send_one(engine, OTHER)
        delivery = await kit.take_one(engine, OTHER)
        await kit.ok(engine, delivery, outcome)
        for again in (Ack(result=pack("again"), then=(kit.message(NEXT),)), RetryAfter(delay_s=0.0, failure=kit.failure()), Release()):
            await _refused(engine, delivery, again)
        assert await engine.renew([delivery.receipt], lease_s=LEASE_S) == [Settled.LEASE_LOST]
        assert await engine.progress([(delivery.receipt, pack(1))]) == [Settled.LEASE_LOST]
        await engine.purge(OTHER)


async def receipts_that_were_never_given_are_refused(engine: Full) -> None:
    sent = await kit.send_one(engine)
    waiting = Receipt(sent.id, 0)
    never = Receipt(NEVER_SENT, 1)
    assert await engine.settle([Settlement(waiting, Ack()), Settlement(never, Ack())]) == [Settled.LEASE_LOST] * 2
    held = await kit.take_one(engine)
    future = Receipt(held.receipt.id, held.receipt.epoch + 1)
    assert await engine.settle([Settlement(future, Ack())]) == [Settled.LEASE_LOST]
    assert await engine.renew([future, never], lease_s=LEASE_S) == [Settled.LEASE_LOST] * 2
    await kit.ok(engine, held)


async def one_batch_answers_stale_and_current_receipts_each_for_itself(engine: Full, time: Time) -> None:
    await kit.send(engine, *kit.messages(4))
    old = await kit.take(engine, limit=2)
    time.advance(LEASE_S)
    new = await kit.take(engine, limit=4)
    batch = [Settlement(each.receipt, Ack(then=(kit.message(NEXT),))) for each in (old[0], new[0], old[1], *new[1:])]
    lost, done = Settled.LEASE_LOST, Settled.DONE
    assert await engine.settle(batch) == [lost, done, lost, done, done, done]
    assert await kit.ready(engine, NEXT) == 4
    assert (await engine.counts(WORK)).done == 4


async def a_race_of_old_and_new_holder_is_won_by_the_new_one(engine: Full, time: Time) -> None:
    stale, current = await _overtaken(engine, time)
    works = [lambda each=each: kit.settle(engine, each, Ack(then=(kit.message(NEXT),))) for each in [stale] * 7 + [current]]
    answers = await kit.in_threads(*works)
    assert answers == [Settled.LEASE_LOST] * 7 + [Settled.DONE]
    assert await kit.ready(engine, NEXT) == 1
