"""A run is accounted for at every moment: it is running, done, dead, failed or cancelled, its open messages are counted, and what has entered is the sum of them all."""

import pytest

from beltline.core.codec import pack
from beltline.core.errors import NotFound
from beltline.core.message import Message
from beltline.core.names import RunId
from beltline.core.outcome import Ack
from beltline.core.views import MessageFilter
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LAST, LINE, NEVER_SENT, NEXT, WORK

POWERS = ("Browse", "Results", "Control", "Runs")


async def _entered(engine: Full) -> tuple[RunId, Message]:
    [first] = await kit.send(engine, kit.placed())
    return kit.run_of(first), first


async def a_run_begins_with_its_first_message(engine: Full) -> None:
    entered_at = await engine.now()
    run, _ = await _entered(engine)
    view = await engine.run(run)
    assert (view.id, view.chain, view.state, view.open, view.dead) == (run, LINE, "running", 1, 0)
    assert (view.entered_at, view.ended_at) == (entered_at, 0.0)
    with pytest.raises(NotFound):
        await engine.run(RunId(NEVER_SENT))


async def messages_sent_twice_are_counted_once(engine: Full) -> None:
    run, first = await _entered(engine)
    await engine.send([first])
    follower = kit.follower(first)
    await kit.ok(engine, await kit.take_one(engine), Ack(then=(follower, follower)))
    assert (await engine.run(run)).open == 1


async def a_run_ends_with_its_last_message(engine: Full, time: Time) -> None:
    run, first = await _entered(engine)
    await kit.ok(engine, await kit.take_one(engine), Ack(then=(kit.follower(first),)))
    assert ((await engine.run(run)).state, (await engine.run(run)).open) == ("running", 1)
    time.advance(10.0)
    await kit.ok(engine, await kit.take_one(engine, NEXT), Ack(result=pack(1)))
    view = await engine.run(run)
    assert (view.state, view.open, view.dead, view.ended_at) == ("done", 0, 0, await engine.now())


async def retries_and_releases_leave_a_run_running(engine: Full) -> None:
    run, _ = await _entered(engine)
    await kit.retry(engine, await kit.take_one(engine), 10.0)
    view = await engine.run(run)
    assert (view.state, view.open) == ("running", 1)


async def a_run_is_dead_while_nothing_runs_and_something_is_dead(engine: Full) -> None:
    run, first = await _entered(engine)
    await kit.ok(engine, await kit.take_one(engine), Ack(then=(kit.follower(first), kit.follower(first, LAST))))
    await kit.bury(engine, await kit.take_one(engine, NEXT))
    view = await engine.run(run)
    assert (view.state, view.open, view.dead) == ("running", 1, 1)
    await kit.ok(engine, await kit.take_one(engine, LAST))
    view = await engine.run(run)
    assert (view.state, view.open, view.dead) == ("dead", 0, 1)
    [result] = await engine.results([run])
    assert result is not None
    assert (result.state, result.failure) == ("dead", kit.failure())


async def a_redrive_lets_a_dead_run_go_on(engine: Full) -> None:
    run, _ = await _entered(engine)
    await kit.bury(engine, await kit.take_one(engine))
    assert (await engine.run(run)).state == "dead"
    await engine.redrive(MessageFilter(run=run), limit=10)
    view = await engine.run(run)
    assert (view.state, view.open, view.dead) == ("running", 1, 0)
    await kit.ok(engine, await kit.take_one(engine), Ack(result=pack("late")))
    assert (await engine.run(run)).state == "done"
    [result] = await engine.results([run])
    assert result is not None
    assert result.result == pack("late")


async def a_run_whose_last_message_was_cancelled_is_cancelled(engine: Full) -> None:
    run, first = await _entered(engine)
    await engine.cancel([first.id])
    assert (await engine.run(run)).state == "cancelled"
    [result] = await engine.results([run])
    assert result is not None
    assert (result.state, result.outcome) == ("done", "cancelled")


async def a_run_whose_only_message_expired_is_cancelled(engine: Full, time: Time) -> None:
    [first] = await kit.send(engine, kit.placed(expires_s=10.0))
    time.advance(10.0)
    assert await kit.take(engine) == []
    assert (await engine.run(kit.run_of(first))).state == "cancelled"


async def deleting_the_dead_message_of_a_run_ends_it(engine: Full) -> None:
    run, _ = await _entered(engine)
    await kit.bury(engine, await kit.take_one(engine))
    await engine.delete(MessageFilter(run=run), limit=1)
    view = await engine.run(run)
    assert (view.state, view.dead) == ("cancelled", 0)


async def cancelling_a_run_cancels_what_waits_and_asks_what_is_held(engine: Full) -> None:
    run, first = await _entered(engine)
    await kit.ok(engine, await kit.take_one(engine), Ack(then=(kit.follower(first), kit.follower(first), kit.follower(first, LAST, delay_s=60.0))))
    held = await kit.take_one(engine, NEXT)
    view = await engine.cancel_run(run, reason="wrong photo")
    assert view.state == "cancelled"
    assert await engine.cancel_asked([held.receipt]) == [held.receipt]
    states = [view.state for view in await kit.everything(engine, run=run)]
    assert sorted(states) == ["done", "done", "done", "leased"]
    with pytest.raises(NotFound):
        await engine.cancel_run(RunId(NEVER_SENT))


