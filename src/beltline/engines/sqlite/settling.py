"""The verbs `settle`, `renew` and `progress`: whoever holds the current epoch writes the whole end of a delivery, in one write.

Plain  a batch of acks whose deliveries were handed out by this process goes through one prepared UPDATE per message, guarded by (place, id, epoch, leased).
       If every one of them took, what follows is written; if one did not, the savepoint takes all back and each is looked at for itself.
Each   the row is read, compared with the receipt, and changed by its outcome.
"""

from array import array
from collections import Counter
from collections.abc import Sequence
from typing import assert_never

import apsw

from beltline.core import limits
from beltline.core.lifecycle import State
from beltline.core.message import Message, Receipt
from beltline.core.outcome import Ack, DeadLetter, Ended, Release, RetryAfter, Settled, Settlement
from beltline.core.policy import PARKED, poison
from beltline.engines.sqlite import lanes
from beltline.engines.sqlite.endings import OUTCOMES, asked, die, end, hand_on, lost, moved, note, succeeded, unask
from beltline.engines.sqlite.facts import Fact, by_id
from beltline.engines.sqlite.flow import snooze
from beltline.engines.sqlite.ledger import Lease, Ledger
from beltline.engines.sqlite.picking import claims_of
from beltline.engines.sqlite.schema import INLINE_BYTES
from beltline.engines.sqlite.storing import check, rank_ms, store
from beltline.engines.sqlite.times import ceil_ms

ACK = """UPDATE message SET state = 3, outcome = ?1, due = ?2, ran = ?3, result = ?4, result_until = ?5, why = ?6, expires = NULL, blocked = 0
  WHERE seq = ?7 AND epoch = ?8 AND state = 2"""
# The hot ones leave alone what a receive and a plain message have left NULL or 0 anyway. Each packed value is the place, and behind it in 30 bits how long it
# ran in microseconds: one statement for a whole batch costs a third less than one per message, and gives the interpreter lock back once instead of each time.
ACK_PACKED = """UPDATE message SET state = 3, outcome = 1, due = ?1, ran = (c.value & 0x3FFFFFFF) / 1e6, result = ?2, result_until = ?3
  FROM carray(?5) AS c WHERE message.seq = (c.value >> 30) AND message.epoch = ?4 AND message.state = 2"""
ACK_EACH = "UPDATE message SET state = 3, outcome = 1, due = ?1, ran = ?2, result = ?3, result_until = ?4 WHERE seq = ?5 AND epoch = ?6 AND state = 2"
PACKED_SEQS = 1 << 33
RENEW = "UPDATE message SET due = ?1 WHERE seq = ?2 AND epoch = ?3 AND state = 2"


def settle(tx: Ledger, settlements: Sequence[Settlement]) -> list[Settled]:
    """Raises QueueNotDeclared, ValueInvalid: of a hand-off, before anything is written."""
    plain = len(settlements) > 1
    for settlement in settlements:
        outcome = settlement.outcome
        if type(outcome) is Ack:
            if outcome.then or outcome.gathers:
                check(tx, outcome.then, outcome.gathers)
            if outcome.note or outcome.ended is not Ended.SUCCEEDED:
                plain = False
        else:
            plain = False
            if isinstance(outcome, (RetryAfter, Release)):
                limits.seconds("delay_s", outcome.delay_s, most=limits.MAX_DELAY_S)
            if isinstance(outcome, Release):
                limits.seconds("queue_s", outcome.queue_s, most=limits.MAX_DELAY_S)
    if plain and _plain(tx, settlements):
        return [Settled.DONE] * len(settlements)
    facts = by_id(tx, list({settlement.receipt.id for settlement in settlements}))
    return [_settle(tx, facts.get(settlement.receipt.id), settlement) for settlement in settlements]


