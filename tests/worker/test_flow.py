"""Flow control through a worker: what the app declares reaches the store, what a task asks for its queue, what travels down a chain."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from beltline import App, KillSwitch, Limited, Retry, Snooze
from beltline.core.flow import Claim, Flow
from beltline.core.views import MessageFilter
from beltline.engines.memory import MemoryEngine
from beltline.worker.serve import Worker
from tests.worker import lines
from tests.worker.kit import new_engine, result, send, until, worker


@pytest.fixture
async def app() -> AsyncIterator[App]:
    app = App("memory://")
    yield app
    await app.aclose()


async def engine_of(app: App) -> MemoryEngine:
    engine = await app.ready()
    assert isinstance(engine, MemoryEngine)
    return engine


async def test_a_worker_declares_the_limits_of_the_app_whose_runner_it_has_started() -> None:
    engine = await new_engine()
    assert await engine.limits() == []
    async with worker(engine, "narrow", processes=True):
        ids = await send(engine, *(lines.narrow.call(n) for n in range(3)))
        assert [await result(engine, id) for id in ids] == [0, 1, 2]
        [view] = await engine.limits()
        assert (view.name, view.concurrency, view.origin) == ("narrow", 1, "code")


async def test_at_most_as_many_run_as_the_limit_allows_whatever_slots_are_free(app: App) -> None:
    running, most = 0, 0
    app.limit("api", concurrency=2)

    @app.task(limits=[Limited("api", key="customer")])
    async def ask(customer: str) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        running -= 1

    async with Worker(app, in_process=True, queues={"ask": (8, 8)}):
        handles = await ask.asend_many(ask.call("acme") for _ in range(30))
        for handle in handles:
            await handle.aresult(timeout=20)
    assert 1 <= most <= 2
    assert (await (await engine_of(app)).limits())[0].running == 0


async def test_snoozing_the_queue_is_one_write_and_costs_no_attempt(app: App) -> None:
    asked: list[str] = []

    @app.task(queue="api")
    async def ask(name: str) -> str:
        asked.append(name)
        if len(asked) == 1:
            raise Snooze(600, queue=True)
        return name

    first = await ask.asend("first")
    engine = await engine_of(app)
    async with Worker(app, in_process=True, queues={"api": (1, 1)}):
        await until(lambda: snoozed(engine))
        second = await ask.asend("second")
        view = await engine.get(first.id)  # type: ignore[arg-type]
        assert (view.state, view.failed, view.lost, view.why) == ("delayed", 0, 0, "snoozed")
        assert asked == ["first"]
        await engine.resume(ask.queue)
        assert await second.aresult(timeout=20) == "second"
        await engine.hurry([first.id])  # type: ignore[list-item]
        assert await first.aresult(timeout=20) == "first"


async def snoozed(engine: MemoryEngine) -> bool:
    return bool((await engine.counts("api")).snoozed_until)  # type: ignore[arg-type]


async def test_a_queue_where_all_fails_stops_by_itself_and_loses_nothing(app: App) -> None:
    app.queue("ask", kill_switch=KillSwitch(least=5, pause_s=600))

    @app.task(retry=Retry(attempts=50, base_s=0.001))
    async def ask(n: int) -> None:
        raise OSError("the API is down")

    await ask.asend_many(ask.call(n) for n in range(20))
    engine = await engine_of(app)

    async def tripped() -> bool:
        return bool((await engine.counts(ask.queue)).tripped_until)

    async with Worker(app, in_process=True, queues={"ask": (1, 1)}):
        await until(tripped)
    counts = await engine.counts(ask.queue)
    assert (counts.dead, counts.ready + counts.delayed) == (0, 20)


async def test_tenant_travels_down_a_chain_and_each_stage_has_its_own_claims(app: App) -> None:
    app.limit("gpu", concurrency=1)

    @app.task(tenant="customer")
    async def unpack(customer: str, numbers: int) -> list[int]:
        return list(range(numbers))

    @app.task(limits=[Limited("gpu", key="number")], sticky="number")
    async def square(number: int) -> int:
        return number * number

    @app.task(limits=["gpu"])
    async def total(squares: list[int]) -> int:
        return sum(squares)

    chain = app.chain("squares", unpack >> square.each() >> total.gather())
    async with Worker(app, in_process=True):
        handle = await chain.with_options(weight=2).asend("acme", 3)
        assert await handle.aresult(timeout=20) == 5
    engine = await engine_of(app)
    flows: dict[str, list[Any]] = {}
    for view in (await engine.browse(MessageFilter(run=handle.id))).messages:
        flows.setdefault(view.message.queue, []).append(view.message.flow)
    own = {"tenant": "acme", "weight": 2.0}
    assert flows["unpack"] == [Flow(**own)]
    assert flows["square"] == [Flow(claims=(Claim("gpu", str(n)),), sticky=str(n), **own) for n in range(3)]
    assert flows["total"] == [Flow(claims=(Claim("gpu"),), **own)]


async def test_a_key_that_cannot_be_worked_out_fails_the_stage_that_hands_on(app: App) -> None:
    app.limit("gpu", concurrency=1)

    @app.task(retry=False)
    async def halve(number: int) -> float:
        return number / 2

    @app.task(limits=[Limited("gpu", key="number")])
    async def square(number: float) -> float:
        return number * number

    chain = app.chain("squares", halve >> square)
    engine = await engine_of(app)
    async with Worker(app, in_process=True):
        handle = await chain.asend(3)
        await until(lambda: dead(engine, handle.id))
    view = await engine.get(handle.id)  # type: ignore[arg-type]
    assert view.attempts[-1].failure is not None
    assert "as key" in view.attempts[-1].failure.text
    assert (await engine.counts(square.queue)).ready == 0


async def dead(engine: MemoryEngine, id: str) -> bool:
    return (await engine.get(id)).state == "dead"  # type: ignore[arg-type]
