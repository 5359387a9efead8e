"""The powers Limits and Explain: calls of sql/flow_limits.sql and sql/flow_views.sql. `now`: the engine's time in ms, None for the server's own."""

from collections.abc import Sequence
from math import inf

import msgspec

from beltline.core.errors import NotFound
from beltline.core.flow import Limit, check_limit
from beltline.core.lifecycle import State
from beltline.core.views import BucketView, LimitView, Standing
from beltline.engines.moving import Moved, MovedLimit, MovedPage, Section
from beltline.engines.postgres import wire
from beltline.engines.postgres.browsing import Ask, get, not_declared
from beltline.engines.postgres.control import call

NEVER = 9_000_000_000_000_000_000  # instead of an instant: no time is known
_read = msgspec.msgpack.Decoder(Limit).decode
_TYPES = "bigint boolean text[] bytea[] bigint[] bigint[] int[]"


async def take(ask: Ask, after: str, limit: int) -> MovedPage:
    rows = await ask("SELECT name, declared, given FROM beltline.flow_limit WHERE name > %s ORDER BY name LIMIT %s::int", (after, limit))
    things: list[Moved] = [MovedLimit(*row) for row in rows]
    return MovedPage(section=Section.LIMITS, things=things, after=rows[-1][0] if len(rows) == limit else "")


def as_columns(things: Sequence[MovedLimit]) -> tuple[str, ...]:
    """What `put_moved_limits` gets behind the seals."""
    numbers = [_numbers(_read(thing.given or thing.declared or b"")) for thing in things]
    return (
        wire.texts(thing.name for thing in things),
        wire.blobs(thing.declared for thing in things),
        wire.blobs(thing.given for thing in things),
        wire.numbers(interval for interval, _, _ in numbers),
        wire.numbers(burst for _, burst, _ in numbers),
        wire.numbers(most for _, _, most in numbers),
    )


def _numbers(limit: Limit) -> tuple[int, int, int | None]:
    """What `flow_limit` keeps of a limit: interval, burst, concurrency."""
    interval_us = limit.interval_us
    return interval_us, limit.burst_us if interval_us else 0, None if limit.concurrency == inf else int(limit.concurrency)


async def put(ask: Ask, now: int | None, given: Sequence[Limit], *, operator: bool) -> str:
    """What the code (or an operator) says. Returns the woken. Raises NameInvalid, ValueInvalid."""
    limits = list({check_limit(limit).name: limit for limit in given}.values())
    if not limits:
        return ""
    intervals, bursts, most = zip(*map(_numbers, limits), strict=True)
    columns = (
        wire.texts(limit.name for limit in limits),
        wire.blobs(msgspec.msgpack.encode(limit) for limit in limits),
        wire.numbers(intervals),
        wire.numbers(bursts),
        wire.numbers(most),
    )
    _, woken = await call(ask, "put_limits", _TYPES, now, operator, *columns)
    return woken


async def reset(ask: Ask, now: int | None, name: str) -> str:
    """Back to what the code says, or away. Returns the woken. Raises NotFound."""
    while True:
        rows = await ask("SELECT declared FROM beltline.flow_limit WHERE name = %s", (wire.clean(name),))
        if not rows:
            raise NotFound(kind="limit", name=name)
        [[declared]] = rows
        numbers = (None, None, None) if declared is None else _numbers(_read(declared))
        (done,), woken = await call(ask, "reset_limit", "bigint text bytea bigint bigint int", now, wire.clean(name), declared, *numbers)
        if done is None:
            raise NotFound(kind="limit", name=name)
        if done:
            return woken


async def limits(ask: Ask, now: int | None) -> list[LimitView]:
    rows = await ask("SELECT * FROM beltline.limits(%s::bigint)", (now,))
    return [_view(name, _read(data), given, running, waiting) for name, data, given, running, waiting in rows]


def _view(name: str, limit: Limit, given: bool, running: int, waiting: int) -> LimitView:
    return LimitView(
        name=name,
        rate=limit.rate,
        per_s=limit.per_s,
        burst=limit.most_at_once,
        concurrency=limit.concurrency,
        origin="operator" if given else "code",
        running=running,
        waiting=waiting,
    )


async def buckets(ask: Ask, now: int | None, name: str, limit: int) -> list[BucketView]:
    """Raises NotFound."""
    [[there]] = await ask("SELECT EXISTS (SELECT FROM beltline.flow_limit WHERE name = %s)", (wire.clean(name),))
    if not there:
        raise NotFound(kind="limit", name=name)
    rows = await ask("SELECT * FROM beltline.buckets(%s::bigint, %s::text, %s::int)", (now, name, min(limit, (1 << 31) - 1)))
    return [BucketView(limit=name, key=key, running=running, waiting=waiting, opens_at=_s(opens)) for key, running, waiting, opens in rows]


def _s(ms: int | None) -> float:
    """0.0 = it is open, inf = no time is known."""
    return 0.0 if ms is None else inf if ms >= NEVER else ms / 1000


async def standing(ask: Ask, now: int | None, id: str) -> Standing:
    """Raises NotFound."""
    view = await get(ask, now, id)
    [(shown, paused, *rest)] = await ask("SELECT * FROM beltline.standing(%s::bigint, %s::uuid)", (now, id))
    if not shown:
        return Standing(message=view)
    snoozed, tripped, trying, head, head_state, name, key, opens, holders, whole, whole_opens, feeds, keeper, tenant, noisy, ahead = rest
    return Standing(
        message=view,
        paused=paused,
        snoozed_until=_s(snoozed),
        tripped_until=_s(tripped),
        trying=trying,
        head=head or "",
        head_state="" if head is None else State(head_state).word,
        limit=name or "",
        key=key or "",
        opens_at=_s(opens),
        holders=tuple(holders),
        queue_limit=whole or "",
        queue_opens_at=_s(whole_opens),
        feeds=tuple(feeds),
        keeper=keeper or "",
        tenant=tenant or "",
        noisy=bool(noisy),
        ahead=ahead,
    )


async def snooze(ask: Ask, now: int | None, queue: str, ms: int) -> float:
    """Until when. Raises QueueNotDeclared."""
    (until,), _ = await call(ask, "snooze", "bigint text bigint", now, wire.clean(queue), ms)
    if until is None:
        raise await not_declared(ask, queue)
    return int(until) / 1000
