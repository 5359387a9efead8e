"""A schedule keeps its pause and where it stands over every new declaration, restart and version; only another timing lets it start anew, and what left the code is no longer fired."""

from typing import Any

import pytest
from msgspec import structs

from beltline.core.errors import NameInvalid, NotFound
from beltline.core.schedule import LEFT_S, Schedule, Stepped, schedule, step
from beltline.core.views import ScheduleView
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Harness, Time
from beltline.testing.conformance.kit import NEXT, WORK
from beltline.upkeep.scheduler import Scheduler

POWERS = ("Browse", "Schedules")
APP, OTHER_APP = "tasks:app", "mail:app"


def spec(name: str = "tick", *, every: float | None = 60.0, queue: Any = WORK, **more: Any) -> Schedule:
    return schedule(name, structs.replace(kit.message(queue), body=b"\x80"), every=every if "cron" not in more else None, **more)


async def _code(engine: Full, *specs: Schedule, owner: str = APP) -> list[bool]:
    return await engine.put_schedules(specs, origin="code", owner=owner)


async def _look(engine: Full) -> int:
    return await Scheduler(lambda: engine).once()


async def _fired(engine: Full, time: Time) -> ScheduleView:
    """One occurrence of "tick" is sent."""
    time.advance(60.0)
    assert await _look(engine) == 1
    return await engine.schedule("tick")


async def a_new_schedule_stands_at_now(engine: Full) -> None:
    assert await _code(engine, spec()) == [True]
    view = await engine.schedule("tick")
    assert view == ScheduleView(schedule=spec(), revision=1, state="active", origin="code", owner=APP, stood_at=await engine.now())
    assert await _look(engine) == 0


async def schedules_are_listed_by_name_and_in_pages(engine: Full) -> None:
    await _code(engine, *(spec(name) for name in ("c", "a", "B", "b.1", "a_2")))
    everything = [view.schedule.name for view in await engine.schedules()]
    assert everything == sorted(everything) == ["B", "a", "a_2", "b.1", "c"]
    assert [view.schedule.name for view in await engine.schedules(limit=2, after="a")] == ["a_2", "b.1"]


async def what_nobody_knows_is_not_found(engine: Full) -> None:
    for verb in (lambda: engine.schedule("no"), lambda: engine.remove_schedule("no"), lambda: engine.pause_schedule("no", True)):
        with pytest.raises(NotFound):
            await verb()
    with pytest.raises(NameInvalid):
        await _code(engine, structs.replace(spec(), name="no name"))
    assert await engine.schedules() == []


async def declaring_it_again_changes_nothing(engine: Full, time: Time) -> None:
    await _code(engine, spec())
    before = await _fired(engine, time)
    assert await _code(engine, spec()) == [True]
    assert await engine.schedule("tick") == before


async def another_message_keeps_where_it_stands(engine: Full, time: Time) -> None:
    await _code(engine, spec())
    before = await _fired(engine, time)
    time.advance(60.0)
    await _code(engine, spec(queue=NEXT, catch_up="all"))
    after = await engine.schedule("tick")
    assert (after.stood_at, after.sent, after.revision) == (before.stood_at, 1, before.revision + 1)
    assert await _look(engine) == 1
    assert (await engine.counts(NEXT)).ready == 1


async def another_timing_starts_anew(engine: Full, time: Time) -> None:
    for changed in (spec(every=30.0), spec(cron="* * * * *"), spec(cron="* * * * *", tz="Asia/Kathmandu")):
        time.advance(300.0)
        assert await _code(engine, changed) == [True]
        assert (await engine.schedule("tick")).stood_at == await engine.now()
        assert await _look(engine) == 0


async def a_step_made_from_the_spec_before_is_stale(engine: Full, time: Time) -> None:
    await _code(engine, spec())
    view = await engine.schedule("tick")
    time.advance(60.0)
    old = step(view.schedule, view.revision, view.stood_at, await engine.now())
    await _code(engine, spec(queue=NEXT))
    assert await engine.step_schedules([old]) == [Stepped.STALE]
    await engine.remove_schedule("tick")
    assert await engine.step_schedules([old]) == [Stepped.STALE]
    assert (await engine.counts(WORK)).ready == 0


async def a_paused_one_is_not_due_and_goes_on_from_its_resumption(engine: Full, time: Time) -> None:
    await _code(engine, spec(catch_up="all"))
    view = await engine.pause_schedule("tick", True)
    assert view.state == "paused"
    assert await engine.pause_schedule("tick", True) == view
    time.advance(600.0)
    assert (await engine.due_schedules()).schedules == ()
    assert await _look(engine) == 0
    assert await engine.step_schedules([step(view.schedule, view.revision, view.stood_at, await engine.now())]) == [Stepped.STALE]
    view = await engine.pause_schedule("tick", False)
    assert (view.state, view.stood_at) == ("active", await engine.now())
    assert await _look(engine) == 0
    time.advance(60.0)
    assert await _look(engine) == 1


async def a_pause_holds_over_declarations(engine: Full, time: Time) -> None:
    await _code(engine, spec())
    await engine.pause_schedule("tick", True)
    await _code(engine, spec(every=30.0))
    assert (await engine.schedule("tick")).state == "paused"
    time.advance(60.0)
    assert await _look(engine) == 0


async def code_takes_over_from_an_operator_but_not_the_other_way_round(engine: Full, time: Time) -> None:
    assert await engine.put_schedules([spec()], origin="operator") == [True]
    before = await _fired(engine, time)
    assert await _code(engine, spec()) == [True]
    after = await engine.schedule("tick")
    assert (after.origin, after.owner, after.stood_at) == ("code", APP, before.stood_at)
    assert await engine.put_schedules([spec(every=30.0)], origin="operator") == [False]
    assert (await engine.schedule("tick")).schedule == spec()


