"""beltline chain: the lines, drawn with their queues."""

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING

import click

from beltline.cli.command import Group, Session, pass_session
from beltline.cli.names import Name, known
from beltline.cli.output import Column
from beltline.cli.powers import control_of
from beltline.cli.shapes import ChainItem, StageItem, bound, stage_item
from beltline.cli.text import count, pad, safe, span, width
from beltline.core.chain import ChainPlan
from beltline.core.errors import QueueNotDeclared
from beltline.core.names import QueueName
from beltline.core.queues import Counts
from beltline.core.views import RunCounts
from beltline.engines.protocol import Engine, Runs

if TYPE_CHECKING:
    from beltline.app import App


@click.group(cls=Group)
def chain() -> None:
    """The lines, drawn with their queues; pause, resume. Needs the app's code (--app)."""


def _app(session: Session, name: str | None) -> "App":
    session.set_flags(app=name)
    return session.app(needed_for="a chain")


app_option = click.option("--app", "app_name", metavar="MODULE:APP", help="Where the chain is declared.")
chain_argument = click.argument("chain", type=Name("chain"))


async def chain_item(engine: Engine, plan: ChainPlan) -> ChainItem:
    runs = await engine.run_counts(plan.name) if isinstance(engine, Runs) else RunCounts()
    stages = [stage_item(stage, plan.stages, await counts_of(engine, stage.queue)) for stage in plan.stages]
    return ChainItem(
        name=plan.name,
        entered=runs.entered,
        running=runs.running,
        done=runs.done,
        dead=runs.dead,
        failed=runs.failed,
        cancelled=runs.cancelled,
        within_s=bound(plan.within_s),
        stages=stages,
    )


async def counts_of(engine: Engine, queue: QueueName) -> Counts:
    """Counts of a queue that perhaps nobody has declared yet: looking must not declare it."""
    try:
        return await engine.counts(queue)
    except QueueNotDeclared:
        return Counts()


@chain.command(shape=ChainItem)
@app_option
@pass_session
def ls(session: Session, app_name: str | None) -> None:
    """All chains of the app with their runs."""
    app = _app(session, app_name)

    async def look(engine: Engine) -> list[ChainItem]:
        return [await chain_item(engine, plan) for plan in app.plans.values()]

    items = session.run(look, app=app)
    columns = [
        Column("chain", lambda item: item.name, elastic=True),
        Column("entered", lambda item: item.entered, right=True),
        Column("running", lambda item: item.running, right=True),
        Column("done", lambda item: item.done, right=True),
        Column("dead", lambda item: item.dead, right=True),
        Column("failed", lambda item: item.failed, right=True),
        Column("cancelled", lambda item: item.cancelled, right=True),
        Column("stages", lambda item: " > ".join(stage.name for stage in item.stages), elastic=True),
    ]
    session.out.things(items, columns, id=lambda item: item.name, none="This app declares no chain.")


@chain.command(shape=ChainItem)
@chain_argument
@app_option
@pass_session
def show(session: Session, chain: str, app_name: str | None) -> None:
    """One line, drawn: stages, queues, counts."""
    app = _app(session, app_name)
    plan = known("chain", chain, app.plans)
    item = session.run(lambda engine: chain_item(engine, plan), app=app)
    session.out.thing(item, lambda: draw(session, item), id=item.name)


def draw(session: Session, item: ChainItem) -> list[str]:
    """Stages from top to bottom, between them what happens to the item on its way."""
    boxes = {stage.name: f"[{safe(stage.name)}]" for stage in item.stages}
    wide = max(width(box) for box in boxes.values())
    within = f" · to be through within {span(item.within_s)}" if item.within_s is not None else ""
    lines = [f"{session.out.paint(safe(item.name), 'bold')}   entered {count(item.entered)} · running {count(item.running)}{within}", "  in"]
    slowest = max(item.stages, key=lambda stage: stage.oldest_ready_s)
    for stage in item.stages:
        lines.append(f"  │{_joint(stage)}")
        mark = "   <- waits longest" if stage is slowest and stage.ready > 1 else ""
        lines.append(f"  {pad(boxes[stage.name], wide)}  {_numbers(session, stage)}{mark}")
    ends = [f"done {count(item.done)}", f"dead {count(item.dead)}"] + [
        f"{word} {count(n)}" for word, n in (("failed", item.failed), ("cancelled", item.cancelled)) if n
    ]
    return [*lines, "  │", f"  {' · '.join(ends)}"]


def _joint(stage: StageItem) -> str:
    return {"split": f" each: {safe(stage.split)}", "gather": " all parts together"}.get(stage.kind, "")


def _numbers(session: Session, stage: StageItem) -> str:
    parts = [f"backlog {count(stage.ready)}", f"running {count(stage.leased)}"]
    parts += [f"delayed {count(stage.delayed)}"] if stage.delayed else []
    parts += [session.out.paint(f"dead {count(stage.dead)}", "red")] if stage.dead else []
    parts += [f"oldest {span(stage.oldest_ready_s)}"] if stage.ready else []
    parts += [f"queue {safe(stage.queue)}"] if stage.queue != stage.name else []
    parts += [f"held {count(stage.held)}"] if stage.held else []
    parts += [session.out.state(stage.state)] if stage.state != "running" else []
    following = f" → {', '.join(safe(name) for name in stage.next)}" if len(stage.next) > 1 else ""
    return " · ".join(parts) + following


@chain.command(shape=ChainItem)
@chain_argument
@app_option
@click.option("--every", "every_s", metavar="SECONDS", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="How often to look.")
@click.option("--until-done", is_flag=True, help="End when no run is running.")
@pass_session
def watch(session: Session, chain: str, app_name: str | None, every_s: float, until_done: bool) -> None:
    """The line again and again; one line (or JSON object) each time."""
    app = _app(session, app_name)
    plan = known("chain", chain, app.plans)

    async def look(engine: Engine) -> None:
        while True:
            item = await chain_item(engine, plan)
            session.out.stream(item, lambda item=item: _line(item), id=item.name)  # type: ignore[misc]
            if until_done and item.running == 0:
                return
            await asyncio.sleep(every_s)

    session.run(look, app=app)


def _line(item: ChainItem) -> str:
    clock = datetime.now().astimezone().strftime("%H:%M:%S")
    stages = "  ".join(f"{safe(stage.name)} {count(stage.ready)}+{count(stage.leased)}" for stage in item.stages)
    return f"{clock}  {safe(item.name)}  running {count(item.running)} · done {count(item.done)} · dead {count(item.dead)}   {stages}"


@chain.command(shape=ChainItem)
@chain_argument
@app_option
@pass_session
def pause(session: Session, chain: str, app_name: str | None) -> None:
    """Let no worker receive for any stage. What is running finishes, and its next messages wait."""
    _switch(session, chain, app_name, paused=True)


@chain.command(shape=ChainItem)
@chain_argument
@app_option
@pass_session
def resume(session: Session, chain: str, app_name: str | None) -> None:
    """Undo a pause, for all stages."""
    _switch(session, chain, app_name, paused=False)


def _switch(session: Session, name: str, app_name: str | None, *, paused: bool) -> None:
    app = _app(session, app_name)
    plan = known("chain", name, app.plans)

    async def switch(engine: Engine) -> ChainItem:
        control = control_of(engine)
        await engine.declare(app.specs())  # a pause before the first send must find the queues
        for stage in plan.stages:
            await (control.pause if paused else control.resume)(stage.queue)
        return await chain_item(engine, plan)

    item = session.run(switch, app=app, create=True)
    session.out.thing(item, lambda: draw(session, item), id=item.name)
