"""Every failure in one form, and the exit code that belongs to it.

    error[BLT-203]: what went wrong
      why: what became of the data
      help: what to do

With --json the same as one object on stderr. A user's mistake never shows a traceback (--debug does); what is no BeltlineError is our own bug, BLT-900.
"""

import sys
from typing import TextIO

from msgspec import Struct

from beltline.cli.text import safe, safe_json
from beltline.core.codec import to_json
from beltline.core.errors import (
    BeltlineError,
    EngineForeign,
    EngineMoved,
    EngineTooNew,
    EngineTooOld,
    EngineUnavailable,
    EngineUnsafe,
    NotFound,
    QueueFull,
    QueueNotDeclared,
    Refused,
    ResultExpired,
    ResultTimeout,
    TaskUnknown,
    UsageError,
)

OK, FAILED, USAGE, NOT_FOUND, UNREACHABLE, NOT_ALLOWED, REFUSED, TIMED_OUT, PARTLY, UNKNOWN = range(10)
INTERRUPTED, TERMINATED = 130, 143

EXIT_CODES = (
    (OK, "ok"),
    (FAILED, "task failed, or unexpected"),
    (USAGE, "usage"),
    (NOT_FOUND, "not found"),
    (UNREACHABLE, "engine or server unreachable"),
    (NOT_ALLOWED, "not allowed"),
    (REFUSED, "refused (version, conflict, nothing matched)"),
    (TIMED_OUT, "timed out waiting"),
    (PARTLY, "partly done"),
    (UNKNOWN, "unknown: it may have happened, the id is printed, repeating with --id is safe"),
    (INTERRUPTED, "ctrl-c"),
    (TERMINATED, "SIGTERM"),
)

# The first row whose class fits decides.
_CODES: tuple[tuple[tuple[type[BeltlineError], ...], int], ...] = (
    ((NotFound, ResultExpired, TaskUnknown, QueueNotDeclared), NOT_FOUND),
    ((Refused, QueueFull, EngineMoved, EngineTooNew, EngineTooOld, EngineForeign, EngineUnsafe), REFUSED),
    ((ResultTimeout,), TIMED_OUT),
    ((UsageError,), USAGE),
)


def exit_code(error: BeltlineError) -> int:
    if isinstance(error, EngineUnavailable):
        return UNKNOWN if error.effect == "unknown" else NOT_ALLOWED if error.forbidden else UNREACHABLE
    return next((code for kinds, code in _CODES if isinstance(error, kinds)), FAILED)


class Problem(Struct, frozen=True, kw_only=True):
    """JSON of an error. `docs`: where the page of the code is."""

    version: int = 1
    code: str
    what: str
    why: str = ""
    help: str = ""
    exit_code: int
    docs: str = ""


def report(error: BeltlineError, *, as_json: bool = False, color: bool = False, file: TextIO | None = None) -> int:
    """Print it on stderr and return the exit code."""
    file = file or sys.stderr
    number = exit_code(error)
    docs = f"docs/errors.md#{error.code.lower()}"
    if as_json:
        problem = Problem(code=error.code, what=error.what, why=error.why, help=error.help, exit_code=number, docs=docs)
        print(safe_json(to_json({"version": problem.version, "error": problem})), file=file)
        return number
    head = f"error[{error.code}]:"
    print(f"\x1b[31m{head}\x1b[0m" if color else head, safe(error.what), file=file)
    for line in error.why.splitlines():
        print("  " + safe(line), file=file)
    for number_of_line, line in enumerate(error.help.splitlines()):
        print("  " + ("      " if number_of_line else "help: ") + safe(line), file=file)
    return number


def unexpected(error: BaseException) -> BeltlineError:
    """Whatever no class of the tree describes is our own bug, BLT-900."""
    return BeltlineError(
        f"{type(error).__name__}: {error}",
        why="This is a bug of Beltline, not of yours. What was acknowledged before is stored.",
        help="Run the same command with --debug, and report what it shows together with the output of `beltline doctor`.",
    )
