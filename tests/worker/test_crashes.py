"""Runners that die, hang and grow: real processes below a supervisor whose store is in this one. Numbers such as F15 are rows of the fault model."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil

from beltline.core.names import MessageId
from beltline.core.outcome import Cause
from beltline.engines.memory import MemoryEngine
from beltline.loading import load_app
from beltline.worker.config import WorkerConfig
from beltline.worker.supervisor import Supervisor
from tests.worker import lines
from tests.worker.kit import APP, ROOT, counts, ended, new_engine, outcomes, result, run, send, started, until, worker


def runner_of(directory: Path, id: MessageId) -> int:
    """The process that has started this message last."""
    found = sorted(directory.glob(f"started-{id}-*"), key=lambda path: path.stat().st_mtime_ns)
    return int(found[-1].read_text() or 0) if found else 0


async def dead(engine: MemoryEngine, id: MessageId, reason: str) -> str:
    """The text of its failure, once it is dead for this reason."""
    view = await ended(engine, id)
    assert (view.state, view.why) == ("dead", reason)
    assert view.failure is not None
    assert view.failure.cause is Cause.CRASH
    return view.failure.text


async def test_a_killed_runner_costs_its_one_delivery_nothing_but_time(tmp_path: Path) -> None:
    """F1."""
    engine = await new_engine()
    async with worker(engine, "gate", processes=True, runners=2):
        [id] = await send(engine, lines.gate.call(str(tmp_path)))
        pid = await until(lambda: runner_of(tmp_path, id))
        os.kill(pid, signal.SIGKILL)
        await until(lambda: runner_of(tmp_path, id) not in (0, pid))
        (tmp_path / "go").touch()
        assert await result(engine, id) != pid
        view = await engine.get(id)
        assert (view.failed, view.lost) == (0, 1)


async def test_a_message_that_kills_every_runner_is_poison_after_three_with_the_exit_code() -> None:
    """F15: os._exit."""
    engine = await new_engine()
    async with worker(engine, "ruin", "work", processes=True, runners=1):
        [id] = await send(engine, lines.die.call(7))
        assert "exit code 7" in await dead(engine, id, "poison: 3 deliveries never answered")
        assert await outcomes(engine, id) == ["lost", "lost", "dead_letter"]
        assert await run(engine, lines.double.call(1)) == 2


async def test_a_segmentation_fault_is_named() -> None:
    """F15: SIGSEGV."""
    engine = await new_engine()
    async with worker(engine, "ruin", processes=True, runners=1):
        [id] = await send(engine, lines.segfault.call())
        assert "SIGSEGV" in await dead(engine, id, "poison: 3 deliveries never answered")


async def test_a_task_that_closes_every_file_loses_its_runner_and_nothing_else() -> None:
    """F15."""
    engine = await new_engine()
    async with worker(engine, "ruin", "work", processes=True, runners=1):
        [id] = await send(engine, lines.close_all_files.call())
        await dead(engine, id, "poison: 3 deliveries never answered")
        assert await run(engine, lines.double.call(1)) == 2


async def test_the_child_of_a_task_that_forks_never_answers_for_its_parent() -> None:
    """F15, F23."""
    engine = await new_engine()
    async with worker(engine, "ruin", "work", processes=True, runners=1) as supervisor:
        for task in (lines.fork_away, lines.fork_away_async):
            assert await run(engine, task.call()) == "parent"
        assert await run(engine, lines.double.call(1)) == 2
        assert supervisor.crew.deaths == 0


async def test_a_task_that_writes_into_our_socket_loses_its_runner_and_nothing_else() -> None:
    engine = await new_engine()
    async with worker(engine, "ruin", "work", processes=True, runners=1):
        [id] = await send(engine, lines.write_into_every_file.call())
        await dead(engine, id, "poison: 3 deliveries never answered")
        assert await run(engine, lines.double.call(1)) == 2


async def test_the_innocent_beside_a_killer_succeed_and_the_killer_dies_alone(tmp_path: Path) -> None:
    """F15: all that ran are suspects, suspects run alone, so only the culprit can reach max_deliveries."""
    beside = tmp_path / "beside"
    beside.mkdir()
    engine = await new_engine()
    async with worker(engine, "ruin", processes=True, runners=1):
        calls = [lines.die_when_asked.call(str(tmp_path)), *(lines.innocent.call(str(beside)) for _ in range(3))]
        [killer, *innocents] = await send(engine, *calls)
        await until(lambda: len(started(tmp_path)) + len(started(beside)) == 4)
        (tmp_path / "go").touch()  # the innocent still run when the killer dies
        await until(lambda: len(started(beside)) > 3)
        (beside / "go").touch()
        await dead(engine, killer, "poison: 3 deliveries never answered")
        for id in innocents:
            assert await result(engine, id) == 2
            assert await outcomes(engine, id) == ["lost", "succeeded"]


async def test_where_one_lost_delivery_is_the_last_the_innocent_are_still_tried_alone(tmp_path: Path) -> None:
    beside = tmp_path / "beside"
    beside.mkdir()
    engine = await new_engine()
    async with worker(engine, "once", processes=True, runners=1) as supervisor:
        [killer, innocent] = await send(engine, lines.die_once.call(str(tmp_path)), lines.innocent_once.call(str(beside)))
        await until(lambda: len(started(tmp_path)) + len(started(beside)) == 2)
        (tmp_path / "go").touch()
        await until(lambda: supervisor.crew.deaths)
        (beside / "go").touch()
        await dead(engine, killer, "poison: 1 deliveries never answered")
        assert await result(engine, innocent) == 1


async def test_a_stuck_call_is_killed_at_its_deadline_and_its_neighbour_is_released_without_an_attempt(tmp_path: Path) -> None:
    """F17: a C sleep hears no request; the runner goes, the timeout counts as a failed attempt of the stuck one only."""
    engine = await new_engine()
    async with worker(engine, "short", "gate", processes=True, runners=1):
        [neighbour] = await send(engine, lines.gate.call(str(tmp_path)))
        pid = await until(lambda: runner_of(tmp_path, neighbour))
        [stuck] = await send(engine, lines.sleep_in_c.call())
        view = await ended(engine, stuck)
        assert view.failure is not None
        assert (view.state, view.failure.cause) == ("dead", Cause.TIMEOUT)
        assert "its runner was killed" in view.failure.text
        await until(lambda: runner_of(tmp_path, neighbour) not in (0, pid))
        (tmp_path / "go").touch()
        await result(engine, neighbour)
        after = await engine.get(neighbour)
        assert (after.failed, after.lost) == (0, 0)
        assert await outcomes(engine, neighbour) == ["release", "succeeded"]


async def test_a_task_that_swallows_its_cancellation_is_killed() -> None:
    """F17."""
    engine = await new_engine()
    async with worker(engine, "short", processes=True, runners=1):
        [id] = await send(engine, lines.swallow.call())
        view = await ended(engine, id)
        assert view.failure is not None
        assert view.failure.cause is Cause.TIMEOUT


async def test_a_task_that_holds_the_interpreter_lock_longer_than_its_lease_runs_once() -> None:
    """F7: the supervisor renews from another process."""
    engine = await new_engine()
    async with worker(engine, "lock", processes=True, runners=1, lease_s=0.5) as supervisor:
        [id] = await send(engine, lines.hold_the_lock.call())
        assert await result(engine, id) is True
        assert await outcomes(engine, id) == ["succeeded"]
        assert supervisor.settler.lost == 0


async def test_a_runner_is_replaced_after_max_tasks_and_no_task_is_lost() -> None:
    engine = await new_engine()
    async with worker(engine, "leak", processes=True, runners=2, max_tasks=20):
        ids = await send(engine, *(lines.my_runner.call() for _ in range(200)))
        pids = [await result(engine, id) for id in ids]
    assert max(pids.count(pid) for pid in pids) <= 20
    assert (await counts(engine, "leak")).done == 200


async def test_a_runner_above_its_memory_is_replaced_after_what_it_runs() -> None:
    """F16."""
    engine = await new_engine()
    async with worker(engine, "leak", processes=True, runners=1, queues={"leak": (1, 1)}, max_rss_bytes=200 << 20) as supervisor:
        first = {child.pid for child in supervisor.crew.children}
        for _ in range(30):
            pid = await run(engine, lines.leak.call(20))
            if pid not in first:
                break
        else:
            raise AssertionError("600 MiB in one runner of 200 MiB")
        assert supervisor.crew.deaths == 0
        await until(lambda: first.isdisjoint(child.pid for child in supervisor.crew.children))


async def test_process_tasks_have_a_runner_each_and_never_more_than_their_slots(tmp_path: Path) -> None:
    engine = await new_engine()
    async with worker(engine, "process", processes=True, queues={"process": (2, 2)}, runners=1):
        ids = await send(engine, *(lines.in_a_process_of_its_own.call(str(tmp_path)) for _ in range(4)))
        await until(lambda: len(list(tmp_path.glob("process-*"))) == 2)
        assert (await counts(engine, "process")).leased == 2
        (tmp_path / "go").touch()
        pids = [await result(engine, id) for id in ids]
        assert len(set(pids)) == 2


async def test_an_app_that_cannot_be_loaded_ends_the_worker_with_its_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_this_name\n")
    for app, words in ((f"{broken}:app", "nothing_of_this_name"), (f"{tmp_path}/missing.py:app", "no file")):
        engine = await new_engine()
        supervisor = Supervisor(_config(app), engine=engine)
        assert await supervisor.run() == 2
        assert words in supervisor.problem


async def test_a_queue_the_app_does_not_have_ends_the_worker_with_its_reason() -> None:
    engine = await new_engine()
    supervisor = Supervisor(_config(APP, app_dir=ROOT, queues={"wrok": (1, 1)}), engine=engine)
    assert await supervisor.run() == 2
    assert "'wrok' is not declared" in supervisor.problem


def _config(app: str, **options: Any) -> WorkerConfig:
    return WorkerConfig(app=app, **options)


async def test_when_the_worker_has_stopped_no_process_of_it_is_left() -> None:
    engine = await new_engine()
    async with worker(engine, "work", processes=True, runners=2) as supervisor:
        pids = [child.pid for child in supervisor.crew.children]
        assert len(pids) == 2
        assert await run(engine, lines.double.call(1)) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


async def test_new_code_is_loaded_and_broken_code_is_not(tmp_path: Path) -> None:
    source = tmp_path / "changing.py"
    source.write_text(CHANGING.replace("ANSWER", "1"))
    engine = await new_engine()
    app = load_app(f"{source}:app")
    await engine.declare(app.specs())
    async with worker(engine, "answer", processes=True, runners=1, app=f"{source}:app") as supervisor:
        assert await run(engine, app.tasks["changing.answer"].call()) == 1
        source.write_text("this is no Python")
        supervisor.reload()
        await until(lambda: len(supervisor.crew.children) == 2)
        await until(lambda: len(supervisor.crew.children) == 1)
        assert await run(engine, app.tasks["changing.answer"].call()) == 1
        source.write_text(CHANGING.replace("ANSWER", "2 * 1"))
        first = supervisor.crew.children[0].pid
        supervisor.reload()
        await until(lambda: [child.pid for child in supervisor.crew.children] not in ([], [first]) and len(supervisor.crew.children) == 1)
        assert await run(engine, app.tasks["changing.answer"].call()) == 2


CHANGING = """
from beltline import App
app = App()

