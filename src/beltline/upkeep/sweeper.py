"""The sweep: hurry what `receive` would do anyway, for queues nobody receives from at the moment."""

from collections.abc import Callable

from beltline.engines.protocol import Engine, Upkeep
from beltline.upkeep.loops import Loop

SWEEP_S = 5.0


class Sweeper(Loop):
    what = "the sweep"

    def __init__(self, engine: Callable[[], Engine], *, every_s: float = SWEEP_S) -> None:
        super().__init__(engine, every_s=every_s)

    async def once(self) -> int:
        engine = self._engine()
        return await engine.sweep() if isinstance(engine, Upkeep) else 0
