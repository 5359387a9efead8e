"""What is particular to transactions on SQLite: one file, one library, one writer, and connections that users have touched. The laws themselves are L44."""

import asyncio
import os
import signal
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from beltline.core.capabilities import Durability
from beltline.core.errors import EngineUnavailable, EngineUnsafe, HandleMisused
from beltline.core.outcome import Ack, Settled, Settlement
from beltline.engines.sqlite import SqliteEngine
from beltline.engines.sqlite.transactions import KEPT
from tests.engines.sqlite_kit import NEXT, WORK, child, message, opened, until


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[SqliteEngine]:
    async with opened(tmp_path / "queue.db", durability=Durability.OS) as engine:
        yield engine


@pytest.fixture
def mine(engine: SqliteEngine) -> Iterator[apsw.Connection]:
    """The user's own connection to the file, with a table of his."""
    db = apsw.Connection(str(engine.path))
    db.execute("CREATE TABLE mine(x)")
    yield db
    db.close(True)


async def ready(engine: SqliteEngine) -> int:
    return (await engine.counts(WORK)).ready


async def received(engine: SqliteEngine) -> list[str]:
    return [delivery.message.id for delivery in await engine.receive([WORK], limit=100, lease_s=60.0)]


async def test_the_users_row_and_the_message_come_together_or_not_at_all(engine: SqliteEngine, mine: apsw.Connection) -> None:
    kept, dropped = message(), message()
    for sent, end in ((dropped, "ROLLBACK"), (kept, "COMMIT")):
        mine.execute("BEGIN IMMEDIATE; INSERT INTO mine VALUES(1)")
        assert [each.new for each in engine.send_with(mine, [sent])] == [True]
        assert await ready(engine) == 0
        mine.execute(end)
    assert mine.execute("SELECT count(*) FROM mine").get == 1
    assert await received(engine) == [kept.id]


async def test_a_transaction_begun_without_immediate_will_do(engine: SqliteEngine, mine: apsw.Connection) -> None:
    with mine:  # apsw's own: a savepoint, which begins a deferred transaction
        mine.execute("SELECT count(*) FROM mine").fetchall()
        engine.send_with(mine, [message()])
    assert await ready(engine) == 1


async def test_counts_and_order_stay_exact_when_both_kinds_of_sends_alternate(engine: SqliteEngine, mine: apsw.Connection) -> None:
    expected = []
    for number in range(6):
        one = message(body=bytes(2000 * (number % 2) + 1), group="lane" if number > 3 else None)
        expected.append(one.id)
        if number % 2:
            await engine.send([one])
        else:
            mine.execute("BEGIN IMMEDIATE")
            engine.send_with(mine, [one])
            mine.execute("COMMIT")
    assert await ready(engine) == 6
    assert await received(engine) == expected[:5]  # the second of the lane waits for the first


async def test_a_waiting_receive_finds_what_was_committed_without_a_hint(engine: SqliteEngine, mine: apsw.Connection) -> None:
    waiting = asyncio.get_running_loop().create_task(engine.receive([WORK], limit=1, lease_s=60.0, wait_s=15.0))
    mine.execute("BEGIN IMMEDIATE")
    engine.send_with(mine, [message()])
    mine.execute("COMMIT")
    assert len(await waiting) == 1


async def test_what_its_owner_has_hung_into_the_connection_changes_nothing_and_stays(engine: SqliteEngine, mine: apsw.Connection) -> None:
    seen: list[str] = []
    mine.row_trace = lambda cursor, row: {"row": row}
    mine.exec_trace = lambda cursor, sql, bindings: seen.append(sql) or True
    mine.execute("BEGIN IMMEDIATE")
    engine.send_with(mine, [message(), message(NEXT, body=bytes(5000))])
    mine.execute("COMMIT")
    assert seen == ["BEGIN IMMEDIATE", "COMMIT"]
    assert mine.execute("SELECT 1").fetchall() == [{"row": (1,)}]
    assert await ready(engine) == 1


