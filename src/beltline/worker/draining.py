"""The end of a worker, in order: nothing new, what runs, what waits for its settle, the runners, the store.

Waits   drain_s for what runs, grace_s for what was asked to stop after that, KILL_S for what should take an instant. `at_once` skips the waiting.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from time import monotonic

from beltline.core.message import Delivery
from beltline.worker.children import Stage
from beltline.worker.config import WorkerConfig
from beltline.worker.crew import Crew
from beltline.worker.dealing import Dealing
from beltline.worker.frames import DRAINED
from beltline.worker.settler import Settler

log = logging.getLogger("beltline.worker")

PAUSE_S = 0.01
KILL_S = 5.0  # for what should take an instant: the end of a killed process, of a receive, of the last settle
FAREWELL_S = 12.0  # for runners that close their resources


class Draining:
    """`give_up` takes back what was not started. `at_once`: set by whoever has no patience, at any time."""

    def __init__(
        self,
        config: WorkerConfig,
        dealing: Dealing,
        crew: Crew,
        settler: Settler,
        *,
        at_once: asyncio.Event,
        give_up: Callable[[list[Delivery]], None],
    ) -> None:
        self._config = config
        self._dealing = dealing
        self._crew = crew
        self._settler = settler
        self._at_once = at_once
        self._give_up = give_up

    async def run_dry(self, receivers: list["asyncio.Task[None]"]) -> bool:
        """Until everything held is settled or lost to its lease. False: something that ran was stopped for it."""
        dealing, crew, in_time = self._dealing, self._crew, True
        dealing.open = crew.open = False
        log.info("draining: %d are running", sum(child.busy for child in crew.children))
        for receiver in receivers:
            receiver.cancel()
        for intake in dealing.intakes.values():
            self._give_up(intake.empty())
        for child in tuple(crew.children):
            if child.stage < Stage.READY:
                crew.kill(child, DRAINED, set())
            elif child.held:
                child.take_back()
            elif child.stage < Stage.STOPPING:
                child.stop()
        if not await self._until_empty(self._config.drain_s) and not self._at_once.is_set():
            log.warning("the drain is over its %.3g s: stopping what runs", self._config.drain_s)
            in_time = False
            for child in crew.children:
                serials = [serial for lane in child.lanes for serial in lane.held]
                child.overdue.update(dict.fromkeys(serials, math.inf))  # this method is patient for them, not the deadlines
                child.halt(serials, DRAINED)
            await self._until_empty(self._config.grace_s)
        for child in tuple(crew.children):
            if child.held:
                crew.kill(child, DRAINED, set())
        for _ in range(round(KILL_S / PAUSE_S)):
            if not any(child.held for child in crew.children):
                break
            await asyncio.sleep(PAUSE_S)
        if receivers:
            await asyncio.wait(receivers, timeout=KILL_S)
        try:
            async with asyncio.timeout(KILL_S if self._at_once.is_set() else max(KILL_S, self._config.drain_s)):
                await self._settler.flush()
        except TimeoutError:
            log.error(
                "the store has not taken %d outcomes in time: their messages are received again when their leases are over", self._settler.waiting
            )
        return in_time

    async def _until_empty(self, within_s: float) -> bool:
        """Whether every runner has answered for everything in time. Those that have are told to stop. Ends early when told to stop now."""
        deadline = monotonic() + within_s
        while not self._at_once.is_set():
            for child in self._crew.children:
                if not child.held and child.stage < Stage.STOPPING:
                    child.stop()
            if not any(child.held for child in self._crew.children):
                return True
            if monotonic() >= deadline:
                return False
            try:
                async with asyncio.timeout(min(0.02, max(0.0, deadline - monotonic()))):
                    await self._at_once.wait()
            except TimeoutError:
                continue
        return False

    async def see_off(self) -> None:
        """Runners close their resources and leave."""
        deadline = monotonic() + (0.0 if self._at_once.is_set() else FAREWELL_S)
        while self._crew.children and monotonic() < deadline and not self._at_once.is_set():
            await asyncio.sleep(PAUSE_S)  # tick() is what turns their ends into facts
            self._crew.tick(monotonic(), needed_lone=0)
