"""A queue that is snoozed, or whose kill switch has tripped because too much failed in it, hands out nothing until its time; then it goes on, or a few messages show if it can."""

from typing import Any

import pytest

from beltline.core.errors import QueueNotDeclared, ValueInvalid
from beltline.core.flow import KillSwitch
from beltline.core.message import Delivery
from beltline.core.names import QueueName
from beltline.core.outcome import Ack, DeadLetter, Outcome, Release, RetryAfter, Settled, Settlement
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Harness, Time
from beltline.testing.conformance.kit import LEASE_S, NEXT, WORK

POWERS = ("Limits", "Control", "Browse", "Upkeep")

RULE = KillSwitch(share=0.5, least=4, window_s=60.0, pause_s=30.0, tries=2)
BAD = RetryAfter(delay_s=0.0, failure=kit.failure())


async def _switched(engine: Full, number: int = 40, rule: KillSwitch = RULE) -> None:
    await engine.declare([kit.specs(WORK, kill_switch=rule)])
    await kit.send(engine, *kit.messages(number))


async def _end(engine: Full, *outcomes: Outcome) -> None:
    """So many deliveries, each settled in a write of its own."""
    for outcome in outcomes:
        await kit.ok(engine, await kit.take_one(engine), outcome)


async def _end_together(engine: Full, *outcomes: Outcome) -> None:
    deliveries = await kit.take(engine, limit=len(outcomes))
    answers = await engine.settle([Settlement(each.receipt, outcome) for each, outcome in zip(deliveries, outcomes, strict=True)])
    assert set(answers) == {Settled.DONE}


async def _tripped(engine: Full) -> float:
    """Until when; 0.0 = it goes on."""
    return (await engine.counts(WORK)).tripped_until


async def _trip(engine: Full) -> None:
    await _switched(engine)
    await _end_together(engine, *[BAD] * 4)
    assert await _tripped(engine) > 0


# ------------------------------------------------------------------------------------------------------------------- snooze


async def a_snoozed_queue_hands_out_nothing_until_its_time(engine: Full, time: Time) -> None:
    sent = await kit.send(engine, kit.message(), kit.shaped(tenant="t"))
    until = await engine.snooze(WORK, seconds=60.0)
    assert until == await engine.now() + 60.0
    assert await kit.take(engine) == []
    counts = await engine.counts(WORK)
    assert (counts.ready, counts.snoozed_until, counts.paused, counts.held) == (2, until, False, 2)
    time.advance(59.75)
    assert await kit.take(engine) == []
    time.advance(0.25)
    assert (await engine.counts(WORK)).snoozed_until == 0.0
    assert await kit.finish(engine) == [message.id for message in sent]


async def a_snooze_that_ends_later_stays(engine: Full, time: Time) -> None:
    await kit.send_one(engine)
    until = await engine.snooze(WORK, seconds=60.0)
    assert await engine.snooze(WORK, seconds=10.0) == until
    time.advance(5.0)
    assert await engine.snooze(WORK, seconds=60.0) == until + 5.0
    time.advance(55.0)
    assert await kit.take(engine) == []


async def a_resume_ends_it(engine: Full) -> None:
    await kit.send_one(engine)
    await engine.snooze(WORK, seconds=60.0)
    await engine.resume(WORK)
    assert (await engine.counts(WORK)).snoozed_until == 0.0
    assert len(await kit.take(engine)) == 1


async def other_queues_go_on(engine: Full) -> None:
    await kit.send(engine, kit.message(WORK), kit.message(NEXT))
    await engine.snooze(WORK, seconds=60.0)
    deliveries = await engine.receive([WORK, NEXT], limit=10, lease_s=LEASE_S)
    assert [each.message.queue for each in deliveries] == [NEXT]


async def what_is_held_goes_on(engine: Full, time: Time) -> None:
    await kit.send(engine, *kit.messages(3))
    first, second, third = await kit.take(engine)
    await engine.snooze(WORK, seconds=60.0)
    time.advance(20.0)
    assert await engine.renew([first.receipt], lease_s=LEASE_S) == [Settled.DONE]
    await kit.ok(engine, first, Ack(then=(kit.message(NEXT),)))
    await kit.retry(engine, second)
    await kit.release(engine, third)
    assert (await kit.ready(engine, NEXT), await kit.take(engine)) == (1, [])


async def a_lease_that_runs_out_meanwhile_waits_for_its_end(engine: Full, time: Time) -> None:
    await engine.declare([kit.specs(WORK, max_deliveries=1)])
    await kit.send_one(engine)
    held = await kit.take_one(engine)
    await engine.snooze(WORK, seconds=60.0)
    time.advance(LEASE_S)
    assert await kit.take(engine) == []
    await engine.sweep()
    await kit.ok(engine, held)


