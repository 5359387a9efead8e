"""Slots and runners that grow and shrink while the worker works."""

import asyncio
import logging
import os
import signal
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beltline.core.names import QueueName
from beltline.worker import host
from beltline.worker.children import Child, Stage
from beltline.worker.config import WorkerConfig
from beltline.worker.frames import Hello
from beltline.worker.host import Memory
from beltline.worker.posts import spread
from beltline.worker.serve import serve
from tests.worker import lines
from tests.worker.kit import APP, ROOT, counts, ended, new_engine, outcomes, result, run, send, started, until, worker

GATE = QueueName("gate")
MIB = 1 << 20

both = pytest.mark.parametrize("processes", [pytest.param(True, id="processes"), pytest.param(False, id="in-process")])


class Room:
    """The memory of a host, as a test wants it."""

    def __init__(self, available_mib: int, total_mib: int = 4000) -> None:
        self.available_mib = available_mib
        self.total_mib = total_mib

    def __call__(self) -> Memory:
        return Memory(self.available_mib * MIB, self.total_mib * MIB)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# ---- growing and shrinking


@both
@pytest.mark.parametrize("task", [lines.gate, lines.gate_in_thread])
async def test_more_slots_run_more_at_once(tmp_path: Path, task: Any, processes: bool) -> None:
    engine = await new_engine()
    async with worker(engine, processes=processes, runners=2, queues={"gate": (1, 1)}) as supervisor:
        ids = await send(engine, *(task.call(str(tmp_path)) for _ in range(6)))
        await until(lambda: len(started(tmp_path)) == 1)
        assert supervisor.resize(GATE, 4) == 4
        await until(lambda: len(started(tmp_path)) == 4)
        assert supervisor.resizing.busy(GATE) == 4
        await until(lambda: len(supervisor.crew.posts) == (2 if processes else 1))
        (tmp_path / "go").touch()
        for id in ids:
            await result(engine, id)
            assert await outcomes(engine, id) == ["succeeded"]


@both
@pytest.mark.parametrize("task", [lines.gate, lines.gate_in_thread])
async def test_fewer_slots_stop_nothing_that_runs(tmp_path: Path, task: Any, processes: bool) -> None:
    first, later = tmp_path / "first", tmp_path / "later"
    first.mkdir()
    later.mkdir()
    engine = await new_engine()
    async with worker(engine, processes=processes, runners=2, queues={"gate": (8, 8)}) as supervisor:
        ids = await send(engine, *(task.call(str(first)) for _ in range(8)))
        await until(lambda: len(started(first)) == 8)
        waiting = await send(engine, *(task.call(str(later)) for _ in range(4)))
        assert supervisor.resize(GATE, 2) == 2
        assert supervisor.resizing.busy(GATE) == 8
        (first / "go").touch()
        for id in ids:
            await result(engine, id)
        await until(lambda: len(started(later)) == 2)
        seen = await counts(engine, "gate")
        assert (seen.leased, seen.ready) == (2, 2)
        (later / "go").touch()
        for id in [*ids, *waiting]:
            await result(engine, id)
            assert await outcomes(engine, id) == ["succeeded"]
        assert supervisor.crew.deaths == 0


async def test_a_runner_that_is_still_starting_is_told_once_what_its_share_is(capfd: pytest.CaptureFixture[str]) -> None:
    engine = await new_engine()
    async with worker(engine, processes=True, runners=3, queues={"work": (1, 1)}) as supervisor:
        work, heard = QueueName("work"), supervisor.on_hello

        def hear_and_grow(child: Child, hello: Hello) -> bool:
            asyncio.get_running_loop().call_soon(supervisor.resize, work, 6)  # it has been told to begin, and is not ready
            return heard(child, hello)

        supervisor.on_hello = hear_and_grow  # type: ignore[method-assign]
        supervisor.resize(work, 3)
        await until(lambda: [child.slots for child in supervisor.crew.children] == [2, 2, 2])
        assert [await run(engine, lines.double.call(n)) for n in range(20)] == [2 * n for n in range(20)]
        assert supervisor.crew.deaths == 0
    assert "Traceback" not in capfd.readouterr().err


