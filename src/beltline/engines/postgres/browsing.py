"""What browsing shows: each look is one SELECT, so one snapshot, and takes no lock.

A look has two halves. The first finds ids, oldest sent first: of dead, delayed, leased and ready messages in the tables they stand in, which hold nothing
else; where done ones are meant too, along the order of sends. The second reads what those few ids are, wherever they stand. States are shown as callers
see them: a delayed message whose time has come, and a leased one whose lease is over, are ready. `now`: the engine's time in ms, None for the server's own.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from beltline.core.errors import NotFound, QueueNotDeclared, ValueInvalid
from beltline.core.lifecycle import State
from beltline.core.message import Gather
from beltline.core.names import StageName
from beltline.core.outcome import Ended, Failure
from beltline.core.queues import COUNTED, Counts, QueueSpec, held_back
from beltline.core.views import AttemptView, GatherView, MessageFilter, MessageView, Page, ResultView, RunCounts, RunView, WorkerView
from beltline.engines.postgres import wire
from beltline.engines.rows import key_of, message

# Runs one statement (%s parameters) of schema `beltline` and gives its rows in binary form: uuid as 32 hex digits, bytea as bytes, int8 as int.
Ask = Callable[[str, Sequence[object]], Awaitable[list[tuple[Any, ...]]]]

RUN_WORDS = ("running", "done", "dead", "failed", "cancelled")
OUTCOME_WORDS = ("", Ended.SUCCEEDED.value, Ended.CANCELLED.value, Ended.EXPIRED.value)
ATTEMPTS_SHOWN = 100
LOOKED_AT = 1000  # ready messages among which the oldest is looked for; the first in line are the oldest but for priorities
_MOST = 1 << 62  # rows of a page, and the highest place

_failure = msgspec.msgpack.Decoder(Failure).decode
_gather = msgspec.msgpack.Decoder(Gather).decode
_worker = msgspec.msgpack.Decoder(WorkerView).decode
_spec = msgspec.msgpack.Decoder(QueueSpec).decode

_TIME = "t AS MATERIALIZED (SELECT beltline._time(%s::bigint) AS now)"
_LIVE = "{state}, {blocked}, queue, {due}, epoch, failed, lost, {why}, error, NULL::smallint, {worker}, NULL::bigint, NULL::float4, NULL::bytea, NULL::bigint"
_WAITING = _LIVE.replace("{due}", "since").replace("{why}", "why").replace("{worker}", "NULL::int")
# Where a message stands, whatever its state; `{id}` is its id. The most frequent places first: the search ends where it is found.
_PLACE = f"""LATERAL (
    SELECT 3 AS state, false AS blocked, queue, ended AS due, epoch, failed, lost, why, error, outcome, worker, started, ran, result, result_until
      FROM beltline.done WHERE id = {{id}}
    UNION ALL SELECT {_WAITING.format(state=1, blocked="false")} FROM beltline.ready WHERE id = {{id}}
    UNION ALL SELECT {_WAITING.format(state=1, blocked="false")} FROM beltline.flow_ready WHERE id = {{id}}
    UNION ALL SELECT {_LIVE.format(state=2, blocked="false", due="due", why="NULL::text", worker="worker")} FROM beltline.lease WHERE id = {{id}}
    UNION ALL SELECT {_WAITING.format(state=0, blocked="false")} FROM beltline.delayed WHERE id = {{id}}
    UNION ALL SELECT {_WAITING.format(state="was", blocked="true")} FROM beltline.blocked WHERE id = {{id}}
    UNION ALL SELECT {_LIVE.format(state=4, blocked="false", due="ended", why="why", worker="NULL::int")} FROM beltline.dead WHERE id = {{id}}
    LIMIT 1) AS f"""
_VIEW = f"""SELECT b.seq, b.id, q.name, b.task, f.state, f.epoch, f.failed, f.lost, b.sent, f.due, f.outcome, f.why, w.text, f.blocked, b.head, b.body,
    f.started, f.ran::text::float8, EXISTS(SELECT FROM beltline.asked a WHERE a.id = b.id), (SELECT p.value FROM beltline.progress p WHERE p.id = b.id), t.now,
    ARRAY(SELECT ROW(a.epoch, a.outcome, n.text, a.started, a.ended, a.ran, a.note, a.failure)
      FROM beltline.attempt a LEFT JOIN beltline.name n ON n.n = a.worker WHERE a.id = b.id ORDER BY a.n)
  FROM found CROSS JOIN t JOIN beltline.body b ON b.id = found.id CROSS JOIN {_PLACE.format(id="b.id")}
    JOIN beltline.queue q ON q.n = f.queue LEFT JOIN beltline.name w ON w.n = f.worker
  ORDER BY b.seq"""

# The tables in which a state asked for stands, and what its rows there have in common.
_NOW = "(SELECT now FROM t)"
_STANDS: dict[str, tuple[tuple[str, str], ...]] = {
    State.DELAYED.word: (("delayed", f"AND o.since > {_NOW}"), ("blocked", f"AND o.was = 0 AND o.since > {_NOW}")),
    State.LEASED.word: (("lease", f"AND o.due > {_NOW}"),),
    State.DEAD.word: (("dead", ""),),
    State.DONE.word: (("done", ""),),
    State.READY.word: (
        ("ready", ""),
        ("flow_ready", ""),
        ("blocked", f"AND (o.was = 1 OR o.since <= {_NOW})"),
        ("delayed", f"AND o.since <= {_NOW}"),
        ("lease", f"AND o.due <= {_NOW}"),
    ),
}
_SHOWN = {
    State.DELAYED.word: f"f.state = 0 AND f.due > {_NOW}",
    State.LEASED.word: f"f.state = 2 AND f.due > {_NOW}",
    State.READY.word: f"(f.state = 1 OR f.state IN (0, 2) AND f.due <= {_NOW})",
    State.DONE.word: "f.state = 3",
    State.DEAD.word: "f.state = 4",
}


def _s(ms: int | None) -> float:
    return 0.0 if ms is None else ms / 1000


def _shown(state: int, due: int, now: int) -> State:
    return State.READY if state in (State.DELAYED, State.LEASED) and due <= now else State(state)


class _Sql:
    """A statement that grows from our own fragments; whatever comes from outside is bound."""

    def __init__(self, text: str = "", *values: object) -> None:
        self.text = text
        self.values = list(values)

    def add(self, text: str, *values: object) -> "_Sql":
        self.text += text
        self.values += values
        return self


# ------------------------------------------------------------------------------------------------------------------ queues
async def queues(ask: Ask) -> list[QueueSpec]:
    return [_spec(spec) for (spec,) in await ask('SELECT spec FROM beltline.queue ORDER BY name COLLATE "C"', ())]


COUNTS = f"""WITH {_TIME} SELECT q.paused, t.now, s.*, d.*, b.*, l.*, r.*, g.*, h.*, i.*, f.*
  FROM beltline.queue q CROSS JOIN t
  CROSS JOIN LATERAL (
    SELECT coalesce(sum(ready), 0)::bigint, coalesce(sum(delayed), 0)::bigint, coalesce(sum(leased), 0)::bigint,
        coalesce(sum(dead), 0)::bigint, coalesce(sum(done), 0)::bigint, coalesce(sum(parked), 0)::bigint
      FROM (SELECT ready, delayed, leased, dead, done, parked FROM beltline.tally WHERE queue = q.n
        UNION ALL SELECT ready, delayed, leased, dead, done, parked FROM beltline.delta WHERE queue = q.n) x) s
  CROSS JOIN LATERAL (SELECT count(*), min(since) FROM beltline.delayed WHERE queue = q.n AND since <= t.now) d
  CROSS JOIN LATERAL (SELECT count(*), min(since) FROM beltline.blocked WHERE queue = q.n AND was = 0 AND since <= t.now) b
  CROSS JOIN LATERAL (SELECT count(*), min(due) FROM beltline.lease WHERE queue = q.n AND due <= t.now) l
  CROSS JOIN LATERAL (SELECT min(since) FROM (SELECT since FROM beltline.ready WHERE queue = q.n ORDER BY rank, seq LIMIT {LOOKED_AT}) first) r
  CROSS JOIN LATERAL (SELECT min(since) FROM beltline.blocked WHERE queue = q.n AND was = 1) g
  CROSS JOIN LATERAL (SELECT count(*) AS behind FROM (SELECT FROM beltline.blocked WHERE queue = q.n AND was = 1 LIMIT {COUNTED + 1}) few) h
  CROSS JOIN LATERAL (SELECT count(*) AS front FROM (SELECT FROM beltline.ready WHERE queue = q.n AND h.behind > {COUNTED} LIMIT {COUNTED}) few) i
  LEFT JOIN LATERAL (SELECT * FROM beltline._flow_counts(t.now, q.n, h.behind > {COUNTED}) WHERE q.gated) f ON true
  WHERE q.name = %s"""


async def counts(ask: Ask, now: int | None, name: str) -> Counts:
    """Exact, from the counters and the few rows that time alone has moved. Raises QueueNotDeclared."""
    rows = await ask(COUNTS, (now, name))
    if not rows:
        raise await not_declared(ask, name)
    [(paused, time, ready, delayed, leased, dead, done, parked, due, first_due, held, first_held, over, first_over, first, first_behind, *flow)] = (
        rows
    )
    behind, front, first_laned, closed, heads, room, snoozed, tripped, trying = flow
    # Of those behind their group's head COUNTED at most are walked; where there are more, those in front are counted.
    free = (ready - behind if behind <= COUNTED else front + (heads or 0)) + due + over - (closed or 0)
    shut = paused or max(snoozed or 0, tripped or 0) > time
    oldest = [ms for ms in (first_due, first_held, first_over, first, first_behind, first_laned) if ms is not None]
    return Counts(
        ready=ready + due + held + over,
        delayed=delayed - due - held,
        leased=leased - over,
        dead=dead,
        done=done,
        parked=parked,
        oldest_ready_s=max(0.0, (time - min(oldest)) / 1000) if oldest else 0.0,
        paused=paused,
        held=held_back(ready + due + held + over, free, math.inf if room is None else room, shut=shut),
        snoozed_until=_s(snoozed) if snoozed is not None and snoozed > time else 0.0,
        tripped_until=_s(tripped) if tripped is not None and tripped > time else 0.0,
        trying=bool(trying),
    )


KNOWN_QUEUES = "SELECT name FROM beltline.queue ORDER BY n"


async def not_declared(ask: Ask, name: str) -> QueueNotDeclared:
    return undeclared(name, await ask(KNOWN_QUEUES, ()))


def undeclared(name: str, rows: Sequence[tuple[Any, ...]]) -> QueueNotDeclared:
    """`rows`: of KNOWN_QUEUES."""
    return QueueNotDeclared(name, known=tuple(known for (known,) in rows))


# ---------------------------------------------------------------------------------------------------------------- messages
async def get(ask: Ask, now: int | None, id: str) -> MessageView:
    """Raises NotFound."""
    rows = []
    if key_of(id) is not None:
        rows = await ask(f"WITH {_TIME}, found AS (SELECT %s::uuid AS id) {_VIEW}", (now, id))
    if not rows:
        raise NotFound(kind="message", name=id)
    return _view(rows[0])


async def browse(ask: Ask, now: int | None, where: MessageFilter, limit: int, cursor: str) -> Page:
    """Raises ValueInvalid for a cursor that no page gave."""
    if cursor and not cursor.isdecimal():
        raise ValueInvalid(name="cursor", value=cursor, allowed="what the page before gave")
    sql = browse_sql(now, where, min(limit, _MOST) + 1, min(int(cursor or 0), _MOST))
    rows = await ask(sql.text, sql.values)
    more = str(rows[limit - 1][0]) if len(rows) > limit else ""
    return Page(messages=tuple(_view(row) for row in rows[:limit]), cursor=more)


def browse_sql(now: int | None, where: MessageFilter, limit: int, after: int) -> _Sql:
    """The first `limit` behind place `after`."""
    sql = _Sql(f"WITH {_TIME}, found AS MATERIALIZED (", now)
    states = dict.fromkeys(where.states or _STANDS)
    # Nearly all are done, so a page of those is found along the order of sends; but a few failures among them only by a look at each.
    if not where.ids and not where.run and states.keys() <= _STANDS.keys() and (where.error or State.DONE.word not in states):
        sql.add("SELECT id FROM (")
        places = [place for word in states for place in _STANDS[word]]
        for n, (table, condition) in enumerate(places):
            sql.add(" UNION ALL " if n else "").add(f"(SELECT o.id, o.seq FROM beltline.{table} o WHERE o.seq > %s {condition}", after)
            _of_place(sql, where, "o")
            if where.group and table in ("blocked", "dead"):
                sql.add(" AND o.group_key = %s", wire.key(where.group))
            _of_body(sql, where, table)
            sql.add(" ORDER BY o.seq LIMIT %s)", limit)
        sql.add(") o ORDER BY seq LIMIT %s", limit)
    else:
        sql.add(f"SELECT b.id FROM beltline.body b CROSS JOIN {_PLACE.format(id='b.id')} WHERE b.seq > %s", after)
        if where.ids:
            sql.add(" AND b.id = ANY(%s::uuid[])", wire.ids(id for id in where.ids if key_of(id) is not None))
        if where.run:
            # History of a run that was dropped may outlive it by a moment: it belongs to none.
            run = where.run if key_of(where.run) is not None else None
            sql.add(" AND b.run = %s::uuid AND EXISTS (SELECT FROM beltline.run r WHERE r.id = b.run)", run)
        _of_place(sql, where, "f")
        _of_body(sql, where, None)
        if where.states:
            sql.add(" AND (" + " OR ".join([_SHOWN[word] for word in dict.fromkeys(where.states) if word in _SHOWN] or ["false"]) + ")")
        sql.add(" ORDER BY b.seq LIMIT %s", limit)
    return sql.add(f") {_VIEW}")


def _of_place(sql: _Sql, where: MessageFilter, row: str) -> None:
    """What the row says that moves. One queue as one value, so that an index that begins with it keeps the order behind it."""
    if len(where.queues) == 1:
        sql.add(f" AND {row}.queue = (SELECT n FROM beltline.queue WHERE name = %s)", wire.clean(where.queues[0]))
    elif where.queues:
        sql.add(f" AND {row}.queue = ANY(ARRAY(SELECT n FROM beltline.queue WHERE name = ANY(%s::text[])))", wire.texts(where.queues))
    if where.error:
        sql.add(f" AND {row}.error = %s", wire.clean(where.error))


def _of_body(sql: _Sql, where: MessageFilter, table: str | None) -> None:
    """What the message says for ever; `table`: of a row `o` whose body is not joined."""
    conditions = _Sql()
    if where.tasks:
        conditions.add(" AND b.task = ANY(%s::text[])", wire.texts(where.tasks))
    if where.group and table not in ("blocked", "dead"):
        conditions.add(" AND b.group_key = %s", wire.key(where.group))
    if where.sent_after:
        conditions.add(" AND b.sent >= %s", wire.ceil_ms(where.sent_after))
    if where.sent_before:
        conditions.add(" AND b.sent < %s", wire.ceil_ms(where.sent_before))
    if table is None:
        sql.add(conditions.text, *conditions.values)
    elif conditions.text:
        sql.add(f" AND EXISTS (SELECT FROM beltline.body b WHERE b.id = o.id{conditions.text})", *conditions.values)


def _view(row: tuple[Any, ...]) -> MessageView:
    (
        _,
        id,
        queue,
        task,
        state,
        epoch,
        failed,
        lost,
        sent,
        due,
        outcome,
        why,
        worker,
        blocked,
        head,
        body,
        started,
        ran,
        asked,
        progress,
        now,
        history,
    ) = row
    shown = _shown(state, due, now)
    ended = OUTCOME_WORDS[outcome or 0]
    attempts = [_attempt(*entry) for entry in history[-ATTEMPTS_SHOWN:]]
    if ran is not None:  # an ack stands in the row itself
        attempts.append(_attempt(epoch, ended, worker, started, due, ran, why or "", None))
    return MessageView(
        message=message(id, queue, task, head, body),
        state=shown.word,
        epoch=epoch,
        failed=failed,
        lost=lost,
        sent_at=_s(sent),
        due_at=_s(due) if shown in (State.DELAYED, State.LEASED) else 0.0,
        ended_at=_s(due) if shown in (State.DONE, State.DEAD) else 0.0,
        outcome=ended,
        why=why or "",
        worker=worker or "" if state == State.LEASED else "",
        blocked=blocked,
        cancel_asked=asked,
        progress=progress,
        attempts=tuple(attempts[-ATTEMPTS_SHOWN:]),
    )


def _attempt(
    epoch: int, outcome: str, worker: str | None, started: int | None, ended: int, ran: float, note: str, failure: bytes | None
) -> AttemptView:
    return AttemptView(
        epoch=epoch,
        outcome=outcome,
        worker=worker or "",
        started_at=_s(started),
        ended_at=_s(ended),
        ran_s=ran,
        note=note,
        failure=None if failure is None else _failure(failure),
    )


# ----------------------------------------------------------------------------------------------------------------- results
RESULTS = f"""WITH {_TIME} SELECT i.ord, r.state,
    coalesce(r.result_until, f.result_until) <= t.now,
    CASE WHEN coalesce(r.result_until, f.result_until) <= t.now THEN NULL WHEN r.id IS NOT NULL THEN r.result ELSE f.result END,
    coalesce(r.why, f.why), f.state, f.due, f.outcome, (SELECT p.value FROM beltline.progress p WHERE p.id = i.id AND r.id IS NULL),
    CASE WHEN r.id IS NOT NULL THEN r.failure WHEN f.state = 4 THEN
      (SELECT a.failure FROM beltline.attempt a WHERE a.id = i.id AND a.failure IS NOT NULL ORDER BY a.n DESC LIMIT 1) END, t.now
  FROM unnest(%s::uuid[]) WITH ORDINALITY AS i(id, ord) CROSS JOIN t LEFT JOIN beltline.run r ON r.id = i.id
    LEFT JOIN {_PLACE.format(id="i.id")} ON r.id IS NULL
  WHERE r.id IS NOT NULL OR f.state IS NOT NULL"""


async def results(ask: Ask, now: int | None, ids: Sequence[str]) -> list[ResultView | None]:
    known = [id if key_of(id) is not None else None for id in ids]
    views: list[ResultView | None] = [None] * len(ids)
    for place, run_state, expired, result, why, state, due, outcome, progress, failure, time in await ask(RESULTS, (now, wire.ids(known))):
        id = ids[int(place) - 1]
        if run_state is not None:
            views[place - 1] = _run_result(id, run_state, bool(expired), result, why, failure)
            continue
        views[place - 1] = ResultView(
            id=id,
            state=_shown(state, due, time).word,
            outcome=OUTCOME_WORDS[outcome or 0],
            result=result,
            expired=bool(expired),
            progress=progress,
            failure=None if failure is None else _failure(failure),
            why=why or "",
        )
    return views


def _run_result(id: str, state: int, expired: bool, result: bytes | None, why: str | None, failure: bytes | None) -> ResultView:
    """The states of a run in the words of a message: failed reads as dead, cancelled as done."""
    word = RUN_WORDS[state]
    shown, outcome = {
        "done": ("done", Ended.SUCCEEDED.value),
        "cancelled": ("done", Ended.CANCELLED.value),
        "failed": ("dead", ""),
    }.get(word, (word, ""))
    return ResultView(
        id=id,
        state=shown,
        outcome=outcome,
        result=result,
        expired=expired,
        failure=_failure(failure) if failure is not None and shown == "dead" else None,
        why=(why or "") if word in ("dead", "failed", "cancelled") else "",
    )


# -------------------------------------------------------------------------------------------------------------------- runs
_RUN = "SELECT r.id, r.chain, r.state, r.open, r.dead, r.entered, r.ended FROM beltline.run r"


def _run_view(row: tuple[Any, ...]) -> RunView:
    id, chain, state, running, dead, entered, ended = row
    return RunView(id=id, chain=chain, state=RUN_WORDS[state], open=running, dead=dead, entered_at=_s(entered), ended_at=_s(ended))


async def run(ask: Ask, id: str) -> RunView:
    """Raises NotFound."""
    rows = [] if key_of(id) is None else await ask(f"{_RUN} WHERE r.id = %s::uuid", (id,))
    if not rows:
        raise NotFound(kind="run", name=id)
    return _run_view(rows[0])


async def runs(ask: Ask, chain: str, state: str, limit: int, cursor: str) -> list[RunView]:
    if state and state not in RUN_WORDS:
        return []
    sql = _Sql(f"{_RUN} WHERE r.chain = %s", wire.clean(chain))
    if key_of(cursor) is not None:
        sql.add(" AND r.id > %s::uuid", cursor)
    if state:
        sql.add(" AND r.state = %s", RUN_WORDS.index(state))
    sql.add(" ORDER BY r.id LIMIT %s", min(limit, _MOST))
    return [_run_view(row) for row in await ask(sql.text, sql.values)]


async def run_counts(ask: Ask, chain: str) -> RunCounts:
    rows = await ask(
        "SELECT state, sum(count)::bigint FROM (SELECT state, count FROM beltline.run_tally WHERE chain = %s"
        " UNION ALL SELECT state, count FROM beltline.run_delta WHERE chain = %s) x GROUP BY state",
        (wire.clean(chain), wire.clean(chain)),
    )
    return RunCounts(**{RUN_WORDS[state]: count for state, count in rows})


async def gathers(ask: Ask, id: str) -> list[GatherView]:
    """In the order they were opened. Raises NotFound."""
    rows = []
    if key_of(id) is not None:
        rows = await ask(
            "SELECT g.data, g.missing, g.dead, g.fired FROM beltline.run r LEFT JOIN beltline.gather g ON g.run = r.id WHERE r.id = %s::uuid ORDER BY g.n",
            (id,),
        )
    if not rows:
        raise NotFound(kind="run", name=id)
    views = []
    for data, missing, dead, fired in rows:
        if data is not None:
            gather = _gather(data)
            stage = gather.then.place.stage if gather.then is not None and gather.then.place is not None else StageName("")
            views.append(GatherView(id=gather.id, run=gather.run, stage=stage, expected=gather.expected, missing=missing, dead=dead, fired=fired))
    return views


# ------------------------------------------------------------------------------------------------------------------- fleet
async def workers(ask: Ask, now: int | None) -> list[WorkerView]:
    rows = await ask('SELECT beltline._time(%s::bigint) - seen, data FROM beltline.worker ORDER BY id COLLATE "C"', (now,))
    return [msgspec.structs.replace(_worker(data), age_s=age / 1000) for age, data in rows]
