"""beltline worker: one supervisor with its runners, until SIGTERM (drain) or a second one (now)."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec import Struct

from beltline.cli.command import Command, Session, pass_session
from beltline.cli.names import Name
from beltline.cli.output import SCHEMA_VERSION, Form
from beltline.cli.text import safe

if TYPE_CHECKING:
    from beltline.worker.config import WorkerConfig
    from beltline.worker.supervisor import Supervisor


class WorkerStarted(Struct, frozen=True, kw_only=True):
    """Printed once, when the worker receives. `queues`: queue -> slots."""

    version: int = SCHEMA_VERSION
    worker: str
    pid: int
    app: str
    engine: str
    queues: dict[str, int]


@click.command(cls=Command, shape=WorkerStarted)
@click.argument("app_name", metavar="[MODULE:APP]", required=False)
@click.option(
    "-q",
    "--queue",
    "queues",
    multiple=True,
    metavar="QUEUE:SLOTS",
    type=Name("queue"),
    help="Serve this queue, with 4 or 2..8 slots (again for more; else all).",
)
@click.option("--slots", type=int, help="Slots of a queue that names none of its own.  [4]")
@click.option("--runners", type=click.IntRange(min=1), help="Processes that share the slots (else one per processor).")
@click.option("--in-process", is_flag=True, help="Run tasks in this process: simpler to debug, and a crash costs everything.")
@click.option("--dry-run", is_flag=True, help="Where slots are a range: decide how many there should be and record why, but change nothing.")
@click.option("--burst", is_flag=True, help="End when nothing is ready or leased.")
@click.option("--lease", "lease_s", metavar="TIME", help="How soon the messages of a dead host are received again.  [30]")
@click.option("--drain", "drain_s", metavar="TIME", help="How long a stopping worker waits for what runs.  [30]")
@click.option("--max-tasks", type=click.IntRange(min=1), help="Replace a runner after so many tasks.")
@click.option("--max-memory", "max_rss_mb", type=click.IntRange(min=1), metavar="MB", help="Replace a runner above so much memory.")
@click.option("--durability", type=click.Choice(["disk", "os", "memory"]), help="What a send has survived when it returns.  [disk]")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least severe line that is logged.  [info]")
@click.option("--log", type=click.Choice(["text", "json"]), help="Form of the log on stderr.  [text]")
@pass_session
def worker(session: Session, /, app_name: str | None, **flags: Any) -> int:
    """Run a worker for an app: beltline worker tasks:app -q watermark:4 -q resize:2..8

    SIGTERM or ctrl-c: it receives no more, lets running tasks finish within --drain, gives back the rest, and ends. A second signal: at once.
    """
    own = ("runners", "in_process", "burst", "dry_run", "max_tasks", "max_rss_mb")
    session.set_flags(app=app_name, **{name: value for name, value in flags.items() if name not in own})
    import asyncio

    from beltline.cli.logs import set_up
    from beltline.worker.serve import serve

    set_up(form="json" if session.out.form is Form.JSON else session.config.log, level=session.config.log_level)
    config = worker_config(session, **{name: flags[name] for name in own})
    return asyncio.run(serve(config, on_ready=lambda supervisor: said_ready(session, supervisor)))


def worker_config(
    session: Session,
    *,
    runners: int | None = None,
    in_process: bool = False,
    burst: bool = False,
    dry_run: bool = False,
    max_tasks: int | None = None,
    max_rss_mb: int | None = None,
) -> "WorkerConfig":
    """The app is only named here: the runners load it, the supervisor never does. Raises UsageError when none is named."""
    from beltline.worker.config import WorkerConfig

    settings = session.config
    if session.config_file is not None:
        os.environ["BELTLINE_CONFIG"] = str(session.config_file.absolute())  # the runners read the same file
    return WorkerConfig(
        app=session.app_name(needed_for="a worker"),
        url=settings.url if settings.origin("url").startswith("--") else "",  # else the app says, as in every other process of it
        queues={name: (slots.least, slots.most) for name, slots in settings.served.items()},
        slots=settings.slots,
        runners=runners,
        lease_s=settings.lease_s,
        drain_s=settings.drain_s,
        max_tasks=max_tasks,
        max_rss_bytes=None if max_rss_mb is None else max_rss_mb * 1_000_000,
        in_process=in_process,
        durability=session.durability,
        max_body=settings.max_body if settings.origin("max_body") != "default" else None,
        burst=burst,
        dry_run=dry_run,
        app_dir=str(Path.cwd()),
        log_level=settings.log_level.upper(),
        history_s=settings.history_s,
    )


def said_ready(session: Session, supervisor: "Supervisor") -> None:
    """The one line of data: this worker receives now."""
    slots = {str(name): intake.slots for name, intake in supervisor.dealing.intakes.items()}
    item = WorkerStarted(worker=supervisor.id, pid=os.getpid(), app=supervisor.config.app, engine=supervisor.store.engine.name, queues=slots)
    served = " ".join(f"{name}:{number}" for name, number in slots.items())
    session.out.stream(item, lambda: f"{safe(item.worker)} receives {safe(served)} ({item.engine}); ctrl-c drains", id=item.worker)
