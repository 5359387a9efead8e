"""What changes messages for good: the count first, then a yes. The same options on every such command, and an empty filter is an error, never "all"."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from beltline.core.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])
NO_REASON = "Nothing was changed."


def destructive(function: F) -> F:
    """--yes, --dry-run, --reason."""
    options = (
        click.option("--yes", "-y", is_flag=True, help="Do not ask. Needed where there is no terminal."),
        click.option("--dry-run", is_flag=True, help="Only say what would happen."),
        click.option("--reason", metavar="TEXT", default="", help="Why; kept with cancelled messages and repeated in the output."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def refuse_empty(empty: bool, what: str) -> None:
    """An empty filter is an error. Raises UsageError."""
    if empty:
        raise UsageError(f"Say which messages to {what}.", why="No id and no filter was given, and nothing given never means all.", help=NO_REASON)
