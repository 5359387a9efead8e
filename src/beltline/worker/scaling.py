"""How many slots this worker gives each queue whose number is a range: the fleet's size by the common decision (upkeep/sizing.py), and its own share of it.

Every worker looks every round and decides where nobody has; all follow what the store says. The share is worked out from the heartbeats of those that live
(core/shares.py), the same by everybody. First what shrinks, then what grows, the queue that misses its target by most first: so when the host has no
room for all, the bottleneck gets it. What is refused is asked for again in the next round.
From zero: where the whole fleet of a queue has no slots, each of its workers listens (resizing.py), and the first message wakes the one that receives it; the
next round finds the message leased, and the fleet has its first slot.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from random import uniform
from typing import Protocol

from beltline.core.chain import ChainPlan
from beltline.core.errors import BeltlineError, Unsupported
from beltline.core.names import QueueName, WorkerId
from beltline.core.scaling import RULES, Rules, Size
from beltline.core.shares import shares
from beltline.core.views import WorkerView
from beltline.engines.protocol import Engine, Fleet
from beltline.upkeep.sizing import ROUND_S, Sizing, live, offers, standing
from beltline.worker.store import Store

log = logging.getLogger("beltline.worker")


class Resizable(Protocol):
    """A worker whose slots can change while it works."""

    def ranges(self) -> Mapping[QueueName, tuple[int, int]]:
        """(least, most) of the queues whose number of slots may change."""
        ...

    def size(self, queue: QueueName) -> int: ...

    def resize(self, queue: QueueName, slots: int, *, listen: bool = True, why: str = "") -> int:
        """Ask for so many slots. Returns what it will be: the host may have room for fewer. What runs is never stopped for it.

        `listen`: with 0 slots, whether a message may wake the queue. `why`, in words, is logged with the change, whenever there is one.
        """
        ...

    def refusal(self) -> str:
        """Why the last growth was refused; "" = it was not."""
        ...


class Scaling:
    """`run` for a TaskGroup of the supervisor. `plans`: the chains of the app. `dry_run`: decide and record, change nothing."""

    def __init__(
        self,
        store: Store,
        crew: Resizable,
        *,
        worker: str,
        plans: Callable[[], Iterable[ChainPlan]] = tuple,
        dry_run: bool = False,
        rules: Rules = RULES,
    ) -> None:
        self._store = store
        self._crew = crew
        self._worker = WorkerId(worker)
        self._dry_run = dry_run
        self._sizing = Sizing(by=worker + (" (dry run)" if dry_run else ""), plans=plans, rules=rules)
        self._told = ""

    async def run(self) -> None:
        while True:
            await asyncio.sleep(uniform(0.8, 1.2) * ROUND_S)  # noqa: S311  # spreads load, guards nothing
            try:
                await self.once()
            except Unsupported as error:
                log.warning("every range is taken at its upper end: %s", error)
                for queue, (_, most) in self._crew.ranges().items():
                    self._crew.resize(queue, most, why="the upper end of its range")
                return
            except BeltlineError as error:
                self._tell(f"slots stay as they are for now: {error}")

    async def once(self) -> None:
        """Look, decide where it is due, take the share."""
        queues = list(self._crew.ranges())
        if not queues:
            return
        sizes = await self._store.ask("the size of the fleet", lambda engine: self._sizing.once(engine, queues))
        if not self._dry_run:
            self._follow(sizes, live(await self._store.ask("workers", _workers)))

    def _follow(self, sizes: Mapping[QueueName, Size], views: list[WorkerView]) -> None:
        crew = self._crew
        wanted = {queue: self._share(sizes[queue], own, views) for queue, own in crew.ranges().items()}
        late = {queue: standing(sizes[queue]).late for queue in wanted}
        for queue in sorted(wanted, key=lambda queue: (wanted[queue] > crew.size(queue), -late[queue])):
            size = sizes[queue]
            crew.resize(queue, wanted[queue], listen=not size.slots, why=f"{size.slots} in the fleet, {standing(size).reason}")
        self._tell(crew.refusal())

    def _share(self, size: Size, own: tuple[int, int], views: list[WorkerView]) -> int:
        offered = offers(views, size.queue) | {self._worker: own}
        if size.ordered is not None:
            enough = sum(most for _, most in offered.values()) >= size.slots
            # The operator's word wins over the range a worker was started with; a fixed number is no range.
            offered = {
                worker: (least, most) if least == most and worker != self._worker else (0, most if enough else size.slots)
                for worker, (least, most) in offered.items()
            }
        return shares(size.queue, size.slots, offered)[self._worker]

    def _tell(self, text: str) -> None:
        """Once, until it changes. What is refused has numbers in it that change all the time."""
        if text and not self._told:
            log.warning("%s", text)
        self._told = text


async def _workers(engine: Engine) -> list[WorkerView]:
    return await engine.workers() if isinstance(engine, Fleet) else []
