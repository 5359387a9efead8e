"""Schedules as the command line shows them: the JSON, and how it is collected from the engine."""

from contextlib import suppress
from datetime import datetime
from itertools import islice
from math import inf
from typing import Any

from msgspec import Struct

from beltline.cli.names import unknown
from beltline.cli.output import SCHEMA_VERSION
from beltline.cli.shapes import ErrorItem, error_item, instant
from beltline.core.codec import unpack
from beltline.core.errors import NotFound, ScheduleInvalid
from beltline.core.schedule import Schedule, next_after
from beltline.core.views import ScheduleView
from beltline.engines.protocol import Engine, Results


class ScheduleItem(Struct, frozen=True, kw_only=True):
    """`state`: active, paused, left (no code declares it any more). `next_at` null: never again. `late_s`: how long the next occurrence has been due.

    `last_id`: the message of the last occurrence; `last_state`, `last_outcome`: what became of it, "" = its history is over.
    """

    version: int = SCHEMA_VERSION
    name: str
    when: str
    cron: str | None
    every_s: float | None
    start: datetime | None
    tz: str
    task: str
    chain: str | None
    queue: str
    catch_up: str
    catch_up_limit: int
    origin: str
    owner: str
    state: str
    next_at: datetime | None
    late_s: float
    last_due_at: datetime | None
    last_sent_at: datetime | None
    last_id: str
    last_state: str
    last_outcome: str
    sent: int
    skipped: int
    error: str


class ScheduleDetail(ScheduleItem, frozen=True, kw_only=True):
    """`next`: the next five, none of one that is not active. `last_result`, `last_error`: of the message `last_id`."""

    next: list["OccurrenceItem"]
    last_result: Any = None
    last_error: ErrorItem | None = None


class OccurrenceItem(Struct, frozen=True, kw_only=True):
    """`at`: in the schedule's zone. `note`: what a change of the clock makes of it."""

    version: int = SCHEMA_VERSION
    schedule: str
    at: datetime
    note: str


class TriggeredItem(Struct, frozen=True, kw_only=True):
    version: int = SCHEMA_VERSION
    id: str
    schedule: str
    queue: str


# ------------------------------------------------------------------------------------------------------------------ looking
async def all_schedules(engine: Engine) -> list[ScheduleView]:
    from beltline.schedules import schedules_of

    power = schedules_of(engine)
    views = page = await power.schedules()
    while page:
        page = await power.schedules(after=page[-1].schedule.name)
        views = views + page
    return views


async def one_schedule(engine: Engine, name: str) -> ScheduleView:
    """By its name, or by the last part of it where only one has that. Raises NotFound."""
    from beltline.schedules import schedules_of

    try:
        return await schedules_of(engine).schedule(name)
    except NotFound:
        views = await all_schedules(engine)
        short = [view for view in views if view.schedule.name.rpartition(".")[2] == name]
        if len(short) != 1:
            raise unknown("schedule", name, (view.schedule.name for view in views)) from None
        return short[0]


async def items(engine: Engine, views: list[ScheduleView]) -> tuple[list[ScheduleItem], datetime]:
    now = await engine.now()
    ids = [view.last_id for view in views if view.last_id]
    results = await engine.results(ids) if ids and isinstance(engine, Results) else []
    ends = {found.id: (found.state, found.outcome) for found in results if found is not None}
    at = instant(now)
    assert at is not None
    return [_item(view, now, *ends.get(view.last_id, ("", ""))) for view in views], at


def _item(view: ScheduleView, now: float, last_state: str, last_outcome: str) -> ScheduleItem:
    spec, message = view.schedule, view.schedule.message
    error, next_at = view.error, view.next_at
    if next_at == 0.0 or error:  # nobody has worked it out yet; or that is when it is tried again
        try:
            next_at = next_after(spec, view.stood_at)
        except ScheduleInvalid as invalid:
            next_at, error = inf, error or invalid.what
    active = view.state == "active"
    if not active:  # what is due meanwhile is not sent
        next_at = inf
    return ScheduleItem(
        name=spec.name,
        when=spec.when,
        cron=spec.cron or None,
        every_s=spec.every_s or None,
        start=instant(spec.anchor_at),
        tz=spec.tz,
        task=message.task,
        chain=message.place.chain if message.place is not None else None,
        queue=message.queue,
        catch_up=spec.catch_up,
        catch_up_limit=spec.catch_up_limit,
        origin=view.origin,
        owner=view.owner,
        state=view.state,
        next_at=None if next_at == inf else instant(next_at),
        late_s=round(max(0.0, now - next_at), 3),
        last_due_at=instant(view.last_due_at),
        last_sent_at=instant(view.last_sent_at),
        last_id=view.last_id,
        last_state=last_state,
        last_outcome=last_outcome,
        sent=view.sent,
        skipped=view.skipped,
        error=error,
    )


async def detail_of(engine: Engine, name: str) -> tuple[ScheduleDetail, datetime]:
    view = await one_schedule(engine, name)
    [item], now = await items(engine, [view])
    following: list[OccurrenceItem] = []
    if item.state == "active":
        with suppress(ScheduleInvalid):  # a zone this host does not know: the item's error says so
            following = upcoming(view.schedule, now.timestamp(), 5)
    last = (await engine.results([view.last_id]))[0] if view.last_id and isinstance(engine, Results) else None
    shown = ScheduleDetail(
        **{field: getattr(item, field) for field in item.__struct_fields__},
        next=following,
        last_result=unpack(last.result) if last is not None and last.result is not None else None,
        last_error=error_item(last.failure) if last is not None else None,
    )
    return shown, now


def upcoming(spec: Schedule, after: float, number: int) -> list[OccurrenceItem]:
    from zoneinfo import ZoneInfo

    from beltline.schedules import shown

    found = list(islice(shown(spec, after), number))
    return [OccurrenceItem(schedule=spec.name, at=datetime.fromtimestamp(each.at, ZoneInfo(spec.tz)), note=each.note) for each in found]
