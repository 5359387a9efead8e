"""Schedules of an app. In code: `@app.schedule("30 2 * * *", tz="Europe/Berlin")` above `@app.task`, or in front of a bound call. At run time: `app.schedules`.

What is declared in code becomes a row when a worker of the app starts, and keeps its pause and its place over every start after that (upkeep/announcer.py). What is added
at run time is a row at once and belongs to nobody's code.
"""

from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice, takewhile
from typing import Any, TypeVar, cast

from beltline.core.cron import Occurrence
from beltline.core.errors import Refused, ScheduleInvalid, TaskInvalid, Unsupported
from beltline.core.limits import Seconds
from beltline.core.message import Message
from beltline.core.names import MessageId
from beltline.core.schedule import CATCH_UP_LIMIT, Schedule, occurrences, schedule, triggered
from beltline.core.views import ScheduleView
from beltline.engines.protocol import Engine, Schedules
from beltline.handles import Handle, Host
from beltline.sending import Call, Sendable, new_id

What = Sendable[..., Any] | Call[Any]
S = TypeVar("S", bound=What)
LAST_AT = 253402300800.0 - 86400.0  # a day before the year 10000, which no datetime knows: all zones are within a day of UTC


class ScheduleBook:
    """`app.schedules`: those of the code, and everything about those of the store. Each verb has a blocking and an asynchronous face."""

    def __init__(self, app: Host) -> None:
        self._app = app
        self._declared: dict[str, Callable[[], Schedule]] = {}

    # ------------------------------------------------------------------------------------------------------------ code
    def declare(self, what: S, *, name: str | None, **when: Any) -> S:
        """Raises ScheduleInvalid, InvalidArguments."""
        if not isinstance(what, (Sendable, Call)):
            raise ScheduleInvalid(
                name or getattr(what, "__name__", "?"),
                "only a task, a chain or a bound call can be scheduled.",
                help="Put @app.schedule(…) above @app.task, or write app.schedule(…)(task.call(…)).",
            )
        chosen = name or _name_of(what)

        def spec() -> Schedule:
            return schedule(chosen, message_of(what), **when)

        try:
            spec()
        except TaskInvalid:  # an annotation that cannot be resolved yet: `specs` says so when it still cannot
            schedule(chosen, Message(id=MessageId(""), queue="", task="", body=b""), **when)  # type: ignore[arg-type]
        if chosen in self._declared:
            raise ScheduleInvalid(chosen, "two schedules of this app have this name.", help="Give one of them another: app.schedule(…, name='…').")
        self._declared[chosen] = spec
        return what

    def specs(self) -> list[Schedule]:
        """What the code declares. Raises TaskInvalid where an annotation cannot be resolved."""
        return [spec() for spec in self._declared.values()]

    # -------------------------------------------------------------------------------------------------------- run time
    async def aadd(
        self,
        name: str,
        what: What,
        cron: str | None = None,
        *,
        every: Seconds | None = None,
        start: datetime | None = None,
        tz: str = "UTC",
        catch_up: str = "once",
        limit: int = CATCH_UP_LIMIT,
        replace: bool = False,
    ) -> ScheduleView:
        """A schedule from now on, kept by the store: `await app.schedules.aadd("mail-17", remind.call(17), "0 9 * * MON-FRI", tz="Europe/Berlin")`.

        `what`: a task or chain, which is called without arguments, or a bound call. `replace`: one of this name is changed. Adding the same again does nothing.
        Raises ScheduleInvalid, InvalidArguments, Refused (there is one of this name).
        """
        spec = schedule(name, message_of(what), cron=cron, every=every, start=start, tz=tz, catch_up=catch_up, catch_up_limit=limit)
        return await put(await self._engine(), spec, replace=replace)

    def add(
        self,
        name: str,
        what: What,
        cron: str | None = None,
        *,
        every: Seconds | None = None,
        start: datetime | None = None,
        tz: str = "UTC",
        catch_up: str = "once",
        limit: int = CATCH_UP_LIMIT,
        replace: bool = False,
    ) -> ScheduleView:
        """`aadd` for synchronous code."""
        added = self.aadd(name, what, cron, every=every, start=start, tz=tz, catch_up=catch_up, limit=limit, replace=replace)
        return self._app.blocking(added)

    async def aviews(self) -> list[ScheduleView]:
        """All schedules of the store by name, with where they stand."""
        engine = await self._engine()
        views = page = await engine.schedules()
        while page:
            page = await engine.schedules(after=page[-1].schedule.name)
            views = views + page
        return views

    def views(self) -> list[ScheduleView]:
        """`aviews` for synchronous code."""
        return self._app.blocking(self.aviews())

    async def aview(self, name: str) -> ScheduleView:
        """Raises NotFound."""
        return await (await self._engine()).schedule(name)

    def view(self, name: str) -> ScheduleView:
        """`aview` for synchronous code."""
        return self._app.blocking(self.aview(name))

    async def anext(self, name: str, count: int = 5) -> list[datetime]:
        """When it is due next, in its own zone; also of one that is paused. Raises NotFound, ScheduleInvalid (a zone this host does not know)."""
        engine = await self._app.ready()
        view = await schedules_of(engine).schedule(name)
        return upcoming(view.schedule, max(view.stood_at, await engine.now()), count)

    def next(self, name: str, count: int = 5) -> list[datetime]:
        """`anext` for synchronous code."""
        return self._app.blocking(self.anext(name, count))

    async def atrigger(self, name: str) -> Handle[Any]:
        """Send it now, once, whether or not it is paused. Its occurrences come as before. Raises NotFound."""
        engine = await self._app.ready()
        return Handle(self._app, await trigger(engine, name, new_id()))

    def trigger(self, name: str) -> Handle[Any]:
        """`atrigger` for synchronous code."""
        return self._app.blocking(self.atrigger(name))

    async def apause(self, name: str) -> ScheduleView:
        """Send nothing until it is resumed, whatever the code declares meanwhile. Raises NotFound."""
        return await (await self._engine()).pause_schedule(name, True)

    def pause(self, name: str) -> ScheduleView:
        """`apause` for synchronous code."""
        return self._app.blocking(self.apause(name))

    async def aresume(self, name: str) -> ScheduleView:
        """From the next occurrence on; what was due while it was paused is not sent. Raises NotFound."""
        return await (await self._engine()).pause_schedule(name, False)

    def resume(self, name: str) -> ScheduleView:
        """`aresume` for synchronous code."""
        return self._app.blocking(self.aresume(name))

    async def aremove(self, name: str) -> None:
        """What it has sent stays. One that the code declares comes back with the next worker: pause it, or take it out of the code. Raises NotFound."""
        await (await self._engine()).remove_schedule(name)

    def remove(self, name: str) -> None:
        """`aremove` for synchronous code."""
        self._app.blocking(self.aremove(name))

    async def _engine(self) -> Schedules:
        return schedules_of(await self._app.ready())


