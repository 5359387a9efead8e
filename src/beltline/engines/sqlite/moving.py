"""A move out of this file or into it: the seal, and its rows as the values of engines/moving.py.

Everything of a page is written in one transaction, the seal that tells where the next page begins included: whoever is killed goes on from there.
"""

from array import array
from collections.abc import Callable, Iterable
from typing import Any

import apsw
import msgspec

from beltline.core.lifecycle import State
from beltline.core.message import Gather
from beltline.core.policy import PARKED
from beltline.core.queues import QueueSpec
from beltline.engines.moving import (
    Moved,
    MovedAttempt,
    MovedGather,
    MovedId,
    MovedKey,
    MovedLimit,
    MovedMessage,
    MovedPage,
    MovedQueue,
    MovedRun,
    MovedSchedule,
    MovedSwitch,
    Seal,
    Section,
)
from beltline.engines.rows import flow_of, priority_of
from beltline.engines.sqlite import control, schedules, switch
from beltline.engines.sqlite.ledger import CHAIN, TASK, WORKER, Ledger
from beltline.engines.sqlite.schema import INLINE_BYTES
from beltline.engines.sqlite.unique import remember
from beltline.engines.sqlite.upkeep import FORGOTTEN, REMEMBERED_MS

_spec = msgspec.msgpack.Decoder(QueueSpec)
_gather = msgspec.msgpack.Decoder(Gather)
_switch = msgspec.msgpack.Decoder(MovedSwitch).decode  # the fields of switch.Switch, in its order


# ------------------------------------------------------------------------------------------------------------------ the seal
def set_seal(tx: Ledger, before: Seal | None, after: Seal | None) -> bool:
    """False: it is not `before`, nothing was written."""
    if tx.seal != before:
        return False
    if after is None:
        tx.sql("DELETE FROM meta WHERE key = 'seal'")
    else:
        tx.sql("INSERT OR REPLACE INTO meta(key, value) VALUES('seal', ?)", (after.encode(),))
    tx.seal = after
    return True


def leased(tx: Ledger) -> int:
    return int(tx.sql("SELECT count(*) FROM message WHERE state = 2 AND due > ?", (tx.now,)).get)


def empty(tx: Ledger) -> bool:
    return not any(tx.sql(f"SELECT EXISTS(SELECT 1 FROM {table})").get for table in ("message", "run", "dedup", "schedule"))


# ------------------------------------------------------------------------------------------------------------------ out
def take(tx: Ledger, section: Section, after: str, limit: int) -> MovedPage:
    """At most `limit` things behind `after`."""
    return _TAKE[section](tx, after, limit)


def _page(section: Section, things: list[Moved], limit: int, after: Callable[[], object]) -> MovedPage:
    return MovedPage(section=section, things=things, after=str(after()) if len(things) == limit else "")


def _queues(tx: Ledger, after: str, limit: int) -> MovedPage:  # noqa: ARG001 - one shape
    rows = tx.sql(
        "SELECT q.name, q.spec, q.paused, t.done, coalesce(f.snoozed, 0), f.switch"
        " FROM queue q JOIN tally t ON t.queue = q.n LEFT JOIN flow f ON f.queue = q.n ORDER BY q.n"
    ).fetchall()
    things: list[Moved] = [
        MovedQueue(name, spec, bool(paused), done, snoozed, None if state in (None, switch.NEVER) else _switch(state))
        for name, spec, paused, done, snoozed, state in rows
    ]
    hand_outs = tx.sql("SELECT value FROM meta WHERE key = 'hand_outs'").get
    return MovedPage(section=Section.QUEUES, things=things, hand_outs=hand_outs, next_seq=tx.next_seq)


