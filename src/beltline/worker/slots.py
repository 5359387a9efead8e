"""Slots: the units of a runner's concurrency. A lane is a queue's slots in this runner, with what has been dealt to them.

A slot is one long-lived coroutine and, once it has met a task from a plain `def`, one long-lived thread beside it. Exactly one of the two holds the
slot's baton: the coroutine takes a delivery, runs it if the task is async, and hands the baton to the thread if it is not. The thread then goes
through the lane by itself, without a hop per message, until the lane is empty or the next delivery is for the coroutine.

Halt    coroutine: its asyncio task is cancelled. Thread: `current().stop_asked` becomes true and Halted is raised in it at its next bytecode; a call
        that never returns to Python does not notice, and the supervisor kills the runner. While `no_halts` is entered the exception waits for its end.
Share   how many slots of a lane may run changes while it works. A slot that is one too many rests as soon as it has ended what it runs: nothing is stopped for it.
Atomic  a delivery that has asked for a transaction is concluded here before it is answered: see atomic.py.
Context every delivery runs in its own copy of the context: what a task leaves in a context variable, the next one does not see.
"""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from time import monotonic
from typing import Protocol

from beltline.context import Current
from beltline.core.asks import Ask
from beltline.core.errors import InvalidArguments, MessageInvalid
from beltline.core.message import Delivery
from beltline.core.outcome import Ack, Outcome, Release, Settled, Settlement
from beltline.handles import Host
from beltline.worker import calling
from beltline.worker.atomic import Atomic
from beltline.worker.calling import InContext, begin, call, raise_in_thread
from beltline.worker.conduct import Conduct, parked
from beltline.worker.frames import DRAINED
from beltline.worker.marks import Marks

Item = tuple[int, Delivery]  # serial, delivery
FAST_S = 0.001  # before a task that is usually slower than this starts, finished outcomes are sent off


class Halted(BaseException):  # not an Exception: `except Exception` in a task must not stop the stop
    """Raised inside a task's thread to stop it."""


class House(Protocol):
    """What slots need of their runner."""

    worker: str
    marks: Marks
    loop: asyncio.AbstractEventLoop

    conducts: dict[str, Conduct]

    @property
    def app(self) -> Host: ...

    def conduct(self, delivery: Delivery) -> Conduct | None: ...

    def note(self, delivery: Delivery, value: bytes) -> None: ...

    def flush(self) -> None: ...


