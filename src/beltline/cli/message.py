"""beltline message: single messages, in any state."""

import sys
from datetime import datetime
from typing import Any

import click
from msgspec import Struct

from beltline.cli.command import Group, Session, pass_session
from beltline.cli.confirming import destructive, refuse_empty
from beltline.cli.explaining import WhyItem, help_lines, why_item
from beltline.cli.names import Name
from beltline.cli.output import SCHEMA_VERSION, Column
from beltline.cli.powers import browse_of, control_of
from beltline.cli.selecting import Which, collect, which_options
from beltline.cli.shapes import MessageItem, instant, message_item
from beltline.cli.text import ago, safe, safe_lines, size, span, things
from beltline.core.codec import from_json, pack, to_json
from beltline.core.errors import Refused, UsageError
from beltline.core.lifecycle import State
from beltline.core.names import MessageId, message_id, queue_name
from beltline.core.views import MessageFilter, MessageView
from beltline.engines.protocol import Engine
from beltline.monitor.explain import explain


@click.group(cls=Group)
def message() -> None:
    """List, show, why, ready, cancel, edit, move."""


def columns(session: Session, now: datetime) -> list[Column]:
    return [
        Column("id", lambda item: item.id),
        Column("queue", lambda item: item.queue, elastic=True),
        Column("task", lambda item: item.task, elastic=True),
        Column("state", lambda item: item.state, lambda item: session.out.state(item.state)),
        Column("attempt", lambda item: item.attempt, right=True),
        Column("sent_at", lambda item: item.sent_at, lambda item: ago(item.sent_at, now)),
        Column("due_at", lambda item: item.due_at, lambda item: ago(item.due_at, now) if item.state in ("delayed", "leased") else ""),
        Column("worker", lambda item: item.worker, elastic=True),
        Column("why", lambda item: item.why or (item.outcome if item.state == "done" else ""), elastic=True),
    ]


@message.command(shape=MessageItem)
@which_options()
@click.option("--limit", type=click.IntRange(min=0), default=100, show_default=True, help="At most so many, oldest first; 0 = all.")
@pass_session
def ls(session: Session, which: Which, limit: int) -> None:
    """Messages by state, queue, task, run, group, error or age; oldest first."""

    async def look(engine: Engine) -> tuple[list[MessageView], bool, float]:
        now = await engine.now()
        views, more = await collect(engine, which.filter(now), limit)
        return views, more, now

    views, more, now = session.run(look)
    at = instant(now)
    assert at is not None
    session.out.things([message_item(view) for view in views], columns(session, at), id=lambda item: item.id, none="No message matches.")
    if more:
        session.out.note(f"There are more than {limit}: --limit 0 shows all.")


@message.command(shape=MessageItem)
@click.argument("id")
@pass_session
def show(session: Session, id: str) -> None:
    """One message: arguments, attempts, errors."""
    view, now = session.run(lambda engine: _get(engine, id))
    item = message_item(view, whole=True)
    session.out.thing(item, lambda: _lines(session, item, now), id=item.id)


async def _get(engine: Engine, id: str) -> tuple[MessageView, datetime]:
    view = await browse_of(engine).get(message_id(id))
    now = instant(await engine.now())
    assert now is not None
    return view, now


