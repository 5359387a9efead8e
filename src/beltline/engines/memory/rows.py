"""What the memory engine keeps: a row per message, run and gather, and heaps that point at rows."""

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from math import floor, inf

from beltline.core.flow import WORK_WINDOW_MS as WINDOW
from beltline.core.lifecycle import State
from beltline.core.message import Gather, Message, Part
from beltline.core.names import ChainName, MessageId, RunId, WorkerId
from beltline.core.outcome import Ended, Failure
from beltline.core.views import AttemptView

ATTEMPTS_KEPT = 100  # a message that is parked every five seconds must not grow for ever


@dataclass(slots=True, eq=False)
class Row:
    """One message for as long as its history is kept. `seq` is its place among all sends and never changes; only `epoch` says who may settle.

    `ready_at`: when it became, or will become, ready. `rank` is drawn from it then, and is its place among the ready ones of its queue.
    """

    message: Message
    seq: int
    sent_at: float
    state: State = State.READY
    epoch: int = 0
    failed: int = 0
    lost: int = 0
    ready_at: float = 0.0
    rank: float = 0.0
    leased_at: float = 0.0
    lease_until: float = 0.0
    worker: WorkerId = WorkerId("")
    cancel_asked: str | None = None  # the reason; None = nobody asked
    counted: str = ""  # in its run, as "open" or "dead"; "" once it ended, or when its gather goes on without it
    ended_at: float = 0.0
    ended: Ended | None = None
    why: str = ""
    failure: Failure | None = None
    progress: bytes | None = None
    result: bytes | None = None
    result_until: float = inf
    attempts: list[AttemptView] = field(default_factory=list)
    lane: "Lane | None" = None  # where flow control counts it

    @property
    def id(self) -> MessageId:
        return self.message.id

    @property
    def part(self) -> Part | None:
        """Its answer is awaited by this gather (the innermost one)."""
        place = self.message.place
        return place.parts[-1] if place is not None and place.parts else None

    @property
    def expires_at(self) -> float:
        return inf if self.message.expires_s is None else self.sent_at + self.message.expires_s

    def shown(self, now: float) -> State:
        """The state as callers see it: who holds a lease that is over can still settle, but everybody else sees a message that can be had."""
        over = self.state is State.LEASED and self.lease_until <= now
        due = self.state is State.DELAYED and self.ready_at <= now
        return State.READY if over or due else self.state

    def note(self, attempt: AttemptView) -> None:
        self.attempts.append(attempt)
        del self.attempts[:-ATTEMPTS_KEPT]


BucketKey = tuple[str, str]  # limit, key
LaneKey = tuple[str, str, tuple[BucketKey, ...], int]  # tenant, sticky, buckets, priority


def millis(instant: float) -> int:
    """Whole milliseconds, as every store counts."""
    return floor(instant * 1000 + 0.5)


def due_at(message: Message, now: float) -> float:
    """When a message that is sent now becomes ready; not after now: at once."""
    return message.ready_at if message.ready_at is not None else now + message.delay_s


@dataclass(slots=True, eq=False)
class RunRow:
    """One run and its accounts. `last`: how its last message ended, None once a gather went on from there."""

    id: RunId
    chain: ChainName
    entered_at: float
    state: str = "running"
    open: int = 0
    dead: int = 0
    ended_at: float = 0.0
    last: Ended | None = None
    why: str = ""
    failure: Failure | None = None
    result: bytes | None = None
    result_until: float = inf
    rows: dict[MessageId, Row] = field(default_factory=dict)
    gathers: list["GatherRow"] = field(default_factory=list)

    @property
    def given_up(self) -> bool:
        """Nothing is handed on any more."""
        return self.state in ("failed", "cancelled")


@dataclass(slots=True, eq=False)
class GatherRow:
    """The parts that answered, by index; None = it will never come. `dead`: parts that wait for a redrive."""

    gather: Gather
    answers: dict[int, bytes | None] = field(default_factory=dict)
    dead: set[int] = field(default_factory=set)
    fired: bool = False


