"""One queue as this worker serves it: its slots, what is received ahead of them, and how far ahead that may be.

Slots      the worker's budget: never more of the queue's tasks run at once, over all runners. It changes while the worker works (resizing.py): when it falls,
           nothing more is received or dealt until what runs is within it. At 0 slots a queue that listens receives one message, to be woken by it.
Ahead      for slow tasks nothing beyond free slots is received: what another worker could run must not wait here. A task that runs for 30 µs would be
           starved by the round trip to the store, so for fast ones the supervisor holds what the slots do in AHEAD_S. From the mean run time of what
           has ended lately; it starts at the free slots and grows at most fourfold per receive, bounded in number and bytes.
Window     how many of them are dealt to a runner at once: its slots, and for fast tasks what those do in WINDOW_S.
Source     performance.md: 200 received ahead and windows of 10 x slots reach 76,000/s where 5 reach 6,800/s.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from time import monotonic

from beltline.core.message import Delivery
from beltline.core.names import QueueName

AHEAD_S = 0.01
WINDOW_S = 0.002
MAX_AHEAD = 1000
MAX_AHEAD_BYTES = 32 * 1024 * 1024
MAX_WINDOW = 10  # times the slots


class Intake:
    """`ahead` is for the shared runners; `alone` for runners that run one delivery at a time: tasks of kind "process", and suspects.

    `ran`, `ran_s`, `ran_squares_s2`: deliveries that have run and ended since the start, the seconds they ran, and the sum of the squares of those.
    """

    def __init__(self, queue: QueueName, slots: int, *, processes: bool) -> None:
        self.queue = queue
        self.slots = slots
        self.processes = processes
        self.ahead: deque[Delivery] = deque()
        self.alone: deque[Delivery] = deque()
        self.dealt = 0
        self.alone_dealt = 0
        self.dealt_at = monotonic()
        self.received_at = 0.0
        self.room = asyncio.Event()
        self.window = 1
        self.listening = False
        self.ran = 0
        self.ran_s = 0.0
        self.ran_squares_s2 = 0.0
        self._asked_slots = slots
        self._mean_s = 0.0
        self._known = False
        self._bytes = 1024.0
        self._reach = 0  # received ahead of the slots, at most

    @property
    def held(self) -> int:
        return self.dealt + len(self.ahead) + len(self.alone)

    @property
    def exact(self) -> bool:
        """Whether the budget must be counted message by message: runners of one delivery share it with the others."""
        return self.processes or bool(self.alone) or self.alone_dealt > 0

    def want(self, live_slots: int) -> int:
        """How many to receive now, given the slots of the runners that live. With a far reach only when half of it is used up: few large receives."""
        self._asked_slots = self.slots
        if self.slots == 0:
            return 1 if self.listening and not self.held else 0
        live_slots = min(self.slots, live_slots)
        if live_slots == 0:
            return 0
        # Suspects wait for a lone runner, not for a slot: up to as many as there are slots, they hold up nobody.
        patient = 0 if self.processes else min(len(self.alone), self.slots)
        missing = live_slots + self._reach - self.held + patient
        return missing if missing > self._reach // 2 else 0

    def beyond(self, count: int) -> int:
        """How many of `count` just received are more than we may hold: the slots have become fewer while the store was asked."""
        if self.slots >= self._asked_slots:
            return 0
        return min(count, max(0, count + self.held - max(self.slots, int(self.listening)) - self._reach))

    def received(self, count: int, wanted: int) -> None:
        self.received_at = monotonic()
        if not self._known:
            return
        bound = min(self.slots * AHEAD_S / self._mean_s, MAX_AHEAD, MAX_AHEAD_BYTES / self._bytes) if self._mean_s < AHEAD_S else 0
        grown = 4 * (self._reach + self.slots) if count == wanted else max(self._reach, self.slots)
        self._reach = int(min(bound, grown))

    def learn(self, count: int, ran_s: float) -> None:
        """`count` deliveries have ended after `ran_s` seconds of task code together."""
        mean_s = max(ran_s / count, 1e-6)
        self._mean_s = self._mean_s + (1.0 - 0.8**count) * (mean_s - self._mean_s) if self._known else mean_s
        self._known = True
        self.window = max(1, min(MAX_WINDOW, 1 + int(WINDOW_S / self._mean_s))) if self._mean_s < WINDOW_S else 1
        if self._mean_s >= AHEAD_S:
            self._reach = 0

    def count(self, ran: int, ran_s: float, ran_squares_s2: float) -> None:
        self.ran += ran
        self.ran_s += ran_s
        self.ran_squares_s2 += ran_squares_s2

    def weigh(self, count: int, size_bytes: int) -> None:
        self._bytes += 0.2 * (size_bytes / count - self._bytes)

    def stalled(self, now: float, after_s: float) -> bool:
        """Something waits here and nothing has been dealt for a while: the slots are busy with something slow."""
        return bool(self.ahead) and now - self.dealt_at > after_s

    def slow_down(self) -> None:
        """Forget that the tasks were fast: nothing ahead until the next ends have shown it again."""
        self._known = False
        self._reach = 0
        self.window = 1

    def take(self, count: int) -> list[Delivery]:
        ahead = self.ahead
        if count >= len(ahead):
            taken = list(ahead)
            ahead.clear()
            return taken
        return [ahead.popleft() for _ in range(count)]

    def put_back(self, deliveries: Sequence[Delivery]) -> None:
        self.ahead.extendleft(reversed(deliveries))

    def empty(self) -> list[Delivery]:
        """Everything that is held here and dealt to nobody."""
        left = [*self.ahead, *self.alone]
        self.ahead.clear()
        self.alone.clear()
        return left
