"""beltline fleet: workers and what they serve, from their heartbeats; how many slots each queue has, and why."""

from datetime import datetime

import click

from beltline.cli import sizes
from beltline.cli.command import Group, Session, pass_session
from beltline.cli.names import Name, queue_argument, unknown
from beltline.cli.output import Column, Form
from beltline.cli.powers import fleet_of
from beltline.cli.shapes import WorkerItem, instant, worker_item
from beltline.cli.text import ago, safe, span, things
from beltline.cli.text import size as size_text
from beltline.engines.protocol import Engine


@click.group(cls=Group)
def fleet() -> None:
    """Workers and what they serve; how many slots each queue has, and why."""


async def _workers(engine: Engine) -> tuple[list[WorkerItem], datetime]:
    views = await fleet_of(engine).workers()
    now = instant(await engine.now())
    assert now is not None
    return sorted((worker_item(view) for view in views), key=lambda item: (item.host, item.pid)), now


def _queues(item: WorkerItem) -> str:
    return safe(" ".join(f"{name}:{slots}" for name, slots in item.queues.items()))


@fleet.command(shape=WorkerItem)
@pass_session
def ls(session: Session) -> None:
    """Every worker that has shown a sign of life."""
    found, now = session.run(_workers)
    columns = [
        Column("worker", lambda item: item.id),
        Column("host", lambda item: item.host, elastic=True),
        Column("pid", lambda item: item.pid, right=True),
        Column("state", lambda item: item.state, lambda item: session.out.state(item.state)),
        Column("started_at", lambda item: item.started_at, lambda item: ago(item.started_at, now)),
        Column("heartbeat_age_s", lambda item: item.heartbeat_age_s, lambda item: span(item.heartbeat_age_s), right=True),
        Column("queues", lambda item: item.queues, _queues, elastic=True),
    ]
    session.out.things(found, columns, id=lambda item: item.id, none="No worker is up. Start one: beltline worker tasks:app")


@fleet.command(shape=WorkerItem)
@click.argument("worker", type=Name("worker"))
@pass_session
def show(session: Session, worker: str) -> None:
    """One worker: slots, tasks, runners."""
    found, now = session.run(_workers)
    chosen = [item for item in found if item.id == worker] or [item for item in found if item.id.startswith(worker) or item.host == worker]
    if len(chosen) != 1:
        raise unknown("worker", worker, (item.id for item in found))
    [item] = chosen
    session.out.thing(item, lambda: _lines(session, item, now), id=item.id)


@fleet.command("decisions", shape=sizes.DecisionItem)
@click.argument("queue", type=Name("queue"), required=False)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
@pass_session
def decisions(session: Session, queue: str | None, limit: int) -> None:
    """Why fleets have the size they have, newest first: beltline fleet decisions resize"""

    async def work(engine: Engine) -> tuple[list[sizes.DecisionItem], datetime]:
        now = instant(await engine.now())
        assert now is not None
        return await sizes.decisions(engine, queue, limit), now

    found, now = session.run(work)
    columns = [
        Column("at", lambda item: item.at, lambda item: ago(item.at, now)),
        Column("queue", lambda item: item.queue, elastic=True),
        Column("before", lambda item: item.slots_before, right=True),
        Column("slots", lambda item: item.slots, right=True),
        Column("term", lambda item: item.term),
        Column("limit", lambda item: item.limit, lambda item: item.limit or ""),
        Column("reason", lambda item: item.reason, lambda item: safe(item.reason), elastic=True),
        Column("worker", lambda item: item.worker, lambda item: safe(item.worker), elastic=True),
    ]
    none = "Nothing has been decided yet. Slots are a range where a worker says so: beltline worker -q resize:2..8"
    session.out.things(found, columns, id=lambda item: item.queue, none=none)


