"""The sizes of fleets in a random history: heartbeats, rounds that decide from what they see (upkeep/sizing.py), bare decisions on a turn that stands or does not, orders."""

import asyncio
import math
from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from beltline.core.names import QueueName, WorkerId
from beltline.core.scaling import Decision, Size
from beltline.core.views import WorkerView
from beltline.engines.protocol import Fleet, Sizes
from beltline.testing.conformance.harness import Full
from beltline.testing.machine.draws import fleet_steps
from beltline.testing.machine.schedules import ScheduleSteps
from beltline.upkeep.sizing import Sizing


class FleetSteps(ScheduleSteps):
    """Only in histories that were begun with `begin_fleets`. An engine without the powers Sizes and Fleet has none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.sized = False
        self.turns: dict[QueueName, int] = {}

    def begin_fleets(self) -> None:
        self.sized = all(isinstance(engine, Sizes) and isinstance(engine, Fleet) for engine in self.engines)

    @precondition(lambda self: self.sized)
    @rule(steps=st.lists(fleet_steps, min_size=1, max_size=6))
    def run_fleets(self, steps: list[tuple[Any, ...]]) -> None:
        for step in steps:
            self._fleet_step(step)

    def _fleet_step(self, step: tuple[Any, ...]) -> None:
        verb, *how = step
        match verb, how:
            case "beat", (fields,):
                worker = _worker(**fields)
                self.do(lambda engine: engine.beat(worker))
            case "leave", (name,):
                self.do(lambda engine: engine.forget(WorkerId(name)))
            case "round", (queues, urgent):
                sizes = self.do(lambda engine: Sizing(by="w1").once(engine, queues, urgent=queues if urgent else ()))
                self.check_sizes(sizes.values() if isinstance(sizes, dict) else self.do(lambda engine: engine.sizes()))
            case "decide", (queue, off, slots, told, race):
                self._decide(queue, self.turns.get(queue, 0) + off, slots, told=told, race=race)
            case "order", (queue, (least, most)):
                self.do(lambda engine: engine.set_range(queue, least, most))
            case "clear", (queue,):
                self.do(lambda engine: engine.clear_range(queue))
            case "read", (queue, limit):
                self.do(lambda engine: engine.decisions(queue, limit=limit))
            case _:
                raise AssertionError(f"no such step: {step}")

    def _decide(self, queue: QueueName, turn: int, slots: int, *, told: bool, race: bool) -> None:
        """One decision, or two equal ones at once, of which one is heard."""
        log = _decision(queue, slots, self.time) if told else None
        state = f"{turn}: {slots}".encode()

        async def decide(engine: Full) -> list[bool]:
            calls = (engine.set_size(queue, turn=turn, slots=slots, state=state, log=log) for _ in range(1 + race))
            return sorted(await asyncio.gather(*calls))

        heard = self.do(decide)
        stands = self.turns.get(queue, 0)
        assert isinstance(heard, str) or heard.count(True) == (turn == stands), f"{heard} on turn {turn}, {stands} stands"
        if turn == stands and not isinstance(heard, str):
            self.turns[queue] = turn + 1

    def check_sizes(self, sizes: Iterable[Size]) -> None:
        for size in sizes:
            assert size.turn >= self.turns.get(size.queue, 0), f"{size.queue}: a turn came back"
            self.turns[size.queue] = size.turn


def _worker(*, queues: dict[str, int], ranges: dict[str, Any], service: dict[str, Any], refusal: str, **fields: Any) -> WorkerView:
    detail = {"ranges": {str(name): [*each] for name, each in ranges.items()}, "service": {str(name): [*each] for name, each in service.items()}}
    plain = {str(name): slots for name, slots in queues.items()}
    return WorkerView(host="host", pid=1, started_at=0.0, age_s=0.0, queues=plain, detail={**detail, "refusal": refusal}, **fields)


def _decision(queue: QueueName, slots: int, now: float) -> Decision:
    return Decision(
        queue=queue,
        at=now,
        before=0,
        slots=slots,
        need=slots,
        desired=slots,
        term="drain",
        limit="",
        reason=f"{slots} for größer",
        news=True,
        arrivals_per_s=0.5,
        service_s=0.25,
        runnable=1,
        held=0,
        leased=0,
        oldest_s=0.0,
        target_s=10.0,
        least=0,
        most=math.inf,
        offered=4,
        by="w2",
    )


__all__ = ["FleetSteps"]
