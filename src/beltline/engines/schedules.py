"""Where a schedule stands, as every engine keeps it, and what a verb makes of it: one rule for all of them. Instants are whole milliseconds since 1970.

    put    a new one stands at now. One that is there keeps pause and position, unless its timing changed          left     see `is_left`
    step   compare (`answer`), then what it has become (`after`); the sends stand between the two, in the same write

`revision` grows whenever a step that was made before must not be taken any more. `next` 0: nobody has worked out when it is due; None: never again.
"""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Literal

import msgspec
from msgspec import Struct, structs

from beltline.core.names import check_name
from beltline.core.schedule import LEFT_S, NAMED_S, Schedule, Step, Stepped
from beltline.core.views import DueSchedules, ScheduleView
from beltline.engines.moving import MovedSchedule

CODE: Literal["code"] = "code"
OPERATOR: Literal["operator"] = "operator"
ACTIVE, PAUSED, LEFT = "active", "paused", "left"
LEFT_MS = round(LEFT_S * 1000)
NAMED_MS = round(NAMED_S * 500)  # half of it: many workers name the same ones, and need not all write that down
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Schedule).decode


class Row(Struct, frozen=True, kw_only=True):
    """`named`: when code last said that it has it."""

    schedule: Schedule
    revision: int
    origin: str
    owner: str
    paused: bool
    left: bool
    named: int
    stood: int
    next: int | None
    last_due: int | None
    last_sent: int | None
    last_id: str
    sent: int
    skipped: int
    error: str

    @property
    def active(self) -> bool:
        return not (self.paused or self.left)


def ms(seconds: float) -> int:
    return round(seconds * 1000)


def ms_or_never(seconds: float) -> int | None:
    return None if seconds == inf else ms(seconds)


# --------------------------------------------------------------------------------------------------------------------- put
def put(row: Row | None, spec: Schedule, *, origin: str, owner: str, replace: bool, now: int) -> Row | None:
    """What the row becomes, the same object where there is nothing to write; None = it may not. Raises NameInvalid."""
    check_name("schedule", spec.name)
    if row is None:
        return Row(
            schedule=spec,
            revision=1,
            origin=origin,
            owner=owner,
            paused=False,
            left=False,
            named=now,
            stood=now,
            next=0,
            last_due=None,
            last_sent=None,
            last_id="",
            sent=0,
            skipped=0,
            error="",
        )
    if origin == OPERATOR and (row.origin == CODE or (not replace and row.schedule != spec)):
        return None
    if (row.schedule, row.origin, row.owner, row.left) == (spec, origin, owner, False):
        return row if now - row.named < NAMED_MS else structs.replace(row, named=now)
    moved = row.schedule.timing != spec.timing
    return structs.replace(
        row,
        schedule=spec,
        revision=row.revision + 1,
        origin=origin,
        owner=owner,
        left=False,
        named=now,
        stood=now if moved else row.stood,
        next=0,
        error="",
    )


def is_left(row: Row, *, owner: str, named: frozenset[str], now: int) -> bool:
    """Its owner's code names others but not this one, and nobody else has lately: a worker of the version before may still run."""
    gone = row.origin == CODE and row.owner == owner != "" and row.schedule.name not in named
    return gone and not row.left and now - row.named >= LEFT_MS


def leave(row: Row) -> Row:
    return structs.replace(row, left=True, revision=row.revision + 1)


def put_all(
    rows: Mapping[str, Row], specs: Sequence[Schedule], *, origin: str, owner: str, replace: bool, now: int
) -> tuple[list[bool], dict[str, Row]]:
    """What a verb answers, and the rows to write, by name. `rows`: at least those of the names, and of an owner's code all that are not left.

    One after the other: of two with one name the second changes the first. Raises NameInvalid.
    """
    answers: list[bool] = []
    after: dict[str, Row] = {}
    for spec in specs:
        was = after.get(spec.name) or rows.get(spec.name)
        row = put(was, spec, origin=origin, owner=owner, replace=replace, now=now)
        answers.append(row is not None)
        if row is not None and row is not was:
            after[spec.name] = row
    if origin == CODE and owner:
        named = frozenset(spec.name for spec in specs)
        after |= {name: leave(row) for name, row in rows.items() if is_left(row, owner=owner, named=named, now=now)}
    return answers, after


def pause(row: Row, paused: bool, now: int) -> Row:
    if row.paused == paused:
        return row
    row = structs.replace(row, paused=paused, revision=row.revision + 1)
    return row if paused else structs.replace(row, stood=now, next=0, error="")


# -------------------------------------------------------------------------------------------------------------------- step
def answer(row: Row | None, step: Step, now: int) -> Stepped:
    """DONE: it may be taken, if its messages can be sent."""
    if row is None or not row.active or row.revision != step.revision or row.stood != ms(step.stood_at):
        return Stepped.STALE
    return Stepped.DONE if row.stood <= ms(step.stands_at) <= now else Stepped.EARLY


def after(row: Row, step: Step, now: int) -> Row:
    row = structs.replace(row, stood=ms(step.stands_at), next=ms_or_never(step.next_at), skipped=row.skipped + step.skipped, error=step.error)
    if not step.messages:
        return row
    return structs.replace(row, last_due=ms(step.stands_at), last_sent=now, last_id=step.messages[-1].id, sent=row.sent + len(step.messages))


# --------------------------------------------------------------------------------------------------------------------- moved
def to_move(row: Row) -> MovedSchedule:
    return MovedSchedule(
        name=row.schedule.name,
        spec=encode(row.schedule),
        origin=row.origin,
        owner=row.owner,
        paused=row.paused,
        left=row.left,
        named=row.named,
        stood=row.stood,
        last_due=row.last_due,
        last_sent=row.last_sent,
        last_id=row.last_id,
        sent=row.sent,
        skipped=row.skipped,
        error=row.error,
    )


def moved(thing: MovedSchedule) -> Row:
    return Row(
        schedule=decode(thing.spec),
        revision=1,
        origin=thing.origin,
        owner=thing.owner,
        paused=thing.paused,
        left=thing.left,
        named=thing.named,
        stood=thing.stood,
        next=0,
        last_due=thing.last_due,
        last_sent=thing.last_sent,
        last_id=thing.last_id,
        sent=thing.sent,
        skipped=thing.skipped,
        error=thing.error,
    )


# --------------------------------------------------------------------------------------------------------------------- views
def view(row: Row) -> ScheduleView:
    return ScheduleView(
        schedule=row.schedule,
        revision=row.revision,
        state=PAUSED if row.paused else LEFT if row.left else ACTIVE,
        origin=row.origin,
        owner=row.owner,
        stood_at=row.stood / 1000,
        next_at=inf if row.next is None else row.next / 1000,
        last_due_at=(row.last_due or 0) / 1000,
        last_sent_at=(row.last_sent or 0) / 1000,
        last_id=row.last_id,
        sent=row.sent,
        skipped=row.skipped,
        error=row.error,
    )


def due(now: int, rows: list[Row], following: int | None) -> DueSchedules:
    """`following`: the earliest `next` of those that are not due."""
    return DueSchedules(now=now / 1000, schedules=tuple(map(view, rows)), next_at=inf if following is None else following / 1000)
