"""Killing a worker or a sender at any moment (SIGKILL) loses nothing: what was acknowledged is there, what was held is handed out again, what was ended stays ended."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from beltline.core.capabilities import Durability
from beltline.core.message import Delivery
from beltline.core.outcome import Ack
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Harness
from beltline.testing.conformance.kit import NEXT, QUEUES, WORK

NEEDS = {"durability": Durability.OS}
POWERS = ("Browse",)


@contextmanager
def _child(harness: Harness, what: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that is killed at the end of the block, whatever it is doing."""
    assert harness.url, "an engine whose store outlives the process has a URL under which another process finds it"
    command = [sys.executable, "-m", "beltline.testing.conformance.child", harness.url, what]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own module, started at once
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def _lines(process: "subprocess.Popen[str]", number: int) -> list[str]:
    def read() -> list[str]:
        assert process.stdout is not None
        return [process.stdout.readline().strip() for _ in range(number)]

    return await asyncio.to_thread(read)


async def _opened(harness: Harness) -> Full:
    engine: Full = harness.engine()  # type: ignore[assignment]  # the powers have been looked at
    await engine.open()
    await engine.declare([kit.specs(name) for name in QUEUES])
    return engine


async def a_killed_sender_has_sent_all_that_was_acknowledged(harness: Harness) -> None:
    engine = await _opened(harness)
    with _child(harness, "send") as process:
        acknowledged = await _lines(process, 40)
    try:
        stored = [view.message.id for view in await kit.everything(engine)]
        assert set(acknowledged) <= set(stored)
        assert len(set(stored)) == len(stored)
    finally:
        await engine.close()


async def a_killed_worker_gives_back_all_it_held(harness: Harness) -> None:
    engine = await _opened(harness)
    try:
        sent = await kit.send(engine, *kit.messages(20))
        with _child(harness, "hold") as process:
            held = await _lines(process, 21)
        assert held == [*(message.id for message in sent), "held"]
        back: list[Delivery] = []
        while len(back) < 20:
            got = await engine.receive([WORK], limit=100, lease_s=60.0, wait_s=5.0)
            assert got, "the messages of the killed worker did not come back"
            back += got
        assert {delivery.message.id for delivery in back} == {message.id for message in sent}
        assert [(delivery.lost, delivery.failed, delivery.attempt) for delivery in back] == [(1, 0, 2)] * 20
    finally:
        await engine.close()


async def a_line_of_killed_workers_keeps_each_item_in_exactly_one_stage(harness: Harness) -> None:
    engine = await _opened(harness)
    try:
        await kit.send(engine, *(kit.message(body=bytes([number])) for number in range(200)))
        for kills in (1, 3, 2):
            with _child(harness, "work") as process:
                await _lines(process, kills)
            here, there = await engine.counts(WORK), await engine.counts(NEXT)
            assert here.ready + here.leased + there.ready == 200
            assert here.done == there.ready
        while (await engine.counts(WORK)).done < 200:
            for delivery in await engine.receive([WORK], limit=100, lease_s=60.0, wait_s=5.0):
                await kit.ok(engine, delivery, Ack(then=(kit.message(NEXT, body=delivery.message.body),)))
        assert sorted(view.message.body for view in await kit.everything(engine, queues=(NEXT,))) == [bytes([number]) for number in range(200)]
    finally:
        await engine.close()
