"""Engines that are wrong about schedules, the sizes of fleets, or heartbeats, each in one way, and the law that must fail for it (test_the_suite_catches_mutants.py).

Where a schedule stands cannot be changed through a verb, so some of them reach inside of the memory engine's books.
"""

from collections.abc import Callable

from msgspec import structs

from beltline.core.schedule import Stepped
from beltline.engines.memory import MemoryEngine
from beltline.engines.schedules import Row


class Scheduling(MemoryEngine):
    def rewrite(self, change: Callable[[Row], Row]) -> None:
        for name, row in self._schedules.rows.items():
            self._schedules.rows[name] = change(row)


class ANewScheduleStandsAtTheBeginningOfTime(Scheduling):
    async def put_schedules(self, specs, *, origin, owner="", replace=True):
        known = set(self._schedules.rows)
        answers = await super().put_schedules(specs, origin=origin, owner=owner, replace=replace)
        self.rewrite(lambda row: row if row.schedule.name in known else structs.replace(row, stood=0))
        return answers


class AStepIntoTheFutureIsTaken(Scheduling):
    async def step_schedules(self, steps):
        now = await self.now()
        return await super().step_schedules([structs.replace(each, stands_at=min(each.stands_at, now)) for each in steps])


class AStepBackIsTaken(Scheduling):
    async def step_schedules(self, steps):
        return await super().step_schedules([structs.replace(each, stands_at=max(each.stands_at, each.stood_at)) for each in steps])


class APausedScheduleIsStepped(Scheduling):
    async def step_schedules(self, steps):
        paused = {name for name, row in self._schedules.rows.items() if row.paused}
        self.rewrite(lambda row: structs.replace(row, paused=False))
        answers = await super().step_schedules(steps)
        self.rewrite(lambda row: structs.replace(row, paused=row.schedule.name in paused))
        return answers


class APausedScheduleIsLookedAt(Scheduling):
    async def due_schedules(self, *, limit=100):
        found = await super().due_schedules(limit=limit)
        paused = tuple(view for view in await self.schedules() if view.state == "paused")
        return structs.replace(found, schedules=found.schedules + paused)


class WhatIsLeftIsLookedAt(Scheduling):
    async def due_schedules(self, *, limit=100):
        found = await super().due_schedules(limit=limit)
        left = tuple(view for view in await self.schedules() if view.state == "left")
        return structs.replace(found, schedules=found.schedules + left)


class AStepSendsAsManyAsFit(Scheduling):
    async def step_schedules(self, steps):
        answers = []
        for each in steps:
            [answer] = await super().step_schedules([each])
            while answer is Stepped.QUEUE_FULL and len(each.messages) > 1:
                each = structs.replace(each, messages=each.messages[:-1])
                [answer] = await super().step_schedules([each])
            answers.append(answer)
        return answers


class AFullQueueIsToldAsStale(Scheduling):
    async def step_schedules(self, steps):
        return [Stepped.STALE if answer is Stepped.QUEUE_FULL else answer for answer in await super().step_schedules(steps)]


class WhatIsSkippedIsNotCounted(Scheduling):
    async def step_schedules(self, steps):
        return await super().step_schedules([structs.replace(each, skipped=0) for each in steps])


class ARefusalIsNotNoted(Scheduling):
    async def step_schedules(self, steps):
        return await super().step_schedules([structs.replace(each, error="") for each in steps])


class ADeclarationEndsAPause(Scheduling):
    async def put_schedules(self, specs, *, origin, owner="", replace=True):
        answers = await super().put_schedules(specs, origin=origin, owner=owner, replace=replace)
        self.rewrite(lambda row: structs.replace(row, paused=False))
        return answers


class AnotherTimingCatchesUp(Scheduling):
    async def put_schedules(self, specs, *, origin, owner="", replace=True):
        stood = {name: row.stood for name, row in self._schedules.rows.items()}
        answers = await super().put_schedules(specs, origin=origin, owner=owner, replace=replace)
        self.rewrite(lambda row: structs.replace(row, stood=stood.get(row.schedule.name, row.stood)))
        return answers


class AnOperatorChangesWhatTheCodeSays(Scheduling):
    async def put_schedules(self, specs, *, origin, owner="", replace=True):
        if origin == "operator":
            owners = {view.schedule.name: view.owner for view in await self.schedules() if view.origin == "code"}
            code = [spec for spec in specs if spec.name in owners]
            for spec in code:
                await super().put_schedules([spec], origin="code", owner=owners[spec.name])
        return await super().put_schedules(specs, origin=origin, owner=owner, replace=replace)


class CodeLeavesASchedulesOriginAlone(Scheduling):
    async def put_schedules(self, specs, *, origin, owner="", replace=True):
        orders = {name for name, row in self._schedules.rows.items() if row.origin == "operator"}
        rest = [spec for spec in specs if spec.name not in orders or origin == "operator"]
        answers = iter(await super().put_schedules(rest, origin=origin, owner=owner, replace=replace))
        return [next(answers) if spec in rest else False for spec in specs]


