"""Several processes, threads and loops on one file: nothing acknowledged is lost, everybody gets his turn, a hint wakes the others, a fork is refused."""

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import apsw
import pytest

from beltline.core.errors import EngineUnavailable, HandleMisused
from beltline.core.outcome import Ack, Settled, Settlement
from beltline.core.views import MessageFilter
from beltline.engines.sqlite import SqliteEngine, file, turnstile
from tests.engines.sqlite_kit import BOUND_S, NEXT, WORK, child, message, opened, output, until

SENDER = """
import asyncio, sys
from uuid_utils import uuid7
from beltline.core.message import Message
from beltline.engines.sqlite import SqliteEngine

async def main(path, number, size):
    engine = SqliteEngine(path)
    await engine.open()
    sent = 0
    while sent < number:
        batch = [Message(id=uuid7().hex, queue="work", task="t", body=b"x" * 100) for _ in range(size)]
        await engine.send(batch)
        print(*(made.id for made in batch), sep="\\n", flush=True)
        sent += size
    await engine.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


@pytest.mark.parametrize("size", [1, 50])
async def test_a_killed_sender_loses_nothing_that_was_acknowledged(tmp_path: Path, size: int) -> None:
    path = tmp_path / "queue.db"
    async with opened(path) as engine:
        acknowledged: set[str] = set()
        for _ in range(3):
            sender = child(SENDER, path, 1_000_000, size)
            assert sender.stdout is not None
            for _ in range(60):
                acknowledged.add(sender.stdout.readline().strip())
            sender.kill()
            acknowledged.update(line.strip() for line in sender.stdout if len(line.strip()) == 32)
            sender.wait(BOUND_S)
            sender.communicate()
        there = set()
        while deliveries := await engine.receive([WORK], limit=1000, lease_s=60.0):
            there |= {delivery.message.id for delivery in deliveries}
        assert acknowledged <= there
        assert len(acknowledged) >= 180


async def test_the_first_word_of_a_killed_process_does_not_lock_out_the_others(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    async with opened(path) as engine:
        sender = child(SENDER, path, 1_000_000, 1)
        assert sender.stdout is not None
        sender.stdout.readline()
        sender.send_signal(signal.SIGKILL)
        sender.communicate(timeout=BOUND_S)
        await asyncio.wait_for(engine.send([message()]), BOUND_S)


async def test_four_processes_share_the_file_fairly(tmp_path: Path) -> None:
    """Each must get through a fixed amount of work while the others are at it: with SQLite's busy handler alone, one of them starves."""
    path = tmp_path / "queue.db"
    async with opened(path) as engine:
        senders = [child(SENDER, path, 100, 1) for _ in range(4)]
        outs = await asyncio.gather(*(asyncio.to_thread(output, sender) for sender in senders))
        ids = [line for out in outs for line in out.split()]
        assert len(set(ids)) == 400
        assert (await engine.counts(WORK)).ready == 400


async def test_a_send_of_another_process_wakes_a_receive_by_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The poll is made so slow that only the hint can bring it in time."""
    monkeypatch.setattr("beltline.engines.sqlite.writer.POLL_LEAST_S", 600.0)
    monkeypatch.setattr("beltline.engines.sqlite.writer.POLL_MOST_S", 600.0)
    path = tmp_path / "queue.db"
    async with opened(path) as engine:
        assert engine._shared is not None
        engine._shared.writer._poll_s = 600.0
        async with asyncio.timeout(BOUND_S), asyncio.TaskGroup() as group:
            waiting = group.create_task(engine.receive([WORK], limit=1, lease_s=30.0, wait_s=600.0))
            await until(lambda: bool(engine._shared and engine._shared.writer._waiting and engine._shared.writer._asleep))
            sender = child(SENDER, path, 1, 1)
            [delivery] = await waiting
        assert delivery.message.id == (await asyncio.to_thread(output, sender)).strip()


async def test_a_lost_hint_is_made_up_for_by_the_poll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beltline.engines.sqlite.bell.Bell.listen", lambda self: None)
    path = tmp_path / "queue.db"
    async with opened(path) as engine:
        async with asyncio.timeout(BOUND_S), asyncio.TaskGroup() as group:
            waiting = group.create_task(engine.receive([WORK], limit=1, lease_s=30.0, wait_s=BOUND_S))
            sender = child(SENDER, path, 1, 1)
            [delivery] = await waiting
        assert delivery.message.id == (await asyncio.to_thread(output, sender)).strip()


async def test_a_result_of_another_process_wakes_who_awaits_it(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    worker = """
import asyncio, sys
from beltline.core.outcome import Ack, Settlement
from beltline.engines.sqlite import SqliteEngine

async def main(path):
    engine = SqliteEngine(path)
    await engine.open()
    [delivery] = await engine.receive(["work"], limit=1, lease_s=30.0, wait_s=20.0)
    await engine.settle([Settlement(delivery.receipt, Ack(result=b"\\x07"))])
    await engine.close()