async def test_a_runner_that_is_one_too_many_finishes_and_leaves(tmp_path: Path) -> None:
    engine = await new_engine()
    async with worker(engine, processes=True, runners=2, queues={"gate": (2, 2)}) as supervisor:
        await until(lambda: [child.stage for child in supervisor.crew.children] == [Stage.READY] * 2)
        ids = await send(engine, *(lines.gate.call(str(tmp_path)) for _ in range(2)))
        await until(lambda: len(started(tmp_path)) == 2)
        assert supervisor.resize(GATE, 1) == 1
        assert sorted(child.stage for child in supervisor.crew.children) == [Stage.READY, Stage.RETIRING]
        (tmp_path / "go").touch()
        assert len({await result(engine, id) for id in ids}) == 2
        await until(lambda: len(supervisor.crew.children) == 1)
        assert supervisor.crew.deaths == 0


async def test_what_is_received_while_the_slots_become_fewer_goes_back_untouched(tmp_path: Path) -> None:
    engine = await new_engine()
    async with worker(engine, processes=True, runners=1, queues={"gate": (4, 4)}) as supervisor:
        assert supervisor.resize(GATE, 1) == 1  # while the receive that waits has asked for four
        ids = await send(engine, *(lines.gate.call(str(tmp_path)) for _ in range(4)))

        async def one_is_held() -> bool:
            seen = await counts(engine, "gate")
            return (seen.leased, seen.ready) == (1, 3)

        await until(one_is_held)
        assert len(started(tmp_path)) <= 1
        (tmp_path / "go").touch()
        for id in ids:
            await result(engine, id)
            assert (await outcomes(engine, id))[-1] == "succeeded"
            assert set(await outcomes(engine, id)) <= {"release", "succeeded"}


async def test_a_queue_of_process_tasks_gets_a_runner_for_each_slot(tmp_path: Path) -> None:
    engine = await new_engine()
    async with worker(engine, processes=True, runners=1, queues={"process": (1, 1)}) as supervisor:
        ids = await send(engine, *(lines.in_a_process_of_its_own.call(str(tmp_path)) for _ in range(3)))
        await until(lambda: len(list(tmp_path.glob("process-*"))) == 1)
        assert supervisor.resize(QueueName("process"), 3) == 3
        await until(lambda: len(list(tmp_path.glob("process-*"))) == 3)
        assert supervisor.resizing.busy(QueueName("process")) == 3
        (tmp_path / "go").touch()
        assert len({await result(engine, id) for id in ids}) == 3


async def test_who_ran_on_slots_that_were_added_is_known_when_the_runner_dies(tmp_path: Path) -> None:
    """The marks of added slots are read like the others: nobody is forgotten, nobody is blamed who had not started."""
    engine = await new_engine()
    async with worker(engine, processes=True, runners=1, queues={"gate": (1, 1), "work": (1, 1)}) as supervisor:
        ids = await send(engine, *(lines.gate.call(str(tmp_path)) for _ in range(3)))
        await until(lambda: len(started(tmp_path)) == 1)
        supervisor.resize(GATE, 2)
        supervisor.resize(QueueName("work"), 2)
        supervisor.resize(GATE, 3)
        await until(lambda: len(started(tmp_path)) == 3)
        os.kill(supervisor.crew.children[0].pid, signal.SIGKILL)
        await until(lambda: len(started(tmp_path)) >= 5)  # suspects are tried alone, two at a time
        (tmp_path / "go").touch()
        for id in ids:
            await result(engine, id)
            assert await outcomes(engine, id) == ["lost", "succeeded"]


