"""What people say about limits and queues at run time, and what they see of it. The rules are those of engines/protocol.py, `limits` and `switch`."""

from array import array
from collections.abc import Sequence
from math import ceil, inf

import apsw
import msgspec

from beltline.core.errors import NotFound
from beltline.core.flow import WORK_WINDOW_MS, Limit, check_limit
from beltline.core.views import BucketView, LimitView
from beltline.engines.sqlite.ledger import Ledger, Queue
from beltline.engines.sqlite.times import ceil_ms

FORGOTTEN_MS = 7 * 86_400_000  # a tenant not heard of for so long is forgotten, though it may be turns ahead of the others
_limit = msgspec.msgpack.Decoder(Limit).decode
_RUNNING = """SELECT count(DISTINCT h.seq) FROM bucket b CROSS JOIN hold h INDEXED BY hold_bucket ON h.bucket = b.n CROSS JOIN message m ON m.seq = h.seq
  WHERE b.name = ? AND m.due > ? AND m.queue NOT IN (SELECT value FROM carray(?))"""
_LIVE = "SELECT count(*) FROM message INDEXED BY message_leased WHERE queue = ? AND state = 2 AND due > ?"
_DUE = """SELECT l.closed_by, count(*) FROM message m INDEXED BY message_delayed CROSS JOIN lane l ON l.n = m.lane
  WHERE m.queue = ? AND m.state = 0 AND m.due <= ? AND l.closed_by IS NOT NULL GROUP BY l.closed_by"""


# ---------------------------------------------------------------------------------------------------------------- numbers
def declare(tx: Ledger, given: Sequence[Limit]) -> None:
    """Raises NameInvalid, ValueInvalid."""
    for limit in given:
        check_limit(limit)
    for limit in given:
        row = tx.sql("SELECT declared FROM limits WHERE name = ?", (limit.name,)).get
        if row is None or _limit(row) != limit:
            data = msgspec.msgpack.encode(limit)
            tx.sql("INSERT INTO limits(name, declared) VALUES(?1, ?2) ON CONFLICT(name) DO UPDATE SET declared = ?2", (limit.name, data))
            _changed(tx, limit.name)


def give(tx: Ledger, limit: Limit) -> None:
    """Raises NameInvalid, ValueInvalid."""
    check_limit(limit)
    tx.sql("INSERT INTO limits(name, given) VALUES(?1, ?2) ON CONFLICT(name) DO UPDATE SET given = ?2", (limit.name, msgspec.msgpack.encode(limit)))
    _changed(tx, limit.name)


def reset(tx: Ledger, name: str) -> None:
    """Raises NotFound."""
    if tx.sql("UPDATE limits SET given = NULL WHERE name = ? RETURNING 1", (name,)).get is None:
        raise NotFound(kind="limit", name=name)
    tx.sql("DELETE FROM limits WHERE name = ? AND declared IS NULL", (name,))
    _changed(tx, name)


def _changed(tx: Ledger, name: str) -> None:
    tx.flow.limit_changed(name)
    tx.woken.update(tx.by_number)


def snooze(tx: Ledger, queue: Queue, seconds: float) -> float:
    """Returns until when (s)."""
    shape = tx.flow.shape(queue.n)
    until = tx.now + ceil_ms(seconds)
    if until > shape.snoozed:
        shape.snoozed = until
        tx.flow.change(shape)
    tx.woken.add(queue.n)
    return float(shape.snoozed / 1000)


# ------------------------------------------------------------------------------------------------------------------ views
def limits(tx: Ledger) -> list[LimitView]:
    due = _due(tx)
    views = []
    for name, declared, given in tx.sql("SELECT name, declared, given FROM limits ORDER BY name").fetchall():
        limit = _limit(given or declared)
        naming = tx.naming.get(name, [])
        running = tx.sql(_RUNNING, (name, tx.now, apsw.carray(array("q", [0, *naming])))).get
        running += sum(tx.sql(_LIVE, (queue, tx.now)).get for queue in naming)
        waiting = tx.sql("SELECT coalesce(sum(waiting), 0) FROM bucket WHERE name = ?", (name,)).get
        if due:
            waiting += sum(due.get(n, 0) for (n,) in tx.sql("SELECT n FROM bucket WHERE name = ?", (name,)))
        views.append(
            LimitView(
                name=name,
                rate=limit.rate,
                per_s=limit.per_s,
                burst=limit.most_at_once,
                concurrency=limit.concurrency,
                origin="code" if given is None else "operator",
                running=running,
                waiting=waiting,
            )
        )
    return views


