"""Which delivery goes to which runner. Nothing waits here: every event (a batch, an outcome, a runner that is ready) ends in `deal`.

Shared runners are dealt windows (intake.py), the emptiest first; a queue's slots are split over the runners, so that each can keep its own share by
itself. Lone runners get one delivery at a time: tasks of kind "process", and suspects, so that the blame for a crash is certain.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import Protocol

from beltline.core.message import Delivery
from beltline.core.names import QueueName
from beltline.core.outcome import Release
from beltline.core.policy import TaskPolicy
from beltline.worker.children import Child, ChildLane, Stage
from beltline.worker.frames import Done, Written
from beltline.worker.intake import Intake
from beltline.worker.settler import Settler

log = logging.getLogger("beltline.worker")

MAX_SUSPECTS = 10_000
LONE_SUSPECT_RUNNERS = 2  # how many runners try suspects side by side


class Hiring(Protocol):
    """What dealing needs of the crew."""

    lone: list[Child]

    def hire_lone(self, count: int, *, most: int) -> None: ...

    def spent(self, child: Child) -> None: ...


class Dealing:
    """`open`: False from the moment the worker drains. `isolate`: whether suspects and process tasks get runners of their own (not in-process)."""

    def __init__(self, settler: Settler, policies: Mapping[str, TaskPolicy], *, isolate: bool, give_up: Callable[[list[Delivery]], None]) -> None:
        self.open = True
        self.intakes: dict[QueueName, Intake] = {}
        self.crew: Hiring
        self._settler = settler
        self._policies = policies
        self._isolate = isolate
        self._give_up = give_up
        self._lanes: dict[QueueName, list[ChildLane]] = {}
        self._suspects: OrderedDict[str, None] = OrderedDict()

    # ---- runners come and go

    def live_slots(self, intake: Intake) -> int:
        """The slots of the queue that could run something now."""
        if not self.open or self._settler.full:
            return 0
        shared = sum(lane.slots for lane in self._lanes.get(intake.queue, ()) if lane.child.tasks_left != 0)
        return intake.slots if intake.processes else shared

    def join(self, child: Child) -> None:
        """A runner is ready, or has got a lane more."""
        for lane in child.lanes:
            if lane.intake is not None and lane not in (known := self._lanes.setdefault(lane.intake.queue, [])):
                known.append(lane)
        self.deal_all()

    def leave(self, child: Child) -> None:
        """A runner retires or is gone: nothing more for it."""
        for lanes in self._lanes.values():
            lanes[:] = [lane for lane in lanes if lane.child is not child]

    # ---- deliveries come

    def on_batch(self, intake: Intake, batch: list[Delivery]) -> None:
        if not self.open:
            self._give_up(batch)
            return
        if beyond := intake.beyond(len(batch)):
            for delivery in batch[-beyond:]:
                self._settler.end(delivery, Release(why="the slots have become fewer while it was received"))
            batch = batch[:-beyond]
        special = [d for d in batch if d.lost or self._is_alone(d)] if self._isolate else []
        if special:
            apart = {id(delivery) for delivery in special}
            intake.alone.extend(special)
            batch = [delivery for delivery in batch if id(delivery) not in apart]
        intake.ahead.extend(batch)
        intake.dealt_at = monotonic()
        self.deal(intake)

    def _is_alone(self, delivery: Delivery) -> bool:
        policy = self._policies.get(delivery.message.task)
        return (policy is not None and policy.kind == "process") or (bool(self._suspects) and delivery.message.id in self._suspects)

    def suspect(self, delivery: Delivery) -> None:
        """Run it alone when it comes back, whatever its counters say."""
        self._suspects[delivery.message.id] = None
        if len(self._suspects) > MAX_SUSPECTS:
            self._suspects.popitem(last=False)

    # ---- deliveries go out

    def deal_all(self) -> None:
        for intake in self.intakes.values():
            self.deal(intake)
            intake.room.set()

    def deal(self, intake: Intake) -> None:
        if not self.open or self._settler.full:
            return
        if intake.alone:
            self._deal_alone(intake)
        lanes = self._lanes.get(intake.queue)
        if not intake.ahead or not lanes:
            return
        while intake.ahead:
            lane, room = lanes[0], 0
            for each in lanes:
                free = each.room()
                if free > room:
                    lane, room = each, free
            if intake.exact or intake.window == 1:  # lanes that become smaller may still run more than their slots
                room = min(room, intake.slots - intake.dealt)
            if room <= 0 or (len(lane.held) > lane.slots and room < lane.slots):
                break  # full, or so nearly that another frame would carry next to nothing
            share = -(-len(intake.ahead) // len(lanes))
            taken = intake.take(max(1, min(room, share)))
            intake.dealt += len(taken)
            intake.dealt_at = monotonic()
            intake.weigh(len(taken), lane.child.deal(lane, taken))
            if lane.child.tasks_left is not None and lane.child.tasks_left <= lane.slots:
                self.crew.spent(lane.child)  # now, so that the next runner is ready when this one is through

    def _deal_alone(self, intake: Intake) -> None:
        """One at a time, to a lone runner that is free; for a last chance to a fresh one, whose state no other task has touched."""
        while intake.alone and intake.dealt < intake.slots:
            delivery = intake.alone[0]
            policy = self._policies.get(delivery.message.task)
            last_chance = policy is not None and delivery.lost + 1 >= policy.max_deliveries and not (policy.kind == "process" and not delivery.lost)
            free = [child for child in self.crew.lone if child.stage is Stage.READY and not child.held and child.tasks_left != 0]
            fit = [child for child in free if child.done == 0] if last_chance else free
            if not fit:
                if free and last_chance:
                    self.crew.spent(free[0])
                waiting = sum(min(len(each.alone), each.slots - each.dealt) for each in self.intakes.values())
                most = sum(each.slots for each in self.intakes.values() if each.processes) + LONE_SUSPECT_RUNNERS
                self.crew.hire_lone(waiting, most=most)
                return
            intake.alone.popleft()
            intake.dealt += 1
            intake.alone_dealt += 1
            intake.dealt_at = monotonic()
            child = fit[0]
            child.deal(child.lanes[0], [delivery])

    # ---- and come back

    def on_done(self, child: Child, done: Done | Written) -> None:
        lane = child.lanes[done.lane]
        held, count = lane.held, len(done.serials)
        try:
            deliveries = [held[serial] for serial in done.serials]
        except KeyError as error:
            log.error("%r answers for serial %s, which it does not hold: killing it", child, error)
            child.kill()
            return
        for serial in done.serials:
            del held[serial]
        child.done += count
        child.idle_at = monotonic()
        for serial in done.serials if child.halted else ():
            child.halted.pop(serial, None)
            child.overdue.pop(serial, None)
        intake = lane.intake or self.intakes[deliveries[0].message.queue]
        self._returned(lane, intake, count)
        intake.learn(count, done.ran_s)
        if isinstance(done, Written):
            intake.count(count, done.ran_s, done.ran_s**2 / count)
        else:
            intake.count(done.ran, done.ran_s, done.ran_squares_s2)
        if isinstance(done, Written):
            self._settler.written(deliveries, done.settlements, done.answers)
        else:
            self._settler.add(deliveries, done.settlements)
        self._deal_after(lane, intake)
        intake.room.set()
        if not lane.held and child.stage is Stage.RETIRING and not child.held:
            child.stop()

    def on_back(self, child: Child, lane: ChildLane, serials: list[int]) -> None:
        """What had not started comes back to the front of its queue, untouched."""
        deliveries = [lane.held.pop(serial) for serial in serials]
        if child.tasks_left is not None:
            child.tasks_left += len(deliveries)
        for serial in serials:
            child.halted.pop(serial, None)
        self.return_unstarted(lane, deliveries)
        if child.stage is Stage.RETIRING and not child.held:
            child.stop()

    def return_unstarted(self, lane: ChildLane, deliveries: list[Delivery]) -> None:
        if not deliveries:
            return
        intake = lane.intake or self.intakes[deliveries[0].message.queue]
        self._returned(lane, intake, len(deliveries))
        if not self.open:
            self._give_up(deliveries)
        elif lane.intake is None:
            intake.alone.extendleft(reversed(deliveries))
        else:
            intake.put_back(deliveries)
        self._deal_after(lane, intake)

    def _deal_after(self, lane: ChildLane, intake: Intake) -> None:
        """Something has come back from `lane`. A lone runner that is free again may be what another queue waits for."""
        self.deal(intake)
        if lane.intake is None:
            for other in self.intakes.values():
                if other is not intake and other.alone:
                    self.deal(other)

    def _returned(self, lane: ChildLane, intake: Intake, count: int) -> None:
        intake.dealt -= count
        if lane.intake is None:
            intake.alone_dealt -= count

    def write_off(self, child: Child, unstarted: Iterable[tuple[ChildLane, Delivery]]) -> None:
        """A runner is gone and the supervisor has settled for it what had started; the rest goes to others."""
        waiting: dict[int, list[Delivery]] = {}
        for lane, delivery in unstarted:
            waiting.setdefault(lane.index, []).append(delivery)
        for lane in child.lanes:
            left = waiting.get(lane.index, [])
            untouched = {id(delivery) for delivery in left}
            for delivery in lane.held.values():
                if id(delivery) not in untouched:
                    self._returned(lane, lane.intake or self.intakes[delivery.message.queue], 1)
            lane.held.clear()
            self.return_unstarted(lane, left)
