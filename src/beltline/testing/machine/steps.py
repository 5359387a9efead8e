"""Everything a producer, a worker, an operator and the clock can do, and what must be true after each step."""

from collections.abc import Awaitable, Callable
from typing import Any, cast

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from msgspec import structs

from beltline.core.codec import pack
from beltline.core.message import Delivery, Message
from beltline.core.names import MessageId, QueueName, WorkerId
from beltline.core.outcome import Ack, DeadLetter, Outcome, Release, RetryAfter, Settled, Settlement
from beltline.core.policy import PARKED
from beltline.core.queues import Counts, Feed
from beltline.core.views import MessageFilter, RunCounts
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full
from beltline.testing.conformance.kit import NEXT, QUEUES, WORK
from beltline.testing.machine.draws import (
    LIMITS,
    VERBS,
    crowded,
    leases,
    looks,
    new_message,
    queue_limits,
    queues,
    rarely_altered,
    some,
    specs,
    steps,
    switches,
    waits,
    ways,
    workers,
)
from beltline.testing.machine.fleets import FleetSteps
from beltline.testing.machine.looking import Look, difference, look_at
from beltline.testing.machine.schedules import next_change

LIVE = ("ready", "delayed", "leased")


AWAY_S = 7 * 86400.0  # law `flow`: what a tenant is ahead is kept at least so long


