"""beltline queue: backlogs, and what may be done to a queue as a whole."""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime

import click

from beltline.cli.command import Group, Session, pass_session
from beltline.cli.confirming import destructive
from beltline.cli.explaining import QueueWhyItem, queue_why_item
from beltline.cli.limit import LimitItem, changed, numbers
from beltline.cli.limit import columns as limit_columns
from beltline.cli.limit import items as limit_items
from beltline.cli.names import Name, known, queue_argument
from beltline.cli.output import Column
from beltline.cli.powers import browse_of, control_of, limits_of
from beltline.cli.selecting import Span
from beltline.cli.shapes import QueueItem, queue_item
from beltline.cli.text import count, safe, span, things
from beltline.core.errors import Refused, UsageError, ValueInvalid
from beltline.core.names import queue_name
from beltline.core.queues import QueueSpec
from beltline.core.views import MessageFilter
from beltline.engines.protocol import Engine
from beltline.monitor.queues import explain_queue


@click.group(cls=Group)
def queue() -> None:
    """Backlogs; why they do not move; pause, snooze, resume, limit, purge, move."""


def _columns(session: Session) -> list[Column]:
    def number(title: str, field: str) -> Column:
        return Column(title, lambda item: getattr(item, field), lambda item: count(getattr(item, field)), right=True)

    return [
        Column("queue", lambda item: item.name, elastic=True),
        number("ready", "ready"),
        number("delayed", "delayed"),
        number("leased", "leased"),
        number("dead", "dead"),
        number("done", "done"),
        Column("oldest_ready_s", lambda item: item.oldest_ready_s, lambda item: span(item.oldest_ready_s) if item.ready else "", right=True),
        Column(
            "state", lambda item: item.state, lambda item: session.out.state(item.state) + (f", {count(item.parked)} parked" if item.parked else "")
        ),
        Column("held", lambda item: item.held, lambda item: count(item.held) if item.held else "", right=True),
    ]


async def items(engine: Engine, names: Sequence[str] = ()) -> list[QueueItem]:
    """The named queues, or all. Raises NotFound."""
    specs = {str(spec.name): spec for spec in await browse_of(engine).queues()}
    wanted: list[QueueSpec] = [known("queue", name, specs) for name in names] or sorted(specs.values(), key=lambda spec: spec.name)
    return [queue_item(spec, await engine.counts(spec.name)) for spec in wanted]


@queue.command(shape=QueueItem)
@pass_session
def ls(session: Session) -> None:
    """All queues with their counts."""
    found = session.run(items)
    session.out.things(found, _columns(session), id=lambda item: item.name, none="No queue has been declared yet.")


@queue.command(shape=QueueItem)
@queue_argument
@pass_session
def show(session: Session, queue: str) -> None:
    """One queue: counts, numbers, what it feeds."""
    [item] = session.run(lambda engine: items(engine, [queue]))
    session.out.thing(item, lambda: _lines(session, item), id=item.name)


def _lines(session: Session, item: QueueItem) -> list[str]:
    parked = f" · parked {count(item.parked)} (no worker knows their task)" if item.parked else ""
    lines = [
        f"{session.out.paint(safe(item.name), 'bold')}   {session.out.state(item.state)}",
        f"  ready {count(item.ready)} · delayed {count(item.delayed)} · leased {count(item.leased)} · dead {count(item.dead)} · done {count(item.done)}{parked}",
        f"  oldest ready   {span(item.oldest_ready_s)}" if item.ready else "  nothing is ready",
        f"  full at        {count(item.max_backlog) if item.max_backlog is not None else 'no bound'}",
        f"  poison after   {things(item.max_deliveries, 'unanswered delivery', 'unanswered deliveries')}",
    ]
    if item.held:
        lines.append(f"  held           {count(item.held)} of the ready, which no further slot would let start: beltline queue why {safe(item.name)}")
    if item.snoozed_until is not None:
        lines.append(f"  snoozed until  {_iso(item.snoozed_until)}: beltline queue resume {safe(item.name)} ends it")
    if item.limits:
        lines.append(f"  limits         {', '.join(safe(name) for name in item.limits)}")
    if item.kill_switch is not None:
        rule = item.kill_switch
        lines.append(
            f"  kill switch    at {100 * rule['share']:g} % of at least {rule['least']:g} failing in {span(rule['window_s'])}: "
            + (f"stopped until {_iso(item.tripped_until)}" if item.tripped_until else "lets a few through" if item.trying else "well")
        )
    if item.high_water is not None:
        lines.append(f"  stages before it wait above {count(item.high_water)}")
    if item.feeds:
        lines.append(f"  hands on to    {', '.join(safe(name) for name in item.feeds)}")
    return lines


@queue.command(shape=QueueItem)
@queue_argument
@click.option("--every", "every_s", metavar="SECONDS", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="How often to look.")
@click.option("--until-empty", is_flag=True, help="End when nothing is ready, delayed or leased.")
@pass_session
def watch(session: Session, queue: str, every_s: float, until_empty: bool) -> None:
    """Counts again and again; one line (or JSON object) each time."""

    async def look(engine: Engine) -> None:
        while True:
            [item] = await items(engine, [queue])
            session.out.stream(item, lambda item=item: _line(item), id=item.name)  # type: ignore[misc]
            if until_empty and item.ready + item.delayed + item.leased == 0:
                return
            await asyncio.sleep(every_s)

    session.run(look)