async def a_delivery_snoozes_its_queue_in_the_write_of_its_release(engine: Full, time: Time) -> None:
    await kit.send(engine, *kit.messages(3))
    held = await kit.take_one(engine)
    until = await engine.now() + 10.0
    await kit.ok(engine, held, Release(delay_s=5.0, why="too many requests", queue_s=10.0))
    assert (await engine.counts(WORK)).snoozed_until == until
    view = await engine.get(held.message.id)
    assert (view.failed, view.lost, view.why) == (0, 0, "too many requests")
    assert await kit.take(engine) == []
    time.advance(10.0)
    assert len(await kit.take(engine)) == 3


async def a_stale_release_snoozes_nothing(engine: Full, time: Time) -> None:
    await kit.send_one(engine)
    stale = await kit.take_one(engine)
    time.advance(LEASE_S)
    await kit.take_one(engine)
    assert await kit.settle(engine, stale, Release(queue_s=60.0)) is Settled.LEASE_LOST
    assert (await engine.counts(WORK)).snoozed_until == 0.0


async def a_snooze_is_no_pause(engine: Full) -> None:
    await kit.send_one(engine)
    await engine.pause(WORK)
    await engine.snooze(WORK, seconds=0.0)
    assert (await engine.counts(WORK)).paused
    assert await kit.take(engine) == []


async def a_time_that_is_none_is_refused(engine: Full) -> None:
    await kit.send_one(engine)
    held = await kit.take_one(engine)
    for seconds in (-1.0, float("nan")):
        with pytest.raises(ValueInvalid):
            await engine.snooze(WORK, seconds=seconds)
        with pytest.raises(ValueInvalid):
            await kit.settle(engine, held, Release(queue_s=seconds))
    assert (await engine.counts(WORK)).snoozed_until == 0.0
    await kit.ok(engine, held)


async def a_queue_that_was_never_declared_is_refused(engine: Full) -> None:
    with pytest.raises(QueueNotDeclared):
        await engine.snooze(QueueName("nowhere"), seconds=1.0)


# -------------------------------------------------------------------------------------------------------------- kill switch


async def too_much_failed_work_stops_the_queue(engine: Full, time: Time) -> None:
    await _switched(engine)
    await _end(engine, Ack(), BAD, Ack())
    assert await _tripped(engine) == 0.0
    await _end(engine, DeadLetter(reason="broken", failure=kit.failure()))
    assert await _tripped(engine) == await engine.now() + 30.0
    assert await kit.take(engine) == []
    time.advance(29.75)
    assert await kit.take(engine) == []


async def less_than_its_share_or_fewer_than_it_says_do_not(engine: Full) -> None:
    await _switched(engine)
    await _end(engine, BAD, BAD, BAD)
    assert await _tripped(engine) == 0.0
    await engine.resume(WORK)
    await _end(engine, Ack(), Ack(), BAD, Ack(), BAD)
    assert await _tripped(engine) == 0.0


async def the_ends_of_one_settle_are_judged_together(engine: Full) -> None:
    await _switched(engine)
    await _end_together(engine, BAD, BAD, BAD, BAD, *[Ack()] * 5)
    assert await _tripped(engine) == 0.0
    await _end_together(engine, Ack(), BAD, Ack(), BAD, BAD)
    assert await _tripped(engine) > 0


async def releases_do_not_count(engine: Full) -> None:
    await _switched(engine)
    await _end(engine, BAD, BAD, BAD, *[Release()] * 5)
    assert await _tripped(engine) == 0.0
    await _end(engine, Ack())
    assert await _tripped(engine) > 0


async def old_ends_do_not_count(engine: Full, time: Time) -> None:
    await _switched(engine)
    await _end(engine, BAD, BAD, BAD)
    time.advance(60.0)
    await _end(engine, BAD, BAD, BAD)
    assert await _tripped(engine) == 0.0


async def those_of_the_half_window_before_count(engine: Full, time: Time) -> None:
    await _switched(engine)
    await _end(engine, BAD, BAD, BAD)
    time.advance(30.0)
    await _end(engine, BAD)
    assert await _tripped(engine) > 0


async def after_its_pause_a_few_may_try(engine: Full, time: Time) -> None:
    await _trip(engine)
    time.advance(30.0)
    counts = await engine.counts(WORK)
    assert (counts.tripped_until, counts.trying) == (0.0, True)
    first, second = await kit.take(engine)
    assert await kit.take(engine) == []
    await kit.release(engine, first)
    [again] = await kit.take(engine)
    await kit.ok(engine, again)
    assert (await kit.take(engine), (await engine.counts(WORK)).trying) == ([], True)
    await kit.ok(engine, second)
    assert not (await engine.counts(WORK)).trying
    assert len(await kit.take(engine)) > 2


async def at_the_first_that_fails_it_stops_twice_as_long_and_at_most_ten_times(engine: Full, time: Time) -> None:
    await _trip(engine)
    for pauses in (1, 2, 4, 8, 10, 10):
        assert await _tripped(engine) == await engine.now() + 30.0 * pauses
        time.advance(30.0 * pauses)
        await _end(engine, Ack(), BAD)


