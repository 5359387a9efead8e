"""What running tasks say of themselves goes to the store: the newest note of each delivery, many at once, ten times a second at most.

A note is worth little and soon overwritten: one that the store does not take is dropped.
"""

import asyncio
import logging

from beltline.core.errors import BeltlineError
from beltline.engines.protocol import Results
from beltline.worker.frames import Notes
from beltline.worker.store import Store

log = logging.getLogger("beltline.worker")

PAUSE_S = 0.1


class Progress:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._notes: list[Notes] = []
        self._noted = asyncio.Event()

    def add(self, notes: Notes) -> None:
        self._notes.append(notes)
        self._noted.set()

    async def pass_on_for_ever(self) -> None:
        while True:
            await self._noted.wait()
            self._noted.clear()
            newest = {receipt: value for frame in self._notes for receipt, value in frame.notes}
            self._notes.clear()
            if newest and isinstance(self._store.engine, Results):
                try:
                    notes = list(newest.items())
                    await self._store.ask("progress", lambda engine, notes=notes: engine.progress(notes))  # type: ignore[misc]
                except BeltlineError as error:
                    log.debug("progress is not kept: %s", error)
            await asyncio.sleep(PAUSE_S)
