"""The loops behind schedules: one that sends what is due, one that tells the store what the code declares. What they do to a store is law L28 and L45."""

import asyncio
import logging

import pytest

from beltline import App
from beltline.core.errors import EngineUnavailable
from beltline.engines.memory import MemoryEngine
from beltline.testing import ManualClock
from beltline.upkeep.announcer import Announcer
from beltline.upkeep.scheduler import Scheduler
from tests.worker.kit import until


async def test_a_scheduler_wakes_when_something_is_due_not_at_its_next_look() -> None:
    engine = MemoryEngine()
    await engine.open()
    app = App("memory://")
    app.schedule(every=1, name="tick")(app.task(nothing))
    await engine.declare(app.specs())
    await engine.put_schedules(app.schedules.specs(), origin="operator")
    scheduler = Scheduler(lambda: engine, every_s=3600.0)
    scheduler.start()
    try:
        await until(lambda: scheduler.done >= 2, within_s=10.0)
    finally:
        await scheduler.stop()
    view = await engine.schedule("tick")
    assert view.sent == scheduler.done
    await engine.close()


def nothing() -> None: ...


async def test_an_announcer_hears_of_new_code_at_once() -> None:
    engine = MemoryEngine()
    await engine.open()
    app = App("memory://")
    app.schedule("@daily", name="first")(app.task(nothing))
    announcer = Announcer(lambda: engine)
    announcer.announce("a:app", app.schedules.specs())
    async with asyncio.TaskGroup() as group:
        running = group.create_task(announcer.run())
        await until(lambda: _names(engine, ["first"]))
        app.schedule("@daily", name="second")(*app.tasks.values())
        announcer.announce("a:app", app.schedules.specs())
        await until(lambda: _names(engine, ["first", "second"]))
        running.cancel()
    await engine.close()


async def _names(engine: MemoryEngine, wanted: list[str]) -> bool:
    return [view.schedule.name for view in await engine.schedules()] == wanted


async def test_an_announcer_tries_again_soon_when_the_store_was_away() -> None:
    class Away(MemoryEngine):
        asked = 0

        async def put_schedules(self, specs, *, origin, owner="", replace=True):  # type: ignore[no-untyped-def]
            self.asked += 1
            if self.asked == 1:
                raise EngineUnavailable("The line is cut.", effect="none")
            return await super().put_schedules(specs, origin=origin, owner=owner, replace=replace)

    engine = Away()
    await engine.open()
    app = App("memory://")
    app.schedule("@daily", name="first")(app.task(nothing))
    announcer = Announcer(lambda: engine, every_s=3600.0)
    announcer.announce("a:app", app.schedules.specs())
    announcer.start()
    try:
        await until(lambda: _names(engine, ["first"]))
    finally:
        await announcer.stop()
    await engine.close()


async def test_an_app_whose_engine_keeps_no_schedules_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    class Bare:
        name = "bare"

    app = App("memory://")
    app.schedule("@daily", name="first")(app.task(nothing))
    announcer = Announcer(lambda: Bare())  # type: ignore[arg-type,return-value]
    assert await announcer.once() == 0
    announcer.announce("a:app", app.schedules.specs())
    with caplog.at_level(logging.WARNING):
        assert [await announcer.once() for _ in range(3)] == [0, 0, 0]
    assert [record.message for record in caplog.records] == ["bare keeps no schedules: first of this app will not be sent"]
    assert await Scheduler(lambda: Bare()).once() == 0  # type: ignore[arg-type,return-value]


async def test_a_scheduler_that_finds_others_at_work_looks_again_soon() -> None:
    """All that is due is STALE to it: between its look and its steps another one has moved these schedules."""

    class Overtaken(MemoryEngine):
        async def step_schedules(self, steps):  # type: ignore[no-untyped-def]
            await super().step_schedules(steps)
            return await super().step_schedules(steps)

    clock = ManualClock()
    engine = Overtaken(clock=clock)
    await engine.open()
    app = App("memory://")
    app.schedule(every=60, name="tick")(app.task(nothing))
    await engine.declare(app.specs())
    await engine.put_schedules(app.schedules.specs(), origin="operator")
    clock.advance(60.0)
    scheduler = Scheduler(lambda: engine)
    assert await scheduler.once() == 0
    assert scheduler._soon_s <= 0.05
    assert (await engine.schedule("tick")).sent == 1
    await engine.close()
