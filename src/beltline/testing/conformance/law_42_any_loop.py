"""One engine object serves every event loop and every thread of its process, and refuses to work in a process that was forked off."""

import asyncio
import os
import warnings

from beltline.core.errors import HandleMisused
from beltline.core.message import Delivery
from beltline.core.outcome import Ack
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full
from beltline.testing.conformance.kit import NEXT, WORK

POWERS = ("Browse", "Results")


async def what_one_loop_sends_another_receives_and_a_third_settles(engine: Full) -> None:
    [[sent]] = await kit.in_threads(lambda: kit.send(engine, kit.message()))
    [delivery] = await kit.in_threads(lambda: kit.take_one(engine))
    assert isinstance(delivery, Delivery)
    await kit.in_threads(lambda: kit.ok(engine, delivery, Ack(result=b"\x01")))
    [view] = await engine.results([sent.id])
    assert view is not None
    assert view.result == b"\x01"


async def a_loop_that_has_ended_leaves_nothing_behind(engine: Full) -> None:
    for _ in range(10):
        await kit.in_threads(lambda: engine.receive([WORK], limit=1, lease_s=1.0, wait_s=0.001))
    sent = await kit.send_one(engine)
    assert kit.ids(await kit.take(engine)) == [sent.id]


async def eight_threads_and_this_loop_work_at_once(engine: Full) -> None:
    async def work() -> int:
        done = 0
        for _ in range(10):
            await kit.send(engine, *kit.messages(3))
            for delivery in await kit.take(engine, limit=3):
                await kit.ok(engine, delivery, Ack(then=(kit.message(NEXT),)))
                done += 1
        return done

    [done, here] = await kit.together(lambda: kit.in_threads(*[work] * 8), work)
    counts = await engine.counts(WORK)
    assert (counts.done, await kit.ready(engine, NEXT)) == (sum(done) + here,) * 2
    assert counts.ready + counts.done == 9 * 30
    assert counts.leased == 0
    await kit.assert_counts_agree(engine)


async def many_waits_on_one_loop_do_not_stop_the_others(engine: Full) -> None:
    async def wait() -> list[Delivery]:
        return await engine.receive([NEXT], limit=1, lease_s=kit.LEASE_S, wait_s=20.0)

    async def work() -> None:
        for _ in range(20):
            await kit.send_one(engine)
            await kit.ok(engine, await kit.take_one(engine))
        await kit.send(engine, *kit.messages(30, NEXT))

    async with asyncio.timeout(20.0):
        answers = await kit.together(*[wait] * 30, work)
    assert [len(deliveries) for deliveries in answers[:-1]] == [1] * 30


async def a_forked_process_may_not_use_it(engine: Full) -> None:
    """The child tries to send and says by its exit code what came of it."""
    before = await kit.send_one(engine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is exactly what is tried here
        child = os.fork()
    if child == 0:
        os._exit(_misuse(engine))
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 42
    assert kit.ids(await kit.take(engine)) == [before.id]


def _misuse(engine: Full) -> int:
    try:
        coroutine = engine.send([kit.message()])
        coroutine.send(None)  # no loop: the refusal must come before anything is waited for
    except HandleMisused:
        return 42
    except BaseException:  # noqa: BLE001 - the exit code is all that leaves this process
        return 1
    return 2
