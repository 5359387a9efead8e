"""Transactions that also hold the user's own writes: sends in an open one of the user's, and whole ones for a task's writes and its settle.

Whose       `send_in` writes into a transaction that the user has begun on his own apsw.Connection to this file. `SqliteTransaction` is begun here, on a connection
            lent from `Desks` (or on the user's), behind the side lock like every write of ours.
Knows       what others have written in such a transaction cannot be seen by `data_version`: nothing is remembered, everything is read again (Ledger.join).
One writer  while it is open nobody else writes to the file: not the supervisor, not another task, and not the engine in this very context, which says so at once
            (`holding`) instead of waiting for itself.
Refusals    a savepoint takes back what a refused send has written; the user's transaction stays as it was.
Failure     the process dies: SQLite drops what was not committed, the kernel drops the side lock. COMMIT raises: unknown, and the connection is not used again.
"""

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Generator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import apsw

from beltline.core.capabilities import Durability
from beltline.core.errors import EngineUnsafe, HandleMisused
from beltline.core.message import Gather, Message
from beltline.core.outcome import Sent, Settled, Settlement
from beltline.engines import guests
from beltline.engines.moving import Level, refusal
from beltline.engines.sqlite import settling
from beltline.engines.sqlite.file import File
from beltline.engines.sqlite.ledger import Ledger
from beltline.engines.sqlite.sending import send
from beltline.engines.sqlite.times import Ratchet
from beltline.engines.sqlite.trouble import explain, meaning

T = TypeVar("T")

SYNCHRONOUS = {Durability.DISK: 2, Durability.OS: 1, Durability.MEMORY: 0}
KEPT = 4  # idle connections; one transaction at a time writes anyway


class Desks:
    """Connections lent to transactions, of one file in this process. They stay open between two, because opening means checking."""

    def __init__(self, path: Path, *, audited: bool, on_poison: Callable[[], None]) -> None:
        self.path = path
        self.audited = audited
        self._on_poison = on_poison
        self._idle: list[File] = []
        self._lock = threading.Lock()
        self._closed = False

    def lend(self, level: Durability) -> File:
        with self._lock:
            if self._closed:
                raise HandleMisused("The SQLite engine was closed.", help="Use nothing of it after close().")
            file = self._idle.pop() if self._idle else None
        if file is None:
            file = File(self.path, audited=self.audited, on_poison=self._on_poison)
        file.raise_level(level)
        return file

    def give_back(self, file: File) -> None:
        with self._lock:
            if not self._closed and file.ledger is not None and len(self._idle) < KEPT:
                self._idle.append(file)
                return
        file.close()

    def close(self) -> None:
        """What is lent out is closed when it comes back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for file in idle:
            file.close()


# Weak: a transaction that its owner has dropped must let go of the file, and a context may live long.
_held: ContextVar["weakref.ref[SqliteTransaction] | None"] = ContextVar("beltline_sqlite_held", default=None)


def refuse_holding(path: Path | None) -> None:
    """A write by the engine's own connection, from code that holds the file by a transaction, would wait for itself. Raises HandleMisused."""
    reference = _held.get()
    held = reference() if reference is not None else None
    if held is not None and held.open and held.path == path:
        raise HandleMisused(
            "This code holds a transaction on the queue's file, and SQLite has one writer at a time.",
            why="This call would wait for that transaction to end.",
            help="Send with connection=…, the one transaction() gave, or before transaction() is called.",
        )


