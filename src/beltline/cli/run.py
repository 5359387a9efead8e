"""beltline run: one item's passage through a chain, every stage with its wait."""

from datetime import datetime
from typing import Any

import click
from msgspec import Struct

from beltline.cli.chain import app_option
from beltline.cli.command import Group, Session, pass_session
from beltline.cli.confirming import destructive
from beltline.cli.dead import with_failures
from beltline.cli.names import Name, known
from beltline.cli.output import SCHEMA_VERSION, Column
from beltline.cli.powers import runs_of
from beltline.cli.selecting import collect
from beltline.cli.shapes import ErrorItem, RunItem, error_item, instant, last_failure, run_item
from beltline.cli.text import ago, clip, safe, safe_json, span, things
from beltline.core.codec import to_json, unpack
from beltline.core.errors import Refused, UsageError
from beltline.core.names import RunId, message_id
from beltline.core.views import GatherView, MessageFilter, MessageView, RunView
from beltline.engines.protocol import Engine, Results

STATES = ("running", "done", "dead", "failed", "cancelled")


@click.group(cls=Group)
def run() -> None:
    """One item through all its stages; rerun, cancel."""


@run.command(shape=RunItem)
@click.option("--chain", "chains", multiple=True, type=Name("chain"), help="Of this chain (again for more; else all chains of the app).")
@click.option("--state", "-s", type=click.Choice(STATES), default=None, help="Only in this state.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many of each chain, oldest first.")
@click.option("--after", "cursor", default="", metavar="ID", help="Go on behind this run.")
@app_option
@pass_session
def ls(session: Session, chains: tuple[str, ...], state: str | None, limit: int, cursor: str, app_name: str | None) -> None:
    """Runs of a chain, oldest first."""
    session.set_flags(app=app_name)
    app = session.app() if session.has_app else None
    names = list(chains) or (list(app.chains) if app else [])
    if not names:
        raise UsageError("Say which chain.", help="--chain NAME, or name the app with --app MODULE:APP.")

    async def look(engine: Engine) -> tuple[list[RunView], float]:
        runs = runs_of(engine)
        found = [view for name in names for view in await runs.runs(name, state=state or "", limit=limit, cursor=cursor)]
        return found, await engine.now()

    views, now_s = session.run(look, app=app)
    now = instant(now_s)
    assert now is not None
    columns = [
        Column("run", lambda item: item.id),
        Column("chain", lambda item: item.chain, elastic=True),
        Column("state", lambda item: item.state, lambda item: session.out.state(item.state)),
        Column("open", lambda item: item.open, right=True),
        Column("dead", lambda item: item.dead, right=True),
        Column("entered_at", lambda item: item.entered_at, lambda item: ago(item.entered_at, now)),
        Column("ended_at", lambda item: item.ended_at, lambda item: ago(item.ended_at, now)),
    ]
    session.out.things([run_item(view) for view in views], columns, id=lambda item: item.id, none="No run matches.")


class PartItem(Struct, frozen=True, kw_only=True):
    """One message of a run. `waited_s`: from its send to its first delivery, so far if there was none. `ran_s`: all its attempts together."""

    id: str
    stage: str
    item: str
    task: str
    state: str
    outcome: str
    attempt: int
    sent_at: datetime | None
    ended_at: datetime | None
    waited_s: float
    ran_s: float
    worker: str
    why: str
    error: ErrorItem | None


class GatherItem(Struct, frozen=True, kw_only=True):
    stage: str
    expected: int
    missing: int
    dead: int
    fired: bool


class RunDetail(RunItem, frozen=True, kw_only=True):
    messages: list[PartItem]
    gathers: list[GatherItem]
    result: Any = None


@run.command(shape=RunDetail)
@click.argument("id")
@pass_session
def show(session: Session, id: str) -> None:
    """Every stage of one run: how long it waited, how long it ran, where, and what went wrong."""
    detail, now = session.run(lambda engine: _detail(engine, RunId(message_id(id))))
    session.out.thing(detail, lambda: _lines(session, detail, now), id=detail.id)


async def _detail(engine: Engine, id: RunId) -> tuple[RunDetail, datetime]:
    runs = runs_of(engine)
    view = await runs.run(id)
    views = await with_failures(engine, (await collect(engine, MessageFilter(run=id), 0))[0])
    now = await engine.now()
    result = None
    if isinstance(engine, Results) and view.state == "done":
        [found] = await engine.results([id])
        result = unpack(found.result) if found is not None and found.result is not None else None
    whole = run_item(view)
    detail = RunDetail(
        **{field: getattr(whole, field) for field in whole.__struct_fields__},
        messages=[_part(message, now) for message in sorted(views, key=lambda message: message.sent_at)],
        gathers=[_gather(gather) for gather in await runs.gathers(id)],
        result=result,
    )
    at = instant(now)
    assert at is not None
    return detail, at


def _part(view: MessageView, now: float) -> PartItem:
    place = view.message.place
    starts = [attempt.started_at for attempt in view.attempts if attempt.started_at]
    started = min(starts) if starts else (view.ended_at or now)
    return PartItem(
        id=view.message.id,
        stage=place.stage if place else "",
        item=place.item if place else "",
        task=view.message.task,
        state=view.state,
        outcome=view.outcome,
        attempt=max(1, view.failed + view.lost + (0 if view.state == "dead" else 1)),
        sent_at=instant(view.sent_at),
        ended_at=instant(view.ended_at),
        waited_s=round(max(0.0, started - view.sent_at), 4),
        ran_s=round(sum(attempt.ran_s for attempt in view.attempts), 4),
        worker=view.worker or next((attempt.worker for attempt in reversed(view.attempts) if attempt.worker), ""),
        why=view.why,
        error=error_item(last_failure(view)),
    )