asyncio.run(main(sys.argv[1]))
"""
    async with opened(path) as engine:
        sent = message()
        await engine.send([sent])
        process = child(worker, path)
        async with asyncio.timeout(BOUND_S):
            view = None
            while view is None or view.state != "done":
                [view] = await engine.await_results([sent.id], wait_s=BOUND_S)
        assert view.result == b"\x07"
        output(process)


async def test_a_stopped_process_that_holds_the_lock_costs_a_clear_error_not_a_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "LOCK_WAIT_S", 0.2)
    path = tmp_path / "queue.db"
    holder = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    async with opened(path) as engine:
        process = child(holder, f"{path}-lock")
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        sent = message()
        with pytest.raises(EngineUnavailable, match="locked by another process") as refused:
            await asyncio.wait_for(engine.send([sent]), BOUND_S)
        assert refused.value.effect == "none"
        process.communicate(timeout=BOUND_S)
        async with asyncio.timeout(BOUND_S):
            assert (await engine.send([sent]))[0].new


async def test_a_lock_of_another_program_is_waited_for_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "LOCK_WAIT_S", 0.1)
    path = tmp_path / "queue.db"
    async with opened(path) as engine:
        assert engine._shared is not None
        ledger = engine._shared.writer._file.ledger
        assert ledger is not None
        ledger.db.set_busy_timeout(50)
        other = apsw.Connection(str(path))
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(EngineUnavailable, match="locked by another program") as refused:
            await asyncio.wait_for(engine.send([message()]), BOUND_S)
        assert refused.value.effect == "none"
        other.execute("ROLLBACK")
        other.close()
        assert (await engine.send([message()]))[0].new


def test_a_turnstile_lets_one_through_at_a_time(tmp_path: Path) -> None:
    gates = [turnstile.Turnstile(tmp_path / "lock") for _ in range(4)]
    inside: list[int] = []
    most: list[int] = []

    def pass_through(gate: turnstile.Turnstile) -> None:
        for _ in range(100):
            assert gate.enter(BOUND_S)
            inside.append(1)
            most.append(len(inside))
            inside.pop()
            gate.leave()

    threads = [threading.Thread(target=pass_through, args=(gate,)) for gate in gates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
        assert not thread.is_alive()
    assert max(most) == 1
    assert len(most) == 400
    for gate in gates:
        gate.close()


def test_who_gave_up_waiting_holds_nobody_up(tmp_path: Path) -> None:
    first, second, third = (turnstile.Turnstile(tmp_path / "lock") for _ in range(3))
    assert first.enter(1.0)
    assert not second.enter(0.05)
    first.leave()
    assert third.enter(BOUND_S)
    third.leave()
    assert second.enter(BOUND_S)
    second.leave()
    for gate in (first, second, third):
        gate.close()


# ------------------------------------------------------------------------------------------------------- threads and loops


async def test_engines_of_one_process_share_one_writer(tmp_path: Path) -> None:
    async with opened(tmp_path / "queue.db") as one, opened(tmp_path / "queue.db") as two:
        assert one._shared is two._shared
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(two.receive([WORK], limit=1, lease_s=30.0, wait_s=BOUND_S))
            await asyncio.sleep(0)
            await one.send([message()])
        [delivery] = waiting.result()
        assert await one.settle([Settlement(delivery.receipt, Ack())]) == [Settled.DONE]
        await one.close()
        assert (await two.counts(WORK)).done == 1


async def test_senders_and_receivers_in_loops_of_their_own_lose_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "queue.db") as engine:

        async def sender() -> list[str]:
            sent = []
            for _ in range(30):
                made = message()
                await engine.send([made])
                sent.append(made.id)
            return sent

        async def receiver() -> list[str]:
            taken: list[str] = []
            while deliveries := await engine.receive([WORK], limit=7, lease_s=30.0, wait_s=0.5):
                taken += [delivery.message.id for delivery in deliveries]
                assert set(await engine.settle([Settlement(delivery.receipt, Ack()) for delivery in deliveries])) == {Settled.DONE}
            return taken

        works = [asyncio.to_thread(asyncio.run, work()) for work in (sender, sender, sender, sender, receiver, receiver, receiver)]
        lists = await asyncio.wait_for(asyncio.gather(*works), BOUND_S)
        sent = sorted(id for ids in lists[:4] for id in ids)
        assert sorted(id for ids in lists[4:] for id in ids) == sent
        assert (await engine.counts(WORK)).done == 120


async def test_what_a_cancelled_receive_was_given_goes_back_without_an_attempt(tmp_path: Path) -> None:
    async with opened(tmp_path / "queue.db") as engine:
        for _ in range(20):  # the cancellation meets the answer at another point each time
            sent = message()
            waiting = asyncio.get_running_loop().create_task(engine.receive([WORK], limit=1, lease_s=600.0, wait_s=BOUND_S))
            await asyncio.sleep(0)
            await engine.send([sent])
            waiting.cancel()
            [answer] = await asyncio.gather(waiting, return_exceptions=True)
            if isinstance(answer, asyncio.CancelledError):
                async with asyncio.timeout(BOUND_S):
                    answer = await engine.receive([WORK], limit=1, lease_s=600.0, wait_s=BOUND_S)
            assert not isinstance(answer, BaseException)
            assert [(delivery.message.id, delivery.attempt) for delivery in answer] == [(sent.id, 1)]
            await engine.settle([Settlement(answer[0].receipt, Ack())])


async def test_closing_ends_a_receive_that_waits(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path / "queue.db")
    async with opened(tmp_path / "queue.db"):
        await engine.open()
        async with asyncio.timeout(BOUND_S), asyncio.TaskGroup() as group:
            waiting = group.create_task(engine.receive([WORK, NEXT], limit=1, lease_s=30.0, wait_s=600.0))
            await until(lambda: bool(engine._shared and engine._shared.writer._waiting))
            await engine.close()
        assert waiting.result() == []


async def test_an_engine_that_goes_on_is_not_hurt_when_another_is_closed_and_opened(tmp_path: Path) -> None:
    async with opened(tmp_path / "queue.db") as stays:

        async def come_and_go() -> None:
            for _ in range(10):
                async with opened(tmp_path / "queue.db") as guest:
                    await guest.send([message()])

        await asyncio.wait_for(asyncio.gather(*(asyncio.to_thread(asyncio.run, come_and_go()) for _ in range(3))), BOUND_S)
        assert (await stays.counts(WORK)).ready == 30


# ------------------------------------------------------------------------------------------------------------------- forks

FORKED = """
import asyncio, os, sys, warnings
from beltline.core.errors import HandleMisused
from beltline.core.queues import QueueSpec
from beltline.engines.sqlite import SqliteEngine
warnings.simplefilter("ignore")  # newer Pythons warn of a fork with threads: that is the point

