"""Each occurrence of a schedule is sent exactly once, however many schedulers look, and never before it is due; a clock that leaps ahead or is set back makes no storm."""

from typing import Any

from beltline.core.errors import BeltlineError
from beltline.core.schedule import DUE, OF, Schedule, Step, Stepped, occurrence, occurrence_id, schedule, step, triggered
from beltline.core.views import MessageView, ScheduleView
from beltline.engines.protocol import Engine
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import FAR_S, NEXT, OTHER, WORK
from beltline.upkeep.scheduler import Scheduler

POWERS = ("Browse", "Control", "Runs", "Schedules")
DAY_S = 86400.0


def every(name: str, seconds: float = 60.0, **more: Any) -> Schedule:
    return schedule(name, kit.message(**more.pop("message", {})), every=seconds, **more)


async def _put(engine: Full, *specs: Schedule) -> list[ScheduleView]:
    assert await engine.put_schedules(specs, origin="operator") == [True] * len(specs)
    return [await engine.schedule(spec.name) for spec in specs]


async def _look(engine: Engine) -> int:
    return await Scheduler(lambda: engine).once()


async def _sent(engine: Full, name: str = "tick", queue: str = WORK) -> list[MessageView]:
    """What this schedule has sent, in the order of sends."""
    return [view for view in await kit.everything(engine, queues=(queue,)) if view.message.headers.get(OF) == name]


