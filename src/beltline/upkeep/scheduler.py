"""The scheduler: what is due is sent, once, however many of these run.

    look    the engine says which schedules have to be looked at now, and when the next one has to be
    step    what is due is worked out (core/schedule.py), and the engine is asked to send it and to let the schedule stand behind it, in one write. Who comes second is STALE

No leader, no lock and no memory: a scheduler that is killed at any point has either moved a schedule or not. Those that sleep towards the same instant wake a little apart, so
that usually one of them does the work. A clock that was set back shows nothing (the engine's time goes on); one that leapt ahead is an outage like any other: the schedule's
catch-up rule decides, and a look never sends more than one step per schedule.

A full queue, or one that nobody has declared, is noted at the schedule and tried again soon; so is one whose zone this host does not know. None of them holds up another.
"""

import asyncio
import logging
from collections.abc import Callable
from random import shuffle, uniform

from beltline.core.errors import BeltlineError, EngineError, ScheduleInvalid
from beltline.core.schedule import Step, Stepped, step
from beltline.core.views import DueSchedules, ScheduleView
from beltline.engines.protocol import Engine, Schedules
from beltline.upkeep.loops import Loop

log = logging.getLogger("beltline.upkeep")

LOOK_S = 1.0  # between looks while nothing is due: a schedule that somebody has just added is seen this soon
APART_S = 0.05
AGAIN_S = 5.0  # until what was refused is tried again
UNKNOWN_ZONE_S = 60.0  # until a host that knows the zone may have come
PIECE = 100  # schedules per look; more of them are taken by others meanwhile
ROUNDS = 100  # looks without a pause, so that a stream of schedules that are due cannot keep a loop from ending


class Scheduler(Loop):
    what = "the scheduler"

    def __init__(self, engine: Callable[[], Engine], *, every_s: float = LOOK_S) -> None:
        super().__init__(engine, every_s=every_s)
        self._soon_s = every_s

    async def once(self) -> int:
        """All that is due now; how many messages were sent."""
        engine, sent = self._engine(), 0
        self._soon_s = self._every_s
        if not isinstance(engine, Schedules):
            return 0
        for _ in range(ROUNDS):
            found = await engine.due_schedules(limit=PIECE)
            self._soon_s = min(self._every_s, max(0.0, found.next_at - found.now))
            if not found.schedules:
                break
            count, moved = await self._step(engine, found)
            sent += count
            if not moved:  # others are at all of them just now
                self._soon_s = min(self._soon_s, APART_S)
                break
        return sent

    async def _step(self, engine: Schedules, found: DueSchedules) -> tuple[int, bool]:
        """How many messages were sent, and whether any schedule was moved."""
        views = list(found.schedules)
        shuffle(views)  # several schedulers begin at different ends
        steps = []
        for view in views:
            steps.append(_planned(view, found.now))
            await asyncio.sleep(0)  # after a long outage each takes some milliseconds, and leases are renewed in this loop
        try:
            answers = await engine.step_schedules(steps)
        except EngineError:
            raise
        except BeltlineError:  # one that no engine would send: the others must not suffer for it
            answers = [await self._alone(engine, each, found.now) for each in steps]
        refused = [_noted(each, _REFUSALS[answer], found.now) for each, answer in zip(steps, answers, strict=True) if answer in _REFUSALS]
        if refused:
            answers += await engine.step_schedules(refused)
        return sum(len(each.messages) for each, answer in zip(steps, answers, strict=False) if answer is Stepped.DONE), Stepped.DONE in answers

    async def _alone(self, engine: Schedules, each: Step, now: float) -> Stepped:
        try:
            return (await engine.step_schedules([each]))[0]
        except EngineError:
            raise
        except BeltlineError as error:
            await engine.step_schedules([_noted(each, str(error), now)])
            return Stepped.STALE

    async def run(self) -> None:
        while True:
            await self.attempt()
            await asyncio.sleep(self._soon_s + uniform(0.0, APART_S))  # noqa: S311 - spreads load, guards nothing


_REFUSALS = {Stepped.QUEUE_FULL: "the queue is full", Stepped.NOT_DECLARED: "the queue is not declared"}


def _planned(view: ScheduleView, now: float) -> Step:
    try:
        return step(view.schedule, view.revision, view.stood_at, now)
    except ScheduleInvalid as error:
        nothing = Step(name=view.schedule.name, revision=view.revision, stood_at=view.stood_at, stands_at=view.stood_at, next_at=now)
        return _noted(nothing, f"{error.what} {error.help}".strip(), now, again_s=UNKNOWN_ZONE_S)


def _noted(each: Step, why: str, now: float, *, again_s: float = AGAIN_S) -> Step:
    """It stays where it stands, and says why."""
    return Step(name=each.name, revision=each.revision, stood_at=each.stood_at, stands_at=each.stood_at, next_at=now + again_s, error=why)
