"""Runs and gathers inside one transaction: read when first touched, changed in memory, written once at its end.

A linear hand-off (-1 for the message that ended, +1 for the next) changes nothing in its run, so nothing is written: a chain costs no run row per hop.
"""

from array import array
from collections.abc import Iterable
from typing import Any, Protocol

import apsw
import msgspec

from beltline.core.message import Gather
from beltline.core.outcome import Ended, Failure

RUNNING, DONE, DEAD, FAILED, CANCELLED = range(5)
RUN_WORDS = ("running", "done", "dead", "failed", "cancelled")
CHAIN = 2  # kind of name

_RUN = "SELECT n, id, chain, state, open, dead, ended FROM run WHERE"
_gathers = msgspec.msgpack.Decoder(Gather)


class Book(Protocol):
    """What the runs need of the transaction they stand in."""

    db: apsw.Connection
    sql: Any
    many: Any
    now: int
    ended: list[str]
    someone_waits: bool

    def number(self, kind: int, text: str) -> int: ...


class Run:
    """`last`: how its last message ended, None once a gather went on from there."""

    __slots__ = ("chain", "counted", "dead", "ended", "failure", "id", "last", "n", "open", "result", "seen", "state", "touched", "why")

    def __init__(self, n: int, id: str, chain: int, state: int, running: int, dead: int, ended: int, counted: int | None) -> None:
        self.n, self.id, self.chain, self.state, self.open, self.dead, self.ended = n, id, chain, state, running, dead, ended
        self.counted = counted  # the state run_tally counts it under; None = not yet counted
        self.seen: tuple[int, int, int] | None = (state, running, dead)  # as it is stored; None = not yet
        self.touched = False
        self.last: Ended | None = None
        self.why: str | None = None
        self.failure: Failure | None = None
        self.result: tuple[bytes, int] | None = None

    @property
    def given_up(self) -> bool:
        """Nothing is handed on any more."""
        return self.state >= FAILED

    def left(self, ended: Ended, *, dead: bool) -> None:
        """A message that counted as open, or as dead, is done."""
        if dead:
            self.dead -= 1
        else:
            self.open -= 1
        self.last, self.touched = ended, True

    def died(self, why: str, failure: Failure, *, counted: bool) -> None:
        self.open -= 1
        self.dead += counted
        self.why, self.failure, self.touched = why, failure, True

    def revived(self, *, counted: bool) -> None:
        self.dead -= counted
        self.open += 1
        self.touched = True


class GatherRow:
    __slots__ = ("data", "dead", "dirty", "fired", "missing", "n", "run")

    def __init__(self, n: int, run: int, missing: int, dead: int, fired: int, data: Gather) -> None:
        self.n, self.run, self.missing, self.dead, self.fired, self.data = n, run, missing, dead, fired, data
        self.dirty = False


