"""Flow control of queues: lanes, the shares of tenants, and what keeps them right. The rules are those of engines/protocol.py, `flow`.

    lane     messages that stand and fall together (tenant, sticky key, buckets of the claims, priority), with the first that stands in it (`head`).
             Closed by a bucket, until an instant or until a place is given back: then it is in none of the indexes that a receive reads
    share    a tenant's part of a queue (of one worker, where keys are sticky), with its turns and its place among those that stand
    shape    of a queue: its turn, the keepers of its keys, snooze and switch
    Messages without a flow stand in the index they always stood in; they are the share of nobody, which is looked at by each receive.

Refresh  a verb counts what it moves and marks what it touches; at the end of the verb, and before a receive picks, the marks are worked off and written: closed lanes
         that are empty open, places given back open lanes, heads are looked up, and shares that begin to stand start at the queue's turn.
Kept     lanes, shares and shapes are remembered until another process writes, as everything else of the ledger.
"""

from typing import Any

from beltline.core.flow import Flow, head_start, keeper, noisy
from beltline.core.views import WorkerView
from beltline.engines.rows import priority_of
from beltline.engines.sqlite import switch
from beltline.engines.sqlite.limits import Book, BucketKey, LimitBook
from beltline.engines.sqlite.shares import Lane, Shape, Share, encode

MAX_KEPT = 20_000  # lanes, shares and buckets remembered between two verbs
COUNTS, HEAD, DOOR, SHARE = 1, 2, 4, 8  # what of a lane has changed
NUMBERS, ALL = 1, 2  # what of a share or shape: leases, worker time, turns; or anything

LANE = (
    "SELECT n, queue, tenant, sticky, code, priority, share, ready, leased, other, head_rank, head_seq, closed_by, closed_until, closed_at FROM lane"
)
SHARE_ROW = "SELECT n, queue, tenant, owner, tag, weight, noisy, standing, place, priority, lanes, leased, span, work, work_before FROM share"
FIRST = "SELECT rank, seq FROM message INDEXED BY message_in_lane WHERE lane = ? AND lane IS NOT NULL AND state = 1 AND blocked = 0 ORDER BY rank, seq LIMIT 1"
FIRST_LANE = (
    "SELECT head_rank, head_seq, priority FROM lane INDEXED BY lane_next WHERE share = ? AND closed_by IS NULL AND head_seq IS NOT NULL"
    " ORDER BY head_rank, head_seq LIMIT 1"
)
FIRST_PLAIN = "SELECT rank, seq, head FROM message INDEXED BY message_ready WHERE queue = ? AND state = 1 AND blocked = 0 AND lane IS NULL ORDER BY rank, seq LIMIT 1"
DUE_IN_LANE = "SELECT 1 FROM message INDEXED BY message_delayed WHERE queue = ? AND state = 0 AND due <= ? AND lane = ? LIMIT 1"
WAITING = "SELECT n FROM lane INDEXED BY lane_closed WHERE closed_by = ? AND queue = ? ORDER BY closed_at, tenant, sticky, code, priority LIMIT ?"
BEHIND = "SELECT n FROM lane INDEXED BY lane_closed WHERE closed_by = ?"


