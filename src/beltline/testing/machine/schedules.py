"""Schedules in a random history: they are put, altered, paused and removed, and schedulers look, alone, two at once, or with what they saw long ago.

A scheduler here does what upkeep/scheduler.py does, in a fixed order, so that both engines are asked the same. Beside the comparison there is a ledger: every occurrence has
the id of its name and instant (I13) and is not sent before it is due (I14); no schedule goes back in time, or ahead of it.
"""

import asyncio
import calendar
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from msgspec import structs

from beltline.core.errors import BeltlineError, ScheduleInvalid
from beltline.core.message import Message
from beltline.core.names import MessageId
from beltline.core.schedule import DUE, OF, Schedule, Step, Stepped, occurrence_id, schedule, step, template, triggered
from beltline.core.views import DueSchedules, MessageView, ScheduleView
from beltline.engines.protocol import Schedules
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full
from beltline.testing.machine.draws import NO_ZONE, schedule_steps
from beltline.testing.machine.flow import FlowSteps

AGAIN_S = 5.0
PIECE = 1  # schedules of a look that is cut short
KEPT = 20  # steps that somebody may still ask for
REFUSED = {Stepped.QUEUE_FULL: "the queue is full", Stepped.NOT_DECLARED: "the queue is not declared"}


class ScheduleSteps(FlowSteps):
    """Only in histories that were begun with `begin_schedules`. An engine without the power Schedules has none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.timed = False
        self.asked: list[Step] = []
        self.specs: dict[str, Schedule] = {}  # as they were drawn last
        self.stood: dict[str, float] = {}
        self.occurred: set[MessageId] = set()

    def begin_schedules(self) -> None:
        self.timed = all(isinstance(engine, Schedules) for engine in self.engines)

    @precondition(lambda self: self.timed)
    @rule(steps=st.lists(schedule_steps, min_size=1, max_size=3))
    def alter_schedules(self, steps: list[tuple[Any, ...]]) -> None:
        for each in steps:
            self.schedule_step(each)

    def schedule_step(self, each: tuple[Any, ...]) -> None:
        verb, *how = each
        match verb, how:
            case (("put" | "order"), (drawn, owner, replace)):
                self.put_schedules(drawn, "code" if verb == "put" else "operator", owner, replace=replace)
            case "name", (names, owner):  # what a worker does every minute; what it does not name may be left
                known = [self.specs[name] for name in dict.fromkeys(names) if name in self.specs]
                self.do(lambda engine: engine.put_schedules(known, origin="code", owner=owner))
            case (("pause" | "resume"), (name,)):
                self.do(lambda engine: engine.pause_schedule(name, verb == "pause"))
            case "turn", (name,):  # over: pause what runs, resume what is paused
                view = self.do(lambda engine: engine.schedule(name))
                if isinstance(view, ScheduleView):
                    self.do(lambda engine: engine.pause_schedule(name, view.state != "paused"))
            case "remove", (name,):
                self.do(lambda engine: engine.remove_schedule(name))
                self.stood.pop(name, None)
            case "trigger", (name,):
                view = self.do(lambda engine: engine.schedule(name))
                if isinstance(view, ScheduleView):
                    self.send_all([triggered(view.schedule, kit.fresh_id())])
            case "again", (number, later_s):
                if self.asked:
                    asked = self.asked[number % len(self.asked)]
                    self._take([structs.replace(asked, stands_at=asked.stands_at + later_s)])
            case _:
                raise AssertionError(f"no such step: {each}")

    def put_schedules(self, drawn: Sequence[dict[str, Any]], origin: str, owner: str, *, replace: bool = True) -> None:
        given = [self._schedule(**fields) for fields in drawn]
        self.specs |= {spec.name: spec for spec in given}
        self.do(lambda engine: engine.put_schedules(given, origin=origin, owner=owner, replace=replace))

    def _schedule(self, *, chained: bool, timing: dict[str, Any], message: dict[str, Any], catch_up: tuple[str, int], **fields: Any) -> Schedule:
        name, flow = fields["name"], fields["flow"] if self.shaped else None
        sent = kit.placed(None, fields["queue"], flow=flow, **message) if chained else kit.message(fields["queue"], flow=flow, **message)
        how: dict[str, Any] = {"catch_up": catch_up[0], "catch_up_limit": catch_up[1]}
        if timing.get("tz") == NO_ZONE:  # as another host has written it
            return Schedule(name=name, message=template(sent), **timing, **how)
        return schedule(name, sent, **timing, **how)

    # ---------------------------------------------------------------------------------------------------- a scheduler

    def look(self, how: str) -> None:
        """One look of a scheduler: "all", the "first" of all, or "two" at once that have seen the same."""
        found: DueSchedules = self.do(lambda engine: engine.due_schedules(limit=PIECE if how == "first" else 100))
        steps = [_planned(view, found.now) for view in found.schedules]
        self.asked = (self.asked + steps)[-KEPT:]
        answers = self._race(steps) if how == "two" else self._take(steps)
        why = [answer if isinstance(answer, str) else REFUSED.get(answer, "") for answer in answers]
        self._take([_noted(each, text, found.now) for each, text in zip(steps, why, strict=True) if text])

    def _take(self, steps: Sequence[Step]) -> list[Any]:
        """In one batch where that says what happens first; else an engine may send in any order, and a message that is refused may come before or after the others."""
        if sum(len(each.messages) for each in steps) > 1 or any(map(_bad, steps)):
            return [self._taken([each], self.do(lambda engine, each=each: _alone(engine, each)))[0] for each in steps]  # type: ignore[misc]
        return self._taken(steps, self.do(lambda engine: engine.step_schedules(steps))) if steps else []

    def _race(self, steps: Sequence[Step]) -> list[Any]:
        """Both ask for each step; who is second, hears STALE, or what the first heard if it was no."""

        async def both(engine: Full, each: Step) -> list[Any]:
            told = [answer for [answer] in await asyncio.gather(_alone(engine, each), _alone(engine, each))]
            assert told.count(Stepped.DONE) <= 1 or each.stands_at == each.stood_at, "I13: one step was done twice"
            return [next((answer for answer in told if answer is not Stepped.STALE), Stepped.STALE)]

        return [self._taken([each], self.do(lambda engine, each=each: both(engine, each)))[0] for each in steps]  # type: ignore[misc]

    def _taken(self, steps: Sequence[Step], answers: list[Any]) -> list[Any]:
        for each, answer in zip(steps, answers, strict=True):
            for message in each.messages if answer is Stepped.DONE else ():
                self._occurred(message)
        return answers

    def _occurred(self, message: Message) -> None:
        assert message.id not in self.occurred, "I13: one occurrence was sent by two steps"
        self.occurred.add(message.id)
        if message.dedup_key is None and (message.flow is None or message.flow.unique is None) and message.id not in self.sent:
            self.admit(message)
        self.followers[message.id] = message

    # ------------------------------------------------------------------------------------------------------ the ledger

    def check_schedules(self, views: Iterable[ScheduleView], messages: Iterable[MessageView], now: float) -> None:
        for view in views:
            name = view.schedule.name
            assert self.stood.get(name, 0.0) <= view.stood_at <= now, f"I13: {name} went from {self.stood.get(name)} to {view.stood_at}"
            self.stood[name] = view.stood_at
        for message, sent_at in ((each.message, each.sent_at) for each in messages):
            replaceable = message.flow is not None and message.flow.unique is not None  # the headers may be those of the newest
            if DUE in message.headers and not replaceable:
                due = datetime.fromisoformat(message.headers[DUE]).timestamp()
                assert message.id == occurrence_id(message.headers[OF], due), "I13: an occurrence with another id"
                assert sent_at >= due, "I14: sent before it was due"


def next_change(now: float) -> float:
    """When the clocks of Berlin change next: at 01:00 UTC on the last Sunday of March and of October."""
    this = datetime.fromtimestamp(now, UTC).year
    changes = [datetime(year, month, _last_sunday(year, month), 1, tzinfo=UTC).timestamp() for year in (this, this + 1) for month in (3, 10)]
    return next(change for change in changes if change > now)


def _last_sunday(year: int, month: int) -> int:
    return max(week[calendar.SUNDAY] for week in calendar.monthcalendar(year, month))


async def _alone(engine: Full, each: Step) -> list[Any]:
    """The answer. Of several reasons not to take a step any may be told, so of one with a message no engine takes there is only this."""
    try:
        answers: list[Any] = list(await engine.step_schedules([each]))
    except BeltlineError as error:
        answers = [error.code]
    return ["not taken"] if _bad(each) and answers != [Stepped.DONE] else answers


def _bad(each: Step) -> bool:
    return any(message.delay_s < 0 for message in each.messages)


def _planned(view: ScheduleView, now: float) -> Step:
    try:
        return step(view.schedule, view.revision, view.stood_at, now)
    except ScheduleInvalid as error:
        nothing = Step(name=view.schedule.name, revision=view.revision, stood_at=view.stood_at, stands_at=view.stood_at, next_at=now)
        return _noted(nothing, error.what, now)


def _noted(each: Step, why: str, now: float) -> Step:
    return Step(name=each.name, revision=each.revision, stood_at=each.stood_at, stands_at=each.stood_at, next_at=now + AGAIN_S, error=why)


__all__ = ["ScheduleSteps", "next_change"]
