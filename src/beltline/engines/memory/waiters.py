"""Who waits for something to happen, on whichever event loop and thread.

A waiter is woken early rather than late: it looks again under the engine's lock, so a wakeup for nothing costs a look, never a message.
"""

import asyncio
from contextlib import suppress
from math import inf

from beltline.core.names import QueueName


class Waiter:
    """One waiting call. `wake_at`: the engine's instant at which it wakes by itself. Made in the loop that waits, woken from anywhere."""

    __slots__ = ("_event", "_loop", "ids", "queues", "wake_at")

    def __init__(self, *, queues: frozenset[QueueName] = frozenset(), ids: frozenset[str] = frozenset(), wake_at: float = inf) -> None:
        self.queues, self.ids, self.wake_at = queues, ids, wake_at
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def wake(self) -> None:
        with suppress(RuntimeError):  # its loop was closed: nobody waits there any more
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, seconds: float) -> None:
        """Until woken, at most `seconds` of real time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._event.wait()
