"""A small piece of work, again and again, that never fails for good."""

import asyncio
import logging
from collections.abc import Callable
from random import uniform

from beltline.core.errors import BeltlineError
from beltline.engines.protocol import Engine

log = logging.getLogger("beltline.upkeep")


class Loop:
    """`run` for a TaskGroup of yours, or `start` and `stop`, both safe to call twice. `engine` is asked each time, because a worker may replace it.

    Every pause is drawn from ±20 % of `every_s`: many of them on one store do not march in step.
    """

    what = "upkeep"

    def __init__(self, engine: Callable[[], Engine], *, every_s: float) -> None:
        self._engine = engine
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None
        self._failing = False
        self.done = 0
        """How much all rounds together have done."""

    async def once(self) -> int:
        """One round; how much it has done."""
        raise NotImplementedError

    async def run(self) -> None:
        while True:
            await asyncio.sleep(uniform(0.8, 1.2) * self._every_s)  # noqa: S311  # spreads load, guards nothing
            await self.attempt()

    async def attempt(self) -> int:
        """`once`; what goes wrong is told the first time."""
        try:
            done = await self.once()
        except BeltlineError as error:
            if not self._failing:
                log.warning("%s does not get through: %s", self.what, error)
            self._failing = True
            return 0
        self._failing = False
        self.done += done
        return done

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self.run(), name=f"beltline-{self.what}")

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