@both
async def test_fifty_resizes_under_load_lose_nothing_and_run_nothing_twice(tmp_path: Path, processes: bool) -> None:
    engine = await new_engine()
    random = Random(5)  # which of many interleavings
    tasks = (lines.once_each, lines.once_each_in_thread)
    pauses_s = [random.choice((0.0, 0.0, 0.001, 0.02)) for _ in range(1000)]
    calls = [random.choice(tasks).call(str(tmp_path), pause_s) for pause_s in pauses_s]
    queue = QueueName("once_each")
    async with worker(engine, processes=processes, runners=2, queues={"once_each": (2, 2)}) as supervisor:
        ids = await send(engine, *calls)
        done = 0

        async def a_few_more() -> int:
            now = (await counts(engine, "once_each")).done
            return now if now >= done + 10 else 0

        for _ in range(50):
            slots = random.choice((0, 1, 1, 2, 3, 4, 8, 12))
            assert supervisor.resize(queue, slots) == slots or not slots
            if slots:
                done = await until(a_few_more)
        supervisor.resize(queue, 4)
        views = [await ended(engine, id) for id in ids]
        assert {(view.state, view.outcome) for view in views} == {("done", "succeeded")}
        assert names(tmp_path) == set(ids)
        assert supervisor.crew.deaths == 0
        number, ran_s, squares_s2 = supervisor.resizing.service(queue)
        assert number == len(ids)
        assert ran_s >= sum(pauses_s)
        assert squares_s2 > 0


# ---- zero


@both
async def test_from_zero_the_first_message_starts_a_runner_and_peace_ends_it(processes: bool) -> None:
    engine = await new_engine()
    async with worker(engine, processes=processes, queues={"work": (1, 1)}) as supervisor:
        supervisor.resizing.rest_s = 0.1
        supervisor.resize(QueueName("work"), 0)
        for n in range(2):
            await until(lambda: not supervisor.crew.children)
            assert supervisor.resizing.size(QueueName("work")) == 0
            [id] = await send(engine, lines.double.call(n))
            assert await result(engine, id) == 2 * n
            assert await outcomes(engine, id) == ["succeeded"]
        await until(lambda: not supervisor.crew.children)
        assert supervisor.crew.deaths == 0


async def test_a_worker_may_be_told_to_leave_the_first_message_to_others() -> None:
    engine = await new_engine()
    async with worker(engine, queues={"work": (1, 1), "gate": (1, 1)}) as supervisor:
        assert supervisor.resizing.resize(QueueName("work"), 0, listen=False) == 0
        assert not supervisor.dealing.intakes[QueueName("work")].listening
        assert supervisor.resizing.resize(QueueName("work"), 0) == 0
        assert await run(engine, lines.double.call(4)) == 8


async def test_from_zero_a_process_task_gets_its_own_runner(tmp_path: Path) -> None:
    engine = await new_engine()
    (tmp_path / "go").touch()
    async with worker(engine, processes=True, queues={"process": (1, 1)}) as supervisor:
        supervisor.resize(QueueName("process"), 0)
        await until(lambda: not supervisor.crew.children)
        [id] = await send(engine, lines.in_a_process_of_its_own.call(str(tmp_path)))
        assert await result(engine, id) == int(next(iter(names(tmp_path) - {"go"})).removeprefix("process-"))


@both
async def test_a_queue_that_is_to_leave_all_to_others_gives_back_what_it_holds(processes: bool) -> None:
    engine, queue = await new_engine(), QueueName("work")
    async with worker(engine, processes=processes, runners=2, queues={"work": (4, 4)}) as supervisor:
        ids = await send(engine, *(lines.double.call(n) for n in range(3000)))

        async def under_way() -> bool:
            return (await counts(engine, "work")).done > 100

        async def all_is_given_back() -> bool:
            return not (await counts(engine, "work")).leased and not supervisor.crew.children

        await until(under_way)
        assert supervisor.resizing.resize(queue, 0, listen=False) == 0
        await until(all_is_given_back)
        assert (await counts(engine, "work")).ready
        supervisor.resize(queue, 4)
        assert [await result(engine, id) for id in ids] == [2 * n for n in range(3000)]


async def test_a_worker_without_runners_is_ready_and_drains_at_once(tmp_path: Path) -> None:
    stop = asyncio.Event()
    config = WorkerConfig(app=APP, app_dir=ROOT, url=f"sqlite:///{tmp_path}/q.db", queues={"work": (0, 2)}, dry_run=True)
    assert await serve(config, stop=stop, on_ready=lambda _: stop.set()) == 0