def _plain(tx: Ledger, settlements: Sequence[Settlement]) -> bool:
    """Whether all of them could be acknowledged in one go; if not, nothing has been written."""
    leases, now = tx.leases, tx.now
    held: list[Lease] = []
    packed: dict[tuple[int, bytes | None, float], list[int]] = {}
    queues: list[int] = []
    for settlement in settlements:
        receipt, ack = settlement.receipt, settlement.outcome
        lease = leases.get(receipt.id)
        if lease is None or type(ack) is not Ack:
            return False
        seq, ran = lease[0], ack.ran_s
        if not 0.0 <= ran < 1000.0 or seq >= PACKED_SEQS:
            return False
        result = ack.result if lease[4] is None else None  # the result of a message with a place belongs to its run
        if result is not None and len(result) > INLINE_BYTES:
            return False
        key = (receipt.epoch, result, ack.result_ttl_s)
        value = seq << 30 | int(ran * 1e6)
        same = packed.get(key)
        if same is None:
            packed[key] = [value]
        else:
            same.append(value)
        held.append(lease)
        queues.append(lease[2])
    before = tx.db.total_changes()
    tx.sql("SAVEPOINT plain")
    if len(packed) * 4 <= len(held) + 3:
        for (epoch, result, ttl_s), values in packed.items():
            until = None if result is None else now + ceil_ms(ttl_s)
            tx.sql(ACK_PACKED, (now, result, until, epoch, apsw.carray(array("q", values))))
    else:
        tx.many(
            ACK_EACH,
            [
                (now, (value & 0x3FFFFFFF) / 1e6, result, None if result is None else now + ceil_ms(ttl_s), value >> 30, epoch)
                for (epoch, result, ttl_s), values in packed.items()
                for value in values
            ],
        )
    if tx.db.total_changes() - before != len(held):
        tx.sql("ROLLBACK TO plain")
        tx.sql("RELEASE plain")
        return False
    tx.sql("RELEASE plain")
    tx.finished = True
    for queue, count in Counter(queues).items():
        tally = tx.tally(queue)
        tally.add(State.LEASED, -count)
        tally.add(State.DONE, count)
        if tally.flow or tx.by_number[queue].limited:
            _answered(tx, queue, settlements, held)
    _follow(tx, settlements, held)
    return True


def _answered(tx: Ledger, queue: int, settlements: Sequence[Settlement], held: list[Lease]) -> None:
    """What flow control counts of a batch of plain acks."""
    spec, flow = tx.by_number[queue].spec, tx.flow
    spent: dict[int | None, int] = {}
    count = 0
    for settlement, lease in zip(settlements, held, strict=True):
        if lease[2] == queue and isinstance(settlement.outcome, Ack):
            lane = lease[6]
            count += 1
            spent[lane] = spent.get(lane, 0) + int(settlement.outcome.ran_s * 1000 + 0.5)
            if lane is not None or spec.limits:
                flow.moved(lane, lease[0], State.LEASED, State.DONE, spec.limits)
    for lane, spent_ms in spent.items():
        flow.spent(queue, lane, spent_ms)
    if spec.kill_switch is not None:
        flow.answered(queue, count, 0)


def _follow(tx: Ledger, settlements: Sequence[Settlement], held: list[Lease]) -> None:
    """What follows a batch of plain acks. Hand-offs gather up as long as nothing looks at them, so that a stage is written by one statement."""
    waiting: list[Message] = []
    tx.runbook.fetch(lease[4] for lease in held if lease[4] is not None)
    any_asked = tx.any_asked()
    for settlement, lease in zip(settlements, held, strict=True):
        seq, key, queue, group, run_number, place, _ = lease
        ack = settlement.outcome
        assert isinstance(ack, Ack)
        id = settlement.receipt.id
        tx.leases.pop(id, None)
        if any_asked:
            unask(tx, seq)
        if tx.someone_waits:
            tx.ended.append(id)
        if tx.audited:
            tx.note("ack", key, queue, settlement.receipt.epoch, run_number)
        if group is not None:
            lanes.reorder(tx, tx.by_number[queue], group)
        if run_number is None:
            if ack.gathers:
                store(tx, waiting)
                waiting = []
                hand_on(tx, ack.then, ack.gathers)
            elif ack.then:
                waiting.extend(ack.then)
            continue
        run = tx.runbook.get(run_number)
        part = place.parts[-1] if place is not None and place.parts else None
        if ack.gathers or part is not None or run.given_up:
            store(tx, waiting)
            waiting = []
            succeeded(tx, run, part, ack)
        else:
            run.left(ack.ended, dead=False)
            if ack.result is not None:
                run.result = (ack.result, tx.now + ceil_ms(ack.result_ttl_s))
            waiting.extend(ack.then)
    store(tx, waiting)


