"""A message that waits can be cancelled at once, one that is held is asked to stop; nothing that was cancelled begins again."""

from beltline.core.codec import pack
from beltline.core.lifecycle import State
from beltline.core.outcome import Ack, DeadLetter, Settled
from beltline.core.views import MessageFilter
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LEASE_S, NEVER_SENT, NEXT, WORK

POWERS = ("Browse", "Results", "Control", "Upkeep")


async def delayed_ready_and_dead_messages_are_cancelled_at_once(engine: Full, time: Time) -> None:
    dead = await kit.dead_one(engine)
    ready, delayed = await kit.send(engine, kit.message(), kit.message(delay_s=60.0))
    ids = [ready.id, delayed.id, dead.id]
    assert await engine.cancel(ids, reason="not needed") == [State.DONE] * 3
    for id in ids:
        view = await engine.get(id)
        assert (view.state, view.outcome, view.why) == ("done", "cancelled", "not needed")
    time.advance(60.0)
    assert await kit.take(engine) == []
    assert (await engine.counts(WORK)).done == 3


async def the_answers_tell_the_states(engine: Full) -> None:
    done, leased, ready = await kit.send(engine, *kit.messages(3))
    first, second = await kit.take(engine, limit=2)
    await kit.ok(engine, first)
    answers = await engine.cancel([NEVER_SENT, ready.id, leased.id, done.id, ready.id])
    assert answers == [None, State.DONE, State.LEASED, State.DONE, State.DONE]
    assert (await engine.get(done.id)).outcome == "succeeded"
    await kit.ok(engine, second)


async def a_leased_message_is_asked_to_stop(engine: Full) -> None:
    one, two = await kit.send(engine, *kit.messages(2))
    first, second = await kit.take(engine)
    await engine.cancel([one.id])
    assert (await engine.get(one.id)).cancel_asked
    assert not (await engine.get(two.id)).cancel_asked
    assert await engine.cancel_asked([second.receipt, first.receipt]) == [first.receipt]
    assert await engine.renew([first.receipt, second.receipt], lease_s=LEASE_S) == [Settled.CANCEL_ASKED, Settled.DONE]
    assert (await engine.counts(WORK)).leased == 2


async def a_worker_ends_it_as_cancelled(engine: Full) -> None:
    sent = await kit.send_one(engine)
    held = await kit.take_one(engine)
    await engine.cancel([sent.id])
    await kit.ok(engine, held, kit.cancelled("stopped"))
    [view] = await engine.results([sent.id])
    assert view is not None
    assert (view.state, view.outcome, view.why) == ("done", "cancelled", "stopped")
    assert [attempt.outcome for attempt in (await engine.get(sent.id)).attempts] == ["cancelled"]


async def a_worker_that_was_faster_succeeds(engine: Full) -> None:
    sent = await kit.send_one(engine)
    held = await kit.take_one(engine)
    await engine.cancel([sent.id])
    await kit.ok(engine, held, Ack(result=pack(1)))
    [view] = await engine.results([sent.id])
    assert view is not None
    assert (view.outcome, view.result) == ("succeeded", pack(1))


async def a_retry_or_release_of_what_was_cancelled_ends_it(engine: Full, time: Time) -> None:
    await kit.send(engine, *kit.messages(2))
    first, second = await kit.take(engine)
    await engine.cancel([first.message.id, second.message.id])
    await kit.retry(engine, first, 10.0)
    await kit.release(engine, second)
    time.advance(10.0)
    assert await kit.take(engine) == []
    assert [(await engine.get(each.message.id)).outcome for each in (first, second)] == ["cancelled", "cancelled"]
    assert (await engine.counts(WORK)).done == 2


async def a_dead_letter_of_what_was_cancelled_keeps_its_reason(engine: Full) -> None:
    sent = await kit.send_one(engine)
    held = await kit.take_one(engine)
    await engine.cancel([sent.id])
    await kit.ok(engine, held, DeadLetter(reason="broken", failure=kit.failure()))
    view = await engine.get(sent.id)
    assert (view.state, view.why) == ("dead", "broken")


async def a_holder_that_never_answers_again_is_not_followed_by_another(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    held = await kit.take_one(engine)
    await engine.cancel([sent.id])
    time.advance(LEASE_S)
    assert await kit.take(engine) == []
    view = await engine.get(sent.id)
    assert (view.state, view.outcome) == ("done", "cancelled")
    assert await kit.settle(engine, held) is Settled.LEASE_LOST


async def a_late_holder_is_asked_too(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    held = await kit.take_one(engine)
    time.advance(LEASE_S)
    assert await engine.cancel([sent.id]) == [State.LEASED]
    await kit.ok(engine, held, kit.cancelled())


async def a_redrive_forgets_the_request(engine: Full) -> None:
    sent = await kit.send_one(engine)
    held = await kit.take_one(engine)
    await engine.cancel([sent.id])
    await kit.bury(engine, held)
    await engine.redrive(MessageFilter(ids=(sent.id,)), limit=1)
    delivery = await kit.take_one(engine)
    assert await engine.cancel_asked([delivery.receipt, held.receipt]) == []
    await kit.retry(engine, delivery)
    assert (await kit.take_one(engine)).message.id == sent.id


async def a_cancelled_message_hands_nothing_on(engine: Full) -> None:
    sent = await kit.send_one(engine)
    await engine.cancel([sent.id])
    assert await kit.finish(engine) == []
    assert await kit.ready(engine, NEXT) == 0


async def cancelling_twice_is_the_same_as_once(engine: Full) -> None:
    sent = await kit.send_one(engine)
    assert await engine.cancel([sent.id], reason="first") == [State.DONE]
    before = await engine.get(sent.id)
    assert await engine.cancel([sent.id], reason="second") == [State.DONE]
    assert await engine.get(sent.id) == before


async def a_race_of_cancel_and_receive_has_one_winner(engine: Full) -> None:
    for _ in range(20):
        sent = await kit.send_one(engine)
        [[state], deliveries] = await kit.in_threads(lambda id=sent.id: engine.cancel([id]), lambda: kit.take(engine))  # type: ignore[misc]
        assert (state is State.LEASED) == bool(deliveries) or state is State.DONE
        assert not (state is State.DONE and deliveries)
        for delivery in deliveries:
            await kit.ok(engine, delivery, kit.cancelled())


async def hurried_messages_are_ready_now(engine: Full, time: Time) -> None:
    delayed, other, ready = await kit.send(engine, kit.message(delay_s=60.0), kit.message(delay_s=60.0), kit.message())
    assert await engine.hurry([delayed.id, ready.id, NEVER_SENT]) == 1
    assert (await engine.counts(WORK)).ready == 2
    assert sorted(await kit.finish(engine)) == sorted([delayed.id, ready.id])
    time.advance(60.0)
    assert await kit.finish(engine) == [other.id]


async def a_retry_that_waits_can_be_hurried(engine: Full) -> None:
    sent = await kit.send_one(engine)
    await kit.retry(engine, await kit.take_one(engine), 3600.0)
    assert await engine.hurry([sent.id]) == 1
    assert (await kit.take_one(engine)).failed == 1
