"""Hop 5: one loop per queue asks the store for what free slots and the received-ahead can hold, and waits there while the queue is empty.

The loop never ends by itself; the drain cancels it. A store that is out of order makes it pause (store.py). Engines give back what a cancelled receive
has leased, so a drain need not wait for one.
"""

import asyncio
from time import monotonic

from beltline.core.errors import EngineUnavailable
from beltline.core.names import WorkerId
from beltline.worker.dealing import Dealing
from beltline.worker.intake import Intake
from beltline.worker.store import Backoff, Store

WAIT_S = 5.0  # how long one receive waits for a first message
EMPTY_S = 0.02  # an empty answer that came sooner than this did not wait: pause before asking again


class Receiver:
    def __init__(self, store: Store, dealing: Dealing, intake: Intake, *, worker: str, lease_s: float) -> None:
        self._store = store
        self._dealing = dealing
        self._intake = intake
        self._worker = WorkerId(worker)
        self._lease_s = lease_s

    async def run(self) -> None:
        """Until cancelled."""
        intake, dealing, backoff = self._intake, self._dealing, Backoff()
        while True:
            want = intake.want(dealing.live_slots(intake))
            if want < 1:
                intake.room.clear()
                await intake.room.wait()
                continue
            asked_at = monotonic()
            try:
                batch = await self._store.ask(
                    "receive",
                    lambda engine, limit=want: engine.receive(  # type: ignore[misc]
                        [intake.queue], limit=limit, lease_s=self._lease_s, wait_s=WAIT_S, worker=self._worker
                    ),
                    wait_s=WAIT_S,
                )
            except EngineUnavailable:
                await backoff.pause()
                continue
            backoff.reset()
            intake.received(len(batch), want)
            if batch:
                dealing.on_batch(intake, batch)
            elif monotonic() - asked_at < EMPTY_S:
                await asyncio.sleep(EMPTY_S)