def buckets(tx: Ledger, name: str, most: int) -> list[BucketView]:
    """Raises NotFound."""
    limit = tx.flow.limits.limit(name)
    if limit is None:
        raise NotFound(kind="limit", name=name)
    due = _due(tx)
    views: list[BucketView] = []
    rows = tx.sql("SELECT n, key, tat, waiting, started FROM bucket WHERE name = ? ORDER BY key", (name,)).fetchall()
    if not rows or rows[0][1]:  # the bucket of whole queues is there, though nothing may have begun in it
        rows.insert(0, (0, "", 0, 0, 0))
    for n, key, tat_us, waiting, started in rows:
        running, first = tx.flow.limits.running((name, key), tx.now)
        waiting += due.get(n, 0)
        opens = 0.0
        if started or waiting or not key:
            if limit.concurrency - running < 1:
                opens = first / 1000
            elif limit.interval_us and (opens_us := limit.opens_us(max(tat_us, tx.now * 1000), 1.0)) > tx.now * 1000:
                opens = ceil(opens_us / 1000) / 1000
        if running or waiting or 0 < opens < inf:
            views.append(BucketView(limit=name, key=key, running=running, waiting=waiting, opens_at=opens))
            if len(views) == most:
                break
    return views


def _due(tx: Ledger) -> dict[int, int]:
    """Delayed messages whose time has come, in lanes that are closed: by bucket."""
    found: dict[int, int] = {}
    for queue in tx.by_number:
        if tx.tally(queue).flow and tx.tally(queue).delayed and tx.flow.shape(queue).shaped:
            for bucket, count in tx.sql(_DUE, (queue, tx.now)):
                found[bucket] = found.get(bucket, 0) + count
    return found


def due_behind_closed(tx: Ledger, queue: int) -> int:
    """Delayed messages of a queue with lanes whose time has come, in lanes that are closed."""
    return sum(count for _, count in tx.sql(_DUE, (queue, tx.now)))


# --------------------------------------------------------------------------------------------------------------- retention
def retain(tx: Ledger, limit: int) -> None:
    """Forget lanes, shares and buckets that say nothing any more; what comes again is made again, at the queue's own turn."""
    tx.flow.refresh()
    span = tx.now // WORK_WINDOW_MS - 1
    for queue in tx.by_number:
        if not tx.tally(queue).flow or not tx.flow.shape(queue).shaped:
            continue
        empty = "ready = 0 AND leased = 0 AND other = 0"
        lanes = tx.sql(
            f"SELECT n, share FROM lane INDEXED BY lane_empty WHERE queue = ? AND {empty} AND closed_by IS NULL LIMIT ?", (queue, limit)
        ).fetchall()
        tx.many("UPDATE share SET lanes = lanes - 1 WHERE n = ?", [(share,) for _, share in lanes])
        tx.many("DELETE FROM lane WHERE n = ?", [(n,) for n, _ in lanes])
        tx.sql(
            "DELETE FROM share WHERE n IN (SELECT n FROM share INDEXED BY share_empty WHERE queue = ?1 AND lanes = 0 AND standing = 0"
            " AND (tag <= ?2 AND span < ?3 OR span < ?4) AND tenant || owner <> '' LIMIT ?5)",
            (queue, tx.flow.shape(queue).turn, span, span - FORGOTTEN_MS // WORK_WINDOW_MS, limit),
        )
    tx.sql(
        "DELETE FROM bucket WHERE n IN (SELECT n FROM bucket b WHERE tat <= ? AND waiting = 0"
        " AND NOT EXISTS(SELECT 1 FROM hold INDEXED BY hold_bucket WHERE bucket = b.n)"
        " AND NOT EXISTS(SELECT 1 FROM lane INDEXED BY lane_closed WHERE closed_by = b.n) LIMIT ?)",
        (tx.now * 1000, limit),
    )
    refused = tx.flow.refused
    tx.flow.forget()
    tx.flow.refused = refused
