"""Two receipts of one message in one batch have one effect: one end, one result, one hand-off."""

from beltline.core.codec import pack
from beltline.core.outcome import Ack, DeadLetter, RetryAfter, Settled, Settlement
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LAST, LEASE_S, NEXT, WORK

POWERS = ("Browse", "Results", "Runs")


async def the_same_receipt_twice_counts_once(engine: Full) -> None:
    sent = await kit.send_one(engine)
    held = await kit.take_one(engine)
    batch = [Settlement(held.receipt, Ack(result=pack(number), then=(kit.message(NEXT),))) for number in (1, 2)]
    assert await engine.settle(batch) == [Settled.DONE, Settled.LEASE_LOST]
    assert await kit.ready(engine, NEXT) == 1
    assert (await engine.counts(WORK)).done == 1
    [view] = await engine.results([sent.id])
    assert view is not None
    assert view.result == pack(1)


async def an_old_and_a_new_receipt_in_one_batch_hand_on_once(engine: Full, time: Time) -> None:
    for number in range(2):
        await kit.send_one(engine)
        old = await kit.take_one(engine)
        time.advance(LEASE_S)
        new = await kit.take_one(engine)
        order = [(old, Settled.LEASE_LOST), (new, Settled.DONE)] if number else [(new, Settled.DONE), (old, Settled.LEASE_LOST)]
        answers = await engine.settle([Settlement(each.receipt, Ack(then=(kit.message(NEXT),))) for each, _ in order])
        assert answers == [expected for _, expected in order]
        assert await kit.ready(engine, NEXT) == number + 1


async def the_first_of_two_outcomes_wins(engine: Full) -> None:
    sent = await kit.send_one(engine)
    held = await kit.take_one(engine)
    retry, dead = RetryAfter(delay_s=60.0, failure=kit.failure()), DeadLetter(reason="x", failure=kit.failure())
    assert await engine.settle([Settlement(held.receipt, retry), Settlement(held.receipt, dead)]) == [Settled.DONE, Settled.LEASE_LOST]
    view = await engine.get(sent.id)
    assert (view.state, view.failed, len(view.attempts)) == ("delayed", 1, 1)


async def a_doubled_answer_counts_once_in_its_gather(engine: Full) -> None:
    run, _ = await kit.split_run(engine, 2)
    first, second = await kit.take(engine, NEXT)
    batch = [Settlement(first.receipt, Ack(part=pack("a")))] * 3
    assert await engine.settle(batch) == [Settled.DONE, Settled.LEASE_LOST, Settled.LEASE_LOST]
    assert [gather.missing for gather in await engine.gathers(run)] == [1]
    assert await kit.ready(engine, LAST) == 0
    await kit.answer(engine, second, "b")
    assert await kit.ready(engine, LAST) == 1


async def the_same_receipt_twice_in_one_renewal_is_renewed(engine: Full) -> None:
    await kit.send_one(engine)
    held = await kit.take_one(engine)
    assert await engine.renew([held.receipt, held.receipt], lease_s=LEASE_S) == [Settled.DONE, Settled.DONE]
