"""Instants as whole milliseconds, and the engine's time: a clock that is never seen running backwards."""

import math
import threading
import time

from beltline.core.clock import Clock


def ceil_ms(seconds: float) -> int:
    """A delay is rounded up, so that nothing is early; a microsecond of float noise is not a millisecond more."""
    return math.ceil(seconds * 1000 - 0.001)


class WallClock:
    def now(self) -> float:
        return time.time()


class Ratchet:
    """The clock plus an offset that only grows: when the clock is set back, time goes on from where it was instead of standing still for an hour.

    `lift` takes over a later time that another process has written. Safe from any thread.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._offset_s = 0.0
        self._seen_s = clock.now()

    def now_ms(self) -> int:
        with self._lock:
            seen = self.clock.now()
            if seen < self._seen_s:
                self._offset_s += self._seen_s - seen
            self._seen_s = seen
            return round((seen + self._offset_s) * 1000)

    def lift(self, ms: int) -> None:
        with self._lock:
            behind = ms / 1000 - (self._seen_s + self._offset_s)
            if behind > 0:
                self._offset_s += behind
