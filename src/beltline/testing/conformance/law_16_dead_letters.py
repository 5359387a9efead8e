"""A message that is given up waits among the dead letters with its reason, failure, traceback, counters and history, and a redrive brings it back with all of that, its id and its first-send time kept."""

import pytest

from beltline.core.codec import pack
from beltline.core.errors import BodyTooLarge, NotFound, QueueNotDeclared, Refused, ValueInvalid
from beltline.core.names import QueueName, TaskName
from beltline.core.outcome import Ack, Admission, DeadLetter, Settled
from beltline.core.views import MessageFilter
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LEASE_S, NEVER_SENT, NEXT, OTHER, WORK

POWERS = ("Browse", "Results", "Control")
ALL_OF_WORK = MessageFilter(queues=(WORK,))


async def a_dead_letter_keeps_its_reason_failure_and_counters(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    await kit.retry(engine, await kit.take_one(engine))
    await kit.take_one(engine)
    time.advance(LEASE_S)
    failure = kit.failure("app.Broken", "no\x00good")
    await kit.ok(engine, await kit.take_one(engine), DeadLetter(reason="failed after 2 attempts", failure=failure, ran_s=1.5))
    view = await engine.get(sent.id)
    assert (view.state, view.why, view.failed, view.lost) == ("dead", "failed after 2 attempts", 2, 1)
    assert view.ended_at == await engine.now()
    assert [(each.epoch, each.outcome) for each in view.attempts] == [(1, "retry"), (2, "lost"), (3, "dead_letter")]
    assert (view.attempts[-1].failure, view.attempts[-1].ran_s) == (failure, 1.5)
    assert view.message == sent


async def a_dead_letter_whose_delivery_never_answered_counts_it_as_lost(engine: Full) -> None:
    sent = await kit.send_one(engine)
    await kit.ok(engine, await kit.take_one(engine), DeadLetter(reason="poison", failure=kit.failure(), lost=True))
    view = await engine.get(sent.id)
    assert (view.failed, view.lost) == (0, 1)


async def a_dead_letter_is_not_received(engine: Full, time: Time) -> None:
    await kit.dead_one(engine)
    time.advance(kit.FAR_S)
    assert await kit.take(engine) == []
    counts = await engine.counts(WORK)
    assert (counts.dead, counts.ready, counts.done) == (1, 0, 0)


async def its_caller_is_told_why(engine: Full) -> None:
    failure = kit.failure("app.Broken", "no good")
    sent = await kit.dead_one(engine, error=failure)
    [view] = await engine.results([sent.id])
    assert view is not None
    assert (view.state, view.result, view.failure, view.why) == ("dead", None, failure, "failed after 5 attempts")


async def a_redriven_message_is_the_same_message(engine: Full, time: Time) -> None:
    sent = await kit.dead_one(engine)
    before = await engine.get(sent.id)
    time.advance(100.0)
    assert await engine.redrive(ALL_OF_WORK, limit=10) == [sent.id]
    delivery = await kit.take_one(engine)
    assert (delivery.message, delivery.sent_at) == (sent, before.sent_at)
    assert (delivery.failed, delivery.lost, delivery.attempt) == (0, 0, 1)
    assert delivery.receipt.epoch > before.epoch
    after = await engine.get(sent.id)
    assert after.attempts[: len(before.attempts)] == before.attempts
    assert [each.outcome for each in after.attempts] == ["dead_letter", "redrive"]


async def epochs_only_grow_over_many_redrives(engine: Full) -> None:
    await kit.dead_one(engine)
    last = 1
    for _ in range(5):
        await engine.redrive(ALL_OF_WORK, limit=1)
        delivery = await kit.take_one(engine)
        assert delivery.receipt.epoch == last + 1
        last += 1
        await kit.bury(engine, delivery)


async def a_receipt_from_before_a_redrive_is_stale(engine: Full) -> None:
    await kit.send_one(engine)
    delivery = await kit.take_one(engine)
    await kit.bury(engine, delivery)
    await engine.redrive(ALL_OF_WORK, limit=1)
    assert await kit.settle(engine, delivery) is Settled.LEASE_LOST
    await kit.take_one(engine)
    assert await kit.settle(engine, delivery) is Settled.LEASE_LOST


async def a_redriven_message_can_be_sent_no_second_time(engine: Full) -> None:
    sent = await kit.dead_one(engine)
    await engine.redrive(ALL_OF_WORK, limit=1)
    assert [answer.admission for answer in await engine.send([sent])] == [Admission.SAME_ID]
    assert await kit.finish(engine) == [sent.id]


async def a_redrive_takes_the_oldest_first_up_to_its_limit(engine: Full, time: Time) -> None:
    dead = []
    for _ in range(5):
        dead.append(await kit.dead_one(engine))
        time.advance(1.0)
    assert await engine.redrive(ALL_OF_WORK, limit=2) == [message.id for message in dead[:2]]
    assert (await engine.counts(WORK)).dead == 3
    assert kit.ids(await kit.take(engine)) == [message.id for message in dead[:2]]


async def a_redrive_takes_what_its_filter_says(engine: Full, time: Time) -> None:
    one = await kit.dead_one(engine, error=kit.failure("app.A"))
    two = await kit.dead_one(engine, error=kit.failure("app.B"), task=TaskName("thumb"))
    time.advance(10.0)
    three = await kit.dead_one(engine, NEXT, error=kit.failure("app.B"))
    four = await kit.dead_one(engine, group="g")
    now = await engine.now()
    assert await engine.redrive(MessageFilter(error="app.A"), limit=10) == [one.id]
    assert await engine.redrive(MessageFilter(error="app.B", queues=(NEXT,)), limit=10) == [three.id]
    assert await engine.redrive(MessageFilter(sent_before=now - 5.0, tasks=("thumb",)), limit=10) == [two.id]
    assert await engine.redrive(MessageFilter(error="app"), limit=10) == []
    assert await engine.redrive(MessageFilter(group="g", ids=(four.id, one.id)), limit=10) == [four.id]


async def only_dead_messages_are_redriven(engine: Full) -> None:
    await kit.send(engine, kit.message(), kit.message(delay_s=60.0), kit.message())
    await kit.take_one(engine)
    before = await kit.everything(engine)
    assert await engine.redrive(ALL_OF_WORK, limit=10) == []
    assert await engine.redrive(MessageFilter(ids=(NEVER_SENT,)), limit=10) == []
    assert await kit.everything(engine) == before


async def a_redrive_or_delete_of_everything_must_be_meant(engine: Full) -> None:
    await kit.dead_one(engine)
    with pytest.raises(ValueInvalid):
        await engine.redrive(MessageFilter(), limit=10)
    with pytest.raises(ValueInvalid):
        await engine.delete(MessageFilter(), limit=10)
    assert (await engine.counts(WORK)).dead == 1


async def a_redrive_may_lead_to_another_queue(engine: Full) -> None:
    sent = await kit.dead_one(engine)
    assert await engine.redrive(ALL_OF_WORK, limit=10, queue=OTHER) == [sent.id]
    assert ((await engine.counts(WORK)).dead, await kit.ready(engine, WORK), await kit.ready(engine, OTHER)) == (0, 0, 1)
    delivery = await kit.take_one(engine, OTHER)
    assert (delivery.message.id, delivery.message.queue, delivery.message.body) == (sent.id, OTHER, sent.body)
    await kit.ok(engine, delivery)
    assert ((await engine.counts(WORK)).done, (await engine.counts(OTHER)).done) == (0, 1)


async def a_redrive_to_an_undeclared_queue_moves_nothing(engine: Full) -> None:
    sent = await kit.dead_one(engine)
    with pytest.raises(QueueNotDeclared):
        await engine.redrive(ALL_OF_WORK, limit=10, queue=QueueName("nowhere"))
    assert await kit.state_of(engine, sent.id) == "dead"


async def a_dead_message_can_be_edited_and_redriven(engine: Full) -> None:
    sent = await kit.dead_one(engine, body=pack("broken"))
    await engine.edit(sent.id, body=pack("mended"))
    edited = (await engine.get(sent.id)).attempts[-1]
    assert edited.outcome == "edited"
    assert str(len(pack("broken"))) in edited.note
    await engine.redrive(ALL_OF_WORK, limit=1)
    delivery = await kit.take_one(engine)
    assert (delivery.message.id, delivery.message.body) == (sent.id, pack("mended"))


async def a_delayed_message_can_be_edited(engine: Full) -> None:
    sent = await kit.send_one(engine, delay_s=60.0)
    await engine.edit(sent.id, body=b"new")
    assert (await engine.get(sent.id)).message.body == b"new"


async def what_may_be_in_somebodys_hands_is_not_edited(engine: Full) -> None:
    done, leased, waiting = await kit.send(engine, *kit.messages(3))
    await kit.ok(engine, (await kit.take(engine, limit=1))[0])
    await kit.take_one(engine)
    for message in (done, leased, waiting):
        with pytest.raises(Refused):
            await engine.edit(message.id, body=b"new")
        assert (await engine.get(message.id)).message.body == message.body
    with pytest.raises(NotFound):
        await engine.edit(NEVER_SENT, body=b"new")


async def an_edited_body_has_the_same_limit(engine: Full) -> None:
    sent = await kit.dead_one(engine)
    with pytest.raises(BodyTooLarge):
        await engine.edit(sent.id, body=bytes(int(engine.capabilities.max_body) + 1))
    assert (await engine.get(sent.id)).message.body == sent.body


async def deleted_dead_letters_are_done_and_cancelled(engine: Full) -> None:
    dead = [await kit.dead_one(engine) for _ in range(3)]
    alive = await kit.send_one(engine)
    assert await engine.delete(MessageFilter(queues=(WORK,)), limit=2) == 2
    views = [await engine.get(message.id) for message in (*dead, alive)]
    assert [(view.state, view.outcome) for view in views] == [("done", "cancelled"), ("done", "cancelled"), ("dead", ""), ("ready", "")]
    counts = await engine.counts(WORK)
    assert (counts.dead, counts.done, counts.ready) == (1, 2, 1)
    assert await engine.delete(MessageFilter(ids=(dead[0].id, alive.id)), limit=10) == 0
    assert await engine.redrive(MessageFilter(ids=(dead[0].id,)), limit=10) == []


async def a_redriven_message_may_still_succeed(engine: Full) -> None:
    sent = await kit.dead_one(engine)
    await engine.redrive(ALL_OF_WORK, limit=1)
    await kit.ok(engine, await kit.take_one(engine), Ack(result=pack("fine")))
    [view] = await engine.results([sent.id])
    assert view is not None
    assert (view.state, view.outcome, view.result, view.failure) == ("done", "succeeded", pack("fine"), None)
