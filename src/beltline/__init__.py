"""Beltline: tasks on durable queues, lines of stages, fleets of workers. `import beltline` is all most programs need.

Names are loaded when they are first used, so that the command line and a runner pay only for what they touch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see; _PLACES below is the same list for the interpreter, and a test compares the two
    from beltline.app import App
    from beltline.chains import Chain, branch
    from beltline.context import Current, current
    from beltline.core.asks import Cancel, Reject, RetryLater, Snooze
    from beltline.core.errors import (
        BeltlineError,
        EngineUnavailable,
        InvalidArguments,
        NotFound,
        QueueFull,
        ResultExpired,
        ResultTimeout,
        TaskFailed,
        UsageError,
    )
    from beltline.core.flow import KillSwitch
    from beltline.core.retry import Retry
    from beltline.handles import Handle
    from beltline.limiting import Limited, Unique
    from beltline.resources import inject
    from beltline.tasks import Task
    from beltline.worker.serve import Worker

    __version__: str

__all__ = [
    "App",
    "BeltlineError",
    "Cancel",
    "Chain",
    "Current",
    "EngineUnavailable",
    "Handle",
    "InvalidArguments",
    "KillSwitch",
    "Limited",
    "NotFound",
    "QueueFull",
    "Reject",
    "ResultExpired",
    "ResultTimeout",
    "Retry",
    "RetryLater",
    "Snooze",
    "Task",
    "TaskFailed",
    "Unique",
    "UsageError",
    "Worker",
    "__version__",
    "branch",
    "current",
    "inject",
]


_PLACES = {
    "App": "beltline.app",
    "BeltlineError": "beltline.core.errors",
    "Cancel": "beltline.core.asks",
    "Chain": "beltline.chains",
    "Current": "beltline.context",
    "EngineUnavailable": "beltline.core.errors",
    "Handle": "beltline.handles",
    "InvalidArguments": "beltline.core.errors",
    "KillSwitch": "beltline.core.flow",
    "Limited": "beltline.limiting",
    "NotFound": "beltline.core.errors",
    "QueueFull": "beltline.core.errors",
    "Reject": "beltline.core.asks",
    "ResultExpired": "beltline.core.errors",
    "ResultTimeout": "beltline.core.errors",
    "Retry": "beltline.core.retry",
    "RetryLater": "beltline.core.asks",
    "Snooze": "beltline.core.asks",
    "Task": "beltline.tasks",
    "TaskFailed": "beltline.core.errors",
    "Unique": "beltline.limiting",
    "UsageError": "beltline.core.errors",
    "Worker": "beltline.worker.serve",
    "branch": "beltline.chains",
    "current": "beltline.context",
    "inject": "beltline.resources",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("beltline")
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module 'beltline' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(place), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