def schedules_of(engine: Engine) -> Schedules:
    """Raises Unsupported."""
    if isinstance(engine, Schedules):
        return engine
    raise Unsupported(feature="schedules", need=1, have=0, engine=engine.name, engines=("memory", "sqlite", "postgresql"))


async def put(engine: Schedules, spec: Schedule, *, replace: bool) -> ScheduleView:
    """An operator's. Raises Refused."""
    [done] = await engine.put_schedules([spec], origin="operator", replace=replace)
    view = await engine.schedule(spec.name)
    if done:
        return view
    if view.origin == "code":
        why = f"It is declared by the code of {view.owner or 'an app'}." if view.owner else "It is declared in code."
        raise Refused(f"Schedule {spec.name!r} cannot be changed here.", why=why, help="Change it there, choose another name, or pause it.")
    raise Refused(
        f"There is a schedule {spec.name!r} already.",
        why="Nothing was changed.",
        help="Choose another name, or replace it: --replace on the command line, replace=True in code.",
    )


async def trigger(engine: Engine, name: str, id: MessageId) -> MessageId:
    """Send the message of a schedule now, under this id. Raises NotFound, and what a send raises."""
    view = await schedules_of(engine).schedule(name)
    [sent] = await engine.send([triggered(view.schedule, id)])
    return sent.id


def shown(spec: Schedule, after: float) -> Iterator[Occurrence]:
    """The occurrences behind `after` that a datetime can say. Raises ScheduleInvalid."""
    return takewhile(lambda each: each.at < LAST_AT, occurrences(spec, after))


def upcoming(spec: Schedule, after: float, count: int) -> list[datetime]:
    """The next occurrences as datetimes in the schedule's zone. Raises ScheduleInvalid."""
    from zoneinfo import ZoneInfo

    found = [each.at for each in islice(shown(spec, after), count)]
    return [datetime.fromtimestamp(at, ZoneInfo(spec.tz)) for at in found]


def message_of(what: What) -> Message:
    """Raises InvalidArguments, TaskInvalid."""
    return what.message if isinstance(what, Call) else what.call().message


def _name_of(what: What) -> str:
    target = what.target if isinstance(what, Call) else what._target()
    name = getattr(target, "name", None)
    if name is None:
        message = message_of(what)
        name = message.place.chain if message.place is not None else message.task
    return cast(str, name)