@app.task(queue="answer")
async def answer() -> int:
    return ANSWER
"""


async def test_new_code_may_bring_new_queues(tmp_path: Path) -> None:
    source = tmp_path / "growing.py"
    source.write_text(CHANGING.replace("ANSWER", "1"))
    engine = await new_engine()
    async with worker(engine, processes=True, runners=2, queues={}, app=f"{source}:app") as supervisor:
        assert list(supervisor.dealing.intakes) == ["answer"]
        source.write_text(CHANGING.replace("ANSWER", "1") + '\n@app.task(queue="more")\ndef more(n: int) -> int:\n    return n + 1\n')
        supervisor.reload()
        await until(lambda: "more" in supervisor.dealing.intakes)
        app = load_app(f"{source}:app")
        assert await run(engine, app.tasks["growing.more"].call(4)) == 5
        assert await run(engine, app.tasks["growing.answer"].call()) == 1


async def test_poison_does_not_make_runners_start_faster_than_one_a_second_and_place() -> None:
    engine = await new_engine()
    async with worker(engine, "ruin", processes=True, runners=1) as supervisor:
        began = supervisor.crew.children[0].started_at
        ids = await send(engine, *(lines.die.call(1) for _ in range(4)))
        for id in ids:
            await dead(engine, id, "poison: 3 deliveries never answered")
        places = 1 + 2  # the post, and two lone runners
        assert supervisor.crew.deaths <= places * (time.monotonic() - began + 1)
