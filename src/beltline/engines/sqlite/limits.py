"""Limits and their buckets: how many may start, and how many may run. The rules are those of engines/protocol.py, `limits`.

    limits   what the code declares and what an operator has set over it; read once, until another process writes
    bucket   (limit, key): its theoretical arrival time, and how many ready messages stand behind it
    hold     a leased message and the buckets it has a place of. A place counts while the lease is not over, so nobody has to take anything down when a worker dies
    The bucket (limit, "") is also that of the queues that name the limit: their leases are counted from the index of leases, and have no row here.

Writes are kept back until `write`, which every verb ends with (Shaper.refresh).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import ceil, inf
from typing import Any, Protocol

import apsw
import msgspec

from beltline.core.flow import Claim, Limit

LIVE = "SELECT count(*), min(due) FROM message INDEXED BY message_leased WHERE queue = ? AND state = 2 AND due > ?"
HOLDERS = "SELECT h.seq, m.due, m.queue FROM hold h INDEXED BY hold_bucket CROSS JOIN message m ON m.seq = h.seq WHERE h.bucket = ?"
FETCH = "SELECT n, key, tat, waiting, started FROM bucket WHERE name = ? AND key IN (SELECT value FROM carray(?))"
BucketKey = tuple[str, str]
_limit = msgspec.msgpack.Decoder(Limit).decode


class Book(Protocol):
    """What limits and lanes need of the transaction they stand in."""

    db: apsw.Connection
    sql: Any
    many: Any
    now: int
    by_number: dict[int, Any]
    naming: dict[str, list[int]]
    woken: set[int]

    def tally(self, queue: int) -> Any: ...


class Bucket:
    """`holders`: seq -> (lease until, queue), None = not read yet. `live`: those that count, as of `live_at`; None = count them again."""

    __slots__ = ("changed", "holders", "key", "live", "live_at", "n", "started", "tat_us", "waiting")

    def __init__(self, n: int, key: BucketKey, tat_us: int, waiting: int, started: int) -> None:
        self.n, self.key, self.tat_us, self.waiting, self.started = n, key, tat_us, waiting, started
        self.holders: dict[int, tuple[int, int]] | None = None
        self.live: tuple[int, float] | None = None
        self.live_at = 0
        self.changed = False


class LimitBook:
    def __init__(self, book: Book) -> None:
        self._book = book
        self._limits: dict[str, Limit] | None = None
        self._buckets: dict[BucketKey, Bucket] = {}
        self._numbers: dict[int, Bucket] = {}
        self._absent: set[BucketKey] = set()
        self._changed: list[Bucket] = []
        self._taken: list[tuple[int, int]] = []
        self._left: list[int] = []
        self.freed: Counter[BucketKey] = Counter()  # places given back by the present verb

    def __len__(self) -> int:
        return len(self._buckets) + len(self._absent)

    # ---- numbers

    def limit(self, name: str) -> Limit | None:
        """None: nobody has said what it is, so it bounds nothing."""
        if self._limits is None:
            rows = self._book.sql("SELECT name, coalesce(given, declared) FROM limits").fetchall()
            self._limits = {each: _limit(data) for each, data in rows}
        return self._limits.get(name)

    def reread(self) -> None:
        self._limits = None

    def fetch(self, keys: Iterable[BucketKey]) -> None:
        """Read many at once: a look for each costs several times as much."""
        wanted: dict[str, list[str]] = {}
        for name, key in keys:
            if (name, key) not in self._buckets and (name, key) not in self._absent:
                wanted.setdefault(name, []).append(key)
        for name, some in wanted.items():
            rows = self._book.sql(FETCH, (name, apsw.carray(tuple(some)))).fetchall()
            for n, key, tat_us, waiting, started in rows:
                self._keep(Bucket(n, (name, key), tat_us, waiting, started))
            self._absent.update((name, key) for key in some if (name, key) not in self._buckets)

    def find(self, key: BucketKey) -> Bucket | None:
        found = self._buckets.get(key)
        if found is None and key not in self._absent:
            row = self._book.sql("SELECT n, tat, waiting, started FROM bucket WHERE name = ? AND key = ?", key).get
            found = None if row is None else self._keep(Bucket(row[0], key, *row[1:]))
        return found

    def bucket(self, key: BucketKey) -> Bucket:
        """Made, if nobody has asked for it before."""
        found = self.find(key)
        if found is None:
            n = self._book.sql("INSERT INTO bucket(name, key, tat, waiting, started) VALUES(?, ?, 0, 0, 0) RETURNING n", key).get
            found = self._keep(Bucket(n, key, 0, 0, 0))
            found.holders = {}
            self._absent.discard(key)
        return found

    def by_number(self, n: int) -> Bucket:
        found = self._numbers.get(n)
        if found is None:
            name, key, *rest = self._book.sql("SELECT name, key, tat, waiting, started FROM bucket WHERE n = ?", (n,)).get
            found = self._keep(Bucket(n, (name, key), *rest))
        return found

    def _keep(self, bucket: Bucket) -> Bucket:
        self._buckets[bucket.key] = self._numbers[bucket.n] = bucket
        return bucket

    def tat_us(self, key: BucketKey) -> int:
        found = self.find(key)
        return 0 if found is None else found.tat_us

    # ---- places

    def running(self, key: BucketKey, now: int) -> tuple[int, float]:
        """How many leases hold a place, and when the first of them will be over (ms); inf = none."""
        count, first = self._holding(key, now)
        for queue in self._book.naming.get(key[0], ()) if not key[1] else ():
            more, soonest = self._book.sql(LIVE, (queue, now)).get
            count, first = count + more, min(first, inf if soonest is None else soonest)
        return count, first

    def _holding(self, key: BucketKey, now: int) -> tuple[int, float]:
        bucket = self.find(key)
        if bucket is None:
            return 0, inf
        if bucket.live is None or bucket.live_at != now:
            if bucket.holders is None:
                self._write_holds()
                bucket.holders = {seq: (until, queue) for seq, until, queue in self._book.sql(HOLDERS, (bucket.n,))}
            naming = () if key[1] else self._book.naming.get(key[0], ())
            live = [until for until, queue in bucket.holders.values() if until > now and queue not in naming]
            bucket.live, bucket.live_at = (len(live), min(live, default=inf)), now
        return bucket.live

    def counts_leases(self, keys: Iterable[BucketKey]) -> bool:
        """Whether one of them is also that of a whole queue."""
        return any(not key and name in self._book.naming for name, key in keys)

    # ---- one start

    def refuses(self, claims: Iterable[Claim], now: int) -> tuple[BucketKey, float] | None:
        """The first bucket that does not allow a start now, and until when (ms) it will not. None: all allow it."""
        now_us = now * 1000
        for claim in claims:
            limit, key = self.limit(claim.limit), (claim.limit, claim.key)
            if limit is None:
                continue
            if limit.concurrency < inf:
                running, first = self.running(key, now)
                if limit.concurrency - running < 1:
                    return key, first
            if limit.interval_us:
                opens_us = limit.opens_us(max(self.tat_us(key), now_us), claim.cost)
                if opens_us > now_us:
                    return key, ceil(opens_us / 1000)
        return None

    def bounds(self) -> bool:
        """Whether any limit has a concurrency."""
        self.limit("")
        return any(limit.concurrency < inf for limit in (self._limits or {}).values())

    def keeps(self, claims: Iterable[Claim], names: Iterable[str], now: int) -> bool:
        """Whether a lease that is over may go on: nobody else has its places. `names`: the limits of its queue."""
        for key in {*((claim.limit, claim.key) for claim in claims), *((name, "") for name in names)}:
            limit = self.limit(key[0])
            if limit is not None and limit.concurrency < inf and limit.concurrency - self.running(key, now)[0] < 1:
                return False
        return True

    def start(self, seq: int, queue: int, claims: Iterable[Claim], now: int, until: int) -> None:
        """Charge a start; the message holds its places from now on."""
        for claim in claims:
            limit, bucket = self.limit(claim.limit), self.bucket((claim.limit, claim.key))
            self._taken.append((seq, bucket.n))
            if bucket.holders is not None:
                fresh = seq not in bucket.holders and not (not claim.key and claim.limit in self._book.naming)
                bucket.holders[seq] = (until, queue)
                if bucket.live is not None and fresh and until > now:
                    bucket.live = (bucket.live[0] + 1, min(bucket.live[1], until))
                elif not fresh:
                    bucket.live = None
            if not bucket.started:
                bucket.started = 1
                self.change(bucket)
            if limit is not None and limit.interval_us:
                self._charge(bucket, limit.takes_us(claim.cost), now)

    def _charge(self, bucket: Bucket, takes_us: int, now: int) -> None:
        bucket.tat_us = max(bucket.tat_us, now * 1000) + takes_us
        self.change(bucket)

    def hold(self, seq: int, keys: Iterable[BucketKey]) -> None:
        """One that was leased elsewhere holds its places here, and is charged for nothing."""
        for key in keys:
            self._taken.append((seq, self.bucket(key).n))

    def end(self, seq: int, keys: Sequence[BucketKey], names: Iterable[str]) -> None:
        """A lease is no more. `names`: the limits of its queue."""
        if keys:
            self._left.append(seq)
        for key in keys:
            bucket = self._buckets.get(key)
            if bucket is not None and bucket.holders is not None:
                bucket.holders.pop(seq, None)
                bucket.live = None
            self._freed(key)
        for name in names:
            self._freed((name, ""))

    def _freed(self, key: BucketKey) -> None:
        limit = self.limit(key[0])
        if limit is not None and limit.concurrency < inf:
            self.freed[key] += 1

    def renewed(self) -> None:
        """Leases last longer than they did."""
        for bucket in self._buckets.values():
            bucket.holders = bucket.live = None

    # ---- whole queues

    def room(self, names: Iterable[str], now: int) -> tuple[float, float, str]:
        """How many starts the limits of a queue allow; when (ms) it will be more, if time alone decides; and which of them is the narrowest."""
        room, opens, by = inf, inf, ""
        now_us = now * 1000
        for name in names:
            limit, key = self.limit(name), (name, "")
            if limit is None:
                continue
            tat_us = self.tat_us(key)
            running, first = self.running(key, now) if limit.concurrency < inf else (0, inf)
            left, fits = limit.concurrency - running, limit.fits(tat_us, now_us)
            if min(left, fits) < room:
                room, by = min(left, fits), name
            if left < 1:
                opens = min(opens, first)
            if fits < 1:
                opens = min(opens, ceil(limit.opens_us(max(tat_us, now_us), 1.0) / 1000))
        return room, opens, by

    def start_in(self, names: Iterable[str], now: int, count: int = 1) -> None:
        """Charge starts to the limits of a queue."""
        for name in names:
            limit = self.limit(name)
            if limit is not None and limit.interval_us and count:
                bucket = self.bucket((name, ""))
                bucket.started = 1
                self._charge(bucket, limit.takes_us(1.0) * count, now)

    # ---- write

    def change(self, bucket: Bucket) -> None:
        if not bucket.changed:
            bucket.changed = True
            self._changed.append(bucket)

    @property
    def stirred(self) -> bool:
        return bool(self._changed or self._taken or self._left)

    def write(self) -> None:
        self._write_holds()
        if self._changed:
            rows = [(bucket.tat_us, bucket.waiting, bucket.started, bucket.n) for bucket in self._changed]
            self._book.many("UPDATE bucket SET tat = ?, waiting = ?, started = ? WHERE n = ?", rows)
            for bucket in self._changed:
                bucket.changed = False
            self._changed.clear()

    def _write_holds(self) -> None:
        if self._left:
            self._book.many("DELETE FROM hold WHERE seq = ?", [(seq,) for seq in self._left])
            self._left.clear()
        if self._taken:
            self._book.many("INSERT OR IGNORE INTO hold(seq, bucket) VALUES(?, ?)", self._taken)
            self._taken.clear()