async def test_the_statement_cache_of_a_used_connection_is_fine(engine: SqliteEngine, mine: apsw.Connection) -> None:
    for _ in range(3):
        mine.execute("BEGIN IMMEDIATE")
        engine.send_with(mine, [message()])
        mine.execute("COMMIT")
    assert await ready(engine) == 3


async def test_a_send_that_fails_half_way_leaves_nothing_of_itself(engine: SqliteEngine, mine: apsw.Connection) -> None:
    mine.limit(apsw.SQLITE_LIMIT_LENGTH, 4000)  # the row of the message fits, its body beside it does not
    mine.execute("BEGIN IMMEDIATE; INSERT INTO mine VALUES(1)")
    with pytest.raises(EngineUnavailable) as raised:
        engine.send_with(mine, [message(body=bytes(5000))])
    assert raised.value.effect == "none"
    mine.execute("COMMIT")
    assert mine.execute("SELECT count(*) FROM mine").get == 1
    assert await ready(engine) == 0
    assert mine.execute("SELECT count(*) FROM message").get == 0


async def test_outside_a_transaction_a_send_is_refused(engine: SqliteEngine, mine: apsw.Connection) -> None:
    with pytest.raises(HandleMisused, match="not in a transaction"):
        engine.send_with(mine, [message()])
    assert await ready(engine) == 0


async def test_a_connection_to_another_file_is_refused(engine: SqliteEngine, tmp_path: Path) -> None:
    for place in (str(tmp_path / "other.db"), ":memory:"):
        other = apsw.Connection(place)
        other.execute("BEGIN")
        with pytest.raises(HandleMisused, match="the engine's file is"):
            engine.send_with(other, [message()])
        other.close()


async def test_a_link_to_the_file_is_the_file(engine: SqliteEngine, tmp_path: Path) -> None:
    folder = tmp_path / "link"
    folder.symlink_to(tmp_path)
    db = apsw.Connection(str(folder / "queue.db"))
    db.execute("BEGIN IMMEDIATE")
    engine.send_with(db, [message()])
    db.execute("COMMIT")
    db.close()
    assert await ready(engine) == 1


async def test_a_connection_of_the_standard_library_is_refused_with_the_reason(engine: SqliteEngine, tmp_path: Path) -> None:
    db = sqlite3.connect(":memory:")
    with pytest.raises(HandleMisused, match="Two SQLite libraries on one file"):
        engine.send_with(db, [message()])
    with pytest.raises(HandleMisused, match="Two SQLite libraries on one file"):
        engine.transaction(db)
    db.close()


async def test_what_stands_on_the_standard_library_is_refused_with_the_reason(engine: SqliteEngine) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    orm = pytest.importorskip("sqlalchemy.orm")
    made = sqlalchemy.create_engine("sqlite://")
    with made.connect() as connection, pytest.raises(HandleMisused, match="Two SQLite libraries on one file"):
        engine.send_with(connection, [message()])
    with orm.Session(made) as session, pytest.raises(HandleMisused, match="Two SQLite libraries on one file"):
        engine.send_with(session, [message()])
    made.dispose()


async def test_a_connection_that_may_forget_its_commits_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path / "queue.db", durability=Durability.DISK) as engine:
        db = apsw.Connection(str(engine.path))
        db.execute("PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE")
        with pytest.raises(EngineUnsafe, match="synchronous"):
            engine.send_with(db, [message()])
        db.execute("ROLLBACK; PRAGMA synchronous = FULL; BEGIN IMMEDIATE")
        engine.send_with(db, [message()])
        db.execute("COMMIT")
        db.close()
        assert await ready(engine) == 1


async def test_a_write_beside_the_transaction_is_refused_here_and_waits_elsewhere(engine: SqliteEngine) -> None:
    transaction = await engine.atransaction()
    with pytest.raises(HandleMisused, match="one writer at a time"):
        await engine.send([message()])
    with pytest.raises(HandleMisused, match="one writer at a time"):
        await engine.atransaction()
    elsewhere = threading.Thread(target=lambda: asyncio.run(_send(engine)))
    elsewhere.start()
    await transaction.commit()
    await asyncio.to_thread(elsewhere.join)
    await engine.send([message()])
    assert await ready(engine) == 2


