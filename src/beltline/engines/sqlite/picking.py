"""Who is next in a queue that has lanes: the share with the lowest place, in it the lane with the first message. See engines/protocol.py, `flow`.

Front   the first few shares, and of a share the first few lanes, are read from their indexes into heaps. An entry may be served as long as it does not stand behind
        the last one that was read (`bound`): whatever was not read stands behind that. When one does, what has changed is written and the front is read again.
Source  the messages of a lane, or those without one, in their order; read in small pages, because most lanes give one message to a receive.
Bulk    a share that stands alone with one source without claims gives all there is room for at once.
Nothing in a closed lane is read. What was picked is leased by the caller (receiving.py), who is told in batches.
"""

import heapq
import math
from array import array
from collections.abc import Iterator
from typing import Any

import apsw
import msgspec

from beltline.core.flow import CLOSED, MEMBER_S, Claim, keeper, turn_cost
from beltline.core.views import WorkerView
from beltline.engines.rows import flow_of, priority_of
from beltline.engines.sqlite.ledger import Ledger, Queue
from beltline.engines.sqlite.shaping import LANE, NUMBERS, SHARE_ROW
from beltline.engines.sqlite.shares import Lane, Share

REOPENED = 200  # lanes whose time has come, opened by one receive
FRONT_LEAST, FRONT_MOST = 32, 500
PAGE_LEAST, PAGE_MOST = 2, 256

WHAT = "seq, id, task, epoch, failed, lost, sent, expires, why, group_key, run, head, body"
RANK, SEQ = 13, 0  # where the rows below have them
IN_LANE = (
    f"SELECT {WHAT}, rank FROM message INDEXED BY message_in_lane WHERE lane = ? AND lane IS NOT NULL AND state = 1 AND blocked = 0"
    " ORDER BY rank, seq LIMIT ? OFFSET ?"
)
PLAIN = (
    f"SELECT {WHAT}, rank FROM message INDEXED BY message_ready WHERE queue = ? AND state = 1 AND blocked = 0 AND lane IS NULL"
    " ORDER BY rank, seq LIMIT ? OFFSET ?"
)
SHARES = f"{SHARE_ROW} INDEXED BY share_next WHERE queue = ? AND owner = ? AND standing = 1 AND n <> ? ORDER BY noisy, place, tenant LIMIT ?"
LANES = f"{LANE} INDEXED BY lane_next WHERE share = ? AND closed_by IS NULL AND head_seq IS NOT NULL ORDER BY head_rank, head_seq LIMIT ?"
HEADS = "SELECT seq, head FROM message WHERE seq IN (SELECT value FROM carray(?))"
REOPEN = (
    "SELECT n FROM lane INDEXED BY lane_due WHERE queue = ? AND closed_until IS NOT NULL AND closed_until <= ?"
    " ORDER BY closed_until, closed_at, tenant, sticky, code, priority LIMIT ?"
)
STICKY = "SELECT n FROM lane INDEXED BY lane_sticky WHERE queue = ? AND sticky <> ''"
NOISY = "SELECT n FROM share INDEXED BY share_noisy WHERE queue = ? AND noisy = 1"
OPENS = "SELECT min(closed_until) FROM lane INDEXED BY lane_due WHERE queue = ? AND closed_until IS NOT NULL"

Row = tuple[Any, ...]
Picked = list[tuple[Row, int | None]]  # rows of WHAT, and the lanes they stood in
_worker = msgspec.msgpack.Decoder(WorkerView).decode
_views: dict[bytes, WorkerView] = {}


