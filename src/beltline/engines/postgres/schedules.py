"""Schedules: calls of sql/schedules.sql. What a put makes of a row is said in engines/schedules.py; it is worked out here and written if nobody was faster.

A step is one statement: hold the row, send, move the row. CASE keeps that order, and nothing of it is done where the part before says no.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from beltline.core.errors import NotFound
from beltline.core.schedule import Schedule, Step, Stepped
from beltline.core.views import DueSchedules, ScheduleView
from beltline.engines import schedules as rules
from beltline.engines.moving import Moved, MovedPage, MovedSchedule, Section
from beltline.engines.postgres import wire
from beltline.engines.postgres.batches import FULL, NOT_DECLARED, SEND, Parcel
from beltline.engines.postgres.browsing import Ask
from beltline.engines.schedules import Row

LANES = 4  # steps on their way at once
_REFUSED = {1: Stepped.STALE, 2: Stepped.EARLY, NOT_DECLARED: Stepped.NOT_DECLARED, FULL: Stepped.QUEUE_FULL}
_COLUMNS = "spec, revision, origin, owner, paused, gone, named, stood, next, last_due, last_sent, last_id, sent, skipped, error"
_ROW = f"SELECT {_COLUMNS} FROM beltline.schedule"
_ACTIVE = "NOT paused AND NOT gone AND next IS NOT NULL AND next"
# _now, not _time: a clock that was set back is noticed by whoever notes the time, and there may be nobody but a scheduler.
_DUE = f"""WITH t AS MATERIALIZED (SELECT beltline._now(%s::bigint, 9) AS now)
  SELECT t.now, (SELECT next FROM beltline.schedule WHERE {_ACTIVE} > t.now ORDER BY next LIMIT 1), s.* FROM t
    LEFT JOIN LATERAL (SELECT {_COLUMNS} FROM beltline.schedule WHERE {_ACTIVE} <= t.now ORDER BY next, name LIMIT %s::int) s ON true"""
_HOLD = "held AS MATERIALIZED (SELECT beltline.hold_schedule(%s::bigint, %s::text, %s::int, %s::bigint, %s::bigint) AS code)"
_MOVE = "beltline.move_schedule(%s::bigint, %s::text, %s::bigint, %s::bigint, %s::int, %s::uuid, %s::int, %s::text)"
_STEP = f"WITH {_HOLD} SELECT CASE WHEN code = 0 THEN {_MOVE} ELSE code END FROM held"
_SENT = f"sent AS MATERIALIZED (SELECT CASE WHEN code = 0 THEN (SELECT coalesce(max(s.code), 0) FROM ({SEND}) s WHERE s.code >= {NOT_DECLARED}) ELSE code END AS code FROM held)"
_SEND_AND_STEP = f"WITH {_HOLD}, {_SENT} SELECT CASE WHEN code = 0 THEN {_MOVE} ELSE code END FROM sent"


def _read(row: Sequence[Any]) -> Row:
    spec, revision, origin, owner, paused, gone, named, stood, look_at, last_due, last_sent, last_id, sent, skipped, error = row
    return Row(
        schedule=rules.decode(spec),
        revision=revision,
        origin=origin,
        owner=owner,
        paused=paused,
        left=gone,
        named=named,
        stood=stood,
        next=look_at,
        last_due=last_due,
        last_sent=last_sent,
        last_id=last_id or "",
        sent=sent,
        skipped=skipped,
        error=error,
    )


async def put(ask: Ask, now: int | None, specs: Sequence[Schedule], origin: str, owner: str, replace: bool) -> list[bool]:
    """Raises NameInvalid."""
    names = {spec.name for spec in specs}
    while True:
        [[at]] = await ask("SELECT beltline._now(%s::bigint)", (now,))
        found = await ask(f"{_ROW} WHERE name = ANY(%s::text[]) OR (origin = %s AND owner = %s AND NOT gone)", (wire.texts(names), rules.CODE, owner))
        rows = {row.schedule.name: row for row in map(_read, found)}
        answers, after = rules.put_all(rows, specs, origin=origin, owner=owner, replace=replace, now=at)
        if not after or await _put(ask, now, [(rows.get(name), row) for name, row in after.items()]):
            return answers


async def _put(ask: Ask, now: int | None, changes: Sequence[tuple[Row | None, Row]]) -> bool:
    """False: somebody has changed one of them meanwhile."""
    rows = [row for _, row in changes]
    moved = [before is None or before.stood != row.stood for before, row in changes]
    anew = [before is None or (before.revision != row.revision and not row.left) for before, row in changes]
    [[done]] = await ask(
        f"SELECT beltline.put_schedules({', '.join(['%s'] * 11)})",
        (
            now,
            wire.numbers(None if before is None else before.revision for before, _ in changes),
            wire.texts(row.schedule.name for row in rows),
            wire.blobs(rules.encode(row.schedule) for row in rows),
            wire.numbers(row.revision for row in rows),
            wire.texts(row.origin for row in rows),
            wire.texts(row.owner for row in rows),
            wire.numbers(row.left for row in rows),
            wire.numbers(row.named for row in rows),
            wire.numbers(row.stood if it_is else None for it_is, row in zip(moved, rows, strict=True)),
            wire.numbers(row.next if it_is else None for it_is, row in zip(anew, rows, strict=True)),
        ),
    )
    return bool(done)


async def schedules(ask: Ask, limit: int, after: str) -> list[ScheduleView]:
    rows = await ask(f'{_ROW} WHERE name COLLATE "C" > %s ORDER BY name COLLATE "C" LIMIT %s::bigint', (wire.clean(after), min(limit, 1 << 62)))
    return [rules.view(_read(row)) for row in rows]


async def schedule(ask: Ask, name: str) -> ScheduleView:
    """Raises NotFound."""
    rows = await ask(f"{_ROW} WHERE name = %s", (wire.clean(name),))
    if not rows:
        raise NotFound(kind="schedule", name=name)
    return rules.view(_read(rows[0]))


async def pause(ask: Ask, now: int | None, name: str, paused: bool) -> ScheduleView:
    """Raises NotFound."""
    await ask("SELECT beltline.pause_schedule(%s, %s, %s)", (now, wire.clean(name), paused))
    return await schedule(ask, name)


async def remove(ask: Ask, now: int | None, name: str) -> None:
    """Raises NotFound."""
    [[found]] = await ask("SELECT beltline.remove_schedule(%s, %s)", (now, wire.clean(name)))
    if not found:
        raise NotFound(kind="schedule", name=name)


async def due(ask: Ask, now: int | None, limit: int) -> DueSchedules:
    rows = await ask(_DUE, (now, min(limit, 1_000_000)))
    at, following = rows[0][:2]
    return rules.due(at, [_read(row[2:]) for row in rows if row[2] is not None], following)


async def step(ask: Ask, now: int | None, steps: Sequence[Step]) -> list[Stepped]:
    """Those of one schedule in the order given, whatever happens first to others."""
    answers = [Stepped.STALE] * len(steps)
    places: dict[str, list[int]] = {}
    for place, each in enumerate(steps):
        places.setdefault(each.name, []).append(place)
    left = iter(places.values())

    async def lane() -> None:
        for of_one in left:
            for place in of_one:
                answers[place] = await _step(ask, now, steps[place])

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(LANES, len(places))):
                group.create_task(lane())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return answers


async def _step(ask: Ask, now: int | None, step: Step) -> Stepped:
    stands, following = rules.ms(step.stands_at), rules.ms_or_never(step.next_at)
    name = wire.clean(step.name)
    held = (now, name, step.revision, rules.ms(step.stood_at), stands)
    last = step.messages[-1].id if step.messages else None
    moved = (now, name, stands, following, len(step.messages), last, step.skipped, wire.clean(step.error))
    if step.messages:
        [[code]] = await ask(_SEND_AND_STEP, (*held, now, False, *Parcel(step.messages, ()).arguments, *moved))
    else:
        [[code]] = await ask(_STEP, (*held, *moved))
    return _REFUSED.get(code, Stepped.DONE)


# ------------------------------------------------------------------------------------------------------------------ a move
async def take(ask: Ask, after: str, limit: int) -> MovedPage:
    rows = [_read(row) for row in await ask(f'{_ROW} WHERE name COLLATE "C" > %s ORDER BY name COLLATE "C" LIMIT %s::int', (after, limit))]
    things: list[Moved] = [rules.to_move(row) for row in rows]
    return MovedPage(section=Section.SCHEDULES, things=things, after=rows[-1].schedule.name if len(rows) == limit else "")


def as_columns(things: Sequence[MovedSchedule]) -> tuple[str, ...]:
    """What `put_moved_schedules` gets behind the seals."""
    return (
        wire.texts(thing.name for thing in things),
        wire.blobs(thing.spec for thing in things),
        wire.texts(thing.origin for thing in things),
        wire.texts(thing.owner for thing in things),
        wire.numbers(thing.paused for thing in things),
        wire.numbers(thing.left for thing in things),
        wire.numbers(thing.named for thing in things),
        wire.numbers(thing.stood for thing in things),
        wire.numbers(thing.last_due for thing in things),
        wire.numbers(thing.last_sent for thing in things),
        wire.ids(thing.last_id or None for thing in things),
        wire.numbers(thing.sent for thing in things),
        wire.numbers(thing.skipped for thing in things),
        wire.texts(thing.error for thing in things),
    )
