"""beltline dev: a worker that takes up changes.

a .py file        every runner is replaced by one that loads the new code; what runs finishes in the old one, leases and queues notice nothing
.toml or .env     the worker drains and starts again with the new configuration
code that fails   is told; the old runners stay, or, if there are none yet, the next change starts the worker
"""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec import Struct

from beltline.cli.command import Command, Session, pass_session
from beltline.cli.output import SCHEMA_VERSION, Form
from beltline.cli.problems import INTERRUPTED, USAGE
from beltline.cli.text import safe
from beltline.cli.worker import said_ready, worker_config
from beltline.config import read_dotenv

if TYPE_CHECKING:
    from beltline.worker.supervisor import Supervisor

POLL_S = 0.5
DRAIN_S = 5.0  # whoever develops does not wait half a minute for a restart
CODE, SETTINGS = (".py",), (".toml", ".env")
IGNORED = frozenset({"__pycache__", "node_modules", "site-packages", "build", "dist"})


class Changed(Struct, frozen=True, kw_only=True):
    """One line at every change. `restarts`: "runners" for code, "worker" for settings."""

    version: int = SCHEMA_VERSION
    files: list[str]
    restarts: str


@click.command(cls=Command, shape=Changed)
@click.argument("app_name", metavar="[MODULE:APP]", required=False)
@click.option("-q", "--queue", "queues", multiple=True, metavar="QUEUE:SLOTS", help="Serve this queue (again for more; else all).")
@click.option(
    "--watch",
    "folders",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder to watch (again for more; else this one).",
)
@pass_session
def dev(session: Session, app_name: str | None, queues: tuple[str, ...], folders: tuple[Path, ...]) -> int:
    """A worker that reloads when your code changes. Reads .env too, for itself and for your code."""
    from beltline.cli.logs import set_up

    watched = folders or (Path.cwd(),)
    outside = dict(os.environ)
    while True:
        session = session.again()
        session.dotenv = True
        session.set_flags(app=app_name, queues=queues, drain_s=DRAIN_S)
        _take_dotenv(outside)
        set_up(form="json" if session.out.form is Form.JSON else session.config.log, level=session.config.log_level)
        code = asyncio.run(_serve(session, watched))
        if code is not None:
            return code
        session.out.note("the worker starts again")


async def _serve(session: Session, folders: Sequence[Path]) -> int | None:
    """The worker's exit code, or None when it shall start again."""
    from beltline.worker.reload import forget_compiled, write_no_compiled
    from beltline.worker.serve import serve

    write_no_compiled()
    stop, over = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    running: list[Supervisor] = []
    again: list[bool] = []
    settled = asyncio.Event()  # something changed while no worker ran

    def take(changed: set[str]) -> None:
        forget_compiled(changed)
        settings = [name for name in changed if name.endswith(SETTINGS)]
        item = Changed(files=sorted(_short(name) for name in changed), restarts="worker" if settings or not running else "runners")
        session.out.stream(
            item, lambda: f"changed: {safe(', '.join(item.files[:3]))}{', …' if len(item.files) > 3 else ''}", id="\n".join(item.files)
        )
        settled.set()
        if settings:
            again.append(True)
            stop.set()
        elif running:
            running[-1].reload()

    def ready(supervisor: "Supervisor") -> None:
        running.append(supervisor)
        said_ready(session, supervisor)

    def watch() -> None:
        looks = _watched(folders, over) if find_spec("watchfiles") else _polled(folders, over)
        for changed in looks:
            if changed:
                loop.call_soon_threadsafe(take, changed)

    watcher = threading.Thread(target=watch, name="beltline-watch", daemon=True)
    watcher.start()
    try:
        code = await serve(worker_config(session), on_ready=ready, stop=stop)
        if again:
            return None
        if code != USAGE:
            return code
        session.out.note("Waiting for a change.")
        return await _wait_for(settled)
    finally:
        over.set()
        await asyncio.to_thread(watcher.join, 5)


async def _wait_for(changed: asyncio.Event) -> int | None:
    """None when something changed, the exit code when a signal came first."""
    loop, signals = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
    ended: list[int] = []

    def end(number: int) -> None:
        ended.append(INTERRUPTED if number == signal.SIGINT else 128 + number)
        changed.set()

    for number in signals:
        loop.add_signal_handler(number, end, number)
    try:
        await changed.wait()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
    return ended[0] if ended else None


def _watched(folders: Sequence[Path], over: threading.Event) -> Iterator[set[str]]:
    """With the extra `dev`: the system tells of changes."""
    from watchfiles import watch

    def matters(_change: object, path: str) -> bool:
        inside = [Path(path).relative_to(folder.absolute()) for folder in folders if folder.absolute() in Path(path).parents]
        return path.endswith((*CODE, *SETTINGS)) and not any(_hidden(part) for place in inside for part in place.parts)

    for changes in watch(*folders, watch_filter=matters, stop_event=over, rust_timeout=int(POLL_S * 1000), step=100, raise_interrupt=False):
        yield {path for _, path in changes}


def _polled(folders: Sequence[Path], over: threading.Event) -> Iterator[set[str]]:
    """Without it: look at every file's time and size, twice a second."""
    seen = _snapshot(folders)
    while not over.wait(POLL_S):
        now = _snapshot(folders)
        yield {name for name in seen.keys() | now.keys() if seen.get(name) != now.get(name)}
        seen = now


def _snapshot(folders: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """Path -> (time, size) of every file that matters: a few milliseconds for a thousand files."""
    found = {}
    for root in folders:
        for folder, inner, names in os.walk(root):
            inner[:] = [name for name in inner if not _hidden(name)]
            for name in names:
                if name.endswith((*CODE, *SETTINGS)) and not _hidden(name):
                    path = Path(folder, name)
                    try:
                        facts = path.stat()
                    except OSError:  # gone between the look at the folder and the look at the file
                        continue
                    found[str(path)] = (facts.st_mtime_ns, facts.st_size)
    return found


def _hidden(name: str) -> bool:
    return name in IGNORED or (name.startswith(".") and name != ".env")


def _short(path: str) -> str:
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


def _take_dotenv(outside: dict[str, str]) -> None:
    """The environment of this process and its runners: what it was at the start, and .env where that said nothing."""
    path = Path.cwd() / ".env"
    os.environ.clear()
    os.environ.update({**(read_dotenv(path) if path.is_file() else {}), **outside})
