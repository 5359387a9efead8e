"""beltline limit: how many may start in a time, and how many may run. What is set here stands over what the code says until it is reset."""

import math
from collections.abc import Iterable
from datetime import datetime
from difflib import get_close_matches
from typing import Any

import click
from msgspec import Struct

from beltline.cli.command import Group, Session, pass_session
from beltline.cli.names import F, Name, unknown
from beltline.cli.output import SCHEMA_VERSION, Column
from beltline.cli.powers import browse_of, limits_of
from beltline.cli.shapes import bound, instant
from beltline.cli.text import count, rate, safe, span, things
from beltline.core.errors import NotFound, UsageError, ValueInvalid
from beltline.core.flow import Limit
from beltline.core.names import QueueName
from beltline.core.views import BucketView, LimitView
from beltline.engines.protocol import Engine
from beltline.limiting import make_limit, rate_of

BUCKETS = 50


@click.group(cls=Group)
def limit() -> None:
    """How many may start and run; change it now."""


class LimitItem(Struct, frozen=True, kw_only=True):
    """`rate` starts in `per_s`, `burst` at once, `concurrency` at a time, for each key; null = no bound. `origin`: code, or operator.

    `waiting`: ready behind it, of the messages that name it themselves. `queues`: those that are subject to it as a whole.
    """

    version: int = SCHEMA_VERSION
    name: str
    rate: float | None
    per_s: float
    burst: float | None
    concurrency: float | None
    origin: str
    running: int
    waiting: int
    queues: list[str] = []


class BucketItem(Struct, frozen=True, kw_only=True):
    """`key` "" = the limit itself. `opens_at` null with `closed`: when a place is given back."""

    key: str
    running: int
    waiting: int
    closed: bool
    opens_at: datetime | None


class LimitShown(LimitItem, frozen=True, kw_only=True):
    """`buckets`: keys where something runs, waits or is not open; at most 50. `ready`: in each of `queues`."""

    buckets: list[BucketItem]
    ready: dict[str, int] = {}


async def _subject(engine: Engine) -> dict[str, list[QueueName]]:
    """Limit -> the queues that name it."""
    found: dict[str, list[QueueName]] = {}
    for spec in await browse_of(engine).queues():
        for name in spec.limits:
            found.setdefault(name, []).append(spec.name)
    return found


def _fields(view: LimitView, queues: Iterable[QueueName] = ()) -> dict[str, Any]:
    return {
        "queues": sorted(queues),
        "name": view.name,
        "rate": bound(view.rate),
        "per_s": view.per_s,
        "burst": bound(view.burst),
        "concurrency": bound(view.concurrency),
        "origin": view.origin,
        "running": view.running,
        "waiting": view.waiting,
    }


def _bucket(view: BucketView) -> BucketItem:
    return BucketItem(
        key=view.key,
        running=view.running,
        waiting=view.waiting,
        closed=view.opens_at > 0,
        opens_at=None if math.isinf(view.opens_at) else instant(view.opens_at),
    )


def _rate(item: LimitItem) -> str:
    return "" if item.rate is None else rate(item.rate, item.per_s)


def _number(number: float | None) -> str:
    return "" if number is None else f"{number:g}"


async def items(engine: Engine) -> list[LimitItem]:
    """All limits, by name."""
    subject = await _subject(engine)
    return [LimitItem(**_fields(view, subject.get(view.name, ()))) for view in await limits_of(engine).limits()]


def columns() -> list[Column]:
    return [
        Column("limit", lambda item: item.name, elastic=True),
        Column("rate", lambda item: item.rate, _rate, right=True),
        Column("per_s", lambda item: item.per_s, lambda _: ""),
        Column("burst", lambda item: item.burst, lambda item: _number(item.burst), right=True),
        Column("concurrency", lambda item: item.concurrency, lambda item: _number(item.concurrency), right=True),
        Column("origin", lambda item: item.origin),
        Column("running", lambda item: item.running, lambda item: count(item.running), right=True),
        Column("waiting", lambda item: item.waiting, lambda item: count(item.waiting), right=True),
        Column("queues", lambda item: " ".join(item.queues), elastic=True),
    ]


@limit.command(shape=LimitItem)
@pass_session
def ls(session: Session) -> None:
    """All limits with their numbers, what runs and what waits."""
    none = "No limit is declared or set. In code: app.limit('api', rate='50/s')"
    session.out.things(session.run(items), columns(), id=lambda item: item.name, none=none)


async def _shown(engine: Engine, name: str) -> tuple[LimitShown, datetime]:
    """Raises NotFound."""
    found = {view.name: view for view in await limits_of(engine).limits()}
    if name not in found:
        raise unknown("limit", name, found)
    buckets = await limits_of(engine).buckets(name, limit=BUCKETS)
    now = instant(await engine.now())
    assert now is not None
    queues = (await _subject(engine)).get(name, [])
    ready = {str(queue): (await engine.counts(queue)).ready for queue in queues}
    return LimitShown(**_fields(found[name], queues), buckets=[_bucket(each) for each in buckets], ready=ready), now


limit_argument = click.argument("limit", type=Name("limit"))


@limit.command(shape=LimitShown)
@limit_argument
@pass_session
def show(session: Session, limit: str) -> None:
    """One limit, with the keys where something runs, waits or is closed."""
    item, now = session.run(lambda engine: _shown(engine, limit))
    session.out.thing(item, lambda: _lines(session, item, now), id=item.name)