def _lines(session: Session, item: MessageItem, now: datetime) -> list[str]:
    out = session.out
    state = out.state(item.state) + (f" ({item.outcome})" if item.outcome else "")
    lines = [f"{out.paint(item.id, 'bold')}   {state}   attempt {item.attempt}", f"  task       {safe(item.task)} on queue {safe(item.queue)}"]
    if item.run:
        lines.append(f"  run        {item.run}: stage {safe(item.stage)} of {safe(item.chain)}" + (f", part {safe(item.item)}" if item.item else ""))
    lines.append(f"  sent       {ago(item.sent_at, now)} ({_iso(item.sent_at)})")
    if item.state == "delayed":
        lines.append(f"  ready      {ago(item.due_at, now)} ({_iso(item.due_at)})")
    if item.state == "leased":
        lines.append(f"  leased     by {safe(item.worker)}, lease until {_iso(item.due_at)}")
    if item.ended_at:
        lines.append(f"  ended      {ago(item.ended_at, now)} ({_iso(item.ended_at)})")
    extras = [
        f"priority {item.priority}" if item.priority else "",
        f"group {safe(item.group)}" if item.group else "",
        "blocked by its group's head" if item.blocked else "",
    ]
    if any(extras):
        lines.append(f"  order      {', '.join(extra for extra in extras if extra)}")
    flow = [
        f"tenant {item.tenant}" if item.tenant else "",
        f"sticky {item.sticky}" if item.sticky else "",
        f"unique {item.unique_key}" if item.unique_key else "",
        *(f"limit {each.limit}{f' of {each.key}' if each.key else ''}{f' ×{each.cost:g}' if each.cost != 1 else ''}" for each in item.limits),
    ]
    if any(flow):
        lines.append(f"  flow       {safe(', '.join(each for each in flow if each))}")
    if item.why:
        lines.append(f"  why        {safe(item.why)}")
    lines.append(f"  arguments  {safe(to_json(item.arguments))}  ({size(item.size_bytes)})")
    lines += [f"  header     {safe(name)}: {safe(text)}" for name, text in (item.headers or {}).items()]
    if item.progress is not None:
        lines.append(f"  progress   {safe(to_json(item.progress))}")
    for attempt in item.attempts or []:
        text = f" {safe(attempt.error.type)}: {safe(attempt.error.text)}" if attempt.error else f" {safe(attempt.note)}" if attempt.note else ""
        lines.append(
            f"  epoch {attempt.epoch:<4} {safe(attempt.outcome)} after {span(attempt.ran_s)} {ago(attempt.ended_at, now)} {safe(attempt.worker)}{text}".rstrip()
        )
    if item.error and item.error.traceback:
        lines += ["", *("  " + line for line in safe_lines(item.error.traceback.rstrip()).splitlines())]
    return lines


def _iso(at: datetime | None) -> str:
    return "" if at is None else at.isoformat(timespec="seconds").replace("+00:00", "Z")


@message.command(shape=WhyItem)
@click.argument("id")
@pass_session
def why(session: Session, id: str) -> None:
    """Why a message is not running: the rule, who holds it, when it opens, and the one change that helps. Or how it ended."""

    async def look(engine: Engine) -> WhyItem:
        view, found = await explain(engine, message_id(id))
        return why_item(view, found)

    item = session.run(look)
    session.out.thing(item, lambda: [f"{session.out.state(item.state)}: {safe(item.why)}", *help_lines(item)], id=item.id)


class Changed(Struct, frozen=True, kw_only=True):
    """`state` is the one the message is in now; null: there is no such message."""

    version: int = SCHEMA_VERSION
    id: str
    state: str | None
    reason: str = ""


@message.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID…")
@pass_session
def ready(session: Session, ids: tuple[str, ...]) -> None:
    """Make delayed messages ready now."""
    wanted = [message_id(id) for id in ids]
    moved = session.run(lambda engine: control_of(engine).hurry(wanted))
    if moved == 0:
        raise Refused(
            "None of these messages is delayed.",
            why="Only delayed messages can be made ready.",
            help="beltline message show ID says where one stands.",
        )
    session.out.thing({"version": SCHEMA_VERSION, "ready": moved}, lambda: [f"{things(moved, 'message')} ready now"])


