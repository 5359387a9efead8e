"""A Hypothesis state machine that drives an engine with random steps, compares every answer and the whole store with a second engine, and checks the invariants.

    TestMine = machine.case(MyHarness, oracle=MemoryHarness)

Steps       everything a producer, a worker, an operator and the clock can do, with ids sent twice, stale and doubled receipts, and new starts of the process.
Comparison  after each step: the answer, the counts and every message of both engines are equal.
Invariants  checked against a ledger of what was answered, so that two engines cannot be wrong together. Their numbers:
            I1 acknowledged => in exactly one place · I2 there => it was sent · I3 one id => one message · I4 one current epoch · I5 hand-out e+1 only after the end
            of e · I6 one settle per epoch · I7 nothing changes under an old epoch · I8 result <=> ack · I9 entered runs = running + done + dead + failed +
            cancelled · I10 first deliveries of a group in send order · I11 one lease per group · I12 one message per dedup key and window

A failure prints the steps and how to replay them. BELTLINE_EXAMPLES (40) says how many histories are tried, each of up to 40 steps; BELTLINE_SHRINK=1
makes a history that failed shorter, which takes minutes (it is remembered: run the test again).
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast
from unittest import TestCase

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import Struct, structs

from beltline.core.codec import pack
from beltline.core.errors import BeltlineError
from beltline.core.message import Delivery, Message
from beltline.core.names import MessageId, QueueName, RunId, WorkerId
from beltline.core.outcome import Ack, Admission, DeadLetter, Outcome, Release, RetryAfter, Sent, Settled, Settlement
from beltline.core.policy import PARKED
from beltline.core.queues import Counts, Feed
from beltline.core.views import AttemptView, GatherView, MessageFilter, MessageView, ResultView, RunCounts, RunView
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Harness
from beltline.testing.conformance.kit import LAST, LINE, NEXT, OTHER, QUEUES, WORK

STEPS = 40
LIVE = ("ready", "delayed", "leased")

queues = st.sampled_from((WORK, WORK, WORK, NEXT, NEXT, LAST, OTHER))
some = st.integers(0, 10_000)  # "one of those there are", modulo how many there are
delays = st.sampled_from((0.0, 0.0, 0.0, 0.0, 5.0, 20.0, 3600.0))
leases = st.sampled_from((30.0, 30.0, 10.0, 600.0, 0.0))


def rarely(*values: Any) -> "st.SearchStrategy[Any]":
    """Mostly None."""
    return st.sampled_from((None,) * 3 * len(values) + values)


new_message = st.fixed_dictionaries(
    {
        "queue": queues,
        "in_a_run": st.booleans(),
        "again": st.one_of(st.none(), st.none(), st.none(), st.none(), some),
        "group": st.sampled_from((None, None, "g", "g", "h")),
        "dedup_key": rarely("k"),
        "dedup_window_s": st.sampled_from((300.0, 10.0)),
        "delay_s": delays,
        "priority": st.integers(-2, 2),
        "expires_s": rarely(5.0, 40.0),
    }
)
VERBS = (
    "cancel",
    "cancel",
    "cancel_run",
    "hurry",
    "redrive",
    "redrive",
    "redrive_here",
    "redrive_elsewhere",
    "delete",
    "edit",
    "pause",
    "resume",
    "purge",
)
endings = st.sampled_from(
    (
        "ack",
        "result",
        "hand_on",
        "hand_on",
        "split",
        "split",
        "split",
        "cancelled",
        "retry",
        "retry",
        "lost",
        "release",
        "parked",
        "dead_letter",
        "dead_letter",
    )
)
# which delivery, how it ends, after what delay, a number of parts or results, into which queue, what a dead part does
ways = st.tuples(some, endings, delays, st.integers(0, 3), queues, st.sampled_from(("hold", "skip", "fail")))
workers = st.sampled_from(("w1", "w2"))
steps = st.one_of(
    st.tuples(st.just("send"), st.lists(new_message, min_size=1, max_size=5)),
    st.tuples(st.just("receive"), st.permutations(QUEUES), st.integers(1, 8), leases, workers),
    st.tuples(st.just("receive"), st.lists(queues, min_size=1, max_size=3), st.integers(1, 6), leases, workers),
    st.tuples(st.just("settle"), st.lists(ways, min_size=1, max_size=6)),
)


class EngineMachine(RuleBasedStateMachine):
    """Subclasses (made by `case`) say which engines."""

    subject_kind: ClassVar[type[Harness]]
    oracle_kind: ClassVar[type[Harness] | None]

    def __init__(self) -> None:
        super().__init__()
        kit.number_from(1)
        self.folder = Path(tempfile.mkdtemp(prefix="beltline-machine-"))
        self.runner = asyncio.Runner()
        kinds = [self.subject_kind] if self.oracle_kind is None else [self.subject_kind, self.oracle_kind]
        self.harnesses = [kind(self.folder / str(number)) for number, kind in enumerate(kinds)]
        for harness in self.harnesses:
            harness.folder.mkdir()
        self.engines: list[Full] = [cast("Full", harness.engine(clock=harness.clock)) for harness in self.harnesses]
        self.sent: dict[MessageId, Message] = {}
        self.followers: dict[MessageId, Message] = {}  # handed on, if their run was not given up; or to be sent by a gather
        self.stored_at: dict[tuple[QueueName, str], tuple[float, float]] = {}
        self.runs: list[RunId] = []
        self.deliveries: list[Delivery] = []
        self.epochs: dict[MessageId, int] = {}
        self.settled: set[tuple[MessageId, int]] = set()
        self.results: dict[MessageId, bytes] = {}
        self.group_epochs: dict[tuple[QueueName, str], int] = {}
        self.begun: dict[tuple[QueueName, str], list[MessageId]] = {}
        self.order: dict[MessageId, int] = {}
        self.views: dict[MessageId, MessageView] = {}
        self.retained = False
        self.ageing_s = 60.0
        self.time = 0.0

    def teardown(self) -> None:
        try:
            for engine in self.engines:
                self.runner.run(engine.close())
        finally:
            self.runner.close()
            shutil.rmtree(self.folder)

    # ------------------------------------------------------------------------------------------- driving both engines

    def do(self, verb: Callable[[Full], Awaitable[Any]]) -> Any:
        """The answer of the engine under test; the other one must give the same. A refusal is an answer too: (code, its fields)."""
        answers = [self._one(engine, verb) for engine in self.engines]
        assert len(answers) == 1 or answers[0] == answers[1], f"{self.engines[0].name} / {self.engines[1].name}: {_difference(*answers)}"
        return answers[0]

    def _one(self, engine: Full, verb: Callable[[Full], Awaitable[Any]]) -> Any:
        async def call() -> Any:
            async with asyncio.timeout(10.0):
                return await verb(engine)

        try:
            return self.runner.get_loop().run_until_complete(call())
        except BeltlineError as error:
            return error.code

    def pick(self, number: int) -> MessageId:
        """One of the messages that were sent, or an id that never was."""
        ids = list(self.sent)
        return ids[number % (len(ids) + 1)] if number % (len(ids) + 1) < len(ids) else kit.NEVER_SENT

    def held(self, number: int) -> Delivery:
        """One of the deliveries that may still be settled, if there is one; one draw in five falls on any there ever was."""
        held = [delivery for delivery in self.deliveries if self.current(*structs.astuple(delivery.receipt))]
        among = self.deliveries if number % 5 == 0 or not held else held
        return among[number // 5 % len(among)]

    def run_id(self, number: int) -> RunId:
        return self.runs[number % len(self.runs)] if self.runs else RunId(kit.NEVER_SENT)

    # ------------------------------------------------------------------------------------------------------- producers

    @initialize(batch=st.lists(new_message, min_size=2, max_size=6), ageing_s=st.sampled_from((10.0, 60.0, kit.ENDLESS)))
    def begin(self, batch: list[dict[str, Any]], ageing_s: float) -> None:
        self.ageing_s = ageing_s  # for good: an engine need not know since when a message waits once the worth of waiting has changed
        self.do(lambda engine: engine.open())
        self.do(lambda engine: engine.declare([kit.specs(queue, ageing_s=ageing_s) for queue in QUEUES]))
        self.both_stores_are_equal_and_sound()
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

    def send(self, batch: list[dict[str, Any]]) -> None:
        messages = [self._message(dict(fields)) for fields in batch]
        now = self.time
        answers = self.do(lambda engine: engine.send(messages))
        if isinstance(answers, str):
            return
        assert len(answers) == len(messages)
        for message, answer in zip(messages, answers, strict=True):
            self._sent(message, answer, now)

    def _message(self, fields: dict[str, Any]) -> Message:
        again, in_a_run, queue = fields.pop("again"), fields.pop("in_a_run"), fields.pop("queue")
        if again is not None and self.sent:
            fields["id"] = self.pick(again)
        return kit.placed(None, queue, **fields) if in_a_run else kit.message(queue, **fields)

    def _sent(self, message: Message, answer: Sent, now: float) -> None:
        key = (message.queue, message.dedup_key) if message.dedup_key is not None else None
        if answer.admission is Admission.SAME_ID:
            assert message.id in self.sent, "I3: a new id was taken for an old one"
            return
        if answer.admission is Admission.DEDUPLICATED:
            assert key is not None
            assert answer.id in self.sent
            return
        assert message.id not in self.sent or self.retained, "I3: one id was stored twice"
        if message.id in self.sent:
            self.forget(message.id)
        if key is not None:
            at, window_s = self.stored_at.get(key, (0.0, 0.0))
            assert now >= at + window_s, "I12: two messages with one dedup key in one window"
            self.stored_at[key] = (now, message.dedup_window_s)
        self.admit(message)

    def forget(self, id: MessageId) -> None:
        """Its history was dropped, and a day later the id was sent anew: what is known of the old message is no longer true of any."""
        self.deliveries = [delivery for delivery in self.deliveries if delivery.message.id != id]
        self.settled = {(other, epoch) for other, epoch in self.settled if other != id}
        for known in (self.epochs, self.order, self.results):
            known.pop(id, None)
        for begun in self.begun.values():
            if id in begun:
                begun.remove(id)

    def admit(self, message: Message) -> None:
        self.sent[message.id] = message
        if message.place is not None and message.place.run not in self.runs:
            self.runs.append(message.place.run)

    # --------------------------------------------------------------------------------------------------------- workers

    def receive(self, chosen: list[QueueName], limit: int, lease_s: float, worker: str) -> None:
        now = self.time
        answers = [
            self._one(engine, lambda engine: engine.receive(chosen, limit=limit, lease_s=lease_s, worker=WorkerId(worker))) for engine in self.engines
        ]
        plain = [[structs.replace(delivery, group_epoch=0) for delivery in answer] for answer in answers]
        assert len(plain) == 1 or plain[0] == plain[1], f"{self.engines[0].name} / {self.engines[1].name} received: {_difference(*plain)}"
        deliveries: list[Delivery] = answers[0]
        assert len(deliveries) <= limit
        for delivery in deliveries:
            self._received(delivery, now)
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
            case "dead_letter":
                outcome = DeadLetter(reason="broken", failure=kit.failure(f"app.Error{number}"))
            case "cancelled":
                outcome = kit.cancelled("stopped")
            case "split" if message.place is not None and len(message.place.parts) < 2:
                outer = message.place.parts[-1] if message.place.parts else None
                outcome, _, _ = kit.fan(message, number, queue=queue, then=None if number % 2 else WORK, on_dead=on_dead, outer=outer)
            case "hand_on" if message.place is not None:
                outcome = Ack(then=tuple(kit.follower(message, queue, group=message.group) for _ in range(1)))
            case _ if message.place is not None and message.place.parts:
                outcome = Ack(part=pack(number))
            case "hand_on":
                outcome = Ack(then=tuple(kit.messages(number, queue, delay_s=delay_s)))
            case _:
                outcome = Ack(result=pack(number) if ending == "result" else None, result_ttl_s=60.0 * (1 + number))
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
        if isinstance(outcome, Ack):
            for follower in (*outcome.then, *(gather.then for gather in outcome.gathers if gather.then is not None)):
                self.followers[follower.id] = follower
                if follower.place is None and follower.id not in self.sent:
                    self.admit(follower)
            if outcome.result is not None and self.sent[id].place is None:
                self.results[id] = outcome.result

    def current(self, id: MessageId, epoch: int) -> bool:
        """Whether a settle under this epoch may still count."""
        return self.epochs.get(id) == epoch and (id, epoch) not in self.settled

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
    )
    def declare(self, queue: QueueName, feeds: tuple[int, ...], water: float, **numbers: Any) -> None:
        # Both marks are the same here: with two, an engine's answer depends on when it looked last, which is its own affair (law 22 looks at it).
        next_queue = QUEUES[(QUEUES.index(queue) + 1) % len(QUEUES)]
        spec = kit.specs(
            queue, feeds=tuple(Feed(next_queue, fan_out) for fan_out in feeds), ageing_s=self.ageing_s, high_water=water, low_water=water, **numbers
        )
        self.do(lambda engine: engine.declare([spec]))
        self.do(lambda engine: engine.queues())

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
    def look(self, where: dict[str, Any], page: int) -> None:
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
        for harness in self.harnesses:
            if seconds < 0:
                harness.clock.set_back(-seconds)
            else:
                harness.clock.advance(seconds)

    @rule(what=st.sampled_from(("sweep", "sweep", "restart", "restart", "retain")), history_s=st.sampled_from((0.0, 600.0, 86400.0)))
    def upkeep(self, what: str, history_s: float) -> None:
        if what == "sweep":
            for engine in self.engines:  # how many moved is not compared: a read may have moved some already
                assert self._one(engine, lambda engine: engine.sweep()) >= 0
        elif what == "retain":
            self.retained = True
            for engine in self.engines:  # how many of what is an engine's own affair
                assert self._one(engine, lambda engine: engine.retain(history_s=history_s)) >= 0
        else:
            for number, harness in enumerate(self.harnesses):
                self.engines[number] = cast("Full", self.runner.run(harness.restart(self.engines[number])))

    # ------------------------------------------------------------------------------------------------------ invariants

    @invariant()
    def both_stores_are_equal_and_sound(self) -> None:
        look: Look = self.do(lambda engine: _look(engine, self.views, self.runs))
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
        self._results(look)
        self._runs(look)

    def _counted(self, queue: QueueName, count: Counts) -> None:
        here = [view.state for view in self.views.values() if view.message.queue == queue]
        for state in (*LIVE, "dead"):
            assert getattr(count, state) == here.count(state), f"{queue}: counts say {count}, browsing finds {here.count(state)} {state}"
        assert count.done == here.count("done") or (self.retained and count.done > here.count("done"))
        assert count.oldest_ready_s >= 0.0

    def _leases_of_groups(self) -> None:
        lanes = [(view.message.queue, view.message.group) for view in self.views.values() if view.state == "leased" and view.message.group]
        assert len(set(lanes)) == len(lanes), "I11: two leases in one group"

    def _results(self, look: "Look") -> None:
        for id, view in zip(self.views, look.results, strict=False):
            if view is not None and view.id == id and view.result is not None and self.sent[id].place is None:
                assert self.results.get(id) == view.result, "I8: a result without its ack"
                assert (view.state, view.outcome) == ("done", "succeeded"), "I8"

    def _runs(self, look: "Look") -> None:
        states = [view.state for view in look.runs]
        assert look.run_counts.entered == len(look.runs), "I9"
        assert all(getattr(look.run_counts, state) == states.count(state) for state in RunCounts.__struct_fields__), "I9"
        assert self.retained or len(look.runs) <= len(self.runs)
        for view in look.runs:
            live = [1 for each in self.views.values() if each.state in LIVE and each.message.place and each.message.place.run == view.id]
            assert view.open == len(live), f"I9: run {view.id} says {view.open} open, there are {len(live)}"


class Look(NamedTuple):
    """Everything that can be seen of a store. `results`: of all messages, then of all runs. `history`, `gathers`: of the messages that have changed, and of their runs."""

    now: float
    views: list[MessageView]
    counts: list[Counts]
    results: list[ResultView | None]
    history: list[tuple[AttemptView, ...]]
    run_counts: RunCounts
    runs: list[RunView]
    gathers: list[list[GatherView]]


async def _look(engine: Full, before: dict[MessageId, MessageView], entered: list[RunId]) -> Look:
    now, views, run_counts, runs = await _all(engine.now(), _picture(engine), engine.run_counts(LINE), engine.runs(LINE, limit=1000))
    changed = [view for view in views if before.get(view.message.id) != view]
    touched = sorted({view.message.place.run for view in changed if view.message.place is not None} & {view.id for view in runs})
    counts, results, histories, gathers = await _all(
        _all(*(engine.counts(queue) for queue in QUEUES)),
        engine.results([*(view.message.id for view in views), *entered]),
        _all(*(engine.get(view.message.id) for view in changed)),
        _all(*(engine.gathers(RunId(run)) for run in touched)),
    )
    plain = [None if view is None else structs.replace(view, progress=None) for view in results]
    return Look(now, views, counts, plain, [view.attempts for view in histories], run_counts, runs, gathers)


async def _all(*questions: Awaitable[Any]) -> list[Any]:
    """Ask all at once: between the loop and an engine's thread a hop costs more than an answer."""
    return list(await asyncio.gather(*questions))