# ------------------------------------------------------------------------------------------------------------------ before a pick
def prepare(tx: Ledger, queue: Queue) -> None:
    flow, now = tx.flow, tx.now
    shape = flow.shape(queue.n)
    found = members(tx, queue.name)
    if found != shape.members:
        shape.members = found
        flow.change(shape)
        for (n,) in tx.sql(STICKY, (queue.n,)).fetchall() if shape.sticky else ():
            lane = flow.lane(n)
            flow.reown(lane, keeper(lane.sticky, found))
    if shape.opens is None or shape.opens <= now:
        due = tx.sql(REOPEN, (queue.n, now, REOPENED)).fetchall()
        for (n,) in due:
            flow.open(flow.lane(n))
    if flow.stirred:
        flow.refresh()
    shape = flow.shape(queue.n)
    if shape.opens is None or shape.opens <= now:
        opens = tx.sql(OPENS, (queue.n,)).get
        shape.opens = math.inf if opens is None else opens
    if shape.marked is None:
        shape.marked = {flow.share_by_number(n) for (n,) in tx.sql(NOISY, (queue.n,)).fetchall()}
    for share in list(shape.marked):
        flow.mark(share, flow.is_noisy(share))
    if flow.stirred:
        flow.write_all()


def members(tx: Ledger, queue: str) -> tuple[str, ...]:
    """The workers that keep sticky keys of a queue."""
    workers = tx.flow.workers
    if workers is None:
        rows = tx.sql("SELECT id, seen, data FROM worker ORDER BY id").fetchall()
        workers = tx.flow.workers = [(id, seen, _view(data)) for id, seen, data in rows]
    oldest = tx.now - int(MEMBER_S * 1000)
    return tuple([id for id, seen, view in workers if seen >= oldest and view.state == "up" and queue in view.queues])


def _view(data: bytes) -> WorkerView:
    view = _views.get(data)
    if view is None:
        if len(_views) > 1000:
            _views.clear()
        view = _views[data] = _worker(data)
    return view


def next_instant(tx: Ledger, queue: Queue, now: int) -> float:
    """When (ms) time alone will let something start that flow control holds back."""
    opens = tx.sql(OPENS, (queue.n,)).get
    return min(math.inf if opens is None else opens, tx.flow.limits.room(queue.spec.limits, now)[1], tx.flow.refused.get(queue.n, math.inf))


# ---------------------------------------------------------------------------------------------------------------------- a pick
class Source:
    """Messages in their order. `skip`: those read so far that still stand in the index."""

    def __init__(self, tx: Ledger, sql: str, key: int, page: int) -> None:
        self._tx, self._sql, self._key, self._page = tx, sql, key, page
        self._rows: list[Row] = []
        self._at = self._skip = self._taken = 0
        self._more = True

    def head(self) -> Row | None:
        if self._at < len(self._rows):
            return self._rows[self._at]
        if not self._more:
            return None
        self._rows = self._tx.sql(self._sql, (self._key, self._page, self._skip)).fetchall()
        self._at, self._more = 0, len(self._rows) == self._page
        self._skip += len(self._rows)
        self._page = max(self._page, min(self._page * 4, PAGE_MOST))
        return self._rows[0] if self._rows else None

    def pop(self) -> None:
        self._at += 1
        self._taken += 1

    def most(self, count: int) -> list[Row]:
        """Take up to so many of the first page."""
        if self.head() is None:
            return []
        rows = self._rows[self._at : self._at + count]
        self._at += len(rows)
        self._taken += len(rows)
        return rows

    def written(self) -> None:
        """What was taken stands in the index no more."""
        self._skip -= self._taken
        self._taken = 0