class Shaper:
    def __init__(self, book: Book) -> None:
        self._book = book
        self.forget()

    def forget(self) -> None:
        self.limits = LimitBook(self._book)
        self.refused: dict[
            int, float
        ] = {}  # queues with leases that are over and may not start again, or with lanes not looked at, and when (ms) to look again
        self.workers: list[tuple[str, int, WorkerView]] | None = None  # id, when it was seen (ms)
        self._lanes: dict[int, Lane] = {}
        self._lane_numbers: dict[tuple[int, str, str, bytes, int], int] = {}
        self._shares: dict[int, Share] = {}
        self._share_numbers: dict[tuple[int, str, str], int] = {}
        self._shapes: dict[int, Shape] = {}
        self._touched: list[Lane] = []
        self._shares_touched: dict[Share, None] = {}
        self._changed_shares: list[Share] = []
        self._changed_shapes: list[Shape] = []
        self._judged: dict[int, list[int]] = {}  # deliveries ended by the present verb, and how many of them failed

    # ---- rows

    def shape(self, queue: int) -> Shape:
        found = self._shapes.get(queue)
        if found is None:
            sql = self._book.sql
            columns = "shaped, sticky, snoozed, switch, turn, members, held, lent, span, work, work_before"
            row = sql(f"SELECT {columns} FROM flow WHERE queue = ?", (queue,)).get
            found = self._shapes[queue] = Shape(queue, row or (0, 0, 0, switch.NEVER, 0, "", 0, 0, 0, 0, 0))
        return found

    def change(self, shape: Shape, what: int = ALL) -> None:
        if not shape.changed:
            self._changed_shapes.append(shape)
        shape.changed |= what

    def lane_of(self, queue: int, flow: Flow, priority: int) -> Lane:
        """The lane of a message that enters the queue."""
        code = encode([(claim.limit, claim.key) for claim in flow.claims])
        key = (queue, flow.tenant, flow.sticky, code, priority)
        n = self._lane_numbers.get(key)
        if n is None:
            n = self._book.sql("SELECT n FROM lane WHERE queue = ? AND tenant = ? AND sticky = ? AND code = ? AND priority = ?", key).get
            if n is None:
                n = self._make_lane(key)
            self._lane_numbers[key] = n
        lane = self.lane(n)
        if lane.share.weight != flow.weight:
            for (each,) in self._book.sql("SELECT n FROM share WHERE queue = ? AND tenant = ?", (queue, flow.tenant)).fetchall():
                share = self.share_by_number(each)
                share.weight = flow.weight
                self._change_share(share)
        return lane

    def _make_lane(self, key: tuple[int, str, str, bytes, int]) -> int:
        queue, tenant, sticky, _, _ = key
        shape = self.shape(queue)
        if not shape.shaped or (sticky and not shape.sticky):
            shape.shaped, shape.sticky = True, shape.sticky or bool(sticky)
            self.change(shape)
            self.share(queue, "", "")  # what has no flow takes part from now on
        share = self.share(queue, tenant, keeper(sticky, shape.members) if sticky else "")
        share.lanes += 1
        self._change_share(share)
        n: int = self._book.sql(
            "INSERT INTO lane(queue, tenant, sticky, code, priority, share, ready, leased, other) VALUES(?, ?, ?, ?, ?, ?, 0, 0, 0) RETURNING n",
            (*key, share.n),
        ).get
        return n

    def lane(self, n: int) -> Lane:
        found = self._lanes.get(n)
        if found is None:
            found = self.lane_in(self._book.sql(f"{LANE} WHERE n = ?", (n,)).get)
        return found

    def lane_in(self, row: tuple[Any, ...]) -> Lane:
        """`row`: as LANE gives it. What is known already is newer."""
        found = self._lanes.get(row[0])
        if found is None:
            found = self._lanes[row[0]] = Lane(row, self.share_by_number(row[6]))
        return found

    def share_in(self, row: tuple[Any, ...]) -> Share:
        """`row`: as SHARE_ROW gives it. What is known already is newer."""
        found = self._shares.get(row[0])
        if found is None:
            found = self._shares[row[0]] = Share(row)
        return found

    def share(self, queue: int, tenant: str, owner: str) -> Share:
        key = (queue, tenant, owner)
        n = self._share_numbers.get(key)
        if n is None:
            sql = self._book.sql
            n = sql("SELECT n FROM share WHERE queue = ? AND tenant = ? AND owner = ?", key).get
            if n is None:
                n = sql(
                    "INSERT INTO share(queue, tenant, owner, tag, weight, noisy, standing, place, priority, lanes, leased, span, work, work_before)"
                    " VALUES(?1, ?2, ?3, 0, coalesce((SELECT weight FROM share WHERE queue = ?1 AND tenant = ?2), 1.0), 0, 0, 0, 0, 0, 0, 0, 0, 0) RETURNING n",
                    key,
                ).get
            self._share_numbers[key] = n
        return self.share_by_number(n)

    def share_by_number(self, n: int) -> Share:
        found = self._shares.get(n)
        if found is None:
            found = self.share_in(self._book.sql(f"{SHARE_ROW} WHERE n = ?", (n,)).get)
        return found

    def _change_share(self, share: Share, what: int = ALL) -> None:
        if not share.changed:
            self._changed_shares.append(share)
        share.changed |= what

    # ---- messages come, move and go

    def arrived(self, lane: Lane, state: int, rank: int, seq: int, blocked: bool) -> None:
        """A new message; a ready one behind the head changes nothing there."""
        stale = lane.stale
        self.count(lane, state, 1)
        if state == 1 and not blocked and not stale and (lane.head is None or (rank, seq) < lane.head):
            lane.head = (rank, seq)
            lane.changed |= HEAD
        lane.stale = stale
        self._shares_touched[lane.share] = None

    def count(self, lane: Lane, state: int, by: int) -> None:
        """A message of the lane enters or leaves a state; if that is ready, which one stands first must be looked up."""
        lane.changed |= COUNTS
        if state == 1:
            lane.ready += by
            self.touch(lane)
            return
        if state == 2:
            self._count_lease(lane, by)
        elif state != 3:
            lane.other += by
        self._note(lane)

    def _count_lease(self, lane: Lane, by: int) -> None:
        lane.leased += by
        share = lane.share
        share.leased += by
        self._change_share(share, NUMBERS)
        if not share.nobody:
            shape = self.shape(lane.queue)
            shape.lent += by
            self.change(shape, NUMBERS)

    def touch(self, lane: Lane) -> None:
        lane.stale = True
        self._shares_touched[lane.share] = None
        self._note(lane)

    def _note(self, lane: Lane) -> None:
        if not lane.touched:
            lane.touched = True
            self._touched.append(lane)

    def touch_number(self, n: int | None) -> None:
        if n is not None:
            self.touch(self.lane(n))

    def touch_share(self, share: Share) -> None:
        self._shares_touched[share] = None

    def moved(self, n: int | None, seq: int, before: int, after: int, names: tuple[str, ...]) -> None:
        """A message went from one state to another. `names`: the limits of its queue."""
        keys: list[BucketKey] = []
        if n is not None:
            lane = self.lane(n)
            self.count(lane, before, -1)
            self.count(lane, after, 1)
            keys = lane.keys
        if before == 2 and after != 2:
            self.limits.end(seq, keys, names)

    def leased(self, lane: Lane, count: int, head: tuple[int, int] | None) -> None:
        """So many were handed out, and this one is next: nothing has to be looked up."""
        lane.ready -= count
        self._count_lease(lane, count)
        lane.head = head
        lane.changed |= COUNTS | HEAD
        self._note(lane)

    def spent(self, queue: int, n: int | None, spent: int) -> None:
        """Deliveries of a lane ended after so much task code (ms)."""
        shape = self.shape(queue)
        if shape.shaped and spent:
            share = self.lane(n).share if n is not None else self.share(queue, "", "")
            share.work.add(spent, self._book.now)
            shape.work.add(spent, self._book.now)
            self._change_share(share, NUMBERS)
            self.change(shape, NUMBERS)

    def answered(self, queue: int, count: int, failed: int) -> None:
        """So many deliveries of a queue that has a kill switch ended, and so many of them badly."""
        counts = self._judged.setdefault(queue, [0, 0])
        counts[0] += count
        counts[1] += failed

    # ---- opening and closing

    def open(self, lane: Lane) -> None:
        lane.closed_by = lane.closed_until = lane.closed_at = None
        lane.changed |= DOOR
        self._shares_touched[lane.share] = None
        self._note(lane)

    def close(self, lane: Lane, bucket: int, until: int | None) -> None:
        lane.closed_by, lane.closed_until, lane.closed_at = bucket, until, self._book.now
        lane.changed |= DOOR
        shape = self.shape(lane.queue)
        if until is not None and shape.opens is not None:
            shape.opens = min(shape.opens, until)
        self._note(lane)

    def limit_changed(self, name: str) -> None:
        """The numbers of a limit are others: every lane it has closed may look once more."""
        self.limits.reread()
        for (bucket,) in self._book.sql("SELECT n FROM bucket WHERE name = ?", (name,)).fetchall():
            for (n,) in self._book.sql(BEHIND, (bucket,)).fetchall():
                self.open(self.lane(n))

    def reown(self, lane: Lane, owner: str) -> None:
        """Its key has another keeper."""
        before = lane.share
        if before.owner == owner:
            return
        after = self.share(lane.queue, lane.tenant, owner)
        shape = self.shape(lane.queue)
        shape.lent += lane.leased * (before.nobody - after.nobody)
        self.change(shape)
        for share, by in ((before, -1), (after, 1)):
            share.lanes += by
            share.leased += by * lane.leased
            self._change_share(share)
            self.touch_share(share)
        lane.share = after
        lane.changed |= SHARE
        self._note(lane)

    # ---- refresh

    @property
    def stirred(self) -> bool:
        return bool(
            self._touched
            or self._shares_touched
            or self._changed_shares
            or self._changed_shapes
            or self._judged
            or self.limits.freed
            or self.limits.stirred
        )

    def refresh(self) -> None:
        """Work off what is marked, and write it."""
        self._open_empty()
        if self.limits.freed:
            self._write_lanes(keep=True)
            self._give_back()
        for lane in self._touched:
            if lane.stale:
                self._look_up(lane)
        self._write_lanes()
        for share in self._shares_touched:
            self.begin(share)
        self._shares_touched.clear()
        if self._judged:
            self._judge()
        self._write()
        if len(self._lanes) + len(self._shares) + len(self.limits) > MAX_KEPT:
            refused = self.refused
            self.forget()
            self.refused = refused

    def _open_empty(self) -> None:
        for lane in self._touched:
            if lane.closed_by is not None and not lane.ready and not (lane.other and self._is_due(lane)):
                lane.closed_by = lane.closed_until = lane.closed_at = None
                lane.changed |= DOOR

    def _is_due(self, lane: Lane) -> bool:
        """Whether a delayed message of it is ready, though no receive has said so yet."""
        return self._book.sql(DUE_IN_LANE, (lane.queue, self._book.now, lane.n)).get is not None

    def _give_back(self) -> None:
        freed, self.limits.freed = self.limits.freed, type(self.limits.freed)()
        book = self._book
        shaped = [queue for queue in book.by_number if book.tally(queue).flow and self.shape(queue).shaped]
        for key, places in freed.items():
            bucket = self.limits.find(key)
            if bucket is not None:
                for queue in shaped:
                    for (n,) in book.sql(WAITING, (bucket.n, queue, places)).fetchall():
                        self.open(self.lane(n))
        book.woken.update(self.refused)
        for name, kind in freed:
            if not kind:
                book.woken.update(book.naming.get(name, ()))

    def _look_up(self, lane: Lane) -> None:
        lane.stale = False
        head = self._book.sql(FIRST, (lane.n,)).get if lane.ready > 0 else None
        if head != lane.head:
            lane.head = head
            lane.changed |= HEAD

    def begin(self, share: Share) -> None:
        """Note whether it has something to give, and where that puts it."""
        first = self._book.sql(FIRST_LANE, (share.n,)).get if share.lanes else None
        share.has_lane = first is not None
        if share.nobody:
            plain = self._book.sql(FIRST_PLAIN, (share.queue,)).get
            if plain is not None and (first is None or plain[:2] < first[:2]):
                first = (*plain[:2], priority_of(plain[2]))
        self.stand(share, None if first is None else first[2])

    def stand(self, share: Share, priority: int | None) -> None:
        """`priority`: of what it would give next; None: it has nothing."""
        if priority is None:
            if share.standing:
                share.standing = False
                self._change_share(share)
            return
        if not share.standing:
            share.standing = True
            self._change_share(share)
            share.tag = max(share.tag, self.shape(share.queue).turn)
            self._book.woken.add(share.queue)
        place = share.tag - head_start(priority, self._book.by_number[share.queue].spec.ageing_s)
        if place != share.place or priority != share.priority:
            share.priority, share.place = priority, place
            self._change_share(share)

    def replace_all(self, queue: int) -> None:
        """A priority is worth another number of turns."""
        for (n,) in self._book.sql("SELECT n FROM share WHERE queue = ? AND standing = 1", (queue,)).fetchall():
            share = self.share_by_number(n)
            self.stand(share, share.priority)

    def _judge(self) -> None:
        for queue, (ended, failed) in self._judged.items():
            rule = self._book.by_number[queue].spec.kill_switch
            if rule is not None:
                shape = self.shape(queue)
                shape.switch = shape.switch.judge(rule, ended, failed, self._book.now)
                self.change(shape)
                self._book.woken.add(queue)
        self._judged.clear()

    def is_noisy(self, share: Share) -> bool:
        """As of now. `leased` counts leases that are over too."""
        shape, now, leased = self.shape(share.queue), self._book.now, self._book.tally(share.queue).leased
        mine = share.leased if not share.nobody else leased - shape.lent
        return noisy(mine, leased, share.work.recent(now), shape.work.recent(now))

    def mark(self, share: Share, marked: bool) -> None:
        if share.noisy != marked:
            share.noisy = marked
            found = self.shape(share.queue).marked
            if found is not None:
                (found.add if marked else found.discard)(share)
            self._change_share(share)

    # ---- write

    def _write_lanes(self, *, keep: bool = False) -> None:
        """`keep`: they are still touched."""
        counts, heads, rest = [], [], []
        for lane in self._touched:
            if lane.changed & (COUNTS | DOOR):
                self._wait(lane)
            rank, seq = lane.head or (None, None)
            if lane.changed & (DOOR | SHARE):
                rest.append((lane.share.n, lane.ready, lane.leased, lane.other, rank, seq, lane.closed_by, lane.closed_until, lane.closed_at, lane.n))
            elif lane.changed & HEAD:
                heads.append((lane.ready, lane.leased, lane.other, rank, seq, lane.n))
            elif lane.changed:
                counts.append((lane.ready, lane.leased, lane.other, lane.n))
            lane.changed = 0
            lane.touched = keep
        if not keep:
            self._touched.clear()
        for columns, rows in (
            ("ready = ?, leased = ?, other = ?", counts),
            ("ready = ?, leased = ?, other = ?, head_rank = ?, head_seq = ?", heads),
            ("share = ?, ready = ?, leased = ?, other = ?, head_rank = ?, head_seq = ?, closed_by = ?, closed_until = ?, closed_at = ?", rest),
        ):
            if rows:
                self._book.many(f"UPDATE lane SET {columns} WHERE n = ?", rows)

    def _wait(self, lane: Lane) -> None:
        """Keep the sums of what waits behind closed buckets."""
        now = None if lane.closed_by is None else (lane.closed_by, lane.ready)
        if now == lane.waiting:
            return
        shape = self.shape(lane.queue)
        for each, by in ((lane.waiting, -1), (now, 1)):
            if each is not None:
                bucket = self.limits.by_number(each[0])
                bucket.waiting += by * each[1]
                self.limits.change(bucket)
                shape.held += by * each[1]
        self.change(shape, NUMBERS)
        lane.waiting = now

    def _write(self) -> None:
        book = self._book
        self.limits.write()
        numbers, whole = [], []
        for share in self._changed_shares:
            work = share.work
            if share.changed & ALL:
                row = (share.tag, share.weight, share.noisy, share.standing, share.place, share.priority, share.lanes)
                whole.append((*row, share.leased, work.span, work.now, work.before, share.n))
            else:
                numbers.append((share.leased, work.span, work.now, work.before, share.n))
            share.changed = 0
        self._changed_shares.clear()
        if numbers:
            book.many("UPDATE share SET leased = ?, span = ?, work = ?, work_before = ? WHERE n = ?", numbers)
        if whole:
            columns = (
                "tag = ?, weight = ?, noisy = ?, standing = ?, place = ?, priority = ?, lanes = ?, leased = ?, span = ?, work = ?, work_before = ?"
            )
            book.many(f"UPDATE share SET {columns} WHERE n = ?", whole)
        for shape in self._changed_shapes:
            self._write_shape(shape)
        self._changed_shapes.clear()

    def _write_shape(self, shape: Shape) -> None:
        book, what, shape.changed = self._book, shape.changed, 0
        numbers = (shape.turn, shape.held, shape.lent, shape.work.span, shape.work.now, shape.work.before)
        if not what & ALL:
            book.sql("UPDATE flow SET turn = ?, held = ?, lent = ?, span = ?, work = ?, work_before = ? WHERE queue = ?", (*numbers, shape.queue))
            return
        tally = book.tally(shape.queue)
        if not tally.flow:
            tally.flow = 1
            book.sql("UPDATE tally SET flow = 1 WHERE queue = ?", (shape.queue,))
        rest = (shape.queue, shape.shaped, shape.sticky, shape.snoozed, switch.encode(shape.switch), "\n".join(shape.members))
        columns = "queue, shaped, sticky, snoozed, switch, members, turn, held, lent, span, work, work_before"
        book.sql(f"INSERT OR REPLACE INTO flow({columns}) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*rest, *numbers))

    def write_all(self) -> None:
        """For whoever reads rows in the midst of a verb."""
        for lane in self._touched:
            if lane.stale:
                self._look_up(lane)
        self._write_lanes()
        self._write()