def _runs(tx: Ledger, after: str, limit: int) -> MovedPage:
    rows = tx.sql(
        "SELECT r.n, r.id, c.text, r.state, r.open, r.dead, r.entered, r.ended, r.result, r.result_until, r.why, r.failure"
        " FROM run r JOIN name c ON c.n = r.chain WHERE r.n > ? ORDER BY r.n LIMIT ?",
        (int(after or 0), limit),
    ).fetchall()
    things: list[Moved] = [
        MovedRun(key.hex(), chain, state, open_, dead, entered, ended, result, until, why or "", failure)
        for _, key, chain, state, open_, dead, entered, ended, result, until, why, failure in rows
    ]
    return _page(Section.RUNS, things, limit, lambda: rows[-1][0])


def _gathers(tx: Ledger, after: str, limit: int) -> MovedPage:
    rows = tx.sql(
        "SELECT g.n, g.id, r.id, g.missing, g.dead, g.fired, g.data FROM gather g JOIN run r ON r.n = g.run WHERE g.n > ? ORDER BY g.n LIMIT ?",
        (int(after or 0), limit),
    ).fetchall()
    parts: dict[int, list[tuple[int, bool, bytes | None]]] = {}
    for n, part, dead, value in tx.sql(
        "SELECT gather, part, dead, value FROM gather_part WHERE gather IN (SELECT value FROM carray(?)) ORDER BY gather, part",
        (_numbers(r[0] for r in rows),),
    ):
        parts.setdefault(n, []).append((part, bool(dead), value))
    things: list[Moved] = [
        MovedGather(key.hex(), run.hex(), missing, dead, bool(fired), data, tuple(parts.get(n, ())))
        for n, key, run, missing, dead, fired, data in rows
    ]
    return _page(Section.GATHERS, things, limit, lambda: rows[-1][0])


_MESSAGES = f"""SELECT m.seq, m.id, m.state, m.blocked, q.name, m.task, m.group_key, r.id, m.head, coalesce(m.body, b.data), m.sent, m.epoch, m.failed, m.lost,
    m.rank, m.since, m.due, m.expires, m.started, m.worker, m.ran, m.outcome, coalesce(m.result, x.data), m.result_until, m.why, m.error, a.reason, p.value
  FROM message m JOIN queue q ON q.n = m.queue LEFT JOIN run r ON r.n = m.run LEFT JOIN bulk b ON b.n = m.seq * 2 LEFT JOIN bulk x ON x.n = m.seq * 2 + 1
    LEFT JOIN asked a ON a.seq = m.seq LEFT JOIN progress p ON p.seq = m.seq
  WHERE m.seq > ? AND m.state <> {FORGOTTEN} ORDER BY m.seq LIMIT ?"""


def _messages(tx: Ledger, after: str, limit: int) -> MovedPage:
    rows = tx.sql(_MESSAGES, (int(after or 0), limit)).fetchall()
    attempts: dict[int, list[MovedAttempt]] = {}
    for seq, epoch, outcome, worker, started, ended, ran, note, failure in tx.sql(
        "SELECT seq, epoch, outcome, worker, started, ended, ran, note, failure FROM attempt WHERE seq IN (SELECT value FROM carray(?)) ORDER BY seq, n",
        (_numbers(row[0] for row in rows),),
    ):
        attempts.setdefault(seq, []).append(MovedAttempt(epoch, outcome, _text(tx, worker), started, ended, ran, note, failure))
    things: list[Moved] = [_message(tx, row, tuple(attempts.get(row[0], ()))) for row in rows]
    return _page(Section.MESSAGES, things, limit, lambda: rows[-1][0])