def _line(item: QueueItem) -> str:
    clock = datetime.now().astimezone().strftime("%H:%M:%S")
    numbers = (
        f"ready {count(item.ready)} · delayed {count(item.delayed)} · leased {count(item.leased)} · dead {count(item.dead)} · done {count(item.done)}"
    )
    return (
        f"{clock}  {safe(item.name)}  {numbers}"
        + (f" · oldest {span(item.oldest_ready_s)}" if item.ready else "")
        + ("" if item.state == "running" else f"  {item.state}")
    )


def _iso(at: datetime | None) -> str:
    return "" if at is None else at.isoformat(timespec="seconds").replace("+00:00", "Z")


@queue.command(shape=QueueWhyItem)
@queue_argument
@pass_session
def why(session: Session, queue: str) -> None:
    """Why its messages are not running: what stops all of them, else what its oldest ready ones wait for, and what helps."""

    async def look(engine: Engine) -> QueueWhyItem:
        known("queue", queue, {str(spec.name): spec for spec in await browse_of(engine).queues()})
        return queue_why_item(await explain_queue(engine, queue_name(queue)))

    item = session.run(look)
    session.out.thing(item, lambda: _why_lines(session, item), id=item.queue)


def _why_lines(session: Session, item: QueueWhyItem) -> list[str]:
    lines = [f"{session.out.paint(safe(item.queue), 'bold')}   {safe(item.summary)}"]
    if not item.reasons:
        lines.append("  nothing is ready, and nothing stops the queue")
    for reason in item.reasons:
        many = f"{count(reason.messages)} of the {item.looked_at} oldest" if reason.sampled else count(reason.messages)
        many = "the queue" if not reason.messages else many
        lines.append(f"  {many}: {safe(reason.why)}")
        if reason.example:
            lines.append(f"    for example {reason.example}")
        if reason.help:
            lines.append(f"    help: {safe(reason.help)}" + ("" if reason.more_workers else "   (adding workers will not help)"))
    return lines


class Snoozed(QueueItem, frozen=True, kw_only=True):
    """The queue afterwards."""


@queue.command(shape=Snoozed)
@queue_argument
@click.argument("time", type=Span())
@pass_session
def snooze(session: Session, queue: str, time: float) -> None:
    """Let no worker receive from it for a TIME such as 90, 10m, 2h. What is running finishes; resume ends it earlier; a longer snooze stays."""

    async def act(engine: Engine) -> tuple[QueueItem, datetime | None]:
        [before] = await items(engine, [queue])
        await limits_of(engine).snooze(queue_name(before.name), seconds=time)
        return (await items(engine, [queue]))[0], before.snoozed_until

    if time <= 0:
        raise ValueInvalid(name="the time", value=time, allowed=f"more than 0 seconds; what ends a snooze is: beltline queue resume {queue}")
    item, before = session.run(act)
    if before is not None and item.snoozed_until == before:
        session.out.note(f"It was snoozed for longer already; that stays. beltline queue resume {item.name} ends it.")
    beside = "" if item.state == "snoozed" else f" (and {session.out.state(item.state)})"
    session.out.thing(
        item,
        lambda: [
            f"{safe(item.name)}: {session.out.state('snoozed')} until {_iso(item.snoozed_until)}{beside}, {things(item.ready, 'message')} ready"
        ],
        id=item.name,
    )


@queue.command(shape=LimitItem)
@queue_argument
@click.option("--limit", "name", metavar="LIMIT", type=Name("limit"), help="Which one, where the queue names several.")
@numbers
@click.option("--reset", is_flag=True, help="Back to what the code says.")
@pass_session
def limit(
    session: Session, queue: str, name: str | None, rate_text: str | None, burst_text: str | None, concurrency_text: str | None, reset: bool
) -> None:
    """The limits that every start in the queue uses up; with numbers, change one now, as beltline limit set does."""
    said = (rate_text, burst_text, concurrency_text)
    if reset and any(said):
        raise UsageError("--reset takes no numbers.", help="Reset it first, then set them.")

    async def act(engine: Engine) -> list[LimitItem]:
        spec = known("queue", queue, {str(spec.name): spec for spec in await browse_of(engine).queues()})
        mine = {each: each for each in spec.limits}
        chosen = list(mine) if name is None else [known("limit", name, mine)]
        if not (reset or any(said)):
            return [item for item in await limit_items(engine) if item.name in chosen]
        if len(chosen) != 1:
            raise _not_one(queue, chosen)
        power = limits_of(engine)
        views = {view.name: view for view in await power.limits()}
        await (power.reset_limit(chosen[0]) if reset else power.set_limit(changed(chosen[0], views.get(chosen[0]), *said)))
        found = [item for item in await limit_items(engine) if item.name in mine]
        others = [each for item in found if item.name == chosen[0] for each in item.queues if each != queue]
        if others:
            session.out.note(f"{chosen[0]} holds for {', '.join(others)} as well.")
        return found

    found = session.run(act)
    none = f"No limit holds for the whole of {queue}. In code: app.queue({queue!r}, limits=[…]); in beltline.toml: queues.{queue}.limits = […]"
    session.out.things(found, limit_columns(), id=lambda item: item.name, none=none)


