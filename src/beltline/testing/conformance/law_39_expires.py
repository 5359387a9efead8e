"""A message that nobody received within its own time ends as expired and is never handed out; one that was handed out in time is worked on to its end."""

from beltline.core.outcome import Admission
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LEASE_S, WORK

POWERS = ("Browse", "Results", "Control", "Upkeep")


async def it_is_received_in_time(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine, expires_s=60.0)
    time.advance(59.75)
    assert kit.ids(await kit.take(engine)) == [sent.id]


async def it_is_not_handed_out_afterwards(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine, expires_s=60.0)
    time.advance(60.0)
    assert await kit.take(engine) == []
    view = await engine.get(sent.id)
    assert (view.state, view.outcome) == ("done", "expired")
    [result] = await engine.results([sent.id])
    assert result is not None
    assert (result.state, result.outcome, result.result) == ("done", "expired", None)


async def a_delay_longer_than_its_time_ends_it(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine, delay_s=60.0, expires_s=30.0)
    time.advance(60.0)
    assert await kit.take(engine) == []
    assert (await engine.get(sent.id)).outcome == "expired"


async def once_handed_out_it_no_longer_expires(engine: Full, time: Time) -> None:
    for end in (kit.retry, kit.release):
        sent = await kit.send_one(engine, expires_s=20.0)
        await end(engine, await kit.take_one(engine))
        time.advance(100.0)
        await engine.sweep()
        assert await kit.finish(engine) == [sent.id]
    lost = await kit.send_one(engine, expires_s=20.0)
    await kit.take_one(engine)
    time.advance(LEASE_S)
    assert await kit.finish(engine) == [lost.id]


async def a_sweep_ends_it_where_nobody_receives(engine: Full, time: Time) -> None:
    await kit.send(engine, kit.message(expires_s=10.0), kit.message(expires_s=10.0, delay_s=60.0), kit.message(expires_s=11.0), kit.message())
    time.advance(10.0)
    assert await engine.sweep() == 2
    counts = await engine.counts(WORK)
    assert (counts.ready, counts.delayed, counts.done) == (2, 0, 2)


async def it_does_not_count_towards_the_limit_of_a_receive(engine: Full, time: Time) -> None:
    await kit.send(engine, *kit.messages(5, expires_s=10.0, priority=100))
    sent = await kit.send(engine, *kit.messages(2))
    time.advance(10.0)
    assert kit.ids(await kit.take(engine, limit=2)) == [message.id for message in sent]


async def its_id_is_remembered(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine, expires_s=10.0)
    time.advance(10.0)
    await engine.sweep()
    assert [answer.admission for answer in await engine.send([sent])] == [Admission.SAME_ID]


async def without_an_end_it_waits_for_ever(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    time.advance(kit.FAR_S)
    await engine.sweep()
    assert await kit.finish(engine) == [sent.id]
