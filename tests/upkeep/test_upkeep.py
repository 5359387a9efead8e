"""The loops that keep a store tidy."""

import logging

import pytest

from beltline.core.errors import EngineUnavailable
from beltline.core.names import QueueName
from beltline.core.outcome import Ack, Settlement
from beltline.core.queues import QueueSpec
from beltline.engines.memory import MemoryEngine
from beltline.testing import ManualClock
from beltline.testing.conformance.kit import message
from beltline.upkeep.retention import Retention
from beltline.upkeep.sweeper import Sweeper
from tests.worker.kit import until

WORK = QueueName("work")


async def new_engine(clock: ManualClock) -> MemoryEngine:
    engine = MemoryEngine(clock=clock)
    await engine.open()
    await engine.declare([QueueSpec(name=WORK)])
    return engine


async def test_the_sweep_buries_poison_in_queues_nobody_receives_from() -> None:
    clock = ManualClock()
    engine = await new_engine(clock)
    [sent] = await engine.send([message(WORK)])
    sweeper = Sweeper(lambda: engine, every_s=0.01)
    sweeper.start()
    sweeper.start()
    for _ in range(3):
        await until(lambda: receive(engine))
        clock.advance(31)
    await until(lambda: state(engine, sent.id, "dead"))
    await sweeper.stop()
    await sweeper.stop()


async def receive(engine: MemoryEngine) -> bool:
    return bool(await engine.receive([WORK], limit=1, lease_s=30.0))


async def state(engine: MemoryEngine, id: str, word: str) -> bool:
    [view] = await engine.results([id])
    return view is not None and view.state == word


async def test_retention_drops_what_is_older_than_the_history_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beltline.upkeep.retention.PIECE", 3)
    clock = ManualClock()
    engine = await new_engine(clock)
    old = await engine.send([message(WORK) for _ in range(8)])
    for delivery in await engine.receive([WORK], limit=8, lease_s=30.0):
        await engine.settle([Settlement(delivery.receipt, Ack())])
    clock.advance(3600)
    [young] = await engine.send([message(WORK)])
    assert await Retention(lambda: engine, history_s=600.0).once() >= 8
    assert await engine.results([each.id for each in old]) == [None] * 8
    assert await state(engine, young.id, "ready")


async def test_a_store_that_does_not_answer_is_told_once_and_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    class Down(MemoryEngine):
        asked = 0

        async def sweep(self) -> int:
            self.asked += 1
            raise EngineUnavailable("The line is cut.", effect="none")

    engine = Down()
    await engine.open()
    sweeper = Sweeper(lambda: engine, every_s=0.01)
    with caplog.at_level(logging.WARNING):
        sweeper.start()
        await until(lambda: engine.asked > 3)
        await sweeper.stop()
    assert len([record for record in caplog.records if "does not get through" in record.message]) == 1
