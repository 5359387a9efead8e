"""Logging of the processes that go on (worker, dev, demo), set up here at the edge: a library never does that.

Text for people, one JSON object a line for programs (`BELTLINE_LOG=json`). Task data in a line cannot move the cursor or start a line of its own.
"""

import logging
import sys
from datetime import UTC, datetime

from beltline.cli.text import safe, safe_json, safe_lines
from beltline.core.codec import to_json

# Attributes of every LogRecord; what else a record carries was given as extra=… and belongs into the JSON line.
_PLAIN = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


def set_up(*, form: str, level: str) -> None:
    """Lines of all loggers to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("asyncio", "watchfiles"):
        logging.getLogger(name).setLevel(logging.WARNING)


class TextLines(logging.Formatter):
    """`12:03:11 info    text`; what ends the process looks like any error of the command line."""

    def format(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.CRITICAL and not record.exc_info:
            text, _, code = record.getMessage().removesuffix("]").rpartition(" [")
            return f"error[{code}]: {safe(text)}" if code.startswith("BLT-") else f"error: {safe(record.getMessage())}"
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        head, *rest = safe_lines(record.getMessage().rstrip("\n")).splitlines() or [""]
        return f"{clock} {record.levelname.lower():<7} {head}" + "".join("\n  " + each for each in (*rest, *_trace(self, record)))


class JsonLines(logging.Formatter):
    """`ts level logger msg`, whatever the record carries beside them, and `trace` for an exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _PLAIN}
        if trace := _trace(self, record):
            line["trace"] = "\n".join(trace)
        return safe_json(to_json(line))


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    if not record.exc_info:
        return []
    return safe_lines(formatter.formatException(record.exc_info)).splitlines()
