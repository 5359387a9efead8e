"""`beltline dev`: when a Python file changes, every runner is replaced by one that has loaded the new code. What runs finishes in the old one.

Code that cannot be loaded is told and not used: the old runners stay until the next change. Retries, leases and received messages are untouched,
because the supervisor never loads the code.
"""

import logging
from collections.abc import Sequence
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
    watched = [Path(path) for path in paths] or [Path(supervisor.config.app_dir or ".")]
    async for changes in awatch(*watched, watch_filter=PythonFilter(), debounce=200, step=50):
        names = sorted({Path(path).name for _, path in changes})
        log.info("%s changed: loading the code anew", ", ".join(names[:5]))
        supervisor.reload()
