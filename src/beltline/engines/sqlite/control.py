"""What people do to queues, messages and runs. Each verb is one write; the long ones (`purge`, `redrive`, `delete`) are called in pieces by the engine."""

from collections.abc import Iterable, Sequence

import msgspec

from beltline.core import limits
from beltline.core.errors import NotFound, Refused, ValueInvalid
from beltline.core.flow import check_switch, queue_limits
from beltline.core.lifecycle import State
from beltline.core.names import MessageId, queue_name
from beltline.core.outcome import Ended
from beltline.core.queues import QueueSpec
from beltline.core.views import MessageFilter
from beltline.engines.rows import flow_of, key_of
from beltline.engines.sqlite import lanes
from beltline.engines.sqlite.endings import drop, end, give_up, moved, note, revived, unask
from beltline.engines.sqlite.facts import Fact, by_id, current, select
from beltline.engines.sqlite.ledger import TASK, Ledger, Queue
from beltline.engines.sqlite.runbook import CANCELLED, DEAD, RUNNING
from beltline.engines.sqlite.schema import INLINE_BYTES
from beltline.engines.sqlite.storing import rank_ms
from beltline.engines.sqlite.switch import Switch
from beltline.engines.sqlite.times import ceil_ms

PIECE = 2000  # messages per transaction of a verb that may touch millions


def declare(tx: Ledger, specs: Iterable[QueueSpec]) -> None:
    """Raises NameInvalid, ValueInvalid."""
    specs = list(specs)
    for spec in specs:
        queue_name(spec.name)
        if spec.kill_switch is not None:
            check_switch(spec.kill_switch)
        queue_limits(spec.limits)
        if spec.on_dead not in ("hold", "skip"):
            raise ValueInvalid(name="on_dead", value=spec.on_dead, allowed="hold or skip")
    changed = {spec.name: spec for spec in specs if spec.name not in tx.by_name or tx.by_name[spec.name].spec != spec}
    if not changed:
        return  # the usual case: every start of a worker declares what is declared already
    aged = [name for name, spec in changed.items() if name in tx.by_name and tx.by_name[name].spec.ageing_s != spec.ageing_s]
    turned = [tx.by_name[name].n for name, spec in changed.items() if name in tx.by_name and tx.by_name[name].spec.on_dead != spec.on_dead]
    for spec in changed.values():
        data = msgspec.msgpack.encode(spec)
        n = tx.sql("INSERT INTO queue(name, spec) VALUES(?1, ?2) ON CONFLICT(name) DO UPDATE SET spec = ?2 RETURNING n", (spec.name, data)).get
        tx.sql("INSERT OR IGNORE INTO tally VALUES(?, 0, 0, 0, 0, 0, 0, ?, 0)", (n, tx.now))
    tx.changed_queues()
    tx.woken.update(tx.by_number)  # a bound may have been lifted
    for name in aged:
        tx.flow.replace_all(tx.by_name[name].n)
    for n in turned:
        groups = "SELECT DISTINCT group_key FROM message WHERE queue = ? AND group_key IS NOT NULL AND state <> 3 AND state <> 5"
        for (group,) in tx.sql(groups, (n,)).fetchall():
            lanes.reorder(tx, tx.by_number[n], group)


def pause(tx: Ledger, name: str, paused: bool) -> None:
    queue = tx.queue(name)
    if queue.paused != paused:
        tx.sql("UPDATE queue SET paused = ? WHERE n = ?", (paused, queue.n))
        tx.changed_queues()
    if not paused and tx.tally(queue.n).flow:
        shape = tx.flow.shape(queue.n)
        shape.snoozed, shape.switch = 0, Switch()
        tx.flow.change(shape)
    tx.woken.add(queue.n)


def cancel(tx: Ledger, ids: Sequence[MessageId], reason: str) -> list[State | None]:
    answers: list[State | None] = []
    for id in ids:
        fact = by_id(tx, [id]).get(id)  # one by one: cancelling a part may fail its run and end the next of them
        if fact is not None:
            drop(tx, fact, reason)
        answers.append(None if fact is None else State(fact.state))
    return answers


