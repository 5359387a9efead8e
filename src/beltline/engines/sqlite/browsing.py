"""What browsing shows: read by a connection of its own, in a snapshot of the last commit, so that a long look never holds up the writer.

A `Desk` is a Ledger that only reads; its names are kept, everything else is read anew. States are shown as callers see them: a delayed message whose time
has come, and a leased one whose lease is over, are ready.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from beltline.core.errors import NotFound, ValueInvalid
from beltline.core.lifecycle import State
from beltline.core.message import Gather
from beltline.core.names import StageName
from beltline.core.outcome import Ended, Failure
from beltline.core.queues import Counts, QueueSpec
from beltline.core.views import (
    AttemptView,
    GatherView,
    MessageFilter,
    MessageView,
    Page,
    ResultView,
    RunCounts,
    RunView,
    WorkerView,
)
from beltline.engines.rows import key_of, message
from beltline.engines.sqlite.control import conditions_of
from beltline.engines.sqlite.endings import ATTEMPTS_KEPT
from beltline.engines.sqlite.held import held
from beltline.engines.sqlite.ledger import CHAIN, Ledger
from beltline.engines.sqlite.runbook import RUN_WORDS

OUTCOME_WORDS = ("", Ended.SUCCEEDED.value, Ended.CANCELLED.value, Ended.EXPIRED.value)
_FEW = {State.DEAD.word, State.DELAYED.word, State.LEASED.word}
LOOKED_AT = 1000  # ready messages among which the oldest is looked for; the first in line are the oldest but for priorities

DUE = "SELECT count(*), min(due) FROM message INDEXED BY message_delayed WHERE queue = ? AND state = 0 AND due <= ?"
OVER = "SELECT count(*), min(due) FROM message INDEXED BY message_leased WHERE queue = ? AND state = 2 AND due <= ?"
OLDEST_IN_LANES = "SELECT min(due) FROM message INDEXED BY message_in_lanes WHERE queue = ? AND blocked = ? AND state = 1 AND lane IS NOT NULL"
_failure = msgspec.msgpack.Decoder(Failure).decode
_gather = msgspec.msgpack.Decoder(Gather).decode
_worker = msgspec.msgpack.Decoder(WorkerView).decode

_VIEW = """seq, id, queue, task, state, epoch, failed, lost, sent, due, outcome, why, worker, blocked, head,
  coalesce(body, (SELECT data FROM bulk WHERE n = seq * 2), x''), started, ran,
  EXISTS(SELECT 1 FROM asked WHERE asked.seq = message.seq), (SELECT value FROM progress WHERE progress.seq = message.seq)"""


def _s(ms: int | None) -> float:
    return 0.0 if ms is None else ms / 1000


def _shown(state: int, due: int, now: int) -> State:
    return State.READY if state in (State.DELAYED, State.LEASED) and due <= now else State(state)


# ------------------------------------------------------------------------------------------------------------------ queues
def queues(tx: Ledger) -> list[QueueSpec]:
    return [tx.by_name[name].spec for name in sorted(tx.by_name)]


def counts(tx: Ledger, name: str) -> Counts:
    """Exact, from the counters and the few rows that time alone has moved. Raises QueueNotDeclared."""
    queue = tx.queue(name)
    n, now, sql = queue.n, tx.now, tx.sql
    ready, delayed, leased, dead, done, parked, flows = sql(
        "SELECT ready, delayed, leased, dead, done, parked, flow FROM tally WHERE queue = ?", (n,)
    ).get
    due, first_due = sql(DUE, (n, now)).get
    over, first_over = sql(
        "SELECT count(*), min(due) FROM message INDEXED BY message_leased WHERE queue = ? AND state = 2 AND due <= ?", (n, now)
    ).get
    oldest = [ms for ms in (first_due, first_over) if ms is not None]
    if ready:
        for blocked in (0, 1):
            rows = "SELECT due FROM message INDEXED BY message_ready WHERE queue = ? AND state = 1 AND blocked = ? AND lane IS NULL ORDER BY rank, seq LIMIT ?"
            waiting = sql(f"SELECT min(due) FROM ({rows})", (n, blocked, LOOKED_AT)).get
            in_lanes = sql(OLDEST_IN_LANES, (n, blocked)).get if flows else None
            oldest += [ms for ms in (waiting, in_lanes) if ms is not None]
    shape = tx.flow.shape(n) if flows else None
    return Counts(
        ready=ready + due + over,
        delayed=delayed - due,
        leased=leased - over,
        dead=dead,
        done=done,
        parked=parked,
        oldest_ready_s=max(0.0, (now - min(oldest)) / 1000) if oldest else 0.0,
        paused=queue.paused,
        held=held(tx, queue, ready=ready + due + over, due=due, over=over, shaped=shape is not None),
        snoozed_until=shape.snoozed / 1000 if shape is not None and shape.snoozed > now else 0.0,
        tripped_until=shape.switch.tripped / 1000 if shape is not None and shape.switch.tripped > now else 0.0,
        trying=shape is not None and shape.switch.trying,
    )


# ---------------------------------------------------------------------------------------------------------------- messages
def get(tx: Ledger, id: str) -> MessageView:
    key = key_of(id)
    rows = tx.sql(f"SELECT {_VIEW} FROM message WHERE id = ? AND state <> 5", (key,)).fetchall() if key is not None else []
    if not rows:
        raise NotFound(kind="message", name=id)
    return _views(tx, rows)[0]


def browse(tx: Ledger, where: MessageFilter, limit: int, cursor: str) -> Page:
    """Raises ValueInvalid for a cursor that no page gave."""
    if cursor and not cursor.isdecimal():
        raise ValueInvalid(name="cursor", value=cursor, allowed="what the page before gave")
    # A few dead, delayed or leased ones among many: their index is read and sorted (+seq forbids the walk along all messages).
    few = bool(where.states) and set(where.states) <= _FEW and not where.ids and not where.run
    conditions, values = conditions_of(tx, where, by_queue=few)
    states, state_values = _states(tx, where)
    order = "+seq" if few else "seq"
    rows = tx.sql(
        f"SELECT {_VIEW} FROM message WHERE {order} > ? AND state <> 5 {conditions} {states} ORDER BY {order} LIMIT ?",
        (int(cursor or 0), *values, *state_values, limit + 1),
    ).fetchall()
    more = str(rows[limit - 1][0]) if len(rows) > limit else ""
    return Page(messages=tuple(_views(tx, rows[:limit])), cursor=more)


def _states(tx: Ledger, where: MessageFilter) -> tuple[str, list[Any]]:
    """The states asked for as they are shown."""
    if not where.states:
        return "", []
    parts, values = [], []
    for word in dict.fromkeys(where.states):
        if word == State.DELAYED.word:
            parts.append("(state = 0 AND due > ?)")
            values.append(tx.now)
        elif word == State.LEASED.word:
            parts.append("(state = 2 AND due > ?)")
            values.append(tx.now)
        elif word == State.READY.word:
            parts.append("(state = 1 OR (state = 0 AND due <= ?) OR (state = 2 AND due <= ?))")
            values += [tx.now, tx.now]
        elif word in (State.DONE.word, State.DEAD.word):
            parts.append(f"state = {int(State[word.upper()])}")
    return (f"AND ({' OR '.join(parts)})" if parts else "AND 0"), values


def _views(tx: Ledger, rows: Sequence[tuple[Any, ...]]) -> list[MessageView]:
    history = _history(tx, [row[0] for row in rows])
    return [_view(tx, row, history.get(row[0], [])) for row in rows]


def _view(tx: Ledger, row: tuple[Any, ...], attempts: list[AttemptView]) -> MessageView:
    _, key, queue, task, state, epoch, failed, lost, sent, due, outcome, why, worker, blocked, head, body, started, ran, asked, progress = row
    shown = _shown(state, due, tx.now)
    ended = OUTCOME_WORDS[outcome or 0]
    if ran is not None:  # an ack stands in the row itself
        attempts.append(
            AttemptView(epoch=epoch, outcome=ended, worker=_name(tx, worker), started_at=_s(started), ended_at=_s(due), ran_s=ran, note=why or "")
        )
    return MessageView(
        message=message(key.hex(), tx.by_number[queue].name, tx.text(task), head, body),
        state=shown.word,
        epoch=epoch,
        failed=failed,
        lost=lost,
        sent_at=_s(sent),
        due_at=_s(due) if shown in (State.DELAYED, State.LEASED) else 0.0,
        ended_at=_s(due) if shown in (State.DONE, State.DEAD) else 0.0,
        outcome=ended,
        why=why or "",
        worker=_name(tx, worker) if state == State.LEASED else "",
        blocked=bool(blocked) and state in (State.DELAYED, State.READY),
        cancel_asked=bool(asked),
        progress=progress,
        attempts=tuple(attempts[-ATTEMPTS_KEPT:]),
    )


def _name(tx: Ledger, worker: int | None) -> str:
    return "" if worker is None else tx.text(worker)


def _history(tx: Ledger, places: Iterable[int]) -> dict[int, list[AttemptView]]:
    history: dict[int, list[AttemptView]] = {}
    for place in places:
        rows = tx.sql("SELECT epoch, outcome, worker, started, ended, ran, note, failure FROM attempt WHERE seq = ? ORDER BY n", (place,)).fetchall()
        if rows:
            history[place] = [
                AttemptView(
                    epoch=epoch,
                    outcome=outcome,
                    worker=_name(tx, worker),
                    started_at=_s(started),
                    ended_at=_s(ended),
                    ran_s=ran,
                    note=note,
                    failure=None if failure is None else _failure(failure),
                )
                for epoch, outcome, worker, started, ended, ran, note, failure in rows
            ]
    return history


# ----------------------------------------------------------------------------------------------------------------- results
def results(tx: Ledger, ids: Sequence[str]) -> list[ResultView | None]:
    return [_result(tx, id) for id in ids]


def _result(tx: Ledger, id: str) -> ResultView | None:
    key = key_of(id)
    if key is None:
        return None
    run = tx.sql("SELECT state, result, result_until, why, failure FROM run WHERE id = ?", (key,)).get
    return _message_result(tx, id, key) if run is None else _run_result(tx, id, *run)


def _run_result(tx: Ledger, id: str, state: int, result: bytes | None, until: int | None, why: str | None, failure: bytes | None) -> ResultView:
    """The states of a run in the words of a message: failed reads as dead, cancelled as done."""
    word = RUN_WORDS[state]
    shown, outcome = {
        "done": ("done", Ended.SUCCEEDED.value),
        "cancelled": ("done", Ended.CANCELLED.value),
        "failed": ("dead", ""),
    }.get(word, (word, ""))
    expired = until is not None and until <= tx.now
    return ResultView(
        id=id,
        state=shown,
        outcome=outcome,
        result=None if expired else result,
        expired=expired,
        failure=_failure(failure) if failure is not None and shown == "dead" else None,
        why=(why or "") if word in ("dead", "failed", "cancelled") else "",
    )


def _message_result(tx: Ledger, id: str, key: bytes) -> ResultView | None:
    row = tx.sql(
        "SELECT seq, state, due, outcome, coalesce(result, (SELECT data FROM bulk WHERE n = seq * 2 + 1)), result_until, why,"
        " (SELECT value FROM progress WHERE progress.seq = message.seq) FROM message WHERE id = ? AND state <> 5",
        (key,),
    ).get
    if row is None:
        return None
    seq, state, due, outcome, result, until, why, progress = row
    failure = None
    if state == State.DEAD:
        failure = tx.sql("SELECT failure FROM attempt WHERE seq = ? AND failure IS NOT NULL ORDER BY n DESC LIMIT 1", (seq,)).get
    expired = until is not None and until <= tx.now
    return ResultView(
        id=id,
        state=_shown(state, due, tx.now).word,
        outcome=OUTCOME_WORDS[outcome or 0],
        result=None if expired else result,
        expired=expired,
        progress=progress,
        failure=None if failure is None else _failure(failure),
        why=why or "",
    )


# -------------------------------------------------------------------------------------------------------------------- runs
_RUN = "SELECT r.id, (SELECT text FROM name WHERE name.n = r.chain), r.state, r.open, r.dead, r.entered, r.ended FROM run r"


def _run_view(row: tuple[Any, ...]) -> RunView:
    key, chain, state, open_, dead, entered, ended = row
    return RunView(id=key.hex(), chain=chain, state=RUN_WORDS[state], open=open_, dead=dead, entered_at=_s(entered), ended_at=_s(ended))


def run(tx: Ledger, id: str) -> RunView:
    key = key_of(id)
    row = None if key is None else tx.sql(f"{_RUN} WHERE r.id = ?", (key,)).get
    if row is None:
        raise NotFound(kind="run", name=id)
    return _run_view(row)


def runs(tx: Ledger, chain: str, state: str, limit: int, cursor: str) -> list[RunView]:
    n = tx.known(CHAIN, chain)
    if n is None or (state and state not in RUN_WORDS):
        return []
    condition = f"AND r.state = {RUN_WORDS.index(state)}" if state else ""
    rows = tx.sql(f"{_RUN} INDEXED BY run_chain WHERE r.chain = ? AND r.id > ? {condition} ORDER BY r.id LIMIT ?", (n, key_of(cursor) or b"", limit))
    return [_run_view(row) for row in rows.fetchall()]


def run_counts(tx: Ledger, chain: str) -> RunCounts:
    n = tx.known(CHAIN, chain)
    rows = tx.sql("SELECT state, count FROM run_tally WHERE chain = ?", (n,)).fetchall()
    return RunCounts(**{RUN_WORDS[state]: count for state, count in rows})


def gathers(tx: Ledger, id: str) -> list[GatherView]:
    run(tx, id)
    rows = tx.sql("SELECT data, missing, dead, fired FROM gather WHERE run = (SELECT n FROM run WHERE id = ?) ORDER BY n", (key_of(id),)).fetchall()
    views = []
    for data, missing, dead, fired in rows:
        gather = _gather(data)
        stage = gather.then.place.stage if gather.then is not None and gather.then.place is not None else StageName("")
        views.append(GatherView(id=gather.id, run=gather.run, stage=stage, expected=gather.expected, missing=missing, dead=dead, fired=bool(fired)))
    return views


# ------------------------------------------------------------------------------------------------------------------- fleet
def workers(tx: Ledger) -> list[WorkerView]:
    rows = tx.sql("SELECT seen, data FROM worker ORDER BY id").fetchall()
    return [msgspec.structs.replace(_worker(data), age_s=(tx.now - seen) / 1000) for seen, data in rows]


def beat(tx: Ledger, worker: WorkerView) -> None:
    tx.sql("INSERT OR REPLACE INTO worker(id, seen, data) VALUES(?, ?, ?)", (worker.id, tx.now, msgspec.msgpack.encode(worker)))
    tx.flow.workers = None


def forget(tx: Ledger, worker: str) -> None:
    tx.sql("DELETE FROM worker WHERE id = ?", (worker,))
    tx.flow.workers = None
