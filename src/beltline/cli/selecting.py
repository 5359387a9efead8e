"""Which messages: one set of options for every command that takes a filter, and paging through what matches."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from msgspec import Struct, structs

from beltline.cli.names import Name
from beltline.cli.powers import browse_of
from beltline.core.limits import duration
from beltline.core.names import message_id
from beltline.core.views import MessageFilter, MessageView
from beltline.engines.protocol import Engine

PAGE = 500


class Span(click.ParamType[Any]):
    """`90`, `1.5s`, `10m`, `2h`, `7d` as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return duration(value)
        except ValueError:
            self.fail(f"{value!r} is no duration; write 90, 1.5s, 10m, 2h or 7d.", param, ctx)


class Which(Struct, frozen=True, kw_only=True):
    """What the options said; `newer_s` and `older_s` are ages."""

    queues: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    run: str = ""
    group: str = ""
    error: str = ""
    newer_s: float | None = None
    older_s: float | None = None

    @property
    def empty(self) -> bool:
        return self == Which()

    def filter(self, now: float, *, ids: tuple[str, ...] = (), states: tuple[str, ...] | None = None) -> MessageFilter:
        """`now` on the engine's clock, because that is what sent_at was taken from."""
        return MessageFilter(
            ids=ids,
            queues=self.queues,
            states=self.states if states is None else states,
            tasks=self.tasks,
            run=message_id(self.run) if self.run else "",
            group=self.group,
            error=self.error,
            sent_after=0.0 if self.newer_s is None else now - self.newer_s,
            sent_before=0.0 if self.older_s is None else now - self.older_s,
        )


def which_options(*, states: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds the filter options and hands them over as `which`. Without `states` for commands that look at one state only."""
    options = [
        click.option("--queue", "-q", "which_queues", multiple=True, type=Name("queue"), help="In this queue (again for more)."),
        click.option("--task", "which_tasks", multiple=True, type=Name("task"), help="Of this task (again for more)."),
        click.option("--run", "which_run", default="", metavar="ID", help="Of this run."),
        click.option("--group", "which_group", default="", help="Of this FIFO group."),
        click.option("--error", "which_error", default="", metavar="TYPE", help="Whose last failure has exactly this type."),
        click.option("--newer", "which_newer_s", type=Span(), metavar="AGE", help="Sent less than 10m, 2h, … ago."),
        click.option("--older", "which_older_s", type=Span(), metavar="AGE", help="Sent more than 10m, 2h, … ago."),
    ]
    if states:
        words = ["delayed", "ready", "leased", "done", "dead"]
        options.insert(
            1, click.option("--state", "-s", "which_states", multiple=True, type=click.Choice(words), help="In this state (again for more).")
        )

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def taking(*args: Any, **kwargs: Any) -> Any:
            fields = {name: kwargs.pop(f"which_{name}") for name in Which.__struct_fields__ if f"which_{name}" in kwargs}
            return function(*args, which=Which(**fields), **kwargs)

        decorated: Callable[..., Any] = taking
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


async def collect(engine: Engine, where: MessageFilter, limit: int) -> tuple[list[MessageView], bool]:
    """Up to `limit` matching messages (0 = all), oldest first, and whether there are more."""
    browse = browse_of(engine)
    found: list[MessageView] = []
    cursor = ""
    while True:
        left = limit - len(found) if limit else PAGE
        page = await browse.browse(where, limit=min(PAGE, left), cursor=cursor)
        found += page.messages
        cursor = page.cursor
        if not cursor or (limit and len(found) >= limit):
            return found, bool(cursor)


def only_dead(where: MessageFilter) -> MessageFilter:
    return structs.replace(where, states=("dead",))