def _gather(view: GatherView) -> GatherItem:
    return GatherItem(stage=view.stage, expected=view.expected, missing=view.missing, dead=view.dead, fired=view.fired)


def _lines(session: Session, detail: RunDetail, now: datetime) -> list[str]:
    out = session.out
    began, ended = detail.entered_at, detail.ended_at or now
    whole_s = max(0.001, (ended - began).total_seconds()) if began else 0.001
    waited, worked = sum(part.waited_s for part in detail.messages), sum(part.ran_s for part in detail.messages)
    took = f"in {span(whole_s)}" if detail.ended_at else f"for {span(whole_s)}"
    lines = [
        f"{out.paint(detail.id, 'bold')}   {safe(detail.chain)}   {out.state(detail.state)} {took}  (waited {span(waited)} · worked {span(worked)})",
    ]
    names = [f"{part.stage}{' ' + part.item if part.item else ''}" for part in detail.messages]
    wide = max((len(name) for name in names), default=0)
    room = max(10, min(36, out.columns - wide - 60))
    for part, name in zip(detail.messages, names, strict=True):
        strip = _strip(part, began, whole_s, room)
        words = [
            f"waited {span(part.waited_s)}",
            f"ran {span(part.ran_s)}" if part.ran_s else part.state,
            f"attempt {part.attempt}" if part.attempt > 1 else "",
            part.worker,
        ]
        lines.append(
            f"  {safe(name):<{wide}} {strip} {safe('  '.join(word for word in words if word))}"
            + ("" if part.state == "done" else f"  {out.state(part.state)}")
        )
        if part.error is not None:
            text = f"{part.error.type}: {part.error.text}" if part.error.text else part.error.type
            lines.append(f"  {'':<{wide}} {part.why + ': ' if part.why else ''}{clip(safe(text), max(40, out.columns - wide - 6))}")
    for gather in detail.gathers:
        if not gather.fired:
            never = ", of which some are dead: redrive or cancel them" if gather.dead else ""
            lines.append(f"  gather at {safe(gather.stage) or 'the end'}: {things(gather.missing, 'part')} of {gather.expected} missing{never}")
    if detail.result is not None:
        lines.append("  result " + clip(safe_json(to_json(detail.result)), max(40, out.columns - 9)))
    return lines


def _strip(part: PartItem, began: datetime | None, whole_s: float, room: int) -> str:
    """`▕   ░░░██ ▏`: ░ waiting, █ between first delivery and end."""
    if began is None or part.sent_at is None:
        return "▕" + " " * room + "▏"
    start = (part.sent_at - began).total_seconds()
    run_at = start + part.waited_s
    stop = (part.ended_at - began).total_seconds() if part.ended_at else whole_s
    cells = []
    for cell in range(room):
        at = whole_s * (cell + 0.5) / room
        cells.append("█" if run_at <= at <= stop else "░" if start <= at < run_at else " ")
    if "█" not in cells and part.ran_s:
        cells[min(room - 1, int(room * run_at / whole_s))] = "█"
    return "▕" + "".join(cells) + "▏"


class CancelledItem(RunItem, frozen=True, kw_only=True):
    reason: str = ""


@run.command(shape=CancelledItem)
@click.argument("id")
@destructive
@pass_session
def cancel(session: Session, id: str, yes: bool, dry_run: bool, reason: str) -> None:
    """Cancel every live message of a run; leased ones are asked. Nothing of it is handed on."""
    run_id = RunId(message_id(id))

    async def look(engine: Engine) -> RunView:
        return await runs_of(engine).run(run_id)

    view = session.run(look)
    if view.state not in ("running", "dead"):
        raise Refused(f"Run {run_id} is {view.state}.", why="Only running and dead runs can be cancelled.")
    if session.out.confirm(f"Cancelling run {run_id} of {view.chain} ({things(view.open + view.dead, 'live message')})", yes=yes, dry_run=dry_run):
        view = session.run(lambda engine: runs_of(engine).cancel_run(run_id, reason=reason))
    whole = run_item(view)
    item = CancelledItem(**{field: getattr(whole, field) for field in whole.__struct_fields__}, reason=reason)
    session.out.thing(item, lambda: [f"{item.id}: {session.out.state(item.state)}, {things(item.open, 'message')} open"], id=item.id)


class RerunItem(Struct, frozen=True, kw_only=True):
    """`id` is the new run's."""

    version: int = SCHEMA_VERSION
    id: str
    rerun_of: str
    chain: str
    stage: str


@run.command(shape=RerunItem)
@click.argument("id")
@click.option("--from", "stage", metavar="STAGE", default="", help="The stage to start from (else the first).")
@app_option
@pass_session
def rerun(session: Session, id: str, stage: str, app_name: str | None) -> None:
    """Run an item again from a stage on, with what that stage received, as a new run. The old one stays as it is. Needs the app's code."""
    session.set_flags(app=app_name)
    app = session.app(needed_for="a rerun")
    old = RunId(message_id(id))
    view = session.run(lambda engine: runs_of(engine).run(old), app=app)
    plan = known("chain", view.chain, app.plans)
    start = stage or plan.stages[0].name
    known("stage", start, {str(each.name): each for each in plan.stages})
    try:
        handle = app.rerun(old, stage=start)
    finally:
        app.close()
    item = RerunItem(id=handle.id, rerun_of=old, chain=view.chain, stage=start)
    session.out.thing(item, lambda: [item.id], id=item.id)
    session.out.note(f"runs again from {item.stage}: beltline run show {item.id}")
