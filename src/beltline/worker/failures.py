"""Exceptions as text: what a dead letter shows, and the class names by which a retry policy chooses."""

import traceback
from pathlib import Path
from types import TracebackType

from beltline.core.outcome import Cause, Failure

MAX_TEXT = 4_000  # characters
MAX_TRACEBACK = 32_000
_OURS = str(Path(__file__).parent)


def failure_of(error: BaseException, cause: Cause | None = None) -> Failure:
    """Type, text and traceback (without locals, without our own frames at its top)."""
    if cause is None:
        cause = Cause.MEMORY if isinstance(error, MemoryError) else Cause.ERROR
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001  # the user's own __str__
        text = f"<its text cannot be made: {type(broken).__name__}>"
    try:
        lines = traceback.format_exception(type(error), error, _below_us(error.__traceback__))
    except Exception as broken:  # noqa: BLE001  # as above
        lines = [f"<its traceback cannot be made: {type(broken).__name__}>"]
    return Failure(cause, name_of(type(error)), carried(text, MAX_TEXT), carried("".join(lines), MAX_TRACEBACK))


def _below_us(found: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame of the user's on; all of it if it ended within ours."""
    below = found
    while below is not None and below.tb_frame.f_code.co_filename.startswith(_OURS):
        below = below.tb_next
    return below or found


def name_of(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def lineage(kind: type[BaseException]) -> tuple[str, ...]:
    """The class and its ancestors, each qualified and bare, nearest first: what `Retry(on=…, never=…)` is matched with."""
    names: dict[str, None] = {}
    for each in kind.__mro__[:-1]:
        names[f"{each.__module__}.{each.__qualname__}"] = None
        names[each.__qualname__] = None
    return tuple(names)


def carried(text: str, most: int) -> str:
    """Text that every store takes: valid Unicode, at most `most` characters (the middle is left out)."""
    if len(text) > most:
        text = f"{text[: most // 2]}\n… {len(text) - most:,} characters left out …\n{text[-most // 2 :]}"
    return text.encode("utf-8", "backslashreplace").decode()


def timed_out(timeout_s: float, how: str) -> Failure:
    return Failure(Cause.TIMEOUT, "TimeoutError", f"It ran longer than its timeout of {timeout_s:g} s; {how}.")


TIMEOUT_LINEAGE = lineage(TimeoutError)
