"""beltline queue: backlogs, and what may be done to a queue as a whole."""

import asyncio
from collections.abc import Sequence
from datetime import datetime

import click

from beltline.cli.command import Group, Session, pass_session
from beltline.cli.confirming import destructive
from beltline.cli.names import known, queue_argument
from beltline.cli.output import Column
from beltline.cli.powers import browse_of, control_of
from beltline.cli.shapes import QueueItem, queue_item
from beltline.cli.text import count, safe, span, things
from beltline.core.errors import Refused
from beltline.core.names import queue_name
from beltline.core.queues import QueueSpec
from beltline.core.views import MessageFilter
from beltline.engines.protocol import Engine


@click.group(cls=Group)
def queue() -> None:
    """Backlogs; pause, resume, purge, move."""


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
        + ("  paused" if item.paused else "")
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
    """Undo a pause."""
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
