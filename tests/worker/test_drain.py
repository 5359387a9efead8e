"""SIGTERM's inside: what a stopping worker does with what runs, what waits, and what it never started."""

import asyncio
from pathlib import Path

from tests.worker import lines
from tests.worker.kit import counts, new_engine, outcomes, result, send, started, until, worker


async def test_a_drain_lets_running_tasks_finish_and_gives_back_the_rest_untouched(tmp_path: Path) -> None:
    """F21."""
    engine = await new_engine()
    async with worker(engine, "gate", processes=True, runners=2) as supervisor:
        ids = await send(engine, *(lines.gate.call(str(tmp_path)) for _ in range(6)))
        await until(lambda: len(started(tmp_path)) == 4)
        supervisor.drain()
        (tmp_path / "go").touch()
    seen = await counts(engine, "gate")
    assert (seen.done, seen.ready, seen.leased) == (4, 2, 0)
    views = [await engine.get(id) for id in ids]
    assert [(view.failed, view.lost) for view in views] == [(0, 0)] * 6


async def test_a_drain_over_its_time_stops_tasks_without_an_attempt(tmp_path: Path) -> None:
    engine = await new_engine()
    async with worker(engine, "gate", processes=True, runners=1, drain_s=0.2) as supervisor:
        ids = await send(engine, lines.gate.call(str(tmp_path)), lines.gate_in_thread.call(str(tmp_path)))
        await until(lambda: len(started(tmp_path)) == 2)
        supervisor.drain()
    assert (await counts(engine, "gate")).ready == 2
    assert (tmp_path / f"stopped-{ids[0]}").exists()
    for id in ids:
        assert await outcomes(engine, id) == ["release"]


async def test_a_task_that_hears_nothing_is_killed_at_the_end_of_the_drain_and_released() -> None:
    engine = await new_engine()
    async with worker(engine, "short", processes=True, runners=1, drain_s=0.0) as supervisor:
        [id] = await send(engine, lines.sleep_in_c.call(), timeout_s=600.0)
        await until(lambda: supervisor.crew.children[0].busy)
        supervisor.drain()
    view = await engine.get(id)
    assert (view.state, view.failed, view.lost) == ("ready", 0, 0)


async def test_stop_now_waits_for_nobody_and_loses_nothing(tmp_path: Path) -> None:
    engine = await new_engine()
    async with worker(engine, "gate", processes=True, runners=1, drain_s=600.0) as supervisor:
        [id] = await send(engine, lines.gate.call(str(tmp_path)))
        await until(lambda: started(tmp_path))
        supervisor.drain()
        await asyncio.sleep(0)
        supervisor.stop_now()
    view = await engine.get(id)
    assert (view.state, view.failed, view.lost) == ("ready", 0, 0)


async def test_what_was_received_ahead_is_released_without_an_attempt(tmp_path: Path) -> None:
    """Fast tasks make the worker receive ahead; then slow ones take its slots, and it is stopped."""
    engine = await new_engine()
    async with worker(engine, "work", "gate", processes=True, runners=1, queues={"work": (1, 1)}, drain_s=0.0) as supervisor:
        for id in await send(engine, *(lines.double.call(n) for n in range(500))):
            await result(engine, id)
        ids = await send(engine, *(lines.tell.call(n, str(tmp_path)) for n in range(300)))
        await until(lambda: started(tmp_path))
        assert supervisor.dealing.intakes[next(iter(supervisor.dealing.intakes))].held > 1
        supervisor.drain()
    views = [await engine.get(id) for id in ids]
    assert {(view.state, view.failed, view.lost) for view in views} == {("ready", 0, 0)}


async def test_what_was_received_ahead_goes_back_when_the_slots_turn_out_to_be_busy(tmp_path: Path) -> None:
    """No hoarding: another worker could run it."""
    engine = await new_engine()
    async with worker(engine, "work", processes=True, runners=1, queues={"work": (1, 1)}):
        for id in await send(engine, *(lines.double.call(n) for n in range(500))):
            await result(engine, id)
        await send(engine, *(lines.tell.call(n, str(tmp_path)) for n in range(300)))
        await until(lambda: started(tmp_path))

        async def leased() -> bool:
            return (await counts(engine, "work")).leased == 1

        await until(leased)
        (tmp_path / "go").touch()
        await until(lambda: len(started(tmp_path)) == 300)