async def an_operator_replaces_only_when_told_to(engine: Full) -> None:
    assert await engine.put_schedules([spec()], origin="operator", replace=False) == [True]
    assert await engine.put_schedules([spec()], origin="operator", replace=False) == [True], "the same again: the first answer may have been lost"
    assert await engine.put_schedules([spec(every=30.0)], origin="operator", replace=False) == [False]
    assert await engine.put_schedules([spec(every=30.0)], origin="operator") == [True]
    assert (await engine.schedule("tick")).schedule.every_s == 30.0


async def what_left_the_code_is_kept_and_not_fired(engine: Full, time: Time) -> None:
    await _code(engine, spec(), spec("stays"))
    time.advance(LEFT_S)
    assert await _code(engine, spec("stays")) == [True]
    view = await engine.schedule("tick")
    assert view.state == "left"
    assert [each.schedule.name for each in (await engine.due_schedules()).schedules] == ["stays"]
    assert await _look(engine) == 1
    assert (await engine.counts(WORK)).ready == 1
    await _code(engine, spec(), spec("stays"))
    assert ((await engine.schedule("tick")).state, (await engine.schedule("tick")).stood_at) == ("active", view.stood_at)


async def what_is_left_still_tells_why_it_was_not_sent(engine: Full, time: Time) -> None:
    await _code(engine, spec(queue="nobody"))
    time.advance(60.0)
    await _look(engine)
    before = await engine.schedule("tick")
    assert before.error
    time.advance(LEFT_S)
    await _code(engine, spec("other"))
    assert await engine.schedule("tick") == structs.replace(before, state="left", revision=before.revision + 1)


async def of_two_of_one_name_the_second_changes_the_first(engine: Full) -> None:
    for _ in range(2):
        assert await _code(engine, spec(every=30.0), spec(every=60.0)) == [True, True]
        assert (await engine.schedule("tick")).schedule == spec(every=60.0)
    assert await engine.put_schedules([spec("hand"), spec("hand", every=30.0)], origin="operator", replace=False) == [True, False]
    assert (await engine.schedule("hand")).schedule.every_s == 60.0


async def what_a_worker_of_the_version_before_still_names_is_not_left(engine: Full, time: Time) -> None:
    await _code(engine, spec())
    for _ in range(6):
        time.advance(LEFT_S / 3)
        await _code(engine, spec())
        await _code(engine, spec("new"))
    assert (await engine.schedule("tick")).state == "active"
    time.advance(LEFT_S)
    await _code(engine)
    assert {view.schedule.name: view.state for view in await engine.schedules()} == {"tick": "left", "new": "left"}


async def only_the_owner_can_leave_a_schedule_behind(engine: Full, time: Time) -> None:
    await _code(engine, spec())
    await _code(engine, spec("nobodys"), owner="")
    await engine.put_schedules([spec("hand")], origin="operator")
    time.advance(10 * LEFT_S)
    await _code(engine, spec("other"), owner=OTHER_APP)
    await _code(engine, spec("another"), owner="")
    await engine.put_schedules([spec("hands")], origin="operator")
    assert {view.state for view in await engine.schedules()} == {"active"}


async def a_removed_one_sends_nothing_more_and_what_it_sent_stays(engine: Full, time: Time) -> None:
    await _code(engine, spec())
    await _fired(engine, time)
    await engine.remove_schedule("tick")
    time.advance(600.0)
    assert await _look(engine) == 0
    assert (await engine.counts(WORK)).ready == 1
    await _code(engine, spec())
    assert (await engine.schedule("tick")).sent == 0


async def everything_survives_a_restart(engine: Full, harness: Harness, time: Time) -> None:
    await _code(engine, spec(), spec("paused"))
    await engine.put_schedules([spec("hand", cron="30 2 * * *", tz="Europe/Berlin")], origin="operator")
    await engine.pause_schedule("paused", True)
    await _fired(engine, time)
    before = await engine.schedules()
    again: Full = await harness.restart(engine)  # type: ignore[assignment]
    try:
        assert await again.schedules() == before
        time.advance(60.0)
        assert await _look(again) == 1
    finally:
        await again.close()


async def a_look_lists_what_is_due_the_longest_first_and_when_the_next_is(engine: Full, time: Time) -> None:
    await _code(engine, spec("a", every=60.0), spec("b", every=45.0), spec("c", every=3600.0))
    await _look(engine)
    soonest = min(view.next_at for view in await engine.schedules())
    found = await engine.due_schedules()
    assert (found.schedules, found.next_at) == ((), soonest)
    time.advance(61.0)
    found = await engine.due_schedules()
    dues = [view.next_at for view in found.schedules]
    assert {view.schedule.name for view in found.schedules} >= {"a", "b"}
    assert dues == sorted(dues)
    assert dues[-1] <= found.now < found.next_at
    assert len((await engine.due_schedules(limit=1)).schedules) == 1


async def puts_at_once_make_one_schedule(engine: Full) -> None:
    answers = await kit.in_threads(*(lambda number=number: _code(engine, spec(every=10.0 + number), spec("same")) for number in range(6)))
    assert answers == [[True, True]] * 6
    assert [view.schedule.name for view in await engine.schedules()] == ["same", "tick"]
    assert (await engine.schedule("tick")).revision == 6
    assert (await engine.schedule("same")).revision == 1
