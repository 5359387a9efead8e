"""The writer: one thread per file and process, through which everything goes that changes the store.

Group commit  what arrives while a commit is in flight goes into the next one, at most MAX_OPERATIONS; nobody waits on purpose. So an fsync is shared by all who
              came during the one before. Answers are given after the COMMIT, one call into each event loop.
One batch     side lock, BEGIN IMMEDIATE, every operation, waiting operations that these have woken, COMMIT. An operation that refuses (QueueFull, …) has looked
              before it wrote, so the others go on. One that fails half-way takes all back, and each is run again in a transaction of its own.
Waiting       an operation with time left and nothing found is kept aside and run again in the very transaction that brings something, or when another process
              has written (a hint or the poll says so), or when the next message is due. Polling `data_version` is the truth, a hint only spares its delay.
Fail-stop     a storage error before COMMIT has the effect "none", at COMMIT "unknown"; see file.py for what becomes of the connection.
"""

import contextlib
import math
import os
import random
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import apsw

from beltline.core.capabilities import Durability
from beltline.core.errors import BeltlineError, HandleMisused
from beltline.engines.moving import refusal
from beltline.engines.sqlite.file import REOPEN_PAUSE_S, File, roll_back
from beltline.engines.sqlite.ledger import Ledger, Queue
from beltline.engines.sqlite.operations import Chore, Operation, answer
from beltline.engines.sqlite.picking import next_instant
from beltline.engines.sqlite.storing import store_together
from beltline.engines.sqlite.times import Ratchet
from beltline.engines.sqlite.trouble import explain, meaning
from beltline.engines.sqlite.waiting import Waiting

MAX_OPERATIONS = 500
POLL_LEAST_S, POLL_MOST_S = 0.05, 2.0
NEXT_DUE = """SELECT min(due) FROM (SELECT min(due) AS due FROM message INDEXED BY message_delayed WHERE queue = ?1 AND state = 0
  UNION ALL SELECT min(due) FROM message INDEXED BY message_leased WHERE queue = ?1 AND state = 2)"""


NEXT_BUT_OVER = """SELECT min(due) FROM (SELECT min(due) AS due FROM message INDEXED BY message_delayed WHERE queue = ?1 AND state = 0
  UNION ALL SELECT min(due) FROM message INDEXED BY message_leased WHERE queue = ?1 AND state = 2 AND due > ?2)"""


class _SpoiledError(Exception):
    """An operation failed after it had begun to write."""