def _message(tx: Ledger, row: tuple[Any, ...], attempts: tuple[MovedAttempt, ...]) -> MovedMessage:
    """What a state does not use may be left over in the row from the one before: it is not handed on."""
    (
        seq,
        key,
        state,
        blocked,
        queue,
        task,
        group,
        run,
        head,
        body,
        sent,
        epoch,
        failed,
        lost,
        rank,
        since,
        due,
        expires,
        started,
        worker,
        ran,
        outcome,
    ) = row[:22]
    result, result_until, why, error, asked, progress = row[22:]
    waiting, ended = state <= State.READY, state >= State.DONE
    done, tried = state == State.DONE, state in (State.LEASED, State.DONE)
    return MovedMessage(
        id=key.hex(),
        seq=seq,
        state=state,
        blocked=bool(blocked) and waiting,
        queue=queue,
        task=tx.text(task),
        group=group,
        run=None if run is None else run.hex(),
        head=head,
        body=body,
        sent=sent,
        epoch=epoch,
        failed=failed,
        lost=lost,
        rank=0 if ended else rank,
        since=0 if ended else since,
        due=since if waiting else due,
        expires=expires if waiting else None,
        started=started if tried else None,
        worker=_text(tx, worker) if tried else "",
        ran=ran if done else None,
        outcome=outcome if done else None,
        result=result if done else None,
        result_until=result_until if done else None,
        why="" if state == State.LEASED else why or "",
        error=error or "",
        asked=asked,
        progress=progress,
        attempts=attempts,
    )


def _keys(tx: Ledger, after: str, limit: int) -> MovedPage:
    n, _, key = after.partition(":")
    rows = tx.sql(
        "SELECT d.queue, q.name, d.key, d.id, d.until FROM dedup d JOIN queue q ON q.n = d.queue WHERE (d.queue, d.key) > (?, ?) ORDER BY d.queue, d.key LIMIT ?",
        (int(n or 0), key, limit),
    ).fetchall()
    things: list[Moved] = [MovedKey(queue, text, id.hex(), until) for _, queue, text, id, until in rows]
    return _page(Section.KEYS, things, limit, lambda: f"{rows[-1][0]}:{rows[-1][2]}")


def _known(tx: Ledger, after: str, limit: int) -> MovedPage:
    rows = tx.sql(f"SELECT seq, id, due FROM message WHERE seq > ? AND state = {FORGOTTEN} ORDER BY seq LIMIT ?", (int(after or 0), limit)).fetchall()
    things: list[Moved] = [MovedId(key.hex(), ended) for _, key, ended in rows]
    return _page(Section.KNOWN, things, limit, lambda: rows[-1][0])


def _limits(tx: Ledger, after: str, limit: int) -> MovedPage:
    rows = tx.sql("SELECT name, declared, given FROM limits WHERE name > ? ORDER BY name LIMIT ?", (after, limit)).fetchall()
    things: list[Moved] = [MovedLimit(*row) for row in rows]
    return _page(Section.LIMITS, things, limit, lambda: rows[-1][0])


_TAKE: dict[Section, Callable[[Ledger, str, int], MovedPage]] = {
    Section.QUEUES: _queues,
    Section.RUNS: _runs,
    Section.GATHERS: _gathers,
    Section.MESSAGES: _messages,
    Section.KEYS: _keys,
    Section.KNOWN: _known,
    Section.SCHEDULES: schedules.take,
    Section.LIMITS: _limits,
}


def _numbers(numbers: Iterable[int]) -> Any:
    return apsw.carray(array("q", [0, *numbers]))  # no row has the number 0; an array of nothing has no address SQLite would take


def _text(tx: Ledger, n: int | None) -> str:
    return "" if n is None else tx.text(n)


