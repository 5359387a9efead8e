"""Where a message stands, and everything that is held against handing it out: facts for `Explain`. Changes nothing."""

from math import inf

from beltline.core.views import Standing
from beltline.engines.memory.queue import QueueRows
from beltline.engines.memory.rows import Row, millis
from beltline.engines.memory.shaping import claims
from beltline.engines.memory.store import Store
from beltline.engines.memory.views import message_view

AHEAD = 1000
HOLDERS = 10


def standing(store: Store, row: Row, now: float) -> Standing:
    store.due(now)
    queue = store.queues[row.message.queue]
    view = message_view(row, queue, now)
    if view.state not in ("ready", "delayed"):
        return Standing(message=view)
    mate = queue.waits_for(row) if row.message.group is not None else None
    room, opens_ms, name = store.limits.room(queue.spec.limits, now)
    refusal = store.limits.refuses(claims(row), now)
    limit, key = refusal[0] if refusal is not None else ("", "")
    lane = row.lane
    return Standing(
        message=view,
        paused=queue.paused,
        snoozed_until=queue.snoozed_until if queue.snoozed_until > now else 0.0,
        tripped_until=queue.switch.tripped_until if queue.switch.tripped_until > now else 0.0,
        trying=queue.switch.trying,
        head=mate.id if mate is not None else "",
        head_state=mate.shown(now).word if mate is not None else "",
        limit=limit,
        key=key,
        opens_at=refusal[1] / 1000 if refusal is not None else 0.0,
        holders=_holders(store, (limit, key), now) if refusal is not None else _holders(store, (name, ""), now) if room < 1 else (),
        queue_limit=name if room < 1 else "",
        queue_opens_at=opens_ms / 1000 if room < 1 else 0.0,
        feeds=tuple(sorted(queue.stalled)),
        keeper=lane.share.owner if lane is not None else "",
        tenant=lane.share.tenant if lane is not None else "",
        noisy=lane is not None and lane.share.noisy,
        ahead=_ahead(queue, row),
    )


def _holders(store: Store, bucket: tuple[str, str], now: float) -> tuple[str, ...]:
    limit = store.limits.limit(bucket[0])
    if limit is None or limit.concurrency == inf:
        return ()
    return tuple(sorted(row.id for row in store.limits.running(bucket, now))[:HOLDERS])


def _ahead(queue: QueueRows, row: Row) -> int:
    """Ready messages of a lower rank: in its lane; without one, among those that have none."""
    mine = (millis(row.rank), row.seq)
    rows = (other for other in queue.rows_ready() if other.lane is row.lane and other is not row)
    return min(AHEAD, sum(1 for other in rows if (millis(other.rank), other.seq) < mine))