def _lines(session: Session, item: LimitShown, now: datetime) -> list[str]:
    bounds = [
        f"{_rate(item)}, {_number(item.burst)} at once" if item.rate is not None else "",
        f"{_number(item.concurrency)} at a time" if item.concurrency is not None else "",
    ]
    who = "set by an operator: beltline limit reset " + safe(item.name) if item.origin == "operator" else "as the code says"
    lines = [
        f"{session.out.paint(safe(item.name), 'bold')}   {', '.join(each for each in bounds if each) or 'bounds nothing'}   ({who})",
        f"  {things(item.running, 'message')} running, {count(item.waiting)} waiting behind it",
    ]
    lines += [f"  queue {safe(queue)} is subject to it as a whole: {count(item.ready.get(queue, 0))} ready there" for queue in item.queues]
    for bucket in item.buckets:
        when = "when a place is given back" if bucket.opens_at is None else f"in {span((bucket.opens_at - now).total_seconds())}"
        opens = f"opens {when}" if bucket.closed else "open"
        lines.append(f"  {safe(bucket.key) or '(no key)'}: {count(bucket.running)} running, {count(bucket.waiting)} waiting, {opens}")
    if len(item.buckets) == BUCKETS:
        lines.append(f"  … the first {BUCKETS} keys")
    return lines


def numbers(function: F) -> F:
    """The options that say what a limit is."""
    options = (
        click.option("--rate", "rate_text", metavar="RATE", help="Starts per time: 50/s, 600/10m, 1000/h; none = no rate."),
        click.option("--burst", "burst_text", metavar="NUMBER", help="At once; auto = what the rate yields in 0.2 s, at least 1."),
        click.option("--concurrency", "concurrency_text", metavar="NUMBER", help="At a time, 0 = none at all; none = no bound."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@limit.command("set", shape=LimitShown)
@limit_argument
@numbers
@pass_session
def set_(session: Session, limit: str, rate_text: str | None, burst_text: str | None, concurrency_text: str | None) -> None:
    """Change a limit now, for everybody, until it is reset. What is not given stays."""
    if rate_text is None and burst_text is None and concurrency_text is None:
        raise UsageError("Nothing to set.", help="Give --rate, --burst or --concurrency.")

    async def act(engine: Engine) -> tuple[LimitShown, datetime]:
        power = limits_of(engine)
        before = {view.name: view for view in await power.limits()}
        await power.set_limit(changed(limit, before.get(limit), rate_text, burst_text, concurrency_text))
        if limit not in before:
            _warn_new(session, limit, before)
        return await _shown(engine, limit)

    item, now = session.run(act)
    session.out.thing(item, lambda: _lines(session, item, now), id=item.name)


def _warn_new(session: Session, name: str, known: Iterable[str]) -> None:
    """Who mistypes a name must not believe that something was changed."""
    near = get_close_matches(name, list(known), n=1)
    meant = f" Did you mean {near[0]!r}? Then also: beltline limit reset {name}" if near else ""
    session.out.warn(f"no limit was called {name!r} until now: it bounds nothing before code names it (limits=[{name!r}]).{meant}")


def changed(name: str, before: LimitView | None, rate_text: str | None, burst_text: str | None, concurrency_text: str | None) -> Limit:
    """The limit with what was said. Raises NameInvalid, ValueInvalid, UsageError."""
    number, per_s = (before.rate, before.per_s) if before is not None else (math.inf, 1.0)
    kept = Limit(name=name, rate=number, per_s=per_s)
    burst = None if before is None or before.burst == kept.most_at_once else before.burst  # a default one follows the rate
    concurrency = before.concurrency if before is not None else math.inf
    if rate_text is not None:
        number, per_s = (math.inf, per_s) if rate_text == "none" else rate_of(rate_text)
    if number == math.inf:
        burst = None  # it goes with its rate
    if burst_text is not None:
        burst = None if burst_text == "auto" else _float("burst", burst_text, "auto")
    if concurrency_text is not None:
        concurrency = math.inf if concurrency_text == "none" else _float("concurrency", concurrency_text, "none")
    if number == math.inf:
        return make_limit(name, burst=burst, concurrency=concurrency)
    return make_limit(name, rate=number, per=per_s, burst=burst, concurrency=concurrency)


def _float(name: str, text: str, word: str) -> float:
    try:
        return float(text.replace("_", ""))
    except ValueError:
        raise ValueInvalid(name=f"--{name}", value=text, allowed=f"a number, or {word}") from None


class Reset(Struct, frozen=True, kw_only=True):
    """`limit` null: nobody declares it any more, so it is gone."""

    version: int = SCHEMA_VERSION
    name: str
    limit: LimitShown | None


@limit.command(shape=Reset)
@limit_argument
@pass_session
def reset(session: Session, limit: str) -> None:
    """Back to what the code says; a limit that only an operator has set goes away."""

    async def act(engine: Engine) -> tuple[LimitShown | None, datetime | None]:
        await _shown(engine, limit)
        await limits_of(engine).reset_limit(limit)
        try:
            return await _shown(engine, limit)
        except NotFound:
            return None, None

    item, now = session.run(act)
    done = Reset(name=limit, limit=item)
    session.out.thing(
        done, lambda: [f"{safe(limit)} is gone: it bounds nothing"] if item is None or now is None else _lines(session, item, now), id=limit
    )