# ------------------------------------------------------------------------------------------------------------------ in
def put(tx: Ledger, page: MovedPage, before: Seal, after: Seal) -> bool:
    """Write what is not there yet. False: the seal is not `before`, nothing was written."""
    if not set_seal(tx, before, after):
        return False
    tx.flush()  # what else this transaction knows by heart is forgotten below
    match page.section:
        case Section.QUEUES:
            _put_queues(tx, page)
        case Section.RUNS:
            for run in page.things:
                assert isinstance(run, MovedRun)
                _put_run(tx, run)
        case Section.GATHERS:
            for gather in page.things:
                assert isinstance(gather, MovedGather)
                _put_gather(tx, gather)
        case Section.MESSAGES:
            _put_messages(tx, [thing for thing in page.things if isinstance(thing, MovedMessage)])
        case Section.KEYS:
            keys = [thing for thing in page.things if isinstance(thing, MovedKey)]
            rows = [(tx.queue(each.queue).n, each.key, bytes.fromhex(each.id), each.until) for each in keys]
            tx.many("INSERT OR IGNORE INTO dedup(queue, key, id, until) VALUES(?, ?, ?, ?)", rows)
        case Section.KNOWN:
            _put_known(tx, [thing for thing in page.things if isinstance(thing, MovedId)])
        case Section.SCHEDULES:
            schedules.put_moved(tx, [thing for thing in page.things if isinstance(thing, MovedSchedule)])
        case Section.LIMITS:
            limits = [thing for thing in page.things if isinstance(thing, MovedLimit)]
            tx.many(
                "INSERT OR IGNORE INTO limits(name, declared, given) VALUES(?, ?, ?)", [(each.name, each.declared, each.given) for each in limits]
            )
        case Section.END:
            pass
    tx.join(tx.now)
    return True


def _put_queues(tx: Ledger, page: MovedPage) -> None:
    queues = [thing for thing in page.things if isinstance(thing, MovedQueue)]
    control.declare(tx, [_spec.decode(queue.spec) for queue in queues])
    for queue in queues:
        control.pause(tx, queue.name, queue.paused)
        n = tx.queue(queue.name).n
        tx.sql("UPDATE tally SET done = ? WHERE queue = ?", (queue.done, n))
        if queue.snoozed or queue.switch is not None:
            shape = tx.flow.shape(n)
            shape.snoozed = queue.snoozed
            if queue.switch is not None:
                shape.switch = switch.decode(msgspec.msgpack.encode(queue.switch))
            tx.flow.change(shape)
    tx.flush()
    tx.sql("UPDATE meta SET value = max(value, ?) WHERE key = 'hand_outs'", (page.hand_outs,))
    tx.sql("UPDATE meta SET value = max(value, ?) WHERE key = 'next_seq'", (page.next_seq,))


def _put_run(tx: Ledger, run: MovedRun) -> None:
    chain = tx.number(CHAIN, run.chain)
    tx.sql(
        "INSERT OR IGNORE INTO run(id, chain, state, open, dead, entered, ended, result, result_until, why, failure) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            bytes.fromhex(run.id),
            chain,
            run.state,
            run.open,
            run.dead,
            run.entered,
            run.ended,
            run.result,
            run.result_until,
            run.why or None,
            run.failure,
        ),
    )
    if tx.db.changes():
        tx.sql(
            "INSERT INTO run_tally(chain, state, count) VALUES(?, ?, 1) ON CONFLICT(chain, state) DO UPDATE SET count = count + 1", (chain, run.state)
        )


def _put_gather(tx: Ledger, gather: MovedGather) -> None:
    run = tx.sql("SELECT n FROM run WHERE id = ?", (bytes.fromhex(gather.run),)).get
    n = tx.sql(
        "INSERT OR IGNORE INTO gather(id, run, expected, missing, dead, fired, data) VALUES(?, ?, ?, ?, ?, ?, ?) RETURNING n",
        (bytes.fromhex(gather.id), run, _gather.decode(gather.data).expected, gather.missing, gather.dead, gather.fired, gather.data),
    ).get
    if n is not None:
        tx.many("INSERT INTO gather_part(gather, part, dead, value) VALUES(?, ?, ?, ?)", [(n, *part) for part in gather.parts])