def cancel_run(tx: Ledger, id: str, reason: str) -> None:
    """Raises NotFound."""
    key = key_of(id)
    run = tx.runbook.find(id) if key is not None else None
    if run is None:
        raise NotFound(kind="run", name=id)
    if run.state in (RUNNING, DEAD):
        give_up(tx, run, CANCELLED, reason)


def hurry(tx: Ledger, ids: Sequence[MessageId]) -> int:
    hurried = 0
    for fact in by_id(tx, list(dict.fromkeys(ids))).values():
        if fact.state != State.DELAYED or fact.due <= tx.now:
            continue
        moved(tx, fact, State.READY)
        rank = rank_ms(tx.by_number[fact.queue], tx.now, fact.priority)
        tx.sql("UPDATE message SET state = 1, due = ?1, since = ?1, rank = ?2, why = NULL WHERE seq = ?3", (tx.now, rank, fact.seq))
        tx.woken.add(fact.queue)
        hurried += 1
    return hurried


def redrive(tx: Ledger, where: MessageFilter, limit: int, target: str | None, after: int) -> tuple[list[MessageId], int]:
    """Up to `limit` of the dead behind place `after`. Returns their ids and the last place looked at (0: there is no more)."""
    goal = None if target is None else tx.queue(target)
    facts = dead(tx, where, limit, after)
    moved_ids = []
    for fact in facts:
        if fact.run is not None and tx.runbook.get(fact.run).given_up:
            continue
        note(tx, fact, "redrive", text=fact.why or "")
        before = tx.by_number[fact.queue]
        queue = goal or before
        revived(tx, fact)
        tx.tally(before.n).add(State.DEAD, -1)
        tx.tally(queue.n).add(State.READY, 1)
        lane = _other_lane(tx, fact, before, queue)
        # In a group it stands behind first; `reorder` lets the right one stand in the queue.
        tx.sql(
            "UPDATE message SET state = 1, queue = ?1, due = ?2, since = ?2, rank = ?3, failed = 0, lost = 0, why = NULL, blocked = ?4, lane = ?5 WHERE seq = ?6",
            (queue.n, tx.now, rank_ms(queue, tx.now, fact.priority), fact.group is not None, lane, fact.seq),
        )
        fact.state = State.READY
        unask(tx, fact.seq)
        if fact.group is not None:
            lanes.reorder(tx, before, fact.group)
            if queue is not before:
                lanes.reorder(tx, queue, fact.group)
        tx.woken.add(queue.n)
        if tx.audited:
            tx.note("redrive", fact.key, queue.n, fact.epoch, fact.run)
        moved_ids.append(fact.id)
    return moved_ids, facts[-1].seq if len(facts) == limit else 0


def _other_lane(tx: Ledger, fact: Fact, before: Queue, queue: Queue) -> int | None:
    """The lane in which a dead message stands from now on."""
    if fact.lane is None:
        return None
    flow = flow_of(fact.head)
    assert flow is not None
    old = tx.flow.lane(fact.lane)
    lane = old if queue is before else tx.flow.lane_of(queue.n, flow, fact.priority)
    tx.flow.count(old, State.DEAD, -1)
    tx.flow.count(lane, State.READY, 1)
    return int(lane.n)


def delete(tx: Ledger, where: MessageFilter, limit: int) -> int:
    facts = dead(tx, where, limit, 0)
    for fact in facts:
        if current(tx, fact):
            end(tx, fact, Ended.CANCELLED, "deleted")
    return len(facts)


def dead(tx: Ledger, where: MessageFilter, limit: int, after: int) -> list[Fact]:
    """Dead letters that match, oldest sent first, behind place `after`."""
    conditions, values = conditions_of(tx, where, by_queue=True)
    return select(tx, f"WHERE state = 4 AND +seq > ? {conditions} ORDER BY +seq LIMIT ?", (after, *values, limit))


