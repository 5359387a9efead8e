"""Limits and their buckets: how many may start, and how many may run.

A bucket is (limit, key). Its places are held by leases that are not over, so a crash gives its place back when its lease ends, and nothing can leak: there is no
count that somebody would have to take down. The bucket (limit, "") is also that of every queue that names the limit: each of its leases holds a place there.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil, inf

from beltline.core.errors import NotFound
from beltline.core.flow import Claim, Limit, check_limit
from beltline.core.lifecycle import State
from beltline.core.views import BucketView, LimitView
from beltline.engines.memory.rows import BucketKey, Row, millis


@dataclass(slots=True, eq=False)
class Bucket:
    tat_us: int = 0
    holders: set[Row] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class LimitRow:
    """What the code declared and what an operator has set over it."""

    declared: Limit | None = None
    given: Limit | None = None

    @property
    def limit(self) -> Limit:
        found = self.given or self.declared
        assert found is not None
        return found


class LimitBook:
    def __init__(self) -> None:
        self.rows: dict[str, LimitRow] = {}
        self.buckets: dict[BucketKey, Bucket] = {}
        self.leased: dict[str, list[set[Row]]] = {}  # of the queues that name a limit; kept by the store
        self.freed: Counter[BucketKey] = Counter()  # places given back by the present verb

    # ---- the numbers

    def declare(self, limits: Sequence[Limit]) -> set[str]:
        """The names of those that are other than before."""
        for limit in limits:
            check_limit(limit)
        changed = set()
        for limit in limits:
            row = self.rows.setdefault(limit.name, LimitRow())
            if row.declared != limit:
                row.declared = limit
                changed.add(limit.name)
        return changed

    def give(self, limit: Limit) -> None:
        check_limit(limit)
        self.rows.setdefault(limit.name, LimitRow()).given = limit

    def reset(self, name: str) -> None:
        """Raises NotFound."""
        row = self.rows.get(name)
        if row is None:
            raise NotFound(kind="limit", name=name)
        row.given = None
        if row.declared is None:
            del self.rows[name]

    def limit(self, name: str) -> Limit | None:
        """None: nobody has said what it is, so it bounds nothing."""
        row = self.rows.get(name)
        return None if row is None else row.limit

    # ---- places

    def running(self, bucket: BucketKey, now: float) -> Iterator[Row]:
        """Whose lease holds a place."""
        found = self.buckets.get(bucket)
        rows: set[Row] = set(found.holders) if found is not None else set()
        if not bucket[1]:
            rows.update(*self.leased.get(bucket[0], ()))
        return (row for row in rows if row.state is State.LEASED and row.lease_until > now)

    def left(self, bucket: BucketKey, limit: Limit, now: float) -> float:
        """Places that are free."""
        return limit.concurrency - sum(1 for _ in self.running(bucket, now)) if limit.concurrency < inf else inf

    def place_at_ms(self, bucket: BucketKey, now: float) -> float:
        """When time alone gives a place back; inf = never."""
        return min((millis(row.lease_until) for row in self.running(bucket, now)), default=inf)

    # ---- one start

    def refuses(self, claims: Iterable[Claim], now: float) -> tuple[BucketKey, float] | None:
        """The first bucket that does not allow a start now, and until when (ms) it will not. None: all allow it."""
        now_us = millis(now) * 1000
        for claim in claims:
            limit, bucket = self.limit(claim.limit), (claim.limit, claim.key)
            if limit is None:
                continue
            if self.left(bucket, limit, now) < 1:
                return bucket, self.place_at_ms(bucket, now)
            opens_us = limit.opens_us(max(self._tat_us(bucket), now_us), claim.cost) if limit.interval_us else 0
            if opens_us > now_us:
                return bucket, ceil(opens_us / 1000)
        return None

    def start(self, row: Row, claims: Iterable[Claim], now: float) -> None:
        """Charge a start; the row holds its places from now on."""
        for claim in claims:
            limit, bucket = self.limit(claim.limit), self.buckets.setdefault((claim.limit, claim.key), Bucket())
            bucket.holders.add(row)
            if limit is not None and limit.interval_us:
                bucket.tat_us = max(bucket.tat_us, millis(now) * 1000) + limit.takes_us(claim.cost)

    def keeps(self, claims: Iterable[Claim], names: Iterable[str], now: float) -> bool:
        """Whether a lease that is over may go on: nobody else has its places. `names`: the limits of its queue."""
        buckets = {*((claim.limit, claim.key) for claim in claims), *((name, "") for name in names)}
        return all(limit is None or self.left(bucket, limit, now) >= 1 for bucket in buckets for limit in (self.limit(bucket[0]),))

    def end(self, row: Row, claims: Iterable[Claim], names: Iterable[str]) -> None:
        """Its lease is no more. `names`: the limits of its queue."""
        for claim in claims:
            bucket = self.buckets.get((claim.limit, claim.key))
            if bucket is not None:
                bucket.holders.discard(row)
            self._freed(claim.limit, claim.key)
        for name in names:
            self._freed(name, "")

    def _freed(self, name: str, key: str) -> None:
        limit = self.limit(name)
        if limit is not None and limit.concurrency < inf:
            self.freed[name, key] += 1

    def _tat_us(self, bucket: BucketKey) -> int:
        found = self.buckets.get(bucket)
        return 0 if found is None else found.tat_us

    # ---- whole queues

    def room(self, names: Iterable[str], now: float) -> tuple[float, float, str]:
        """How many starts the limits of a queue allow; when (ms) it will be more, if time alone decides; and which of them is the narrowest."""
        room, opens_ms, by = inf, inf, ""
        now_us = millis(now) * 1000
        for name in names:
            limit, bucket = self.limit(name), (name, "")
            if limit is None:
                continue
            tat_us = self._tat_us(bucket)
            left, fits = self.left(bucket, limit, now), limit.fits(tat_us, now_us)
            if min(left, fits) < room:
                room, by = min(left, fits), name
            if left < 1:
                opens_ms = min(opens_ms, self.place_at_ms(bucket, now))
            if fits < 1:
                opens_ms = min(opens_ms, ceil(limit.opens_us(max(tat_us, now_us), 1.0) / 1000))
        return room, opens_ms, by

    def start_in(self, names: Iterable[str], now: float) -> None:
        """Charge one start to the limits of a queue."""
        for name in names:
            limit = self.limit(name)
            if limit is not None and limit.interval_us:
                bucket = self.buckets.setdefault((name, ""), Bucket())
                bucket.tat_us = max(bucket.tat_us, millis(now) * 1000) + limit.takes_us(1.0)

    # ---- views

    def view(self, name: str, waiting: int, now: float) -> LimitView:
        row = self.rows[name]
        limit = row.limit
        mine = [bucket for bucket in self.buckets if bucket[0] == name]
        running = {each for bucket in {*mine, (name, "")} for each in self.running(bucket, now)}
        return LimitView(
            name=name,
            rate=limit.rate,
            per_s=limit.per_s,
            burst=limit.most_at_once,
            concurrency=limit.concurrency,
            origin="code" if row.given is None else "operator",
            running=len(running),
            waiting=waiting,
        )

    def bucket_view(self, bucket: BucketKey, waiting: int, now: float) -> BucketView:
        limit, now_us = self.limit(bucket[0]), millis(now) * 1000
        opens = 0.0
        if limit is not None:
            if self.left(bucket, limit, now) < 1:
                opens = self.place_at_ms(bucket, now) / 1000
            elif limit.interval_us and (opens_us := limit.opens_us(max(self._tat_us(bucket), now_us), 1.0)) > now_us:
                opens = ceil(opens_us / 1000) / 1000
        return BucketView(limit=bucket[0], key=bucket[1], running=sum(1 for _ in self.running(bucket, now)), waiting=waiting, opens_at=opens)