class SqliteTransaction:
    """`connection`: of the desk, or the user's own. Made not begun; `begin` may run in another thread."""

    def __init__(self, desks: Desks, level: Durability, time: Ratchet, connection: apsw.Connection | None = None) -> None:
        self.path = desks.path
        self.open = False
        self._desks = desks
        self._time = time
        self._file: File | None = desks.lend(level)
        self._given = connection
        self._passage: Any = None
        self._ledger: Ledger | None = None
        self._spoiled = False

    def begin(self) -> None:
        """BEGIN IMMEDIATE behind the side lock; a given connection that is in a transaction goes on with it. Raises EngineError: then it is over."""
        file = self._file
        assert file is not None
        try:
            ledger = file.open()
            if self._given is not None:
                ledger = Ledger(self._given, audited=self._desks.audited)
            self._ledger = ledger
            if ledger.db.getautocommit():
                passage = file.passage()
                passage.__enter__()
                self._passage = passage
                with _plain(ledger.db):
                    file.begin(ledger)
            self.open = True
        except apsw.Error as error:
            self._let_go()
            raise explain(error, str(self.path), committing=False) from error
        except BaseException:
            self._let_go()
            raise

    def hold(self) -> None:
        """Let this context know that it holds the file."""
        _held.set(weakref.ref(self))

    @property
    def connection(self) -> apsw.Connection:
        return self._in_use().db

    def settle(self, settlement: Settlement) -> Settled:
        ledger = self._in_use()
        try:
            with _plain(ledger.db):
                ledger.join(_now(self._time, ledger))
                if ledger.seal is not None and ledger.seal.level > Level.SEALED:
                    return Settled.LEASE_LOST
                [answer] = settling.settle(ledger, [settlement])
                ledger.flush()
        except apsw.Error as error:
            self._spoiled = meaning(error).poisons
            raise explain(error, str(self.path), committing=False) from error
        return answer

    def commit(self) -> None:
        ledger = self._in_use()
        try:
            with _plain(ledger.db):
                ledger.sql("COMMIT")
        except apsw.Error as error:
            self._spoiled = meaning(error).poisons
            raise explain(error, str(self.path), committing=True) from error
        file = self._file
        assert file is not None
        if file.bell is not None:
            file.bell.ring()
        if self._given is None:
            file.checkpoint()
        self._let_go()

    def rollback(self) -> None:
        if not self.open:
            return
        ledger = self._ledger
        if ledger is not None:
            with contextlib.suppress(apsw.Error):
                if not ledger.db.getautocommit():
                    with _plain(ledger.db):
                        ledger.sql("ROLLBACK")
        self._let_go()

    def _in_use(self) -> Ledger:
        ledger = self._ledger
        if not self.open or ledger is None:
            raise HandleMisused("This transaction is over.", help="Use its connection only in the task that asked for it.")
        if ledger.db.getautocommit():
            raise HandleMisused(
                "The transaction was ended by the task's own code.",
                why="So its writes and its settle cannot happen together.",
                help="Leave COMMIT and ROLLBACK to the worker: return, or raise.",
            )
        return ledger

    def _let_go(self) -> None:
        """Give back lock and desk, whatever was reached."""
        self.open = False
        file, self._file = self._file, None
        passage, self._passage = self._passage, None
        ledger, self._ledger = self._ledger, None
        if file is None:
            return
        own = ledger is not None and self._given is None
        clean = True
        if own and ledger is not None:
            with contextlib.suppress(apsw.Error):
                ledger.db.row_trace = ledger.db.exec_trace = None
                clean = not ledger.db.txn_state()  # a statement its user has left open would keep an old snapshot
            if self._spoiled:
                file.poison()
        if passage is not None:
            passage.__exit__(None, None, None)
        if not clean:
            file.close()
        self._desks.give_back(file)

    def __del__(self) -> None:
        self.rollback()


