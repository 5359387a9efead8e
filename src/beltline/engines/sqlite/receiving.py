"""The verb `receive`: what time has brought, then leases that are over, then the lowest rank; one queue after the other, as one write.

    due      delayed messages whose time has come are ready
    expired  messages nobody received in their time are done
    over     a lease that has run out: cancelled if somebody asked, dead if it was the last one allowed, else handed out again with the next epoch
    take     the first of the index (queue, blocked, rank): no sort, and nothing that is stuck stands in it; of a queue with lanes, what picking.py picks

The fast part is two statements per queue, whatever the limit: one SELECT with the bodies, one UPDATE over the places it found.
"""

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import apsw

from beltline.core.lifecycle import State
from beltline.core.message import Delivery, Message, Receipt
from beltline.core.names import MessageId
from beltline.core.outcome import Cause, Ended, Failure
from beltline.core.policy import PARKED, poison
from beltline.engines.rows import message
from beltline.engines.sqlite.endings import asked, die, end, lost
from beltline.engines.sqlite.facts import Fact, current, select
from beltline.engines.sqlite.ledger import MAX_REMEMBERED, WORKER, Ledger, Queue
from beltline.engines.sqlite.limits import LIVE
from beltline.engines.sqlite.picking import WHAT, Picker, claims_of, prepare

BODIES = "SELECT n, data FROM bulk WHERE n IN (SELECT value FROM carray(?))"
PAGE = 500  # rows that time alone moves, at a time
PAGES = 40  # and how often per queue and receive: more than that wait for the next one
NO_LANES: Mapping[int, int | None] = {}
LEASE_OVER = Failure(Cause.LEASE_LOST, text="The lease ran out: its worker died or lost touch.")

TAKE = (
    f"SELECT {WHAT} FROM message INDEXED BY message_ready WHERE queue = ? AND state = 1 AND blocked = 0 AND lane IS NULL ORDER BY rank, seq LIMIT ?"
)
AGAIN = f"SELECT {WHAT} FROM message WHERE seq = ?"
LEASE = "UPDATE message SET state = 2, epoch = epoch + 1, due = ?2, started = ?3, worker = ?4 WHERE seq IN (SELECT value FROM carray(?1))"
LEASE_MORE = "UPDATE message SET state = 2, epoch = epoch + 1, due = ?2, started = ?3, worker = ?4, why = NULL, expires = NULL WHERE seq IN (SELECT value FROM carray(?1))"
DUE = "SELECT seq, lane FROM message INDEXED BY message_delayed WHERE queue = ? AND state = 0 AND due <= ? ORDER BY due LIMIT ?"
OVER = "INDEXED BY message_leased WHERE queue = ? AND state = 2 AND due <= ? ORDER BY due, seq LIMIT ?"
EXPIRED = "INDEXED BY message_expires WHERE queue = ? AND expires IS NOT NULL AND expires <= ? AND state <= 1 ORDER BY expires, seq LIMIT ?"


def receive(tx: Ledger, names: Sequence[str], limit: int, lease_ms: int, worker: str) -> list[Delivery]:
    """Raises QueueNotDeclared."""
    queues = [tx.queue(name) for name in dict.fromkeys(names)]
    deliveries: list[Delivery] = []
    for queue in queues:
        if queue.paused or len(deliveries) >= limit:
            continue
        tally = tx.tally(queue.n)
        if tally.flow or queue.limited:
            deliveries += _shaped(tx, queue, limit - len(deliveries), lease_ms, worker)
            continue
        if tally.delayed or tally.ready:
            turn(tx, queue)
        if tally.leased:
            deliveries += [_again(tx, queue, fact, lease_ms, worker) for fact in over(tx, queue, limit - len(deliveries))]
        if tally.ready:
            room = limit - len(deliveries)
            if queue.feeds:
                room = min(room, _room(tx, queue))
            if room >= 1:
                deliveries += _take(tx, queue, room, lease_ms, worker)
    return deliveries


