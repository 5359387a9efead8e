"""Whether what one stage returns may be handed to the next: types against types, as far as both are known."""

import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar


def element(kind: Any) -> Any:
    """The type of a list's elements; what is no list has one that fits nothing."""
    if kind is Any:
        return Any
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin in (list, set, frozenset, Sequence) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return arguments[0] if arguments else Any
    if kind in (list, tuple, set):
        return Any
    return NotAList


class NotAList:
    """Fits nothing."""

    __qualname__ = "no list"


def fits(given: Any, into: Any) -> bool:
    """Whether a value of type `given` may be handed to `into`. Cautious: only a clear contradiction is refused."""
    if given is Any or into is Any or given == into or isinstance(given, TypeVar) or isinstance(into, TypeVar):
        return True
    given, into = _bare(given), _bare(into)
    if _is_union(given):
        return any(fits(one, into) for one in typing.get_args(given))
    if _is_union(into):
        return any(fits(given, one) for one in typing.get_args(into))
    given_origin, into_origin = typing.get_origin(given) or given, typing.get_origin(into) or into
    if not isinstance(given_origin, type) or not isinstance(into_origin, type):
        return True
    if given_origin is NotAList:
        return False
    if given_origin is int and into_origin is float:
        return True
    if not (issubclass(given_origin, into_origin) or {given_origin, into_origin} <= {list, tuple, set, frozenset, Sequence}):
        return into_origin in (list, tuple, set, frozenset) and given_origin in (list, tuple, set, frozenset)
    arguments = zip(typing.get_args(given), typing.get_args(into), strict=False)
    return all(fits(one, other) for one, other in arguments)


def _bare(kind: Any) -> Any:
    while typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    return kind


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)
