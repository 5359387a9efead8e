"""The writer: one thread per file and process, through which everything goes that changes the store.

Group commit  what arrives while a commit is in flight goes into the next one, at most MAX_OPERATIONS; nobody waits on purpose. So an fsync is shared by all who
              came during the one before. Answers are given after the COMMIT, one call into each event loop.
One batch     flock, BEGIN IMMEDIATE, every operation, waiting operations that these have woken, COMMIT. An operation that refuses (QueueFull, …) has looked
              before it wrote, so the others go on. One that fails half-way takes all back, and each is run again in a transaction of its own.
Waiting       an operation with time left and nothing found is kept aside and run again in the very transaction that brings something, or when another process
              has written (a hint or the poll says so), or when the next message is due.
Fail-stop     a storage error closes the connection. Before COMMIT the effect is "none", at COMMIT "unknown". The next operation opens the file again, checks
              it, and only then is anything said to be stored.
"""

import asyncio
import contextlib
import copy
import heapq
import itertools
import os
import random
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import apsw

from beltline.core.capabilities import Durability
from beltline.core.errors import BeltlineError, EngineUnavailable
from beltline.core.message import Message
from beltline.engines.sqlite import place, schema
from beltline.engines.sqlite.bell import Bell
from beltline.engines.sqlite.ledger import Ledger
from beltline.engines.sqlite.storing import store_together
from beltline.engines.sqlite.times import Ratchet
from beltline.engines.sqlite.trouble import damaged, explain, meaning
from beltline.engines.sqlite.turnstile import Turnstile

MAX_OPERATIONS = 500
LOCK_WAIT_S = 30.0
POLL_LEAST_S, POLL_MOST_S = 0.05, 2.0
CHECKPOINT_PAGES = 2000
REOPEN_PAUSE_S = 0.5
BALLAST_BYTES = 1024 * 1024


class Operation:
    """One call: what to do with the ledger, and who waits for the answer."""

    __slots__ = ("error", "future", "loop", "messages", "owner", "run", "time", "undo", "value", "wait")

    def __init__(
        self,
        run: Callable[[Ledger], Any],
        owner: object,
        time: Ratchet,
        *,
        wait: "Wait | None" = None,
        undo: Callable[[Any], None] | None = None,
        messages: Sequence[Message] | None = None,
    ) -> None:
        self.run, self.owner, self.time, self.wait, self.undo = run, owner, time, wait, undo
        self.messages = messages  # of a plain send, which may be written together with its neighbours
        loop = asyncio.get_running_loop()
        self.loop: asyncio.AbstractEventLoop | None = loop
        self.future: asyncio.Future[Any] | None = loop.create_future()
        self.value: Any = None
        self.error: BaseException | None = None

    @classmethod
    def unanswered(cls, run: Callable[[Ledger], Any], owner: object, time: Ratchet) -> "Operation":
        """One that nobody waits for. May be made in any thread."""
        operation = cls.__new__(cls)
        operation.run, operation.owner, operation.time, operation.wait, operation.undo = run, owner, time, None, None
        operation.messages = None
        operation.loop = operation.future = None
        operation.value = operation.error = None
        return operation

    @property
    def given_up(self) -> bool:
        """Its caller was cancelled: nobody wants the answer."""
        return self.future is not None and self.future.cancelled()


class Wait:
    """What an operation waits for: queues, or the end of messages and runs. `enough(value)`: it need not wait any longer."""

    __slots__ = ("deadline", "enough", "ids", "queues", "until_ms")

    def __init__(self, wait_s: float, enough: Callable[[Any], bool], *, queues: Iterable[str] = (), ids: Iterable[str] = ()) -> None:
        self.deadline = time.monotonic() + wait_s
        self.until_ms: int | None = None  # the same on the engine's clock, whichever is over first
        self.enough = enough
        self.queues = tuple(dict.fromkeys(queues))
        self.ids = tuple(dict.fromkeys(ids))


