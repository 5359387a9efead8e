"""What people do to messages: purge, cancel, hurry, redrive, edit, delete. The same store, the same rules, one verb = one step."""

import sys
from collections.abc import Iterator, Sequence
from itertools import islice

from msgspec import structs

from beltline.core import limits
from beltline.core.errors import Refused, ValueInvalid
from beltline.core.lifecycle import Move, State
from beltline.core.names import MessageId, QueueName, RunId
from beltline.core.outcome import Ended
from beltline.core.views import MessageFilter
from beltline.engines.memory.rows import Row, RunRow
from beltline.engines.memory.store import Store


class Operators:
    def __init__(self, store: Store) -> None:
        self._store = store

    def purge(self, name: QueueName, now: float) -> int:
        queue = self._store.queue(name)
        queue.due(now)
        mine = [row for row in self._store.rows.values() if row.message.queue == name and row.shown(now) in (State.DELAYED, State.READY, State.DEAD)]
        for row in mine:
            if row.state is not State.DONE:  # a part that failed its run took others along
                self._store.end(row, Move.CANCEL, Ended.CANCELLED, "purged", now)
            self._store.runs.close(now)
        return len(mine)

    def cancel(self, ids: Sequence[MessageId], reason: str, now: float) -> list[State | None]:
        answers: list[State | None] = []
        for id in ids:
            row = self._store.rows.get(id)
            if row is not None:
                self._store.drop(row, reason, now)
                self._store.runs.close(now)
            answers.append(None if row is None else row.state)
        return answers

    def cancel_run(self, id: RunId, reason: str, now: float) -> RunRow:
        run = self._store.run(id)
        if run.state in ("running", "dead"):
            self._store.runs.give_up(run, "cancelled", reason, now)
            self._store.runs.close(now)
        return run

    def hurry(self, ids: Sequence[MessageId], now: float) -> int:
        hurried = 0
        for row in [self._store.rows[id] for id in dict.fromkeys(ids) if id in self._store.rows]:
            queue = self._store.queues[row.message.queue]
            if row.shown(now) is State.DELAYED:
                queue.rank(row, now)
                queue.move(row, Move.HURRY, State.READY, why="")
                hurried += 1
        return hurried

    def dead(self, where: MessageFilter, limit: int, now: float) -> list[Row]:
        """The dead letters that match, oldest sent first. `where` may not be empty: everything has to be asked for by name."""
        if where.empty:
            raise ValueInvalid(name="where", value=where, allowed="at least one condition (a queue, a task, ids, …)")
        found = (row for row in self.matching(where, now) if row.state is State.DEAD)
        return list(islice(found, limits.integer("limit", limit, least=1, most=sys.maxsize)))

    def redrive(self, where: MessageFilter, limit: int, target: QueueName | None, now: float) -> list[MessageId]:
        if target is not None:
            self._store.queue(target)
        moved: list[MessageId] = []
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        for row in self.dead(where, sys.maxsize, now):
            run = self._store.runs.of(row)
            if len(moved) == limit or (run is not None and run.given_up):
                continue
            self._store.remark(row, "redrive", row.why, now)
            row.failed = row.lost = 0
            row.cancel_asked = None
            row.ended_at = 0.0
            before = self._store.queues[row.message.queue]
            queue = self._store.queues[target or row.message.queue]
            queue.rank(row, now)
            if queue is before:
                queue.move(row, Move.REDRIVE, State.READY, why="")
            else:
                before.move(row, Move.REDRIVE, State.READY, why="")
                row.message = structs.replace(row.message, queue=queue.spec.name)
                before.leave(row)
                queue.enter(row, State.READY)
            self._store.runs.redriven(row, now)
            moved.append(row.id)
        self._store.runs.close(now)
        return moved

    def edit(self, id: MessageId, body: bytes, now: float) -> None:
        row = self._store.row(id)
        if row.shown(now) not in (State.DELAYED, State.DEAD):
            raise Refused(f"Message {id} is {row.shown(now).word}.", why="Only dead and delayed messages can be edited.")
        limits.body(body, self._store.max_body)
        self._store.remark(row, "edited", f"the body before had {len(row.message.body)} bytes", now)
        row.message = structs.replace(row.message, body=body)

    def delete(self, where: MessageFilter, limit: int, now: float) -> int:
        rows = self.dead(where, limit, now)
        for row in rows:
            self._store.end(row, Move.CANCEL, Ended.CANCELLED, "deleted", now)
            self._store.runs.close(now)
        return len(rows)

    def matching(self, where: MessageFilter, now: float) -> Iterator[Row]:
        """In send order."""
        rows: Iterator[Row] = iter(self._store.rows.values())
        if where.ids:
            rows = iter(sorted((self._store.rows[MessageId(id)] for id in set(where.ids) if id in self._store.rows), key=lambda row: row.seq))
        elif (run := self._store.runs.runs.get(RunId(where.run))) is not None:
            rows = iter(sorted(run.rows.values(), key=lambda row: row.seq))
        return (row for row in rows if matches(row, where, now))


def matches(row: Row, where: MessageFilter, now: float) -> bool:
    message = row.message
    return (
        (not where.ids or message.id in where.ids)
        and (not where.queues or message.queue in where.queues)
        and (not where.states or row.shown(now).word in where.states)
        and (not where.tasks or message.task in where.tasks)
        and (not where.run or (message.place is not None and message.place.run == where.run))
        and (not where.group or message.group == where.group)
        and (not where.error or (row.failure is not None and row.failure.type == where.error))
        and (not where.sent_after or row.sent_at >= where.sent_after)
        and (not where.sent_before or row.sent_at < where.sent_before)
    )
