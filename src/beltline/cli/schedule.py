"""beltline schedule: what is sent again and again, when it is next, and what became of the last one."""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import click
from msgspec import structs

from beltline.cli.command import Group, Session, check_reachable, pass_session
from beltline.cli.confirming import destructive
from beltline.cli.names import Name
from beltline.cli.output import Column
from beltline.cli.powers import browse_of
from beltline.cli.scheduling import (
    OccurrenceItem,
    ScheduleDetail,
    ScheduleItem,
    TriggeredItem,
    all_schedules,
    detail_of,
    items,
    one_schedule,
    upcoming,
)
from beltline.cli.selecting import Span
from beltline.cli.send import Moment, Send, find, given_arguments, without_code
from beltline.cli.shapes import instant
from beltline.cli.text import ago, clip, count, safe, safe_json, span
from beltline.core.codec import to_json
from beltline.core.errors import EngineUnavailable, ScheduleInvalid, UsageError
from beltline.core.message import Message
from beltline.core.names import QueueName, TaskName, message_id
from beltline.core.schedule import CATCH_UP, CATCH_UP_LIMIT, MAX_CATCH_UP, NO_ID, Schedule
from beltline.engines.protocol import Engine

F = TypeVar("F", bound=Callable[..., Any])
LATE_S = 10.0  # behind its time: nobody sends
APART_S = 60.0  # between the store's time and ours: worth a word
LAST_YEAR = 9990
GIVEN = "given"  # the name of an expression that is only looked at
NOTHING = Message(id=NO_ID, queue=QueueName("none"), task=TaskName("none"), body=b"")  # for an expression that is only looked at


@click.group(cls=Group)
def schedule() -> None:
    """What is sent again and again: cron and intervals."""


def _name_argument(function: F) -> F:
    return click.argument("name", metavar="SCHEDULE", type=Name("schedule"))(function)


# ------------------------------------------------------------------------------------------------------------------ looking
@schedule.command(shape=ScheduleItem)
@pass_session
def ls(session: Session) -> None:
    """All schedules: when they are next, and what became of the last occurrence."""

    async def look(engine: Engine) -> tuple[list[ScheduleItem], datetime]:
        return await items(engine, await all_schedules(engine))

    found, now = session.run(look)
    columns = [
        Column("schedule", lambda item: item.name, elastic=True),
        Column("when", lambda item: item.when),
        Column("tz", lambda item: item.tz),
        Column("next_at", lambda item: item.next_at, lambda item: _next(session, item, now)),
        Column("last_due_at", lambda item: item.last_due_at, lambda item: _last(session, item, now)),
        Column("state", lambda item: item.state, lambda item: session.out.state(item.state)),
        Column("sent", lambda item: item.sent, lambda item: count(item.sent), right=True),
        Column("skipped", lambda item: item.skipped, lambda item: count(item.skipped) if item.skipped else "", right=True),
        Column("error", lambda item: item.error, lambda item: safe(item.error), elastic=True),
    ]
    session.out.things(found, columns, id=lambda item: item.name, none="No schedule. Declare one with @app.schedule, or: beltline schedule add")
    _warn(session, found, now)


def _warn(session: Session, found: list[ScheduleItem], now: datetime) -> None:
    late = [item for item in found if item.late_s > LATE_S and not item.error]
    if late:
        session.out.warn(
            f"{late[0].name} has been due for {span(late[0].late_s)}: no scheduler is running. Every worker has one; without a worker: beltline upkeep"
        )
    apart_s = now.timestamp() - time.time()
    if abs(apart_s) > APART_S:
        ahead = "ahead of" if apart_s > 0 else "behind"
        session.out.warn(f"the store's time is {span(abs(apart_s))} {ahead} this host's, and schedules go by the store's: docs/howto/schedules.md")


def _next(session: Session, item: ScheduleItem, now: datetime) -> str:
    if item.late_s > LATE_S:
        return session.out.paint(f"late {span(item.late_s)}", "red")
    return "now" if item.late_s else ago(item.next_at, now)


def _last(session: Session, item: ScheduleItem, now: datetime) -> str:
    if item.last_due_at is None:
        return ""
    word = item.last_outcome if item.last_outcome not in ("", "succeeded") else item.last_state
    return f"{ago(item.last_due_at, now)}  {session.out.state(word)}".rstrip()