def _shaped(tx: Ledger, queue: Queue, limit: int, lease_ms: int, worker: str) -> list[Delivery]:
    """The same where flow control has a say."""
    flow, tally, names, now = tx.flow, tx.tally(queue.n), queue.spec.limits, tx.now
    if flow.shape(queue.n).shut_until > now:
        return []
    flow.refused.pop(queue.n, None)
    if tally.delayed or tally.ready:
        turn(tx, queue)
    again = over(tx, queue, limit + PAGE) if tally.leased else []
    if flow.stirred:
        flow.refresh()
    shape = flow.shape(queue.n)
    most = min(float(limit), flow.limits.room(names, now)[0])
    if shape.switch.trying:
        most = min(most, shape.switch.room(queue.spec.kill_switch, tx.sql(LIVE, (queue.n, now)).get[0]))
    deliveries: list[Delivery] = []
    for fact in again:
        claims = claims_of(fact.head) if fact.lane is not None else ()
        refusal = flow.limits.refuses(claims, now)
        if most - len(deliveries) >= 1 and refusal is None:
            deliveries.append(_again(tx, queue, fact, lease_ms, worker))
            flow.limits.start(fact.seq, queue.n, claims, now, now + lease_ms)
            flow.limits.start_in(names, now)
        elif len(deliveries) < limit:  # a limit forbids it: time or a place that is given back will bring it here again
            until = flow.limits.room(names, now)[1] if refusal is None else refusal[1]
            flow.refused[queue.n] = min(flow.refused.get(queue.n, math.inf), until)
    room = int(min(most - len(deliveries), _room(tx, queue) if queue.feeds else math.inf))
    if room < 1:
        return deliveries
    if shape.shaped:
        prepare(tx, queue)
        for picked in Picker(tx, queue, worker, room, now + lease_ms).batches():
            deliveries += _hand_out(
                tx,
                queue,
                [row[:13] for row, _ in picked],
                lease_ms,
                worker,
                dict(zip((row[0] for row, _ in picked), (lane for _, lane in picked), strict=True)),
            )
    elif tally.ready:
        taken = _take(tx, queue, room, lease_ms, worker)
        flow.limits.start_in(names, now, len(taken))
        deliveries += taken
    return deliveries


def turn(tx: Ledger, queue: Queue) -> int:
    """Due -> ready, expired -> done. Returns how many moved."""
    changed = due(tx, queue)
    for _ in range(PAGES):
        expired = select(tx, EXPIRED, (queue.n, tx.now, PAGE))
        for fact in expired:
            if current(tx, fact):  # one that failed its run took others along
                end(tx, fact, Ended.EXPIRED, "")
        changed += len(expired)
        if len(expired) < PAGE:
            break
    return changed


def due(tx: Ledger, queue: Queue) -> int:
    tally = tx.tally(queue.n)
    changed = 0
    for _ in range(PAGES if tally.delayed else 0):
        rows = tx.sql(DUE, (queue.n, tx.now, PAGE)).fetchall()
        if not rows:
            break
        tx.sql("UPDATE message SET state = 1 WHERE seq IN (SELECT value FROM carray(?))", (apsw.carray(array("q", [seq for seq, _ in rows])),))
        for _, lane in rows if tally.flow else ():
            if lane is not None:
                tx.flow.moved(lane, 0, State.DELAYED, State.READY, ())
        tally.add(State.DELAYED, -len(rows))
        tally.add(State.READY, len(rows))
        changed += len(rows)
        if len(rows) < PAGE:
            break
    return changed


def over(tx: Ledger, queue: Queue, limit: int) -> list[Fact]:
    """Leases that are over: those that may be handed out again, at most `limit`; cancelled and poisonous ones are ended here."""
    again: list[Fact] = []
    for fact in select(tx, OVER, (queue.n, tx.now, limit + PAGE)):
        if not current(tx, fact):
            continue
        reason = asked(tx, fact.seq)
        if reason is not None:
            lost(tx, fact, LEASE_OVER)
            end(tx, fact, Ended.CANCELLED, reason)
        elif fact.lost + 1 >= queue.max_deliveries:
            lost(tx, fact, LEASE_OVER)
            die(tx, fact, poison(fact.lost), LEASE_OVER)
        elif len(again) < limit:
            again.append(fact)
    return again


def _again(tx: Ledger, queue: Queue, fact: Fact, lease_ms: int, worker: str) -> Delivery:
    lost(tx, fact, LEASE_OVER)
    number = tx.number(WORKER, worker)
    tx.sql(
        "UPDATE message SET epoch = epoch + 1, lost = ?, due = ?, started = ?, worker = ? WHERE seq = ?",
        (fact.lost, tx.now + lease_ms, tx.now, number, fact.seq),
    )
    tx.tally(queue.n).dirty = True
    [row] = tx.sql(AGAIN, (fact.seq,)).fetchall()
    return _delivery(tx, queue, (*row[:3], row[3] - 1, *row[4:]), tx.now + lease_ms, fact.lane)


