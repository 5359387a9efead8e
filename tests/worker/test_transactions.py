"""A task's own writes and its settle in one transaction, on the SQLite engine: in-process runners first, then processes that are killed."""

import asyncio
import random
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import psutil
import pytest

from beltline import App, Cancel, Retry, Snooze, TaskFailed, current
from beltline.core.errors import EngineUnavailable, HandleMisused, Unsupported, UsageError
from beltline.core.names import MessageId
from beltline.engines.sqlite import SqliteEngine
from beltline.engines.sqlite.transactions import SqliteTransaction
from beltline.worker.serve import Worker
from tests.system.worker_kit import Host, hosts
from tests.worker import atomic_lines
from tests.worker.kit import until

pytestmark = pytest.mark.timeout(120)
TABLE = "CREATE TABLE IF NOT EXISTS effect(id TEXT, what TEXT)"


def effects(path: Path) -> list[tuple[str, str]]:
    db = apsw.Connection(str(path))
    try:
        return [(str(id), str(what)) for id, what in db.execute("SELECT id, what FROM effect ORDER BY rowid")]
    finally:
        db.close()


def write(what: str) -> None:
    """For plain tasks."""
    current().transaction().execute("INSERT INTO effect VALUES(?, ?)", (current().message_id, what))


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    app = App(f"sqlite:///{tmp_path / 'store.db'}?durability=os")
    async with app:
        db = apsw.Connection(str(tmp_path / "store.db"))
        db.execute(TABLE)
        db.close()
        yield app
    app.close()


@asynccontextmanager
async def working(app: App, **options: Any) -> AsyncIterator[Worker]:
    async with Worker(app, in_process=True, **{"grace_s": 2.0, **options}) as worker:
        yield worker


async def test_what_a_task_wrote_and_its_settle_come_together(app: App, tmp_path: Path) -> None:
    @app.task
    def book(what: str) -> str:
        write(what)
        write("again")
        return what.upper()

    async with working(app) as worker:
        handle = await book.asend("flight")
        assert await handle.aresult(timeout=20) == "FLIGHT"
        await until(lambda: worker.supervisor.settler.settled == 1)  # type: ignore[union-attr]  # the store knows before the supervisor does
    assert effects(tmp_path / "store.db") == [(handle.id, "flight"), (handle.id, "again")]


async def test_an_async_task_has_the_same(app: App, tmp_path: Path) -> None:
    @app.task
    async def book(what: str) -> int:
        connection = await current().atransaction()
        assert await current().atransaction() is connection
        connection.execute("INSERT INTO effect VALUES(?, ?)", (current().message_id, what))
        await asyncio.sleep(0)
        return len(what)

    async with working(app):
        handle = await book.asend("flight")
        assert await handle.aresult(timeout=20) == 6
    assert effects(tmp_path / "store.db") == [(handle.id, "flight")]


@pytest.mark.parametrize("end", ["raise", "snooze", "cancel"])
async def test_what_does_not_return_leaves_nothing(app: App, tmp_path: Path, end: str) -> None:
    ends: dict[str, BaseException] = {"raise": ValueError("no"), "snooze": Snooze(3600), "cancel": Cancel("not today")}

    @app.task(retry=False)
    def book() -> None:
        write("never")
        raise ends[end]

    async with working(app):
        handle = await book.asend()
        expected = {"raise": "dead", "snooze": "delayed", "cancel": "cancelled"}[end]

        async def ended() -> bool:
            return await handle.astatus() == expected

        await until(ended)
    assert effects(tmp_path / "store.db") == []


async def test_a_retry_writes_once(app: App, tmp_path: Path) -> None:
    @app.task(retry=Retry(attempts=3, base_s=0.0))
    def book() -> int:
        write(f"attempt {current().attempt}")
        if current().attempt < 3:
            raise ValueError("not yet")
        return current().attempt

    async with working(app):
        handle = await book.asend()
        assert await handle.aresult(timeout=20) == 3
    assert effects(tmp_path / "store.db") == [(handle.id, "attempt 3")]


async def test_a_task_over_its_time_leaves_nothing(app: App, tmp_path: Path) -> None:
    @app.task(retry=False, timeout=0.2)
    def spin() -> None:
        write("never")
        while True:
            time.sleep(0.001)

    @app.task(retry=False, timeout=0.2)
    async def hang() -> None:
        (await current().atransaction()).execute("INSERT INTO effect VALUES('x', 'never')")
        await asyncio.Event().wait()

    async with working(app):
        for task in (spin, hang):
            with pytest.raises(TaskFailed):
                await (await task.asend()).aresult(timeout=20)
    assert effects(tmp_path / "store.db") == []


