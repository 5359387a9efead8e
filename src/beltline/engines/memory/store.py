"""The laws of engines/protocol.py, executable: one verb = one step, no waiting, no locks, `now` is given.

Read it in the order of a message's life: send, receive, settle, then upkeep; what people do to messages is in operators.py. Every change of state goes
through `QueueRows.move`, every change of a run through `RunBook`; a verb that can refuse looks at everything before it writes anything.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from math import floor, inf, isfinite
from typing import assert_never

from msgspec import structs

from beltline.core import limits
from beltline.core.errors import NotFound, QueueFull, QueueNotDeclared, ValueInvalid
from beltline.core.flow import MEMBER_S, check_flow, check_switch, queue_limits
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
from beltline.core.views import AttemptView, WorkerView
from beltline.engines.memory.admission import AdmissionBook
from beltline.engines.memory.limits import LimitBook
from beltline.engines.memory.queue import QueueRows
from beltline.engines.memory.rows import Row, RunRow, due_at, millis
from beltline.engines.memory.runs import RunBook
from beltline.engines.memory.shaping import claims

REMEMBERED_S = 24 * 3600.0  # how long an id is known after the end of its message, whatever retain drops
PAGE = 500  # leases that have run out, looked at in one receive beyond its limit
LEASE_OVER = Failure(Cause.LEASE_LOST, text="The lease ran out: its worker died or lost touch.")


class Store:
    def __init__(self, *, max_body: int) -> None:
        self.max_body = max_body
        self.limits = LimitBook()
        self.workers: dict[WorkerId, tuple[float, WorkerView]] = {}  # when each was seen last
        self._judged: dict[QueueRows, list[int]] = {}  # deliveries ended by the present verb, and how many of them failed
        self.rows: dict[MessageId, Row] = {}  # in send order
        self.queues: dict[QueueName, QueueRows] = {}
        self.runs = RunBook(self._hand_on, self.drop)
        self.admission = AdmissionBook(self.rows)
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
            if spec.kill_switch is not None:
                check_switch(spec.kill_switch)
            queue_limits(spec.limits)
            if spec.on_dead not in ("hold", "skip"):
                raise ValueInvalid(name="on_dead", value=spec.on_dead, allowed="hold or skip")
        for spec in specs:
            if spec.name in self.queues:
                self.queues[spec.name].declare(spec, self.rows.values())
            else:
                self.queues[spec.name] = QueueRows(spec, self.limits)
        self.feeders.clear()
        self.limits.leased.clear()
        for queue in self.queues.values():
            for feed in queue.spec.feeds:
                self.feeders.setdefault(feed.queue, []).append((queue, feed.fan_out))
            for name in queue.spec.limits:
                self.limits.leased.setdefault(name, []).append(queue.leased)
            queue.stirred = True  # a bound may have been lifted

    # ---- send

    def send(self, messages: Sequence[Message], gathers: Sequence[Gather], now: float) -> list[Sent]:
        self._check(messages, gathers)
        for message in messages:
            limits.body(message.body, self.max_body)
        answers = self.admission.admit(messages, now)
        new = tuple(message for message, sent in zip(messages, answers, strict=True) if sent.new)
        for queue, more in Counter(message.queue for message in new).items():
            bound = self.queues[queue].spec.max_backlog
            if self.queues[queue].backlog + more > bound:
                raise QueueFull(queue=queue, bound=int(bound))
        for message in new:
            self.admission.stored(message, now)
        # A batch that is known already has opened its gathers then; their rows may be history by now.
        self.runs.hand_on(new, tuple(gathers) if new or not messages else (), now)
        for message, sent in zip(messages, answers, strict=True):
            if sent.admission is Admission.REPLACED:
                self._replace(self.rows[sent.id], message, now)
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
            if message.flow is not None:
                check_flow(message.flow)

    def _replace(self, row: Row, message: Message, now: float) -> None:
        """The newest wins: another message with its unique key was sent before this one began."""
        assert message.flow is not None
        assert message.flow.unique is not None
        self.remark(row, "replaced", f"by {message.id}", now)
        row.message = structs.replace(row.message, body=message.body, headers=message.headers, timeout_s=message.timeout_s, retry=message.retry)
        queue = self.queues[row.message.queue]
        if row.shown(now) is State.DELAYED:
            until = min(due_at(message, now), row.sent_at + message.flow.unique.most_s)
            queue.rank(row, max(now, until))
            queue.move(row, Move.PUT_OFF if until > now else Move.HURRY, State.DELAYED if until > now else State.READY)

    def _hand_on(self, message: Message, now: float) -> None:
        """Write a message; one that is known already is known to be the same."""
        if self.admission.known(message.id):
            return
        self._seq += 1
        queue = self.queue(message.queue)
        row = self.rows[message.id] = Row(message, self._seq, now)
        queue.rank(row, max(now, due_at(message, now)))
        self.runs.stored(row, now)
        queue.enter(row, State.READY if row.ready_at <= now else State.DELAYED)

    # ---- receive

    def receive(self, names: Sequence[QueueName], limit: int, lease_s: float, worker: WorkerId, now: float) -> list[Delivery]:
        queues = [self.queue(name) for name in dict.fromkeys(names)]
        deliveries: list[Delivery] = []
        for queue in queues:
            if queue.paused or queue.shut_until() > now or len(deliveries) >= limit:
                continue
            deliveries += self._receive(queue, limit - len(deliveries), lease_s, worker, now)
            self.runs.close(now)
        return deliveries

    def _receive(self, queue: QueueRows, limit: int, lease_s: float, worker: WorkerId, now: float) -> list[Delivery]:
        """Of one queue: leases that are over first, then what is next."""
        queue.shaper.closings = 0
        again, _ = self._turn(queue, now, limit + PAGE)
        self.refresh(now)
        room = min(limit, self.limits.room(queue.spec.limits, now)[0], queue.switch.room(queue.spec.kill_switch, queue.live(now)))
        deliveries: list[Delivery] = []
        for row in again:
            refusal = self.limits.refuses(claims(row), now)
            if room - len(deliveries) >= 1 and refusal is None:
                deliveries.append(self._lease(queue, row, lease_s, worker, now))
            elif len(deliveries) < limit:  # a limit forbids it: time or a place that is given back will bring it here again
                queue.refused[row] = self.limits.room(queue.spec.limits, now)[1] if refusal is None else refusal[1]
            else:
                queue.watch(row)
        room = min(self._room(queue, now), room - len(deliveries))
        queue.starved = room < 1
        if queue.shaper.shaped and room >= 1:
            queue.shaper.leased = queue.count[State.LEASED]
            queue.shaper.prepare(self.members(queue.spec.name, now), now)
        while room >= 1 and (found := queue.next(worker, now)) is not None:
            deliveries.append(self._lease(queue, found, lease_s, worker, now))
            self.refresh(now)
            room -= 1
        queue.soonest = min(queue.soonest, queue.opens_at(now))
        return deliveries

    def members(self, queue: QueueName, now: float) -> tuple[str, ...]:
        """The workers that keep sticky keys of a queue."""
        up = ((id, view) for id, (seen_at, view) in self.workers.items() if now - seen_at <= MEMBER_S and view.state == "up")
        return tuple(sorted(id for id, view in up if queue in view.queues))

    def due(self, now: float) -> None:
        """What is due is ready, for everybody who asks."""
        for queue in self.queues.values():
            queue.due(now)

    def refresh(self, now: float) -> None:
        """Put right what a verb, or a part of one, has touched: places given back, kill switches, who stands."""
        freed, self.limits.freed = self.limits.freed, Counter()
        self.due(now)
        for queue in self.queues.values():
            queue.shaper.given_back(freed)
            if queue.shaper.refresh() or (freed and (queue.refused or any((name, "") in freed for name in queue.spec.limits))):
                queue.stirred = True
        for queue, (ended, failed) in self._judged.items():
            if queue.spec.kill_switch is not None:
                queue.switch.judge(queue.spec.kill_switch, ended, failed, millis(now))
                queue.stirred = True
        self._judged.clear()

    def _turn(self, queue: QueueRows, now: float, limit: int) -> tuple[list[Row], int]:
        """What time has brought: due -> ready, expired -> done, poison -> dead.

        Returns up to `limit` rows whose lease is over and who may be handed out again, and how many have moved.
        """
        for refused in queue.refused:
            queue.watch(refused)
        queue.refused.clear()
        moved = queue.due(now)
        while (row := queue.expired(now)) is not None:
            self.end(row, Move.EXPIRE, Ended.EXPIRED, "", now)
            moved += 1
        again: list[Row] = []
        for row in queue.over(now, most=limit + PAGE):
            if row.cancel_asked is not None:
                self._lost(row, now)
                self.end(row, Move.CANCEL, Ended.CANCELLED, row.cancel_asked, now)
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
            high = next_queue.spec.high_water
            low = min(high, high / 2 if next_queue.spec.low_water == inf else next_queue.spec.low_water)
            coming = sum(q.count[State.LEASED] * fan_out for q, fan_out in self.feeders[feed.queue])
            load = next_queue.count[State.READY] + len(next_queue.come(now)) + coming
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
        self.limits.start(row, claims(row), now)
        self.limits.start_in(queue.spec.limits, now)
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
            queue = self.queues[row.message.queue]
            if row.lease_until <= now and not self.limits.keeps(claims(row), queue.spec.limits, now):
                answers.append(Settled.LEASE_LOST)
                continue
            row.lease_until = now + lease_s
            queue.move(row, Move.RENEW, State.LEASED)
            answers.append(Settled.DONE if row.cancel_asked is None else Settled.CANCEL_ASKED)
        return answers

    def settle(self, settlements: Sequence[Settlement], now: float) -> list[Settled]:
        for settlement in settlements:
            match settlement.outcome:
                case Ack(then=then, gathers=gathers):
                    self._check(then, gathers)
                case RetryAfter(delay_s=delay_s):
                    limits.seconds("delay_s", delay_s, most=limits.MAX_DELAY_S)
                case Release(delay_s=delay_s, queue_s=queue_s):
                    limits.seconds("delay_s", delay_s, most=limits.MAX_DELAY_S)
                    limits.seconds("queue_s", queue_s, most=limits.MAX_DELAY_S)
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
        if not isinstance(outcome, Release):
            queue.shaper.spent(row, outcome.ran_s, now)
            judged = self._judged.setdefault(queue, [0, 0])
            judged[0] += 1
            judged[1] += not isinstance(outcome, Ack)
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
                    self._poison(row, failure, outcome.ran_s, now)
                    return Settled.DONE
                self._count(row, lost=outcome.lost)
                row.failure = failure
                self._note(row, "lost" if outcome.lost else "retry", now, outcome.ran_s, failure=failure)
                self._again(row, Move.RETRY, now + outcome.delay_s, ": ".join(filter(None, (failure.type, failure.text))), now)
            case Release(delay_s=delay_s, why=why, queue_s=queue_s):
                self._note(row, "release", now, note=why)
                if queue_s > 0:
                    queue.snoozed_until = max(queue.snoozed_until, now + queue_s)
                    queue.stirred = True
                self._again(row, Move.RELEASE, now + delay_s if delay_s > 0 else row.ready_at, why, now)
            case DeadLetter(reason=reason, failure=failure):
                self._give_up(row, reason, failure, outcome.ran_s, lost=outcome.lost, now=now)
            case _:
                assert_never(outcome)
        self.runs.close(now)
        return Settled.DONE

    def _poison(self, row: Row, failure: Failure, ran_s: float, now: float) -> None:
        self._give_up(row, poison(row.lost + 1), failure, ran_s, lost=True, now=now)
        self.runs.close(now)

    def _give_up(self, row: Row, reason: str, failure: Failure, ran_s: float, *, lost: bool, now: float) -> None:
        self._count(row, lost=lost)
        self._note(row, "dead_letter", now, ran_s, reason, failure)
        self._die(row, Move.DEAD_LETTER, reason, failure, now)

    def _count(self, row: Row, *, lost: bool) -> None:
        row.lost += lost
        row.failed += not lost

    def _again(self, row: Row, move: Move, ready_at: float, why: str, now: float) -> None:
        """Back to the queue, unless its cancellation was asked for."""
        queue = self.queues[row.message.queue]
        if row.cancel_asked is not None:
            self.end(row, Move.CANCEL, Ended.CANCELLED, row.cancel_asked, now)
            return
        if move is Move.RETRY or ready_at != row.ready_at:  # a release without delay goes back to its place
            queue.rank(row, ready_at)
        queue.move(row, move, State.READY if ready_at <= now else State.DELAYED, why=why)

    def end(self, row: Row, move: Move, ended: Ended, why: str, now: float) -> None:
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

    def drop(self, row: Row, why: str, now: float) -> None:
        """Cancel what is live: at once, or by asking its worker."""
        if row.state is State.LEASED:
            row.cancel_asked = row.cancel_asked or why
        elif row.state is not State.DONE:
            self.end(row, Move.CANCEL, Ended.CANCELLED, why, now)

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

    def remark(self, row: Row, outcome: str, note: str, now: float) -> None:
        """An entry of the history that is no delivery."""
        row.note(AttemptView(epoch=row.epoch, outcome=outcome, started_at=now, ended_at=now, note=note))

    # ---- by id

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

    # ---- upkeep

    def sweep(self, now: float) -> int:
        moved = 0
        for queue in self.queues.values():
            if not queue.paused and queue.shut_until() <= now:
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
            self.admission.remembered[row.id] = row.ended_at + REMEMBERED_S
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
        keys = self.admission.drop(limit, now)
        return len(done) + len(runs) + len(results) + keys