class Runbook:
    def __init__(self, ledger: Book) -> None:
        self._ledger = ledger
        self._runs: dict[int, Run] = {}
        self._by_id: dict[str, Run] = {}
        self._gathers: dict[str, GatherRow | None] = {}
        self._absent: set[str] = set()  # run ids looked for in vain
        self._next: int | None = None  # number of the next new run

    def clear(self) -> None:
        """A new transaction begins."""
        if self._runs or self._absent:
            self._runs.clear()
            self._by_id.clear()
            self._absent.clear()
        if self._gathers:
            self._gathers.clear()

    def changed(self) -> None:
        """Another process has written."""
        self._next = None

    # -------------------------------------------------------------------------------------------------------- runs
    def enter(self, id: str, chain: str) -> Run:
        """The run of this id, made if it is new."""
        run = self._by_id.get(id) or self.find(id)
        if run is None:
            number = int(self._ledger.sql("SELECT coalesce(max(n), 0) + 1 FROM run").get) if self._next is None else self._next
            run = self._keep(Run(number, id, self._ledger.number(CHAIN, chain), RUNNING, 0, 0, 0, None))
            run.seen = None
            self._next = number + 1
        return run

    def find(self, id: str) -> Run | None:
        if id in self._absent:
            return self._by_id.get(id)
        return self._by_id.get(id) or self._read("id = ?", bytes.fromhex(id))

    def get(self, n: int) -> Run:
        run = self._runs.get(n) or self._read("n = ?", n)
        assert run is not None  # no message or gather outlives its run
        return run

    def fetch(self, numbers: Iterable[int]) -> None:
        """Read many at once: a look for each costs eight times as much."""
        wanted = [n for n in dict.fromkeys(numbers) if n not in self._runs]
        if len(wanted) > 1:
            for row in self._ledger.sql(f"{_RUN} n IN (SELECT value FROM carray(?))", (apsw.carray(array("q", wanted)),)).fetchall():
                self._read_row(*row)

    def fetch_ids(self, ids: Iterable[str]) -> None:
        wanted = [id for id in dict.fromkeys(ids) if id not in self._by_id and id not in self._absent]
        if len(wanted) > 1:
            keys = apsw.carray(tuple(bytes.fromhex(id) for id in wanted))
            for row in self._ledger.sql(f"{_RUN} id IN (SELECT value FROM carray(?))", (keys,)).fetchall():
                self._read_row(*row)
            self._absent.update(id for id in wanted if id not in self._by_id)

    def _read(self, where: str, value: Any) -> Run | None:
        row = self._ledger.sql(f"{_RUN} {where}", (value,)).get
        return None if row is None else self._read_row(*row)

    def _read_row(self, n: int, key: bytes, chain: int, state: int, running: int, dead: int, ended: int) -> Run:
        return self._keep(Run(n, key.hex(), chain, state, running, dead, ended, state))

    def _keep(self, run: Run) -> Run:
        self._runs[run.n] = self._by_id[run.id] = run
        return run

    def stored(self, id: str, chain: str) -> int:
        """A message came into being. Sent into a run that was given up, it opens the run again. Returns the number of the run."""
        run = self.enter(id, chain)
        run.open += 1
        run.touched = True
        if run.given_up:
            run.state = RUNNING
        return run.n

    # ----------------------------------------------------------------------------------------------------- gathers
    def open_gather(self, gather: Gather) -> GatherRow | None:
        """Only the row: whoever opens gathers stores the parts next. None if it was opened before."""
        if self.gather(gather.id) is not None:
            return None
        place = gather.then.place if gather.then is not None else None
        run = self.enter(gather.run, place.chain if place is not None else "")
        n = self._ledger.sql(
            "INSERT INTO gather(id, run, expected, missing, dead, fired, data) VALUES(?1, ?2, ?3, ?3, 0, 0, ?4) RETURNING n",
            (bytes.fromhex(gather.id), run.n, gather.expected, msgspec.msgpack.encode(gather)),
        ).get
        row = self._gathers[gather.id] = GatherRow(n, run.n, gather.expected, 0, 0, gather)
        return row

    def gather(self, id: str) -> GatherRow | None:
        if id not in self._gathers:
            row = self._ledger.sql("SELECT n, run, missing, dead, fired, data FROM gather WHERE id = ?", (bytes.fromhex(id),)).get
            if row is None:
                self._gathers[id] = None
            else:
                n, run, missing, dead, fired, data = row
                self._gathers[id] = GatherRow(n, run, missing, dead, fired, _gathers.decode(data))
        return self._gathers[id]

    def answer(self, gather: GatherRow, part: int, value: bytes | None) -> bool:
        """Note the answer of a part (None = absent). False if it has answered before."""
        ledger = self._ledger
        if gather.dead:
            self.revive(gather, part)
        ledger.sql("INSERT OR IGNORE INTO gather_part(gather, part, dead, value) VALUES(?, ?, 0, ?)", (gather.n, part, value))
        if not ledger.db.changes():
            return False
        gather.missing -= 1
        gather.dirty = True
        return True

    def answered(self, gather: GatherRow, part: int) -> bool:
        found = self._ledger.sql("SELECT 1 FROM gather_part WHERE gather = ? AND part = ? AND dead = 0", (gather.n, part)).get
        return found is not None

    def bury(self, gather: GatherRow, part: int) -> None:
        """The part is dead: the gather waits for its redrive."""
        self._ledger.sql("INSERT OR IGNORE INTO gather_part(gather, part, dead) VALUES(?, ?, 1)", (gather.n, part))
        gather.dead += self._ledger.db.changes()
        gather.dirty = True

    def revive(self, gather: GatherRow, part: int) -> None:
        self._ledger.sql("DELETE FROM gather_part WHERE gather = ? AND part = ? AND dead = 1", (gather.n, part))
        gather.dead -= self._ledger.db.changes()
        gather.dirty = True

    def fired(self, gather: GatherRow) -> list[bytes]:
        """Mark it. Returns the answers in part order, absent ones left out; they live on in what is sent, so they are dropped here."""
        sql = self._ledger.sql
        rows = sql("SELECT value FROM gather_part WHERE gather = ? AND dead = 0 AND value IS NOT NULL ORDER BY part", (gather.n,)).fetchall()
        sql("DELETE FROM gather_part WHERE gather = ?", (gather.n,))
        gather.fired = 1
        gather.dirty = True
        return [value for (value,) in rows]

    # ------------------------------------------------------------------------------------------------------- write
    def flush(self) -> None:
        ledger = self._ledger
        for row in self._gathers.values():
            if row is not None and row.dirty:
                row.dirty = False
                ledger.sql("UPDATE gather SET missing = ?, dead = ?, fired = ? WHERE n = ?", (row.missing, row.dead, row.fired, row.n))
        if not self._runs:
            return
        moved: dict[tuple[int, int], int] = {}
        fresh, changed = [], []
        for run in self._runs.values():
            if not run.touched and run.seen == (run.state, run.open, run.dead):
                continue
            self._judge(run, moved)
            if run.seen is None:
                fresh.append((run.n, bytes.fromhex(run.id), run.chain, run.state, run.open, run.dead, ledger.now, run.ended))
            elif run.seen != (run.state, run.open, run.dead):
                changed.append((run.state, run.open, run.dead, run.ended, run.n))
            run.seen, run.touched = (run.state, run.open, run.dead), False
        if fresh:
            ledger.many("INSERT INTO run(n, id, chain, state, open, dead, entered, ended) VALUES(?, ?, ?, ?, ?, ?, ?, ?)", fresh)
        if changed:
            ledger.many("UPDATE run SET state = ?, open = ?, dead = ?, ended = ? WHERE n = ?", changed)
        results = [(*run.result, run.n) for run in self._runs.values() if run.result is not None]
        if results:
            ledger.many("UPDATE run SET result = ?, result_until = ? WHERE n = ?", results)
        for run in self._runs.values():
            run.result = None
            if run.why is not None:
                failure = None if run.failure is None else msgspec.msgpack.encode(run.failure)
                ledger.sql("UPDATE run SET why = ?, failure = coalesce(?, failure) WHERE n = ?", (run.why, failure, run.n))
                run.why = run.failure = None
        for (chain, state), change in moved.items():
            if change:
                ledger.sql(
                    "INSERT INTO run_tally(chain, state, count) VALUES(?1, ?2, ?3) ON CONFLICT(chain, state) DO UPDATE SET count = count + ?3",
                    (chain, state, change),
                )

    def _judge(self, run: Run, moved: dict[tuple[int, int], int]) -> None:
        """Where the run stands now that the transaction is complete. A run that was given up stays so."""
        if not run.given_up:
            if run.open > 0:
                run.state = RUNNING
            elif run.dead > 0:
                run.state = DEAD
            elif run.touched:
                run.state = CANCELLED if run.last in (Ended.CANCELLED, Ended.EXPIRED) else DONE
        if run.state != run.counted:
            ledger = self._ledger
            run.ended = ledger.now if run.state not in (RUNNING, DEAD) else 0
            if run.state != RUNNING and ledger.someone_waits:
                ledger.ended.append(run.id)
            if run.counted is not None:
                key = (run.chain, run.counted)
                moved[key] = moved.get(key, 0) - 1
            key = (run.chain, run.state)
            moved[key] = moved.get(key, 0) + 1
            run.counted = run.state