@message.command(shape=Changed)
@click.argument("ids", nargs=-1, metavar="[ID…]")
@which_options()
@click.option("--limit", type=click.IntRange(min=0), default=1000, show_default=True, help="At most so many, oldest first; 0 = all.")
@destructive
@pass_session
def cancel(session: Session, ids: tuple[str, ...], which: Which, limit: int, yes: bool, dry_run: bool, reason: str) -> None:
    """End messages without running them. Leased ones are asked: their worker stops them."""
    refuse_empty(not ids and which.empty, "cancel")

    async def find(engine: Engine) -> list[MessageView]:
        where = which.filter(
            await engine.now(), ids=tuple(message_id(id) for id in ids), states=which.states or ("delayed", "ready", "leased", "dead")
        )
        return (await collect(engine, where, limit))[0]

    views = session.run(find)
    if not views:
        raise Refused("No live message matches.", why="Done messages cannot be cancelled.")
    alone = len(ids) == 1 and which.empty
    if not session.out.confirm(f"Cancelling {things(len(views), 'message')}{samples(views)}", yes=yes or alone, dry_run=dry_run):
        return
    wanted = [view.message.id for view in views]

    async def act(engine: Engine) -> list[State | None]:
        control = control_of(engine)
        return [state for start in range(0, len(wanted), 500) for state in await control.cancel(wanted[start : start + 500], reason=reason)]

    states = session.run(act)
    changed = [Changed(id=id, state=None if state is None else state.word, reason=reason) for id, state in zip(wanted, states, strict=True)]
    words = {"done": "cancelled or ended before", "leased": "asked; its worker stops it"}
    session.out.things(
        changed,
        [Column("id", lambda item: item.id), Column("state", lambda item: item.state or "", lambda item: words.get(item.state or "", "not found"))],
        id=lambda item: item.id,
    )


def samples(views: list[MessageView]) -> str:
    """Three of them, so that a wrong filter is seen before it acts."""
    shown = ", ".join(f"{view.message.id} ({view.message.task}, {view.state})" for view in views[:3])
    return f": {shown}" + (", …" if len(views) > 3 else "")


@message.command(shape=MessageItem)
@click.argument("id")
@click.argument("arguments", metavar="JSON|-")
@pass_session
def edit(session: Session, id: str, arguments: str) -> None:
    """Replace the arguments of a dead or delayed message: a JSON object (by name), an array (by position), or - for stdin. It keeps its id."""
    body = read_arguments(arguments)

    async def act(engine: Engine) -> tuple[MessageView, datetime]:
        await control_of(engine).edit(message_id(id), body=body)
        return await _get(engine, id)

    view, now = session.run(act)
    item = message_item(view, whole=True)
    session.out.thing(item, lambda: _lines(session, item, now), id=item.id)
    if item.state == "dead":
        session.out.note(f"It is still dead: beltline dead redrive {item.id}")


def read_arguments(text: str) -> bytes:
    """JSON arguments as a body. Raises ValueInvalid, UsageError."""
    value: Any = from_json(sys.stdin.read() if text == "-" else text)
    if isinstance(value, dict):
        return pack(value)
    if isinstance(value, list):
        return pack([value, {}])
    raise UsageError(
        "Arguments are a JSON object or array.",
        why=f"Got {to_json(value)[:80]}.",
        help='{"width": 640} names them, ["cat.jpg", 640] gives them in order.',
    )


@message.command(shape=Changed)
@click.argument("ids", nargs=-1, required=True, metavar="ID…")
@click.option("--to", "target", metavar="QUEUE", type=Name("queue"), required=True, help="Where they become ready.")
@destructive
@pass_session
def move(session: Session, ids: tuple[str, ...], target: str, yes: bool, dry_run: bool, reason: str) -> None:
    """Make dead messages ready in another queue; ids and history stay. Messages in other states stay where they are."""
    where = MessageFilter(ids=tuple(message_id(id) for id in ids), states=("dead",))
    views = session.run(lambda engine: collect(engine, where, 0))[0]
    if not views:
        raise Refused("None of these messages is dead.", why="Only dead messages can be moved; waiting ones would need two writes.")
    moved: list[MessageId] = []
    if session.out.confirm(f"Moving {things(len(views), 'message')} to {target}{samples(views)}", yes=yes or len(ids) == 1, dry_run=dry_run):
        moved = session.run(lambda engine: control_of(engine).redrive(where, limit=len(ids), queue=queue_name(target)))
    session.out.things(
        [Changed(id=id, state="ready", reason=reason) for id in moved],
        [Column("id", lambda item: item.id), Column("state", lambda item: item.state)],
        id=lambda item: item.id,
    )