def conditions_of(tx: Ledger, where: MessageFilter, *, by_queue: bool = False) -> tuple[str, list[object]]:
    """The filter as SQL conditions (each starts with AND) and their values; state is left to the caller.

    `by_queue`: name all queues if the filter names none, because the indexes of the states begin with the queue.
    """
    sql: list[str] = []
    values: list[object] = []

    def one_of(column: str, allowed: Sequence[object]) -> None:
        sql.append(f"AND {column} IN ({', '.join('?' * len(allowed))})" if allowed else "AND 0")
        values.extend(allowed)

    if where.ids:
        one_of("id", [key for key in map(key_of, where.ids) if key is not None])
    if where.queues:
        one_of("queue", [tx.by_name[name].n for name in where.queues if name in tx.by_name])
    elif by_queue and not where.ids and not where.run:
        one_of("queue", list(tx.by_number))
    if where.tasks:
        one_of("task", [n for name in where.tasks if (n := tx.known(TASK, name)) is not None])
    if where.run:
        run = key_of(where.run)
        found = None if run is None else tx.sql("SELECT n FROM run WHERE id = ?", (run,)).get
        one_of("run", [] if found is None else [found])
    if where.group:
        one_of("group_key", [where.group])
    if where.error:
        one_of("error", [where.error])
    if where.sent_after:
        sql.append("AND sent >= ?")
        values.append(ceil_ms(where.sent_after))
    if where.sent_before:
        sql.append("AND sent < ?")
        values.append(ceil_ms(where.sent_before))
    return " ".join(sql), values


def edit(tx: Ledger, id: MessageId, body: bytes, max_body: int) -> None:
    """Raises NotFound, Refused, BodyTooLarge."""
    fact = by_id(tx, [id]).get(id)
    if fact is None:
        raise NotFound(kind="message", name=id)
    ready = fact.state == State.DELAYED and fact.due <= tx.now
    over = fact.state == State.LEASED and fact.due <= tx.now
    if fact.state not in (State.DELAYED, State.DEAD) or ready:
        word = State.READY.word if ready or over else State(fact.state).word
        raise Refused(f"Message {id} is {word}.", why="Only dead and delayed messages can be edited.")
    limits.body(body, max_body)
    size = tx.sql("SELECT coalesce(length(body), (SELECT length(data) FROM bulk WHERE n = ?1 * 2)) FROM message WHERE seq = ?1", (fact.seq,)).get
    note(tx, fact, "edited", text=f"the body before had {size} bytes")
    inline = body if len(body) <= INLINE_BYTES else None
    tx.sql("UPDATE message SET body = ? WHERE seq = ?", (inline, fact.seq))
    tx.sql("DELETE FROM bulk WHERE n = ?", (fact.seq * 2,))
    if inline is None:
        tx.sql("INSERT INTO bulk(n, data) VALUES(?, ?)", (fact.seq * 2, body))


def purge(tx: Ledger, name: str, before: int) -> tuple[int, bool]:
    """End up to PIECE messages of the queue that were sent before place `before`. Returns how many, and whether there may be more."""
    queue = tx.queue(name)
    facts: list[Fact] = []
    for index, state in (("message_delayed", 0), ("message_ready", 1), ("message_in_lanes", 1), ("message_dead", 4)):
        if len(facts) < PIECE:
            facts += select(tx, purge_of(index, state), (queue.n, before, PIECE - len(facts)))
    expired = "INDEXED BY message_leased WHERE queue = ? AND state = 2 AND due <= ? AND seq < ? LIMIT ?"
    if len(facts) < PIECE:
        facts += select(tx, expired, (queue.n, tx.now, before, PIECE - len(facts)))
    for fact in sorted(facts, key=lambda fact: fact.seq):
        if current(tx, fact):  # a part that failed its run took others along
            end(tx, fact, Ended.CANCELLED, "purged")
    return len(facts), len(facts) == PIECE


def purge_of(index: str, state: int) -> str:
    lane = {"message_ready": "AND lane IS NULL", "message_in_lanes": "AND lane IS NOT NULL"}.get(index, "")
    return f"INDEXED BY {index} WHERE queue = ? AND state = {state} {lane} AND seq < ? LIMIT ?"
