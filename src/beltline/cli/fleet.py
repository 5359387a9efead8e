"""beltline fleet: workers and what they serve, from their heartbeats."""

from datetime import datetime

import click

from beltline.cli.command import Group, Session, pass_session
from beltline.cli.names import Name, unknown
from beltline.cli.output import Column
from beltline.cli.powers import fleet_of
from beltline.cli.shapes import WorkerItem, instant, worker_item
from beltline.cli.text import ago, safe, span
from beltline.core.codec import to_json
from beltline.engines.protocol import Engine


@click.group(cls=Group)
def fleet() -> None:
    """Workers and what they serve."""


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


def _lines(session: Session, item: WorkerItem, now: datetime) -> list[str]:
    lines = [
        f"{session.out.paint(safe(item.id), 'bold')}   {session.out.state(item.state)}   pid {item.pid} on {safe(item.host)}",
        f"  started    {ago(item.started_at, now)}, heartbeat {span(item.heartbeat_age_s)} ago",
        f"  queues     {_queues(item)}",
        f"  tasks      {safe(', '.join(item.tasks)) or 'none'}",
    ]
    return lines + [f"  {safe(name):<10} {safe(value if isinstance(value, str) else to_json(value))}" for name, value in item.detail.items()]
