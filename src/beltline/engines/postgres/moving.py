"""A move out of this schema or into it: calls of sql/moving.sql, and its rows as the values of engines/moving.py.

The seal is seen by every verb that begins after its commit. What began before may still write, so whoever sets a seal waits for it (`underway`).
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from beltline.core.message import Gather
from beltline.core.queues import QueueSpec
from beltline.engines.moving import (
    Moved,
    MovedAttempt,
    MovedGather,
    MovedId,
    MovedKey,
    MovedMessage,
    MovedPage,
    MovedQueue,
    MovedRun,
    MovedSwitch,
    Seal,
    Section,
    read_seal,
)
from beltline.engines.postgres import control, limits, schedules, wire
from beltline.engines.postgres.browsing import Ask
from beltline.engines.rows import message as as_message
from beltline.engines.rows import place_of, priority_of

_spec = msgspec.msgpack.Decoder(QueueSpec).decode
_gather = msgspec.msgpack.Decoder(Gather).decode
_NIL = "0" * 32


# ------------------------------------------------------------------------------------------------------------------ the seal
async def seal(ask: Ask) -> Seal | None:
    rows = await ask("SELECT value FROM beltline.meta WHERE key = 'seal'", ())
    return read_seal(str(rows[0][0])) if rows else None


async def set_seal(ask: Ask, before: Seal | None, after: Seal | None) -> bool:
    [[done]] = await ask("SELECT beltline.set_seal(%s::text, %s::text, %s::int)", _seals(before, after))
    return bool(done)


def _seals(before: Seal | None, after: Seal | None) -> tuple[str | None, str | None, int]:
    return (None if before is None else before.encode(), None if after is None else after.encode(), 0 if after is None else int(after.level))


# Every transaction has a virtual number from its begin to its end, and holds a lock on it that anybody may see; a prepared one outlives its session.
# Autovacuum has no user, and writes nothing of ours.
_UNDERWAY = """SELECT l.virtualtransaction || ' of backend ' || l.pid || coalesce(' (' || nullif(a.application_name, '') || ')', '')
    FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'virtualxid' AND l.granted AND a.datname = current_database() AND a.usesysid IS NOT NULL AND a.pid <> pg_backend_pid()
  UNION ALL SELECT 'prepared transaction ' || gid FROM pg_catalog.pg_prepared_xacts WHERE database = current_database()"""


async def underway(ask: Ask) -> frozenset[str]:
    """The transactions of this database that have begun and not ended."""
    return frozenset(str(name) for (name,) in await ask(_UNDERWAY, ()))


async def leased(ask: Ask, now: int | None) -> int:
    [[count]] = await ask("SELECT count(*) FROM beltline.lease WHERE due > beltline._time(%s::bigint)", (now,))
    return int(count)


async def empty(ask: Ask) -> bool:
    [[found]] = await ask(
        "SELECT EXISTS(SELECT FROM beltline.body) OR EXISTS(SELECT FROM beltline.known) OR EXISTS(SELECT FROM beltline.run) OR EXISTS(SELECT FROM beltline.dedup)"
        " OR EXISTS(SELECT FROM beltline.schedule)",
        (),
    )
    return not found


# ------------------------------------------------------------------------------------------------------------------ out
async def take(ask: Ask, section: Section, after: str, limit: int) -> MovedPage:
    """At most `limit` things behind `after`."""
    return await _TAKE[section](ask, after, limit)


def _page(section: Section, things: list[Moved], limit: int, after: Callable[[], object]) -> MovedPage:
    return MovedPage(section=section, things=things, after=str(after()) if len(things) == limit else "")


_QUEUES = """SELECT q.name, q.spec, q.paused, (coalesce((SELECT done FROM beltline.tally t WHERE t.queue = q.n), 0)
    + coalesce((SELECT sum(done) FROM beltline.delta d WHERE d.queue = q.n), 0))::bigint,
    coalesce(f.snoozed, 0), coalesce(g.tripped, 0), coalesce(g.trying, false), coalesce(g.succeeded, 0), coalesce(g.pauses, 0), coalesce(g.judged, 0),
    coalesce(g.ended, 0), coalesce(g.failed, 0), coalesce(g.ended_before, 0), coalesce(g.failed_before, 0)
  FROM beltline.queue q LEFT JOIN beltline.flow f ON f.queue = q.n LEFT JOIN LATERAL beltline._judged(f) g ON f.queue IS NOT NULL ORDER BY q.n"""


async def _queues(ask: Ask, after: str, limit: int) -> MovedPage:  # noqa: ARG001 - one shape
    things: list[Moved] = [
        MovedQueue(name, spec, paused, done, snoozed, MovedSwitch(*switch) if any(switch) else None)
        for name, spec, paused, done, snoozed, *switch in await ask(_QUEUES, ())
    ]
    [[hand_outs, place]] = await ask("SELECT (SELECT last_value FROM beltline.hand_out), (SELECT last_value FROM beltline.place)", ())
    return MovedPage(section=Section.QUEUES, things=things, hand_outs=hand_outs, next_seq=place + 1)


async def _runs(ask: Ask, after: str, limit: int) -> MovedPage:
    rows = await ask(
        "SELECT id, chain, state::int, open, dead, entered, ended, result, result_until, coalesce(why, ''), failure FROM beltline.run"
        " WHERE id > %s::uuid ORDER BY id LIMIT %s::int",
        (after or _NIL, limit),
    )
    return _page(Section.RUNS, [MovedRun(*row) for row in rows], limit, lambda: rows[-1][0])


async def _gathers(ask: Ask, after: str, limit: int) -> MovedPage:
    rows = await ask(
        "SELECT n, id, run, missing, dead, fired, data FROM beltline.gather WHERE n > %s::bigint ORDER BY n LIMIT %s::int", (int(after or 0), limit)
    )
    parts: dict[str, list[tuple[int, bool, bytes | None]]] = {}
    for id, part, dead, value in await ask(
        "SELECT gather, part, dead, value FROM beltline.gather_part WHERE gather = ANY(%s::uuid[]) ORDER BY gather, part",
        (wire.ids(row[1] for row in rows),),
    ):
        parts.setdefault(id, []).append((part, dead, value))
    things: list[Moved] = [
        MovedGather(id, run, missing, dead, fired, data, tuple(parts.get(id, ()))) for _, id, run, missing, dead, fired, data in rows
    ]
    return _page(Section.GATHERS, things, limit, lambda: rows[-1][0])


async def _messages(ask: Ask, after: str, limit: int) -> MovedPage:
    rows = await ask("SELECT * FROM beltline.take_messages(%s, %s)", (int(after or 0), limit))
    attempts: dict[str, list[MovedAttempt]] = {}
    for id, *attempt in await ask(
        "SELECT a.id, a.epoch, a.outcome, coalesce(n.text, ''), a.started, a.ended, a.ran, a.note, a.failure FROM beltline.attempt a"
        " LEFT JOIN beltline.name n ON n.n = a.worker WHERE a.id = ANY(%s::uuid[]) ORDER BY a.n",
        (wire.ids(row[1] for row in rows),),
    ):
        attempts.setdefault(id, []).append(MovedAttempt(*attempt))
    things: list[Moved] = [_message(row, tuple(attempts.get(row[1], ()))) for row in rows]
    return _page(Section.MESSAGES, things, limit, lambda: rows[-1][0])


def _message(row: Sequence[Any], attempts: tuple[MovedAttempt, ...]) -> MovedMessage:
    seq, id, state, blocked, queue, task, group, run, head, body, *rest = row
    sent, epoch, failed, lost, rank, since, due, expires, started, worker, ran, outcome, result, until, why, error, asked, progress = rest
    numbers = (sent, epoch, failed, lost, rank, since, due, expires, started)
    text = None if group is None else group.decode("utf-8", "surrogatepass")
    ends = (worker or "", ran, outcome, result, until, why or "", error or "", asked, progress)
    return MovedMessage(id, seq, state, blocked, queue, task, text, run, head, body, *numbers, *ends, attempts)


async def _keys(ask: Ask, after: str, limit: int) -> MovedPage:
    n, _, key = after.partition(":")
    rows = await ask(
        "SELECT d.queue, q.name, d.key, d.id, d.until FROM beltline.dedup d JOIN beltline.queue q ON q.n = d.queue"
        " WHERE (d.queue, d.key) > (%s::int, %s::bytea) ORDER BY d.queue, d.key LIMIT %s::int",
        (int(n or 0), bytes.fromhex(key), limit),
    )
    things: list[Moved] = [MovedKey(queue, key.decode("utf-8", "surrogatepass"), id, until) for _, queue, key, id, until in rows]
    return _page(Section.KEYS, things, limit, lambda: f"{rows[-1][0]}:{rows[-1][2].hex()}")


async def _known(ask: Ask, after: str, limit: int) -> MovedPage:
    rows = await ask(
        "SELECT id, CASE WHEN ended < 0 THEN ~ended ELSE ended END FROM beltline.known WHERE id > %s::uuid ORDER BY id LIMIT %s::int",
        (after or _NIL, limit),
    )
    return _page(Section.KNOWN, [MovedId(*row) for row in rows], limit, lambda: rows[-1][0])


_TAKE: dict[Section, Callable[[Ask, str, int], Awaitable[MovedPage]]] = {
    Section.QUEUES: _queues,
    Section.RUNS: _runs,
    Section.GATHERS: _gathers,
    Section.MESSAGES: _messages,
    Section.KEYS: _keys,
    Section.KNOWN: _known,
    Section.SCHEDULES: schedules.take,
    Section.LIMITS: limits.take,
}


# ------------------------------------------------------------------------------------------------------------------ in
async def put(ask: Ask, now: int | None, page: MovedPage, before: Seal, after: Seal) -> bool:
    """Write what is not there yet. False: the seal is not `before`, nothing was written."""
    things: list[Any] = page.things
    match page.section:
        case Section.QUEUES:
            return await _call(ask, "put_queues", before, after, *await _declared(ask, now, page))
        case Section.RUNS:
            return await _call(ask, "put_runs", before, after, *_of_runs(things))
        case Section.GATHERS:
            return await _call(ask, "put_gathers", before, after, *_of_gathers(things))
        case Section.MESSAGES:
            return await _call(ask, "put_messages", before, after, *_of_messages(things), *_of_attempts(things), _flows(things))
        case Section.KEYS:
            keys = (wire.texts(t.queue for t in things), wire.blobs(wire.key(t.key) for t in things), wire.ids(t.id for t in things))
            return await _call(ask, "put_keys", before, after, *keys, wire.numbers(t.until for t in things))
        case Section.KNOWN:
            return await _call(ask, "put_known", before, after, wire.ids(t.id for t in things), wire.numbers(t.ended for t in things))
        case Section.SCHEDULES:
            return await _call(ask, "put_moved_schedules", before, after, *schedules.as_columns(things))
        case Section.LIMITS:
            return await _call(ask, "put_moved_limits", before, after, *limits.as_columns(things))
        case Section.END:
            return await set_seal(ask, before, after)


async def _call(ask: Ask, function: str, before: Seal, after: Seal, *arguments: object) -> bool:
    values = (*_seals(before, after), *arguments)
    [[done]] = await ask(f"SELECT beltline.{function}({', '.join(['%s'] * len(values))})", values)
    return bool(done)


async def _declared(ask: Ask, now: int | None, page: MovedPage) -> tuple[Any, ...]:
    queues = [thing for thing in page.things if isinstance(thing, MovedQueue)]
    seen, known = await control.declarations(ask)
    specs = {queue.name: _spec(queue.spec) for queue in queues}
    declared = control.as_columns([*specs.values()], [*(known | specs).values()])
    counted = (wire.numbers(queue.paused for queue in queues), wire.numbers(queue.done for queue in queues))
    shut = (wire.numbers(queue.snoozed for queue in queues), wire.texts(map(_switch, queues)))
    return (now, seen, *declared[:-1], *counted, page.hand_outs, page.next_seq, declared[-1], *shut)


def _switch(queue: MovedQueue) -> str | None:
    return None if queue.switch is None else msgspec.json.encode(queue.switch).decode()


def _of_runs(runs: Sequence[MovedRun]) -> tuple[Any, ...]:
    return (
        wire.ids(run.id for run in runs),
        wire.texts(run.chain for run in runs),
        wire.numbers(run.state for run in runs),
        wire.numbers(run.open for run in runs),
        wire.numbers(run.dead for run in runs),
        wire.numbers(run.entered for run in runs),
        wire.numbers(run.ended for run in runs),
        wire.blobs(run.result for run in runs),
        wire.numbers(run.result_until for run in runs),
        wire.texts(run.why or None for run in runs),
        wire.blobs(run.failure for run in runs),
    )


def _of_gathers(moved: Sequence[MovedGather]) -> tuple[Any, ...]:
    gathers = [_gather(each.data) for each in moved]
    follow = wire.templates(gathers)
    queues, tasks, chains, columns = wire.sent(follow, handed_on=True) if follow else ("{}", "{}", "{}", wire.NOTHING_SENT)
    parts = [(each.id, *part) for each in moved for part in each.parts]
    return (
        queues,
        tasks,
        chains,
        *columns,
        *wire.opened(gathers, 1),
        wire.numbers(each.missing for each in moved),
        wire.numbers(each.dead for each in moved),
        wire.numbers(each.fired for each in moved),
        wire.ids(id for id, _, _, _ in parts),
        wire.numbers(part for _, part, _, _ in parts),
        wire.numbers(dead for _, _, dead, _ in parts),
        wire.blobs(value for _, _, _, value in parts),
        wire.flows(follow, handed_on=True),
    )


def _of_messages(messages: Sequence[MovedMessage]) -> tuple[Any, ...]:
    places = [place_of(m.head) if m.run is not None else None for m in messages]
    inner = [place.parts[-1] if place is not None and place.parts else None for place in places]
    return (
        wire.ids(m.id for m in messages),
        wire.numbers(m.seq for m in messages),
        wire.numbers(m.state for m in messages),
        wire.numbers(m.blocked for m in messages),
        wire.texts(m.queue for m in messages),
        wire.texts(m.task for m in messages),
        wire.numbers(priority_of(m.head) for m in messages),
        wire.blobs(wire.key(m.group) for m in messages),
        wire.ids(m.run for m in messages),
        wire.ids(part.gather if part is not None else None for part in inner),
        wire.numbers(part.index if part is not None else None for part in inner),
        wire.blobs(m.head for m in messages),
        wire.blobs(m.body for m in messages),
        wire.numbers(m.sent for m in messages),
        wire.numbers(m.epoch for m in messages),
        wire.numbers(m.failed for m in messages),
        wire.numbers(m.lost for m in messages),
        wire.numbers(m.rank for m in messages),
        wire.numbers(m.since for m in messages),
        wire.numbers(m.due for m in messages),
        wire.numbers(m.expires for m in messages),
        wire.numbers(m.started for m in messages),
        wire.texts(m.worker or None for m in messages),
        wire.numbers(m.ran for m in messages),
        wire.numbers(m.outcome for m in messages),
        wire.blobs(m.result for m in messages),
        wire.numbers(m.result_until for m in messages),
        wire.texts(m.why or None for m in messages),
        wire.texts(m.error or None for m in messages),
        wire.texts(m.asked for m in messages),
        wire.blobs(m.progress for m in messages),
    )


def _flows(messages: Sequence[MovedMessage]) -> str | None:
    return wire.flows([as_message(m.id, m.queue, m.task, m.head, b"") for m in messages])


def _of_attempts(messages: Sequence[MovedMessage]) -> tuple[Any, ...]:
    attempts = [(m.id, attempt) for m in messages for attempt in m.attempts]
    return (
        wire.ids(id for id, _ in attempts),
        wire.numbers(attempt.epoch for _, attempt in attempts),
        wire.texts(attempt.outcome for _, attempt in attempts),
        wire.texts(attempt.worker or None for _, attempt in attempts),
        wire.numbers(attempt.started for _, attempt in attempts),
        wire.numbers(attempt.ended for _, attempt in attempts),
        wire.numbers(attempt.ran for _, attempt in attempts),
        wire.texts(attempt.note for _, attempt in attempts),
        wire.blobs(attempt.failure for _, attempt in attempts),
    )
