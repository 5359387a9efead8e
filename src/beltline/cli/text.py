"""How values look on a terminal. Pure.

Everything that comes from a message, a task or a store goes through `safe` before it is printed: an escape sequence in an exception text could
otherwise recolour, overwrite or retitle the operator's terminal, and a bidi mark could reorder what they read.
"""

import re
import unicodedata
from collections.abc import Sequence
from datetime import datetime

from beltline.core.words import count, rate, span, things

__all__ = ["ago", "bar", "clip", "count", "pad", "rate", "safe", "safe_json", "safe_lines", "size", "span", "table", "things", "width"]

# C0, DEL, C1; bidi marks, embeddings, overrides and isolates; line and paragraph separators; invisible joiners; byte order mark; lone surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_KEPT = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_NAMED = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _escape(found: re.Match[str]) -> str:
    char = found[0]
    number = ord(char)
    return _NAMED.get(char) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")


def safe(text: object) -> str:
    """One line without control characters, bidi marks or lone surrogates: each becomes its escape."""
    return _UNSAFE.sub(_escape, str(text))


def safe_lines(text: object) -> str:
    """Like `safe`, but line breaks stay: for tracebacks."""
    return _KEPT.sub(_escape, str(text).replace("\r\n", "\n").replace("\t", "    "))


def safe_json(text: str) -> str:
    """JSON stays JSON: characters a terminal would obey become \\uXXXX. They can only stand inside strings (the encoder escapes C0 itself)."""
    return re.sub("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]", lambda found: f"\\u{ord(found[0]):04x}", text)


# ------------------------------------------------------------------------------------------------------------- numbers
def ago(instant: datetime | None, now: datetime) -> str:
    """`3 s ago`, `in 8 s`, or nothing for what has not been."""
    if instant is None:
        return ""
    seconds = (now - instant).total_seconds()
    if abs(seconds) < 1:
        return "now"
    text = span(round(abs(seconds)) if abs(seconds) < 120 else abs(seconds)).replace(".0 s", " s")
    return f"{text} ago" if seconds > 0 else f"in {text}"


def size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000 or unit == "GB":
            return f"{size_bytes:.0f} {unit}" if unit == "B" or size_bytes >= 100 else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    raise AssertionError("the loop returns")


# --------------------------------------------------------------------------------------------------------------- width
def width(text: str) -> int:
    """Columns a text takes on a terminal: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def clip(text: str, columns: int) -> str:
    """At most `columns` wide, the loss marked by an ellipsis."""
    if width(text) <= columns:
        return text
    kept, used = "", 0
    for char in text:
        used += width(char)
        if used > columns - 1:
            break
        kept += char
    return kept + "…"


def pad(text: str, columns: int, *, right: bool = False) -> str:
    gap = " " * max(0, columns - width(text))
    return gap + text if right else text + gap


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[bool], elastic: Sequence[bool], columns: int) -> list[str]:
    """Aligned lines, the header first. When they are wider than `columns`, the elastic ones are clipped, the widest first."""
    widths = [max([width(title), *(width(row[index]) for row in rows)]) for index, title in enumerate(titles)]
    over = sum(widths) + 2 * (len(widths) - 1) - columns
    while over > 0:
        able = [index for index, may in enumerate(elastic) if may and widths[index] > max(8, width(titles[index]))]
        if not able:
            break
        widest = max(able, key=lambda index: widths[index])
        others = [widths[index] for index in able if index != widest]
        cut = max(1, min(over, widths[widest] - max([8, width(titles[widest]), *others])))
        widths[widest] -= cut
        over -= cut
    lines = []
    for cells in (titles, *rows):
        line = "  ".join(pad(clip(cell, wide), wide, right=to_right) for cell, wide, to_right in zip(cells, widths, right, strict=True))
        lines.append(line.rstrip())
    return lines


def bar(done: float, whole: float, columns: int = 20) -> str:
    """`████░░░░`; full only when all is done, empty while there is nothing."""
    filled = 0 if whole <= 0 else columns if whole <= done else min(columns - 1, int(columns * done / whole))
    return "█" * filled + "░" * (columns - filled)