def _take(tx: Ledger, queue: Queue, room: int, lease_ms: int, worker: str) -> list[Delivery]:
    rows = tx.sql(TAKE, (queue.n, room)).fetchall()
    tally = tx.tally(queue.n)
    tally.add(State.READY, -len(rows))
    tally.add(State.LEASED, len(rows))
    return _hand_out(tx, queue, rows, lease_ms, worker)


def _hand_out(tx: Ledger, queue: Queue, rows: list[Any], lease_ms: int, worker: str, lanes: Mapping[int, int | None] = NO_LANES) -> list[Delivery]:
    """Lease them; they are counted already. `lanes`: those in which they stood, by place."""
    if not rows:
        return []
    until = tx.now + lease_ms
    tally, plain = tx.tally(queue.n), True
    for row in rows:
        if row[7] is not None or row[8] is not None:
            plain = False
            break
    if not plain:
        tally.parked -= sum(row[8] == PARKED for row in rows)
    tx.sql(LEASE if plain else LEASE_MORE, (apsw.carray(array("q", [row[0] for row in rows])), until, tx.now, tx.number(WORKER, worker)))
    beside = [row[0] * 2 for row in rows if row[12] is None]
    if beside:
        bodies = dict(tx.sql(BODIES, (apsw.carray(array("q", beside)),)).fetchall())
        rows = [(*row[:12], bodies[row[0] * 2]) if row[12] is None else row for row in rows]
    if tx.audited or not plain:
        return [_delivery(tx, queue, row, until, lanes.get(row[0])) for row in rows]
    if len(tx.leases) > MAX_REMEMBERED:
        tx.leases.clear()
    leases, names, name, n, until_s = tx.leases, tx.names, queue.name, queue.n, until / 1000
    deliveries = []
    for row in rows:
        seq, key, task, epoch, failed, lost_, sent, _, _, _, _, head, body = row
        if head is not None or task not in names:
            deliveries.append(_delivery(tx, queue, row, until, lanes.get(seq)))
            continue
        id = key.hex()
        leases[id] = (seq, key, n, None, None, None, None)
        made = Message(id=id, queue=name, task=names[task], body=body)  # type: ignore[arg-type]  # NewTypes of str, checked when it was sent
        deliveries.append(Delivery(made, Receipt(id, epoch + 1), failed, lost_, sent / 1000, until_s))
    return deliveries


def _delivery(tx: Ledger, queue: Queue, row: tuple[Any, ...], until: int, lane: int | None = None) -> Delivery:
    """`row` holds WHAT, with the epoch before this hand-out."""
    seq, key, task, epoch, failed, lost_, sent, _, _, group, run, head, body = row
    id = key.hex()
    if body is None:
        body = tx.sql("SELECT data FROM bulk WHERE n = ?", (seq * 2,)).get
    if head is None:
        made = Message(id=id, queue=queue.name, task=tx.text(task), body=body)  # type: ignore[arg-type]
        place = None
    else:
        made = message(id, queue.name, tx.text(task), head, body)
        place = made.place
    leases = tx.leases
    if len(leases) >= MAX_REMEMBERED:
        leases.clear()
    leases[id] = (seq, key, queue.n, group, run, place, lane)
    if tx.audited:
        tx.note("receive", key, queue.n, epoch + 1, run)
    return Delivery(made, Receipt(MessageId(id), epoch + 1), failed, lost_, sent / 1000, until / 1000, 0 if group is None else tx.hand_out())


def _room(tx: Ledger, queue: Queue) -> int:
    """Backpressure: how many messages may be taken without flooding a queue that this one feeds. Leases that are over have their room already."""
    room = math.inf
    for feed, fan_out in queue.feeds:
        due(tx, feed)
        spec = feed.spec
        high = spec.high_water
        low = min(high, high / 2 if spec.low_water == math.inf else spec.low_water)
        load = tx.tally(feed.n).ready + sum(tx.tally(feeder.n).leased * each for feeder, each in feed.feeders)
        pair = (queue.n, feed.n)
        if high == math.inf or load <= low:
            tx.stalled.discard(pair)
        if pair in tx.stalled:
            room = 0
            continue
        here = math.floor((high - load) / fan_out) if high < math.inf else math.inf
        if here < 1 and load == 0:
            here = 1  # one message alone overflows it: better than a line that stands still for ever
        if here < 1:
            tx.stalled.add(pair)
        room = min(room, max(0, here))
    return int(min(room, 1 << 62))
