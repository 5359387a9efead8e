"""A result is written together with the ack: no ack without its result, no result without its ack; whoever knows the id can ask for it until its time is over."""

import asyncio

from beltline.core.codec import pack
from beltline.core.outcome import Ack, Ended, Settled
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LEASE_S, NEVER_SENT, NEXT

POWERS = ("Browse", "Results", "Control", "Runs", "Upkeep")
WAIT_S = 20.0  # real seconds at most: every one of these waits ends by an event


async def a_result_is_there_as_soon_as_the_ack_is(engine: Full) -> None:
    sent = await kit.send_one(engine)
    delivery = await kit.take_one(engine)
    await kit.ok(engine, delivery, Ack(result=pack([1, 2])))
    [view] = await engine.results([sent.id])
    assert view is not None
    assert (view.id, view.state, view.outcome, view.result, view.expired) == (sent.id, "done", "succeeded", pack([1, 2]), False)


async def an_ack_without_a_result_stores_none(engine: Full) -> None:
    sent = await kit.send_one(engine)
    await kit.ok(engine, await kit.take_one(engine))
    [view] = await engine.results([sent.id])
    assert view is not None
    assert (view.state, view.outcome, view.result, view.expired) == ("done", "succeeded", None, False)


async def every_state_can_be_asked_for(engine: Full) -> None:
    dead = await kit.dead_one(engine)
    ended = await kit.send_one(engine)
    await kit.ok(engine, await kit.take_one(engine), Ack(ended=Ended.CANCELLED, note="not needed"))
    leased = await kit.send_one(engine)
    await kit.take_one(engine)
    waiting, delayed = await kit.send(engine, kit.message(NEXT), kit.message(NEXT, delay_s=9.0))
    views = await engine.results([delayed.id, waiting.id, leased.id, ended.id, dead.id])
    assert [(view.state, view.outcome) for view in views if view] == [
        ("delayed", ""),
        ("ready", ""),
        ("leased", ""),
        ("done", "cancelled"),
        ("dead", ""),
    ]


async def an_id_never_sent_is_answered_with_nothing(engine: Full) -> None:
    sent = await kit.send_one(engine)
    views = await engine.results([NEVER_SENT, sent.id, NEVER_SENT])
    assert [view is None for view in views] == [True, False, True]
    assert await engine.results([]) == []


async def a_result_whose_time_is_over_is_expired_not_unknown(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    await kit.ok(engine, await kit.take_one(engine), Ack(result=pack(1), result_ttl_s=60.0))
    time.advance(59.0)
    [before] = await engine.results([sent.id])
    time.advance(1.0)
    [after] = await engine.results([sent.id])
    await engine.retain(history_s=86400.0)
    [kept] = await engine.results([sent.id])
    assert before is not None
    assert (before.result, before.expired) == (pack(1), False)
    for view in (after, kept):
        assert view is not None
        assert (view.state, view.outcome, view.result, view.expired) == ("done", "succeeded", None, True)


async def the_result_of_a_run_is_found_under_the_run(engine: Full) -> None:
    [first] = await kit.send(engine, kit.placed())
    run = kit.run_of(first)
    second = kit.follower(first)
    [view] = await engine.results([run])
    assert view is not None
    assert view.state == "running"
    await kit.ok(engine, await kit.take_one(engine), Ack(then=(second,)))
    await kit.ok(engine, await kit.take_one(engine, NEXT), Ack(result=pack("end")))
    [view] = await engine.results([run])
    assert view is not None
    assert (view.id, view.state, view.outcome, view.result) == (run, "done", "succeeded", pack("end"))


async def a_failure_replaces_no_result(engine: Full) -> None:
    sent = await kit.send_one(engine)
    await kit.retry(engine, await kit.take_one(engine))
    [view] = await engine.results([sent.id])
    assert view is not None
    assert (view.state, view.result) == ("ready", None)


async def progress_shows_the_newest_note(engine: Full) -> None:
    sent = await kit.send_one(engine)
    delivery = await kit.take_one(engine)
    for share in (0.25, 0.5):
        assert await engine.progress([(delivery.receipt, pack(share))]) == [Settled.DONE]
    [view] = await engine.results([sent.id])
    assert view is not None
    assert (view.state, view.progress) == ("leased", pack(0.5))
    assert (await engine.get(sent.id)).progress == pack(0.5)


async def progress_of_one_message_is_not_that_of_another(engine: Full) -> None:
    one, two = await kit.send(engine, *kit.messages(2))
    first, second = await kit.take(engine)
    await engine.progress([(first.receipt, pack(1)), (second.receipt, pack(2)), (first.receipt, pack(3))])
    views = await engine.results([one.id, two.id])
    assert [view.progress for view in views if view] == [pack(3), pack(2)]


async def waiting_ends_when_the_message_ends(engine: Full) -> None:
    sent = await kit.send_one(engine)
    delivery = await kit.take_one(engine)

    async def wait() -> None:
        async with asyncio.timeout(WAIT_S):
            while True:
                [view] = await engine.await_results([sent.id], wait_s=WAIT_S)
                assert view is not None
                if view.state == "done":
                    assert view.result == pack(7)
                    return

    await kit.together(wait, lambda: kit.in_threads(lambda: kit.ok(engine, delivery, Ack(result=pack(7)))))


async def waiting_for_many_ends_with_the_first_of_them(engine: Full) -> None:
    sent = await kit.send(engine, *kit.messages(3))
    deliveries = await kit.take(engine)

    async def wait() -> None:
        async with asyncio.timeout(WAIT_S):
            while True:
                views = await engine.await_results([message.id for message in sent], wait_s=WAIT_S)
                states = [view.state for view in views if view]
                if states != ["leased"] * 3:
                    assert states == ["leased", "dead", "leased"]
                    return

    await kit.together(wait, lambda: kit.in_threads(lambda: kit.bury(engine, deliveries[1])))


async def waiting_ends_when_a_run_ends(engine: Full) -> None:
    run, _ = await kit.split_run(engine, 2, then=None)
    first, second = await kit.take(engine, NEXT)

    async def wait() -> None:
        async with asyncio.timeout(WAIT_S):
            while True:
                [view] = await engine.await_results([run], wait_s=WAIT_S)
                assert view is not None
                if view.state == "done":
                    assert view.result == pack(["a", "b"])
                    return

    async def work() -> None:
        await kit.answer(engine, first, "a")
        await kit.answer(engine, second, "b")

    await kit.together(wait, lambda: kit.in_threads(work))


async def waiting_for_what_has_ended_does_not_wait(engine: Full) -> None:
    sent = await kit.send_one(engine)
    await kit.ok(engine, await kit.take_one(engine), Ack(result=pack(1)))
    async with asyncio.timeout(WAIT_S):
        [view] = await engine.await_results([sent.id], wait_s=86400.0)
    assert view is not None
    assert view.result == pack(1)


async def a_wait_that_is_over_answers_with_what_there_is(engine: Full) -> None:
    sent = await kit.send_one(engine)
    for wait_s in (0.0, 0.01):
        [view, nothing] = await engine.await_results([sent.id, NEVER_SENT], wait_s=wait_s)
        assert view is not None
        assert (view.state, nothing) == ("ready", None)


async def a_lease_that_is_over_reads_as_ready(engine: Full, time: Time) -> None:
    sent = await kit.send_one(engine)
    await kit.take_one(engine)
    time.advance(LEASE_S)
    [view] = await engine.results([sent.id])
    assert view is not None
    assert view.state == "ready"