class Lane:
    """`ended` is a deque, because threads append to it while the loop takes from it. `surplus`: how many slots are to rest as soon as they are free."""

    def __init__(self, house: House, index: int) -> None:
        self.house = house
        self.index = index
        self.pending: deque[Item] = deque()
        self.ended: deque[tuple[int, Settlement, float]] = deque()
        self.written: deque[tuple[int, Settlement, Settled, float]] = deque()
        self.idle: deque[asyncio.Future[None]] = deque()
        self.waking = False
        self.slots: list[Slot] = []
        self.surplus = 0
        self._resting: list[Slot] = []
        self._flush_asked = False

    # ---- how many

    def share(self, slots: int, first_mark: int) -> list["Slot"]:
        """From now on `slots` of them take deliveries. The new ones, whose coroutines are the caller's to start; their marks begin at `first_mark`."""
        missing = slots - (len(self.slots) - len(self._resting) - self.surplus)
        if missing <= 0:
            self.surplus -= missing
            for _ in range(min(-missing, len(self.idle))):
                self.wake_one()
            return []
        kept = min(missing, self.surplus)
        self.surplus -= kept
        woken = min(missing - kept, len(self._resting))
        for _ in range(woken):
            self._resting.pop().come_back()
        fresh = [Slot(self, first_mark + number) for number in range(missing - kept - woken)]
        self.slots += fresh
        return fresh

    def lay_down(self, slot: "Slot") -> None:
        """`slot` is free and one too many."""
        self.surplus -= 1
        self._resting.append(slot)
        if self.pending:  # it may have been woken for one of these
            self.wake_one()

    # ---- what they run

    def deal(self, first: int, deliveries: list[Delivery]) -> None:
        self.pending.extend(enumerate(deliveries, first))
        self.wake_one()

    def wake_one(self) -> None:
        """One is enough: who starts a delivery and leaves others behind wakes the next."""
        while self.idle:
            future = self.idle.popleft()
            if not future.done():
                self.waking = True
                future.set_result(None)
                return

    def take_back(self) -> list[int]:
        """The serials that had not started."""
        serials = []
        while True:
            try:
                serials.append(self.pending.popleft()[0])
            except IndexError:
                return serials

    def end(self, serial: int, delivery: Delivery, outcome: Outcome, ran_s: float) -> None:
        """From the loop. The answer goes out with others, at the end of this turn of the loop."""
        self.ended.append((serial, Settlement(delivery.receipt, outcome), ran_s))
        if not self._flush_asked:
            self._flush_asked = True
            self.house.loop.call_soon(self._flush)

    def end_in_thread(self, serial: int, delivery: Delivery, outcome: Outcome, ran_s: float) -> None:
        self.ended.append((serial, Settlement(delivery.receipt, outcome), ran_s))
        if not self._flush_asked:
            self._flush_asked = True
            self.house.loop.call_soon_threadsafe(self._flush)

    def end_written(self, serial: int, delivery: Delivery, outcome: Outcome, answer: Settled, ran_s: float) -> None:
        """The store has answered already. From any thread."""
        told = Ack(ran_s=outcome.ran_s, ended=outcome.ended) if isinstance(outcome, Ack) else outcome
        self.written.append((serial, Settlement(delivery.receipt, told), answer, ran_s))
        self.house.loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        self._flush_asked = False  # before the taking: what is appended from now on asks again
        self.house.flush()

    def drop(self, serial: int, why: str) -> bool:
        """Answer a delivery that has not started without running it."""
        for item in list(self.pending):
            if item[0] == serial:
                try:
                    self.pending.remove(item)
                except ValueError:  # a thread has just taken it
                    return False
                self.end(serial, item[1], Release(why=why), 0.0)
                return True
        return False


