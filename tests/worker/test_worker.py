"""A worker inside another program, and what it tells of itself."""

import asyncio
from pathlib import Path

import pytest

from beltline import App
from beltline.core.errors import ExtraMissing, UsageError
from beltline.worker.children import Stage
from beltline.worker.config import WorkerConfig
from beltline.worker.reload import watch_and_restart
from beltline.worker.serve import Worker, serve
from tests.worker import lines
from tests.worker.kit import APP, ROOT, new_engine, run, send, started, until, worker


async def test_an_app_can_run_its_own_worker_in_its_own_process() -> None:
    app = App("memory://")

    @app.task
    async def shout(word: str) -> str:
        return word.upper()

    async with Worker(app, in_process=True) as inside:
        await inside.start()
        handle = await shout.asend("hello")
        assert await handle.aresult(timeout=20) == "HELLO"
    assert await inside.stop() == 0
    handle = await shout.asend("again")
    async with inside:
        assert await handle.aresult(timeout=20) == "AGAIN"
    await app.aclose()


async def test_an_app_without_a_place_cannot_be_found_by_other_processes() -> None:
    with pytest.raises(UsageError, match="must find the app"):
        Worker(App("memory://"))


async def test_a_worker_that_cannot_start_says_why() -> None:
    with pytest.raises(UsageError, match="'wrok' is not declared"):
        await Worker(lines.app, in_process=True, queues={"wrok": (1, 1)}).start()
    await lines.app.aclose()


async def test_runners_in_other_processes_refuse_a_store_that_lives_in_this_one() -> None:
    config = WorkerConfig(app=APP, app_dir=ROOT, url="memory://", queues={"work": (1, 1)})
    assert await serve(config, stop=asyncio.Event()) == 2


async def test_a_stop_event_drains(tmp_path: Path) -> None:
    stop = asyncio.Event()
    config = WorkerConfig(app=APP, app_dir=ROOT, url=f"sqlite:///{tmp_path}/q.db", queues={"work": (1, 1)}, runners=1)
    assert await serve(config, stop=stop, on_ready=lambda _: stop.set()) == 0


async def test_the_heartbeat_names_queues_tasks_and_runners_and_is_gone_after_a_clean_stop(tmp_path: Path) -> None:
    engine = await new_engine()
    async with worker(engine, "gate", processes=True, runners=2) as supervisor:
        await until(lambda: all(child.stage is Stage.READY for child in supervisor.crew.children))
        await send(engine, lines.gate.call(str(tmp_path)))
        await until(lambda: started(tmp_path))
        assert supervisor.heartbeat is not None
        await supervisor.heartbeat.beat()
        [view] = await engine.workers()
        assert (view.id, view.state, view.queues) == (supervisor.id, "up", {"gate": 4})
        assert "tests.worker.lines.gate" in view.tasks
        runners = view.detail["runners"]
        assert isinstance(runners, list)
        assert sorted(each["busy"] for each in runners) == [0, 1]
        assert all(each["rss_bytes"] > 1 << 20 for each in runners)
        (tmp_path / "go").touch()
    assert await engine.workers() == []


async def test_a_change_of_a_file_loads_the_code_anew(tmp_path: Path) -> None:
    source = tmp_path / "watched.py"
    source.write_text(WATCHED.replace("ANSWER", "1"))
    engine = await new_engine()
    async with worker(engine, processes=True, runners=1, queues={}, app=f"{source}:app", app_dir=str(tmp_path)) as supervisor:
        first = supervisor.crew.children[0].pid
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch_and_restart(supervisor))
            await until(lambda: touched(source, supervisor.crew.children[0].pid != first))
            watching.cancel()
        assert await run(engine, lines.double.call(1), queue="answer", task="watched.answer", body=b"\x80") == 2


def touched(source: Path, done: bool) -> bool:
    """Written again and again: the watch may begin after the first time."""
    source.write_text(WATCHED.replace("ANSWER", "2"))
    return done


WATCHED = """
from beltline import App
app = App()

@app.task(queue="answer")
async def answer() -> int:
    return ANSWER
"""


async def test_without_its_package_reloading_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "watchfiles", None)
    engine = await new_engine()
    async with worker(engine, "work") as supervisor:
        with pytest.raises(ExtraMissing, match=r"beltline\[dev\]"):
            await watch_and_restart(supervisor)