class WhatIsNotNamedIsLeftAtOnce(Scheduling):
    async def put_schedules(self, specs, *, origin, owner="", replace=True):
        self.rewrite(lambda row: structs.replace(row, named=0))
        return await super().put_schedules(specs, origin=origin, owner=owner, replace=replace)


class TheLongestDueComesLast(Scheduling):
    async def due_schedules(self, *, limit=100):
        found = await super().due_schedules(limit=limit)
        return structs.replace(found, schedules=found.schedules[::-1])


class NobodyKnowsWhenTheNextIsDue(Scheduling):
    async def due_schedules(self, *, limit=100):
        return structs.replace(await super().due_schedules(limit=limit), next_at=float("inf"))


# ---------------------------------------------------------------------------------------------------------- sizes, heartbeats


class ADecisionOnATurnThatIsOverIsWritten(MemoryEngine):
    async def set_size(self, queue, *, turn, slots, state, log=None):
        stands = {size.queue: size.turn for size in await self.sizes()}
        return await super().set_size(queue, turn=stands.get(queue, 0), slots=slots, state=state, log=log)


class ADecisionNobodyHeardIsLogged(MemoryEngine):
    async def set_size(self, queue, *, turn, slots, state, log=None):
        heard = await super().set_size(queue, turn=turn, slots=slots, state=state, log=log)
        if not heard and log is not None:
            self._fleets._log.append(log)
        return heard


class ADecisionEndsAnOrder(MemoryEngine):
    async def set_size(self, queue, *, turn, slots, state, log=None):
        heard = await super().set_size(queue, turn=turn, slots=slots, state=state, log=log)
        if heard:
            self._fleets._sizes[queue] = structs.replace(self._fleets._sizes[queue], ordered=None)
        return heard


class AnOrderWaitsForTheNextRound(MemoryEngine):
    async def set_range(self, queue, least, most):
        before = {size.queue: size.decided_at for size in await self.sizes()}
        await super().set_range(queue, least, most)
        self._fleets._sizes[queue] = structs.replace(self._fleets._sizes[queue], decided_at=before.get(queue, 0.0))


class AnOrderTakesATurn(MemoryEngine):
    async def set_range(self, queue, least, most):
        await super().set_range(queue, least, most)
        size = self._fleets._sizes[queue]
        self._fleets._sizes[queue] = structs.replace(size, turn=size.turn + 1)


class OneLogForAllQueues(MemoryEngine):
    """The newest 1,000 decisions together."""

    async def decisions(self, queue=None, *, limit=100):
        kept = await super().decisions(limit=1000)
        return [each for each in kept if queue in (None, each.queue)][:limit]


class TheLogIsOldestFirst(MemoryEngine):
    async def decisions(self, queue=None, *, limit=100):
        return (await super().decisions(queue, limit=1_000_000))[::-1][:limit]


class AHeartbeatTellsItsOwnAge(MemoryEngine):
    async def workers(self):
        told = {id: worker.age_s for id, (_, worker) in self._store.workers.items()}
        return [structs.replace(view, age_s=told[view.id]) for view in await super().workers()]


MUTANTS: list[tuple[type[MemoryEngine], str]] = [
    (AStepIntoTheFutureIsTaken, "L28"),
    (AStepBackIsTaken, "L28"),
    (AStepSendsAsManyAsFit, "L28"),
    (AFullQueueIsToldAsStale, "L28"),
    (WhatIsSkippedIsNotCounted, "L28"),
    (ARefusalIsNotNoted, "L28"),
    (AHeartbeatTellsItsOwnAge, "L40"),
    (ANewScheduleStandsAtTheBeginningOfTime, "L45"),
    (APausedScheduleIsStepped, "L45"),
    (APausedScheduleIsLookedAt, "L45"),
    (WhatIsLeftIsLookedAt, "L45"),
    (ADeclarationEndsAPause, "L45"),
    (AnotherTimingCatchesUp, "L45"),
    (AnOperatorChangesWhatTheCodeSays, "L45"),
    (CodeLeavesASchedulesOriginAlone, "L45"),
    (WhatIsNotNamedIsLeftAtOnce, "L45"),
    (TheLongestDueComesLast, "L45"),
    (NobodyKnowsWhenTheNextIsDue, "L45"),
    (ADecisionOnATurnThatIsOverIsWritten, "L50"),
    (ADecisionNobodyHeardIsLogged, "L50"),
    (ADecisionEndsAnOrder, "L50"),
    (AnOrderWaitsForTheNextRound, "L50"),
    (AnOrderTakesATurn, "L50"),
    (OneLogForAllQueues, "L50"),
    (TheLogIsOldestFirst, "L50"),
]
