"""Leases: one batched renewal of everything held, every third of a lease, on the monotonic clock; and the question who is asked to be cancelled.

Lost      by the store's answer: the delivery is dropped where it waits, or asked to stop where it runs; one settle is still tried, the epoch decides.
Unsure    renewals that cannot reach the store for half a lease beyond their time: what was held then may belong to somebody else by now, so it is
          asked to stop likewise. What has not started is given back.
"""

import asyncio
import logging
from collections.abc import Iterator
from time import monotonic

from beltline.core.errors import EngineUnavailable
from beltline.core.message import Delivery, Receipt
from beltline.core.outcome import Release, Settled
from beltline.engines.protocol import Control
from beltline.worker.children import Child, ChildLane
from beltline.worker.crew import Crew
from beltline.worker.deadlines import Deadlines
from beltline.worker.dealing import Dealing
from beltline.worker.frames import CANCELLED, LEASE_LOST
from beltline.worker.settler import Settler
from beltline.worker.store import Store

log = logging.getLogger("beltline.worker")

BATCH = 2_000
ASK_S = 1.0
WRITTEN_S = 0.2  # a task that has settled in its own transaction has no lease any more, and its runner is just about to say so
RAN_S = 0.5  # only deliveries that run longer are asked about: the others are over before the answer


class Leases:
    """`lost`: how many were lost while held."""

    def __init__(self, store: Store, dealing: Dealing, crew: Crew, settler: Settler, deadlines: Deadlines, *, lease_s: float) -> None:
        self.lost = 0
        self._store = store
        self._dealing = dealing
        self._crew = crew
        self._settler = settler
        self._deadlines = deadlines
        self._lease_s = lease_s

    async def renew_for_ever(self) -> None:
        failing_since: float | None = None
        unsure: list[Receipt] = []
        while True:
            await asyncio.sleep(self._lease_s / 3 if failing_since is None else min(1.0, self._lease_s / 12))
            receipts = [delivery.receipt for delivery in self._held()]
            try:
                for first in range(0, len(receipts), BATCH):
                    await self._renew(receipts[first : first + BATCH])
            except EngineUnavailable:
                now = monotonic()
                if failing_since is None:
                    failing_since, unsure = now, receipts
                elif now - failing_since > self._lease_s / 2 and unsure:
                    log.error("leases could not be renewed for %.3g s: stopping %d deliveries", self._lease_s * 5 / 6, len(unsure))
                    self._lose(set(unsure))
                    unsure = []
            else:
                failing_since = None

    async def _renew(self, receipts: list[Receipt]) -> None:
        answers = await self._store.ask("renew", lambda engine: engine.renew(receipts, lease_s=self._lease_s))
        if answers.count(Settled.DONE) == len(answers):
            return
        lost = {receipt for receipt, answer in zip(receipts, answers, strict=True) if answer is Settled.LEASE_LOST}
        if lost:
            await asyncio.sleep(WRITTEN_S)
        self._lose(lost)
        self._cancel({receipt for receipt, answer in zip(receipts, answers, strict=True) if answer is Settled.CANCEL_ASKED})

    def _held(self) -> Iterator[Delivery]:
        yield from self._settler.held()
        for intake in self._dealing.intakes.values():
            yield from intake.ahead
            yield from intake.alone
        for _, _, _, delivery in self._dealt():
            yield delivery

    def _dealt(self) -> list[tuple[Child, ChildLane, int, Delivery]]:
        return [(child, lane, serial, delivery) for child in self._crew.children for lane in child.lanes for serial, delivery in lane.held.items()]

    def _lose(self, receipts: set[Receipt]) -> None:
        """They are no longer ours."""
        if not receipts:
            return
        found = 0
        for intake in self._dealing.intakes.values():
            for waiting in (intake.ahead, intake.alone):
                mine = [delivery for delivery in waiting if delivery.receipt in receipts]
                for delivery in mine:
                    waiting.remove(delivery)
                    self._settler.expect_lost(delivery)
                    self._settler.end(delivery, Release(why=LEASE_LOST))
                found += len(mine)
        for child, _, serial, delivery in self._dealt():
            if delivery.receipt in receipts:
                self._settler.expect_lost(delivery)
                self._deadlines.halt(child, serial, LEASE_LOST, monotonic())
                found += 1
        if found:
            self.lost += found
            log.warning("%d leases were lost: their deliveries are stopped, their outcomes will not be written", found)

    # ---- cancellation

    async def watch_cancellations(self) -> None:
        """Every second, if the engine can be asked."""
        while True:
            await asyncio.sleep(ASK_S)
            long = [delivery.receipt for _, _, _, delivery in self._running(monotonic() - RAN_S)]
            if not long or not isinstance(self._store.engine, Control):
                continue
            try:
                asked = await self._store.ask("cancel_asked", lambda engine, long=long: engine.cancel_asked(long))  # type: ignore[misc]
            except EngineUnavailable:
                continue
            self._cancel(set(asked))

    def _running(self, before: float) -> list[tuple[Child, ChildLane, int, Delivery]]:
        """What has started before that instant."""
        started = {(child.number, serial): at for child in self._crew.children for serial, at in child.started().items()}
        return [entry for entry in self._dealt() if started.get((entry[0].number, entry[2]), before) < before]

    def _cancel(self, receipts: set[Receipt]) -> None:
        if not receipts:
            return
        for child, _, serial, delivery in self._dealt():
            if delivery.receipt in receipts:
                self._deadlines.halt(child, serial, CANCELLED, monotonic())