async def once_well_it_begins_anew(engine: Full, time: Time) -> None:
    await _trip(engine)
    time.advance(30.0)
    await _end(engine, Ack(), Ack())
    await _end(engine, BAD, BAD, BAD)
    assert await _tripped(engine) == 0.0
    await _end(engine, BAD)
    assert await _tripped(engine) == await engine.now() + 30.0


async def what_ends_while_it_is_stopped_changes_nothing(engine: Full, time: Time) -> None:
    await _switched(engine)
    out = await kit.take(engine, limit=6, lease_s=600.0)
    for delivery in out[:5]:
        await kit.ok(engine, delivery, BAD)
    until = await _tripped(engine)
    assert until == await engine.now() + 30.0
    time.advance(10.0)
    await kit.ok(engine, out[5])
    assert await _tripped(engine) == until


async def a_lease_from_before_takes_the_place_of_one_that_tries(engine: Full, time: Time) -> None:
    await _switched(engine)
    out = await kit.take(engine, limit=5, lease_s=600.0)
    for delivery in out[:4]:
        await kit.ok(engine, delivery, BAD)
    time.advance(30.0)
    assert len(await kit.take(engine)) == 1


async def a_lease_that_is_over_may_try_again(engine: Full, time: Time) -> None:
    await _trip(engine)
    time.advance(30.0)
    tried = await kit.take(engine)
    time.advance(LEASE_S)
    again = await kit.take(engine)
    assert (len(tried), kit.ids(again), [each.lost for each in again]) == (2, kit.ids(tried), [1, 1])
    assert await kit.take(engine) == []


async def a_resume_closes_the_switch(engine: Full, time: Time) -> None:
    for wait_s in (0.0, 30.0):
        await _trip(engine)
        time.advance(wait_s)
        await engine.resume(WORK)
        counts = await engine.counts(WORK)
        assert (counts.tripped_until, counts.trying) == (0.0, False)
        assert len(await kit.take(engine)) > 2
        await engine.purge(WORK)


async def other_queues_are_not_judged(engine: Full) -> None:
    await _switched(engine)
    await kit.send(engine, *kit.messages(9, NEXT))
    for _ in range(9):
        await kit.ok(engine, await kit.take_one(engine, NEXT), BAD)
    assert (await _tripped(engine), (await engine.counts(NEXT)).tripped_until) == (0.0, 0.0)


async def messages_with_flow_stop_like_all_others(engine: Full, time: Time) -> None:
    await _trip(engine)
    await kit.send(engine, *(kit.shaped(tenant="t", priority=100) for _ in range(9)))
    assert await kit.take(engine) == []
    time.advance(30.0)
    assert kit.tenants(await kit.take(engine)) == "tt"


async def a_rule_that_is_none_is_refused(engine: Full) -> None:
    wrong: list[dict[str, Any]] = [{"share": 0.0}, {"share": 1.5}, {"least": 0}, {"tries": 0}, {"window_s": 0.0}, {"pause_s": -1.0}]
    for numbers in wrong:
        with pytest.raises(ValueInvalid):
            await engine.declare([kit.specs(WORK, kill_switch=KillSwitch(**numbers))])


# ------------------------------------------------------------------------------------------------------ waiting, restarting


async def _waiting(engine: Full) -> list[Delivery]:
    return await kit.wait_for_one(engine)


async def the_end_of_a_snooze_and_a_resume_wake_a_waiting_receive(harness: Harness) -> None:
    engine: Full = harness.engine()  # type: ignore[assignment]
    await engine.open()
    try:
        await engine.declare([kit.specs(WORK)])
        await kit.send(engine, *kit.messages(2))
        await engine.snooze(WORK, seconds=0.1)
        assert len(await _waiting(engine)) == 1
        await engine.snooze(WORK, seconds=3600.0)
        [got, _] = await kit.together(lambda: _waiting(engine), lambda: kit.in_threads(lambda: engine.resume(WORK)))
        assert len(got) == 1
    finally:
        await engine.close()


async def a_switch_wakes_a_waiting_receive_when_some_may_try_and_when_all_is_well(harness: Harness) -> None:
    engine: Full = harness.engine()  # type: ignore[assignment]
    await engine.open()
    try:
        await engine.declare([kit.specs(WORK, kill_switch=KillSwitch(least=1, pause_s=0.1, tries=1))])
        await kit.send(engine, *kit.messages(3))
        await _end(engine, BAD)
        [tries] = await _waiting(engine)
        [got, _] = await kit.together(lambda: _waiting(engine), lambda: kit.in_threads(lambda: kit.ok(engine, tries)))
        assert len(got) == 1
    finally:
        await engine.close()


async def both_hold_over_a_restart(engine: Full, harness: Harness, time: Time) -> None:
    await _trip(engine)
    until = await engine.snooze(WORK, seconds=10.0)
    again: Full = await harness.restart(engine)  # type: ignore[assignment]
    counts = await again.counts(WORK)
    assert (counts.snoozed_until, counts.tripped_until) == (until, until + 20.0)
    assert await kit.take(again) == []
    time.advance(30.0)
    await _end(again, Ack(), BAD)
    assert await _tripped(again) == await again.now() + 60.0
    await again.close()
