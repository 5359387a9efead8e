"""beltline completion: the script for a shell, and the answers to it.

Names come from the engine and the app's code, asked in a thread with a bound of 300 ms; whoever presses Tab must not wait for a store that is away.
What was found is kept for a minute in the user's cache folder, and an old answer is better than none.
"""

import io
import json
import os
import sys
import threading
import time
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from beltline.cli.command import Command, Session, check_reachable, pass_session
from beltline.core.errors import BeltlineError

BOUND_S = 0.3
FRESH_S = 60.0
SHELLS = ("bash", "zsh", "fish")
INSTALL = {
    "bash": 'eval "$(beltline completion bash)"      # in ~/.bashrc',
    "zsh": 'eval "$(beltline completion zsh)"       # in ~/.zshrc',
    "fish": "beltline completion fish | source       # in ~/.config/fish/config.fish",
}
Names = dict[str, list[str]]


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(SHELLS))
@pass_session
def completion(session: Session, shell: str) -> None:
    """Print the completion script for a shell; names of queues, tasks and chains complete too."""
    root = click.get_current_context().find_root().command
    script = _source(root, shell)
    session.out.thing({"version": 1, "shell": shell, "script": script}, lambda: [script], id=shell)
    if session.out.terminal:
        session.out.note(f"# {INSTALL[shell]}")


def _source(root: click.Command, shell: str) -> str:
    kind = get_completion_class(shell)
    assert kind is not None  # SHELLS are click's own three
    made = kind(root, {}, "beltline", "_BELTLINE_COMPLETE")
    # Not .source(): it starts bash to read its version and warns about old ones, on stderr, in every new terminal.
    return (made.source_template % made.source_vars()).strip()


def answer(root: click.Command) -> int:
    """What a shell asks: `_BELTLINE_COMPLETE=bash_complete`. Leaves at once afterwards, whatever a slow look-up still does."""
    instruction = os.environ["_BELTLINE_COMPLETE"]
    shell, _, what = instruction.partition("_")
    kind = get_completion_class(shell)
    if kind is None or what not in ("complete", "source"):
        return 1
    if what == "source":
        print(_source(root, shell))
        return 0
    # The app's code is imported on the way and may print: only our answer may reach the shell.
    shell_reads, sys.stdout, sys.stderr = sys.stdout, io.StringIO(), io.StringIO()
    text = kind(root, {}, "beltline", "_BELTLINE_COMPLETE").complete()
    if text:
        print(text, file=shell_reads, flush=True)
    os._exit(0)


def names(ctx: click.Context) -> Names:
    """Queue, task, chain and worker names, within 300 ms."""
    session = Session(url=ctx.params.get("url"), config_file=ctx.params.get("config_file"))
    session.set_flags(app=ctx.params.get("app_name"))
    try:
        cache = _cache_file(f"{session.config.url}\0{session.config.app}\0{Path.cwd()}")
    except BeltlineError:
        return {}
    kept, age_s = _kept(cache)
    if kept and age_s < FRESH_S:
        return kept
    found: Names = {}
    thread = threading.Thread(target=_look, args=(session, found), daemon=True)
    thread.start()
    thread.join(BOUND_S)
    if thread.is_alive() or not found:
        return kept
    _keep(cache, found)
    return found


def _look(session: Session, found: Names) -> None:
    """Fills `found`, the engine's names at the end in one step: the reader may leave in the middle. Says nothing on any failure: completion never speaks."""
    collected: Names = {"queue": [], "task": [], "chain": [], "worker": [], "limit": [], "schedule": []}
    try:
        if session.has_app:
            app = session.app()
            collected["task"] = list(app.tasks)
            collected["chain"] = list(app.chains)
            collected["queue"] = [spec.name for spec in app.specs()]
            collected["limit"] = list(app.limits)
            collected["schedule"] = [spec.name for spec in app.schedules.specs()]
        check_reachable(session.config.url, create=False)
        session.run(lambda engine: _from_engine(engine, collected))
    except Exception:  # noqa: BLE001, S110  # a shell shows whatever is printed here in the middle of the user's line
        pass
    found.update({kind: sorted(set(each)) for kind, each in collected.items()})


async def _from_engine(engine: object, collected: Names) -> None:
    from beltline.engines.protocol import Browse, Fleet, Limits, Schedules

    if isinstance(engine, Browse):
        collected["queue"] += [spec.name for spec in await engine.queues()]
    if isinstance(engine, Fleet):
        for worker in await engine.workers():
            collected["task"] += worker.tasks
            collected["worker"].append(worker.id)
    if isinstance(engine, Limits):
        collected["limit"] += [view.name for view in await engine.limits()]
    if isinstance(engine, Schedules):
        collected["schedule"] += [view.schedule.name for view in await engine.schedules()]


def _cache_file(about: str) -> Path:
    import hashlib

    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "beltline" / f"names-{hashlib.blake2b(about.encode(errors='replace'), digest_size=8).hexdigest()}.json"


def _kept(cache: Path) -> tuple[Names, float]:
    try:
        age_s = time.time() - cache.stat().st_mtime
        kept = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}, 0.0
    fits = isinstance(kept, dict) and all(isinstance(each, list) and all(isinstance(name, str) for name in each) for each in kept.values())
    return (kept, age_s) if fits else ({}, 0.0)


def _keep(cache: Path, found: Names) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = cache.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(found), encoding="utf-8")
        part.replace(cache)
    except OSError:
        pass