def _settle(tx: Ledger, fact: Fact | None, settlement: Settlement) -> Settled:
    if fact is None or fact.state != State.LEASED or fact.epoch != settlement.receipt.epoch:
        return Settled.LEASE_LOST
    queue, outcome = tx.by_number[fact.queue], settlement.outcome
    if not isinstance(outcome, Release):
        if tx.tally(queue.n).flow:
            tx.flow.spent(queue.n, fact.lane, int(outcome.ran_s * 1000 + 0.5))
        if queue.spec.kill_switch is not None:
            tx.flow.answered(queue.n, 1, not isinstance(outcome, Ack))
    elif outcome.queue_s > 0:
        snooze(tx, queue, outcome.queue_s)
    return _each(tx, fact, settlement)


def _each(tx: Ledger, fact: Fact, settlement: Settlement) -> Settled:
    tx.leases.pop(settlement.receipt.id, None)
    outcome = settlement.outcome
    match outcome:
        case Ack():
            _ack(tx, fact, outcome)
        case RetryAfter(failure=failure):
            if outcome.lost and fact.lost + 1 >= tx.by_number[fact.queue].max_deliveries:
                given_up = DeadLetter(reason=poison(fact.lost + 1), failure=failure, lost=True, ran_s=outcome.ran_s)
                return _each(tx, fact, Settlement(settlement.receipt, given_up))
            fact.lost += outcome.lost
            fact.failed += not outcome.lost
            note(tx, fact, "lost" if outcome.lost else "retry", ran_s=outcome.ran_s, failure=failure)
            _back(tx, fact, outcome.delay_s, ": ".join(filter(None, (failure.type, failure.text))), error=failure.type)
        case Release(delay_s=delay_s, why=why):
            note(tx, fact, "release", text=why)
            _back(tx, fact, delay_s, why, keep=delay_s <= 0)
        case DeadLetter(reason=reason, failure=failure):
            fact.lost += outcome.lost
            fact.failed += not outcome.lost
            note(tx, fact, "dead_letter", ran_s=outcome.ran_s, text=reason, failure=failure)
            die(tx, fact, reason, failure)
        case _:
            assert_never(outcome)
    return Settled.DONE


def _ack(tx: Ledger, fact: Fact, ack: Ack) -> None:
    result, until = ack.result, None
    if fact.run is not None:
        result = None  # it belongs to the run
    elif result is not None:
        until = tx.now + ceil_ms(ack.result_ttl_s)
        if len(result) > INLINE_BYTES:
            tx.sql("INSERT OR REPLACE INTO bulk(n, data, until) VALUES(?, ?, ?)", (fact.seq * 2 + 1, result, until))
            result = None
    moved(tx, fact, State.DONE)
    tx.sql(ACK, (OUTCOMES[ack.ended], tx.now, ack.ran_s, result, until, ack.note, fact.seq, fact.epoch))
    unask(tx, fact.seq)
    if tx.someone_waits:
        tx.ended.append(fact.id)
    if tx.audited:
        tx.note("ack", fact.key, fact.queue, fact.epoch, fact.run)
    if fact.group is not None:
        lanes.reorder(tx, tx.by_number[fact.queue], fact.group)
    if fact.run is not None:
        succeeded(tx, tx.runbook.get(fact.run), fact.part, ack)
    else:
        hand_on(tx, ack.then, ack.gathers)


