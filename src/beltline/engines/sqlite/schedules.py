"""Schedules as rows; what a verb makes of a row is said in engines/schedules.py. A step and its sends are one operation of the writer, so one write."""

from collections.abc import Sequence
from typing import Any

from beltline.core.errors import NotFound, QueueFull, QueueNotDeclared
from beltline.core.schedule import Schedule, Step, Stepped
from beltline.core.views import DueSchedules, ScheduleView
from beltline.engines import schedules as rules
from beltline.engines.moving import Moved, MovedPage, MovedSchedule, Section
from beltline.engines.schedules import Row
from beltline.engines.sqlite.ledger import Ledger
from beltline.engines.sqlite.sending import send

COLUMNS = "spec, revision, origin, owner, paused, gone, named, stood, next, last_due, last_sent, last_id, sent, skipped, error"
_ROW = f"SELECT {COLUMNS} FROM schedule"
_WRITE = f"INSERT OR REPLACE INTO schedule(name, {COLUMNS}) VALUES({', '.join('?' * 16)})"
_ACTIVE = "INDEXED BY schedule_next WHERE paused = 0 AND gone = 0 AND next IS NOT NULL AND next"
DUE = f"{_ROW} {_ACTIVE} <= ? ORDER BY next, name LIMIT ?"
FOLLOWING = f"SELECT min(next) FROM schedule {_ACTIVE} > ?"


def _read(row: tuple[Any, ...]) -> Row:
    spec, revision, origin, owner, paused, gone, named, stood, look_at, last_due, last_sent, last_id, sent, skipped, error = row
    return Row(
        schedule=rules.decode(spec),
        revision=revision,
        origin=origin,
        owner=owner,
        paused=bool(paused),
        left=bool(gone),
        named=named,
        stood=stood,
        next=look_at,
        last_due=last_due,
        last_sent=last_sent,
        last_id="" if last_id is None else last_id.hex(),
        sent=sent,
        skipped=skipped,
        error=error,
    )


def _find(tx: Ledger, name: str) -> Row | None:
    found = tx.sql(f"{_ROW} WHERE name = ?", (name,)).get
    return None if found is None else _read(found)


def _get(tx: Ledger, name: str) -> Row:
    row = _find(tx, name)
    if row is None:
        raise NotFound(kind="schedule", name=name)
    return row


def _write(tx: Ledger, row: Row) -> None:
    tx.sql(
        _WRITE,
        (
            row.schedule.name,
            rules.encode(row.schedule),
            row.revision,
            row.origin,
            row.owner,
            row.paused,
            row.left,
            row.named,
            row.stood,
            row.next,
            row.last_due,
            row.last_sent,
            bytes.fromhex(row.last_id) or None,
            row.sent,
            row.skipped,
            row.error,
        ),
    )


def put(tx: Ledger, specs: Sequence[Schedule], origin: str, owner: str, replace: bool) -> list[bool]:
    """Raises NameInvalid, before anything is written."""
    found = tx.sql(f"{_ROW} WHERE origin = ? AND owner = ? AND gone = 0", (rules.CODE, owner)).fetchall() if origin == rules.CODE and owner else []
    rows = {row.schedule.name: row for row in (*map(_read, found), *filter(None, (_find(tx, spec.name) for spec in specs)))}
    answers, after = rules.put_all(rows, specs, origin=origin, owner=owner, replace=replace, now=tx.now)
    for row in after.values():
        _write(tx, row)
    return answers


def schedules(tx: Ledger, limit: int, after: str) -> list[ScheduleView]:
    return [rules.view(_read(row)) for row in tx.sql(f"{_ROW} WHERE name > ? ORDER BY name LIMIT ?", (after, limit)).fetchall()]


def schedule(tx: Ledger, name: str) -> ScheduleView:
    """Raises NotFound."""
    return rules.view(_get(tx, name))


def pause(tx: Ledger, name: str, paused: bool) -> ScheduleView:
    """Raises NotFound."""
    row = rules.pause(_get(tx, name), paused, tx.now)
    _write(tx, row)
    return rules.view(row)


def remove(tx: Ledger, name: str) -> None:
    """Raises NotFound."""
    _get(tx, name)
    tx.sql("DELETE FROM schedule WHERE name = ?", (name,))


def due(tx: Ledger, limit: int) -> DueSchedules:
    rows = tx.sql(DUE, (tx.now, limit)).fetchall()
    following = tx.sql(FOLLOWING, (tx.now,)).get
    return rules.due(tx.now, [_read(row) for row in rows], following)


def step(tx: Ledger, steps: Sequence[Step]) -> list[Stepped]:
    return [_step(tx, each) for each in steps]


def _step(tx: Ledger, step: Step) -> Stepped:
    row = _find(tx, step.name)
    answer = rules.answer(row, step, tx.now)
    if row is None or answer is not Stepped.DONE:
        return answer
    if step.messages:
        try:
            send(tx, step.messages, ())
        except QueueFull:
            return Stepped.QUEUE_FULL
        except QueueNotDeclared:
            return Stepped.NOT_DECLARED
    _write(tx, rules.after(row, step, tx.now))
    return Stepped.DONE


# ------------------------------------------------------------------------------------------------------------------ a move
def take(tx: Ledger, after: str, limit: int) -> MovedPage:
    rows = [_read(row) for row in tx.sql(f"{_ROW} WHERE name > ? ORDER BY name LIMIT ?", (after, limit)).fetchall()]
    things: list[Moved] = [rules.to_move(row) for row in rows]
    return MovedPage(section=Section.SCHEDULES, things=things, after=rows[-1].schedule.name if len(rows) == limit else "")


def put_moved(tx: Ledger, things: Sequence[MovedSchedule]) -> None:
    for thing in things:
        if _find(tx, thing.name) is None:
            _write(tx, rules.moved(thing))