@schedule.command(shape=ScheduleDetail)
@_name_argument
@pass_session
def show(session: Session, name: str) -> None:
    """One schedule: what it sends, when it is next, and what became of the last one."""
    item, now = session.run(lambda engine: detail_of(engine, name))
    session.out.thing(item, lambda: _lines(session, item, now), id=item.name)
    _warn(session, [item], now)


def _lines(session: Session, item: ScheduleDetail, now: datetime) -> list[str]:
    out = session.out
    what = f"chain {safe(item.chain)}" if item.chain else f"task {safe(item.task)}"
    lines = [
        f"{out.paint(safe(item.name), 'bold')}   {out.state(item.state)}",
        f"  when       {safe(item.when)}   {safe(item.tz)}" + (f", counted from {item.start.isoformat()}" if item.start else ""),
        f"  sends      {what} to queue {safe(item.queue)}",
        f"  catch-up   {item.catch_up}" + (f", at most {item.catch_up_limit}" if item.catch_up == "all" else ""),
        f"  declared   {'by the code of ' + safe(item.owner or 'an app') if item.origin == 'code' else 'at run time'}",
        f"  sent       {count(item.sent)}, skipped {count(item.skipped)}",
    ]
    if item.last_due_at is not None:
        lines.append(f"  last       {_last(session, item, now)}   message {item.last_id}")
    if item.last_result is not None:
        lines.append(f"  result     {clip(safe_json(to_json(item.last_result)), max(40, out.columns - 13))}")
    if item.last_error is not None:
        lines.append(f"  failed     {clip(safe(f'{item.last_error.type}: {item.last_error.text}'), max(40, out.columns - 13))}")
    if item.error:
        lines.append(f"  error      {safe(item.error)}")
    if item.state == "left":
        lines.append("  No code declares it any more, so it is not sent. Remove it: beltline schedule rm " + safe(item.name))
    if item.next:
        lines += ["  next", *(f"    {_shown(each, now)}" for each in item.next)]
    return lines


def _shown(each: OccurrenceItem, now: datetime) -> str:
    return f"{_clock(each.at)}   {ago(each.at, now)}" + (f"   {each.note}" if each.note else "")


def _clock(at: datetime) -> str:
    return f"{at:%a %Y-%m-%d %H:%M}{f':{at:%S}' if at.second else ''} {at:%z}"


