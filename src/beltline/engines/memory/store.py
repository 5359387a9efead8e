"""The laws of engines/protocol.py, executable: one verb = one step, no waiting, no locks, `now` is given.

Read it in the order of a message's life: send, receive, settle, then what people do to messages (cancel, redrive, …), then upkeep. Every change of state goes
through `QueueRows.move`, every change of a run through `RunBook`; a verb that can refuse looks at everything before it writes anything.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from math import floor, inf, isfinite
from typing import assert_never

from msgspec import structs

from beltline.core import limits
from beltline.core.errors import NotFound, QueueFull, QueueNotDeclared, Refused, ValueInvalid
from beltline.core.lifecycle import Move, State
from beltline.core.message import Delivery, Gather, Message, Receipt
from beltline.core.names import MessageId, QueueName, RunId, WorkerId, queue_name
from beltline.core.outcome import (
    Ack,
    Admission,
    Cause,
    DeadLetter,
    Ended,
    Failure,
    Outcome,
    Release,
    RetryAfter,
    Sent,
    Settled,
    Settlement,
)
from beltline.core.policy import poison
from beltline.core.queues import QueueSpec
from beltline.core.views import AttemptView, MessageFilter
from beltline.engines.memory.queue import QueueRows
from beltline.engines.memory.rows import Row, RunRow
from beltline.engines.memory.runs import RunBook

REMEMBERED_S = 24 * 3600.0  # how long an id is known after the end of its message, whatever retain drops
PAGE = 500  # leases that have run out, looked at in one receive beyond its limit
LEASE_OVER = Failure(Cause.LEASE_LOST, text="The lease ran out: its worker died or lost touch.")


class Store:
    def __init__(self, *, max_body: int) -> None:
        self.max_body = max_body
        self.rows: dict[MessageId, Row] = {}  # in send order
        self.queues: dict[QueueName, QueueRows] = {}
        self.runs = RunBook(self._hand_on, self._drop)
        self.dedup: dict[tuple[QueueName, str], tuple[float, MessageId]] = {}  # until when, who stands for the key
        self.remembered: dict[MessageId, float] = {}  # ids whose history is over, until when
        self.feeders: dict[QueueName, list[tuple[QueueRows, int]]] = {}
        self._seq = 0
        self._hand_outs = 0

    # ---- queues

    def queue(self, name: QueueName) -> QueueRows:
        try:
            return self.queues[name]
        except KeyError:
            raise QueueNotDeclared(name, known=tuple(sorted(self.queues))) from None

    def declare(self, specs: Sequence[QueueSpec]) -> None:
        for spec in specs:
            queue_name(spec.name)
            if spec.on_dead not in ("hold", "skip"):
                raise ValueInvalid(name="on_dead", value=spec.on_dead, allowed="hold or skip")
        for spec in specs:
            if spec.name in self.queues:
                self.queues[spec.name].declare(spec, self.rows.values())
            else:
                self.queues[spec.name] = QueueRows(spec)
        self.feeders.clear()
        for queue in self.queues.values():
            for feed in queue.spec.feeds:
                self.feeders.setdefault(feed.queue, []).append((queue, feed.fan_out))
            queue.stirred = True  # a bound may have been lifted

    # ---- send

    def send(self, messages: Sequence[Message], gathers: Sequence[Gather], now: float) -> list[Sent]:
        self._check(messages, gathers)
        for message in messages:
            limits.body(message.body, self.max_body)
        answers = self._admit(messages, now)
        new = tuple(message for message, sent in zip(messages, answers, strict=True) if sent.new)
        for queue, more in Counter(message.queue for message in new).items():
            bound = self.queues[queue].spec.max_backlog
            if self.queues[queue].backlog + more > bound:
                raise QueueFull(queue=queue, bound=int(bound))
        for message in new:
            if message.dedup_key is not None:
                self.dedup[message.queue, message.dedup_key] = (now + message.dedup_window_s, message.id)
        # A batch that is known already has opened its gathers then; their rows may be history by now.
        self.runs.hand_on(new, tuple(gathers) if new or not messages else (), now)
        self.runs.close(now)
        return answers

    def _check(self, messages: Sequence[Message], gathers: Sequence[Gather]) -> None:
        followers = [gather.then for gather in gathers if gather.then is not None]
        for message in (*messages, *followers):
            self.queue(message.queue)
            limits.seconds("delay_s", message.delay_s, most=limits.MAX_DELAY_S)
            limits.seconds("dedup_window_s", message.dedup_window_s, most=limits.MAX_DEDUP_WINDOW_S)
            if message.expires_s is not None:
                limits.seconds("expires_s", message.expires_s)
            if message.ready_at is not None and not isfinite(message.ready_at):
                raise ValueInvalid(name="ready_at", value=message.ready_at, allowed="seconds since 1970")

    def _admit(self, messages: Sequence[Message], now: float) -> list[Sent]:
        """What will become of each message, before anything is written."""
        answers, ids, keys = [], set[MessageId](), dict[tuple[QueueName, str], MessageId]()
        for message in messages:
            key = None if message.dedup_key is None else (message.queue, message.dedup_key)
            stands = None if key is None else keys.get(key) or self._stands_for(key, now)
            if message.id in self.rows or message.id in self.remembered or message.id in ids:
                answers.append(Sent(message.id, Admission.SAME_ID))
            elif stands is not None:
                answers.append(Sent(stands, Admission.DEDUPLICATED))
            else:
                answers.append(Sent(message.id))
                ids.add(message.id)
                if key is not None and message.dedup_window_s > 0:
                    keys[key] = message.id
        return answers

    def _stands_for(self, key: tuple[QueueName, str], now: float) -> MessageId | None:
        entry = self.dedup.get(key)
        return entry[1] if entry is not None and now < entry[0] else None

    def _hand_on(self, message: Message, now: float) -> None:
        """Write a message; one that is known already is known to be the same."""
        if message.id in self.rows or message.id in self.remembered:
            return
        self._seq += 1
        queue = self.queue(message.queue)
        row = self.rows[message.id] = Row(message, self._seq, now)
        queue.rank(row, max(now, message.ready_at if message.ready_at is not None else now + message.delay_s))
        self.runs.stored(row, now)
        queue.enter(row, State.READY if row.ready_at <= now else State.DELAYED)

    # ---- receive

    def receive(self, names: Sequence[QueueName], limit: int, lease_s: float, worker: WorkerId, now: float) -> list[Delivery]:
        queues = [self.queue(name) for name in dict.fromkeys(names)]
        deliveries: list[Delivery] = []
        for queue in queues:
            if queue.paused or len(deliveries) >= limit:
                continue
            again, _ = self._turn(queue, now, limit - len(deliveries))
            deliveries += [self._lease(queue, row, lease_s, worker, now) for row in again]
            room = min(self._room(queue, now), limit - len(deliveries))
            while room >= 1 and (row := queue.next()) is not None:
                deliveries.append(self._lease(queue, row, lease_s, worker, now))
                room -= 1
            self.runs.close(now)
        return deliveries

    def _turn(self, queue: QueueRows, now: float, limit: int) -> tuple[list[Row], int]:
        """What time has brought: due -> ready, expired -> done, poison -> dead.

        Returns up to `limit` rows whose lease is over and who may be handed out again, and how many have moved.
        """
        moved = queue.due(now)
        while (row := queue.expired(now)) is not None:
            self._end(row, Move.EXPIRE, Ended.EXPIRED, "", now)
            moved += 1
        again: list[Row] = []
        for row in queue.over(now, most=limit + PAGE):
            if row.cancel_asked is not None:
                self._lost(row, now)
                self._end(row, Move.CANCEL, Ended.CANCELLED, row.cancel_asked, now)
            elif row.lost + 1 >= queue.spec.max_deliveries:
                self._lost(row, now)
                self._die(row, Move.RECEIVE, poison(row.lost), LEASE_OVER, now)
            elif len(again) < limit:
                again.append(row)
                continue
            else:
                queue.watch(row)
                continue
            moved += 1
        return again, moved

    def _room(self, queue: QueueRows, now: float) -> float:
        """Backpressure: how many messages may be taken without flooding a queue that this one feeds. Leases that are over have their room already."""
        room = inf
        for feed in queue.spec.feeds:
            next_queue = self.queues.get(feed.queue)
            if next_queue is None:
                continue
            next_queue.due(now)
            high = next_queue.spec.high_water
            low = min(high, high / 2 if next_queue.spec.low_water == inf else next_queue.spec.low_water)
            load = next_queue.count[State.READY] + sum(q.count[State.LEASED] * fan_out for q, fan_out in self.feeders[feed.queue])
            if high == inf or load <= low:
                queue.stalled.discard(feed.queue)
            if feed.queue in queue.stalled:
                room = 0
                continue
            here = floor((high - load) / feed.fan_out) if high < inf else inf
            if here < 1 and load == 0:
                here = 1  # one message alone overflows it: better than a line that stands still for ever
            if here < 1:
                queue.stalled.add(feed.queue)
            room = min(room, max(0, here))
        return room

    def _lease(self, queue: QueueRows, row: Row, lease_s: float, worker: WorkerId, now: float) -> Delivery:
        if row.state is State.LEASED:
            self._lost(row, now)
        row.epoch += 1
        row.worker, row.leased_at, row.lease_until = worker, now, now + lease_s
        queue.move(row, Move.RECEIVE, State.LEASED, why="")
        self._hand_outs += row.message.group is not None
        return Delivery(
            message=row.message,
            receipt=Receipt(row.id, row.epoch),
            failed=row.failed,
            lost=row.lost,
            sent_at=row.sent_at,
            lease_until=row.lease_until,
            # one counter for all groups: it grows within each, and no group need be remembered for it
            group_epoch=self._hand_outs if row.message.group is not None else 0,
        )

    def _lost(self, row: Row, now: float) -> None:
        """A delivery that never answered."""
        row.lost += 1
        self._note(row, "lost", now, failure=LEASE_OVER)

    # ---- renew, settle

    def held(self, receipt: Receipt) -> Row | None:
        """The row whose current delivery this is; a lease that is over counts until somebody else is handed the message."""
        row = self.rows.get(receipt.id)
        return row if row is not None and row.state is State.LEASED and row.epoch == receipt.epoch else None

    def renew(self, receipts: Sequence[Receipt], lease_s: float, now: float) -> list[Settled]:
        answers = []
        for receipt in receipts:
            row = self.held(receipt)
            if row is None:
                answers.append(Settled.LEASE_LOST)
                continue
            row.lease_until = now + lease_s
            self.queues[row.message.queue].move(row, Move.RENEW, State.LEASED)
            answers.append(Settled.DONE if row.cancel_asked is None else Settled.CANCEL_ASKED)
        return answers

    def settle(self, settlements: Sequence[Settlement], now: float) -> list[Settled]:
        for settlement in settlements:
            match settlement.outcome:
                case Ack(then=then, gathers=gathers):
                    self._check(then, gathers)
                case RetryAfter(delay_s=delay_s) | Release(delay_s=delay_s):
                    limits.seconds("delay_s", delay_s, most=limits.MAX_DELAY_S)
                case DeadLetter():
                    pass
        return [self._settle(settlement.receipt, settlement.outcome, now) for settlement in settlements]

    def progress(self, receipt: Receipt, value: bytes) -> Settled:
        row = self.held(receipt)
        if row is None:
            return Settled.LEASE_LOST
        row.progress = value
        return Settled.DONE

    def _settle(self, receipt: Receipt, outcome: Outcome, now: float) -> Settled:
        row = self.held(receipt)
        if row is None:
            return Settled.LEASE_LOST
        queue = self.queues[row.message.queue]
        match outcome:
            case Ack():
                self._note(row, outcome.ended.value, now, outcome.ran_s, outcome.note)
                row.ended, row.ended_at = outcome.ended, now
                if outcome.result is not None and row.message.place is None:
                    row.result, row.result_until = outcome.result, now + outcome.result_ttl_s
                queue.move(row, Move.ACK, State.DONE, why=outcome.note)
                self.runs.ended.add(row.id)
                if row.message.place is None:
                    self.runs.hand_on(outcome.then, outcome.gathers, now)
                self.runs.succeeded(row, outcome, now)
            case RetryAfter(failure=failure):
                if outcome.lost and row.lost + 1 >= queue.spec.max_deliveries:
                    return self._settle(receipt, DeadLetter(reason=poison(row.lost + 1), failure=failure, lost=True, ran_s=outcome.ran_s), now)
                self._count(row, lost=outcome.lost)
                row.failure = failure
                self._note(row, "lost" if outcome.lost else "retry", now, outcome.ran_s, failure=failure)
                self._again(row, Move.RETRY, now + outcome.delay_s, ": ".join(filter(None, (failure.type, failure.text))), now)
            case Release(delay_s=delay_s, why=why):
                self._note(row, "release", now, note=why)
                self._again(row, Move.RELEASE, now + delay_s if delay_s > 0 else row.ready_at, why, now)
            case DeadLetter(reason=reason, failure=failure):
                self._count(row, lost=outcome.lost)
                self._note(row, "dead_letter", now, outcome.ran_s, reason, failure)
                self._die(row, Move.DEAD_LETTER, reason, failure, now)
            case _:
                assert_never(outcome)
        self.runs.close(now)
        return Settled.DONE

    def _count(self, row: Row, *, lost: bool) -> None:
        row.lost += lost
        row.failed += not lost

    def _again(self, row: Row, move: Move, ready_at: float, why: str, now: float) -> None:
        """Back to the queue, unless its cancellation was asked for."""
        queue = self.queues[row.message.queue]
        if row.cancel_asked is not None:
            self._end(row, Move.CANCEL, Ended.CANCELLED, row.cancel_asked, now)
            return
        if move is Move.RETRY or ready_at != row.ready_at:  # a release without delay goes back to its place
            queue.rank(row, ready_at)
        queue.move(row, move, State.READY if ready_at <= now else State.DELAYED, why=why)

    def _end(self, row: Row, move: Move, ended: Ended, why: str, now: float) -> None:
        """Done without a settlement."""
        row.ended, row.ended_at, row.cancel_asked = ended, now, None
        self.queues[row.message.queue].move(row, move, State.DONE, why=why)
        self.runs.ended.add(row.id)
        self.runs.gone(row, ended, now)

    def _die(self, row: Row, move: Move, reason: str, failure: Failure, now: float) -> None:
        row.ended_at, row.failure = now, failure
        self.queues[row.message.queue].move(row, move, State.DEAD, why=reason)
        self.runs.ended.add(row.id)
        self.runs.died(row, now)

    def _drop(self, row: Row, why: str, now: float) -> None:
        """Cancel what is live: at once, or by asking its worker."""
        if row.state is State.LEASED:
            row.cancel_asked = row.cancel_asked or why
        elif row.state is not State.DONE:
            self._end(row, Move.CANCEL, Ended.CANCELLED, why, now)

    def _note(self, row: Row, outcome: str, now: float, ran_s: float = 0.0, note: str = "", failure: Failure | None = None) -> None:
        row.note(
            AttemptView(
                epoch=row.epoch,
                outcome=outcome,
                worker=row.worker,
                started_at=row.leased_at,
                ended_at=now,
                ran_s=ran_s,
                note=note,
                failure=failure,
            )
        )

    def _remark(self, row: Row, outcome: str, note: str, now: float) -> None:
        """An entry of the history that is no delivery."""
        row.note(AttemptView(epoch=row.epoch, outcome=outcome, started_at=now, ended_at=now, note=note))

    # ---- what people do to messages

    def purge(self, name: QueueName, now: float) -> int:
        queue = self.queue(name)
        queue.due(now)
        mine = [row for row in self.rows.values() if row.message.queue == name and row.shown(now) in (State.DELAYED, State.READY, State.DEAD)]
        for row in mine:
            if row.state is not State.DONE:  # a part that failed its run took others along
                self._end(row, Move.CANCEL, Ended.CANCELLED, "purged", now)
            self.runs.close(now)
        return len(mine)

    def cancel(self, ids: Sequence[MessageId], reason: str, now: float) -> list[State | None]:
        answers: list[State | None] = []
        for id in ids:
            row = self.rows.get(id)
            if row is not None:
                self._drop(row, reason, now)
                self.runs.close(now)
            answers.append(None if row is None else row.state)
        return answers

    def cancel_run(self, id: RunId, reason: str, now: float) -> RunRow:
        run = self.run(id)
        if run.state in ("running", "dead"):
            self.runs.give_up(run, "cancelled", reason, now)
            self.runs.close(now)
        return run

    def run(self, id: RunId) -> RunRow:
        try:
            return self.runs.runs[id]
        except KeyError:
            raise NotFound(kind="run", name=id) from None

    def row(self, id: MessageId) -> Row:
        try:
            return self.rows[id]
        except KeyError:
            raise NotFound(kind="message", name=id) from None

    def hurry(self, ids: Sequence[MessageId], now: float) -> int:
        hurried = 0
        for row in [self.rows[id] for id in dict.fromkeys(ids) if id in self.rows]:
            queue = self.queues[row.message.queue]
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
            self.queue(target)
        moved: list[MessageId] = []
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        for row in self.dead(where, sys.maxsize, now):
            run = self.runs.of(row)
            if len(moved) == limit or (run is not None and run.given_up):
                continue
            self._remark(row, "redrive", row.why, now)
            row.failed = row.lost = 0
            row.cancel_asked = None
            row.ended_at = 0.0
            before = self.queues[row.message.queue]
            queue = self.queues[target or row.message.queue]
            queue.rank(row, now)
            if queue is before:
                queue.move(row, Move.REDRIVE, State.READY, why="")
            else:
                before.move(row, Move.REDRIVE, State.READY, why="")
                row.message = structs.replace(row.message, queue=queue.spec.name)
                before.leave(row)
                queue.enter(row, State.READY)
            self.runs.redriven(row, now)
            moved.append(row.id)
        self.runs.close(now)
        return moved

    def edit(self, id: MessageId, body: bytes, now: float) -> None:
        row = self.row(id)
        if row.shown(now) not in (State.DELAYED, State.DEAD):
            raise Refused(f"Message {id} is {row.shown(now).word}.", why="Only dead and delayed messages can be edited.")
        limits.body(body, self.max_body)
        self._remark(row, "edited", f"the body before had {len(row.message.body)} bytes", now)
        row.message = structs.replace(row.message, body=body)

    def delete(self, where: MessageFilter, limit: int, now: float) -> int:
        rows = self.dead(where, limit, now)
        for row in rows:
            self._end(row, Move.CANCEL, Ended.CANCELLED, "deleted", now)
            self.runs.close(now)
        return len(rows)

    def matching(self, where: MessageFilter, now: float) -> Iterator[Row]:
        """In send order."""
        rows: Iterator[Row] = iter(self.rows.values())
        if where.ids:
            rows = iter(sorted((self.rows[MessageId(id)] for id in set(where.ids) if id in self.rows), key=lambda row: row.seq))
        elif (run := self.runs.runs.get(RunId(where.run))) is not None:
            rows = iter(sorted(run.rows.values(), key=lambda row: row.seq))
        return (row for row in rows if matches(row, where, now))

    # ---- upkeep

    def sweep(self, now: float) -> int:
        moved = 0
        for queue in self.queues.values():
            if not queue.paused:
                again, changed = self._turn(queue, now, limit=len(queue.leased))
                for row in again:
                    queue.watch(row)
                moved += changed
            self.runs.close(now)
        return moved

    def retain(self, history_s: float, limit: int, now: float) -> int:
        old = now - history_s
        done = list(islice((row for row in self.rows.values() if row.state is State.DONE and row.ended_at < old), limit))
        for row in done:
            del self.rows[row.id]
            self.remembered[row.id] = row.ended_at + REMEMBERED_S
            if (run := self.runs.of(row)) is not None:
                run.rows.pop(row.id, None)
        over = (run for run in self.runs.runs.values() if run.ended_at and run.ended_at < old and not run.open and not run.dead)
        runs = list(islice(over, limit))
        for run in runs:
            self.runs.forget(run)
        kept: list[Row | RunRow] = [*self.rows.values(), *self.runs.runs.values()]
        results = list(islice((each for each in kept if each.result is not None and each.result_until <= now), limit))
        for each in results:
            each.result = None  # that there was one is still known by result_until
        keys = list(islice((key for key, (until, _) in self.dedup.items() if until <= now), limit))
        for key in keys:
            del self.dedup[key]
        for id in [id for id, until in self.remembered.items() if until <= now]:
            del self.remembered[id]
        return len(done) + len(runs) + len(results) + len(keys)


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
