"""What the end of a message brings about: its group moves on, its run counts it, its gather gets an answer, and what follows is stored.

    end       done without a settlement: cancelled, expired, purged, deleted        die     dead-lettered
    hand_on   the messages and gathers that follow an ack                            drop    cancel what is live: at once, or by asking its worker
    give_up   a run that failed or was cancelled: nothing is handed on any more, what is live is dropped

The laws are those at the top of engines/protocol.py; every function is one part of one transaction.
"""

from collections.abc import Sequence

import msgspec

from beltline.core.chain import gathered
from beltline.core.codec import join_list
from beltline.core.lifecycle import State
from beltline.core.message import Gather, Message, Part
from beltline.core.outcome import Ack, Ended, Failure
from beltline.core.policy import PARKED
from beltline.engines.sqlite import lanes
from beltline.engines.sqlite.facts import Fact, current, select
from beltline.engines.sqlite.ledger import WORKER, Ledger
from beltline.engines.sqlite.runbook import CANCELLED, FAILED, GatherRow, Run
from beltline.engines.sqlite.storing import store
from beltline.engines.sqlite.times import ceil_ms

OUTCOMES = {Ended.SUCCEEDED: 1, Ended.CANCELLED: 2, Ended.EXPIRED: 3}
OF_RUN = "INDEXED BY message_run WHERE run = ? AND state <= 2 ORDER BY seq"
ATTEMPTS_KEPT = 100  # a message that is parked every five seconds must not grow for ever


def note(tx: Ledger, fact: Fact, outcome: str, *, ran_s: float = 0.0, text: str = "", failure: Failure | None = None) -> None:
    """An entry in the history: a delivery that ended, or (fact.started None) a remark."""
    worker = fact.worker if fact.state == State.LEASED else None
    started = fact.started if fact.state == State.LEASED else tx.now
    tx.sql(
        "INSERT INTO attempt(seq, epoch, outcome, worker, started, ended, ran, note, failure) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (fact.seq, fact.epoch, outcome, worker, started, tx.now, ran_s, text, None if failure is None else msgspec.msgpack.encode(failure)),
    )
    if fact.epoch % ATTEMPTS_KEPT == 0:
        kept = "SELECT n FROM attempt WHERE seq = ?1 ORDER BY n DESC LIMIT 1 OFFSET ?2"
        tx.sql(f"DELETE FROM attempt WHERE seq = ?1 AND n <= ({kept})", (fact.seq, ATTEMPTS_KEPT))


def lost(tx: Ledger, fact: Fact, failure: Failure) -> None:
    """A delivery that never answered."""
    fact.lost += 1
    note(tx, fact, "lost", failure=failure)


def moved(tx: Ledger, fact: Fact, state: State) -> None:
    """The counters of a change of state; the caller writes the row."""
    tally = tx.tally(fact.queue)
    tally.add(fact.state, -1)
    tally.add(state, 1)
    if fact.why == PARKED and fact.state < State.LEASED:
        tally.parked -= 1
    queue = tx.by_number[fact.queue]
    if fact.lane is not None or queue.limited:
        tx.flow.moved(fact.lane, fact.seq, fact.state, state, queue.spec.limits)
    fact.state = state
    if state > State.LEASED:
        tx.finished = True


def end(tx: Ledger, fact: Fact, ended: Ended, why: str) -> None:
    was = fact.state
    moved(tx, fact, State.DONE)
    tx.sql(
        "UPDATE message SET state = 3, outcome = ?, due = ?, why = ?, lost = ?, failed = ?, expires = NULL, blocked = 0 WHERE seq = ?",
        (OUTCOMES[ended], tx.now, why, fact.lost, fact.failed, fact.seq),
    )
    if was == State.LEASED:
        unask(tx, fact.seq)
    if tx.someone_waits:
        tx.ended.append(fact.id)
    if tx.audited:
        tx.note(ended.value, fact.key, fact.queue, fact.epoch, fact.run)
    if fact.group is not None:
        lanes.reorder(tx, tx.by_number[fact.queue], fact.group)
    if fact.run is not None:
        run = tx.runbook.get(fact.run)
        part = fact.part
        if was != State.DEAD or _counts_as_dead(tx, part):
            run.left(ended, dead=was == State.DEAD)
        if part is not None and not run.given_up:
            absent(tx, part, failing=True)


def die(tx: Ledger, fact: Fact, reason: str, failure: Failure) -> None:
    moved(tx, fact, State.DEAD)
    tx.sql(
        "UPDATE message SET state = 4, due = ?, why = ?, error = ?, lost = ?, failed = ?, blocked = 0 WHERE seq = ?",
        (tx.now, reason, failure.type, fact.lost, fact.failed, fact.seq),
    )
    if tx.someone_waits:
        tx.ended.append(fact.id)
    if tx.audited:
        tx.note("dead_letter", fact.key, fact.queue, fact.epoch, fact.run)
    if fact.group is not None:
        lanes.reorder(tx, tx.by_number[fact.queue], fact.group)
    if fact.run is None:
        return
    run, part = tx.runbook.get(fact.run), fact.part
    gather = tx.runbook.gather(part.gather) if part is not None else None
    on_dead = gather.data.on_dead if gather is not None else "hold"
    run.died(reason, failure, counted=on_dead != "skip")
    if run.given_up or gather is None or part is None:
        return
    if on_dead == "fail":
        give_up(tx, run, FAILED, f"A part died: {reason}")
    elif on_dead == "skip":
        answer(tx, part, None)
    elif not tx.runbook.answered(gather, part.index):
        tx.runbook.bury(gather, part.index)