def _not_one(queue: str, names: Iterable[str]) -> UsageError:
    given = list(names)
    if given:
        return UsageError(f"Queue {queue!r} names {len(given)} limits.", why=f"They are {', '.join(given)}.", help=f"Say which: --limit {given[0]}")
    return UsageError(
        f"Queue {queue!r} names no limit.",
        why="What a queue is bound by is declared, its numbers can be changed at any time.",
        help=f"In code: app.limit({queue!r}) and app.queue({queue!r}, limits=[{queue!r}]); then this command sets its numbers.",
    )


@queue.command(shape=QueueItem)
@queue_argument
@pass_session
def pause(session: Session, queue: str) -> None:
    """Let no worker receive from it. What is running finishes, sends are taken."""
    _switch(session, queue, paused=True)


@queue.command(shape=QueueItem)
@queue_argument
@pass_session
def resume(session: Session, queue: str) -> None:
    """Undo a pause, end a snooze, close a kill switch that has tripped."""
    _switch(session, queue, paused=False)


def _switch(session: Session, name: str, *, paused: bool) -> None:
    async def switch(engine: Engine) -> QueueItem:
        [before] = await items(engine, [name])
        control = control_of(engine)
        await (control.pause if paused else control.resume)(queue_name(before.name))
        return (await items(engine, [name]))[0]

    item = session.run(switch)
    session.out.thing(item, lambda: [f"{safe(item.name)}: {session.out.state(item.state)}, {things(item.ready, 'message')} ready"], id=item.name)


class Purged(QueueItem, frozen=True, kw_only=True):
    """The queue afterwards, and how many messages were deleted."""

    purged: int
    reason: str = ""


@queue.command(shape=Purged)
@queue_argument
@destructive
@pass_session
def purge(session: Session, queue: str, yes: bool, dry_run: bool, reason: str) -> None:
    """Delete every message of a queue that is not leased or done, its dead letters too."""

    async def look(engine: Engine) -> QueueItem:
        return (await items(engine, [queue]))[0]

    item = session.run(look)
    total = item.ready + item.delayed + item.dead
    if total == 0:
        raise Refused(f"Queue {item.name!r} has nothing to purge.", why=f"{things(item.leased, 'message')} leased; those are left alone.")
    what = f"Deleting {things(total, 'message')} of {item.name} ({count(item.ready)} ready, {count(item.delayed)} delayed, {count(item.dead)} dead)"
    purged = 0
    if session.out.confirm(what, yes=yes, dry_run=dry_run):
        purged = session.run(lambda engine: engine.purge(queue_name(item.name)))
        item = session.run(look)
    done = Purged(**{field: getattr(item, field) for field in item.__struct_fields__}, purged=purged, reason=reason)
    session.out.thing(
        done,
        lambda: [] if dry_run else [f"{safe(item.name)}: {things(purged, 'message')} deleted" + (f" ({safe(reason)})" if reason else "")],
        id=item.name,
    )


class Moved(QueueItem, frozen=True, kw_only=True):
    """The queue the dead letters came from, afterwards; `moved`: ids that are ready in `to` now."""

    to: str
    moved: list[str]
    reason: str = ""


@queue.command(shape=Moved)
@queue_argument
@click.option("--to", "target", metavar="QUEUE", required=True, help="Where they become ready.")
@click.option("--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="At most so many, oldest first.")
@destructive
@pass_session
def move(session: Session, queue: str, target: str, limit: int, yes: bool, dry_run: bool, reason: str) -> None:
    """Make the dead letters of one queue ready in another; ids and history stay.

    Messages that still wait are not moved: no engine of this version can do that in one write. Pause the queue, or cancel and send them again.
    """

    async def look(engine: Engine) -> QueueItem:
        [item, _] = await items(engine, [queue, target])
        return item

    item = session.run(look)
    if item.dead == 0:
        raise Refused(f"Queue {item.name!r} has no dead letters.", why="Only dead letters are moved.")
    moved: list[str] = []
    if session.out.confirm(f"Moving {things(min(item.dead, limit), 'dead letter')} of {item.name} to {target}", yes=yes, dry_run=dry_run):
        where = MessageFilter(queues=(item.name,), states=("dead",))
        moved = list(session.run(lambda engine: control_of(engine).redrive(where, limit=limit, queue=queue_name(target))))
        item = session.run(look)
    done = Moved(**{field: getattr(item, field) for field in item.__struct_fields__}, to=target, moved=moved, reason=reason)
    session.out.thing(done, lambda: [] if dry_run else [f"{things(len(moved), 'message')} ready in {safe(target)}"], id=target)