class Slot:
    """`serial` is what it runs, 0 = nothing."""

    def __init__(self, lane: Lane, index: int) -> None:
        self.lane = lane
        self.index = index
        self.serial = 0
        self.why = ""
        self.atomic = Atomic(self)
        self._no_halts = False
        self._closing = False
        self._resting = False
        self._bed: asyncio.Future[None] | None = None
        self._current: Current | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread: SlotThread | None = None
        self._lock = threading.Lock()  # between a halt and the end of what it would hit
        self._house = lane.house
        self._serials = lane.house.marks.serials
        self._starts = lane.house.marks.starts

    # ---- the coroutine

    async def run(self) -> None:
        lane, house = self.lane, self._house
        self._task = asyncio.current_task()
        item: Item | None = None
        while not self._closing:
            if item is None:
                if lane.surplus and not self._resting:
                    self._resting = True
                    lane.lay_down(self)
                if self._resting:
                    await self._rest()
                    continue
                try:
                    item = lane.pending.popleft()
                except IndexError:
                    await self._rest()
                    continue
            if lane.idle and lane.pending and not lane.waking:
                lane.wake_one()
            message = item[1].message
            conduct = house.conducts.get(message.task) if message.place is None else house.conduct(item[1])
            if conduct is None:
                lane.end(*item, parked(), 0.0)
                item = None
            elif conduct.is_async:
                if lane.ended and conduct.ran_s > FAST_S:
                    house.flush()  # this one may hold the loop: nobody else's answer shall wait for it
                await self._run_async(*item, conduct)
                item = None
            else:
                item = await self._lend(item)

    async def _rest(self) -> None:
        future = self._bed = self.lane.house.loop.create_future()
        if not self._resting:
            self.lane.idle.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if self._closing:
                raise
            self._forgive()  # a halt that came when its delivery had just ended
        finally:
            self.lane.waking = False

    def come_back(self) -> None:
        """It is no longer one too many."""
        self._resting = False
        if self._bed is not None and not self._bed.done():
            self._bed.set_result(None)

    async def _lend(self, item: Item) -> Item | None:
        if self._thread is None:
            self._thread = SlotThread(self)
            self._thread.start()
        return await self._thread.lend(item)

    async def _run_async(self, serial: int, delivery: Delivery, conduct: Conduct) -> None:
        started = self._start(serial)
        try:
            args, kwargs = conduct.read(delivery.message.body)
        except (InvalidArguments, MessageInvalid) as error:
            outcome = conduct.unreadable(delivery, error)
        else:
            if conduct.injected:
                kwargs.update(conduct.injected)
            current = self._current = Current(
                delivery, worker=self._house.worker, report_progress=partial(self._house.note, delivery), station=self.atomic
            )
            context = copy_context()
            try:
                try:
                    work, waits_for = context.run(begin, current, conduct.fn, args, kwargs)
                except StopIteration as end:  # it has returned without waiting for anything
                    value = end.value
                else:
                    value = await InContext(work, context, waits_for)
            except BaseException as error:  # noqa: BLE001  # whatever a task raises ends its delivery, never the slot
                outcome = self._failed(delivery, conduct, error, started)
            else:
                outcome = conduct.returned(delivery, value, monotonic() - started)
        if calling.forked:
            os._exit(0)
        self.serial = 0
        answer = None
        if self.atomic.opened is not None:
            if self.why or self._task.cancelling():  # type: ignore[union-attr]  # set by run
                await self._absorb()
            outcome, answer = await self.atomic.conclude(
                Settlement(delivery.receipt, outcome), partial(self._failed_in_store, delivery, conduct, started)
            )
        self._current = None
        self._starts[self.index] = 0.0
        if answer is None:
            self.lane.end(serial, delivery, outcome, conduct.took(monotonic() - started))
        else:
            self.lane.end_written(serial, delivery, outcome, answer, conduct.took(monotonic() - started))
        if self.why or self._task.cancelling():  # type: ignore[union-attr]  # set by run
            await self._absorb()

    async def _absorb(self) -> None:
        """Let a cancellation that came too late for the delivery pass by before the next one starts."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if self._closing:
                raise
        self._forgive()

    def _forgive(self) -> None:
        self.why = ""
        assert self._task is not None
        while self._task.cancelling():
            self._task.uncancel()

    # ---- the thread

    def run_in_thread(self, serial: int, delivery: Delivery, conduct: Conduct) -> None:
        started = self._start(serial)
        try:
            outcome = self._call(delivery, conduct, started)
            if calling.forked:
                os._exit(0)
            with self._lock:
                self.serial = 0
                if self.why:
                    self.why = ""
                    raise_in_thread(None)  # it has ended by itself: take the exception back, should it still be on its way
        except Halted:
            outcome = conduct.halted(delivery, self.why or DRAINED, monotonic() - started)
            self.serial = 0
            self.why = ""
        answer = None
        if self.atomic.opened is not None:
            settlement = Settlement(delivery.receipt, outcome)
            outcome, answer = self.atomic.conclude_in_thread(settlement, partial(self._failed_in_store, delivery, conduct, started))
        self._current = None
        self._starts[self.index] = 0.0
        if answer is None:
            self.lane.end_in_thread(serial, delivery, outcome, conduct.took(monotonic() - started))
        else:
            self.lane.end_written(serial, delivery, outcome, answer, conduct.took(monotonic() - started))

    def _call(self, delivery: Delivery, conduct: Conduct, started: float) -> Outcome:
        try:
            args, kwargs = conduct.read(delivery.message.body)
        except (InvalidArguments, MessageInvalid) as error:
            return conduct.unreadable(delivery, error)
        if conduct.injected:
            kwargs.update(conduct.injected)
        current = self._current = Current(
            delivery, worker=self._house.worker, report_progress=partial(self._house.note, delivery), station=self.atomic
        )
        try:
            value = copy_context().run(call, current, conduct.fn, args, kwargs)
        except Halted:
            raise
        except BaseException as error:  # noqa: BLE001  # whatever a task raises ends its delivery, never the slot
            return self._failed(delivery, conduct, error, started)
        return conduct.returned(delivery, value, monotonic() - started)

    # ---- both

    def _start(self, serial: int) -> float:
        started = monotonic()
        self.serial = serial
        self._serials[self.index] = serial
        self._starts[self.index] = started
        return started

    def _failed(self, delivery: Delivery, conduct: Conduct, error: BaseException, started: float) -> Outcome:
        ran_s = monotonic() - started
        if self.why and not isinstance(error, Ask):
            return conduct.halted(delivery, self.why, ran_s)
        return conduct.raised(delivery, error, ran_s)

    @staticmethod
    def _failed_in_store(delivery: Delivery, conduct: Conduct, started: float, error: BaseException) -> Outcome:
        """The task has returned, but its transaction did not hold."""
        return conduct.raised(delivery, error, monotonic() - started)

    @property
    def app(self) -> Host:
        return self._house.app

    @property
    def in_thread(self) -> bool:
        """Whether the thread has the baton."""
        return self._thread is not None and self._thread.busy

    def runs(self, current: Current) -> bool:
        return self._current is current

    @contextmanager
    def no_halts(self) -> Generator[None]:
        """In the thread: a halt that comes meanwhile is raised at the end."""
        with self._lock:
            self._no_halts = True
            if self.why:  # it is on its way already: here it is
                self._no_halts = False
                raise_in_thread(None)
                raise Halted
        try:
            yield
        finally:
            with self._lock:
                self._no_halts = False
                halted = bool(self.why)
            if halted:
                raise Halted

    def halt(self, serial: int, why: str) -> bool:
        """From the loop. False if it no longer runs this."""
        with self._lock:
            if self.serial != serial:
                return False
            self.why = why
            if self._current is not None:
                self._current.ask_stop()
            if self._thread is not None and self._thread.busy:
                assert self._thread.ident is not None
                if self._no_halts:
                    return True
                raise_in_thread(Halted, self._thread.ident)
            elif self._task is not None:
                self._task.cancel()
        return True

    def close(self) -> None:
        self._closing = True
        if self._task is not None:
            self._task.cancel()
        if self._thread is not None:
            self._thread.inbox.put(None)


class SlotThread(threading.Thread):
    """A daemon: one that never returns from a task must not hold up the end of its runner."""

    def __init__(self, slot: Slot) -> None:
        super().__init__(name=f"beltline-slot-{slot.index}", daemon=True)
        self.slot = slot
        self.inbox: SimpleQueue[Item | None] = SimpleQueue()
        self.busy = False
        self._baton: asyncio.Future[Item | None] | None = None

    def lend(self, item: Item) -> "asyncio.Future[Item | None]":
        """Run this and what follows it; the future gives back the slot, with an item for the coroutine if one was met."""
        self._baton = self.slot.lane.house.loop.create_future()
        self.busy = True
        self.inbox.put(item)
        return self._baton

    def run(self) -> None:
        slot, lane = self.slot, self.slot.lane
        house, pending = lane.house, lane.pending
        while (given := self.inbox.get()) is not None:
            item: Item | None = given
            while item is not None:
                conduct = house.conduct(item[1])
                if conduct is None or conduct.is_async:
                    break
                slot.run_in_thread(*item, conduct)
                if lane.surplus:
                    item = None
                    break
                try:
                    item = pending.popleft()
                except IndexError:
                    item = None
            try:
                house.loop.call_soon_threadsafe(self._give_back, item)
            except RuntimeError:  # the loop has closed
                return

    def _give_back(self, item: Item | None) -> None:
        self.busy = False
        if self._baton is not None and not self._baton.done():
            self._baton.set_result(item)