async def use(engine):
    try:
        await engine.counts("work")
    except HandleMisused as error:
        return f"refused: {error.what}"
    return "used"

async def again(path):
    engine = SqliteEngine(path)
    try:
        await engine.open()
    except HandleMisused as error:
        return f"refused: {error.help}"
    await engine.close()
    return "opened"

async def parent(path):
    engine = SqliteEngine(path)
    await engine.open()
    await engine.declare([QueueSpec(name="work")])
    return engine

loop = asyncio.new_event_loop()
engine = loop.run_until_complete(parent(sys.argv[1]))
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    said = [asyncio.run(use(engine)), asyncio.run(again(sys.argv[1])), asyncio.run(again(sys.argv[1] + ".other"))]
    os.write(write, "\\n".join(said).encode())
    sys.exit(0)  # a full end of the interpreter: it must not close the parent's connection
os.waitpid(pid, 0)
print(os.read(read, 10000).decode())
from beltline.core.message import Message
loop.run_until_complete(engine.send([Message(id="0" * 31 + "7", queue="work", task="t", body=b"")]))
print(loop.run_until_complete(engine.counts("work")).ready)
loop.run_until_complete(engine.close())
loop.close()
"""


def test_a_fork_is_refused_and_the_parent_goes_on(tmp_path: Path) -> None:
    used, again, other, ready = output(child(FORKED, tmp_path / "queue.db")).splitlines()
    assert used == "refused: A SQLite engine was carried over a fork."
    assert "spawn or forkserver" in again
    assert other == "opened"
    assert ready == "1"
    db = apsw.Connection(str(tmp_path / "queue.db"))
    assert db.execute("PRAGMA integrity_check").get == "ok"
    db.close()


# ------------------------------------------------------------------------------------------------------------------- audit


async def test_the_audit_table_is_written_in_the_same_transactions_and_only_if_asked(tmp_path: Path) -> None:
    async with opened(tmp_path / "plain.db") as engine:
        await engine.send([message()])
    async with opened(tmp_path / "audited.db", audit=True) as engine:
        sent = message()
        await engine.send([sent])
        [delivery] = await engine.receive([WORK], limit=1, lease_s=30.0)
        await engine.settle([Settlement(delivery.receipt, Ack())])
        assert len((await engine.browse(MessageFilter())).messages) == 1
    rows = {}
    for name in ("plain", "audited"):
        db = apsw.Connection(str(tmp_path / f"{name}.db"))
        rows[name] = db.execute("SELECT move, hex(id), epoch FROM audit ORDER BY n").fetchall()
        db.close()
    key = sent.id.upper()
    assert rows == {"plain": [], "audited": [("send", key, 0), ("receive", key, 1), ("ack", key, 1)]}


def test_a_process_that_never_closes_ends_at_once(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from beltline.engines.sqlite import SqliteEngine
from beltline.core.queues import QueueSpec
engine = SqliteEngine(sys.argv[1])
asyncio.run(engine.open())
asyncio.run(engine.declare([QueueSpec(name="work")]))
print("done")
"""
    began = time.monotonic()
    assert output(child(program, tmp_path / "queue.db")) == "done\n"
    assert time.monotonic() - began < BOUND_S
    assert os.path.exists(tmp_path / "queue.db")  # noqa: PTH110


async def test_a_handle_of_another_process_is_refused_by_its_pid(tmp_path: Path) -> None:
    async with opened(tmp_path / "queue.db") as engine:
        engine._pid -= 1
        for call in (engine.open, engine.close, engine.queues):
            with pytest.raises(HandleMisused, match="fork"):
                await call()
        engine._pid += 1
