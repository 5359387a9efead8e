"""Storage that fails: what the caller is told, what is stored, and that it goes on afterwards. Real limits and real disks, nothing simulated inside SQLite."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from beltline.core.errors import BeltlineError, EngineUnavailable, HandleMisused, QueueFull
from beltline.core.outcome import Ack, Settlement
from beltline.core.queues import QueueSpec
from beltline.engines.sqlite import SqliteEngine, trouble
from beltline.engines.sqlite.operations import Operation
from tests.engines.sqlite_kit import BOUND_S, WORK, child, message, opened, output, until

RAISED = {  # how each error of the table is really raised by this SQLite
    apsw.FullError: 13,
    apsw.IOError: 10,
    apsw.CorruptError: 11,
    apsw.NotADBError: 26,
    apsw.CantOpenError: 14,
    apsw.NoMemError: 7,
    apsw.ReadOnlyError: 8,
    apsw.PermissionsError: 3,
    apsw.ProtocolError: 15,
    apsw.BusyError: 5,
    apsw.LockedError: 6,
    apsw.InterruptError: 9,
    apsw.TooBigError: 18,
}


def test_every_entry_of_the_table_is_tested() -> None:
    assert set(RAISED) == set(trouble.TABLE)


@pytest.mark.parametrize("kind", trouble.TABLE, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("committing", "effect"), [(False, "none"), (True, "unknown")])
def test_an_error_is_explained_with_its_effect_and_a_cure(kind: type[apsw.Error], committing: bool, effect: str) -> None:
    error = apsw.exception_for(RAISED[kind])
    assert isinstance(error, kind)
    found = trouble.explain(error, "/data/queue.db", committing=committing)
    assert isinstance(found, EngineUnavailable)
    assert found.effect == effect
    assert "/data/queue.db" in found.what
    assert trouble.TABLE[kind].what in found.what
    assert found.help


def test_an_extended_error_means_what_its_family_means() -> None:
    assert trouble.meaning(apsw.exception_for(10 | 4 << 8)) is trouble.TABLE[apsw.IOError]  # IOERR_FSYNC
    assert trouble.meaning(apsw.exception_for(5 | 2 << 8)) is trouble.TABLE[apsw.BusyError]  # BUSY_SNAPSHOT


def test_an_error_nobody_foresaw_poisons_and_says_whose_fault_it_is() -> None:
    error = apsw.exception_for(1)
    assert trouble.meaning(error) is trouble.OTHER
    assert trouble.OTHER.poisons
    assert "fault of Beltline" in str(trouble.explain(error, "q", committing=False))


# ------------------------------------------------------------------------------------------- one operation among others


async def test_a_refused_operation_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    async with opened(tmp_path / "queue.db") as engine:
        await engine.declare([QueueSpec(name=WORK, max_backlog=3)])
        answers = await asyncio.gather(*(engine.send([message() for _ in range(size)]) for size in (2, 2, 1, 5)), return_exceptions=True)
        assert [isinstance(each, QueueFull) for each in answers] == [False, True, False, True]
        assert (await engine.counts(WORK)).ready == 3


async def test_an_operation_that_fails_half_way_takes_nobody_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "queue.db") as engine:
        sent = [message() for _ in range(3)]

        def broken(tx: object) -> None:
            tx.sql("UPDATE tally SET ready = 1000")  # type: ignore[attr-defined]
            raise ZeroDivisionError

        async with asyncio.timeout(BOUND_S):
            answers = await asyncio.gather(
                engine.send(sent[:1]), engine._write(broken), engine.send(sent[1:]), engine.counts(WORK), return_exceptions=True
            )
        assert isinstance(answers[1], ZeroDivisionError)
        assert (await engine.counts(WORK)).ready == 3
        assert [delivery.message.id for delivery in await engine.receive([WORK], limit=9, lease_s=30.0)] == [made.id for made in sent]


async def test_a_fault_of_ours_is_an_answer_and_not_the_end_of_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path / "queue.db") as engine:
        with monkeypatch.context() as patch:
            patch.setattr("beltline.engines.sqlite.ledger.Ledger.flush", lambda self: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await asyncio.wait_for(engine.send([message()]), BOUND_S)
        assert (await asyncio.wait_for(engine.send([message()]), BOUND_S))[0].new
        assert (await engine.counts(WORK)).ready == 1


async def test_what_comes_after_the_end_is_answered(tmp_path: Path) -> None:
    async with opened(tmp_path / "queue.db") as engine:
        shared = engine._shared
        assert shared is not None
    late = Operation(lambda tx: 1, engine, engine._time)
    shared.writer.submit(late)
    with pytest.raises(HandleMisused):
        await asyncio.wait_for(late.answer(), BOUND_S)


# --------------------------------------------------------------------------------------------------------- I/O errors

LIMITED = """
import asyncio, os, resource, sys
from uuid_utils import uuid7
from beltline.core.errors import EngineUnavailable
from beltline.core.message import Message
from beltline.core.queues import QueueSpec
from beltline.engines.sqlite import SqliteEngine

