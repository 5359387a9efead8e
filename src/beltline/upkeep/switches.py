"""Tell when a queue with a kill switch stops by itself, lets a few through, and is well again. It only looks: tripping is part of the settle that fails."""

import logging
from collections.abc import Callable, Sequence

from beltline.core.names import QueueName
from beltline.core.queues import Counts
from beltline.engines.protocol import Engine
from beltline.upkeep.loops import Loop

WATCH_S = 5.0

log = logging.getLogger("beltline.worker")


class SwitchWatch(Loop):
    """`queues`: those with a kill switch that are served here; asked each time, because new code may bring new ones."""

    what = "the look at kill switches"

    def __init__(self, engine: Callable[[], Engine], queues: Callable[[], Sequence[QueueName]], *, every_s: float = WATCH_S) -> None:
        super().__init__(engine, every_s=every_s)
        self._queues = queues
        self._tripped: dict[QueueName, float] = {}

    async def once(self) -> int:
        """How many of the queues stand still, or try."""
        engine = self._engine()
        for queue in self._queues():
            self._tell(queue, await engine.counts(queue), await engine.now())
        return len(self._tripped)

    def _tell(self, queue: QueueName, counts: Counts, now: float) -> None:
        known = self._tripped.get(queue)
        if counts.tripped_until:
            if known != counts.tripped_until:
                again = "again, " if known is not None else ""
                log.warning(
                    "queue %s has stopped %sbecause too much of it failed; in %.0f s a few deliveries are let through (beltline queue why %s)",
                    queue,
                    again,
                    counts.tripped_until - now,
                    queue,
                )
            self._tripped[queue] = counts.tripped_until
        elif counts.trying and known:
            log.warning("queue %s lets a few deliveries through to see whether it is well again", queue)
            self._tripped[queue] = 0.0
        elif not counts.trying and known is not None:
            log.warning("queue %s is well again", queue)
            del self._tripped[queue]
