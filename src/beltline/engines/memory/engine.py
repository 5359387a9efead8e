"""The engine's face: one lock around the store, the clock with its ratchet, waiting, and who may use it when."""

import os
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import islice
from math import inf
from typing import Protocol, TypeVar, runtime_checkable

from msgspec import structs

from beltline.core import limits
from beltline.core.capabilities import Capabilities, Durability
from beltline.core.clock import Clock
from beltline.core.errors import HandleMisused, NotFound, ValueInvalid
from beltline.core.flow import Limit
from beltline.core.lifecycle import State
from beltline.core.limits import MAX_BODY_BYTES, MAX_LEASE_S
from beltline.core.message import Delivery, Gather, Message, Receipt
from beltline.core.names import ChainName, MessageId, QueueName, RunId, WorkerId
from beltline.core.outcome import Sent, Settled, Settlement
from beltline.core.queues import Counts, QueueSpec
from beltline.core.scaling import Decision, Size, check_range
from beltline.core.schedule import Schedule, Step, Stepped
from beltline.core.views import (
    BucketView,
    DueSchedules,
    GatherView,
    LimitView,
    MessageFilter,
    MessageView,
    Page,
    ResultView,
    RunCounts,
    RunView,
    ScheduleView,
    Standing,
    WorkerView,
)
from beltline.engines.memory.fleets import FleetBook
from beltline.engines.memory.operators import Operators
from beltline.engines.memory.rows import Row
from beltline.engines.memory.schedules import ScheduleBook
from beltline.engines.memory.standing import standing
from beltline.engines.memory.store import Store
from beltline.engines.memory.views import gather_view, message_result, message_view, run_result, run_view
from beltline.engines.memory.waiters import Waiter
from beltline.engines.schedules import view as schedule_view

R = TypeVar("R")


class WallClock:
    def now(self) -> float:
        return time.time()


@runtime_checkable
class MovableClock(Protocol):
    """A clock that is moved by hand and says so (the test kit's): waiting calls look again."""

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]: ...


