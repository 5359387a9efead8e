"""Time that a test moves by hand."""

import threading
from collections.abc import Callable
from contextlib import suppress


class ManualClock:
    """Stands still until it is told otherwise. Engines that know such a clock (`subscribe`) look again whenever it moves, so nothing has to sleep."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start
        self._subscribers: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def now(self) -> float:
        """Seconds since 1970 UTC."""
        return self._now

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"A clock advances by 0 or more seconds, not {seconds}; use set_back.")
        self.set(self._now + seconds)

    def set_back(self, seconds: float) -> None:
        """Like an operator, or a time server, that corrects a wrong wall clock."""
        if seconds < 0:
            raise ValueError(f"A clock is set back by 0 or more seconds, not {seconds}; use advance.")
        self.set(self._now - seconds)

    def set(self, instant: float) -> None:
        with self._lock:
            self._now = instant
            subscribers = list(self._subscribers)
        for wake in subscribers:
            wake()

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have `wake` called after every move, in the thread that moves the clock. Returns what ends it."""
        with self._lock:
            self._subscribers.append(wake)

        def unsubscribe() -> None:
            with self._lock, suppress(ValueError):
                self._subscribers.remove(wake)

        return unsubscribe