async def _send(engine: SqliteEngine) -> None:
    await engine.send([message()])


async def test_transactions_of_many_threads_stand_in_line(engine: SqliteEngine, mine: apsw.Connection) -> None:
    mine.execute("INSERT INTO mine VALUES(0)")

    def add() -> None:
        transaction = engine.transaction()
        found = transaction.connection.execute("SELECT x FROM mine").get
        transaction.connection.execute("UPDATE mine SET x = ?", (found + 1,))
        transaction.commit()

    threads = [threading.Thread(target=add) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert mine.execute("SELECT x FROM mine").get == 12
    desks = engine._in_use().desks
    assert 0 < len(desks._idle) <= KEPT


async def test_a_connection_comes_back_clean_or_not_at_all(engine: SqliteEngine, mine: apsw.Connection) -> None:
    desks = engine._in_use().desks
    mine.execute("INSERT INTO mine VALUES(1), (2), (3)")
    first = engine.transaction()
    used = first.connection
    used.row_trace = lambda cursor, row: "spoiled"
    first.commit()
    again = engine.transaction()
    assert again.connection is used
    assert used.execute("SELECT 1").fetchall() == [(1,)]
    open_statement = used.execute("SELECT x FROM mine")
    next(open_statement)
    again.commit()
    assert desks._idle == []  # it would have kept the old snapshot
    third = engine.transaction()
    assert third.connection is not used
    third.rollback()


async def test_a_transaction_that_is_dropped_lets_go_of_the_file(engine: SqliteEngine, mine: apsw.Connection) -> None:
    transaction = engine.transaction()
    transaction.connection.execute("INSERT INTO mine VALUES(1)")
    del transaction
    await asyncio.to_thread(lambda: asyncio.run(_send(engine)))
    assert await ready(engine) == 1
    assert mine.execute("SELECT count(*) FROM mine").get == 0


async def test_a_begin_that_nobody_waits_for_any_more_is_taken_back(engine: SqliteEngine) -> None:
    first = engine.transaction()
    beginning = asyncio.get_running_loop().create_task(_begin(engine))
    await asyncio.sleep(0)
    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    first.rollback()
    await engine.send([message()])
    assert await ready(engine) == 1


async def _begin(engine: SqliteEngine) -> Any:
    from beltline.engines.sqlite import transactions

    transactions._held.set(None)  # this one is somebody else
    return await engine.atransaction()


async def test_after_close_and_after_its_end_a_transaction_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path / "queue.db") as engine:
        transaction = engine.transaction()
        transaction.commit()
        with pytest.raises(HandleMisused, match="is over"):
            _ = transaction.connection
        with pytest.raises(HandleMisused, match="is over"):
            transaction.commit()
    with pytest.raises(HandleMisused):
        engine.transaction()
    with pytest.raises(HandleMisused):
        engine.send_with(object(), [message()])


async def test_a_killed_process_takes_its_transaction_with_it(engine: SqliteEngine, mine: apsw.Connection) -> None:
    await engine.send([message()])
    [delivery] = await engine.receive([WORK], limit=1, lease_s=60.0)
    program = """
import sys, time, asyncio
from beltline.engines.sqlite import SqliteEngine
from beltline.core.message import Receipt
from beltline.core.outcome import Ack, Settlement
async def main():
    engine = SqliteEngine(sys.argv[1])
    await engine.open()
    transaction = engine.transaction()
    transaction.connection.execute("INSERT INTO mine VALUES(1)")
    print(transaction.settle(Settlement(Receipt(sys.argv[2], int(sys.argv[3])), Ack())).name, flush=True)
    time.sleep(60)
asyncio.run(main())
"""
    process = child(program, engine.path, delivery.receipt.id, delivery.receipt.epoch)
    try:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "DONE\n"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    await until(lambda: process.poll() is not None)
    assert await engine.settle([Settlement(delivery.receipt, Ack())]) == [Settled.DONE]
    assert mine.execute("SELECT count(*) FROM mine").get == 0
