"""Data goes to stdout, everything else to stderr. Four forms of data:

    table   aligned, for people, when stdout is a terminal          TSV    one header line, one line each, when it is not
    JSON    --json: an array or an object, one object a line (NDJSON) from commands that go on; every object carries "version"
    ids     --quiet: the id or name of each thing, one a line

The form is chosen once; a command hands over things (structs of shapes.py) and columns, and never asks which form it is.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, TextIO

from msgspec import Struct

from beltline.cli.text import safe, safe_json, table
from beltline.core.codec import to_json
from beltline.core.errors import Refused

SCHEMA_VERSION = 1
_COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34"}
_STATE_COLOURS = {
    "dead": "red",
    "failed": "red",
    "paused": "yellow",
    "snoozed": "yellow",
    "tripped": "red",
    "trying": "yellow",
    "lost": "red",
    "delayed": "yellow",
    "running": "blue",
    "leased": "blue",
    "done": "green",
}


class Form(StrEnum):
    TABLE = "table"
    TSV = "tsv"
    JSON = "json"
    IDS = "ids"


class Column(Struct, frozen=True):
    """`value` is what a program reads (TSV), `show` what a person reads (default: the same). `elastic` may be clipped on a narrow terminal."""

    title: str
    value: Callable[[Any], object]
    show: Callable[[Any], str] | None = None
    right: bool = False
    elastic: bool = False


class Output:
    def __init__(self, *, as_json: bool = False, quiet: bool = False, color: str = "auto", no_input: bool = False) -> None:
        self.out: TextIO = sys.stdout
        self.err: TextIO = sys.stderr
        self.terminal = self.out.isatty()
        self.form = Form.JSON if as_json else Form.IDS if quiet else Form.TABLE if self.terminal else Form.TSV
        self.quiet = quiet
        # Asking needs a person on both ends: one who can answer and one who can read the question.
        self.may_ask = not no_input and sys.stdin is not None and sys.stdin.isatty() and self.err.isatty()
        self.color = color == "always" or (color == "auto" and self.terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb")

    @property
    def columns(self) -> int:
        return shutil.get_terminal_size((100, 24)).columns

    # ------------------------------------------------------------------------------------------------------------ data
    def things(self, things: Sequence[Any], columns: Sequence[Column], *, id: Callable[[Any], str], none: str = "Nothing to show.") -> None:
        """A list: an array, a table, TSV, or ids. `none` is said on stderr when the list is empty and a person looks."""
        match self.form:
            case Form.JSON:
                self.json(list(things))
            case Form.IDS:
                self.lines(id(thing) for thing in things)
            case Form.TSV:
                self.lines(("\t".join(column.title for column in columns), *(self._tsv(thing, columns) for thing in things)))
            case Form.TABLE:
                if not things:
                    self.note(none)
                    return
                columns, rows = _not_blank(columns, [[_shown(column, thing) for column in columns] for thing in things])
                titles, right, elastic = [c.title for c in columns], [c.right for c in columns], [c.elastic for c in columns]
                head, *body = table(titles, rows, right=right, elastic=elastic, columns=self.columns)
                self.lines((self.paint(head, "bold"), *body))

    def thing(self, thing: Any, lines: Callable[[], Iterable[str]], *, id: str = "") -> None:
        """One thing: an object, or the lines for people. `lines` must have been made `safe`."""
        if self.form is Form.JSON:
            self.json(thing)
        elif self.form is Form.IDS:
            self.lines([id] if id else [])
        else:
            self.lines(lines())

    def stream(self, thing: Any, line: Callable[[], str], *, id: str = "") -> None:
        """One thing of a command that goes on: one line in every form."""
        self.thing(thing, lambda: [line()], id=id)
        self.out.flush()

    def json(self, value: object) -> None:
        self.lines([safe_json(to_json(value))])

    def lines(self, lines: Iterable[str]) -> None:
        for line in lines:
            print(line, file=self.out)

    def _tsv(self, thing: Any, columns: Sequence[Column]) -> str:
        return "\t".join(safe(_plain(column.value(thing))) for column in columns)

    # ---------------------------------------------------------------------------------------------------------- people
    def note(self, text: str) -> None:
        """Progress and remarks; silent with --quiet."""
        if not self.quiet:
            print(text, file=self.err, flush=True)

    def warn(self, text: str) -> None:
        print(self.paint("warning:", "yellow") + " " + text, file=self.err, flush=True)

    def paint(self, text: str, colour: str) -> str:
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self.color and text else text

    def state(self, word: str) -> str:
        """A state in its colour; the word itself always says it too."""
        colour = _STATE_COLOURS.get(word)
        return self.paint(word, colour) if colour else word

    def confirm(self, what: str, *, yes: bool, dry_run: bool = False) -> bool:
        """Says what is about to happen, and asks. False: a dry run, so do nothing. Raises Refused when nobody may be asked or the answer is no."""
        if dry_run:
            self.note(f"{what} (dry run: nothing was changed)")
            return False
        if yes:
            self.note(what)
            return True
        if not self.may_ask:
            raise Refused(
                what,
                why="This cannot be undone, and there is no terminal to ask on.",
                help="Repeat with --yes to do it, or --dry-run to only look.",
            )
        print(f"{what}. Go on? [y/N] ", end="", file=self.err, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise Refused("Nothing was changed.", why="The answer was not yes.")
        return True


def _not_blank(columns: Sequence[Column], rows: list[list[str]]) -> tuple[Sequence[Column], list[list[str]]]:
    """Without the columns that say nothing: a person reads what is there, a program (TSV) always gets all of them."""
    kept = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    return [columns[index] for index in kept], [[row[index] for index in kept] for row in rows]


def _shown(column: Column, thing: Any) -> str:
    return column.show(thing) if column.show is not None else safe(_plain(column.value(thing)))


def _plain(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".") if value != float("inf") else ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (dict, list, tuple)):
        return to_json(value)
    return str(value)
