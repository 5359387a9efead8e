"""Where a message stands, and everything that is held against handing it out: facts for `Explain`. Changes nothing."""

from collections.abc import Collection
from math import inf

from beltline.core.errors import NotFound
from beltline.core.lifecycle import State
from beltline.core.views import Standing
from beltline.engines.rows import key_of
from beltline.engines.sqlite.browsing import get
from beltline.engines.sqlite.facts import Fact, select
from beltline.engines.sqlite.ledger import Ledger, Queue
from beltline.engines.sqlite.limits import BucketKey
from beltline.engines.sqlite.picking import claims_of

AHEAD = 1000
HOLDERS = 10
_IN_LANE = "message INDEXED BY message_in_lane WHERE lane = ?1 AND lane IS NOT NULL AND state = 1 AND blocked = ?2 AND (rank, seq) < (?3, ?4)"
_PLAIN = "message INDEXED BY message_ready WHERE queue = ?1 AND state = 1 AND blocked = ?2 AND lane IS NULL AND (rank, seq) < (?3, ?4)"
_DUE = "message INDEXED BY message_delayed WHERE queue = ?1 AND state = 0 AND due <= ?2 AND lane IS ?3 AND (rank, seq) < (?4, ?5)"
_LIVE = "message INDEXED BY message_lane WHERE queue = ?1 AND group_key = ?2 AND group_key IS NOT NULL AND state <= 2"
_DEAD = "message INDEXED BY message_lane_dead WHERE queue = ?1 AND group_key = ?2 AND group_key IS NOT NULL AND state = 4"
_HOLDING = """SELECT m.id FROM bucket b CROSS JOIN hold h INDEXED BY hold_bucket ON h.bucket = b.n CROSS JOIN message m ON m.seq = h.seq
  WHERE b.name = ? AND b.key = ? AND m.due > ? ORDER BY m.id LIMIT ?"""
_LEASED = "SELECT id FROM message INDEXED BY message_leased WHERE queue = ? AND state = 2 AND due > ?"


def standing(tx: Ledger, id: str, stalled: Collection[tuple[int, int]]) -> Standing:
    """`stalled`: (queue, feed) pairs that the writer of this process has seen above their high water. Raises NotFound."""
    view = get(tx, id)
    if view.state not in ("ready", "delayed"):
        return Standing(message=view)
    found = select(tx, "WHERE id = ?", (key_of(id),))
    if not found:
        raise NotFound(kind="message", name=id)
    fact = found[0]
    queue, flow, now = tx.by_number[fact.queue], tx.flow, tx.now
    shape = flow.shape(queue.n)
    room, opens, name = flow.limits.room(queue.spec.limits, now)
    refusal = flow.limits.refuses(claims_of(fact.head), now) if fact.lane is not None else None
    limit, key = refusal[0] if refusal is not None else ("", "")
    mate = _mate(tx, queue, fact)
    share = flow.lane(fact.lane).share if fact.lane is not None else None
    return Standing(
        message=view,
        paused=queue.paused,
        snoozed_until=shape.snoozed / 1000 if shape.snoozed > now else 0.0,
        tripped_until=shape.switch.tripped / 1000 if shape.switch.tripped > now else 0.0,
        trying=shape.switch.trying,
        head=mate[0].hex() if mate is not None else "",
        head_state=mate[1] if mate is not None else "",
        limit=limit,
        key=key,
        opens_at=refusal[1] / 1000 if refusal is not None else 0.0,
        holders=_holders(tx, (limit, key)) if refusal is not None else _holders(tx, (name, "")) if room < 1 else (),
        queue_limit=name if room < 1 else "",
        queue_opens_at=opens / 1000 if room < 1 else 0.0,
        feeds=tuple(sorted(feed.name for feed, fan_out in queue.feeds if (queue.n, feed.n) in stalled or _is_full(tx, feed, fan_out))),
        keeper=share.owner if share is not None else "",
        tenant=share.tenant if share is not None else "",
        noisy=share is not None and share.noisy,
        ahead=_ahead(tx, fact),
    )


def _mate(tx: Ledger, queue: Queue, fact: Fact) -> tuple[bytes, str] | None:
    """Whom its group waits for, if that is another: a lease, else the head."""
    if fact.group is None:
        return None
    at = (queue.n, fact.group)
    row = tx.sql(f"SELECT seq, id, state, due FROM {_LIVE} ORDER BY state = 2 DESC, seq LIMIT 1", at).get
    if row is None or row[2] != State.LEASED:
        dead = None if queue.skip_dead else tx.sql(f"SELECT seq, id, state, due FROM {_DEAD} ORDER BY seq LIMIT 1", at).get
        row = min((each for each in (row, dead) if each is not None), default=None)
    if row is None or row[0] == fact.seq:
        return None
    _, key, state, due = row
    return key, (State.READY if state in (State.DELAYED, State.LEASED) and due <= tx.now else State(state)).word


def _holders(tx: Ledger, bucket: BucketKey) -> tuple[str, ...]:
    limit = tx.flow.limits.limit(bucket[0])
    if limit is None or limit.concurrency == inf:
        return ()
    ids = {key for (key,) in tx.sql(_HOLDING, (*bucket, tx.now, HOLDERS))}
    for queue in tx.naming.get(bucket[0], ()) if not bucket[1] else ():
        ids |= {key for (key,) in tx.sql(_LEASED, (queue, tx.now))}
    return tuple(sorted(key.hex() for key in ids)[:HOLDERS])


def _is_full(tx: Ledger, feed: Queue, fan_out: int) -> bool:
    load = tx.tally(feed.n).ready + sum(tx.tally(feeder.n).leased * each for feeder, each in feed.feeders)
    return load > 0 and feed.spec.high_water < inf and feed.spec.high_water - load < fan_out


def _ahead(tx: Ledger, fact: Fact) -> int:
    """Ready messages of a lower rank: in its lane; without one, among those that have none."""
    rows, at = (_PLAIN, fact.queue) if fact.lane is None else (_IN_LANE, fact.lane)
    mine = (fact.rank, fact.seq)
    count = sum(tx.sql(f"SELECT count(*) FROM (SELECT 1 FROM {rows} LIMIT ?5)", (at, blocked, *mine, AHEAD)).get for blocked in (0, 1))
    count += tx.sql(f"SELECT count(*) FROM (SELECT 1 FROM {_DUE} LIMIT ?6)", (fact.queue, tx.now, fact.lane, *mine, AHEAD)).get
    return int(min(AHEAD, count))
