"""Flow control of one queue: lanes, the shares of its tenants, and who is next. The rules are those of engines/protocol.py, `flow`.

    bucket   (limit, key): how full it is, and which leases hold a place of it          (limits.py)
    lane     messages that stand and fall together: same tenant, sticky key, claims and priority. A lane whose head may not start is closed: until an
             instant, or until a place of the bucket that closed it is given back. Nothing in a closed lane is looked at
    share    a tenant's part of the queue (of one worker, where keys are sticky): its turns decide when it is next
    Messages without a flow are the share "" of the queue; they stand in the queue's own order, and cost nothing until the first lane is there.

Refresh  what a verb touched is put right once, at its end, and before every pick: a closed lane that is empty opens, places that were given back open lanes,
         and a share that begins to stand starts at the queue's own turn: nobody saves up turns by being away.
"""

from collections import Counter
from math import inf

from beltline.core.flow import CLOSED, Claim, head_start, keeper, noisy, turn_cost
from beltline.core.lifecycle import State
from beltline.core.queues import QueueSpec
from beltline.engines.memory.limits import LimitBook
from beltline.engines.memory.rows import BucketKey, Heap, Lane, LaneKey, Row, Share, Work, millis

REOPENED = 200  # lanes whose time has come, opened by one receive


class Shaper:
    """`spec` is replaced when the queue is declared again."""

    def __init__(self, spec: QueueSpec, book: LimitBook, plain: Heap) -> None:
        self.spec = spec
        self.lanes: dict[LaneKey, Lane] = {}
        self.shares: dict[tuple[str, str], Share] = {}
        self.weights: dict[str, float] = {}  # of each tenant, as its last message says
        self.members: tuple[str, ...] = ()
        self.turn = 0  # the highest tag that was served
        self.work = Work()
        self.closings = 0  # by the present receive
        self._book = book
        self._plain = plain
        self._touched: set[Share] = set()

    @property
    def shaped(self) -> bool:
        return bool(self.shares)

    # ---- messages come and go

    def lane(self, row: Row, heap: Heap) -> Lane | None:
        """The lane of a message that enters the queue; `heap`: for a new one. None: it needs none."""
        flow = row.message.flow
        if flow is None or not flow.shaped:
            return None
        key: LaneKey = (flow.tenant, flow.sticky, tuple((claim.limit, claim.key) for claim in flow.claims), row.message.priority)
        lane = self.lanes.get(key)
        if lane is None:
            self._share("", "")  # what has no flow takes part from now on
            share = self._share(flow.tenant, keeper(flow.sticky, self.members) if flow.sticky else "")
            lane = self.lanes[key] = Lane(key, share, heap)
            share.lanes.add(lane)
        self.weights[flow.tenant] = flow.weight
        return lane

    def _share(self, tenant: str, owner: str) -> Share:
        return self.shares.setdefault((tenant, owner), Share(tenant, owner))

    def count(self, row: Row, by: int) -> None:
        if row.lane is not None:
            row.lane.leased += by * (row.state is State.LEASED)
            row.lane.ready += by * (row.state is State.READY)
            self.touch(row)

    def touch(self, row: Row) -> None:
        """What its share has to give may be another at the next refresh."""
        if row.lane is not None:
            self._touched.add(row.lane.share)

    def spent(self, row: Row, ran_s: float, now: float) -> None:
        """A delivery ended after so much task code."""
        if self.shaped:
            share = row.lane.share if row.lane is not None else self._share("", "")
            for work in (share.work, self.work):
                work.add(int(ran_s * 1000 + 0.5), millis(now))

    # ---- opening and closing

    def given_back(self, freed: Counter[BucketKey]) -> None:
        """Places of these buckets are free again: as many lanes may look once more, those that wait longest first."""
        for bucket, places in freed.items():
            waiting = sorted(
                (lane for lane in self.lanes.values() if lane.closed_by == bucket and lane.ready), key=lambda lane: (lane.closed_at, lane.key)
            )
            for lane in waiting[:places]:
                self._open(lane)

    def changed(self, limit: str) -> None:
        """The numbers of a limit have changed."""
        for lane in self.lanes.values():
            if lane.closed_by is not None and lane.closed_by[0] == limit:
                self._open(lane)

    def _open(self, lane: Lane) -> None:
        lane.open()
        self._touched.add(lane.share)

    def _close(self, lane: Lane, by: BucketKey, until_ms: float, now_ms: int) -> None:
        lane.closed_until, lane.closed_by, lane.closed_at = until_ms, by, now_ms
        self._touched.add(lane.share)

    def refresh(self) -> bool:
        """Whether something stands here that did not before."""
        begun = False
        for share in self._touched:
            for lane in [lane for lane in share.lanes if lane.closed_by is not None and not lane.ready]:
                lane.open()
            begun |= self._begin(share)
        self._touched.clear()
        return begun

    def _begin(self, share: Share) -> bool:
        """Note whether it has something to give; whether that is new."""
        before, share.standing = share.standing, any(self._stands(lane) for lane in share.lanes) or self._first(share) is not None
        if share.standing and not before:
            share.tag = max(share.tag, self.turn)
        return share.standing and not before

    def _first(self, share: Share) -> tuple[float, Row] | None:
        """Of the messages without a flow."""
        return None if share.tenant or share.owner else self._plain.first()

    def _stands(self, lane: Lane) -> bool:
        return lane.closed_by is None and lane.head() is not None

    # ---- who is next

    def prepare(self, members: tuple[str, ...], now: float) -> None:
        """What a receive does before it picks."""
        now_ms = millis(now)
        if members != self.members:
            self.members = members
            for lane in [lane for lane in self.lanes.values() if lane.sticky]:
                self._hand_over(lane, keeper(lane.sticky, members))
        due = sorted((lane for lane in self.lanes.values() if lane.closed_by is not None and lane.closed_until <= now_ms), key=_due)
        for lane in due[:REOPENED]:
            self._open(lane)
        self.refresh()
        self._begin(self._share("", ""))
        for share in self.shares.values():
            if share.noisy:
                share.noisy = self._noisy(share, now_ms)

    def _hand_over(self, lane: Lane, owner: str) -> None:
        before = lane.share
        if before.owner == owner:
            return
        after = self._share(before.tenant, owner)
        before.lanes.discard(lane)
        after.lanes.add(lane)
        lane.share = after
        self._touched |= {before, after}

    def _noisy(self, share: Share, now_ms: int) -> bool:
        return noisy(self._leased(share), self.leased, share.work.recent_ms(now_ms), self.work.recent_ms(now_ms))

    def _leased(self, share: Share) -> int:
        if share.tenant or share.owner:
            return share.leased
        return self.leased - sum(other.leased for other in self.shares.values() if other is not share)

    leased = 0  # of the whole queue; the queue keeps it up to date before each pick

    def next(self, worker: str, now: float) -> Row | None:
        """Take out the message whose turn it is for this worker, and charge its tenant and its buckets. `prepare` comes first. None: none, or `closings` were enough."""
        now_ms = millis(now)
        while self.closings < CLOSED:
            standing = [share for share in self.shares.values() if share.standing and share.owner in ("", worker)]
            if not standing:
                return None
            share = min(standing, key=self._place)
            if not share.noisy and self._noisy(share, now_ms):
                share.noisy = True
                continue
            self._touched.add(share)
            row = self._of_nobody(share)
            if row is not None:
                self._charge(share)
                return row
            lane = self._lane_of(share)
            head = lane.head()
            assert head is not None
            closing = self._book.refuses(claims(head), now)
            if closing is not None:
                self._close(lane, *closing, now_ms)
                self.closings += 1
                self.refresh()
                continue
            lane.heap.pop()
            self._charge(share)
            return head
        return None

    def _of_nobody(self, share: Share) -> Row | None:
        """The first message without a flow, if it stands before the lanes of nobody."""
        first = self._first(share)
        lanes = [_rank(lane) for lane in share.lanes if self._stands(lane)]
        if first is None or (lanes and (first[0], first[1].seq) > min(lanes)):
            return None
        return self._plain.pop()

    def _lane_of(self, share: Share) -> Lane:
        return min((lane for lane in share.lanes if self._stands(lane)), key=_rank)

    def _charge(self, share: Share) -> None:
        self.turn = max(self.turn, share.tag)
        share.tag += turn_cost(self.weights.get(share.tenant, 1.0))

    def _place(self, share: Share) -> tuple[bool, int, str, str]:
        return share.noisy, share.tag - head_start(self._priority(share), self.spec.ageing_s), share.tenant, share.owner

    def _priority(self, share: Share) -> int:
        """Of what it would give next."""
        heads = [(*_rank(lane), lane.priority) for lane in share.lanes if self._stands(lane)]
        plain = self._first(share)
        if plain is not None:
            heads.append((plain[0], plain[1].seq, plain[1].message.priority))
        return min(heads)[2]

    # ---- numbers

    def next_instant_ms(self) -> float:
        return min((lane.closed_until for lane in self.lanes.values() if lane.closed_by is not None), default=inf)


def claims(row: Row) -> tuple[Claim, ...]:
    return row.message.flow.claims if row.message.flow is not None else ()


def _due(lane: Lane) -> tuple[float, int, LaneKey]:
    return lane.closed_until, lane.closed_at, lane.key


def _rank(lane: Lane) -> tuple[float, int]:
    head = lane.head()
    assert head is not None
    return head.rank, head.seq