_PUT = """INSERT OR IGNORE INTO message(seq, id, state, blocked, epoch, due, queue, task, rank, since, failed, lost, sent, group_key, run, expires,
    started, worker, ran, outcome, result, result_until, why, error, head, body, lane)
  VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, (SELECT n FROM run WHERE id = ?), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""


def _put_messages(tx: Ledger, messages: list[MovedMessage]) -> None:
    there = (
        {row[0] for row in tx.sql("SELECT id FROM message WHERE id IN (SELECT value FROM carray(?))", (_blobs(m.id for m in messages),))}
        if messages
        else set()
    )
    new = [message for message in messages if bytes.fromhex(message.id) not in there]
    bulk: list[tuple[int, bytes, int | None]] = []
    rows = []
    for m in new:
        body: bytes | None = m.body
        result = m.result
        if len(m.body) > INLINE_BYTES:
            bulk.append((m.seq * 2, m.body, None))
            body = None
        if result is not None and len(result) > INLINE_BYTES:
            bulk.append((m.seq * 2 + 1, result, m.result_until))
            result = None
        rows.append(
            (
                m.seq,
                bytes.fromhex(m.id),
                m.state,
                m.blocked,
                m.epoch,
                m.due,
                tx.queue(m.queue).n,
                tx.number(TASK, m.task),
                m.rank,
                m.since,
                m.failed,
                m.lost,
                m.sent,
                m.group,
                None if m.run is None else bytes.fromhex(m.run),
                m.expires,
                m.started,
                tx.number(WORKER, m.worker) if m.worker else None,
                m.ran,
                m.outcome,
                result,
                m.result_until,
                m.why or None,
                m.error or None,
                m.head,
                body,
                _lane(tx, m),
            )
        )
        if m.state != State.DONE:  # those were counted with their queue
            tx.tally(tx.queue(m.queue).n).add(m.state, 1)
        if m.state <= State.READY and m.why == PARKED:
            tx.tally(tx.queue(m.queue).n).parked += 1
    tx.many(_PUT, rows)
    tx.many("INSERT INTO bulk(n, data, until) VALUES(?, ?, ?)", bulk)
    tx.many("INSERT INTO asked(seq, reason) VALUES(?, ?)", [(m.seq, m.asked) for m in new if m.asked is not None])
    tx.many("INSERT INTO progress(seq, value) VALUES(?, ?)", [(m.seq, m.progress) for m in new if m.progress is not None])
    tx.many(
        "INSERT INTO attempt(seq, epoch, outcome, worker, started, ended, ran, note, failure) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (m.seq, a.epoch, a.outcome, tx.number(WORKER, a.worker) if a.worker else None, a.started, a.ended, a.ran, a.note, a.failure)
            for m in new
            for a in m.attempts
        ],
    )
    tx.flush()


def _lane(tx: Ledger, m: MovedMessage) -> int | None:
    """Where flow control counts it; and what it is unique by."""
    flow = flow_of(m.head)
    if flow is None:
        return None
    queue = tx.queue(m.queue)
    if flow.unique is not None:
        remember(tx, [(queue.n, flow.unique.key, m.seq)])
    if not flow.shaped or m.state == State.DONE:
        return None
    lane = tx.flow.lane_of(queue.n, flow, priority_of(m.head))
    tx.flow.count(lane, m.state, 1)
    if m.state == State.LEASED:
        tx.flow.limits.hold(m.seq, lane.keys)
    return int(lane.n)


def _put_known(tx: Ledger, known: list[MovedId]) -> None:
    """They need places of their own: a row that is only the memory of an id has one like any other."""
    queue = tx.sql("SELECT min(n) FROM queue").get
    if queue is None:
        return
    task = tx.number(TASK, "")
    for each in known:
        if each.ended + REMEMBERED_MS > tx.now:
            tx.sql(
                "INSERT OR IGNORE INTO message(seq, id, state, blocked, epoch, due, queue, task, rank, since, failed, lost, sent)"
                f" VALUES(max((SELECT coalesce(max(seq), 0) + 1 FROM message), (SELECT value FROM meta WHERE key = 'next_seq')), ?, {FORGOTTEN}, 0, 0, ?, ?, ?, 0, 0, 0, 0, 0)",
                (bytes.fromhex(each.id), each.ended, queue, task),
            )


def _blobs(ids: Iterable[str]) -> Any:
    return apsw.carray(tuple(bytes.fromhex(id) for id in ids))
