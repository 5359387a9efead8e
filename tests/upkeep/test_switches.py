"""What the log says of kill switches."""

import logging

import pytest

from beltline.core.flow import KillSwitch
from beltline.core.names import QueueName
from beltline.core.outcome import Ack, Cause, DeadLetter, Failure, Settlement
from beltline.core.queues import QueueSpec
from beltline.engines.memory import MemoryEngine
from beltline.testing import ManualClock
from beltline.testing.conformance.kit import message
from beltline.upkeep.switches import SwitchWatch

WORK = QueueName("work")
FAILED = DeadLetter(reason="x", failure=Failure(Cause.ERROR, "ValueError", "no good"))


async def test_a_queue_that_trips_tries_and_is_well_again_is_told_once_each(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    engine = MemoryEngine(clock=clock)
    await engine.open()
    await engine.declare([QueueSpec(name=WORK, kill_switch=KillSwitch(least=2, pause_s=60.0, tries=1))])
    watch = SwitchWatch(lambda: engine, lambda: [WORK])
    caplog.set_level(logging.WARNING, "beltline.worker")

    async def told(standing: int) -> list[str]:
        caplog.clear()
        for _ in range(2):
            assert await watch.attempt() == standing
        return [record.getMessage() for record in caplog.records]

    async def end(outcome: Ack | DeadLetter) -> None:
        await engine.send([message(WORK)])
        [delivery] = await engine.receive([WORK], limit=1, lease_s=30.0)
        await engine.settle([Settlement(delivery.receipt, outcome)])

    assert await told(0) == []
    await end(FAILED)
    await end(FAILED)
    [line] = await told(1)
    assert line.startswith("queue work has stopped because too much of it failed; in 60 s a few deliveries are let through")
    clock.advance(60)
    assert await told(1) == ["queue work lets a few deliveries through to see whether it is well again"]
    await end(FAILED)
    [line] = await told(1)
    assert line.startswith("queue work has stopped again, because too much of it failed; in 120 s")
    clock.advance(120)
    await end(Ack())
    assert await told(0) == ["queue work is well again"]


async def test_a_worker_that_starts_in_the_middle_tells_only_what_it_has_seen(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    engine = MemoryEngine(clock=clock)
    await engine.open()
    await engine.declare([QueueSpec(name=WORK, kill_switch=KillSwitch(least=1, pause_s=60.0, tries=1))])
    await engine.send([message(WORK)])
    [delivery] = await engine.receive([WORK], limit=1, lease_s=30.0)
    await engine.settle([Settlement(delivery.receipt, FAILED)])
    clock.advance(60)
    watch = SwitchWatch(lambda: engine, lambda: [WORK])
    assert await watch.once() == 0
    await engine.resume(WORK)
    assert await watch.once() == 0
    assert caplog.records == []
