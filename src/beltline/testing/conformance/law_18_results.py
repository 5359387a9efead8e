"""A result is written together with the ack: no ack without its result, no result without its ack; whoever knows the id can ask for it until its time is over."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from beltline.core.codec import pack
from beltline.core.outcome import Ack, Ended, Settled
from beltline.core.views import ResultView
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LEASE_S, NEVER_SENT, NEXT

POWERS = ("Browse", "Results", "Control", "Runs", "Upkeep")
WAIT_S = 20.0  # real seconds at most: every one of these waits ends by an event
WOKEN_S = 4.0  # and so soon that it cannot have been an engine's next look of its own
HEAD_START_S = 0.03  # real seconds, so that the waiter is waiting when it happens; a test that loses this race still holds, it only proves less


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


async def _wait_while(engine: Full, ids: Sequence[str], work: Callable[[], Awaitable[object]]) -> list[ResultView]:
    """What the waiter is told who was waiting for the first end among `ids` while another thread did `work`."""

    async def wait() -> list[ResultView]:
        async with asyncio.timeout(WOKEN_S):
            while True:
                views = [view for view in await engine.await_results(ids, wait_s=WAIT_S) if view is not None]
                assert len(views) == len(ids)
                if any(view.state in ("done", "dead") for view in views):
                    return views

    async def later() -> None:
        await asyncio.sleep(HEAD_START_S)
        await work()

    [views, _] = await kit.together(wait, lambda: kit.in_threads(later))
    return list(views)


async def waiting_ends_when_the_message_ends(engine: Full) -> None:
    sent = await kit.send_one(engine)
    delivery = await kit.take_one(engine)
    [view] = await _wait_while(engine, [sent.id], lambda: kit.ok(engine, delivery, Ack(result=pack(7))))
    assert (view.state, view.result) == ("done", pack(7))


async def waiting_ends_when_the_message_is_cancelled(engine: Full) -> None:
    sent = await kit.send_one(engine)
    [view] = await _wait_while(engine, [sent.id], lambda: engine.cancel([sent.id]))
    assert (view.state, view.outcome) == ("done", "cancelled")


async def waiting_for_many_ends_with_the_first_of_them(engine: Full) -> None:
    sent = await kit.send(engine, *kit.messages(3))
    deliveries = await kit.take(engine)
    views = await _wait_while(engine, [message.id for message in sent], lambda: kit.bury(engine, deliveries[1]))
    assert [view.state for view in views] == ["leased", "dead", "leased"]


async def waiting_ends_when_a_run_ends(engine: Full) -> None:
    [first] = await kit.send(engine, kit.placed())
    delivery = await kit.take_one(engine)
    [view] = await _wait_while(engine, [kit.run_of(first)], lambda: kit.ok(engine, delivery, Ack(result=pack("end"))))
    assert (view.state, view.result) == ("done", pack("end"))


async def waiting_ends_when_a_gather_ends_the_run(engine: Full) -> None:
    run, _ = await kit.split_run(engine, 2, then=None)
    first, second = await kit.take(engine, NEXT)
    await kit.answer(engine, first, "a")
    [view] = await _wait_while(engine, [run], lambda: kit.answer(engine, second, "b"))
    assert (view.state, view.result) == ("done", pack(["a", "b"]))


async def waiting_ends_when_a_run_is_dead_failed_or_cancelled(engine: Full) -> None:
    for on_dead, ending in (("hold", "dead"), ("fail", "failed"), ("hold", "cancelled")):
        run, _ = await kit.split_run(engine, 1, on_dead=on_dead)
        part = await kit.take_one(engine, NEXT)
        if ending == "cancelled":
            [view] = await _wait_while(engine, [run], lambda run=run: engine.cancel_run(run))  # type: ignore[misc]
            await kit.ok(engine, part, kit.cancelled())
        else:
            [view] = await _wait_while(engine, [run], lambda part=part: kit.bury(engine, part))  # type: ignore[misc]
        assert view.state == ("done" if ending == "cancelled" else "dead")
        assert (await engine.run(run)).state == ending


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