class Writer:
    """The file is opened in the thread; an error of that is the answer to whoever asks."""

    def __init__(self, path: Path, *, audited: bool, on_poison: Callable[[], None]) -> None:
        self._file = File(path, audited=audited, on_poison=on_poison)
        self._path = str(path)
        self._inbox: deque[Operation | Chore] = deque()
        self._waiting = Waiting()
        self._pipe = os.pipe()
        for fd in self._pipe:
            os.set_blocking(fd, False)
        self._asleep = False
        self._stopping = False
        self._ended = False
        self._look_again = False
        self._version = -1  # data_version at the last look
        self._poll_s = POLL_LEAST_S
        self._due_at: float | None = None  # on the monotonic clock
        self._due_known = False
        self._thread = threading.Thread(target=self._main, name="beltline-sqlite-writer", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------------------ from any thread
    def submit(self, work: Operation | Chore) -> None:
        self._inbox.append(work)
        if self._asleep:
            self._poke()
        if self._ended:
            self._refuse_all()

    def look_again(self) -> None:
        """A clock was moved: what waits may be due."""
        self._look_again = True
        self._poke()

    def _poke(self) -> None:
        self._asleep = False
        with contextlib.suppress(OSError):  # full: it is being woken already; closed: it has ended
            os.write(self._pipe[1], b"\0")

    @property
    def stalled(self) -> frozenset[tuple[int, int]]:
        """(queue, feed): the feed was above its high water at the last receive here, and is not known to be below the low one."""
        ledger = self._file.ledger
        return frozenset() if ledger is None else frozenset(ledger.stalled.copy())

    # ------------------------------------------------------------------------------------- chores, run in the thread
    def open(self, level: Durability, clock: Ratchet) -> None:
        """Be open, at least at this level, and let the clock go on from the newest time the file knows. Raises EngineError."""
        self._file.forgive()
        ledger = self._file.open()
        self._file.raise_level(level)
        try:
            ledger.look(clock.now_ms())
            ledger.sql("COMMIT")
        except apsw.Error as error:
            self._file.poison()
            raise explain(error, self._path, committing=False) from error
        clock.lift(ledger.now)

    def end_waits(self, owner: object) -> None:
        """Whoever waits through this handle gets what there is, now."""
        found = self._waiting.of(owner)
        for operation in found:
            self._waiting.release(operation)
        answer(found)

    def note_time(self, clock: Ratchet) -> None:
        """A handle is let go: remember how late it was, so that the next one never sees an earlier time. Best effort: time decides nothing."""
        ledger = self._file.ledger
        if ledger is None:
            return
        with contextlib.suppress(BeltlineError, apsw.Error), self._file.passage():
            try:
                self._file.begin(ledger)
                ledger.sql("UPDATE meta SET value = ?1 WHERE key = 'clock' AND value < ?1", (max(ledger.now, clock.now_ms()),))
                ledger.sql("COMMIT")
            except BaseException:
                roll_back(ledger)
                raise

    def close(self) -> None:
        """Close the file; the thread ends once nothing is left to answer."""
        self._stopping = True
        self._file.close()

    # ----------------------------------------------------------------------------------------------------- the thread
    def _main(self) -> None:
        while not self._stopping:
            batch = self._next()
            if batch:
                self._serve(batch)
        for fd in self._pipe:
            os.close(fd)
        self._ended = True
        self._refuse_all()

    def _refuse_all(self) -> None:
        """What comes after the end is answered too, by whichever thread sees it."""
        while True:
            try:
                work = self._inbox.popleft()
            except IndexError:
                return
            if isinstance(work, Operation):
                work.error = HandleMisused("The SQLite engine was closed.", help="Use nothing of it after close().")
                answer([work])
            else:
                work.do()

    def _next(self) -> list[Operation]:
        """The operations to run now: new ones, else waiting ones whose reason has come; sleeps until there are some."""
        batch: list[Operation] = []
        while self._inbox and len(batch) < MAX_OPERATIONS:
            work = self._inbox[0]
            if isinstance(work, Chore) and batch:
                break
            self._inbox.popleft()
            if isinstance(work, Chore):
                work.do()
                if self._stopping:
                    return []
            elif not work.given_up:
                batch.append(work)
        if batch or self._stopping:
            return batch
        heard = self._sleep()
        if self._inbox or not self._waiting:
            return []
        now = time.monotonic()
        due = self._due_at is not None and now >= self._due_at
        if heard or due or self._look_again or self._changed():
            self._look_again = self._due_known = False
            ledger = self._file.ledger
            looks = self._waiting.looks(lambda queue: ledger is not None and keeps(ledger, queue))
            return list(dict.fromkeys([*looks, *self._waiting.overdue(now)]))
        return self._waiting.overdue(now)

    def _sleep(self) -> bool:
        """Until something is submitted, somebody rings, something is due or it is time to poll. True if a hint came."""
        poller = select.poll()
        poller.register(self._pipe[0], select.POLLIN)
        timeout_ms: float | None = None
        if self._waiting:
            bell = None if self._file.bell is None else self._file.bell.listen()
            if bell is not None:
                poller.register(bell, select.POLLIN)
            timeout_ms = max(0.0, self._wake_at() - time.monotonic()) * 1000
        self._asleep = True
        if self._inbox or self._look_again:
            self._asleep = False
            return False
        ready = poller.poll(None if timeout_ms is None else -(-timeout_ms // 1))
        self._asleep = False
        heard = False
        for fd, _ in ready:
            if fd == self._pipe[0]:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._pipe[0], 4096)
            elif self._file.bell is not None:
                self._file.bell.drain()
                heard = True
        return heard

    def _wake_at(self) -> float:
        if not self._due_known:
            self._due_at = self._next_due()
            self._due_known = True
        poll_at = time.monotonic() + self._poll_s * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, no secret
        self._poll_s = min(self._poll_s * 2, POLL_MOST_S)
        return min(at for at in (poll_at, self._due_at, self._waiting.deadline) if at is not None)

    def _next_due(self) -> float | None:
        """When time alone will bring something to a queue somebody waits for, on the monotonic clock."""
        ledger = self._file.ledger
        if ledger is None:
            return time.monotonic() + REOPEN_PAUSE_S
        soonest: list[float] = []
        try:
            for name, first in self._waiting.queues:
                queue = ledger.by_name.get(name)
                due = None if queue is None or queue.paused else _next_instant(ledger, queue, first.time.now_ms())
                if due is not None:
                    soonest.append(time.monotonic() + max(0.0, (due - first.time.now_ms()) / 1000))
        except apsw.Error:
            return time.monotonic() + REOPEN_PAUSE_S
        return min(soonest, default=None)

    def _changed(self) -> bool:
        """Whether another process has committed since the last look."""
        if self._file.ledger is None:
            return True
        try:
            version = int(self._file.ledger.sql("PRAGMA data_version").get)
        except apsw.Error:
            return True
        changed, self._version = version != self._version, version
        return changed

    # ------------------------------------------------------------------------------------------------------ one batch
    def _serve(self, batch: list[Operation]) -> None:
        try:
            ran = self._together(self._file.open(), batch)
        except _SpoiledError:
            ran = self._one_by_one(batch)
        except BeltlineError as error:
            ran = self._failed(batch, error)
        except Exception as error:  # noqa: BLE001 - a fault of ours: nobody may be left waiting for it
            self._file.poison()
            ran = self._failed(batch, error)
        self._poll_s = POLL_LEAST_S
        self._due_known = False
        answer(self._finished(ran))
        self._file.checkpoint()

    def _failed(self, batch: list[Operation], error: Exception) -> list[Operation]:
        for operation in batch:
            operation.value, operation.error = None, error
        return batch

    def _together(self, ledger: Ledger, batch: list[Operation]) -> list[Operation]:
        """Run them in one transaction. Returns all that were run, those that were woken by them among them."""
        committing = False
        ran = dict.fromkeys(batch)
        ledger.someone_waits = self._waiting.results
        with self._file.passage():
            try:
                self._file.begin(ledger)
                for operation in self._after_sends(ledger, batch):
                    self._run(ledger, operation)
                    if operation.short:  # kept at once: the next of the batch may bring what it waits for
                        self._waiting.keep(operation)
                        ledger.someone_waits = ledger.someone_waits or self._waiting.results
                if self._waiting:
                    self._wake(ledger, ran)
                ledger.flush()
                committing = True
                ledger.sql("COMMIT")
            except _SpoiledError:
                roll_back(ledger)
                raise
            except apsw.Error as error:
                roll_back(ledger)
                if isinstance(error, apsw.FullError):
                    self._file.spend_ballast()
                    raise _SpoiledError from error
                if meaning(error).poisons:
                    self._file.poison()
                raise explain(error, self._path, committing=committing) from error
        if self._file.bell is not None and (ledger.woken or ledger.finished):
            self._file.bell.ring()
        return list(ran)

    def _after_sends(self, ledger: Ledger, batch: list[Operation]) -> list[Operation]:
        """A hundred concurrent senders of one message each are one write, if it can be done. Returns the operations still to be run.

        All of the batch came while the last commit was in flight, so none of them has happened before another: sends may go first.
        """
        sends = [operation for operation in batch if operation.messages is not None]
        if len(sends) < 2 or self._file.full or ledger.seal is not None:
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
                self._alone(self._file.open(), operation)
            except BeltlineError as error:
                operation.value, operation.error = None, error
        self._look_again = True  # those who wait were not woken
        return batch

    def _alone(self, ledger: Ledger, operation: Operation) -> None:
        committing = False
        with self._file.passage():
            try:
                self._file.begin(ledger)
                self._run(ledger, operation)
                ledger.flush()
                committing = True
                ledger.sql("COMMIT")
            except _SpoiledError as spoiled:
                roll_back(ledger)
                operation.value, operation.error = None, spoiled.__cause__
            except apsw.Error as error:
                roll_back(ledger)
                if isinstance(error, apsw.FullError):
                    self._file.spend_ballast()
                elif meaning(error).poisons:
                    self._file.poison()
                raise explain(error, self._path, committing=committing) from error

    def _run(self, ledger: Ledger, operation: Operation) -> None:
        self._set_time(ledger, operation)
        if ledger.seal is not None and ledger.seal.level > operation.allowed:
            operation.value, operation.error = None, refusal(ledger.seal, self._path)
            return
        refused = self._file.refuse_sends() if operation.messages is not None and self._file.full else None
        if refused is not None:
            operation.value, operation.error = None, refused
            return
        before = ledger.db.total_changes()
        try:
            operation.value = operation.run(ledger)
            operation.error = None
            if ledger.flow.stirred:
                ledger.flow.refresh()
        except apsw.Error:
            raise
        except BeltlineError as error:
            operation.value, operation.error = None, error
            if ledger.db.total_changes() != before:
                raise _SpoiledError from error
        except Exception as error:  # a fault of ours in one operation must not end the thread that serves all others
            raise _SpoiledError from error

    def _set_time(self, ledger: Ledger, operation: Operation) -> None:
        now = operation.time.now_ms()
        if now > ledger.now:
            ledger.now = now
        elif now < ledger.now:
            operation.time.lift(ledger.now)

    def _wake(self, ledger: Ledger, ran: dict[Operation, None]) -> None:
        """Run what waits for something that this transaction has brought."""
        done: set[str] = set()
        while True:
            ledger.runbook.flush()  # only now is it known which runs have ended
            brought = [*("q" + ledger.by_number[n].name for n in ledger.woken), *("i" + id for id in ledger.ended)]
            keys = self._waiting.known(brought) - done
            if not keys:
                return
            done |= keys
            for key in keys:
                for operation in self._waiting.line(key):
                    if operation.given_up or (operation in ran and not operation.short):
                        continue
                    self._run(ledger, operation)
                    ran[operation] = None
                    if key[0] == "q" and operation.short and not keeps(ledger, key[1:]):
                        break  # nothing is left for those behind it

    def _finished(self, operations: list[Operation]) -> list[Operation]:
        """Those to be answered now; the others are kept, for they have found nothing and have time left."""
        now = time.monotonic()
        finished = []
        for operation in operations:
            wait = operation.wait
            if wait is not None:
                if operation.short and not self._stopping:
                    here = operation.time.now_ms()
                    if wait.until_ms is None:
                        wait.until_ms = here + int((wait.deadline - now) * 1000)
                    if now < wait.deadline and here < wait.until_ms:
                        self._waiting.keep(operation)
                        continue
                self._waiting.release(operation)
            finished.append(operation)
        return finished


def _next_instant(ledger: Ledger, queue: Queue, now: int) -> float | None:
    """When (ms) time alone will bring something to it; None: never."""
    if not queue.limited and not ledger.tally(queue.n).flow:
        due: int | None = ledger.sql(NEXT_DUE, (queue.n,)).get
        return due
    shut = ledger.flow.shape(queue.n).shut_until
    if shut > now:
        return shut
    if queue.n in ledger.flow.refused:  # a lease that is over and may not start again must not keep us awake
        due = ledger.sql(NEXT_BUT_OVER, (queue.n, now)).get
    else:
        due = ledger.sql(NEXT_DUE, (queue.n,)).get
    soonest = min(math.inf if due is None else due, next_instant(ledger, queue, now))
    return None if soonest == math.inf else soonest


def keeps(ledger: Ledger, name: str) -> bool:
    """Whether workers keep sticky keys of the queue: then what one of them does not find another one may."""
    queue = ledger.by_name.get(name)
    return queue is not None and bool(ledger.tally(queue.n).flow) and ledger.flow.shape(queue.n).sticky