def overtake(path: Path) -> None:
    """Leave what a hand-out to somebody else leaves, without taking part in the race for it."""
    db = apsw.Connection(str(path))
    db.set_busy_timeout(10_000)  # the worker writes too
    try:
        db.execute("BEGIN IMMEDIATE; UPDATE message SET epoch = epoch + 1 WHERE state = 2; COMMIT")
    finally:
        db.close(True)


async def test_a_lost_lease_takes_the_writes_with_it(app: App, tmp_path: Path) -> None:
    """The message has gone to another worker meanwhile: neither its settle nor what belongs to it may happen here."""
    entered, overtaken = threading.Event(), threading.Event()

    @app.task
    def book() -> str:
        entered.set()
        assert overtaken.wait(20)
        write("late")
        return "late"

    async with working(app) as worker:
        handle = await book.asend()
        try:
            assert await asyncio.to_thread(entered.wait, 20)
            overtake(tmp_path / "store.db")
        finally:
            overtaken.set()
        await until(lambda: worker.supervisor.settler.lost)  # type: ignore[union-attr]
        assert await handle.astatus() == "leased"
    assert effects(tmp_path / "store.db") == []


async def test_a_chain_goes_on_from_a_stage_that_settles_itself(app: App, tmp_path: Path) -> None:
    @app.task
    def cut(text: str) -> list[str]:
        write("cut")
        return text.split()

    @app.task
    def shout(word: str) -> str:
        write(word)
        return word.upper()

    @app.task
    async def join(words: list[str]) -> str:
        (await current().atransaction()).execute("INSERT INTO effect VALUES('', 'join')")
        return " ".join(words)

    line = app.chain("shouting", cut >> shout.each() >> join.gather())
    async with working(app):
        assert await (await line.asend("a b c")).aresult(timeout=20) == "A B C"
    assert sorted(what for _, what in effects(tmp_path / "store.db")) == ["a", "b", "c", "cut", "join"]


async def test_messages_sent_in_it_exist_with_it(app: App, tmp_path: Path) -> None:
    @app.task
    def mail(to: str) -> str:
        return to

    @app.task(retry=False)
    def order(ok: bool) -> str:
        connection = current().transaction()
        sent = mail.with_options(connection=connection).send("ada")
        if not ok:
            raise ValueError("no")
        return sent.id

    async with working(app):
        with pytest.raises(TaskFailed):
            await (await order.asend(False)).aresult(timeout=20)
        id = await (await order.asend(True)).aresult(timeout=20)
        assert await app.handle(id).aresult(timeout=20) == "ada"
    engine = await app.ready()
    assert (await engine.counts(mail.queue)).done == 1


async def test_a_send_beside_the_transaction_is_refused_at_once_instead_of_waiting_for_itself(app: App) -> None:
    @app.task(retry=False)
    def mail() -> None: ...

    @app.task(retry=False)
    def order() -> str:
        current().transaction()
        with pytest.raises(HandleMisused, match="one writer") as raised:
            mail.send()
        return raised.value.help

    async with working(app):
        assert "connection=" in await (await order.asend()).aresult(timeout=20)


async def test_a_task_that_commits_by_itself_is_told(app: App) -> None:
    @app.task(retry=False)
    def order() -> None:
        current().transaction().execute("COMMIT")

    async with working(app):
        with pytest.raises(TaskFailed, match="ended by the task's own code"):
            await (await order.asend()).aresult(timeout=20)


async def test_the_wrong_call_for_the_kind_of_task_says_which_is_right(app: App) -> None:
    @app.task(retry=False)
    async def order() -> str:
        with pytest.raises(UsageError) as raised:
            current().transaction()
        return raised.value.help

    @app.task(retry=False)
    def plain() -> str:
        with pytest.raises(UsageError) as raised:
            asyncio.run(current().atransaction())
        return raised.value.help

    async with working(app):
        assert "atransaction" in await (await order.asend()).aresult(timeout=20)
        assert "transaction()" in await (await plain.asend()).aresult(timeout=20)


async def test_the_users_own_connection_to_the_file_will_do(app: App, tmp_path: Path) -> None:
    @app.task
    def book() -> bool:
        mine = apsw.Connection(str(tmp_path / "store.db"))
        mine.set_busy_timeout(10_000)
        connection = current().transaction(mine)
        connection.execute("INSERT INTO effect VALUES(?, 'mine')", (current().message_id,))
        return connection is mine

    @app.task
    def wrong() -> str:
        with pytest.raises(HandleMisused) as raised:
            current().transaction(sqlite3.connect(tmp_path / "store.db"))
        return str(raised.value)

    async with working(app):
        handle = await book.asend()
        assert await handle.aresult(timeout=20) is True
        assert "another SQLite library" in await (await wrong.asend()).aresult(timeout=20)
    assert effects(tmp_path / "store.db") == [(handle.id, "mine")]