class Picker:
    """One receive of one queue, for one worker. `prepare` comes first."""

    def __init__(self, tx: Ledger, queue: Queue, worker: str, room: int, until: int) -> None:
        self._tx, self._queue, self._flow, self._worker, self._room, self._until = tx, queue, tx.flow, worker, room, until
        self._sources: dict[int, Source] = {}  # by lane; 0: those without one
        self._closed = 0
        self._heads: dict[int, bytes | None] = {}  # of messages that stand first in their lanes, as far as they are read
        self._picked: Picked = []
        self._front = min(room, FRONT_LEAST) + 1
        self._read()

    def batches(self) -> Iterator[Picked]:
        """What was picked, in order; each batch must be leased before the next is asked for."""
        while self._room > 0 and self._closed < CLOSED and (share := self._next()) is not None:
            if not share.noisy and self._flow.is_noisy(share):
                self._flow.mark(share, True)
                heapq.heapreplace(self._shares, (place_of(share), share))
            elif not self._serve(share):
                yield self._take_out()
        yield self._take_out()
        if self._closed >= CLOSED:
            self._flow.refused[self._queue.n] = self._tx.now

    def _take_out(self) -> Picked:
        for source in self._sources.values():
            source.written()
        picked, self._picked = self._picked, []
        return picked

    # ---- fronts

    def _read(self) -> None:
        tx, flow = self._tx, self._flow
        self._lanes: dict[int, tuple[list[tuple[tuple[int, int], Lane]], tuple[int, int] | None]] = {}
        self._shares: list[tuple[tuple[bool, int, str, str], Share]] = []
        self._bound: tuple[bool, int, str, str] | None = None
        nobody, count = flow.share(self._queue.n, "", ""), self._front
        keeps = flow.shape(self._queue.n).sticky
        for owner in dict.fromkeys(("", self._worker if keeps else "")):
            read = [flow.share_in(row) for row in tx.sql(SHARES, (self._queue.n, owner, nobody.n, count)).fetchall()]
            self._shares += [(place_of(share), share) for share in read]
            if len(read) == count:
                last = place_of(read[-1])
                self._bound = last if self._bound is None else min(self._bound, last)
        # What has no flow comes and goes without a word: whether the share of nobody stands is only known now.
        flow.stand(nobody, self._priority(nobody))
        if nobody.standing:
            self._shares.append((place_of(nobody), nobody))
        heapq.heapify(self._shares)

    def _read_again(self) -> None:
        self._widen()
        self._read()

    def _widen(self) -> None:
        """The front was passed: many were closed, and more will be."""
        self._flow.write_all()
        self._front = min(self._front * 4, FRONT_MOST)

    def _next(self) -> Share | None:
        while self._bound is not None and (not self._shares or self._shares[0][0] > self._bound):
            self._read_again()
        return self._shares[0][1] if self._shares else None

    def _lane(self, share: Share) -> Lane | None:
        """Its lane with the first message."""
        front = self._lanes.get(share.n)
        while front is None or (front[1] is not None and (not front[0] or front[0][0][0] > front[1])):
            if front is not None:
                self._widen()
            count = self._front
            read = [self._flow.lane_in(row) for row in self._tx.sql(LANES, (share.n, count)).fetchall()] if share.has_lane else []
            if len(read) > 1:
                self._look_ahead(read)
            entries = [(lane.head, lane) for lane in read if lane.head is not None]
            front = self._lanes[share.n] = (entries, entries[-1][0] if len(entries) == count else None)
        return front[0][0][1] if front[0] else None

    def _look_ahead(self, lanes: list[Lane]) -> None:
        """Read at once what their limits will be asked about: most of many lanes will be closed, and nothing else of those is needed."""
        limited = [lane for lane in lanes if lane.code and lane.head is not None]
        places = [lane.head[1] for lane in limited if lane.head is not None]
        if places:
            self._heads.update(self._tx.sql(HEADS, (apsw.carray(array("q", places)),)))
            self._flow.limits.fetch(key for lane in limited for key in lane.keys)

    def _source(self, lane: Lane | None) -> Source:
        key = 0 if lane is None else lane.n
        source = self._sources.get(key)
        if source is None:
            page = PAGE_LEAST
            if len(self._shares) <= 1 and self._bound is None:
                page = max(page, min(self._room + 1, 10 * PAGE_MOST))
            sql, at = (PLAIN, self._queue.n) if lane is None else (IN_LANE, lane.n)
            source = self._sources[key] = Source(self._tx, sql, at, page)
        return source

    # ---- one hand-out

    def _serve(self, share: Share) -> bool:
        """Let the share give its first message, or close the lane it stands in. False: what was picked must be leased before the next pick."""
        flow, now = self._flow, self._tx.now
        lane = self._lane(share)
        plain = self._source(None).head() if share.nobody else None
        if plain is not None and (lane is None or lane.head is None or (plain[RANK], plain[SEQ]) < lane.head):
            self._give(share, None, self._source(None))
            return True
        assert lane is not None  # else it would not stand
        assert lane.head is not None
        keys, seq = lane.keys, lane.head[1]
        source = self._source(lane)
        if keys:
            if seq not in self._heads:
                row = source.head()
                assert row is not None
                self._heads[seq] = row[11]
            claims = claims_of(self._heads.pop(seq))
            closing = flow.limits.refuses(claims, now)
            if closing is not None:
                self._closed += 1
                flow.close(lane, flow.limits.bucket(closing[0]).n, None if closing[1] == math.inf else int(closing[1]))
                heapq.heappop(self._lanes[share.n][0])
                self._settle(share)
                return True
            flow.limits.start(seq, self._queue.n, claims, now, self._until)
        self._give(share, lane, source)
        return not (keys and flow.limits.counts_leases(keys))

    def _give(self, share: Share, lane: Lane | None, source: Source) -> None:
        tx, flow = self._tx, self._flow
        bulk = self._alone(share, lane)
        if bulk:
            rows = source.most(self._room)
        else:
            row = source.head()
            assert row is not None
            source.pop()
            rows = [row]
        count = len(rows)
        self._room -= count
        n = None if lane is None else lane.n
        self._picked += [(row, n) for row in rows]
        flow.limits.start_in(self._queue.spec.limits, tx.now, count)
        tally, shape = tx.tally(self._queue.n), flow.shape(self._queue.n)
        tally.add(1, -count)
        tally.add(2, count - 1)
        head = source.head()
        if lane is not None and count > 1:
            flow.leased(lane, count - 1, lane.head)
        if bulk and not share.noisy and flow.is_noisy(share):  # as the last of them finds it
            flow.mark(share, True)
        tally.add(2, 1)
        cost = turn_cost(share.weight)
        shape.turn = max(shape.turn, share.tag + (count - 1) * cost)
        flow.change(shape, NUMBERS)
        share.tag += count * cost
        share.work.turn(tx.now)  # retention looks at it
        if lane is not None:
            flow.leased(lane, 1, None if head is None else (head[RANK], head[SEQ]))
            lanes = self._lanes[share.n][0]
            if lane.head is None:
                heapq.heappop(lanes)
            else:
                heapq.heapreplace(lanes, (lane.head, lane))
        self._settle(share)

    def _alone(self, share: Share, lane: Lane | None) -> bool:
        """Whether it gives all that is given: no other share stands, and it has one source, which asks nobody."""
        if len(self._shares) > 1 or self._bound is not None:
            return False
        lanes, bound = self._lanes[share.n]
        if lane is None:
            return not lanes
        plain = share.nobody and self._source(None).head() is not None
        return len(lanes) == 1 and bound is None and not plain and not lane.code

    def _settle(self, share: Share) -> None:
        """Put the share where it stands now."""
        priority = self._priority(share)
        self._flow.stand(share, priority)
        if priority is None:
            heapq.heappop(self._shares)
        else:
            heapq.heapreplace(self._shares, (place_of(share), share))

    def _priority(self, share: Share) -> int | None:
        """Of what the share would give next; None: it has nothing."""
        lane = self._lane(share)
        if share.nobody:
            plain = self._source(None).head()
            if plain is not None and (lane is None or lane.head is None or (plain[RANK], plain[SEQ]) < lane.head):
                return priority_of(plain[11])
        return None if lane is None else lane.priority


def place_of(share: Share) -> tuple[bool, int, str, str]:
    return share.noisy, share.place, share.tenant, share.owner


def claims_of(head: bytes | None) -> tuple[Claim, ...]:
    flow = flow_of(head)
    return () if flow is None else flow.claims
