"""One queue: who is due, who is next, who is held, and the lanes of its FIFO groups.

A row is in exactly one state, and `move` is the only door from one to the next: it checks the transition table and keeps the counts. The heaps below are
pointers into that truth.

Lanes   a group's messages in send order. The head is the first that is not done (nor dead, if the queue skips dead heads). Only a ready head of a lane
        without a lease stands in the queue; the others are behind it, however high their priority.
"""

from collections.abc import Iterable
from heapq import heappop, heappush
from math import inf

from beltline.core.lifecycle import Move, State, allowed
from beltline.core.names import WorkerId
from beltline.core.policy import PARKED
from beltline.core.queues import Counts, QueueSpec, rank
from beltline.engines.memory.rows import Heap, Row


class Lane:
    """One FIFO group."""

    __slots__ = ("leased", "members")

    def __init__(self) -> None:
        self.members: list[tuple[int, Row]] = []
        self.leased: Row | None = None


class QueueRows:
    def __init__(self, spec: QueueSpec) -> None:
        self.spec = spec
        self.paused = False
        self.stalled: set[str] = set()  # feeds that are above their high water and not yet below the low one
        self.count = dict.fromkeys(State, 0)
        self.parked = 0
        self.leased: set[Row] = set()
        self.lanes: dict[str, Lane] = {}
        self.stirred = False  # something became receivable since the flag was last taken down
        self.eased = False  # fewer are ready or leased than when the flag was last taken down: a stage before may go on
        self.soonest = inf  # the earliest instant noted since then
        self._delayed = Heap(lambda key, row: self.holds(row) and row.state is State.DELAYED and row.ready_at == key)
        self._ready = Heap(lambda key, row: self.holds(row) and row.state is State.READY and row.rank == key and not self.blocked(row))
        self._waiting = Heap(lambda key, row: self.holds(row) and row.state is State.READY and row.ready_at == key)
        self._leases = Heap(lambda key, row: self.holds(row) and row.state is State.LEASED and row.lease_until == key)
        self._expiries = Heap(lambda _, row: row.state in (State.DELAYED, State.READY) and row.epoch == 0)

    def holds(self, row: Row) -> bool:
        """False once a redrive has taken it to another queue."""
        return row.message.queue == self.spec.name

    # ---- the one door

    def enter(self, row: Row, state: State) -> None:
        """A row that is new here: just sent, or redriven from another queue."""
        row.state = state
        self._tally(row, 1)
        if row.message.group is not None:
            self._join(row)
        if row.expires_at < inf:
            self._note(self._expiries, row.expires_at, row)
        self._arrive(row)

    def leave(self, row: Row) -> None:
        """Its message has been readdressed to another queue: whoever stood behind it in its group is next."""
        self._tally(row, -1)
        if row.message.group is not None:
            self._offer(row.message.group, row)

    def move(self, row: Row, move: Move, state: State, *, why: str | None = None) -> None:
        """From its state to `state`, with a new `why` unless None. The caller has set what belongs to the new state (ready_at, lease_until)."""
        assert state in allowed(row.state, move), f"{move} may not lead from {row.state} to {state}"
        self._tally(row, -1)
        before, row.state = row.state, state
        if why is not None:
            row.why = why
        self._tally(row, 1)
        if before is State.LEASED and state is not State.LEASED:
            row.worker = WorkerId("")
            self.leased.discard(row)
        self.eased = self.eased or before in (State.READY, State.LEASED)
        if row.message.group is not None and before is State.DEAD and state is State.READY:
            self._join(row)
        self._arrive(row)

    def rank(self, row: Row, ready_at: float) -> None:
        row.ready_at, row.rank = ready_at, rank(ready_at, row.message.priority, self.spec.ageing_s)

    def _tally(self, row: Row, by: int) -> None:
        self.count[row.state] += by
        if row.why == PARKED and row.state in (State.DELAYED, State.READY):
            self.parked += by

    def _arrive(self, row: Row) -> None:
        match row.state:
            case State.DELAYED:
                self._note(self._delayed, row.ready_at, row)
            case State.READY:
                self._waiting.push(row.ready_at, row)
            case State.LEASED:
                self.leased.add(row)
                self._note(self._leases, row.lease_until, row)
            case State.DONE | State.DEAD:
                pass
        if row.message.group is not None:
            self._offer(row.message.group, row)
        elif row.state is State.READY:
            self._stand(row)

    def _note(self, heap: Heap, instant: float, row: Row) -> None:
        heap.push(instant, row)
        self.soonest = min(self.soonest, instant)

    def _stand(self, row: Row) -> None:
        self._ready.push(row.rank, row)
        self.stirred = True

    # ---- lanes

    def _join(self, row: Row) -> None:
        assert row.message.group is not None
        heappush(self.lanes.setdefault(row.message.group, Lane()).members, (row.seq, row))

    def _offer(self, group: str, moved: Row) -> None:
        """After `moved` changed: let the head of its lane stand in the queue if nothing of the group is leased."""
        lane = self.lanes.get(group)
        if lane is None:
            return
        if moved.state is State.LEASED:
            lane.leased = moved
        elif lane.leased is moved:
            lane.leased = None
        head = self._head(lane)
        if head is None:
            del self.lanes[group]
        elif lane.leased is None and head.state is State.READY:
            self._stand(head)

    def _head(self, lane: Lane) -> Row | None:
        while lane.members:
            row = lane.members[0][1]
            skipped = row.state is State.DEAD and self.spec.on_dead == "skip"
            if self.holds(row) and row.state is not State.DONE and not skipped:
                return row
            heappop(lane.members)
        return None

    def blocked(self, row: Row) -> bool:
        """Behind the head of its group, or behind a lease of it."""
        if row.message.group is None or row.state not in (State.DELAYED, State.READY):
            return False
        lane = self.lanes.get(row.message.group)
        return lane is not None and (lane.leased is not None or self._head(lane) is not row)

    def declare(self, spec: QueueSpec, rows: Iterable[Row]) -> None:
        """New numbers. `rows`: all of the engine, looked at only if dead heads are to be treated otherwise."""
        other, self.spec = spec.on_dead != self.spec.on_dead, spec
        self.stirred = True
        if other:
            self.lanes.clear()
            mine = [row for row in rows if self.holds(row) and row.message.group is not None and row.state is not State.DONE]
            for row in mine:
                self._join(row)
            for row in mine:
                assert row.message.group is not None
                self._offer(row.message.group, row)

    # ---- what time has brought

    def due(self, now: float) -> int:
        """Delayed messages whose time has come are ready. Returns how many."""
        moved = 0
        while (row := self._delayed.pop(now)) is not None:
            self.move(row, Move.DUE, State.READY)
            moved += 1
        return moved

    def expired(self, now: float) -> Row | None:
        """Take out one message that nobody received in its time."""
        return self._expiries.pop(now)

    def over(self, now: float, *, most: int) -> list[Row]:
        """Take out up to `most` leases that have run out, in the order in which they did. Those that stay leased must be watched again."""
        rows: dict[Row, None] = {}
        while len(rows) < most and (row := self._leases.pop(now)) is not None:
            rows[row] = None
        return list(rows)

    def watch(self, row: Row) -> None:
        """Note the (new) end of a lease."""
        self._note(self._leases, row.lease_until, row)

    def next(self) -> Row | None:
        """Take out the receivable message of the lowest rank."""
        return self._ready.pop()

    def next_instant(self) -> float:
        """When time alone will change something here."""
        return min(self._delayed.key(), self._leases.key(), self._expiries.key())

    # ---- numbers

    @property
    def backlog(self) -> int:
        """What `max_backlog` bounds."""
        return self.count[State.READY] + self.count[State.DELAYED] + self.count[State.LEASED]

    def counts(self, now: float) -> Counts:
        self.due(now)
        over = [row.lease_until for row in self.leased if row.lease_until <= now]
        oldest = min([*over, self._waiting.key()])
        return Counts(
            ready=self.count[State.READY] + len(over),
            delayed=self.count[State.DELAYED],
            leased=self.count[State.LEASED] - len(over),
            dead=self.count[State.DEAD],
            done=self.count[State.DONE],
            parked=self.parked,
            oldest_ready_s=0.0 if oldest == inf else max(0.0, now - oldest),
            paused=self.paused,
        )