@fleet.command("size", shape=sizes.SizeItem)
@queue_argument
@click.argument("range_", metavar="[2..8|auto]", required=False)
@pass_session
def size(session: Session, queue: str, range_: str | None) -> None:
    """Show the size of a queue's fleet, or say what it may be: beltline fleet size resize 2..8

    The range is for all its workers together and wins over what they were started with, until: beltline fleet size resize auto
    """

    async def work(engine: Engine) -> tuple[sizes.SizeItem, bool]:
        if range_ is not None:
            await sizes.order(engine, queue, range_)
        return await sizes.show(engine, queue)

    item, changes = session.run(work)
    if range_ is not None and range_ != "auto" and not changes:
        session.out.warn(f"no live worker of {queue} has a range: it is used as soon as one is started with -q {queue}:2..8")
    session.out.thing(item, lambda: _size_lines(session, item, changes), id=item.queue)


def _size_lines(session: Session, item: sizes.SizeItem, changes: bool) -> list[str]:
    ordered = (
        f"{item.ordered} in the whole fleet (an operator said so; beltline fleet size {item.queue} auto)"
        if item.ordered
        else "as the workers were started"
        if changes or not item.workers
        else f"none: its workers have a fixed number of slots, whatever the load and the target; start them with -q {item.queue}:2..8"
    )
    woken = " (woken by a message; it goes when none has come for a while)" if changes and item.slots_now and not item.slots else ""
    lines = [
        f"{session.out.paint(safe(item.queue), 'bold')}   {things(item.slots, 'slot')} decided, {item.slots_now} there on {things(item.workers, 'worker')}{woken}",
        f"  range      {safe(ordered)}",
    ]
    if item.target_s is not None:
        lines.append(f"  target     started within {span(item.target_s)}")
    return [*lines, f"  why        {safe(item.reason) or 'nothing has been decided yet'}"]


@fleet.command("desired", shape=sizes.DesiredItem)
@click.argument("queues", metavar="[QUEUE]...", nargs=-1, type=Name("queue"))
@pass_session
def desired(session: Session, queues: tuple[str, ...]) -> None:
    """How many slots and workers there should be, for another autoscaler: beltline fleet desired resize --json

    With one QUEUE the JSON is an object, else an array. It is the number the workers follow; where none is up, it is decided now.
    """
    found = session.run(lambda engine: sizes.wanted(engine, queues))
    columns = [
        Column("queue", lambda item: item.queue, elastic=True),
        Column("desired_slots", lambda item: item.desired_slots, right=True),
        Column("desired_workers", lambda item: item.desired_workers, right=True),
        Column("slots_each", lambda item: item.slots_each, right=True),
        Column("reason", lambda item: item.reason, lambda item: safe(item.reason), elastic=True),
    ]
    if len(queues) == 1 and session.out.form is Form.JSON:
        session.out.json(found[0])
    else:
        session.out.things(found, columns, id=lambda item: item.queue, none="No queue has been declared yet.")


def _lines(session: Session, item: WorkerItem, now: datetime) -> list[str]:
    lines = [
        f"{session.out.paint(safe(item.id), 'bold')}   {session.out.state(item.state)}   pid {item.pid} on {safe(item.host)}",
        f"  started    {ago(item.started_at, now)}, heartbeat {span(item.heartbeat_age_s)} ago",
        f"  queues     {_queues(item)}",
        f"  tasks      {safe(', '.join(item.tasks)) or 'none'}",
    ]
    for name, value in item.detail.items():
        several = value if isinstance(value, list) and value and all(isinstance(each, dict) for each in value) else [value]
        lines += [f"  {safe(name.removesuffix('_s')):<10} {safe(text)}" for each in several if (text := _words(name, each))]
    return lines


def _words(name: str, value: object) -> str:
    """A detail of a heartbeat, whichever version wrote it: units are at the end of names. "" = nothing to tell."""
    match value:
        case None | False | "":
            return ""
        case dict():
            told = ((key, _words(key, each)) for key, each in value.items())
            return ", ".join(key if text == "yes" else f"{key.removesuffix('_bytes').removesuffix('_s')} {text}" for key, text in told if text)
        case list():
            return " ".join(_words(name, each) or "0" for each in value)
        case True:
            return "yes"
        case int() | float() if name.endswith("_bytes"):
            return size_text(value)
        case int() | float() if name.endswith("_s"):
            return span(value)
        case int() | float():
            return f"{value:.4g}" if isinstance(value, float) else str(value)
        case _:
            return str(value)
