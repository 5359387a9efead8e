"""beltline engine: what each engine carries, in numbers; and the move from one to another."""

from enum import IntEnum
from functools import partial

import click
from msgspec import Struct

from beltline.cli.command import Group, Session, pass_session
from beltline.cli.moving import MoveItem
from beltline.cli.moving import move as move_queues
from beltline.cli.output import SCHEMA_VERSION, Column
from beltline.cli.selecting import Span
from beltline.cli.shapes import bound
from beltline.cli.text import safe
from beltline.core.capabilities import Capabilities
from beltline.core.config import redact
from beltline.engines.protocol import Browse, Control, Engine, Fleet, Movable, Results, Runs, Sizes, Transactional, Upkeep

POWERS = {
    "browse": Browse,
    "results": Results,
    "control": Control,
    "runs": Runs,
    "fleet": Fleet,
    "sizes": Sizes,
    "upkeep": Upkeep,
    "transactional": Transactional,
    "movable": Movable,
}


@click.group(cls=Group)
def engine() -> None:
    """Engines and their capabilities in numbers; move all queues to another one."""


class EngineItem(Struct, frozen=True, kw_only=True):
    """`capabilities`: name -> number or word; null = no bound. `here`: it is the configured one. `extra`: what to install for it. `powers`: only when it was opened."""

    version: int = SCHEMA_VERSION
    name: str
    url: str
    here: bool
    label: str
    extra: str
    capabilities: dict[str, float | str | None]
    powers: list[str] | None = None


def numbers(capabilities: Capabilities) -> dict[str, float | str | None]:
    found: dict[str, float | str | None] = {}
    for name in capabilities.__struct_fields__:
        value = getattr(capabilities, name)
        found[name] = value.name.lower() if isinstance(value, IntEnum) else bound(value)
    return found


@engine.command(shape=EngineItem)
@pass_session
def ls(session: Session) -> None:
    """Every engine of this version, the configured one marked. Opens nothing."""
    from beltline.engines.registry import known_engines

    own = session.config.url.partition(":")[0]
    items = [
        EngineItem(
            name=info.scheme,
            url=redact(session.config.url) if info.scheme == own else info.example,
            here=info.scheme == own,
            label=info.label,
            extra=info.extra,
            capabilities=numbers(info.capabilities) if info.capabilities is not None else {},
        )
        for info in known_engines()
    ]
    names = list(items[0].capabilities)
    columns = [
        Column("engine", lambda item: item.name),
        Column("here", lambda item: item.here),
        Column("extra", lambda item: item.extra),
        *(Column(name, partial(_capability, name)) for name in names),
    ]
    if session.out.form == "table":
        session.out.lines(_upright(items, names))
        return
    session.out.things(items, columns, id=lambda item: item.name)


def _capability(name: str, item: EngineItem) -> float | str | None:
    return item.capabilities.get(name)


def _word(value: float | str | None) -> str:
    return "no bound" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _upright(items: list[EngineItem], names: list[str]) -> list[str]:
    """Capabilities as rows: there are more of them than a terminal has room for side by side."""
    from beltline.cli.text import table

    rows = [[name, *(_word(item.capabilities.get(name)) for item in items)] for name in names]
    rows.append(["url", *(item.url for item in items)])
    titles = ["", *(item.name + (" *" if item.here else "") for item in items)]
    return table(titles, rows, right=[False] * len(titles), elastic=[False] * len(titles), columns=10_000)


@engine.command(shape=EngineItem)
@pass_session
def show(session: Session) -> None:
    """The configured engine, opened: URL, capabilities, powers."""

    async def look(opened: Engine) -> EngineItem:
        return EngineItem(
            name=opened.name,
            url=redact(session.config.url),
            here=True,
            label="",
            extra="",
            capabilities=numbers(opened.capabilities),
            powers=[name for name, kind in POWERS.items() if isinstance(opened, kind)],
        )

    item = session.run(look)
    lines = [f"{session.out.paint(item.name, 'bold')}   {safe(item.url)}   (from {session.config.origin('url')})"]
    lines += [f"  {name:<18} {_word(value)}" for name, value in item.capabilities.items()]
    lines.append(f"  {'powers':<18} {', '.join(item.powers or [])}")
    session.out.thing(item, lambda: lines, id=item.name)


@engine.command(shape=MoveItem)
@click.option("--from", "source", metavar="URL", required=True, help="Where the queues are.")
@click.option("--to", "target", metavar="URL", default="", help="Where they go: a store without messages.")
@click.option("--wait", "wait_s", type=Span(), metavar="TIME", default="60s", show_default=True, help="For what is leased to be settled.")
@click.option("--dry-run", is_flag=True, help="Only say what would be moved.")
@click.option("--abort", is_flag=True, help="Take an unfinished move back: the source is open again.")
@pass_session
def move(session: Session, source: str, target: str, wait_s: float, dry_run: bool, abort: bool) -> int:
    """Move all queues with all their messages, runs and results to another store.

    The source takes nothing more from the first moment on, and is kept. Killed at any point, the same command goes on where it stopped.
    """
    return move_queues(session, source, target, wait_s=wait_s, dry_run=dry_run, abort=abort)