def drop(tx: Ledger, fact: Fact, why: str) -> None:
    if fact.state == State.LEASED:
        tx.sql("INSERT OR IGNORE INTO asked(seq, reason) VALUES(?, ?)", (fact.seq, why))
        tx.asked = True
    elif fact.state != State.DONE:
        end(tx, fact, Ended.CANCELLED, why)


def unask(tx: Ledger, seq: int) -> None:
    if tx.any_asked():
        tx.sql("DELETE FROM asked WHERE seq = ?", (seq,))
        tx.asked = None


def asked(tx: Ledger, seq: int) -> str | None:
    """Why somebody wants this leased message cancelled; None = nobody does."""
    if not tx.any_asked():
        return None
    reason: str | None = tx.sql("SELECT reason FROM asked WHERE seq = ?", (seq,)).get
    return reason


def revived(tx: Ledger, fact: Fact) -> None:
    """A dead message of a run has been redriven."""
    part = fact.part
    if fact.run is None:
        return
    run = tx.runbook.get(fact.run)
    run.revived(counted=_counts_as_dead(tx, part))
    gather = tx.runbook.gather(part.gather) if part is not None else None
    if gather is not None and part is not None and gather.dead:
        tx.runbook.revive(gather, part.index)


def _counts_as_dead(tx: Ledger, part: Part | None) -> bool:
    """A dead part whose gather goes on without it does not hold its run."""
    gather = tx.runbook.gather(part.gather) if part is not None else None
    return gather is None or gather.data.on_dead != "skip"


# ---------------------------------------------------------------------------------------------------------------- hand-off
def succeeded(tx: Ledger, run: Run, part: Part | None, ack: Ack) -> None:
    """A delivery of a run was acknowledged: result, hand-off, gathers and part take effect, unless the run is given up."""
    run.left(ack.ended, dead=False)
    if run.given_up:
        return
    if ack.result is not None:
        run.result, run.last = (ack.result, tx.now + ceil_ms(ack.result_ttl_s)), ack.ended
    hand_on(tx, ack.then, ack.gathers)
    if part is None:
        return
    if ack.part is not None:
        answer(tx, part, ack.part)
    elif not _carries_on(ack, part):
        absent(tx, part, failing=ack.ended is not Ended.SUCCEEDED)


def _carries_on(ack: Ack, part: Part) -> bool:
    """Whether what follows `ack` still has the duty to answer `part`."""
    followers = [*ack.then, *(gather.then for gather in ack.gathers if gather.then is not None)]
    return any(message.place is not None and part in message.place.parts for message in followers) or any(
        gather.outer == part for gather in ack.gathers
    )


def hand_on(tx: Ledger, messages: Sequence[Message], gathers: Sequence[Gather]) -> None:
    opened = [tx.runbook.open_gather(gather) for gather in gathers]
    store(tx, messages)
    for row in opened:
        if row is not None:
            _fire_if_complete(tx, row)


# ----------------------------------------------------------------------------------------------------------------- gathers
def answer(tx: Ledger, part: Part, value: bytes | None) -> None:
    """The answer of a part; None = it will never come."""
    row = tx.runbook.gather(part.gather)
    if row is not None and not row.fired and 0 <= part.index < row.data.expected and tx.runbook.answer(row, part.index, value):
        _fire_if_complete(tx, row)


def absent(tx: Ledger, part: Part, *, failing: bool) -> None:
    row = tx.runbook.gather(part.gather)
    if failing and row is not None and not row.fired and row.data.on_dead == "fail" and not tx.runbook.answered(row, part.index):
        give_up(tx, tx.runbook.get(row.run), FAILED, "A part was cancelled or expired.")
    else:
        answer(tx, part, None)


def _fire_if_complete(tx: Ledger, row: GatherRow) -> None:
    gather, run = row.data, tx.runbook.get(row.run)
    if row.fired or run.given_up or row.missing > 0:
        return
    values = tx.runbook.fired(row)
    run.last, run.touched = None, True
    if gather.then is not None:
        store(tx, (gathered(gather, values),))
    elif gather.outer is not None:
        answer(tx, gather.outer, join_list(values))
    else:
        run.result = (join_list(values), tx.now + ceil_ms(gather.result_ttl_s))


def give_up(tx: Ledger, run: Run, state: int, why: str) -> None:
    run.state = state
    if state == CANCELLED:
        run.why = why
    for fact in select(tx, OF_RUN, (run.n,)):
        if current(tx, fact):
            drop(tx, fact, why)


__all__ = [
    "OUTCOMES",
    "WORKER",
    "answer",
    "asked",
    "die",
    "drop",
    "end",
    "give_up",
    "hand_on",
    "lost",
    "moved",
    "note",
    "revived",
    "succeeded",
    "unask",
]