def made(size=3000):
    return Message(id=uuid7().hex, queue="work", task="t", body=os.urandom(size))

async def main(path):
    engine = SqliteEngine(path)
    await engine.open()
    await engine.declare([QueueSpec(name="work")])
    await engine.send([made()])
    # The next write beyond this size fails (EFBIG): for SQLite an I/O error in the middle of a commit.
    limit = os.stat(path + "-wal").st_size + 20_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    told = []
    sure, unsure = 1, []
    for _ in range(40):
        one = made()
        try:
            await engine.send([one])
            sure += 1
        except EngineUnavailable as error:
            unsure.append(one)
            told.append(error.effect)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await asyncio.sleep(0.6)  # it is not opened again before a pause is over
    again = await engine.send(unsure)
    ready = (await engine.counts("work")).ready
    print(sorted(set(told)), len(told) > 0, sure, len(unsure), ready, ready == sure + len(unsure), {a.admission.name for a in again} <= {"STORED", "SAME_ID"})
    await engine.close()

asyncio.run(main(sys.argv[1]))
"""


def test_after_an_io_error_nothing_is_said_to_be_stored_until_the_file_was_checked(tmp_path: Path) -> None:
    effects, failed, _, _, _, conserved, known = re.match(
        r"(\[.*?\]) (\w+) (\d+) (\d+) (\d+) (\w+) (\w+)", output(child(LIMITED, str(tmp_path / "queue.db")))
    ).groups()  # type: ignore[union-attr]
    assert "unknown" in effects
    assert (failed, conserved, known) == ("True", "True", "True")
    db = apsw.Connection(str(tmp_path / "queue.db"))
    assert db.execute("PRAGMA integrity_check").get == "ok"
    db.close()


SYNCED = """
import asyncio, sys
from uuid_utils import uuid7
from beltline.core.errors import EngineUnavailable
from beltline.core.message import Message
from beltline.core.queues import QueueSpec
from beltline.engines.sqlite import SqliteEngine

async def main(path):
    engine = SqliteEngine(path)
    await engine.open()
    await engine.declare([QueueSpec(name="work")])
    print("open", flush=True)
    for _ in range(60):
        one = Message(id=uuid7().hex, queue="work", task="t", body=b"")
        try:
            await engine.send([one])
            print("ok", one.id, flush=True)
        except EngineUnavailable as error:
            print(error.effect, one.id, flush=True)
            await asyncio.sleep(0.1)
    await engine.close()

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: its fault injection is what this needs")
def test_a_failed_fsync_is_never_followed_by_a_false_ok(tmp_path: Path) -> None:
    """Each tenth fdatasync fails. What was said to be stored is there; what was not may be, and repeating its id is safe."""
    path = tmp_path / "queue.db"
    run = ["strace", "-f", "-q", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=10+10"]
    done = subprocess.run([*run, sys.executable, "-c", SYNCED, str(path)], capture_output=True, text=True, timeout=BOUND_S, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    said = {id: word for word, id in lines[1:]}
    assert "unknown" in said.values()
    assert list(said.values()).count("ok") > 20
    db = apsw.Connection(str(path))
    assert db.execute("PRAGMA integrity_check").get == "ok"
    stored = {row[0].hex() for row in db.execute("SELECT id FROM message")}
    db.close()
    assert {id for id, word in said.items() if word == "ok"} <= stored
    assert not {id for id, word in said.items() if word == "none"} & stored


# ----------------------------------------------------------------------------------------------------------- full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """8 MiB, and gone afterwards. Only root can mount one."""
    point = tmp_path / "disk"
    point.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(point)], capture_output=True, timeout=BOUND_S, check=False)
    if mounted.returncode != 0:
        pytest.skip("a small disk cannot be mounted here (not root)")
    yield point
    subprocess.run(["umount", str(point)], check=True, timeout=BOUND_S)