def _difference(one: Any, other: Any) -> str:
    """Where two answers differ first, down to the field."""
    if type(one) is type(other):
        if isinstance(one, Look):
            return "; ".join(f"{name} {_difference(*pair)}" for name, *pair in zip(Look._fields, one, other, strict=True) if pair[0] != pair[1])
        if isinstance(one, (list, tuple)) and len(one) == len(other):
            return "; ".join(f"[{place}] {_difference(*pair)}" for place, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
        if isinstance(one, list):
            return f"{len(one)} / {len(other)}: {one} / {other}"
        if isinstance(one, Struct) and not isinstance(one, Message):
            names = [name for name in one.__struct_fields__ if getattr(one, name) != getattr(other, name)]
            fields = ", ".join(f"{name} {_difference(getattr(one, name), getattr(other, name))}" for name in names)
            return f"{getattr(one, 'id', type(one).__name__)} {fields}"
    return f"{one!r} / {other!r}"


async def _picture(engine: Full) -> list[MessageView]:
    """All messages, without what the contract leaves open."""
    return [
        structs.replace(
            view,
            attempts=(),
            progress=view.progress if view.state == "leased" else None,
            due_at=view.due_at if view.state in ("delayed", "leased") else 0.0,
            cancel_asked=view.cancel_asked and view.state == "leased",
        )
        for view in await kit.everything(engine)
    ]


def case(kind: type[Harness], *, oracle: type[Harness] | None = None) -> type[TestCase]:
    """A test case for pytest or unittest: `kind` alone against the invariants, or beside an `oracle`."""
    machine: Any = type(f"{kind.__name__}Machine", (EngineMachine,), {"subject_kind": kind, "oracle_kind": oracle})
    found = cast("type[TestCase]", machine.TestCase)
    found.settings = settings(  # type: ignore[attr-defined]  # Hypothesis puts it there
        max_examples=int(os.environ.get("BELTLINE_EXAMPLES", "40")),
        stateful_step_count=STEPS,
        deadline=None,
        print_blob=True,
        phases=[phase for phase in Phase if phase is not Phase.shrink or "BELTLINE_SHRINK" in os.environ],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    return found


__all__ = ["EngineMachine", "case"]