class Chore:
    """Something else for the thread to do, between two batches: open, close."""

    __slots__ = ("do", "future", "loop")

    def __init__(self, do: Callable[[], None]) -> None:
        self.do = do
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()


class _SpoiledError(Exception):
    """An operation failed after it had begun to write."""


class Writer:
    """Opens the file in its own thread; every error of that is the answer to whoever asks."""

    def __init__(self, path: Path, *, audited: bool) -> None:
        self.path = path
        self.level = Durability.MEMORY
        self._audited = audited
        self._inbox: deque[Operation | Chore] = deque()
        self._kept: dict[str, dict[Operation, None]] = {}  # "q" + queue or "i" + id -> operations that wait for it, oldest first
        self._deadlines: list[tuple[float, int, Operation]] = []
        self._order = itertools.count()
        self._waiting = 0
        self._ledger: Ledger | None = None
        self._turnstile: Turnstile | None = None
        self._bell: Bell | None = None
        self._failed_at = -REOPEN_PAUSE_S
        self._failure: BeltlineError | None = None
        self._checked = True
        self._pages = 0
        self._read, self._write = os.pipe()
        for fd in (self._read, self._write):
            os.set_blocking(fd, False)
        self._asleep = False
        self._stopping = False
        self._look_again = False
        self._poll_s = POLL_LEAST_S
        self._version = -1
        self._due_at: float | None = None  # monotonic; when the next waiting queue has something
        self._due_known = False
        self.on_poison: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._main, name="beltline-sqlite-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # ------------------------------------------------------------------------------------------- from any thread
    def submit(self, operation: Operation | Chore) -> None:
        self._inbox.append(operation)
        if self._asleep:
            self.poke()

    def poke(self) -> None:
        """Wake the thread up; it looks at everything that waits."""
        self._asleep = False
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._write, b"\0")

    def look_again(self) -> None:
        """A clock was moved: what waits may be due."""
        self._look_again = True
        self.poke()

    # ------------------------------------------------------------------------------------------------ the thread
    def _main(self) -> None:
        while True:
            batch = self._next()
            if batch:
                self._serve(batch)
            elif self._stopping and not self._inbox:
                break
        for fd in (self._read, self._write):
            os.close(fd)

    def _next(self) -> list[Operation]:
        """The operations to run now: new ones, else waiting ones whose reason has come; sleeps until there are some."""
        batch: list[Operation] = []
        inbox = self._inbox
        while inbox and len(batch) < MAX_OPERATIONS:
            first = inbox[0]
            if isinstance(first, Chore):
                if not batch:
                    inbox.popleft()
                    self._do(first)
                break
            batch.append(first)
            inbox.popleft()
        if batch or self._stopping:
            return batch
        heard = self._sleep()
        if inbox:
            return []
        if self._waiting:
            now = time.monotonic()
            if heard or self._look_again or (self._due_at is not None and now >= self._due_at) or self._changed():
                self._look_again = False
                return self._all_waiting()
            return self._overdue(now)
        return []

    def _sleep(self) -> bool:
        """Until something is submitted, somebody rings, something is due or it is time to poll. True if a hint came."""
        bell_fd = None
        timeout: float | None = None
        if self._waiting:
            if self._bell is not None:
                bell_fd = self._bell.listen()
            if not self._due_known:
                self._due_at = self._next_due()
                self._due_known = True
            now = time.monotonic()
            until = now + self._poll_s * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, no secret
            self._poll_s = min(self._poll_s * 2, POLL_MOST_S)
            if self._due_at is not None:
                until = min(until, self._due_at)
            if self._deadlines:
                until = min(until, self._deadlines[0][0])
            timeout = max(0.0, until - now)
        poller = select.poll()
        poller.register(self._read, select.POLLIN)
        if bell_fd is not None:
            poller.register(bell_fd, select.POLLIN)
        self._asleep = True
        if self._inbox or self._stopping or self._look_again:
            self._asleep = False
            return False
        ready = poller.poll(None if timeout is None else -(-timeout * 1000 // 1))
        self._asleep = False
        heard = False
        for fd, _ in ready:
            if fd == self._read:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._read, 4096)
            elif self._bell is not None:
                self._bell.drain()
                heard = True
        return heard

    def _changed(self) -> bool:
        """Whether another process has committed since the last look."""
        if self._ledger is None:
            return True
        try:
            version = self._ledger.sql("PRAGMA data_version").get
        except apsw.Error:
            return True
        changed = version != self._version
        self._version = version
        return changed

    def _do(self, chore: Chore) -> None:
        error: BaseException | None = None
        try:
            chore.do()
        except Exception as caught:  # noqa: BLE001 - whatever it is, it belongs to the caller
            error = caught

        def answer() -> None:
            if chore.future.done():
                return
            if error is None:
                chore.future.set_result(None)
            else:
                chore.future.set_exception(error)

        with contextlib.suppress(RuntimeError):  # its loop is closed
            chore.loop.call_soon_threadsafe(answer)

    # ------------------------------------------------------------------------------------------------- one batch
    def _serve(self, batch: list[Operation]) -> None:
        batch = [operation for operation in batch if not operation.given_up]
        if not batch:
            return
        answered = batch
        try:
            ledger = self._open()
            answered = self._together(ledger, batch)
        except _SpoiledError:
            answered = self._one_by_one(batch)
        except BeltlineError as error:
            for operation in batch:
                operation.value, operation.error = None, error
        self._poll_s = POLL_LEAST_S
        self._due_known = False
        self._settle_answers(answered)
        self._checkpoint()

    def _together(self, ledger: Ledger, batch: list[Operation]) -> list[Operation]:
        """Run them in one transaction. Returns all that were run, with those that were woken by them."""
        self._enter()
        committing = False
        try:
            self._begin(ledger)
            ran: dict[Operation, None] = dict.fromkeys(batch)
            for operation in self._after_sends(ledger, batch):
                self._run(ledger, operation)
                if operation.wait is not None and operation.error is None and not operation.wait.enough(operation.value):
                    self._keep(operation)  # at once: the next of the batch may bring what it waits for
            if self._waiting:
                self._wake(ledger, ran)
            ledger.flush()
            committing = True
            ledger.sql("COMMIT")
        except _SpoiledError:
            self._roll_back(ledger)
            raise
        except apsw.Error as error:
            self._roll_back(ledger)
            if not committing and not meaning(error).poisons and len(batch) > 1:
                raise _SpoiledError from error
            if committing or meaning(error).poisons:
                self._poison()
            raise explain(error, str(self.path), committing=committing) from error
        finally:
            self._leave()
        if self._bell is not None and (ledger.woken or ledger.finished):
            self._bell.ring()
        return list(ran)

    def _after_sends(self, ledger: Ledger, batch: list[Operation]) -> list[Operation]:
        """A hundred concurrent senders of one message each are one write: do it if it can be done. Returns the operations still to be run.

        All of the batch came while the last commit was in flight, so none of them has happened before another: sends may go first.
        """
        sends = [operation for operation in batch if operation.messages is not None]
        if len(sends) < 2:
            return batch
        self._set_time(ledger, sends[-1])
        answers = store_together(ledger, [message for operation in sends for message in operation.messages or ()])
        if answers is None:
            return batch
        place = 0
        for operation in sends:
            count = len(operation.messages or ())
            operation.value, operation.error = answers[place : place + count], None
            place += count
        return [operation for operation in batch if operation.messages is None]

    def _one_by_one(self, batch: list[Operation]) -> list[Operation]:
        """After one of them has spoiled the transaction: each in its own, so that only the guilty one fails."""
        for operation in batch:
            operation.value = operation.error = None
            try:
                ledger = self._open()
                self._enter()
                committing = False
                try:
                    self._begin(ledger)
                    self._run(ledger, operation)
                    ledger.flush()
                    committing = True
                    ledger.sql("COMMIT")
                except _SpoiledError as spoiled:
                    self._roll_back(ledger)
                    operation.error = spoiled.__cause__
                except apsw.Error as error:
                    self._roll_back(ledger)
                    if committing or meaning(error).poisons:
                        self._poison()
                    operation.error = explain(error, str(self.path), committing=committing)
                finally:
                    self._leave()
            except BeltlineError as error:
                operation.error = error
        self._look_again = True
        return batch

    def _begin(self, ledger: Ledger) -> None:
        """BEGIN IMMEDIATE under the flock: only other programs, or a checkpoint's last step, can be in the way."""
        until = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                ledger.begin()
            except apsw.BusyError:
                self._roll_back(ledger)
                if time.monotonic() >= until:
                    raise
                time.sleep(random.uniform(0.001, 0.02))  # noqa: S311 - jitter, no secret
            else:
                return

    def _run(self, ledger: Ledger, operation: Operation) -> None:
        self._set_time(ledger, operation)
        before = ledger.db.total_changes()
        try:
            operation.value = operation.run(ledger)
            operation.error = None
        except apsw.Error:
            raise
        except BeltlineError as error:
            operation.value, operation.error = None, error
            if ledger.db.total_changes() != before:
                raise _SpoiledError from error
        except Exception as error:  # noqa: BLE001 - a fault of ours in one operation must not end the thread that serves all others
            operation.error = error
            raise _SpoiledError from error

    def _set_time(self, ledger: Ledger, operation: Operation) -> None:
        now = operation.time.now_ms()
        if now > ledger.now:
            ledger.now = now
        elif now < ledger.now:
            operation.time.lift(ledger.now)

    def _roll_back(self, ledger: Ledger) -> None:
        with contextlib.suppress(apsw.Error):
            if not ledger.db.getautocommit():
                ledger.sql("ROLLBACK")
        ledger.forget()

    def _enter(self) -> None:
        assert self._turnstile is not None
        if not self._turnstile.enter(LOCK_WAIT_S):
            raise EngineUnavailable(
                f"{self.path} has been locked by another process for {LOCK_WAIT_S:g} s.",
                effect="none",
                help="Look for a stopped process that uses it.",
            )

    def _leave(self) -> None:
        if self._turnstile is not None:
            self._turnstile.leave()

    # --------------------------------------------------------------------------------------------------- waiting
    def _wake(self, ledger: Ledger, ran: dict[Operation, None]) -> None:
        """Run what waits for something that this transaction has brought."""
        done: set[str] = set()
        while True:
            keys = {"q" + ledger.by_number[n].name for n in ledger.woken} | {"i" + id for id in ledger.ended}
            keys = {key for key in keys if key not in done and key in self._kept}
            if not keys:
                return
            done |= keys
            for key in keys:
                for operation in list(self._kept[key]):
                    wait = operation.wait
                    if wait is None or operation.given_up or (operation in ran and wait.enough(operation.value)):
                        continue
                    self._run(ledger, operation)
                    ran[operation] = None
                    if key[0] == "q" and not wait.enough(operation.value):
                        break  # nothing is left here for those behind it

    def _all_waiting(self) -> list[Operation]:
        """One of those who wait for a queue is enough to see whether there is something; of those who wait for an end, all."""
        found: dict[Operation, None] = {}
        for key, operations in list(self._kept.items()):
            for operation in list(operations):
                if operation.given_up:
                    self._release(operation)
                    continue
                found[operation] = None
                if key[0] == "q":
                    break
        self._due_known = False
        return [*found, *self._overdue(time.monotonic(), found)]

    def _overdue(self, now: float, but: Iterable[Operation] = ()) -> list[Operation]:
        found = []
        but = set(but)
        while self._deadlines and self._deadlines[0][0] <= now:
            operation = heapq.heappop(self._deadlines)[2]
            if operation.given_up:
                self._release(operation)
            elif operation not in but and self._is_kept(operation):
                found.append(operation)
        return found

    def _settle_answers(self, operations: list[Operation]) -> None:
        """Answer, or keep those that have found nothing and have time left."""
        now = time.monotonic()
        answers: dict[asyncio.AbstractEventLoop, list[Operation]] = {}
        for operation in operations:
            wait = operation.wait
            if wait is not None and operation.error is None and not wait.enough(operation.value) and not self._stopping:
                if wait.until_ms is None:
                    wait.until_ms = operation.time.now_ms() + int((wait.deadline - now) * 1000)
                if now < wait.deadline and operation.time.now_ms() < wait.until_ms:
                    self._keep(operation)
                    continue
            if wait is not None:
                self._release(operation)
            if operation.loop is not None:
                answers.setdefault(operation.loop, []).append(operation)
        for loop, group in answers.items():
            try:
                loop.call_soon_threadsafe(_deliver, group)
            except RuntimeError:  # the loop is closed: nobody is there to take the answers
                for operation in group:
                    _undo(operation)

    def _keys(self, operation: Operation) -> list[str]:
        wait = operation.wait
        assert wait is not None
        return ["q" + name for name in wait.queues] + ["i" + id for id in wait.ids]

    def _is_kept(self, operation: Operation) -> bool:
        return any(operation in self._kept.get(key, ()) for key in self._keys(operation))

    def _keep(self, operation: Operation) -> None:
        if self._is_kept(operation):
            return
        for key in self._keys(operation):
            self._kept.setdefault(key, {})[operation] = None
        assert operation.wait is not None
        heapq.heappush(self._deadlines, (operation.wait.deadline, next(self._order), operation))
        self._waiting += 1
        if self._ledger is not None and operation.wait.ids:
            self._ledger.someone_waits = True

    def _release(self, operation: Operation) -> None:
        if not self._is_kept(operation):
            return
        for key in self._keys(operation):
            operations = self._kept.get(key)
            if operations is not None:
                operations.pop(operation, None)
                if not operations:
                    del self._kept[key]
        self._waiting -= 1
        if self._ledger is not None:
            self._ledger.someone_waits = any(key[0] == "i" for key in self._kept)

    def end_waits(self, owner: object) -> None:
        """In the thread: whoever waits through this handle gets what there is, now."""
        found = {operation for operations in self._kept.values() for operation in operations if operation.owner is owner}
        for operation in found:
            self._release(operation)
            if operation.loop is not None:
                with contextlib.suppress(RuntimeError):
                    operation.loop.call_soon_threadsafe(_deliver, [operation])

    def _next_due(self) -> float | None:
        """When time alone will bring something to a queue somebody waits for, on the monotonic clock."""
        ledger = self._ledger
        if ledger is None:
            return time.monotonic() + REOPEN_PAUSE_S
        soonest: float | None = None
        try:
            for key, operations in self._kept.items():
                queue = ledger.by_name.get(key[1:]) if key[0] == "q" else None
                if queue is None or queue.paused:
                    continue
                due = ledger.sql(
                    "SELECT min(due) FROM (SELECT min(due) AS due FROM message INDEXED BY message_delayed WHERE queue = ?1 AND state = 0"
                    " UNION ALL SELECT min(due) FROM message INDEXED BY message_leased WHERE queue = ?1 AND state = 2)",
                    (queue.n,),
                ).get
                if due is not None:
                    ratchet = next(iter(operations)).time
                    at = time.monotonic() + max(0.0, (due - ratchet.now_ms()) / 1000)
                    soonest = at if soonest is None else min(soonest, at)
        except apsw.Error:
            return time.monotonic() + REOPEN_PAUSE_S
        return soonest

    # ------------------------------------------------------------------------------------------------------ file
    def open_at(self, level: Durability, clock: Ratchet) -> None:
        """In the thread: be open, at least at this level, and let the clock go on from the newest time the file knows."""
        self._failure = None
        ledger = self._open()
        self.raise_level(level)
        ledger.look(clock.now_ms())
        ledger.sql("COMMIT")
        clock.lift(ledger.now)

    def _open(self) -> Ledger:
        """The ledger of an open connection. Raises EngineError, the same for REOPEN_PAUSE_S after a failure."""
        if self._ledger is not None:
            return self._ledger
        if self._failure is not None and time.monotonic() - self._failed_at < REOPEN_PAUSE_S:
            raise self._failure
        try:
            self._ledger = self._connect()
            self._failure = None
        except (BeltlineError, apsw.Error, OSError) as error:
            self._failed_at = time.monotonic()
            self._failure = self._reason(error)
            raise self._failure from None
        return self._ledger

    def _reason(self, error: BeltlineError | apsw.Error | OSError) -> BeltlineError:
        if isinstance(error, BeltlineError):
            return error
        if isinstance(error, (apsw.CorruptError, apsw.NotADBError)):
            return damaged(str(self.path), str(error))
        if isinstance(error, apsw.Error):
            return explain(error, str(self.path), committing=False)
        return EngineUnavailable(f"{self.path} cannot be opened: {error}.", effect="none", help="Look at the folder and its permissions.")

    def _connect(self) -> Ledger:
        place.prepare(self.path)
        if self._turnstile is None:
            self._turnstile = Turnstile(self.path.with_name(self.path.name + "-lock"))
        self._enter()
        try:
            place.create(self.path)
            place.inspect(self.path)
            db = place.connect(self.path, self.level)
            try:
                schema.check_version(db, str(self.path))
                if not self._checked or self.path.stat().st_size <= place.CHECKED_BYTES:
                    place.check_content(db, self.path)
                schema.migrate(db)
            except BaseException:
                db.close(True)
                raise
        finally:
            self._leave()
        self._checked = True
        self._bell = self._bell or Bell(self.path)
        db.set_wal_hook(self._wal_grew)
        ledger = Ledger(db, audited=self._audited)
        ledger.someone_waits = any(key[0] == "i" for key in self._kept)
        return ledger

    def raise_level(self, level: Durability) -> None:
        """In the thread: hold at least this level."""
        if level > self.level:
            self.level = level
            if self._ledger is not None:
                place.set_level(self._ledger.db, level)

    def _wal_grew(self, db: apsw.Connection, name: str, pages: int) -> int:  # noqa: ARG002 - SQLite's signature
        self._pages = pages
        return apsw.SQLITE_OK

    def _checkpoint(self) -> None:
        """After the answers, not before them: bring the WAL back into the file when it has grown."""
        if self._pages < CHECKPOINT_PAGES or self._ledger is None:
            return
        self._pages = 0
        with contextlib.suppress(apsw.BusyError, apsw.LockedError):  # another process does it
            try:
                self._ledger.db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            except (apsw.IOError, apsw.CorruptError):
                self._poison()
            except apsw.FullError:
                pass  # the WAL keeps everything; the next one may find space

    def _poison(self) -> None:
        """Fail-stop: nothing this connection says can be trusted any more."""
        ledger, self._ledger = self._ledger, None
        self._checked = False
        self._version = -1
        self.on_poison()
        if ledger is not None:
            with contextlib.suppress(apsw.Error):
                ledger.db.close(True)

    def shut(self) -> None:
        """In the thread: close the file; the thread ends once nothing is left to answer."""
        self._stopping = True
        if self._ledger is not None:
            with contextlib.suppress(apsw.Error):
                self._ledger.db.close(True)
            self._ledger = None
        if self._turnstile is not None:
            self._turnstile.close()
            self._turnstile = None
        if self._bell is not None:
            self._bell.close()


def _deliver(operations: list[Operation]) -> None:
    """In the loop of the callers: hand over the answers; what a cancelled caller will not take is given back."""
    for operation in operations:
        if operation.future is None or operation.future.done():
            _undo(operation)
        elif operation.error is not None:
            # Each caller its own: one object raised in several tasks would gather all their tracebacks.
            error = operation.error if len(operations) == 1 else copy.copy(operation.error)
            operation.future.set_exception(error)
        else:
            operation.future.set_result(operation.value)


def _undo(operation: Operation) -> None:
    if operation.undo is not None and operation.error is None:
        operation.undo(operation.value)
