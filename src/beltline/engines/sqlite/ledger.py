"""The writer's desk: the connection, and everything it knows by heart between two transactions.

Counters and the rows of runs and gathers change many times in one transaction and are written once, in `flush`, before the COMMIT. What is remembered over
a transaction (declarations, counters, names, the next seq) holds until another process has written, which `PRAGMA data_version` tells; a rollback forgets all.
An operation gets the ledger, its arguments, and nothing else; `now` is set before each one and never runs backwards.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import apsw
import msgspec

from beltline.core.errors import QueueNotDeclared
from beltline.core.message import Place
from beltline.core.queues import QueueSpec, rank
from beltline.engines.moving import Seal, read_seal
from beltline.engines.sqlite.runbook import Runbook
from beltline.engines.sqlite.shaping import Shaper

MAX_REMEMBERED = 200_000  # leases and names kept in memory; each is only a shortcut
TASK, CHAIN, WORKER = 1, 2, 3  # kinds of names

_specs = msgspec.msgpack.Decoder(QueueSpec)


Lease = tuple[int, bytes, int, str | None, int | None, Place | None, int | None]  # seq, id, queue, group, run, place, lane


class Rows(Protocol):
    """What a statement gives: rows of whatever the columns hold. `get`: the one value or row there is, None without one."""

    @property
    def get(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...

    def __iter__(self) -> Iterator[Any]: ...


class Queue:
    """A declared queue. `feeds`: the queues it hands on to with their fan-out; `feeders`: the queues that hand on to it. `limited`: flow control looks at all of it."""

    __slots__ = ("ageing_ms", "feeders", "feeds", "limited", "max_deliveries", "n", "name", "paused", "skip_dead", "spec")

    def __init__(self, n: int, spec: QueueSpec, paused: bool) -> None:
        self.n, self.name, self.spec, self.paused = n, spec.name, spec, paused
        self.ageing_ms = round(rank(0.0, -1, spec.ageing_s) * 1000)
        self.max_deliveries = spec.max_deliveries
        self.skip_dead = spec.on_dead == "skip"
        self.limited = bool(spec.limits) or spec.kill_switch is not None
        self.feeds: list[tuple[Queue, int]] = []
        self.feeders: list[tuple[Queue, int]] = []


class Tally:
    """The counters of one queue, as rows stand: `ready` includes blocked ones, `delayed` and `leased` those whose time is over. `flow`: shaping.py knows more of it."""

    __slots__ = ("dead", "delayed", "dirty", "done", "flow", "leased", "parked", "queue", "ready")

    def __init__(self, queue: int, row: tuple[int, ...]) -> None:
        self.queue = queue
        self.ready, self.delayed, self.leased, self.dead, self.done, self.parked, self.flow = row
        self.dirty = False

    def add(self, state: int, count: int) -> None:
        self.dirty = True
        if state == 1:
            self.ready += count
        elif state == 2:
            self.leased += count
        elif state == 0:
            self.delayed += count
        elif state == 3:
            self.done += count
        else:
            self.dead += count


class Ledger:
    """One connection's state. Only the writer thread of its store touches it."""

    def __init__(self, db: apsw.Connection, *, audited: bool = False) -> None:
        self.db = db
        self.sql: Callable[..., Rows] = db.execute
        self.many: Callable[..., Any] = db.executemany
        self.audited = audited
        self.now = 0
        self.leases: dict[str, Lease] = {}  # by message id, of deliveries handed out here: saves a look-up, proves nothing
        self.woken: set[int] = set()  # queues that got something receivable in this transaction
        self.ended: list[str] = []  # ids of messages and runs that ended in this transaction
        self.someone_waits = False  # for a result: then `ended` is kept
        self.finished = False  # something ended in this transaction
        self.audit: list[tuple[int, str, bytes, int, int, int | None]] = []
        self.stalled: set[tuple[int, int]] = set()  # (queue, feed): the feed is above its high water and not yet below the low one
        self.forget()

    # ------------------------------------------------------------------------------------------------ transactions
    def forget(self) -> None:
        """After a rollback or a foreign commit nothing remembered is true."""
        self.leases.clear()
        self.tallies: dict[int, Tally] = {}
        self._tasks: dict[str, int] = {}
        self.names: dict[int, str] = {}
        self._known: dict[tuple[int, str], int] = {}
        self._declared = -1
        self.by_name: dict[str, Queue] = {}
        self.by_number: dict[int, Queue] = {}
        self.next_seq = -1
        self.asked: bool | None = None
        self._hand_outs = self._hand_outs_written = 0
        self._version = -1
        self.seal: Seal | None = None
        self.runbook = Runbook(self)
        self.naming: dict[str, list[int]] = {}  # limits, and the queues that name them
        self.flow = Shaper(self)

    def begin(self) -> None:
        self.sql("BEGIN IMMEDIATE")
        self.woken.clear()
        self.ended.clear()
        self.audit.clear()
        self.finished = False
        version = self.sql("PRAGMA data_version").get
        if version != self._version:
            self._version = version
            self._refresh()
        self.runbook.clear()

    def join(self, now: int) -> None:
        """In an open transaction that others have begun and may have written in: know nothing by heart."""
        self.forget()
        self.woken.clear()
        self.ended.clear()
        self.audit.clear()
        self.finished = False
        self._version = self.sql("PRAGMA data_version").get
        self._refresh()
        self.now = max(self.now, now)

    def look(self, now: int) -> None:
        """Begin to read: a snapshot of the last commit."""
        self.sql("BEGIN")
        version = self.sql("PRAGMA data_version").get
        if version != self._version:
            self._version = version
            self._refresh()
        self.now = max(self.now, now)

    def _refresh(self) -> None:
        """Somebody else has written: read again what may have changed."""
        self.tallies.clear()
        self.asked = None
        self.runbook.changed()
        self.flow.forget()
        self._hand_outs = self._hand_outs_written = self.sql("SELECT value FROM meta WHERE key = 'hand_outs'").get
        self.seal = read_seal(self.sql("SELECT value FROM meta WHERE key = 'seal'").get)
        self.next_seq = self.sql("SELECT max((SELECT coalesce(max(seq), 0) + 1 FROM message), (SELECT value FROM meta WHERE key = 'next_seq'))").get
        clock = self.sql("SELECT max((SELECT coalesce(max(clock), 0) FROM tally), (SELECT value FROM meta WHERE key = 'clock'))").get
        if clock > self.now:
            self.now = clock
        declared = self.sql("SELECT value FROM meta WHERE key = 'declared'").get
        if declared != self._declared:
            self._declared = declared
            self.read_queues()

    def flush(self) -> None:
        """Write what was kept back: gathers, runs, flow control, counters, audit rows."""
        self.runbook.flush()
        if self.flow.stirred:
            self.flow.refresh()
        for tally in self.tallies.values():
            if tally.dirty:
                tally.dirty = False
                self.sql(
                    "UPDATE tally SET ready = ?, delayed = ?, leased = ?, dead = ?, done = ?, parked = ?, clock = ? WHERE queue = ?",
                    (tally.ready, tally.delayed, tally.leased, tally.dead, tally.done, tally.parked, self.now, tally.queue),
                )
                for feeder, _ in self.by_number[tally.queue].feeders:
                    if (feeder.n, tally.queue) in self.stalled:
                        self.woken.add(feeder.n)  # there may be room again
        if self._hand_outs != self._hand_outs_written:
            self.sql("UPDATE meta SET value = ? WHERE key = 'hand_outs'", (self._hand_outs,))
            self._hand_outs_written = self._hand_outs
        if self.audit:
            self.many("INSERT INTO audit(at, move, id, queue, epoch, run) VALUES(?, ?, ?, ?, ?, ?)", self.audit)

    def note(self, move: str, id: bytes, queue: int, epoch: int, run: int | None) -> None:
        self.audit.append((self.now, move, id, queue, epoch, run))

    # ------------------------------------------------------------------------------------------------------ queues
    def read_queues(self) -> None:
        self.by_name, self.by_number, self.naming = {}, {}, {}
        for n, spec, paused in self.sql("SELECT n, spec, paused FROM queue ORDER BY n"):
            queue = Queue(n, _specs.decode(spec), bool(paused))
            self.by_name[queue.name] = self.by_number[n] = queue
            for name in dict.fromkeys(queue.spec.limits):
                self.naming.setdefault(name, []).append(n)
        for queue in self.by_number.values():
            for feed in queue.spec.feeds:
                target = self.by_name.get(feed.queue)
                if target is not None:
                    queue.feeds.append((target, max(1, feed.fan_out)))
                    target.feeders.append((queue, max(1, feed.fan_out)))

    def changed_queues(self) -> None:
        self._declared = self.sql("UPDATE meta SET value = value + 1 WHERE key = 'declared' RETURNING value").get
        self.read_queues()

    def queue(self, name: str) -> Queue:
        queue = self.by_name.get(name)
        if queue is None:
            raise QueueNotDeclared(name, known=tuple(self.by_name))
        return queue

    def tally(self, queue: int) -> Tally:
        tally = self.tallies.get(queue)
        if tally is None:
            row = self.sql("SELECT ready, delayed, leased, dead, done, parked, flow FROM tally WHERE queue = ?", (queue,)).get
            tally = self.tallies[queue] = Tally(queue, row)
        return tally

    # ------------------------------------------------------------------------------------------------------- names
    def task(self, name: str) -> int:
        n = self._tasks.get(name)
        if n is None:
            n = self._tasks[name] = self.number(TASK, name)
        return n

    def number(self, kind: int, text: str) -> int:
        n = self._known.get((kind, text))
        if n is None:
            n = self.sql("SELECT n FROM name WHERE kind = ? AND text = ?", (kind, text)).get
            if n is None:
                n = self.sql("INSERT INTO name(kind, text) VALUES(?, ?) RETURNING n", (kind, text)).get
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            self._known[kind, text] = n
        return n

    def known(self, kind: int, text: str) -> int | None:
        """The number of a name, without making one."""
        n: int | None = self.sql("SELECT n FROM name WHERE kind = ? AND text = ?", (kind, text)).get
        return n

    def text(self, n: int) -> str:
        text = self.names.get(n)
        if text is None:
            if len(self.names) >= MAX_REMEMBERED:
                self.names.clear()
            text = self.names[n] = self.sql("SELECT text FROM name WHERE n = ?", (n,)).get
        return text

    def hand_out(self) -> int:
        """The next epoch of a group. One counter serves all groups: it grows within each, and no group need be remembered."""
        self._hand_outs += 1
        return self._hand_outs

    # ------------------------------------------------------------------------------------------------------- asked
    def any_asked(self) -> bool:
        """Whether any cancellation waits for its worker: nearly always no, so the look-ups behind it are saved."""
        if self.asked is None:
            self.asked = bool(self.sql("SELECT EXISTS(SELECT 1 FROM asked)").get)
        return bool(self.asked)