async def a_cancelled_run_hands_nothing_on(engine: Full) -> None:
    run, first = await _entered(engine)
    held = await kit.take_one(engine)
    await engine.cancel_run(run)
    await kit.ok(engine, held, Ack(then=(kit.follower(first),), result=pack("too late")))
    assert await kit.ready(engine, NEXT) == 0
    view = await engine.run(run)
    assert (view.state, view.open) == ("cancelled", 0)
    [result] = await engine.results([run])
    assert result is not None
    assert (result.outcome, result.result) == ("cancelled", None)


async def a_cancelled_run_splits_nothing_and_gathers_nothing(engine: Full) -> None:
    run, _ = await kit.split_run(engine, 2)
    first, second = await kit.take(engine, NEXT)
    await kit.answer(engine, first, "a")
    await engine.cancel_run(run)
    ack, _, _ = kit.fan(second.message, 2)
    await kit.ok(engine, second, Ack(part=pack("b"), then=ack.then, gathers=ack.gathers))
    assert await kit.ready(engine, LAST) == 0
    assert await kit.take(engine, NEXT) == []
    assert not any(view.fired for view in await engine.gathers(run))


async def a_failed_run_cancels_its_other_messages(engine: Full) -> None:
    run, _ = await kit.split_run(engine, 4, on_dead="fail")
    first, second = await kit.take(engine, NEXT, limit=2)
    await kit.bury(engine, first)
    view = await engine.run(run)
    assert view.state == "failed"
    assert await engine.cancel_asked([second.receipt]) == [second.receipt]
    await kit.ok(engine, second, kit.cancelled())
    counts = await engine.run_counts(LINE)
    assert (counts.failed, counts.entered) == (1, 1)


async def runs_are_counted_by_chain_and_state(engine: Full) -> None:
    for number in range(6):
        await _entered(engine)
        if number == 1:
            await kit.ok(engine, await kit.take_one(engine))
        elif number == 2:
            await kit.bury(engine, await kit.take_one(engine))
        elif number == 3:
            await engine.cancel_run((await kit.take_one(engine)).message.place.run)  # type: ignore[union-attr]
    counts = await engine.run_counts(LINE)
    assert (counts.running, counts.done, counts.dead, counts.cancelled, counts.failed, counts.entered) == (3, 1, 1, 1, 0, 6)
    assert (await engine.run_counts("other")).entered == 0


async def runs_are_listed_by_state_in_pages(engine: Full) -> None:
    runs = [(await _entered(engine))[0] for _ in range(7)]
    await kit.ok(engine, await kit.take_one(engine))
    assert [view.id for view in await engine.runs(LINE)] == runs
    assert [view.id for view in await engine.runs(LINE, state="done")] == runs[:1]
    assert [view.id for view in await engine.runs(LINE, state="running")] == runs[1:]
    paged: list[str] = []
    while views := await engine.runs(LINE, limit=3, cursor=paged[-1] if paged else ""):
        paged += [view.id for view in views]
    assert paged == runs
    assert await engine.runs("other") == []


async def a_run_can_be_run_again_from_a_stage(engine: Full) -> None:
    """A new message with the run's place opens the run again: the same run, the same history."""
    run, first = await _entered(engine)
    await kit.ok(engine, await kit.take_one(engine), Ack(result=pack("one")))
    again = kit.follower(first)
    await kit.send(engine, again)
    assert ((await engine.run(run)).state, (await engine.run(run)).open) == ("running", 1)
    await kit.ok(engine, await kit.take_one(engine, NEXT), Ack(result=pack("two")))
    [result] = await engine.results([run])
    assert result is not None
    assert (result.state, result.result) == ("done", pack("two"))
    assert (await engine.run_counts(LINE)).entered == 1


async def what_has_entered_is_conserved_at_every_step(engine: Full) -> None:
    dice = kit.dice(9)
    entered = 0
    for _ in range(120):
        draw = dice.random()
        if draw < 0.3:
            await _entered(engine)
            entered += 1
        elif draw < 0.6:
            for delivery in await kit.take(engine, limit=2):
                ack, _, _ = kit.fan(delivery.message, dice.randint(0, 3), on_dead=dice.choice(("hold", "skip", "fail")))
                await kit.ok(engine, delivery, ack)
        elif draw < 0.85:
            for delivery in await kit.take(engine, NEXT, limit=3):
                if dice.random() < 0.3:
                    await kit.bury(engine, delivery)
                else:
                    await kit.answer(engine, delivery, 1)
        elif draw < 0.9:
            for view in await engine.runs(LINE, state="dead", limit=1):
                await engine.redrive(MessageFilter(run=view.id), limit=1)
        elif draw < 0.95:
            for view in await engine.runs(LINE, state="running", limit=1):
                await engine.cancel_run(RunId(view.id))
        else:
            await kit.finish(engine, LAST)
        counts = await engine.run_counts(LINE)
        assert counts.entered == entered
        listed = [view.state for view in await engine.runs(LINE, limit=1000)]
        assert {state: listed.count(state) for state in ("running", "done", "dead", "failed", "cancelled")} == {
            "running": counts.running,
            "done": counts.done,
            "dead": counts.dead,
            "failed": counts.failed,
            "cancelled": counts.cancelled,
        }
    for view in await engine.runs(LINE, limit=1000):
        live = [each for each in await kit.everything(engine, run=view.id) if each.state in ("ready", "delayed", "leased")]
        assert view.open == len(live)
    assert (await engine.counts(WORK)).done + (await engine.counts(WORK)).ready == entered