async def an_occurrence_is_sent_when_it_is_due_and_not_before(engine: Full, time: Time) -> None:
    [view] = await _put(engine, every("tick", 60.0))
    first = await _look_ahead(engine)
    time.advance(first - await engine.now() - 0.001)
    assert await _look(engine) == 0
    time.advance(0.001)
    assert await _look(engine) == 1
    [message] = await _sent(engine)
    assert message.sent_at == first == view.schedule.every_s * (view.stood_at // 60.0 + 1)
    assert message.message.id == occurrence_id("tick", first)
    assert await _look(engine) == 0
    after = await engine.schedule("tick")
    assert (after.stood_at, after.next_at, after.last_due_at, after.last_id, after.sent) == (first, first + 60.0, first, message.message.id, 1)


async def _look_ahead(engine: Full, name: str = "tick") -> float:
    """When the schedule is due next, as a scheduler works it out; nothing is due yet."""
    assert await _look(engine) == 0
    return (await engine.schedule(name)).next_at


async def a_message_says_which_schedule_and_which_instant_it_is_of(engine: Full, time: Time) -> None:
    message = kit.message(OTHER, priority=7, group="g", headers={"by": "ann"}, expires_s=3600.0)
    await _put(engine, schedule("nightly", message, cron="30 2 * * *", tz="Europe/Berlin"))
    time.advance(DAY_S)
    assert await _look(engine) == 1
    [view] = await _sent(engine, "nightly", OTHER)
    due = (await engine.schedule("nightly")).last_due_at
    assert view.message == occurrence((await engine.schedule("nightly")).schedule, due)
    assert (view.message.task, view.message.body, view.message.priority, view.message.group) == (message.task, message.body, 7, "g")
    assert set(view.message.headers) == {"by", OF, DUE}
    assert view.sent_at >= due


async def an_occurrence_of_a_chain_enters_a_run_of_its_own(engine: Full, time: Time) -> None:
    await _put(engine, schedule("line", kit.placed(), every=60.0))
    for _ in range(2):
        time.advance(60.0)
        assert await _look(engine) == 1
    views = await _sent(engine, "line")
    assert [str(kit.run_of(view.message)) for view in views] == [view.message.id for view in views]
    assert [run.id for run in await engine.runs(kit.LINE)] == [view.message.id for view in views]


async def three_schedulers_send_each_occurrence_once(engine: Full, time: Time) -> None:
    specs = [every(f"s{number}", 60.0 + number % 3, catch_up="all") for number in range(12)]
    before = {view.schedule.name: view.stood_at for view in await _put(engine, *specs)}
    for _ in range(6):
        time.advance(61.0)
        await kit.in_threads(*(lambda: _look(engine) for _ in range(3)))
    now = await engine.now()
    for spec in specs:
        views = await _sent(engine, spec.name)
        first, last = int(before[spec.name] // spec.every_s) + 1, int(now // spec.every_s)
        wanted = [spec.every_s * number for number in range(first, last + 1)]
        assert [view.message.id for view in views] == [occurrence_id(spec.name, due) for due in wanted]
        assert all(view.sent_at >= due for view, due in zip(views, wanted, strict=True))
        assert (await engine.schedule(spec.name)).sent == len(wanted) >= 5


async def of_two_steps_from_the_same_place_one_is_done(engine: Full, time: Time) -> None:
    [view] = await _put(engine, every("tick"))
    time.advance(60.0)
    now = await engine.now()
    once = step(view.schedule, view.revision, view.stood_at, now)
    assert await engine.step_schedules([once, once]) == [Stepped.DONE, Stepped.STALE]
    assert await engine.step_schedules([once]) == [Stepped.STALE]
    assert len(await _sent(engine)) == 1


async def a_step_into_the_future_is_refused(engine: Full) -> None:
    [view] = await _put(engine, every("tick"))
    now = await engine.now()
    early = step(view.schedule, view.revision, view.stood_at, now + 600.0)
    back = Step(name="tick", revision=view.revision, stood_at=view.stood_at, stands_at=view.stood_at - 60.0, next_at=now)
    assert await engine.step_schedules([early, back]) == [Stepped.EARLY, Stepped.EARLY]
    assert await engine.schedule("tick") == view
    assert await _sent(engine) == []


async def an_occurrence_that_was_sent_before_is_not_sent_again(engine: Full, time: Time) -> None:
    """A schedule that was removed and added again, or a store that was restored: the position is lost, the id is not."""
    [view] = await _put(engine, every("tick"))
    time.advance(60.0)
    now = await engine.now()
    await engine.send([occurrence(view.schedule, step(view.schedule, 1, view.stood_at, now).stands_at)])
    assert await _look(engine) == 1
    assert len(await _sent(engine)) == 1


async def what_was_missed_is_caught_up_as_the_schedule_says(engine: Full, time: Time) -> None:
    await _put(engine, every("once"), every("all", catch_up="all", catch_up_limit=5), every("skip", catch_up="skip"))
    await _look(engine)
    time.advance(59 * 60.0 + 30.0)
    assert await _look(engine) == 7
    assert [len(await _sent(engine, name)) for name in ("once", "all", "skip")] == [1, 5, 1]
    skipped = {view.schedule.name: view.skipped for view in await engine.schedules()}
    assert skipped["once"] == skipped["skip"] == skipped["all"] + 4 >= 57
    dues = [view.message.headers[DUE] for view in await _sent(engine, "all")]
    assert dues == sorted(dues)


async def skip_sends_nothing_that_is_more_than_a_minute_late(engine: Full, time: Time) -> None:
    await _put(engine, every("tick", 3600.0, catch_up="skip"))
    first = await _look_ahead(engine)
    time.advance(first - await engine.now() + 61.0)
    assert await _look(engine) == 0
    view = await engine.schedule("tick")
    assert (view.stood_at, view.sent, view.skipped) == (first, 0, 1)
    time.advance(3600.0 - 1.0)
    assert await _look(engine) == 1


async def a_clock_far_ahead_makes_no_storm(engine: Full, time: Time) -> None:
    await _put(
        engine, every("second", 1.0), every("all", 1.0, catch_up="all"), schedule("cron", kit.message(), cron="* * * * *", tz="America/New_York")
    )
    await _look(engine)
    time.advance(400 * DAY_S)
    assert await _look(engine) == 1 + 100 + 1
    assert await _look(engine) == 0
    time.advance(FAR_S)
    assert await _look(engine) == 1 + 100 + 1


async def a_clock_set_back_sends_nothing_twice_and_stops_nothing(engine: Full, time: Time) -> None:
    await _put(engine, every("tick", 60.0, catch_up="all"))
    time.advance(60.0)
    assert await _look(engine) == 1
    for back_s in (3600.0, 400 * DAY_S):
        time.set_back(back_s)
        assert await _look(engine) == 0
        time.advance(60.0)
        assert await _look(engine) == 1
    views = await _sent(engine)
    assert len({view.message.headers[DUE] for view in views}) == len(views) == 3


async def a_full_queue_holds_the_occurrence_back_and_says_so(engine: Full, time: Time) -> None:
    await engine.declare([kit.specs(WORK, max_backlog=1)])
    await _put(engine, every("tick"), every("next", message={"queue": NEXT}))
    held = await kit.send_one(engine)
    time.advance(60.0)
    assert await _look(engine) == 1
    view = await engine.schedule("tick")
    assert "full" in view.error
    assert (await engine.schedule("next")).error == ""
    await engine.cancel([held.id])
    time.advance(10.0)
    assert await _look(engine) == 1
    assert (await engine.schedule("tick")).error == ""


async def a_queue_nobody_has_declared_holds_up_no_other_schedule(engine: Full, time: Time) -> None:
    await _put(engine, every("tick"), every("lost", message={"queue": "nobody"}))
    time.advance(60.0)
    assert await _look(engine) == 1
    assert "not declared" in (await engine.schedule("lost")).error
    await engine.declare([kit.specs("nobody")])  # type: ignore[arg-type]
    time.advance(10.0)
    assert await _look(engine) == 1


async def a_message_no_engine_would_take_holds_up_no_other_schedule(engine: Full, time: Time) -> None:
    await _put(engine, every("tick"), every("bad", message={"delay_s": -1.0}))
    time.advance(60.0)
    await _look(engine)
    assert len(await _sent(engine)) == 1
    assert await _sent(engine, "bad") == []
    assert "delay_s" in (await engine.schedule("bad")).error


async def a_zone_this_host_does_not_know_is_an_error_of_that_schedule(engine: Full, time: Time) -> None:
    strange = Schedule(name="strange", message=every("x").message, cron="0 * * * *", tz="Mars/Olympus")
    await _put(engine, strange, every("tick"))
    time.advance(60.0)
    assert await _look(engine) == 1
    view = await engine.schedule("strange")
    assert "Mars/Olympus" in view.error
    assert view.next_at > await engine.now()


async def a_trigger_is_no_occurrence(engine: Full, time: Time) -> None:
    [view] = await _put(engine, every("tick"))
    by_hand = triggered(view.schedule, kit.fresh_id())
    await engine.send([by_hand])
    time.advance(60.0)
    assert await _look(engine) == 1
    assert [DUE in each.message.headers for each in await _sent(engine)] == [False, True]


async def what_cannot_be_sent_with_a_step_leaves_the_schedule_where_it_stood(engine: Full, time: Time) -> None:
    """All messages of a step, or none."""
    await engine.declare([kit.specs(WORK, max_backlog=3)])
    [view] = await _put(engine, every("tick", catch_up="all"))
    time.advance(5 * 60.0)
    asked = step(view.schedule, view.revision, view.stood_at, await engine.now())
    assert len(asked.messages) == 5
    assert await engine.step_schedules([asked]) == [Stepped.QUEUE_FULL]
    assert await engine.schedule("tick") == view
    assert await _sent(engine) == []


async def a_scheduler_tells_when_the_store_does_not_answer(engine: Full) -> None:
    class Away(BeltlineError):
        pass

    def away() -> Engine:
        raise Away("The store is away.")

    assert await Scheduler(away).attempt() == 0
    assert await Scheduler(lambda: engine).attempt() == 0