# -------------------------------------------------------------------------------------------------------------------- timing
def _timing(function: F) -> F:
    """--cron, --every, --start, --tz."""
    options = (
        click.option("--cron", metavar="EXPRESSION", help='Five fields in quotes, "30 2 * * *", or @daily and its like.'),
        click.option("--every", type=Span(), metavar="TIME", help="At every multiple of 90, 10m, 2h, 7d."),
        click.option("--start", type=Moment(), metavar="WHEN", help="What the multiples are counted from.  [1970-01-01 UTC]"),
        click.option("--tz", default="UTC", show_default=True, metavar="ZONE", help="The time zone of --cron, for example Europe/Berlin."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@schedule.command(name="next", shape=OccurrenceItem)
@click.argument("name", metavar="[SCHEDULE]", type=Name("schedule"), required=False)
@click.option("--count", "-n", "number", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many.")
@click.option("--after", type=Moment(), metavar="WHEN", help="Behind this instant.  [now]")
@_timing
@pass_session
def next_(session: Session, /, name: str | None, number: int, after: datetime | None, cron: str | None, every: float | None, **more: Any) -> None:
    """When a schedule is due next, or what an expression means; changes of the clock are marked. JSON of an expression has an empty `schedule`.

    \b
    beltline schedule next nightly -n 10
    beltline schedule next --cron "30 2 * * *" --tz Europe/Berlin --after 2026-10-24
    """
    if name is None:
        if cron is None and every is None:
            raise UsageError("Nothing to look at.", help="Name a schedule, or give --cron or --every.")
        try:
            spec = _made(GIVEN, NOTHING, cron, every, more)
        except ScheduleInvalid as error:
            error.what = error.what.removeprefix(f"Schedule {GIVEN!r}: ")  # it has no name to speak of
            raise
        now = datetime.now().astimezone()
    else:
        if cron is not None or every is not None:
            raise UsageError("Name a schedule, or give --cron or --every, not both.")
        spec, now = session.run(lambda engine: _spec_and_now(engine, name))
    if after is not None and after.year > LAST_YEAR:
        raise UsageError(
            f"--after {after:%Y-%m-%d} is too far ahead.", why=f"Dates end with the year 9999; up to {LAST_YEAR} there is room for what follows."
        )
    found = upcoming(spec, (after or now).timestamp(), number)
    if name is None:
        found = [structs.replace(each, schedule="") for each in found]
    columns = [
        Column("at", lambda item: item.at.isoformat(), lambda item: _clock(item.at)),
        Column("in", lambda item: ago(item.at, now)),
        Column("note", lambda item: item.note, elastic=True),
    ]
    session.out.things(found, columns, id=lambda item: item.at.isoformat(), none="It is never due again.")


async def _spec_and_now(engine: Engine, name: str) -> tuple[Schedule, datetime]:
    view, now = await one_schedule(engine, name), instant(await engine.now())
    assert now is not None
    return view.schedule, now


def _made(name: str, message: Message, cron: str | None, every: float | None, more: dict[str, Any], **rest: Any) -> Schedule:
    from beltline.core.schedule import schedule

    if (cron is None) == (every is None):
        raise UsageError("Say when it is due: by --cron or by --every, and not both.", help='--cron "30 2 * * *" --tz Europe/Berlin, or --every 10m')
    if cron is not None and more["start"] is not None:
        raise UsageError("--start is for --every: a cron expression says itself when it is due.")
    return schedule(name, message, cron=cron, every=every, start=more["start"], tz=more["tz"], **rest)


@schedule.command(cls=Send, shape=ScheduleItem)
@click.argument("name", metavar="SCHEDULE")
@click.argument("target", metavar="TASK|CHAIN", type=Name("task", "chain"))
@click.argument("args", nargs=-1, metavar="[ARGS…]")
@_timing
@click.option(
    "--catch-up", type=click.Choice(CATCH_UP), default="once", show_default=True, help="After an outage: the newest missed one, all, or none."
)
@click.option(
    "--limit", type=click.IntRange(1, MAX_CATCH_UP), default=CATCH_UP_LIMIT, show_default=True, help="With --catch-up all: at most so many."
)
@click.option("--replace", is_flag=True, help="Change the one of this name.")
@click.option("--app", "app_name", metavar="MODULE:APP", help="Where the task's code is; without it arguments travel as text.")
@click.option("--queue", metavar="QUEUE", type=Name("queue"), help="Its queue, when the code is not here (else the last part of the task's name).")
@click.option("--arg", "named", multiple=True, metavar="NAME=VALUE", help="A named argument (again for more).")
@click.option("--arguments", type=click.Choice(["-"]), hidden=True)
@click.option("--priority", type=click.IntRange(-100, 100), help="Larger first.")
@click.option("--expires", type=Span(), metavar="TIME", help="Not worth running after this time.")
@pass_session
def add(
    session: Session,
    /,
    name: str,
    target: str,
    args: tuple[str, ...],
    cron: str | None,
    every: float | None,
    app_name: str | None,
    queue: str | None,
    **more: Any,
) -> None:
    """Send to a task or into a chain again and again, from now on.

    \b
    beltline schedule add nightly report weekly --cron "30 2 * * MON" --tz Europe/Berlin
    beltline schedule add mailbox poll --every 5m --catch-up skip
    --json - reads the arguments as JSON and prints JSON.
    """
    from beltline.schedules import message_of, put, schedules_of

    session.set_flags(app=app_name)
    if more["arguments"] is not None and (args or more["named"]):
        raise UsageError("Arguments come from one place.", help="Give them as ARGS, or by --json -.")
    app = session.app() if session.has_app else without_code(session)
    found = find(app, target, queue, known=session.has_app)
    chosen = {option: more[option] for option in ("priority", "expires") if more[option] is not None}
    sendable = found.with_options(**chosen) if chosen else found
    positional, named = given_arguments(found, args, more)
    spec = _made(name, message_of(sendable.call(*positional, **named)), cron, every, more, catch_up=more["catch_up"], catch_up_limit=more["limit"])
    check_reachable(app.url, create=True)
    declared: set[str] = set()

    async def write(engine: Engine) -> tuple[ScheduleItem, datetime]:
        view = await put(schedules_of(engine), spec, replace=more["replace"])
        declared.update(each.name for each in await browse_of(engine).queues())
        [item], now = await items(engine, [view])
        return item, now

    item, now = session.run(write, app=app, create=True)
    if item.queue not in declared:
        session.out.warn(f"queue {item.queue} is not declared here yet: nothing is sent until a worker of it has been started once")
    session.out.thing(item, lambda: [f"{safe(item.name)}: {safe(item.when)} {safe(item.tz)}, first {ago(item.next_at, now)}"], id=item.name)


@schedule.command(shape=TriggeredItem)
@_name_argument
@click.option("--id", "id_", metavar="UUID", help="An id of your own; repeating it is safe.")
@pass_session
def trigger(session: Session, name: str, id_: str | None) -> None:
    """Send it now, once, whether or not it is paused. Its occurrences come as before."""
    from beltline.schedules import trigger as send_now
    from beltline.sending import new_id

    id = new_id() if id_ is None else message_id(id_)

    async def send(engine: Engine) -> TriggeredItem:
        view = await one_schedule(engine, name)
        sent = await send_now(engine, view.schedule.name, id)
        return TriggeredItem(id=sent, schedule=view.schedule.name, queue=view.schedule.message.queue)

    try:
        item = session.run(send)
    except EngineUnavailable as error:
        if error.effect == "unknown":
            session.out.lines([id])
            error.help = f"Repeat the same command with --id {id}."
        raise
    session.out.thing(item, lambda: [item.id], id=item.id)


@schedule.command(shape=ScheduleItem)
@_name_argument
@pass_session
def pause(session: Session, name: str) -> None:
    """Send nothing until it is resumed, whatever the code declares meanwhile."""
    _switch(session, name, paused=True)


@schedule.command(shape=ScheduleItem)
@_name_argument
@pass_session
def resume(session: Session, name: str) -> None:
    """From the next occurrence on; what was due while it was paused is not sent."""
    _switch(session, name, paused=False)


def _switch(session: Session, name: str, *, paused: bool) -> None:
    from beltline.schedules import schedules_of

    async def switch(engine: Engine) -> tuple[ScheduleItem, datetime]:
        view = await schedules_of(engine).pause_schedule((await one_schedule(engine, name)).schedule.name, paused)
        [item], now = await items(engine, [view])
        return item, now

    item, now = session.run(switch)
    when = "" if item.next_at is None else f", next {ago(item.next_at, now)}"
    session.out.thing(item, lambda: [f"{safe(item.name)}: {session.out.state(item.state)}{when}"], id=item.name)


class RemovedItem(ScheduleItem, frozen=True, kw_only=True):
    removed: bool
    reason: str = ""


@schedule.command(shape=RemovedItem)
@_name_argument
@destructive
@pass_session
def rm(session: Session, name: str, yes: bool, dry_run: bool, reason: str) -> None:
    """Remove a schedule; what it has sent stays. One that code declares comes back with the next worker: pause it, or take it out of the code."""
    from beltline.schedules import schedules_of

    async def look(engine: Engine) -> ScheduleItem:
        [item], _ = await items(engine, [await one_schedule(engine, name)])
        return item

    item = session.run(look)
    removed = session.out.confirm(f"Removing schedule {item.name} ({item.when} {item.tz}, sent {count(item.sent)})", yes=yes, dry_run=dry_run)
    if removed:
        session.run(lambda engine: schedules_of(engine).remove_schedule(item.name))
        if item.origin == "code" and item.state != "left":
            session.out.warn(f"{item.name} is declared in code: the next worker of {item.owner or 'its app'} declares it again")
    gone = RemovedItem(**{field: getattr(item, field) for field in item.__struct_fields__}, removed=removed, reason=reason)
    session.out.thing(gone, lambda: [f"{safe(gone.name)}: removed" + (f" ({safe(reason)})" if reason else "")] if removed else [], id=gone.name)
