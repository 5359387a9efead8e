"""A message id is stored once: sending it again stores nothing, changes nothing and says so, also while it is worked on and for at least 24 hours after it has ended."""

from beltline.core.codec import pack
from beltline.core.outcome import Ack, Admission, Sent
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import NEXT, WORK

POWERS = ("Browse", "Control", "Upkeep")


async def a_new_id_is_stored(engine: Full) -> None:
    message = kit.message()
    assert await engine.send([message]) == [Sent(message.id, Admission.STORED)]
    assert await kit.ready(engine) == 1


async def an_id_that_waits_is_not_stored_again(engine: Full) -> None:
    message = await kit.send_one(engine, body=pack("first"))
    again = kit.message(id=message.id, body=pack("second"))
    assert await engine.send([again]) == [Sent(message.id, Admission.SAME_ID)]
    assert [delivery.message.body for delivery in await kit.take(engine)] == [pack("first")]


async def an_id_that_is_delayed_leased_done_or_dead_is_not_stored_again(engine: Full) -> None:
    delayed = await kit.send_one(engine, NEXT, delay_s=60.0)
    dead = await kit.dead_one(engine)
    done = await kit.send_one(engine)
    await kit.ok(engine, await kit.take_one(engine))
    leased = await kit.send_one(engine)
    held = await kit.take_one(engine)
    answers = await engine.send([delayed, leased, done, dead])
    assert [sent.admission for sent in answers] == [Admission.SAME_ID] * 4
    assert [await kit.state_of(engine, id) for id in (delayed.id, leased.id, done.id, dead.id)] == ["delayed", "leased", "done", "dead"]
    assert await kit.take(engine) == []
    await kit.ok(engine, held)


async def an_id_that_was_cancelled_is_not_stored_again(engine: Full) -> None:
    message = await kit.send_one(engine)
    await engine.cancel([message.id])
    assert await engine.send([message]) == [Sent(message.id, Admission.SAME_ID)]
    assert await kit.take(engine) == []


async def an_id_twice_in_one_batch_is_stored_once(engine: Full) -> None:
    message = kit.message()
    answers = await engine.send([message, kit.message(), message])
    assert [sent.admission for sent in answers] == [Admission.STORED, Admission.STORED, Admission.SAME_ID]
    assert await kit.ready(engine) == 2


async def an_id_counts_in_every_queue(engine: Full) -> None:
    message = await kit.send_one(engine, WORK)
    assert await engine.send([kit.message(NEXT, id=message.id)]) == [Sent(message.id, Admission.SAME_ID)]
    assert await kit.ready(engine, NEXT) == 0


async def eight_senders_of_one_id_store_it_once(engine: Full) -> None:
    message = kit.message()
    answers = await kit.in_threads(*[lambda: engine.send([message])] * 8)
    assert sorted(sent.admission for [sent] in answers) == [Admission.STORED] + [Admission.SAME_ID] * 7
    assert await kit.ready(engine) == 1


async def an_id_is_remembered_for_a_day_after_its_end(engine: Full, time: Time) -> None:
    message = await kit.send_one(engine)
    await kit.ok(engine, await kit.take_one(engine))
    time.advance(86399.0)
    await engine.retain(history_s=86400.0)
    assert await engine.send([message]) == [Sent(message.id, Admission.SAME_ID)]
    assert await kit.take(engine) == []


async def an_id_given_back_by_the_hand_off_is_stored_once(engine: Full) -> None:
    follower = kit.message(NEXT)
    await kit.send(engine, *kit.messages(2))
    for delivery in await kit.take(engine):
        await kit.ok(engine, delivery, Ack(then=(follower,)))
    assert await kit.finish(engine, NEXT) == [follower.id]
