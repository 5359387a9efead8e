"""The schedules of an app's code become rows of the store, and are named again now and then, so that one which has left the code can be told from one nobody has asked about."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from random import uniform

from beltline.core.schedule import NAMED_S, Schedule
from beltline.engines.protocol import Engine, Schedules
from beltline.upkeep.loops import Loop

log = logging.getLogger("beltline.upkeep")


class Announcer(Loop):
    """`announce` says what the code declares; before the first one nothing is done. An app without an owner names its schedules, and leaves none behind."""

    what = "declaring the schedules"

    def __init__(self, engine: Callable[[], Engine], *, every_s: float = NAMED_S) -> None:
        super().__init__(engine, every_s=every_s)
        self._owner: str | None = None
        self._specs: list[Schedule] = []
        self._told = asyncio.Event()
        self._unheard = False

    def announce(self, owner: str, specs: Sequence[Schedule]) -> None:
        """In the loop that runs it. Returns at once."""
        if (owner, list(specs)) != (self._owner, self._specs):
            self._owner, self._specs = owner, list(specs)
            self._told.set()

    async def once(self) -> int:
        """How many schedules the code has."""
        engine, owner, specs = self._engine(), self._owner, self._specs
        if owner is None or not (owner or specs):
            return 0
        if not isinstance(engine, Schedules):
            if specs and not self._unheard:
                log.warning("%s keeps no schedules: %s of this app will not be sent", engine.name, ", ".join(spec.name for spec in specs))
            self._unheard = True
            return 0
        await engine.put_schedules(specs, origin="code", owner=owner)
        return len(specs)

    async def run(self) -> None:
        while True:
            self._told.clear()
            await self.attempt()
            try:
                async with asyncio.timeout((1.0 if self._failing else self._every_s) * uniform(0.8, 1.2)):  # noqa: S311 - spreads load, guards nothing
                    await self._told.wait()
            except TimeoutError:
                continue
