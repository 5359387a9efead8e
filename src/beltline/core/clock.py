"""The one door through which time enters: engines and workers are handed a Clock, tests hand them one that stands still."""

from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since 1970 UTC. May step (it is a wall clock): engines add the ratchet."""
        ...
