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
from beltline.core.errors import HandleMisused, ValueInvalid
from beltline.core.lifecycle import State
from beltline.core.limits import MAX_BODY_BYTES, MAX_LEASE_S
from beltline.core.message import Delivery, Gather, Message, Receipt
from beltline.core.names import ChainName, MessageId, QueueName, RunId, WorkerId
from beltline.core.outcome import Sent, Settled, Settlement
from beltline.core.queues import Counts, QueueSpec
from beltline.core.views import GatherView, MessageFilter, MessageView, Page, ResultView, RunCounts, RunView, WorkerView
from beltline.engines.memory.rows import Row
from beltline.engines.memory.store import Store
from beltline.engines.memory.views import gather_view, message_result, message_view, run_result, run_view
from beltline.engines.memory.waiters import Waiter

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
        self._workers: dict[WorkerId, tuple[float, WorkerView]] = {}
        self._lock = threading.Lock()
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
            yield self._time.now()
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
                instants = [self._store.queues[name].next_instant() for name in queues if not self._store.queues[name].paused]
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
            return self._store.purge(queue, now)

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
            rows = list(islice((row for row in self._store.matching(where, now) if row.seq > seen), limit + 1))
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
            resumed.paused, resumed.stirred = False, True

    async def cancel(self, ids: Sequence[MessageId], *, reason: str = "") -> list[State | None]:
        with self._step() as now:
            return self._store.cancel(ids, reason, now)

    async def cancel_asked(self, receipts: Sequence[Receipt]) -> list[Receipt]:
        with self._step():
            return [receipt for receipt in receipts if (row := self._store.held(receipt)) is not None and row.cancel_asked is not None]

    async def hurry(self, ids: Sequence[MessageId]) -> int:
        with self._step() as now:
            return self._store.hurry(ids, now)

    async def redrive(self, where: MessageFilter, *, limit: int, queue: QueueName | None = None) -> list[MessageId]:
        with self._step() as now:
            return self._store.redrive(where, limit, queue, now)

    async def edit(self, id: MessageId, *, body: bytes) -> None:
        with self._step() as now:
            self._store.edit(id, body, now)

    async def delete(self, where: MessageFilter, *, limit: int) -> int:
        with self._step() as now:
            return self._store.delete(where, limit, now)

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
            return run_view(self._store.cancel_run(id, reason, now))

    # ---- Fleet

    async def beat(self, worker: WorkerView) -> None:
        with self._step() as now:
            self._workers[WorkerId(worker.id)] = (now, worker)

    async def forget(self, worker: WorkerId) -> None:
        with self._step():
            self._workers.pop(worker, None)

    async def workers(self) -> list[WorkerView]:
        with self._step() as now:
            return [structs.replace(view, age_s=now - seen_at) for _, (seen_at, view) in sorted(self._workers.items())]

    # ---- Upkeep

    async def sweep(self) -> int:
        with self._step() as now:
            return self._store.sweep(now)

    async def retain(self, *, history_s: float, limit: int = 5000) -> int:
        limits.seconds("history_s", history_s)
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        with self._step() as now:
            return self._store.retain(history_s, limit, now)
