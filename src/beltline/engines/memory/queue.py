"""One queue: who is due, who is next, who is held, and its FIFO groups.

A row is in exactly one state, and `move` is the only door from one to the next: it checks the transition table and keeps the counts. The heaps below are
pointers into that truth.

Groups  a group's messages in send order. The head is the first that is not done (nor dead, if the queue skips dead heads). Only a ready head of a group
        without a lease stands in the queue; the others are behind it, however high their priority.
Flow    a message with a tenant, claims or a sticky key stands in a lane of the shaper instead of the queue's own order; leases that hold places of
        limits are told to the book of limits.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from math import inf

from beltline.core.flow import CLOSED
from beltline.core.lifecycle import Move, State, allowed
from beltline.core.names import WorkerId
from beltline.core.policy import PARKED
from beltline.core.queues import Counts, QueueSpec, held_back, rank
from beltline.engines.memory.limits import LimitBook
from beltline.engines.memory.rows import BucketKey, Heap, Row
from beltline.engines.memory.shaping import Shaper, claims
from beltline.engines.memory.switch import Switch


class Group:
    """One FIFO group."""

    __slots__ = ("leased", "members")

    def __init__(self) -> None:
        self.members: list[tuple[int, Row]] = []
        self.leased: Row | None = None


class QueueRows:
    def __init__(self, spec: QueueSpec, book: LimitBook) -> None:
        self.spec = spec
        self.book = book
        self.paused = False
        self.snoozed_until = 0.0
        self.switch = Switch()
        self.starved = False  # at the last look there was no room, whatever stood here
        self.stalled: set[str] = set()  # feeds that are above their high water and not yet below the low one
        self.count = dict.fromkeys(State, 0)
        self.parked = 0
        self.leased: set[Row] = set()
        self.groups: dict[str, Group] = {}
        self.grouped = Counter[str]()  # ready messages of each group
        self.stirred = False  # something became receivable since the flag was last taken down
        self.eased = False  # fewer are ready or leased than when the flag was last taken down: a stage before may go on
        self.soonest = inf  # the earliest instant noted since then
        self._delayed = Heap(lambda key, row: self.holds(row) and row.state is State.DELAYED and row.ready_at == key)
        self._stands = lambda key, row: self.holds(row) and row.state is State.READY and row.rank == key and not self.blocked(row)
        self._ready = Heap(self._stands)
        self.shaper = Shaper(spec, book, self._ready)
        self.refused: dict[Row, float] = {}  # leases that are over, and whose limits do not allow another start before then (ms)
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
        row.lane = self.shaper.lane(row, Heap(self._stands))
        self._tally(row, 1)
        if row.message.group is not None:
            self._join(row)
        if row.expires_at < inf:
            self._note(self._expiries, row.expires_at, row)
        self._arrive(row)

    def leave(self, row: Row) -> None:
        """Its message has been readdressed to another queue: whoever stood behind it in its group is next."""
        self._tally(row, -1)
        row.lane = None
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
            self.refused.pop(row, None)
            self.book.end(row, claims(row), self.spec.limits)
        self.eased = self.eased or before in (State.READY, State.LEASED)
        if row.message.group is not None and before is State.DEAD and state is State.READY:
            self._join(row)
        self._arrive(row)

    def rank(self, row: Row, ready_at: float) -> None:
        row.ready_at, row.rank = ready_at, rank(ready_at, row.message.priority, self.spec.ageing_s)

    def _tally(self, row: Row, by: int) -> None:
        self.count[row.state] += by
        self.shaper.count(row, by)
        if row.message.group is not None and row.state is State.READY:
            self.grouped[row.message.group] += by
            if not self.grouped[row.message.group]:
                del self.grouped[row.message.group]
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
        (self._ready if row.lane is None else row.lane.heap).push(row.rank, row)
        self.shaper.touch(row)
        self.stirred = True

    # ---- groups

    def _join(self, row: Row) -> None:
        assert row.message.group is not None
        members = self.groups.setdefault(row.message.group, Group()).members
        if members:
            self.shaper.touch(members[0][1])  # it may be behind the new one now
        heappush(members, (row.seq, row))

    def _offer(self, group: str, moved: Row) -> None:
        """After `moved` changed: let the head of its group stand in the queue if nothing of the group is leased."""
        mates = self.groups.get(group)
        if mates is None:
            return
        if moved.state is State.LEASED:
            mates.leased = moved
        elif mates.leased is moved:
            mates.leased = None
        head = self._head(mates)
        if head is None:
            del self.groups[group]
        elif mates.leased is None and head.state is State.READY:
            self._stand(head)

    def _head(self, mates: Group) -> Row | None:
        while mates.members:
            row = mates.members[0][1]
            skipped = row.state is State.DEAD and self.spec.on_dead == "skip"
            if self.holds(row) and row.state is not State.DONE and not skipped:
                return row
            heappop(mates.members)
        return None

    def blocked(self, row: Row) -> bool:
        """Behind the head of its group, or behind a lease of it."""
        if row.message.group is None or row.state not in (State.DELAYED, State.READY):
            return False
        mates = self.groups.get(row.message.group)
        return mates is not None and (mates.leased is not None or self._head(mates) is not row)

    def waits_for(self, row: Row) -> Row | None:
        """Whom its group waits for, if that is another."""
        mates = self.groups.get(row.message.group or "")
        other = None if mates is None else mates.leased or self._head(mates)
        return None if other is row else other

    def declare(self, spec: QueueSpec, rows: Iterable[Row]) -> None:
        """New numbers. `rows`: all of the engine, looked at only if dead heads are to be treated otherwise."""
        other, self.spec, self.shaper.spec = spec.on_dead != self.spec.on_dead, spec, spec
        self.stirred = True
        if other:
            self.groups.clear()
            mine = [row for row in rows if self.holds(row) and row.message.group is not None and row.state is not State.DONE]
            for row in mine:
                self._join(row)
                self.shaper.touch(row)
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

    def next(self, worker: str, now: float) -> Row | None:
        """Take out the message that is next for this worker. Where lanes are, `shaper.prepare` comes first."""
        if not self.shaper.shaped:
            return self._ready.pop()
        self.shaper.leased = self.count[State.LEASED]
        return self.shaper.next(worker, now)

    def shut_until(self) -> float:
        """Nothing at all is handed out before, though somebody may undo it."""
        return max(self.snoozed_until, self.switch.tripped_until)

    def next_instant(self, now: float) -> float:
        """When time alone will change something here."""
        if self.shut_until() > now:
            return self.shut_until()
        return min(self._delayed.key(), self._leases.key(), self._expiries.key(), self.opens_at(now))

    def opens_at(self, now: float) -> float:
        """When time alone will let a limited message start."""
        if self.shaper.closings >= CLOSED:
            return now
        lanes_ms = inf if self.starved else self.shaper.next_instant_ms()  # a lane that opens helps nobody while there is no room
        return min([lanes_ms, self.book.room(self.spec.limits, now)[1], *self.refused.values()]) / 1000

    def rows_ready(self) -> Iterable[Row]:
        """Every ready message, in no order."""
        return self._waiting.rows()

    def live(self, now: float) -> int:
        """Leases that are not over."""
        return sum(1 for row in self.leased if row.lease_until > now)

    # ---- numbers

    @property
    def backlog(self) -> int:
        """What `max_backlog` bounds."""
        return self.count[State.READY] + self.count[State.DELAYED] + self.count[State.LEASED]

    def come(self, now: float) -> list[Row]:
        """Delayed messages whose time has come: ready for all who look, though only a receive or a sweep moves them."""
        return self._delayed.until(now)

    def behind(self, closed: Callable[[BucketKey], bool], now: float) -> int:
        """Ready messages behind buckets that are closed."""
        lanes = {lane for lane in self.shaper.lanes.values() if lane.closed_by is not None and closed(lane.closed_by)}
        return sum(lane.ready for lane in lanes) + (sum(row.lane in lanes for row in self.come(now)) if lanes else 0)

    def free(self, now: float) -> int:
        """Ready messages that neither their group nor a closed lane holds."""
        lanes = {lane for lane in self.shaper.lanes.values() if lane.closed_by is not None}
        heads = sum(self._has_ready_head(self.groups[group]) for group in self.grouped)
        standing = self.count[State.READY] - self.grouped.total() + heads
        standing -= sum(len(lane.heap.rows()) if self.grouped else lane.ready for lane in lanes)
        come = sum(row.lane not in lanes and not self.blocked(row) for row in self.come(now))
        return standing + come + self.count[State.LEASED] - self.live(now)

    def _has_ready_head(self, mates: Group) -> bool:
        head = self._head(mates)
        return mates.leased is None and head is not None and head.state is State.READY

    def counts(self, now: float) -> Counts:
        over = [row.lease_until for row in self.leased if row.lease_until <= now]
        come = [row.ready_at for row in self.come(now)]
        oldest = min([*over, *come, self._waiting.key()])
        ready = self.count[State.READY] + len(over) + len(come)
        room = min(self.book.room(self.spec.limits, now)[0], self.switch.room(self.spec.kill_switch, self.live(now)))
        return Counts(
            ready=ready,
            delayed=self.count[State.DELAYED] - len(come),
            leased=self.count[State.LEASED] - len(over),
            dead=self.count[State.DEAD],
            done=self.count[State.DONE],
            parked=self.parked,
            oldest_ready_s=0.0 if oldest == inf else max(0.0, now - oldest),
            paused=self.paused,
            held=held_back(ready, self.free(now), room, shut=self.paused or self.shut_until() > now),
            snoozed_until=self.snoozed_until if self.snoozed_until > now else 0.0,
            tripped_until=self.switch.tripped_until if self.switch.tripped_until > now else 0.0,
            trying=self.switch.trying,
        )
