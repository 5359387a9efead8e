"""A worker that writes down what its supervisor is answered: `python -m tests.system.chaos_worker supervisor-0 '{"url": …}'`, options as WorkerConfig takes them.

The engine is the real one. Its `receive`, `renew` and `settle` note question and answer on their way through, each before anybody else can act on it.

CHAOS_LIE names one way in which the engine is wrong, now and then, so that the rig can be seen to notice:
    forgets   says that it has settled, and has not      twice   hands the same delivery out twice      unfenced   says yes to a settle under an old epoch
    roomy     allows twice what limits say (chaos_flow.py)
"""

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beltline.core.errors import EngineUnavailable
from beltline.core.message import Delivery, Receipt
from beltline.core.outcome import Ack, DeadLetter, Outcome, RetryAfter, Settled, Settlement
from beltline.engines.protocol import Engine
from beltline.worker.children import Child
from beltline.worker.config import WorkerConfig
from beltline.worker.frames import Hello
from beltline.worker.store import Store
from beltline.worker.supervisor import Supervisor
from tests.system.history import UNKNOWN, Journal

RARELY = 20
ANSWERS = {Settled.DONE: "done", Settled.LEASE_LOST: "lease_lost"}


def word(outcome: Outcome) -> str:
    match outcome:
        case Ack():
            return "ack"
        case RetryAfter(lost=lost):
            return "lost" if lost else "retry"
        case DeadLetter():
            return "dead_letter"
        case _:
            return "release"


def lying(engine: Engine, lie: str) -> None:
    """Make every RARELY-th batch wrong. Below the diary: that one writes down what the supervisor is told."""
    receive, settle = engine.receive, engine.settle
    calls = iter(range(1, sys.maxsize))

    async def receive_twice(queues: Sequence[Any], **options: Any) -> list[Delivery]:
        deliveries = await receive(queues, **options)
        return deliveries * 2 if deliveries and not next(calls) % RARELY else deliveries

    async def forget(settlements: Sequence[Settlement]) -> list[Settled]:
        if not next(calls) % RARELY:
            return [Settled.DONE] * len(settlements)
        return await settle(settlements)

    async def unfenced(settlements: Sequence[Settlement]) -> list[Settled]:
        """What was refused as stale is answered as if it had been written."""
        return [Settled.DONE for _ in await settle(settlements)]

    name, method = {"twice": ("receive", receive_twice), "forgets": ("settle", forget), "unfenced": ("settle", unfenced)}[lie]
    setattr(engine, name, method)


def observed(engine: Engine, journal: Journal) -> Engine:
    """The same engine, whose answers are written down."""
    if (lie := os.environ.get("CHAOS_LIE", "roomy")) != "roomy":  # that one is told by chaos_flow.py
        lying(engine, lie)
    receive, renew, settle = engine.receive, engine.renew, engine.settle
    numbers = iter(range(sys.maxsize))

    async def noted_receive(queues: Sequence[Any], *, lease_s: float, **options: Any) -> list[Delivery]:
        deliveries = await receive(queues, lease_s=lease_s, **options)
        if deliveries:
            journal.write("received", wall=time.time(), lease_s=lease_s, got=[[d.receipt.id, d.receipt.epoch, d.lease_until] for d in deliveries])
        return deliveries

    async def noted_renew(receipts: Sequence[Receipt], *, lease_s: float) -> list[Settled]:
        asked_t, asked_wall = time.monotonic(), time.time()
        answers = await renew(receipts, lease_s=lease_s)
        done = [[receipt.id, receipt.epoch] for receipt, answer in zip(receipts, answers, strict=True) if answer is not Settled.LEASE_LOST]
        if done:
            journal.write("renewed", asked_t=asked_t, asked_wall=asked_wall, lease_s=lease_s, done=done)
        return answers

    async def noted_settle(settlements: Sequence[Settlement]) -> list[Settled]:
        n = next(numbers)
        journal.write("settle", n=n, what=[[each.receipt.id, each.receipt.epoch, word(each.outcome)] for each in settlements])
        try:
            answers = await settle(settlements)
        except EngineUnavailable as error:
            journal.write("settled", n=n, answers=[UNKNOWN if error.effect == "unknown" else "fail"] * len(settlements))
            raise
        journal.write("settled", n=n, answers=[ANSWERS[answer] for answer in answers])
        return answers

    for name, method in (("receive", noted_receive), ("renew", noted_renew), ("settle", noted_settle)):
        setattr(engine, name, method)
    return engine


class Observed(Supervisor):
    """A supervisor whose engine is observed, also one that it builds anew, and who notes the ends of its runners."""

    journal: Journal

    def _make_store(self, hello: Hello) -> Store:
        store = super()._make_store(hello)
        observed(store.engine, self.journal)
        rebuild = store._rebuild
        assert rebuild is not None
        store._rebuild = lambda: observed(rebuild(), self.journal)
        return store

    def on_death(self, child: Child, how: str) -> None:
        self.journal.write("died", runner=child.pid, doomed=child.doomed, how=how)
        super().on_death(child, how)


async def main(role: str, options: dict[str, Any]) -> int:
    supervisor = Observed(WorkerConfig(**options))
    supervisor.journal = Journal(Path(os.environ["CHAOS_LOG"]), role)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, supervisor.drain)
    return await supervisor.run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format=f"%(asctime)s {sys.argv[1]} %(levelname)s %(message)s")
    given = json.loads(sys.argv[2])
    given["queues"] = {name: (slots, slots) for name, slots in given["queues"].items()}
    sys.exit(asyncio.run(main(sys.argv[1], given)))
