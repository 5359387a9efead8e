"""Schedules of an app: declared in code, added while it runs, and sent by its workers."""

from datetime import UTC, datetime
from typing import Any

import pytest

from beltline import App, InvalidArguments, NotFound, Worker
from beltline.core.codec import unpack
from beltline.core.errors import Refused, ScheduleInvalid, Unsupported
from beltline.core.schedule import DUE, LEFT_S, OF
from beltline.core.views import MessageFilter, MessageView
from beltline.engines.protocol import Browse
from beltline.schedules import schedules_of
from beltline.testing import ManualClock
from beltline.upkeep.announcer import Announcer
from beltline.upkeep.scheduler import Scheduler
from tests.worker.kit import until

MINUTE = 60.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def app(clock: ManualClock) -> Any:
    app = App("memory://", clock=clock)

    @app.task(name="tasks.report", priority=3)
    def report(kind: str = "daily", *, pages: int = 1) -> str:
        return f"{kind}/{pages}"

    @app.task(name="tasks.load")
    def load(name: str = "all") -> list[str]:
        return [name]

    app.chain("line", load >> report.each())
    yield app
    app.close()


def declare(app: App) -> None:
    """What a worker of it does at its start."""

    async def once() -> None:
        engine = await app.ready()
        announcer = Announcer(lambda: engine)
        announcer.announce("tasks:app", app.schedules.specs())
        await announcer.once()

    app.blocking(once())


def fire(app: App) -> int:
    async def once() -> int:
        engine = await app.ready()
        return await Scheduler(lambda: engine).once()

    return app.blocking(once())


def messages(app: App) -> list[MessageView]:
    async def all_of_them() -> list[MessageView]:
        engine = await app.ready()
        assert isinstance(engine, Browse)
        return list((await engine.browse(MessageFilter(), limit=1000)).messages)

    return app.blocking(all_of_them())


# ------------------------------------------------------------------------------------------------------------ in code
def test_a_decorator_above_a_task_schedules_it_and_leaves_it_as_it_was(app: App, clock: ManualClock) -> None:
    @app.schedule("30 2 * * *", tz="Europe/Berlin")
    @app.task(name="tasks.nightly")
    def nightly() -> str:
        return "done"

    assert nightly() == "done"
    declare(app)
    [view] = app.schedules.views()
    assert (view.schedule.name, view.schedule.when, view.schedule.tz) == ("tasks.nightly", "30 2 * * *", "Europe/Berlin")
    assert (view.origin, view.owner, view.state) == ("code", "tasks:app", "active")
    clock.advance(86400.0)
    assert fire(app) == 1
    [message] = messages(app)
    assert message.message.task == "tasks.nightly"


def test_a_bound_call_is_scheduled_with_its_arguments_and_options(app: App, clock: ManualClock) -> None:
    report = app.tasks["tasks.report"]
    app.schedule(every=MINUTE)(report.call())
    app.schedule("* * * * *", name="weekly", catch_up="skip")(report.with_options(priority=9, expires=600).call("weekly", pages=4))
    declare(app)
    clock.advance(MINUTE)
    assert fire(app) == 2
    found = {view.message.headers[OF]: view.message for view in messages(app)}
    assert unpack(found["weekly"].body) == {"kind": "weekly", "pages": 4}
    assert (found["weekly"].priority, found["weekly"].expires_s, found["tasks.report"].priority) == (9, 600.0, 3)
    assert unpack(found["tasks.report"].body) == {}


def test_a_chain_is_scheduled_like_a_task(app: App, clock: ManualClock) -> None:
    line = app.schedule(every=MINUTE)(app.chains["line"])
    assert line is app.chains["line"]
    declare(app)
    clock.advance(MINUTE)
    assert fire(app) == 1
    [view] = messages(app)
    assert view.message.place is not None
    assert (view.message.place.chain, view.message.place.run, view.message.queue) == ("line", view.message.id, "load")


def test_wrong_arguments_show_where_the_schedule_is_declared(app: App) -> None:
    @app.task
    def needs(number: int) -> None: ...

    with pytest.raises(InvalidArguments, match="number"):
        app.schedule("@daily")(needs)
    with pytest.raises(InvalidArguments, match="number"):
        app.schedule("@daily")(needs.call("x"))  # type: ignore[arg-type]
    assert app.schedules.specs() == []


def test_a_wrong_expression_shows_where_the_schedule_is_declared(app: App) -> None:
    report = app.tasks["tasks.report"]
    for wrong in ({"cron": "61 * * * *"}, {"cron": "@daily", "tz": "Mars"}, {}, {"every": 0.1}):
        with pytest.raises(Exception, match=r"report|every"):
            app.schedule(**wrong)(report)  # type: ignore[arg-type]
    with pytest.raises(ScheduleInvalid, match=r"above @app\.task"):
        app.schedule("@daily")(lambda: None)  # type: ignore[type-var]
    assert app.schedules.specs() == []


def test_two_schedules_of_one_name_are_refused(app: App) -> None:
    report = app.tasks["tasks.report"]
    app.schedule("@daily")(report)
    with pytest.raises(ScheduleInvalid, match="name='…'"):
        app.schedule("@weekly")(report)
    app.schedule("@weekly", name="weekly")(report)
    assert [spec.name for spec in app.schedules.specs()] == ["tasks.report", "weekly"]


def test_an_annotation_may_be_resolved_later(app: App) -> None:
    @app.schedule("@daily")
    @app.task
    def later(value: "Late | None" = None) -> None: ...  # noqa: F821 - defined below, as in a module that is still being read

    globals()["Late"] = int
    try:
        assert len(app.schedules.specs()) == 1
        app.check()
    finally:
        del globals()["Late"]


