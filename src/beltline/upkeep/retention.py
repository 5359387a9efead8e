"""Retention: history, results and dedup keys whose time is over are dropped, a piece at a time so that nobody waits behind it."""

import asyncio
from collections.abc import Callable

from beltline.core.limits import MAX_DELAY_S, seconds
from beltline.engines.protocol import Engine, Upkeep
from beltline.upkeep.loops import Loop

HISTORY_S = 7 * 86400.0
RETAIN_S = 60.0
PIECE = 5_000


class Retention(Loop):
    """`history_s`: how long ended messages and runs are kept."""

    what = "retention"

    def __init__(self, engine: Callable[[], Engine], *, history_s: float = HISTORY_S, every_s: float = RETAIN_S) -> None:
        super().__init__(engine, every_s=every_s)
        self._history_s = seconds("history_s", history_s, most=MAX_DELAY_S)

    async def once(self) -> int:
        dropped = 0
        engine = self._engine()
        while isinstance(engine, Upkeep):
            piece = await engine.retain(history_s=self._history_s, limit=PIECE)
            dropped += piece
            if piece < PIECE:
                break
            await asyncio.sleep(0.05)  # others write in between
        return dropped