class Ratchet:
    """The engine's time. It follows the clock, never runs backwards, and after the clock was set back it goes on from where it was."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._seen = self._now = clock.now()

    def now(self) -> float:
        seen = self.clock.now()
        self._now = max(seen, self._now + max(0.0, seen - self._seen))
        self._seen = seen
        return self._now


class MemoryEngine:
    """All queues in this process's memory: the executable specification, for tests and for work that may die with the process.

    Usable from any thread and any event loop of the process. What is stored lives as long as the object, over close and open.
    """

    name = "memory"

    def __init__(self, *, clock: Clock | None = None, max_body: int = MAX_BODY_BYTES) -> None:
        self.capabilities = Capabilities(
            send_batch=inf, send_atomic=inf, receive_batch=inf, settle_atomic=inf, max_body=max_body, durability=Durability.MEMORY
        )
        self._clock = clock or WallClock()
        self._time = Ratchet(self._clock)
        self._store = Store(max_body=max_body)
        self._operators = Operators(self._store)
        self._schedules = ScheduleBook(lambda messages, now: self._store.send(messages, (), now))
        self._lock = threading.Lock()
        self._fleets = FleetBook()
        self._waiters: set[Waiter] = set()
        self._open = False
        self._opened = 0
        self._pid = os.getpid()
        self._unsubscribe: Callable[[], None] | None = None

    async def open(self) -> None:
        self._check_process()
        with self._lock:
            if self._open:
                return
            self._open = True
            self._opened += 1
            if isinstance(self._clock, MovableClock):
                self._unsubscribe = self._clock.subscribe(self._wake_all)

    async def close(self) -> None:
        self._check_process()
        with self._lock:
            self._open = False
            unsubscribe, self._unsubscribe = self._unsubscribe, None
        if unsubscribe is not None:
            unsubscribe()
        self._wake_all()

    # ---- one step at a time

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise HandleMisused(
                "A memory engine was used in a forked process.", why="Its messages live in the parent only.", help="Make an engine there."
            )

    @contextmanager
    def _step(self) -> Generator[float, None, None]:
        """Hold the store for one verb; the value is now. Afterwards those are woken who wait for what has happened."""
        self._check_process()
        with self._lock:
            if not self._open:
                raise HandleMisused("The memory engine is not open.", help="Call open() first, and nothing after close().")
            now = self._time.now()
            yield now
            self._store.refresh(now)
            self._wake()

    def _wake(self) -> None:
        queues, ended = self._store.queues, self._store.runs.ended
        eased = any(queue.eased for queue in queues.values())
        stirred = {queue.spec.name for queue in queues.values() if queue.stirred or (eased and queue.stalled)}
        for waiter in self._waiters:
            sooner = any(name in queues and queues[name].soonest < waiter.wake_at for name in waiter.queues)
            if sooner or not waiter.queues.isdisjoint(stirred) or not waiter.ids.isdisjoint(ended):
                waiter.wake()
        for queue in queues.values():
            queue.stirred, queue.eased, queue.soonest = False, False, inf
        ended.clear()

    def _wake_all(self) -> None:
        with self._lock:
            for waiter in self._waiters:
                waiter.wake()

    async def _poll(
        self, look: Callable[[float], tuple[R, bool]], wait_s: float, *, queues: frozenset[QueueName] = frozenset(), ids: frozenset[str] = frozenset()
    ) -> R:
        """Look until there is enough, at most `wait_s` on the engine's clock or on the real one, whichever is over first."""
        limits.seconds("wait_s", wait_s, most=MAX_LEASE_S)
        deadline, until, opened = time.monotonic() + wait_s, inf, self._opened
        while True:
            with self._step() as now:
                until = min(until, now + wait_s)
                result, enough = look(now)
                patience_s = deadline - time.monotonic()
                if enough or now >= until or patience_s <= 0:
                    return result
                instants = [self._store.queues[name].next_instant(now) for name in queues if not self._store.queues[name].paused]
                waiter = Waiter(queues=queues, ids=ids, wake_at=min([until, *instants]))
                self._waiters.add(waiter)
            try:
                await waiter.wait(min(patience_s, waiter.wake_at - now))
            finally:
                with self._lock:
                    self._waiters.discard(waiter)
            if not self._open or self._opened != opened:
                return result

    # ---- Engine

    async def now(self) -> float:
        with self._step() as now:
            return now

    async def declare(self, specs: Sequence[QueueSpec]) -> None:
        with self._step():
            self._store.declare(specs)

    async def send(self, messages: Sequence[Message], *, gathers: Sequence[Gather] = ()) -> list[Sent]:
        with self._step() as now:
            return self._store.send(messages, gathers, now)

    async def receive(
        self, queues: Sequence[QueueName], *, limit: int, lease_s: float, wait_s: float = 0.0, worker: WorkerId = WorkerId("")
    ) -> list[Delivery]:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        limits.seconds("lease_s", lease_s, most=MAX_LEASE_S)

        def look(now: float) -> tuple[list[Delivery], bool]:
            found = self._store.receive(queues, limit, lease_s, worker, now)
            return found, bool(found)

        return await self._poll(look, wait_s, queues=frozenset(queues))

    async def renew(self, receipts: Sequence[Receipt], *, lease_s: float) -> list[Settled]:
        limits.seconds("lease_s", lease_s, most=MAX_LEASE_S)
        with self._step() as now:
            return self._store.renew(receipts, lease_s, now)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        with self._step() as now:
            return self._store.settle(settlements, now)

    async def counts(self, queue: QueueName) -> Counts:
        with self._step() as now:
            return self._store.queue(queue).counts(now)

    async def purge(self, queue: QueueName) -> int:
        with self._step() as now:
            return self._operators.purge(queue, now)

    # ---- Browse

    async def queues(self) -> list[QueueSpec]:
        with self._step():
            return [self._store.queues[name].spec for name in sorted(self._store.queues)]

    async def get(self, id: MessageId) -> MessageView:
        with self._step() as now:
            return self._view(self._store.row(id), now)

    def _view(self, row: Row, now: float) -> MessageView:
        return message_view(row, self._store.queues[row.message.queue], now)

    async def browse(self, where: MessageFilter, *, limit: int = 100, cursor: str = "") -> Page:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        if cursor and not cursor.isdecimal():
            raise ValueInvalid(name="cursor", value=cursor, allowed="what the page before gave")
        seen = int(cursor or 0)
        with self._step() as now:
            rows = list(islice((row for row in self._operators.matching(where, now) if row.seq > seen), limit + 1))
            more = str(rows[limit - 1].seq) if len(rows) > limit else ""
            return Page(messages=tuple(self._view(row, now) for row in rows[:limit]), cursor=more)

    # ---- Results

    async def results(self, ids: Sequence[str]) -> list[ResultView | None]:
        with self._step() as now:
            return [self._result(id, now) for id in ids]

    def _result(self, id: str, now: float) -> ResultView | None:
        run = self._store.runs.runs.get(RunId(id))
        if run is not None:
            return run_result(run, now)
        row = self._store.rows.get(MessageId(id))
        return None if row is None else message_result(row, now)

    async def await_results(self, ids: Sequence[str], *, wait_s: float) -> list[ResultView | None]:
        def look(now: float) -> tuple[list[ResultView | None], bool]:
            views = [self._result(id, now) for id in ids]
            return views, any(view is None or view.state in ("done", "dead") for view in views)

        return await self._poll(look, wait_s, ids=frozenset(ids))

    async def progress(self, notes: Sequence[tuple[Receipt, bytes]]) -> list[Settled]:
        with self._step():
            return [self._store.progress(receipt, value) for receipt, value in notes]

    # ---- Control

    async def pause(self, queue: QueueName) -> None:
        with self._step():
            self._store.queue(queue).paused = True

    async def resume(self, queue: QueueName) -> None:
        with self._step():
            resumed = self._store.queue(queue)
            resumed.paused, resumed.stirred, resumed.snoozed_until = False, True, 0.0
            resumed.switch.close()

    async def cancel(self, ids: Sequence[MessageId], *, reason: str = "") -> list[State | None]:
        with self._step() as now:
            return self._operators.cancel(ids, reason, now)

    async def cancel_asked(self, receipts: Sequence[Receipt]) -> list[Receipt]:
        with self._step():
            return [receipt for receipt in receipts if (row := self._store.held(receipt)) is not None and row.cancel_asked is not None]

    async def hurry(self, ids: Sequence[MessageId]) -> int:
        with self._step() as now:
            return self._operators.hurry(ids, now)

    async def redrive(self, where: MessageFilter, *, limit: int, queue: QueueName | None = None) -> list[MessageId]:
        with self._step() as now:
            return self._operators.redrive(where, limit, queue, now)

    async def edit(self, id: MessageId, *, body: bytes) -> None:
        with self._step() as now:
            self._operators.edit(id, body, now)

    async def delete(self, where: MessageFilter, *, limit: int) -> int:
        with self._step() as now:
            return self._operators.delete(where, limit, now)

    # ---- Runs

    async def run(self, id: RunId) -> RunView:
        with self._step():
            return run_view(self._store.run(id))

    async def runs(self, chain: str, *, state: str = "", limit: int = 100, cursor: str = "") -> list[RunView]:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        with self._step():
            ids = self._store.runs.chains.get(ChainName(chain), [])
            later = (self._store.runs.runs[id] for id in ids[bisect_right(ids, cursor) :])
            return [run_view(run) for run in islice((run for run in later if state in ("", run.state)), limit)]

    async def run_counts(self, chain: str) -> RunCounts:
        with self._step():
            return self._store.runs.counts(chain)

    async def gathers(self, run: RunId) -> list[GatherView]:
        with self._step():
            return [gather_view(row) for row in self._store.run(run).gathers]

    async def cancel_run(self, id: RunId, *, reason: str = "") -> RunView:
        with self._step() as now:
            return run_view(self._operators.cancel_run(id, reason, now))

    # ---- Fleet

    async def beat(self, worker: WorkerView) -> None:
        with self._step() as now:
            self._store.workers[WorkerId(worker.id)] = (now, worker)

    async def forget(self, worker: WorkerId) -> None:
        with self._step():
            self._store.workers.pop(worker, None)

    async def workers(self) -> list[WorkerView]:
        with self._step() as now:
            return [structs.replace(view, age_s=now - seen_at) for _, (seen_at, view) in sorted(self._store.workers.items())]

    # ---- Schedules

    async def put_schedules(self, specs: Sequence[Schedule], *, origin: str, owner: str = "", replace: bool = True) -> list[bool]:
        with self._step() as now:
            return self._schedules.put(specs, origin, owner, replace, now)

    async def schedules(self, *, limit: int = 1000, after: str = "") -> list[ScheduleView]:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        with self._step():
            return [schedule_view(self._schedules.rows[name]) for name in sorted(name for name in self._schedules.rows if name > after)[:limit]]

    async def schedule(self, name: str) -> ScheduleView:
        with self._step():
            return schedule_view(self._schedules.row(name))

    async def pause_schedule(self, name: str, paused: bool) -> ScheduleView:
        with self._step() as now:
            return schedule_view(self._schedules.pause(name, paused, now))

    async def remove_schedule(self, name: str) -> None:
        with self._step():
            self._schedules.remove(name)

    async def due_schedules(self, *, limit: int = 100) -> DueSchedules:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        with self._step() as now:
            return self._schedules.due(limit, now)

    async def step_schedules(self, steps: Sequence[Step]) -> list[Stepped]:
        with self._step() as now:
            return [self._schedules.step(step, now) for step in steps]

    # ---- Sizes

    async def sizes(self) -> list[Size]:
        with self._step():
            return self._fleets.sizes()

    async def set_size(self, queue: QueueName, *, turn: int, slots: int, state: bytes, log: Decision | None = None) -> bool:
        with self._step() as now:
            self._store.queue(queue)
            return self._fleets.put(queue, turn, slots, state, log, now)

    async def set_range(self, queue: QueueName, least: int, most: int) -> None:
        check_range(least, most)
        with self._step():
            self._store.queue(queue)
            self._fleets.order(queue, least, most)

    async def clear_range(self, queue: QueueName) -> None:
        with self._step():
            self._store.queue(queue)
            self._fleets.release(queue)

    async def decisions(self, queue: QueueName | None = None, *, limit: int = 100) -> list[Decision]:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        with self._step():
            if queue is not None:
                self._store.queue(queue)
            return self._fleets.log(queue or "", limit)

    # ---- Limits, Explain

    async def snooze(self, queue: QueueName, *, seconds: float) -> float:
        limits.seconds("seconds", seconds, most=limits.MAX_DELAY_S)
        with self._step() as now:
            snoozed = self._store.queue(queue)
            snoozed.snoozed_until = max(snoozed.snoozed_until, now + seconds)
            return snoozed.snoozed_until

    async def declare_limits(self, given: Sequence[Limit]) -> None:
        with self._step():
            self._changed(self._store.limits.declare(given))

    async def set_limit(self, limit: Limit) -> None:
        with self._step():
            self._store.limits.give(limit)
            self._changed({limit.name})

    async def reset_limit(self, name: str) -> None:
        with self._step():
            self._store.limits.reset(name)
            self._changed({name})

    def _changed(self, names: set[str]) -> None:
        for queue in self._store.queues.values():
            for name in names:
                queue.shaper.changed(name)
            queue.stirred = queue.stirred or bool(names)

    async def limits(self) -> list[LimitView]:
        with self._step() as now:
            book = self._store.limits
            self._store.due(now)
            return [book.view(name, self._waiting(lambda bucket, name=name: bucket[0] == name, now), now) for name in sorted(book.rows)]  # type: ignore[misc]

    async def buckets(self, name: str, *, limit: int = 100) -> list[BucketView]:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        with self._step() as now:
            book = self._store.limits
            if name not in book.rows:
                raise NotFound(kind="limit", name=name)
            self._store.due(now)
            closed = {lane.closed_by for queue in self._store.queues.values() for lane in queue.shaper.lanes.values() if lane.closed_by is not None}
            keys = sorted({"", *(key for each, key in {*book.buckets, *closed} if each == name)})
            views = [book.bucket_view((name, key), self._waiting(lambda bucket, key=key: bucket == (name, key), now), now) for key in keys]  # type: ignore[misc]
            return [view for view in views if view.running or view.waiting or 0 < view.opens_at < inf][:limit]

    def _waiting(self, closed: Callable[[tuple[str, str]], bool], now: float) -> int:
        return sum(queue.behind(closed, now) for queue in self._store.queues.values())

    async def standing(self, id: MessageId) -> Standing:
        with self._step() as now:
            return standing(self._store, self._store.row(id), now)

    # ---- Upkeep

    async def sweep(self) -> int:
        with self._step() as now:
            return self._store.sweep(now)

    async def retain(self, *, history_s: float, limit: int = 5000) -> int:
        limits.seconds("history_s", history_s)
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        with self._step() as now:
            return self._store.retain(history_s, limit, now)