class EngineMachine(FleetSteps):
    # ------------------------------------------------------------------------------------------------------- producers

    @initialize(
        batch=st.lists(new_message, min_size=2, max_size=6),
        ageing_s=st.sampled_from((10.0, 60.0, kit.ENDLESS)),
        shaped=st.booleans(),
        timed=st.booleans(),
    )
    def begin(self, batch: list[dict[str, Any]], ageing_s: float, shaped: bool, timed: bool) -> None:
        self.ageing_s = ageing_s  # for good: an engine need not know since when a message waits once the worth of waiting has changed
        self.do(lambda engine: engine.open())
        self.do(lambda engine: engine.declare([kit.specs(queue, ageing_s=ageing_s) for queue in QUEUES]))
        if self.parts is not None:
            shaped, timed = "flow" in self.parts, "schedules" in self.parts
        if shaped:
            self.begin_flow()
        if timed:
            self.begin_schedules()
            self.begin_fleets()
        self.both_stores_are_equal_and_sound()
        self.began_at = self.time
        self.send(batch)

    # Three rules with the ordinary work in them: Hypothesis switches single rules off for whole histories, and without work nothing happens.

    @rule(step=steps)
    def work(self, step: tuple[Any, ...]) -> None:
        verb, *how = step
        if verb == "send":
            self.send(*how)
        elif verb == "receive":
            self.receive(*how)
        elif self.deliveries:
            self.settle(*how)

    @rule(first=steps, second=steps)
    def work_on(self, first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
        self.work(first)
        self.both_stores_are_equal_and_sound()
        self.work(second)

    @rule(batch=st.lists(new_message, min_size=1, max_size=3), ways=st.lists(ways, min_size=1, max_size=4))
    def pass_through(self, batch: list[dict[str, Any]], ways: list[Any]) -> None:
        self.send(batch)
        self.both_stores_are_equal_and_sound()
        self.receive(list(QUEUES), 8, 30.0, "w3")
        self.both_stores_are_equal_and_sound()
        if self.deliveries:
            self.settle(ways)

    @precondition(lambda self: self.shaped)
    @rule(
        batch=st.lists(crowded, min_size=4, max_size=8),
        limits=st.lists(st.integers(1, 6), min_size=1, max_size=3),
        worker=workers,
        lives=st.booleans(),
        ways=st.lists(ways, min_size=1, max_size=2),
        seconds=st.sampled_from((0.0, 0.5, 2.0, 30.0)),
    )
    def crowd(self, batch: list[dict[str, Any]], limits: list[int], worker: str, lives: bool, ways: list[Any], seconds: float) -> None:
        """Many messages with flow at once, so that limits are reached and tenants take turns."""
        if lives:
            self.flow_step(("live", worker, "up", [WORK, NEXT]))
        self.send(batch)
        for limit in limits:
            self.both_stores_are_equal_and_sound()
            self.receive([WORK, NEXT], limit, 30.0, worker)
        self.both_stores_are_equal_and_sound()
        if self.deliveries:
            self.settle(ways)
        self.move_clocks(seconds)

    @precondition(lambda self: self.timed)
    @rule(drawn=st.lists(specs, max_size=2), moves=st.lists(st.tuples(waits, rarely_altered, looks), min_size=2, max_size=6))
    def as_time_goes_by(self, drawn: list[dict[str, Any]], moves: list[tuple[Any, Any, str]]) -> None:
        """Some schedules, and schedulers that look while the clock moves, sometimes to where it is put forward or back in a zone."""
        if drawn:
            self.put_schedules(drawn, "code", "one")
        for wait_s, altered, how in moves:
            self.move_clocks(next_change(self.time) - self.time - 90.0 if wait_s == "change" else wait_s)
            if altered is not None:
                self.schedule_step(altered)
            if how != "nobody":
                self.look(how)
            self.both_stores_are_equal_and_sound()

    def send(self, batch: list[dict[str, Any]]) -> None:
        self.send_all([self._message(dict(fields)) for fields in batch])

    def _message(self, fields: dict[str, Any]) -> Message:
        again, in_a_run, queue = fields.pop("again"), fields.pop("in_a_run"), fields.pop("queue")
        fields["flow"] = fields["flow"] if self.shaped else None
        if again is not None and self.sent:
            fields["id"] = self.pick(again)
        return kit.placed(None, queue, **fields) if in_a_run else kit.message(queue, **fields)

    # --------------------------------------------------------------------------------------------------------- workers

    def receive(self, chosen: list[QueueName], limit: int, lease_s: float, worker: str) -> None:
        now = self.time
        answers = [
            self._one(engine, lambda engine: engine.receive(chosen, limit=limit, lease_s=lease_s, worker=WorkerId(worker))) for engine in self.engines
        ]
        plain = [[structs.replace(delivery, group_epoch=0) for delivery in answer] for answer in answers]
        assert len(plain) == 1 or plain[0] == plain[1], f"{self.engines[0].name} / {self.engines[1].name} received: {difference(*plain)}"
        deliveries: list[Delivery] = answers[0]
        assert len(deliveries) <= limit
        for delivery in deliveries:
            self._received(delivery, now)
            self.started(delivery, now)
        ids = [delivery.message.id for delivery in deliveries]
        assert len(set(ids)) == len(ids), "I4: one receive gave a message twice"

    def _received(self, delivery: Delivery, now: float) -> None:
        message, view = delivery.message, self.views.get(delivery.message.id)
        if view is None:  # the last part of a gather became poison in this very receive, which sent the message that was waiting for it
            assert message.id in self.followers, "I2: a message nobody sent"
            self.admit(message)
            self.order[message.id] = len(self.order)
        else:
            assert view.state == "ready" or view.due_at <= now, f"I5: handed out while it was {view.state}"
            assert (delivery.failed, delivery.lost) >= (view.failed, view.lost)
        assert message.id in self.sent, "I2: a message nobody sent"
        assert delivery.receipt.epoch == self.epochs.get(message.id, 0) + 1, "I4: the epoch grows by one at every hand-out"
        self.epochs[message.id] = delivery.receipt.epoch
        self.deliveries.append(delivery)
        if message.group is not None:
            lane = (message.queue, message.group)
            assert delivery.group_epoch > self.group_epochs.get(lane, 0)
            self.group_epochs[lane] = delivery.group_epoch
            begun = self.begun.setdefault(lane, [])
            if message.id not in begun:
                assert not begun or self.order[message.id] > self.order[begun[-1]], "I10: not in the order of sending"
                begun.append(message.id)

    @precondition(lambda self: self.deliveries)
    @rule(numbers=st.lists(some, min_size=1, max_size=4), lease_s=leases)
    def renew(self, numbers: list[int], lease_s: float) -> None:
        receipts = [self.held(number).receipt for number in numbers]
        for receipt, answer in zip(receipts, self.do(lambda engine: engine.renew(receipts, lease_s=lease_s)), strict=True):
            assert answer is Settled.LEASE_LOST or self.current(receipt.id, receipt.epoch), "I7: a stale receipt was renewed"
            if answer is not Settled.LEASE_LOST:
                self.renewed(receipt.id, self.time + lease_s)

    def settle(self, batch: list[tuple[int, str, float, int, QueueName, str]]) -> None:
        settlements = [self._settlement(self.held(way[0]), *way[1:]) for way in batch]
        leased = {id: view.epoch for id, view in self.views.items() if view.state == "leased"}
        for settlement, answer in zip(settlements, self.do(lambda engine: engine.settle(settlements)), strict=True):
            self._settled(settlement, answer, leased)

    def _settlement(self, delivery: Delivery, ending: str, delay_s: float, number: int, queue: QueueName, on_dead: str) -> Settlement:
        message = delivery.message
        outcome: Outcome
        match ending:
            case "retry" | "lost":
                outcome = RetryAfter(delay_s=delay_s, failure=kit.failure(), lost=ending == "lost", ran_s=1.5)
            case "release" | "parked":
                outcome = Release(delay_s=delay_s, why=PARKED if ending == "parked" else "")
            case "snooze":
                outcome = Release(delay_s=delay_s, queue_s=5.0 if self.shaped and number == 3 else 0.0)
            case "dead_letter":
                outcome = DeadLetter(reason="broken", failure=kit.failure(f"app.Error{number}"))
            case "cancelled":
                outcome = kit.cancelled("stopped")
            case "split" if message.place is not None and len(message.place.parts) < 2:
                outer = message.place.parts[-1] if message.place.parts else None
                outcome, _, _ = kit.fan(message, number, queue=queue, then=None if number % 2 else WORK, on_dead=on_dead, outer=outer)
            case "hand_on" if message.place is not None:
                outcome = Ack(then=tuple(kit.follower(message, queue, group=message.group, flow=message.flow) for _ in range(1)))
            case _ if message.place is not None and message.place.parts:
                outcome = Ack(part=pack(number))
            case "hand_on":
                outcome = Ack(then=tuple(kit.messages(number, queue, delay_s=delay_s, flow=message.flow)))
            case _:
                outcome = Ack(result=pack(number) if ending == "result" else None, result_ttl_s=60.0 * (1 + number), ran_s=0.25 * number)
        return Settlement(delivery.receipt, outcome)

    def _settled(self, settlement: Settlement, answer: Settled, leased: dict[MessageId, int]) -> None:
        id, epoch, outcome = settlement.receipt.id, settlement.receipt.epoch, settlement.outcome
        if answer is Settled.LEASE_LOST:
            assert leased.pop(id, None) != epoch, "I7: the holder of a live lease was refused"
            return
        assert answer is Settled.DONE
        assert self.current(id, epoch), "I6, I7: a settle under an old epoch, or the second under one"
        leased.pop(id, None)
        self.settled.add((id, epoch))
        self.ended(id)
        if isinstance(outcome, Ack):
            for follower in (*outcome.then, *(gather.then for gather in outcome.gathers if gather.then is not None)):
                self.followers[follower.id] = follower
                if follower.place is None and follower.id not in self.sent:
                    self.admit(follower)
            if outcome.result is not None and self.sent[id].place is None:
                self.results[id] = outcome.result

    @precondition(lambda self: self.deliveries)
    @rule(notes=st.lists(st.tuples(some, st.integers(0, 9)), min_size=1, max_size=3))
    def progress(self, notes: list[tuple[int, int]]) -> None:
        given = [(self.held(number).receipt, pack(value)) for number, value in notes]
        for (receipt, _), answer in zip(given, self.do(lambda engine: engine.progress(given)), strict=True):
            assert answer is Settled.LEASE_LOST or self.current(receipt.id, receipt.epoch), "I7: progress under an old epoch"

    # ------------------------------------------------------------------------------------------------------- operators

    @rule(verb=st.sampled_from(VERBS), numbers=st.lists(some, min_size=1, max_size=3), queue=queues)
    def operate(self, verb: str, numbers: list[int], queue: QueueName) -> None:
        ids, here = [self.pick(number) for number in numbers], MessageFilter(queues=(queue,))
        run = self.run_id(numbers[0])
        verbs: dict[str, Callable[[Full], Awaitable[Any]]] = {
            "cancel": lambda engine: engine.cancel(ids, reason="not needed"),
            "cancel_run": lambda engine: engine.cancel_run(run, reason="wrong photo"),
            "hurry": lambda engine: engine.hurry(ids),
            "redrive": lambda engine: engine.redrive(MessageFilter(states=("dead",)), limit=len(ids)),
            "redrive_here": lambda engine: engine.redrive(here, limit=len(ids)),
            "redrive_elsewhere": lambda engine: engine.redrive(MessageFilter(ids=tuple(ids)), limit=3, queue=queue),
            "delete": lambda engine: engine.delete(here, limit=len(ids)),
            "edit": lambda engine: engine.edit(ids[0], body=b"edited"),
            "pause": lambda engine: engine.pause(queue),
            "resume": lambda engine: engine.resume(queue),
            "purge": lambda engine: engine.purge(queue),
        }
        if verb == "redrive_elsewhere" and any(id in self.sent and self.sent[id].group is not None for id in ids):
            return  # the order of a group is that of one queue
        self.do(verbs[verb])
        receipts = [delivery.receipt for delivery in self.deliveries[-10:]]
        self.do(lambda engine: engine.cancel_asked(receipts))

    @rule(
        queue=queues,
        on_dead=st.sampled_from(("hold", "skip")),
        max_deliveries=st.integers(1, 3),
        max_backlog=st.sampled_from((3, 10, kit.ENDLESS)),
        water=st.sampled_from((2, 4, kit.ENDLESS)),
        feeds=st.sampled_from(((), (), (1,), (2,))),
        limits=queue_limits,
        kill_switch=switches,
    )
    def declare(self, queue: QueueName, feeds: tuple[int, ...], water: float, **numbers: Any) -> None:
        # Both marks are the same here: with two, an engine's answer depends on when it looked last, which is its own affair (law 22 looks at it).
        next_queue = QUEUES[(QUEUES.index(queue) + 1) % len(QUEUES)]
        spec = kit.specs(
            queue, feeds=tuple(Feed(next_queue, fan_out) for fan_out in feeds), ageing_s=self.ageing_s, high_water=water, low_water=water, **numbers
        )
        if not self.shaped:
            spec = structs.replace(spec, limits=(), kill_switch=None)
        self.do(lambda engine: engine.declare([spec]))
        self.do(lambda engine: engine.queues())
        self.declared(spec)

    @rule(
        where=st.fixed_dictionaries(
            {},
            optional={
                "queues": st.lists(queues, max_size=2).map(tuple),
                "states": st.lists(st.sampled_from((*LIVE, "done", "dead")), max_size=2).map(tuple),
                "group": st.sampled_from(("g", "h")),
                "error": st.sampled_from(("app.Error1", "builtins.ValueError")),
            },
        ),
        page=st.integers(1, 5),
    )
    def browse(self, where: dict[str, Any], page: int) -> None:
        """The pages of a browse join without gap or repeat, and show what the filter says."""

        async def found(engine: Full) -> list[MessageId]:
            return [view.message.id for view in await kit.everything(engine, page=page, **where)]

        ids = self.do(found)
        assert len(set(ids)) == len(ids)
        states = where.get("states") or (*LIVE, "done", "dead")
        assert all(self.views[id].state in states for id in ids)

    # ------------------------------------------------------------------------------------------------ time and upkeep

    @rule(seconds=st.sampled_from((1.0, 1.0, 5.0, 5.0, 10.0, 30.0, 30.0, 600.0, -60.0, -86400.0 * 400, 86400.0 * 2)))
    def clock(self, seconds: float) -> None:
        self.move_clocks(seconds)

    @rule(what=st.sampled_from(("sweep", "sweep", "restart", "restart", "retain")), history_s=st.sampled_from((0.0, 600.0, 86400.0)))
    def upkeep(self, what: str, history_s: float) -> None:
        if what == "sweep":
            for engine in self.engines:  # how many moved is not compared: a read may have moved some already
                assert self._one(engine, lambda engine: engine.sweep()) >= 0
        elif what == "retain":
            if self.shaped and self.time - self.began_at > AWAY_S:
                return  # an engine may forget tenants who have been away for so long, or not: who is next may differ
            self.retained = True
            for engine in self.engines:  # how many of what is an engine's own affair
                assert self._one(engine, lambda engine: engine.retain(history_s=history_s)) >= 0
        else:
            for number, harness in enumerate(self.harnesses):
                self.engines[number] = cast("Full", self.runner.run(harness.restart(self.engines[number])))

    # ------------------------------------------------------------------------------------------------------ invariants

    @invariant()
    def both_stores_are_equal_and_sound(self) -> None:
        limits = LIMITS if self.shaped else ()
        look: Look = self.do(
            lambda engine: look_at(engine, self.views, self.runs, limits, explain=self.explained, timed=self.timed, sized=self.sized)
        )
        assert look.now >= self.time, "time ran backwards"
        self.time = look.now
        self.views = {view.message.id: view for view in look.views}
        for id in self.views:
            self.order.setdefault(id, len(self.order))
            if id not in self.sent and id in self.followers:
                self.admit(self.followers[id])
        assert len(self.views) == len(look.views), "I3: one id, two messages"
        assert self.views.keys() <= self.sent.keys(), "I2: a message nobody sent"
        missing = [id for id in self.sent if id not in self.views]
        assert not missing or self.retained, f"I1: acknowledged and gone: {missing}"
        for queue, count in zip(QUEUES, look.counts, strict=True):
            self._counted(queue, count)
        self._leases_of_groups()
        self.check_schedules(look.schedules, look.views, look.now)
        self.check_sizes(look.sizes)
        self._results(look)
        self._runs(look)

    def _counted(self, queue: QueueName, count: Counts) -> None:
        here = [view.state for view in self.views.values() if view.message.queue == queue]
        for state in (*LIVE, "dead"):
            assert getattr(count, state) == here.count(state), f"{queue}: counts say {count}, browsing finds {here.count(state)} {state}"
        assert count.done == here.count("done") or (self.retained and count.done > here.count("done"))
        assert count.oldest_ready_s >= 0.0
        behind = sum(view.blocked and view.state == "ready" for view in self.views.values() if view.message.queue == queue)
        assert behind <= count.held <= count.ready
        assert count.held == count.ready or not count.paused

    def _leases_of_groups(self) -> None:
        lanes = [(view.message.queue, view.message.group) for view in self.views.values() if view.state == "leased" and view.message.group]
        assert len(set(lanes)) == len(lanes), "I11: two leases in one group"

    def _results(self, look: Look) -> None:
        for id, view in zip(self.views, look.results, strict=False):
            if view is not None and view.id == id and view.result is not None and self.sent[id].place is None:
                assert self.results.get(id) == view.result, "I8: a result without its ack"
                assert (view.state, view.outcome) == ("done", "succeeded"), "I8"

    def _runs(self, look: Look) -> None:
        states = [view.state for view in look.runs]
        assert look.run_counts.entered == len(look.runs), "I9"
        assert all(getattr(look.run_counts, state) == states.count(state) for state in RunCounts.__struct_fields__), "I9"
        assert self.retained or len(look.runs) <= len(self.runs)
        for view in look.runs:
            live = [1 for each in self.views.values() if each.state in LIVE and each.message.place and each.message.place.run == view.id]
            assert view.open == len(live), f"I9: run {view.id} says {view.open} open, there are {len(live)}"
