"""Beltline: tasks on durable queues, lines of stages, fleets of workers. `import beltline` is all most programs need."""

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
from beltline.core.retry import Retry
from beltline.handles import Handle
from beltline.resources import inject
from beltline.tasks import Task

__all__ = [
    "App",
    "BeltlineError",
    "Cancel",
    "Chain",
    "Current",
    "EngineUnavailable",
    "Handle",
    "InvalidArguments",
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
    "UsageError",
    "__version__",
    "branch",
    "current",
    "inject",
]


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("beltline")
    raise AttributeError(f"module 'beltline' has no attribute {name!r}")
