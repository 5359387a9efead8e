"""Names and ids on the command line: arguments that complete themselves, and "did you mean" when one is wrong."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from beltline.core.errors import NotFound

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def unknown(kind: str, name: str, known: Iterable[str]) -> NotFound:
    """NotFound for something that is declared, not sent: says what there is instead, and what was probably meant."""
    from difflib import get_close_matches

    names = sorted(known)
    error = NotFound(kind=kind, name=name)
    by_last_part = {each.rpartition(".")[2]: each for each in names}  # people leave the module out
    near = get_close_matches(name, names, n=1) or [by_last_part[each] for each in get_close_matches(name, by_last_part, n=1)]
    error.why = f"Known: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}." if names else f"No {kind} is known here."
    error.help = f"Did you mean {near[0]!r}?" if near else ""
    return error


def known(kind: str, name: str, things: Mapping[str, T]) -> T:
    """Raises NotFound."""
    if name not in things:
        raise unknown(kind, name, things)
    return things[name]


class Name(click.ParamType[Any]):
    """A text that the shell completes with real names of `kind` (queue, task, chain, worker)."""

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds
        self.name = kinds[0]

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from beltline.cli.completion import names

        found = names(ctx)
        return [CompletionItem(name) for kind in self.kinds for name in found.get(kind, []) if name.startswith(incomplete)]


def queue_argument(function: F) -> F:
    return click.argument("queue", type=Name("queue"))(function)