class Heap:
    """Rows by an instant or rank, lowest first, then in send order.

    Nothing is ever searched in it: a row that moved on leaves its pointer behind, and `holds` tells the living ones from those. Half of it may be
    left behind before it is swept, so every operation stays logarithmic.
    """

    __slots__ = ("_bound", "_entries", "_holds")

    def __init__(self, holds: Callable[[float, Row], bool]) -> None:
        self._holds = holds
        self._entries: list[tuple[float, int, Row]] = []
        self._bound = 64

    def push(self, key: float, row: Row) -> None:
        heappush(self._entries, (key, row.seq, row))
        if len(self._entries) > self._bound:
            self._entries = [entry for entry in set(self._entries) if self._holds(entry[0], entry[2])]
            heapify(self._entries)
            self._bound = 64 + 2 * len(self._entries)

    def first(self) -> tuple[float, Row] | None:
        while self._entries:
            key, _, row = self._entries[0]
            if self._holds(key, row):
                return key, row
            heappop(self._entries)
        return None

    def key(self) -> float:
        """The lowest number in it; inf = empty."""
        first = self.first()
        return inf if first is None else first[0]

    def rows(self) -> "set[Row]":
        """All living ones."""
        return {row for key, _, row in self._entries if self._holds(key, row)}

    def until(self, key: float) -> list[Row]:
        """Those whose number is at most `key`, in no order."""
        found, places = dict[Row, None](), [0]
        while places:
            place = places.pop()
            if place < len(self._entries) and self._entries[place][0] <= key:
                if self._holds(self._entries[place][0], self._entries[place][2]):
                    found[self._entries[place][2]] = None
                places += [2 * place + 1, 2 * place + 2]
        return list(found)

    def pop(self, until: float = inf) -> Row | None:
        """Take out the first row unless its number is above `until`."""
        first = self.first()
        if first is None or first[0] > until:
            return None
        heappop(self._entries)
        return first[1]


# ---- flow control: rows of a queue


class Work:
    """Worker time in whole milliseconds, of this window and the one before."""

    def __init__(self) -> None:
        self.window = self.now_ms = self.before_ms = 0

    def add(self, spent_ms: int, now_ms: int) -> None:
        self.turn(now_ms)
        self.now_ms += spent_ms

    def turn(self, now_ms: int) -> None:
        window = now_ms // WINDOW
        if window != self.window:
            self.before_ms = self.now_ms if window == self.window + 1 else 0
            self.window, self.now_ms = window, 0

    def recent_ms(self, now_ms: int) -> int:
        self.turn(now_ms)
        return self.now_ms + self.before_ms


@dataclass(slots=True, eq=False)
class Share:
    """`tag`: turns it has been given. `standing`: it had something to give at the last refresh."""

    tenant: str
    owner: str
    tag: int = 0
    noisy: bool = False
    standing: bool = False
    work: Work = field(default_factory=Work)
    lanes: "set[Lane]" = field(default_factory=set)

    @property
    def leased(self) -> int:
        return sum(lane.leased for lane in self.lanes)


class Lane:
    """`closed_until`: milliseconds, 0 = open, inf = until somebody opens it."""

    __slots__ = ("closed_at", "closed_by", "closed_until", "heap", "key", "leased", "ready", "share")

    def __init__(self, key: LaneKey, share: Share, heap: Heap) -> None:
        self.key = key
        self.share = share
        self.heap = heap
        self.leased = self.ready = 0
        self.closed_until: float = 0
        self.closed_at = 0
        self.closed_by: BucketKey | None = None

    @property
    def sticky(self) -> str:
        return self.key[1]

    @property
    def priority(self) -> int:
        return self.key[3]

    def head(self) -> Row | None:
        first = self.heap.first()
        return None if first is None else first[1]

    def open(self) -> None:
        self.closed_until, self.closed_by = 0, None
