"""beltline dead: what was given up, why, and the way back."""

import asyncio
import re
import time
from datetime import datetime
from typing import Any

import click
from msgspec import Struct

from beltline.cli.command import Group, Session, pass_session
from beltline.cli.confirming import destructive, refuse_empty
from beltline.cli.message import columns as message_columns
from beltline.cli.message import edit as edit_message
from beltline.cli.message import samples
from beltline.cli.message import show as show_message
from beltline.cli.names import Name
from beltline.cli.output import SCHEMA_VERSION, Column
from beltline.cli.powers import browse_of, control_of
from beltline.cli.selecting import Which, collect, only_dead, which_options
from beltline.cli.shapes import MessageItem, instant, last_failure, message_item
from beltline.cli.text import ago, count, things
from beltline.core.errors import Refused, UsageError
from beltline.core.names import MessageId, message_id, queue_name
from beltline.core.views import MessageFilter, MessageView
from beltline.engines.protocol import Engine

TICK_S = 0.5  # how often a rate-limited redrive lets a few through


@click.group(cls=Group)
def dead() -> None:
    """What was given up, by error; redrive, edit, delete."""


class KindItem(Struct, frozen=True, kw_only=True):
    """Dead letters that died of the same: type of the exception and its text with numbers, ids and paths masked."""

    version: int = SCHEMA_VERSION
    queue: str
    error: str
    text: str
    count: int
    sample: str
    first_at: datetime | None
    last_at: datetime | None


@dead.command(shape=MessageItem)
@which_options(states=False)
@click.option("--by", type=click.Choice(["message", "error"]), default="message", show_default=True, help="One line each, or one per kind of error.")
@click.option("--limit", type=click.IntRange(min=0), default=0, help="At most so many messages; 0 = all.")
@pass_session
def ls(session: Session, which: Which, by: str, limit: int) -> None:
    """Dead letters, oldest first; with --by error one line per kind (JSON: queue, error, text, count, sample, first_at, last_at)."""

    async def look(engine: Engine) -> tuple[list[MessageView], float]:
        now = await engine.now()
        return await with_failures(engine, (await collect(engine, only_dead(which.filter(now)), limit))[0]), now

    views, now_s = session.run(look)
    now = instant(now_s)
    assert now is not None
    if by == "error":
        session.out.things(kinds(views), _kind_columns(now), id=lambda kind: kind.sample, none="Nothing is dead.")
    else:
        session.out.things([message_item(view) for view in views], _columns(session, now), id=lambda item: item.id, none="Nothing is dead.")


def _columns(session: Session, now: datetime) -> list[Column]:
    shared = {column.title: column for column in message_columns(session, now)}
    return [
        shared["id"],
        shared["queue"],
        Column("attempts", lambda item: item.failed + item.lost, right=True),
        Column("died_at", lambda item: item.ended_at, lambda item: ago(item.ended_at, now)),
        Column("error", lambda item: f"{item.error.type}: {item.error.text}" if item.error else item.why, elastic=True),
    ]


def _kind_columns(now: datetime) -> list[Column]:
    return [
        Column("count", lambda kind: kind.count, lambda kind: count(kind.count), right=True),
        Column("error", lambda kind: kind.error, elastic=True),
        Column("text", lambda kind: kind.text, elastic=True),
        Column("queue", lambda kind: kind.queue, elastic=True),
        Column("last_at", lambda kind: kind.last_at, lambda kind: ago(kind.last_at, now)),
        Column("sample", lambda kind: kind.sample),
    ]


async def with_failures(engine: Engine, views: list[MessageView]) -> list[MessageView]:
    """Views with their attempts: an engine may leave the attempts out of a page."""
    browse = browse_of(engine)
    return [view if view.attempts else await browse.get(view.message.id) for view in views]


def kinds(views: list[MessageView]) -> list[KindItem]:
    """Most frequent first."""
    groups: dict[tuple[str, str, str], list[MessageView]] = {}
    for view in views:
        failure = last_failure(view)
        key = (view.message.queue, failure.type if failure else "", mask(failure.text if failure else view.why))
        groups.setdefault(key, []).append(view)
    found = [
        KindItem(
            queue=queue,
            error=error,
            text=text,
            count=len(members),
            sample=members[0].message.id,
            first_at=instant(min(view.ended_at for view in members)),
            last_at=instant(max(view.ended_at for view in members)),
        )
        for (queue, error, text), members in groups.items()
    ]
    return sorted(found, key=lambda kind: (-kind.count, kind.queue, kind.error))