# ---- memory


async def test_without_free_memory_nothing_grows_until_there_is_some() -> None:
    engine, room = await new_engine(), Room(100)
    async with worker(engine, processes=True, runners=2, queues={"work": (1, 1)}, free=room) as supervisor:
        work = QueueName("work")
        assert supervisor.resize(work, 4) == 1
        assert supervisor.resizing.refusal() == "no free memory: 100 of the 4000 MiB of the host are free, more than 256 are needed"
        assert len(supervisor.crew.children) == 1
        assert await run(engine, lines.double.call(1)) == 2
        room.available_mib = 3000
        await until(lambda: supervisor.resizing.size(work) == 4 and len(supervisor.crew.posts) == 2)
        await until(lambda: not supervisor.resizing.refusal())


async def test_memory_for_slots_may_not_be_enough_for_another_runner() -> None:
    """The margin of a small host is smaller than a runner."""
    engine, room = await new_engine(), Room(12, total_mib=100)
    async with worker(engine, processes=True, runners=2, queues={"work": (1, 1)}, free=room) as supervisor:
        assert supervisor.resize(QueueName("work"), 4) == 4
        assert len(supervisor.crew.posts) == 1
        assert "12 of the 100 MiB" in supervisor.resizing.refusal()
        room.available_mib, room.total_mib = 3000, 4000
        await until(lambda: [child.stage for child in supervisor.crew.children] == [Stage.READY] * 2)
        assert [child.slots for child in supervisor.crew.children] == [2, 2]


async def test_a_host_without_memory_for_a_runner_leaves_the_message_to_others() -> None:
    engine, room = await new_engine(), Room(3000)
    async with worker(engine, processes=True, queues={"work": (1, 1)}, free=room) as supervisor:
        supervisor.resize(QueueName("work"), 0)
        await until(lambda: not supervisor.crew.children)
        room.available_mib = 0
        [id] = await send(engine, lines.double.call(1))
        intake = supervisor.dealing.intakes[QueueName("work")]

        async def given_back() -> bool:
            seen = await counts(engine, "work")
            return (seen.ready, seen.leased) == (1, 0) and not intake.listening and "no free memory" in supervisor.resizing.refusal()

        await until(given_back)
        assert not supervisor.crew.children
        room.available_mib = 3000
        assert await result(engine, id) == 2
        view = await engine.get(id)
        assert (view.failed, view.lost) == (0, 0)


