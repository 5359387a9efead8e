"""`beltline dev`: when a Python file changes, every runner is replaced by one that has loaded the new code. What runs finishes in the old one.

Code that cannot be loaded is told and not used: the old runners stay until the next change. Retries, leases and received messages are untouched,
because the supervisor never loads the code.

Python takes a compiled file for current when its source has the same size and the same second of change. A file saved twice in a second would run as it was the
first time: so the compiled form of a changed file is deleted, and runners that are started from then on write none.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from importlib.util import cache_from_source
from pathlib import Path

from beltline.core.errors import ExtraMissing
from beltline.worker.supervisor import Supervisor

log = logging.getLogger("beltline.worker")


async def watch_and_restart(supervisor: Supervisor, paths: Sequence[Path | str] = ()) -> None:
    """For ever. `paths`: what to watch, the app's directory or the current one if empty. Raises ExtraMissing without watchfiles."""
    try:
        from watchfiles import PythonFilter, awatch
    except ImportError:
        raise ExtraMissing(extra="dev", needed_for="Reloading on changes") from None
    write_no_compiled()
    watched = [Path(path) for path in paths] or [Path(supervisor.config.app_dir or ".")]
    async for changes in awatch(*watched, watch_filter=PythonFilter(), debounce=200, step=50):
        forget_compiled(path for _, path in changes)
        names = sorted({Path(path).name for _, path in changes})
        log.info("%s changed: loading the code anew", ", ".join(names[:5]))
        supervisor.reload()


def write_no_compiled() -> None:
    """For runners started from now on."""
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


def forget_compiled(paths: Iterable[str]) -> None:
    """Of those that are Python files."""
    for path in paths:
        if path.endswith(".py"):
            Path(cache_from_source(path)).unlink(missing_ok=True)