async def test_an_engine_that_has_no_transactions_says_who_has() -> None:
    app = App("memory://")

    @app.task(retry=False)
    def book() -> str:
        with pytest.raises(Unsupported, match="postgresql, sqlite") as raised:
            current().transaction()
        return raised.value.engine

    async with app, working(app):
        assert await (await book.asend()).aresult(timeout=20) == "memory"
    app.close()


async def test_who_asks_after_the_end_gets_nothing(app: App) -> None:
    kept: list[Any] = []

    @app.task
    def book() -> None:
        kept.append(current())

    async with working(app):
        await (await book.asend()).aresult(timeout=20)
        await until(lambda: _refused(kept[0].transaction))


def _refused(do: Callable[[], Any]) -> bool:
    """Whether it is refused; the answer may leave before the slot has let go of its delivery."""
    try:
        do()
    except HandleMisused:
        return True
    except UsageError:
        return False
    return False


# ------------------------------------------------------------------------------------------- a commit whose fate is unknown


class Lossy(SqliteTransaction):
    """Its COMMIT says it failed: before (`happens` False) or after it was carried out."""

    happens = True

    def commit(self) -> None:
        if self.happens:
            super().commit()
        raise EngineUnavailable("The answer to COMMIT was lost.", effect="unknown")


@pytest.mark.parametrize("happens", [True, False])
async def test_after_a_commit_without_an_answer_the_store_is_asked(app: App, tmp_path: Path, happens: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Lossy] = []

    def once(engine: SqliteEngine, connection: Any) -> SqliteTransaction:
        kind = SqliteTransaction if made else Lossy
        transaction = kind(engine._in_use().desks, engine.capabilities.durability, engine._time)
        if isinstance(transaction, Lossy):
            transaction.happens = happens
            made.append(transaction)
        return transaction

    monkeypatch.setattr(SqliteEngine, "_transaction", once)

    @app.task(retry=Retry(attempts=3, base_s=0.0))
    def book() -> int:
        write(f"attempt {current().attempt}")
        return current().attempt

    async with working(app) as worker:
        handle = await book.asend()
        attempt = 1 if happens else 2
        assert await handle.aresult(timeout=20) == attempt
        await until(lambda: worker.supervisor.settler.settled == attempt)  # type: ignore[union-attr]  # the retry is a settle of its own
    assert effects(tmp_path / "store.db") == [(handle.id, f"attempt {attempt}")]


# ------------------------------------------------------------------------------------------------------------ real kills


async def test_effects_are_acks_whatever_is_killed_and_when(tmp_path: Path) -> None:
    """I17: an effect row if, and only if, its message is settled, and never two. Runners and whole workers are killed at random points."""
    engine = SqliteEngine(tmp_path / "store.db")
    await engine.open()
    await engine.declare(atomic_lines.app.specs())
    db = apsw.Connection(str(tmp_path / "store.db"))
    db.execute(TABLE)
    db.close()
    calls = [task.call(number) for number in range(150) for task in (atomic_lines.book, atomic_lines.abook)]
    ids = [sent.id for sent in await engine.send([call.message for call in calls])]
    draw = random.Random(17)

    async def left() -> int:
        counts = await engine.counts(atomic_lines.book.queue)
        return counts.ready + counts.leased + counts.delayed

    with hosts(tmp_path) as found:
        for life in range(5):
            found.append(Host(tmp_path, app="tests.worker.atomic_lines:app", queues={"atomic": 4}, lease_s=2.0))
            await found[-1].ready()
            if life < 4:
                await _kill_runners(found[-1], draw, left)
                found[-1].kill_all()
        await until(_none(left), within_s=60)
        found[-1].process.terminate()
        await found[-1].exit_code()
    seen = [id for id, _ in effects(tmp_path / "store.db")]
    assert len(seen) == len(set(seen))
    states = {id: (await engine.get(MessageId(id))).state for id in ids}
    assert set(states.values()) <= {"done", "dead"}  # dead: three kills met the same one
    assert {id for id, state in states.items() if state == "done"} == set(seen)
    assert len(seen) > 250
    await engine.close()


def _none(left: Callable[[], Awaitable[int]]) -> Callable[[], Awaitable[bool]]:
    async def empty() -> bool:
        return await left() == 0

    return empty


async def _kill_runners(host: Host, draw: random.Random, left: Callable[[], Awaitable[int]]) -> None:
    """Three of them, one after the other, somewhere in their work."""
    for _ in range(3):
        before = await left()
        if before:
            await until(lambda before=before: _fewer(left, before))  # it works
        await asyncio.sleep(draw.uniform(0.0, 0.05))  # somewhere in it
        runners = host.runners()
        if runners:
            try:
                draw.choice(runners).kill()
            except psutil.NoSuchProcess:
                continue


async def _fewer(left: Callable[[], Awaitable[int]], before: int) -> bool:
    return await left() < before