async def test_a_full_disk_refuses_sends_and_lets_the_line_run_empty(small_disk: Path) -> None:
    path = small_disk / "queue.db"
    async with opened(path) as engine:
        stored: set[str] = set()
        unsure: set[str] = set()
        refused: EngineUnavailable | None = None
        async with asyncio.timeout(BOUND_S):
            while refused is None:
                batch = [message(body=os.urandom(1000)) for _ in range(50)]
                try:
                    await engine.send(batch)
                    stored |= {made.id for made in batch}
                except EngineUnavailable as error:
                    refused = error
                    unsure |= {made.id for made in batch}
            assert "no space" in refused.what
            assert "Free some space" in refused.help
            with pytest.raises(EngineUnavailable) as again:
                await engine.send([message()])
            assert again.value.effect == "none"
            seen: set[str] = set()
            while deliveries := await engine.receive([WORK], limit=100, lease_s=60.0):
                seen |= {delivery.message.id for delivery in deliveries}
                await engine.settle([Settlement(delivery.receipt, Ack()) for delivery in deliveries])
        assert stored <= seen <= stored | unsure
        assert (await engine.counts(WORK)).done == len(seen)


async def test_sends_go_on_once_there_is_space_again(small_disk: Path) -> None:
    filler = small_disk / "filler"
    async with opened(small_disk / "queue.db") as engine:
        with filler.open("wb", buffering=0) as file:  # a buffer would fail once more when it is closed
            try:
                while True:
                    file.write(bytes(65536))
            except OSError:
                pass
        failed: list[BeltlineError] = []
        async with asyncio.timeout(BOUND_S):
            while not failed:
                try:
                    await engine.send([message(body=os.urandom(1000)) for _ in range(50)])
                except EngineUnavailable as error:
                    failed.append(error)
            filler.unlink()
            sent = message()
            while True:
                try:
                    await engine.send([sent])
                    break
                except EngineUnavailable:
                    await asyncio.sleep(0.1)
        assert sent.id in {view.message.id for view in (await engine.browse(_all(), limit=10_000)).messages}
        await until(lambda: (small_disk / "queue.db-ballast").exists())


def _all():  # type: ignore[no-untyped-def]
    from beltline.core.views import MessageFilter

    return MessageFilter()


async def test_a_disk_too_full_for_a_new_queue_is_named(small_disk: Path) -> None:
    with (small_disk / "filler").open("wb") as file:
        try:
            while True:
                file.write(bytes(65536))
                file.flush()
        except OSError:
            pass
    with pytest.raises(EngineUnavailable) as refused:
        await SqliteEngine(small_disk / "queue.db").open()
    assert refused.value.effect == "none"
    assert not (small_disk / "queue.db").exists()


# ---------------------------------------------------------------------------------------------------------- big bodies


@pytest.mark.parametrize("size", [0, 1, 1499, 1500, 1501, 4096, 100_000, 1024 * 1024])
async def test_bodies_and_results_of_every_size_come_back_whole(tmp_path: Path, size: int) -> None:
    async with opened(tmp_path / "queue.db") as engine:
        sent = message(body=os.urandom(size))
        await engine.send([sent, message()])
        deliveries = await engine.receive([WORK], limit=2, lease_s=30.0)
        assert deliveries[0].message == sent
        result = os.urandom(size)
        await engine.settle([Settlement(delivery.receipt, Ack(result=result)) for delivery in deliveries])
        assert (await engine.get(sent.id)).message.body == sent.body
        [view] = await engine.results([sent.id])
        assert view is not None
        assert view.result == result
        await engine.retain(history_s=0.0)


async def test_a_large_body_is_dropped_with_its_message(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    async with opened(path) as engine:
        await engine.send([message(body=bytes(50_000))])
        [delivery] = await engine.receive([WORK], limit=1, lease_s=30.0)
        await engine.settle([Settlement(delivery.receipt, Ack(result=bytes(50_000)))])
        await asyncio.sleep(0.01)  # history_s 0 drops what ended before now: one tick of the engine's clock
        assert await engine.retain(history_s=0.0) == 1
    db = apsw.Connection(str(path))
    assert db.execute("SELECT count(*) FROM bulk").get == 0
    db.close()
