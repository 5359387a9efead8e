"""A delayed message is not received before its instant, however far away that is, and is received from then on."""

import math

from beltline.core.limits import MAX_DELAY_S
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import WORK

NEEDS = {"max_delay_s": math.inf}
POWERS = ("Browse",)


async def a_delayed_message_waits_for_its_instant(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine, delay_s=60.0)
    view = await engine.get(sent.id)
    assert (view.state, view.due_at) == ("delayed", await engine.now() + 60.0)
    time.advance(59.75)
    assert await kit.take(engine) == []
    time.advance(0.25)
    delivery = await kit.take_one(engine)
    assert (delivery.message.id, delivery.attempt) == (sent.id, 1)


async def any_length_of_delay_is_kept(engine: Full, time: Time) -> None:
    lengths = [0.25, 1.0, 3600.0, 86400.0 * 31, 86400.0 * 366 * 10, MAX_DELAY_S]
    sent = await kit.send(engine, *(kit.message(delay_s=delay_s) for delay_s in lengths))
    passed = 0.0
    for message, delay_s in zip(sent, lengths, strict=True):
        time.advance(delay_s - passed - 0.125)
        assert await kit.take(engine) == []
        time.advance(0.125)
        passed = delay_s
        delivery = await kit.take_one(engine)
        assert delivery.message.id == message.id
        await kit.ok(engine, delivery)


async def ready_at_is_an_instant_and_wins_over_delay_s(engine: Full, time: Time) -> None:
    now = await engine.now()
    sent = await kit.send_one(engine, ready_at=now + 20.0, delay_s=500.0)
    assert (await engine.get(sent.id)).due_at == now + 20.0
    time.advance(19.0)
    assert await kit.take(engine) == []
    time.advance(1.0)
    assert len(await kit.take(engine)) == 1


async def an_instant_in_the_past_is_now(engine: Full) -> None:
    now = await engine.now()
    await kit.send(engine, kit.message(ready_at=now - 1000.0), kit.message(ready_at=0.0), kit.message(ready_at=now))
    assert len(await kit.take(engine)) == 3


async def no_delay_is_ready_at_once(engine: Full) -> None:
    await kit.send_one(engine, delay_s=0.0)
    counts = await engine.counts(WORK)
    assert (counts.ready, counts.delayed) == (1, 0)


async def delayed_messages_become_ready_in_the_order_of_their_instants(engine: Full, time: Time) -> None:
    delays = [50.0, 10.0, 40.0, 20.0, 30.0]
    sent = await kit.send(engine, *(kit.message(delay_s=delay_s) for delay_s in delays))
    time.advance(60.0)
    assert kit.ids(await kit.take(engine)) == [message.id for _, message in sorted(zip(delays, sent, strict=True), key=lambda pair: pair[0])]


async def a_delayed_message_holds_back_nobody(engine: Full) -> None:
    await kit.send(engine, *kit.messages(100, delay_s=60.0))
    sent = await kit.send_one(engine)
    assert kit.ids(await kit.take(engine)) == [sent.id]


async def a_message_whose_instant_has_come_counts_as_ready(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine, delay_s=10.0)
    time.advance(10.0)
    counts = await engine.counts(WORK)
    assert (counts.ready, counts.delayed) == (1, 0)
    assert await kit.state_of(engine, sent.id) == "ready"
    assert [view.message.id for view in await kit.everything(engine, states=("ready",))] == [sent.id]
    assert await kit.everything(engine, states=("delayed",)) == []


async def the_first_send_time_stays(engine: Full, time: Time) -> None:
    sent_at = await engine.now()
    await kit.send_one(engine, delay_s=100.0)
    time.advance(100.0)
    assert (await kit.take_one(engine)).sent_at == sent_at
