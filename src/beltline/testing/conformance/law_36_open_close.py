"""Opening and closing are tolerated in any order, twice, and while a receive waits; a closed engine refuses every verb and loses nothing."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from beltline.core.errors import HandleMisused
from beltline.core.message import Receipt
from beltline.core.outcome import Ack, Settlement
from beltline.core.views import MessageFilter
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Harness
from beltline.testing.conformance.kit import LEASE_S, NEVER_SENT, WORK

POWERS = ("Browse", "Results", "Control", "Runs", "Fleet", "Upkeep")


def _every_verb(engine: Full) -> list[Callable[[], Awaitable[object]]]:
    where, receipt = MessageFilter(ids=(NEVER_SENT,)), Receipt(NEVER_SENT, 1)
    return [
        lambda: engine.declare([kit.specs(WORK)]),
        lambda: engine.send([kit.message()]),
        lambda: engine.receive([WORK], limit=1, lease_s=LEASE_S),
        lambda: engine.receive([WORK], limit=1, lease_s=LEASE_S, wait_s=5.0),
        lambda: engine.renew([receipt], lease_s=LEASE_S),
        lambda: engine.settle([Settlement(receipt, Ack())]),
        lambda: engine.counts(WORK),
        lambda: engine.purge(WORK),
        engine.queues,
        lambda: engine.get(NEVER_SENT),
        lambda: engine.browse(where),
        lambda: engine.results([NEVER_SENT]),
        lambda: engine.await_results([NEVER_SENT], wait_s=5.0),
        lambda: engine.progress([(receipt, b"\xc0")]),
        lambda: engine.pause(WORK),
        lambda: engine.resume(WORK),
        lambda: engine.cancel([NEVER_SENT]),
        lambda: engine.hurry([NEVER_SENT]),
        lambda: engine.redrive(where, limit=1),
        lambda: engine.delete(where, limit=1),
        lambda: engine.run_counts("line"),
        engine.workers,
        engine.sweep,
        lambda: engine.retain(history_s=0.0),
    ]


async def a_closed_engine_refuses_every_verb(engine: Full) -> None:
    await engine.close()
    for verb in _every_verb(engine):
        with pytest.raises(HandleMisused):
            await verb()


async def an_engine_that_was_never_opened_refuses_every_verb(harness: Harness) -> None:
    engine: Full = harness.engine(clock=harness.clock)  # type: ignore[assignment]
    for verb in _every_verb(engine):
        with pytest.raises(HandleMisused):
            await verb()
    await engine.close()


async def opening_twice_is_the_same_as_once(engine: Full) -> None:
    await kit.send_one(engine)
    await engine.open()
    assert await kit.ready(engine) == 1


async def closing_twice_is_the_same_as_once(engine: Full) -> None:
    await engine.close()
    await engine.close()


async def closing_before_opening_is_allowed(harness: Harness) -> None:
    engine = harness.engine(clock=harness.clock)
    await engine.close()
    await engine.open()
    await engine.declare([kit.specs(WORK)])
    await engine.close()


async def a_closed_engine_can_be_opened_again_and_has_lost_nothing(engine: Full) -> None:
    sent = await kit.send(engine, *kit.messages(3))
    held = await kit.take_one(engine)
    await engine.close()
    await engine.open()
    await kit.ok(engine, held)
    assert kit.ids(await kit.take(engine)) == [message.id for message in sent[1:]]


async def closing_ends_a_waiting_receive_with_nothing(harness: Harness) -> None:
    engine = harness.engine()
    await engine.open()
    await engine.declare([kit.specs(WORK)])
    waiting = asyncio.Event()

    async def receive() -> list[object]:
        waiting.set()
        return list(await engine.receive([WORK], limit=1, lease_s=LEASE_S, wait_s=20.0))

    async def close() -> None:
        await waiting.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        await engine.close()

    [got, _] = await kit.together(receive, close)
    assert got == []


async def closing_ends_receives_that_wait_in_other_threads(harness: Harness) -> None:
    engine: Full = harness.engine()  # type: ignore[assignment]
    await engine.open()
    await engine.declare([kit.specs(WORK)])
    started = threading.Barrier(5, timeout=20.0)

    async def receive() -> list[object]:
        started.wait()
        try:
            return list(await engine.receive([WORK], limit=1, lease_s=LEASE_S, wait_s=20.0))
        except HandleMisused:
            return []  # the close was faster

    async def close() -> None:
        await asyncio.to_thread(started.wait)
        await engine.close()

    [batches, _] = await kit.together(lambda: kit.in_threads(*[receive] * 4), close)
    assert batches == [[]] * 4


async def closing_ends_a_wait_for_results(harness: Harness) -> None:
    engine: Full = harness.engine()  # type: ignore[assignment]
    await engine.open()
    await engine.declare([kit.specs(WORK)])
    sent = await kit.send_one(engine)
    waiting = asyncio.Event()

    async def wait() -> None:
        waiting.set()
        try:
            await engine.await_results([sent.id], wait_s=20.0)
        except HandleMisused:
            return

    async def close() -> None:
        await waiting.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        await engine.close()

    async with asyncio.timeout(15.0):
        await kit.together(wait, close)


async def eight_threads_may_open_and_close_at_once(harness: Harness) -> None:
    engine = harness.engine()
    await kit.in_threads(*[engine.open] * 4)
    await engine.declare([kit.specs(WORK)])
    await engine.send([kit.message()])
    await kit.in_threads(*[engine.close] * 4)
    await engine.open()
    assert (await engine.counts(WORK)).ready == 1
    await engine.close()
