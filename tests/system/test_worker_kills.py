"""Workers as an operator meets them: real processes on a SQLite file, signals, and kill -9. Numbers such as F2 are rows of the fault model."""

import asyncio
import random
import signal
from pathlib import Path

import psutil
import pytest

from tests.system.worker_kit import Host, hosts, store
from tests.worker import lines
from tests.worker.kit import counts, ended, outcomes, result, send, started, until

pytestmark = pytest.mark.timeout(120)


async def test_runners_die_with_their_supervisor_and_another_worker_finishes_their_work(tmp_path: Path) -> None:
    """F2: no orphan is left, and the lease brings the work back."""
    engine = await store(tmp_path)
    with hosts(tmp_path) as found:
        found.append(Host(tmp_path, queues={"gate": 4, "lock": 1}))
        await found[0].ready()
        ids = await send(engine, lines.gate.call(str(tmp_path)), lines.gate_in_thread.call(str(tmp_path)))
        await send(engine, lines.hold_the_lock.call())  # its runner cannot even see the socket close: the parent-death signal must do it
        await until(lambda: len(started(tmp_path)) == 2)
        runners = found[0].runners()
        assert len(runners) == 2
        found[0].process.kill()
        found[0].process.wait()
        await until(lambda: not any(running(process) for process in runners))
        (tmp_path / "go").touch()
        found.append(Host(tmp_path, queues={"gate": 4}))
        for id in ids:
            await result(engine, id)
            view = await engine.get(id)
            assert (view.failed, view.lost) == (0, 1)
    await engine.close()


def running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_four_hundred_tasks_survive_fourteen_kills_of_the_whole_worker(tmp_path: Path) -> None:
    """F5, and the target of guarantees.md section 9: 400 of 400."""
    engine = await store(tmp_path)
    draw = random.Random(7)
    ids = await send(engine, *(lines.pause_among_kills.call(number, 0.05) for number in range(400)))
    with hosts(tmp_path) as found:
        for _ in range(14):
            host = Host(tmp_path, queues={"murdered": 4}, lease_s=2.0)
            found.append(host)
            await host.ready()
            await asyncio.sleep(draw.uniform(0.0, 0.4))
            host.kill_all()
        found.append(Host(tmp_path, queues={"murdered": 4}))
        for number, id in enumerate(ids):
            assert await result(engine, id, within_s=60) == number
    seen = await counts(engine, "murdered")
    assert (seen.done, seen.dead, seen.ready, seen.leased, seen.delayed) == (400, 0, 0, 0, 0)
    await engine.close()


async def test_killed_runners_cost_their_tasks_one_delivery_each_and_nothing_is_lost(tmp_path: Path) -> None:
    """F1 at random points."""
    engine = await store(tmp_path)
    draw = random.Random(11)
    with hosts(tmp_path) as found:
        host = Host(tmp_path, queues={"murdered": 4})
        found.append(host)
        await host.ready()
        ids = await send(engine, *(lines.pause_among_kills.call(number, 0.02) for number in range(300)))
        for _ in range(6):
            await asyncio.sleep(draw.uniform(0.05, 0.3))
            alive = await until(host.runners)
            draw.choice(alive).kill()
        for number, id in enumerate(ids):
            assert await result(engine, id) == number
        for id in ids:
            seen = await outcomes(engine, id)
            assert seen[-1] == "succeeded"
            assert set(seen[:-1]) <= {"lost", "release"}
    await engine.close()


async def test_a_worker_that_slept_through_its_leases_changes_nothing_when_it_wakes(tmp_path: Path) -> None:
    """F6: its late settle is refused, the other worker's stands."""
    engine = await store(tmp_path)
    with hosts(tmp_path) as found:
        found.append(Host(tmp_path, queues={"gate": 1}))
        await found[0].ready()
        [id] = await send(engine, lines.gate.call(str(tmp_path)))
        await until(lambda: started(tmp_path))
        found[0].signal(signal.SIGSTOP)
        found.append(Host(tmp_path, queues={"gate": 1}))
        await until(lambda: len(started(tmp_path)) == 2)
        (tmp_path / "go").touch()  # the sleeping one's runner ends as well, and leaves its outcome in the socket
        await result(engine, id)
        found[0].signal(signal.SIGCONT)
        await until(lambda: "lease" in found[0].text and "lost" in found[0].text)
        assert await outcomes(engine, id) == ["lost", "succeeded"]
        found[0].signal(signal.SIGTERM)
        assert await found[0].exit_code() == 0
    await engine.close()


async def test_sigterm_under_load_ends_clean_and_spends_no_attempt(tmp_path: Path) -> None:
    """F21: three deploys in the middle of the work."""
    engine = await store(tmp_path)
    ids = await send(engine, *(lines.pause_then.call(number, 0.01) for number in range(400)))
    ids += await send(engine, *(lines.double.call(number) for number in range(2000)))
    with hosts(tmp_path) as found:
        for _ in range(3):
            host = Host(tmp_path)
            found.append(host)
            await host.ready()
            before = (await counts(engine, "work")).done
            await until(lambda before=before: more_done(engine, before))  # type: ignore[misc]
            host.signal(signal.SIGTERM)
            assert await host.exit_code() == 0
            assert (await counts(engine, "work")).leased == 0
        found.append(Host(tmp_path))
        for id in ids:
            await ended(engine, id)
    for id in ids:
        view = await engine.get(id)
        assert (view.outcome, view.failed, view.lost) == ("succeeded", 0, 0)
    await engine.close()


async def more_done(engine: object, than: int) -> bool:
    return (await counts(engine, "work")).done > than  # type: ignore[arg-type]


async def test_a_second_signal_stops_at_once_and_says_so_in_the_exit_code(tmp_path: Path) -> None:
    engine = await store(tmp_path)
    with hosts(tmp_path) as found:
        for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
            host = Host(tmp_path, queues={"gate": 1}, drain_s=600.0)
            found.append(host)
            await host.ready()
            [id] = await send(engine, lines.gate.call(str(tmp_path)))
            await until(lambda id=id: (tmp_path / f"started-{id}-1").exists())  # type: ignore[misc]
            host.signal(number)
            await until(lambda host=host: "draining" in host.text)  # type: ignore[misc]
            host.signal(number)
            assert await host.exit_code() == code
            view = await engine.get(id)
            assert (view.state, view.failed, view.lost) == ("ready", 0, 0)
            await engine.purge(view.message.queue)
    await engine.close()


async def test_an_interrupt_of_the_whole_terminal_drains_and_disturbs_no_task(tmp_path: Path) -> None:
    engine = await store(tmp_path)
    with hosts(tmp_path) as found:
        host = Host(tmp_path, queues={"gate": 1})
        found.append(host)
        await host.ready()
        [id] = await send(engine, lines.gate.call(str(tmp_path)))
        await until(lambda: started(tmp_path))
        for process in (*host.runners(), psutil.Process(host.process.pid)):
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM) if process.pid != host.process.pid else None
        await until(lambda: "draining" in host.text)
        (tmp_path / "go").touch()
        assert await host.exit_code() == 0
        assert await outcomes(engine, id) == ["succeeded"]
    await engine.close()


async def test_an_app_that_cannot_be_loaded_ends_the_worker_with_a_usage_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    with hosts(tmp_path) as found:
        found.append(Host(tmp_path, app=f"{broken}:app"))
        assert await found[0].exit_code() == 2
        assert "ZeroDivisionError" in found[0].text