def test_declaring_again_keeps_the_pause(app: App, clock: ManualClock) -> None:
    app.schedule(every=MINUTE)(app.tasks["tasks.report"])
    declare(app)
    assert app.schedules.pause("tasks.report").state == "paused"
    declare(app)
    clock.advance(600.0)
    assert fire(app) == 0
    assert app.schedules.resume("tasks.report").state == "active"
    assert fire(app) == 0
    clock.advance(MINUTE)
    assert fire(app) == 1


# --------------------------------------------------------------------------------------------------------- at run time
async def test_a_schedule_is_added_and_removed_while_the_program_runs(clock: ManualClock) -> None:
    app = App("memory://", clock=clock)

    @app.task
    def remind(customer: int) -> None: ...

    async with app:
        view = await app.schedules.aadd("customer-17", remind.call(17), "0 9 * * MON-FRI", tz="Europe/Berlin")
        assert (view.origin, view.owner, view.schedule.tz) == ("operator", "", "Europe/Berlin")
        assert [each.schedule.name for each in await app.schedules.aviews()] == ["customer-17"]
        again = await app.schedules.aadd("customer-17", remind.call(17), "0 9 * * MON-FRI", tz="Europe/Berlin")
        assert again == view
        with pytest.raises(Refused, match="already"):
            await app.schedules.aadd("customer-17", remind.call(18), "0 9 * * MON-FRI")
        changed = await app.schedules.aadd("customer-17", remind.call(17), every=3600, replace=True)
        assert changed.schedule.every_s == 3600.0
        await app.schedules.aremove("customer-17")
        with pytest.raises(NotFound):
            await app.schedules.aview("customer-17")


def test_what_code_declares_is_not_changed_by_hand(app: App) -> None:
    report = app.tasks["tasks.report"]
    app.schedule("@daily", name="nightly")(report)
    declare(app)
    with pytest.raises(Refused, match="by the code of tasks:app"):
        app.schedules.add("nightly", report, every=60, replace=True)


def test_the_next_occurrences_are_told_in_the_zone_of_the_schedule(app: App, clock: ManualClock) -> None:
    clock.set(datetime(2026, 10, 24, 12, tzinfo=UTC).timestamp())
    app.schedules.add("nightly", app.tasks["tasks.report"], "30 2 * * *", tz="Europe/Berlin")
    assert [f"{at:%d %H:%M %z}" for at in app.schedules.next("nightly", 2)] == ["25 02:30 +0200", "26 02:30 +0100"]
    app.schedules.pause("nightly")
    assert len(app.schedules.next("nightly", 3)) == 3


def test_a_trigger_sends_now_even_what_is_paused_and_moves_nothing(app: App, clock: ManualClock) -> None:
    before = app.schedules.add("hourly", app.tasks["tasks.report"].call("hourly"), every=3600)
    app.schedules.pause("hourly")
    handle = app.schedules.trigger("hourly")
    assert handle.status() == "ready"
    [view] = messages(app)
    assert view.message.headers == {OF: "hourly"}
    assert (app.schedules.resume("hourly").stood_at, app.schedules.view("hourly").sent) == (before.stood_at, 0)
    clock.advance(3600.0)
    assert fire(app) == 1
    assert DUE in messages(app)[1].message.headers


def test_an_engine_that_keeps_no_schedules_says_so() -> None:
    class Bare:
        name = "bare"

    with pytest.raises(Unsupported, match="schedules"):
        schedules_of(Bare())  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- workers
async def test_a_worker_declares_the_schedules_of_its_app_and_sends_them() -> None:
    app = App("memory://")
    seen: list[str] = []

    @app.schedule(every=1)
    @app.task(name="tick")
    def tick() -> None:
        seen.append("tick")

    async with app, Worker(app, in_process=True):
        await until(lambda: len(seen) >= 2)
        view = await app.schedules.aview("tick")
    assert (view.origin, view.owner) == ("code", f"{__name__}:test_a_worker_declares_the_schedules_of_its_app_and_sends_them")
    assert view.sent >= 2


def version(number: int, store: str, clock: ManualClock) -> App:
    """Of a program that embeds a worker: the first one schedules two tasks, the second one of them."""
    app = App(store, clock=clock)

    @app.schedule(every=3600)
    @app.task(name="stays")
    def stays() -> None: ...

    def leaves() -> None: ...

    task = app.task(name="leaves")(leaves)
    if number == 1:
        app.schedule(every=3600)(task)
    return app


async def test_a_schedule_that_has_left_the_code_of_a_program_with_a_worker_in_it_is_left(tmp_path, clock) -> None:
    store = f"sqlite:///{tmp_path}/beltline.db"

    async def states(app: App) -> dict[str, str]:
        return {view.schedule.name: view.state for view in await app.schedules.aviews()}

    async def both(app: App) -> bool:
        return await states(app) == {"stays": "active", "leaves": "active"}

    async def left(app: App) -> bool:
        return await states(app) == {"stays": "active", "leaves": "left"}

    async with version(1, store, clock) as app, Worker(app, in_process=True):
        await until(lambda: both(app))
    clock.advance(LEFT_S)
    async with version(2, store, clock) as app, Worker(app, in_process=True):
        await until(lambda: left(app))
    clock.advance(LEFT_S)
    async with version(1, store, clock) as app, Worker(app, in_process=True):
        await until(lambda: both(app))