# ---- what is told


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Whatever the log says of slots, at any level."""
    return [record.getMessage() for record in caplog.records if " slots" in record.getMessage()]


async def test_a_change_of_slots_is_one_line_that_says_from_to_and_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "beltline")
    engine, work = await new_engine(), QueueName("work")
    async with worker(engine, queues={"work": (1, 1)}) as supervisor:
        supervisor.resizing.resize(work, 3, why="the oldest waits 9 s")
        supervisor.resizing.resize(work, 3, why="the same again")
        supervisor.resize(work, 2)
        assert told(caplog) == ["queue work: from 1 to 3 slots: the oldest waits 9 s", "queue work: from 3 to 2 slots"]


async def test_what_was_refused_is_told_when_it_is_there_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "beltline")
    engine, room, work = await new_engine(), Room(100), QueueName("work")
    async with worker(engine, queues={"work": (1, 1)}, free=room) as supervisor:
        assert supervisor.resizing.resize(work, 4, why="arrivals") == 1
        assert told(caplog) == []
        room.available_mib = 3000
        await until(lambda: supervisor.resizing.size(work) == 4)
        assert told(caplog) == ["queue work: from 1 to 4 slots: arrivals"]


async def test_a_queue_that_is_woken_and_rests_says_so_in_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "beltline")
    engine = await new_engine()
    async with worker(engine, queues={"work": (1, 1)}) as supervisor:
        supervisor.resizing.rest_s = 0.1
        supervisor.resize(QueueName("work"), 0)
        assert await run(engine, lines.double.call(1)) == 2
        await until(lambda: len(told(caplog)) == 3)
    assert told(caplog)[1:] == ["queue work: from 0 to 1 slots: a message has come", "queue work: from 1 to 0 slots: no message for 0.1 s"]


async def test_the_heartbeat_tells_slots_ranges_service_and_refusal() -> None:
    engine, room = await new_engine(), Room(100)
    async with worker(engine, queues={"work": (1, 3)}, dry_run=True, free=room) as supervisor:
        assert await run(engine, lines.pause_then.call(1, 0.01)) == 1
        supervisor.resize(QueueName("work"), 3)
        assert supervisor.heartbeat is not None
        await supervisor.heartbeat.beat()
        [view] = await engine.workers()
        assert view.queues == {"work": 1}
        assert view.detail["ranges"] == {"work": [1, 3]} or view.detail["ranges"] == {"work": (1, 3)}
        assert "no free memory" in str(view.detail["refusal"])
        service = view.detail["service"]
        assert isinstance(service, dict)
        number, ran_s, squares_s2 = service["work"]
        assert number == 1
        assert squares_s2 == pytest.approx(ran_s**2)
        assert ran_s >= 0.01


# ---- how slots are spread

keys = st.sampled_from("abc")
numbers = st.dictionaries(keys, st.integers(0, 12))


@given(st.lists(numbers, min_size=1, max_size=5), numbers)
def test_slots_are_spread_evenly_and_completely(shares: list[dict[str, int]], wanted: dict[str, int]) -> None:
    new = spread(shares, wanted, [{} for _ in shares])
    assert {key: sum(share.get(key, 0) for share in new) for key in wanted} == wanted
    loads = [sum(share.values()) for share in new]
    assert max(loads) - min(loads) <= 1
    for key in wanted:
        slots = [share.get(key, 0) for share in new]
        assert min(slots) >= 0
        assert max(slots) - min(slots) <= 1
    assert spread(new, wanted, [{} for _ in shares]) == new


@given(st.integers(1, 5), numbers, keys)
def test_one_slot_more_moves_at_most_two_others(posts: int, wanted: dict[str, int], key: str) -> None:
    before = spread([{} for _ in range(posts)], wanted, [{} for _ in range(posts)])
    after = spread(before, {**wanted, key: wanted.get(key, 0) + 1}, [{} for _ in range(posts)])
    assert sum(abs(b.get(k, 0) - a.get(k, 0)) for b, a in zip(before, after, strict=True) for k in "abc") <= 5


def test_a_free_slot_is_taken_away_before_one_that_runs_something() -> None:
    assert spread([{"a": 2}, {"a": 2}], {"a": 3}, [{"a": 1}, {"a": 0}]) == [{"a": 1}, {"a": 2}]


# ---- the host


def test_the_tightest_bound_of_all_control_groups_holds(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("4:memory:/elsewhere\n0::/slice/worker\n")
    inner = tmp_path / "groups" / "slice" / "worker"
    inner.mkdir(parents=True)
    for group, most, used in ((inner.parent, 512 * MIB, 500 * MIB), (inner, 600 * MIB, 100 * MIB)):
        (group / "memory.max").write_text(f"{most}\n")
        (group / "memory.current").write_text(f"{used}\n")
    (inner.parent / "memory.stat").write_text(f"anon 1\ninactive_file {20 * MIB}\nactive_file 5\n")
    (inner.parent / "cpu.max").write_text("max 100000\n")
    (inner / "cpu.max").write_text("50000 100000\n")
    assert host.memory(own_group=own, groups=tmp_path / "groups") == Memory(32 * MIB, 512 * MIB, "its control group")
    assert host.processors(own_group=own, groups=tmp_path / "groups") == 1


def test_a_host_without_control_groups_has_the_memory_it_has(tmp_path: Path) -> None:
    found = host.memory(own_group=tmp_path / "none", groups=tmp_path)
    assert found.source == "the host"
    assert 0 < found.available_bytes <= found.total_bytes
    assert host.processors(own_group=tmp_path / "none", groups=tmp_path) >= 1
