"""What a worker is told, once, at its start."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from beltline.core.limits import MAX_LEASE_S, integer, seconds
from beltline.worker.host import processors

MAX_SLOTS = 4000  # in one runner; the shared page of marks has room for these


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """`app`: "module:attribute" or "path/to/file.py:attribute". `url`: "" = what the app says.

    `queues`    queue -> (least, most) slots; empty = all queues the app announces with `slots` each. Where they differ the worker begins with `least` and is
                resized while it works (resizing.py); with 0 it has no runner while there is nothing to do.
    `runners`   processes that share the slots; None = as many as there are processors for it, at most one per slot. Tasks of kind "process" get runners of their own.
    `lease_s`   renewed every third of it; only a dead host makes anybody wait for it.
    `drain_s`   how long a stopping worker lets running tasks finish. `grace_s`: between asking a task to stop and killing its runner.
    `max_tasks`, `max_rss_bytes`  a runner beyond either is replaced, after it has finished what it runs.
    `dry_run`   decide how many slots the ranges should have and record it, but change nothing.
    `burst`     stop when nothing is ready or leased in the worker's queues.
    `app_dir`   put first on the runners' import path. `log_level`: for the runners' log, unless the app configures its own.
    """

    app: str
    url: str = ""
    queues: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    slots: int = 4
    runners: int | None = None
    lease_s: float = 30.0
    drain_s: float = 30.0
    grace_s: float = 5.0
    max_tasks: int | None = None
    max_rss_bytes: int | None = None
    in_process: bool = False
    durability: str | None = None
    max_body: int | None = None
    dry_run: bool = False
    burst: bool = False
    app_dir: str = ""
    log_level: str = "INFO"
    sweep: bool = True
    history_s: float = 7 * 86400.0

    def __post_init__(self) -> None:
        seconds("lease_s", self.lease_s, least=0.1, most=MAX_LEASE_S)
        seconds("drain_s", self.drain_s)
        seconds("grace_s", self.grace_s)
        seconds("history_s", self.history_s)
        integer("slots", self.slots, least=1, most=MAX_SLOTS)
        for queue, (least, most) in self.queues.items():
            integer(f"slots of {queue}", least, least=0, most=MAX_SLOTS)
            integer(f"slots of {queue}", most, least=max(1, least), most=MAX_SLOTS)
        for name in ("runners", "max_tasks", "max_rss_bytes"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), least=1, most=2**53)

    def runner_count(self, slots: int) -> int:
        """How many runners share `slots` slots; none for none."""
        return min(1 if self.in_process else self.runners or processors(), slots)