def _back(tx: Ledger, fact: Fact, delay_s: float, why: str, *, keep: bool = False, error: str | None = None) -> None:
    """Back to the queue, unless its cancellation was asked for. `keep`: to the place it had."""
    reason = asked(tx, fact.seq)
    if reason is not None:
        end(tx, fact, Ended.CANCELLED, reason)
        return
    queue = tx.by_number[fact.queue]
    if keep:
        ready, rank = fact.since, fact.rank
    else:
        ready = tx.now + ceil_ms(delay_s)
        rank = rank_ms(queue, ready, fact.priority)
    state = State.READY if ready <= tx.now else State.DELAYED
    moved(tx, fact, state)
    if why == PARKED:
        tx.tally(fact.queue).parked += 1
    tx.sql(
        "UPDATE message SET state = ?1, due = ?2, since = ?2, rank = ?3, failed = ?4, lost = ?5, why = ?6, error = coalesce(?7, error) WHERE seq = ?8",
        (int(state), ready, rank, fact.failed, fact.lost, why, error, fact.seq),
    )
    if fact.group is not None:
        lanes.reorder(tx, queue, fact.group)  # one that was redriven meanwhile may stand before it
    tx.woken.add(fact.queue)
    if tx.audited:
        tx.note("back", fact.key, fact.queue, fact.epoch, fact.run)


def renew(tx: Ledger, receipts: Sequence[Receipt], lease_ms: int) -> list[Settled]:
    until = tx.now + lease_ms
    if tx.flow.limits.bounds():
        return _renew_each(tx, receipts, until)
    known = [(receipt, tx.leases.get(receipt.id)) for receipt in receipts]
    rows = [(until, lease[0], receipt.epoch) for receipt, lease in known if lease is not None]
    before = tx.db.total_changes()
    tx.many(RENEW, rows)
    if len(rows) == len(receipts) and tx.db.total_changes() - before == len(rows):
        if not tx.any_asked():
            return [Settled.DONE] * len(receipts)
        return [Settled.DONE if asked(tx, lease[0]) is None else Settled.CANCEL_ASKED for _, lease in known if lease is not None]
    return _renew_each(tx, receipts, until)


def _renew_each(tx: Ledger, receipts: Sequence[Receipt], until: int) -> list[Settled]:
    facts = by_id(tx, list({receipt.id for receipt in receipts}))
    limits, answers = tx.flow.limits, []
    for receipt in receipts:
        fact = facts.get(receipt.id)
        if fact is None or fact.state != State.LEASED or fact.epoch != receipt.epoch:
            answers.append(Settled.LEASE_LOST)
            continue
        if fact.due is not None and fact.due <= tx.now:
            claims = claims_of(fact.head) if fact.lane is not None else ()
            if not limits.keeps(claims, tx.by_number[fact.queue].spec.limits, tx.now):
                answers.append(Settled.LEASE_LOST)  # others have its places by now
                continue
        tx.sql(RENEW, (until, fact.seq, fact.epoch))
        fact.due = until
        limits.renewed()
        answers.append(Settled.DONE if asked(tx, fact.seq) is None else Settled.CANCEL_ASKED)
    return answers


def progress(tx: Ledger, notes: Sequence[tuple[Receipt, bytes]]) -> list[Settled]:
    facts = by_id(tx, list({receipt.id for receipt, _ in notes}))
    answers = []
    for receipt, value in notes:
        fact = facts.get(receipt.id)
        held = fact is not None and fact.state == State.LEASED and fact.epoch == receipt.epoch
        if held and fact is not None:
            tx.sql("INSERT OR REPLACE INTO progress(seq, value) VALUES(?, ?)", (fact.seq, value))
        answers.append(Settled.DONE if held else Settled.LEASE_LOST)
    return answers


def cancel_asked(tx: Ledger, receipts: Sequence[Receipt]) -> list[Receipt]:
    if not tx.any_asked():
        return []
    facts = by_id(tx, list({receipt.id for receipt in receipts}))
    found = []
    for receipt in receipts:
        fact = facts.get(receipt.id)
        if fact is not None and fact.state == State.LEASED and fact.epoch == receipt.epoch and asked(tx, fact.seq) is not None:
            found.append(receipt)
    return found


__all__ = ["cancel_asked", "lost", "progress", "renew", "settle"]
