"""New messages become rows: what a send, a hand-off and a gather that fires have in common.

First everything is looked at (queues, known ids, dedup keys, bounds), then everything is written: a refused batch leaves nothing behind. Simple messages
go in with one statement per queue and task, and without a look at the ids: the number of rows changed tells whether one was there before.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import apsw

from beltline.core import limits
from beltline.core.errors import QueueFull, ValueInvalid
from beltline.core.flow import check_flow
from beltline.core.lifecycle import State
from beltline.core.message import Gather, Message
from beltline.core.names import MessageId
from beltline.core.outcome import Admission, Sent
from beltline.engines.rows import PLAIN, encode_head, fields
from beltline.engines.sqlite.lanes import held
from beltline.engines.sqlite.ledger import Ledger, Queue
from beltline.engines.sqlite.schema import INLINE_BYTES
from beltline.engines.sqlite.times import ceil_ms
from beltline.engines.sqlite.unique import remember, stands, stands_in_batch, unique_of

_FOREVER_S = 1e12  # a float of seconds beyond it is no date; whole milliseconds of it still fit 64 bits
Row = tuple[Any, ...]  # the fields of a Message, in order
# One statement for any number of simple messages of one queue and task: ready at once, no group, no priority, no dedup key, no expiry. Each value is the id
# (16 bytes) and the body behind it (unless ?6: it goes into bulk), `rowid` counts them from 1. It costs a third of a statement per message and holds the interpreter lock for none of it.
PACKED = """INSERT INTO message(seq, id, state, blocked, epoch, due, queue, task, rank, since, failed, lost, sent, body)
  SELECT ?1 + c.rowid, substr(c.value, 1, 16), 1, 0, 0, ?2, ?3, ?4, ?2, ?2, 0, 0, ?2,
    CASE ?6 WHEN 0 THEN substr(c.value, 17) END FROM carray(?5) AS c WHERE 1
  ON CONFLICT(id) DO NOTHING"""
# The same with a run (12 digits, 0 = none) and a head (its length in 6 digits, then the bytes) between id and body.
PACKED_HEADS = """INSERT INTO message(seq, id, state, blocked, epoch, due, queue, task, rank, since, failed, lost, sent, run, head, body)
  SELECT ?1 + c.rowid, substr(c.value, 1, 16), 1, 0, 0, ?2, ?3, ?4, ?2, ?2, 0, 0, ?2, nullif(CAST(substr(c.value, 17, 12) AS INTEGER), 0),
    nullif(substr(c.value, 35, CAST(substr(c.value, 29, 6) AS INTEGER)), x''),
    CASE ?6 WHEN 0 THEN substr(c.value, 35 + CAST(substr(c.value, 29, 6) AS INTEGER)) END
  FROM carray(?5) AS c WHERE 1
  ON CONFLICT(id) DO NOTHING"""
BULK = "INSERT OR REPLACE INTO bulk(n, data) VALUES(?, ?)"
KNOWN = "SELECT id FROM message WHERE id IN (SELECT value FROM carray(?))"
_FULL_SQL = """INSERT INTO message(seq, id, state, blocked, epoch, due, queue, task, rank, since, failed, lost, sent, group_key, run, expires, head, body, lane)
  VALUES(?1, ?2, ?3, ?4, 0, ?5, ?6, ?7, ?8, ?5, 0, 0, ?9, ?10, ?11, ?12, ?13, ?14, ?15)"""


def check(tx: Ledger, messages: Sequence[Message], gathers: Sequence[Gather]) -> None:
    """Whatever can be refused of them is refused here, before anything is written. Raises QueueNotDeclared, ValueInvalid."""
    followers = [gather.then for gather in gathers if gather.then is not None]
    for message in (*messages, *followers) if followers else messages:
        tx.queue(message.queue)
        if message.delay_s or message.ready_at is not None:
            limits.seconds("delay_s", message.delay_s, most=limits.MAX_DELAY_S)
            if message.ready_at is not None and not math.isfinite(message.ready_at):
                raise ValueInvalid(name="ready_at", value=message.ready_at, allowed="seconds since 1970")
        if message.dedup_key is not None:
            limits.seconds("dedup_window_s", message.dedup_window_s, most=limits.MAX_DEDUP_WINDOW_S)
        if message.expires_s is not None:
            limits.seconds("expires_s", message.expires_s)
        if message.flow is not None:
            check_flow(message.flow)


def store(tx: Ledger, messages: Sequence[Message], *, bounded: bool = False) -> list[Sent]:
    """Write them, in this order. Raises QueueNotDeclared; QueueFull only if `bounded` (a hand-off never is)."""
    if not messages:
        return []
    rows = list(map(fields, messages))
    return _try_simple(tx, rows, bounded) or _store_each(tx, messages, rows, bounded)


def store_together(tx: Ledger, messages: Sequence[Message]) -> list[Sent] | None:
    """Several sends as one, if all is simple and no bound is near: then the answers. None: nothing was written, run them one by one."""
    rows = list(map(fields, messages))
    return _try_simple(tx, rows, True) if all(row[1] in tx.by_name for row in rows) else None


def _try_simple(tx: Ledger, rows: list[Row], bounded: bool) -> list[Sent] | None:
    heads = False
    for row in rows:
        if row[4:] == PLAIN:
            continue
        _, priority, delay_s, ready_at, group, dedup_key, _, expires_s, *_, flow = row[4:]
        if priority or delay_s or ready_at is not None or group is not None or expires_s is not None or flow is not None:
            return None
        if bounded and dedup_key is not None:
            return None
        heads = True
    counts = Counter(map(itemgetter(1), rows))
    if bounded:
        for name, count in counts.items():
            if _overflows(tx, tx.queue(name), count):
                return None
    return _store_simple(tx, rows, counts, heads)


def _store_simple(tx: Ledger, rows: list[Row], counts: "Counter[str]", heads: bool) -> list[Sent]:
    places = {name: tx.queue(name) for name in counts}
    same = [(*key, list(run)) for key, run in groupby(rows, _kind)]
    tasks = {task: tx.task(task) for _, task, _, _ in same}
    if heads:
        tx.runbook.fetch_ids(row[14].run for row in rows if row[14] is not None)
    seq, before = tx.next_seq, tx.db.total_changes()
    tx.next_seq += len(rows)
    first = seq
    for name, task, large, run in same:
        if heads:
            values = [_packed(tx, row, large) for row in run]
        elif large:
            values = [bytes.fromhex(row[0]) for row in run]
        else:
            values = [bytes.fromhex(row[0]) + row[3] for row in run]
        tx.sql(PACKED_HEADS if heads else PACKED, (first - 1, tx.now, places[name].n, tasks[task], apsw.carray(tuple(values)), large))
        first += len(run)
    if tx.db.total_changes() - before == len(rows):
        answers = [Sent(row[0]) for row in rows]
        beside = [(place * 2, row[3]) for place, row in enumerate(rows, seq) if len(row[3]) > INLINE_BYTES]
    else:
        stored = {place for (place,) in tx.sql("SELECT seq FROM message WHERE seq >= ?", (seq,))}
        answers = [Sent(row[0], Admission.STORED if place in stored else Admission.SAME_ID) for place, row in enumerate(rows, seq)]
        beside = [(place * 2, row[3]) for place, row in enumerate(rows, seq) if place in stored and len(row[3]) > INLINE_BYTES]
        rows = [row for row, answer in zip(rows, answers, strict=True) if answer.new]
        counts = Counter(map(itemgetter(1), rows))
    if beside:
        tx.many(BULK, beside)
    for name, count in counts.items():
        tx.tally(places[name].n).add(State.READY, count)
        tx.woken.add(places[name].n)
    if heads:
        for row in rows:
            if row[14] is not None:
                tx.runbook.stored(row[14].run, row[14].chain)
    if tx.audited:
        for row in rows:
            tx.note("send", bytes.fromhex(row[0]), places[row[1]].n, 0, tx.runbook.enter(row[14].run, row[14].chain).n if row[14] else None)
    return answers


def _kind(row: Row) -> tuple[str, str, bool]:
    return row[1], row[2], len(row[3]) > INLINE_BYTES


def _packed(tx: Ledger, row: Row, large: bool) -> bytes:
    head, place = row[4:], row[14]
    data = b"" if head == PLAIN else encode_head(head)
    run = 0 if place is None else tx.runbook.enter(place.run, place.chain).n
    return b"%b%012d%06d%b%b" % (bytes.fromhex(row[0]), run, len(data), data, b"" if large else row[3])


def _overflows(tx: Ledger, queue: Queue, count: int) -> bool:
    if queue.spec.max_backlog == math.inf:
        return False
    tally = tx.tally(queue.n)
    return tally.ready + tally.delayed + tally.leased + count > queue.spec.max_backlog


def _admit(tx: Ledger, messages: Sequence[Message], rows: list[Row], bounded: bool) -> list[Sent]:
    """Who is new? Reads only. A hand-off is known by its id alone: dropping a part because of its key would leave its gather waiting for ever."""
    keys = tuple(bytes.fromhex(row[0]) for row in rows)
    known = {row[0].hex() for row in tx.sql(KNOWN, (apsw.carray(keys),))}
    promised: dict[tuple[str, str], str] = {}
    unique: dict[tuple[str, str], Message] = {}
    new: dict[str, int] = {}
    answers = []
    for message, row in zip(messages, rows, strict=True):
        id, name = row[0], row[1]
        dedup_key = row[9] if bounded and row[10] > 0 else None
        queue = tx.queue(name)
        if id in known:
            answers.append(Sent(MessageId(id), Admission.SAME_ID))
            continue
        if dedup_key is not None:
            first = promised.get((name, dedup_key))
            if first is None:
                found = tx.sql("SELECT id FROM dedup WHERE queue = ? AND key = ? AND until > ?", (queue.n, dedup_key, tx.now)).get
                first = None if found is None else found.hex()
            if first is not None:
                answers.append(Sent(MessageId(first), Admission.DEDUPLICATED))
                continue
        same = unique_of(message) if bounded else None
        if same is not None:
            earlier = unique.get((name, same.key))
            if earlier is None:
                other = stands(tx, queue, same)
            else:
                other = earlier.id if stands_in_batch(same, delayed=due_ms(earlier, tx.now) > tx.now) else None
            if other is not None:
                answers.append(Sent(MessageId(other), Admission.REPLACED if same.replace else Admission.DEDUPLICATED))
                continue
            unique[name, same.key] = message
        if dedup_key is not None:
            promised[name, dedup_key] = id
        known.add(id)
        new[name] = new.get(name, 0) + 1
        answers.append(Sent(MessageId(id)))
    if bounded:
        for name, count in new.items():
            queue = tx.queue(name)
            if _overflows(tx, queue, count):
                raise QueueFull(queue=name, bound=int(queue.spec.max_backlog))
    return answers


def _store_each(tx: Ledger, messages: Sequence[Message], rows: list[Row], bounded: bool) -> list[Sent]:
    if bounded:
        check(tx, messages, ())
    answers = _admit(tx, messages, rows, bounded)
    now = tx.now
    tx.runbook.fetch_ids(message.place.run for message in messages if message.place is not None)
    lanes: set[tuple[int, str]] = set()
    inserts, large, keys, same = [], [], [], []
    for message, row, answer in zip(messages, rows, answers, strict=True):
        if answer.admission is not Admission.STORED:
            continue
        queue = tx.by_name[row[1]]
        key = bytes.fromhex(row[0])
        head = row[4:]
        place, run, blocked, due = message.place, None, False, due_ms(message, now)
        state = State.DELAYED if due > now else State.READY
        if message.group is not None:
            lane = (queue.n, message.group)
            blocked = lane in lanes or held(tx, queue, message.group)
            lanes.add(lane)
        if place is not None:
            run = tx.runbook.stored(place.run, place.chain)
        if message.dedup_key is not None and bounded:
            keys.append((queue.n, message.dedup_key, key, now + ceil_ms(message.dedup_window_s)))
        expires = None if message.expires_s is None else now + ceil_ms(min(message.expires_s, _FOREVER_S))
        body: bytes | None = message.body
        if len(message.body) > INLINE_BYTES:
            large.append((tx.next_seq * 2, body))
            body = None
        rank, stood = rank_ms(queue, due, message.priority), None
        if message.flow is not None:
            if message.flow.shaped:
                in_lane = tx.flow.lane_of(queue.n, message.flow, message.priority)
                tx.flow.arrived(in_lane, state, rank, tx.next_seq, blocked)
                stood = in_lane.n
            if message.flow.unique is not None and bounded:
                same.append((queue.n, message.flow.unique.key, tx.next_seq))
        inserts.append(
            (
                tx.next_seq,
                key,
                int(state),
                blocked,
                due,
                queue.n,
                tx.task(row[2]),
                rank,
                now,
                message.group,
                run,
                expires,
                None if head == PLAIN else encode_head(head),
                body,
                stood,
            )
        )
        tx.next_seq += 1
        tx.tally(queue.n).add(state, 1)
        tx.woken.add(queue.n)
        if tx.audited:
            tx.note("send", key, queue.n, 0, run)
    tx.many(_FULL_SQL, inserts)
    if large:
        tx.many(BULK, large)
    if keys:
        tx.many("INSERT OR REPLACE INTO dedup(queue, key, id, until) VALUES(?, ?, ?, ?)", keys)
    if same:
        remember(tx, same)
    return answers


def due_ms(message: Message, now: int) -> int:
    """When it is ready."""
    if message.ready_at is not None:
        return max(now, ceil_ms(min(message.ready_at, _FOREVER_S)))
    return now + ceil_ms(message.delay_s) if message.delay_s else now


def rank_ms(queue: Queue, ready: int, priority: int) -> int:
    """core.queues.rank in whole milliseconds."""
    return ready - priority * queue.ageing_ms