_MASKS = (
    (re.compile(r"""(['"])[^'"]*/[^'"]*\1"""), "<path>"),
    (re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>"), "<…>"),
    (re.compile(r"\b[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}\b"), "<id>"),
    (re.compile(r"""(?<![\w/])(?:[A-Za-z]:)?(?:/[^\s'"<>:,/]+){2,}"""), "<path>"),
    (re.compile(r"\b0x[0-9a-fA-F]+\b|\b\d+(?:\.\d+)?\b"), "<n>"),
)


def mask(text: str) -> str:
    """The text with what differs from message to message taken out, first line only."""
    line = text.splitlines()[0] if text.splitlines() else ""
    for pattern, stand_in in _MASKS:
        line = pattern.sub(stand_in, line)
    return line[:200]


dead.add_command(show_message, "show")
dead.add_command(edit_message, "edit")


class Redriven(Struct, frozen=True, kw_only=True):
    """`matched` before it began; `redriven`: ids that are ready again."""

    version: int = SCHEMA_VERSION
    matched: int
    redriven: list[str]
    reason: str = ""


class Rate(click.ParamType[Any]):
    """`10/s`, `600/m`, `1000/h` as messages a second."""

    name = "rate"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(?:/([smh]))?", str(value).strip())
        if found is None or float(found[1]) <= 0:
            self.fail(f"{value!r} is no rate; write 10/s, 600/m or 1000/h.", param, ctx)
        return float(found[1]) / {"s": 1, "m": 60, "h": 3600, None: 1}[found[2]]


@dead.command(shape=Redriven)
@click.argument("ids", nargs=-1, metavar="[ID…]")
@which_options(states=False)
@click.option("--limit", type=click.IntRange(min=1), help="At most so many, oldest first.")
@click.option("--rate", "rate_per_s", type=Rate(), metavar="N/s", help="Let so many through a second; ctrl-c stops, the rest stays dead.")
@click.option("--to", "target", metavar="QUEUE", type=Name("queue"), help="Into another queue.")
@destructive
@pass_session
def redrive(
    session: Session,
    ids: tuple[str, ...],
    which: Which,
    limit: int | None,
    rate_per_s: float | None,
    target: str | None,
    yes: bool,
    dry_run: bool,
    reason: str,
) -> None:
    """Make dead messages ready again, oldest first. Id and history stay, both counters start anew. Name ids or give a filter."""
    refuse_empty(not ids and which.empty, "redrive")
    queue = None if target is None else queue_name(target)

    async def find(engine: Engine) -> tuple[MessageFilter, list[MessageView]]:
        where = only_dead(which.filter(await engine.now(), ids=tuple(message_id(id) for id in ids)))
        where = await _whole_error(engine, where)
        return where, (await collect(engine, where, limit or 0))[0]

    where, views = session.run(find)
    if not views:
        raise Refused("No dead message matches.", why="Nothing was changed.")
    done = Redriven(matched=len(views), redriven=[], reason=reason)
    if session.out.confirm(f"Redriving {things(len(views), 'message')}{samples(views)}", yes=yes or (len(ids) == 1 and which.empty), dry_run=dry_run):
        moved: list[MessageId] = []

        async def act(engine: Engine) -> None:
            control = control_of(engine)
            if rate_per_s is None:
                moved.extend(await control.redrive(where, limit=len(views), queue=queue))
                return
            # The ids found above, a few at every tick: what dies again meanwhile is not redriven a second time.
            wanted, began = [view.message.id for view in views], time.monotonic()
            while wanted:
                allowed = max(1, int((time.monotonic() - began + TICK_S) * rate_per_s)) - (len(views) - len(wanted))
                if allowed > 0:
                    batch, wanted = wanted[:allowed], wanted[allowed:]
                    moved.extend(await control.redrive(MessageFilter(ids=tuple(batch), states=("dead",)), limit=len(batch), queue=queue))
                    session.out.note(f"{count(len(moved))} of {count(len(views))} redriven")
                if wanted:
                    await asyncio.sleep(min(TICK_S, 1 / rate_per_s))

        session.run(act)
        done = Redriven(matched=len(views), redriven=[str(id) for id in moved], reason=reason)
    if session.out.quiet:
        session.out.lines(done.redriven)
    else:
        session.out.thing(done, lambda: [] if dry_run else [f"{things(len(done.redriven), 'message')} ready again"])


async def _whole_error(engine: Engine, where: MessageFilter) -> MessageFilter:
    """Engines match the type exactly, people write its last part: `TimeoutError` finds `httpx.TimeoutError` when nothing has the short name itself."""
    if not where.error or "." in where.error:
        return where
    from msgspec import structs

    if (await browse_of(engine).browse(where, limit=1)).messages:
        return where
    every = await with_failures(engine, (await collect(engine, structs.replace(where, error=""), 0))[0])
    types = {failure.type for view in every if (failure := last_failure(view)) is not None}
    meant = [name for name in types if name.rpartition(".")[2] == where.error]
    if len(meant) > 1:
        raise UsageError(f"Several types end in {where.error!r}: {', '.join(sorted(meant))}.", help="Give the whole name.")
    return structs.replace(where, error=meant[0]) if meant else where


class Deleted(Struct, frozen=True, kw_only=True):
    version: int = SCHEMA_VERSION
    matched: int
    deleted: int
    reason: str = ""


@dead.command(shape=Deleted)
@click.argument("ids", nargs=-1, metavar="[ID…]")
@which_options(states=False)
@click.option("--limit", type=click.IntRange(min=1), help="At most so many, oldest first.")
@destructive
@pass_session
def delete(session: Session, ids: tuple[str, ...], which: Which, limit: int | None, yes: bool, dry_run: bool, reason: str) -> None:
    """End dead messages for good. Name ids or give a filter."""
    refuse_empty(not ids and which.empty, "delete")

    async def find(engine: Engine) -> tuple[MessageFilter, list[MessageView]]:
        where = only_dead(which.filter(await engine.now(), ids=tuple(message_id(id) for id in ids)))
        where = await _whole_error(engine, where)
        return where, (await collect(engine, where, limit or 0))[0]

    where, views = session.run(find)
    if not views:
        raise Refused("No dead message matches.", why="Nothing was changed.")
    deleted = 0
    if session.out.confirm(f"Deleting {things(len(views), 'dead message')}{samples(views)}", yes=yes, dry_run=dry_run):
        deleted = session.run(lambda engine: control_of(engine).delete(where, limit=len(views)))
    done = Deleted(matched=len(views), deleted=deleted, reason=reason)
    session.out.thing(done, lambda: [] if dry_run else [f"{things(deleted, 'message')} deleted"])
