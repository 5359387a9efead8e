"""Everything that can be seen of a store, made comparable, and where two of these pictures differ."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple

from msgspec import Struct, structs

from beltline.core.errors import NotFound
from beltline.core.names import MessageId, RunId
from beltline.core.queues import Counts
from beltline.core.scaling import Decision, Size
from beltline.core.views import (
    AttemptView,
    BucketView,
    DueSchedules,
    GatherView,
    LimitView,
    MessageView,
    ResultView,
    RunCounts,
    RunView,
    ScheduleView,
    Standing,
    WorkerView,
)
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full
from beltline.testing.conformance.kit import LINE, QUEUES


class Look(NamedTuple):
    """Everything that can be seen of a store. `results`: of all messages, then of all runs. `history`, `gathers`: of the messages that have changed, and of their runs."""

    now: float
    views: list[MessageView]
    counts: list[Counts]
    results: list[ResultView | None]
    history: list[tuple[AttemptView, ...]]
    run_counts: RunCounts
    runs: list[RunView]
    gathers: list[list[GatherView]]
    limits: list[LimitView]
    buckets: list[list[BucketView]]
    standing: list[Standing]
    schedules: list[ScheduleView]
    due: DueSchedules | None
    sizes: list[Size]
    workers: list[WorkerView]
    decisions: list[Decision]


async def look_at(
    engine: Full, before: dict[MessageId, MessageView], entered: list[RunId], limits: Sequence[str], *, explain: bool, timed: bool, sized: bool
) -> Look:
    now, views, run_counts, runs = await all_of(engine.now(), _picture(engine), engine.run_counts(LINE), engine.runs(LINE, limit=1000))
    changed = [view for view in views if before.get(view.message.id) != view]
    touched = sorted({view.message.place.run for view in changed if view.message.place is not None} & {view.id for view in runs})
    counts, results, histories, gathers = await all_of(
        all_of(*(engine.counts(queue) for queue in QUEUES)),
        engine.results([*(view.message.id for view in views), *entered]),
        all_of(*(engine.get(view.message.id) for view in changed)),
        all_of(*(engine.gathers(RunId(run)) for run in touched)),
    )
    waiting = [view.message.id for view in views if view.state in ("ready", "delayed")]
    asked = waiting[:: max(1, len(waiting) // 4)] if explain else []
    views_of_limits, buckets, standing = await all_of(
        engine.limits() if limits else _nothing(),
        all_of(*(_buckets(engine, name) for name in limits)),
        all_of(*(engine.standing(id) for id in asked)),
    )
    schedules, due = await all_of(engine.schedules(), engine.due_schedules()) if timed else ([], None)
    sizes, workers, decisions = await all_of(engine.sizes(), engine.workers(), engine.decisions(limit=10)) if sized else ([], [], [])
    plain = [None if view is None else structs.replace(view, progress=None) for view in results]
    return Look(
        now,
        views,
        counts,
        plain,
        [view.attempts for view in histories],
        run_counts,
        runs,
        gathers,
        views_of_limits,
        buckets,
        [_told(each) for each in standing],
        schedules,
        due,
        sizes,
        workers,
        decisions,
    )


async def _nothing() -> list[Any]:
    return []


async def _buckets(engine: Full, name: str) -> list[BucketView]:
    try:
        return await engine.buckets(name)
    except NotFound:
        return []


def _told(standing: Standing) -> Standing:
    """Without what the contract leaves open: which full queues were seen when."""
    return structs.replace(standing, message=_plain(standing.message), feeds=())


async def all_of(*questions: Awaitable[Any]) -> list[Any]:
    """Ask all at once: between the loop and an engine's thread a hop costs more than an answer."""
    return list(await asyncio.gather(*questions))


def difference(one: Any, other: Any) -> str:
    """Where two answers differ first, down to the field."""
    if type(one) is type(other):
        if isinstance(one, Look):
            return "; ".join(f"{name} {difference(*pair)}" for name, *pair in zip(Look._fields, one, other, strict=True) if pair[0] != pair[1])
        if isinstance(one, (list, tuple)) and len(one) == len(other):
            return "; ".join(f"[{place}] {difference(*pair)}" for place, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
        if isinstance(one, list):
            return f"{len(one)} / {len(other)}: {one} / {other}"
        if isinstance(one, Struct):
            names = [name for name in one.__struct_fields__ if getattr(one, name) != getattr(other, name)]
            fields = ", ".join(f"{name} {difference(getattr(one, name), getattr(other, name))}" for name in names)
            return f"{getattr(one, 'id', type(one).__name__)} {fields}"
    return f"{one!r} / {other!r}"


async def _picture(engine: Full) -> list[MessageView]:
    """All messages, without what the contract leaves open."""
    return [_plain(view) for view in await kit.everything(engine)]


def _plain(view: MessageView) -> MessageView:
    return structs.replace(
        view,
        attempts=(),
        progress=view.progress if view.state == "leased" else None,
        due_at=view.due_at if view.state in ("delayed", "leased") else 0.0,
        cancel_asked=view.cancel_asked and view.state == "leased",
    )