class AsyncSqliteTransaction:
    """The same for a coroutine: what may wait for a lock or a disk runs in a thread."""

    def __init__(self, inner: SqliteTransaction) -> None:
        self._inner = inner

    async def begin(self) -> None:
        loop = asyncio.get_running_loop()
        beginning = loop.run_in_executor(None, self._inner.begin)
        try:
            await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(self._nobody_wants_it)
            raise
        self._inner.hold()

    def _nobody_wants_it(self, beginning: "asyncio.Future[None]") -> None:
        if beginning.exception() is None:
            self._inner.rollback()

    @property
    def connection(self) -> apsw.Connection:
        return self._inner.connection

    async def settle(self, settlement: Settlement) -> Settled:
        return await _in_thread(lambda: self._inner.settle(settlement))

    async def commit(self) -> None:
        await _in_thread(self._inner.commit)

    async def rollback(self) -> None:
        if self._inner.open:
            await _in_thread(self._inner.rollback)


async def _in_thread(do: Callable[[], T]) -> T:
    """A cancellation waits for the end of `do`: nobody may touch the connection beside it."""
    doing = asyncio.get_running_loop().run_in_executor(None, do)
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait([doing])
        raise


def send_in(
    connection: Any, path: Path, level: Durability, time: Ratchet, messages: Sequence[Message], gathers: Sequence[Gather], *, audited: bool
) -> list[Sent]:
    """`send` in the transaction that is open on `connection`. Raises HandleMisused (not apsw, another file, no transaction), and what `send` raises."""
    db = checked(connection, path, level)
    if db.getautocommit():
        raise HandleMisused(
            "The connection is not in a transaction.", why="A send is several writes.", help="BEGIN IMMEDIATE first, or send without connection=."
        )
    ledger = Ledger(db, audited=audited)
    try:
        with _plain(db), _savepoint(db):
            ledger.join(_now(time, ledger))
            if ledger.seal is not None:
                raise refusal(ledger.seal, str(path))
            answers = send(ledger, messages, gathers)
            ledger.flush()
    except apsw.Error as error:
        raise explain(error, str(path), committing=False) from error
    return answers


def checked(connection: Any, path: Path, level: Durability) -> apsw.Connection:
    """Raises HandleMisused: not an apsw.Connection, or one to another file; EngineUnsafe: its commits are less durable than the engine's."""
    guests.check_apsw(connection)
    db: apsw.Connection = connection
    if os.path.realpath(db.filename) != str(path):
        raise HandleMisused(
            f"The connection is to {db.filename or 'a database in memory'}; the engine's file is {path}.",
            why="One transaction cannot span two files.",
            help="Keep your tables in the engine's file (name them unlike Beltline's), and open that one.",
        )
    with _plain(db):
        synchronous = db.pragma("synchronous")
    if synchronous < SYNCHRONOUS[level]:
        raise EngineUnsafe(
            f"The connection commits with PRAGMA synchronous = {synchronous}; the engine promises the level {level.name.lower()!r}.",
            why="A message that a power cut takes away was never sent.",
            help=f"PRAGMA synchronous = {SYNCHRONOUS[level]} on the connection, before its transaction.",
        )
    return db


def _now(time: Ratchet, ledger: Ledger) -> int:
    now = time.now_ms()
    if now < ledger.now:
        time.lift(ledger.now)
    return now


@contextlib.contextmanager
def _plain(db: apsw.Connection) -> Generator[None]:
    """Our statements see rows as they are, whatever the user has hung into his connection."""
    row_trace, exec_trace = db.row_trace, db.exec_trace
    db.row_trace = db.exec_trace = None
    try:
        yield
    finally:
        with contextlib.suppress(apsw.Error):
            db.row_trace, db.exec_trace = row_trace, exec_trace


@contextlib.contextmanager
def _savepoint(db: apsw.Connection) -> Generator[None]:
    db.execute("SAVEPOINT beltline_send")
    try:
        yield
    except BaseException:
        with contextlib.suppress(apsw.Error):  # SQLite may have rolled back everything: then there is nothing to take back
            db.execute("ROLLBACK TO beltline_send; RELEASE beltline_send")
        raise
    db.execute("RELEASE beltline_send")


__all__ = ["AsyncSqliteTransaction", "Desks", "SqliteTransaction", "checked", "refuse_holding", "send_in"]
