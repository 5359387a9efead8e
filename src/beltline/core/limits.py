"""Bounds on sizes and numbers, each with its reason; every number a user gives passes through here."""

import math
import re
from datetime import datetime, timedelta

from beltline.core.errors import BodyTooLarge, ValueInvalid

MAX_BODY_BYTES = 1024 * 1024  # default; configurable. Larger things belong in files or blobs, the message carries their address.
MAX_BODY_CEILING = 512 * 1024 * 1024  # SQLite refuses rows of 1e9 bytes; half of it leaves room for the envelope.
MAX_HEADERS_BYTES = 16 * 1024
MAX_HEADERS = 64
MAX_KEY = 256  # group keys and dedup keys, in characters
MAX_PRIORITY = 100  # -100..100, larger first
MAX_DELAY_S = 100 * 365 * 86400.0
MAX_LEASE_S = 7 * 86400.0
MAX_BATCH = 100_000  # parts of one split: they are one write
MAX_DEDUP_WINDOW_S = 24 * 3600.0

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)?", re.ASCII)

Seconds = float | int | str | timedelta
"""A duration as users say it: seconds, a timedelta, or a text with its unit: 250ms, 30s, 5m, 1h, 7d."""


def duration(value: object) -> float:
    """Seconds from a number or a text such as `30`, `1.5s`, `250ms`, `2m`, `1h`, `7d`. Raises ValueError."""
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        if found is None:
            raise ValueError(value)
        return float(found[1]) * _UNITS[found[2] or "s"]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ValueError(value)
    return float(value)


def seconds(name: str, value: Seconds, *, least: float = 0.0, most: float = math.inf) -> float:
    """A duration as seconds. Raises ValueInvalid for NaN, bool, a text without unit and anything outside `least`..`most`."""
    try:
        found = value.total_seconds() if isinstance(value, timedelta) else duration(value)
    except ValueError:
        found = math.nan
    if not least <= found <= most or (isinstance(value, str) and value.strip()[-1].isdigit()):
        bounds = f"from {_said(least)}" + (f" to {_said(most)}" if most < math.inf else "")
        raise ValueInvalid(name=name, value=value, allowed=f"seconds, a timedelta or a text such as 30s or 5m, {bounds}")
    return found


def _said(seconds: float) -> str:
    """`1ms`, `0s`, `30s`, `1d`, `366d`."""
    unit, size = next(((unit, size) for unit, size in reversed(_UNITS.items()) if seconds >= size and (seconds / size).is_integer()), ("s", 1.0))
    return f"{seconds / size:.15g}{unit}"


def instant(name: str, value: datetime) -> float:
    """An aware datetime as seconds since 1970 UTC. A naive one is refused: it would mean another instant on another host."""
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueInvalid(name=name, value=value, allowed="a datetime with a time zone")
    return value.timestamp()


def integer(name: str, value: object, *, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueInvalid(name=name, value=value, allowed=f"a whole number from {least} to {most}")
    return value


def priority(value: object) -> int:
    return integer("priority", value, least=-MAX_PRIORITY, most=MAX_PRIORITY)


def key(name: str, value: object) -> str:
    """A group or dedup key: 1..256 characters that are valid Unicode without NUL."""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_KEY or "\x00" in value or not encodable(value):
        raise ValueInvalid(name=name, value=value, allowed=f"a text of 1 to {MAX_KEY} characters without NUL or lone surrogates")
    return value


def encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def headers(value: object) -> dict[str, str]:
    """Small str -> str facts. At most 64 of them and 16 KiB together."""
    if not isinstance(value, dict) or len(value) > MAX_HEADERS:
        raise ValueInvalid(name="headers", value=value, allowed=f"a dict of at most {MAX_HEADERS} texts")
    size = 0
    for name, text in value.items():
        if not isinstance(name, str) or not isinstance(text, str) or not encodable(name) or not encodable(text):
            raise ValueInvalid(name="headers", value={name: text}, allowed="str keys and str values in valid Unicode")
        size += len(name.encode()) + len(text.encode())
    if size > MAX_HEADERS_BYTES:
        raise ValueInvalid(name="headers", value=f"<{size} bytes>", allowed=f"at most {MAX_HEADERS_BYTES} bytes together")
    return dict(value)


def body(value: bytes, limit_bytes: int = MAX_BODY_BYTES) -> bytes:
    if len(value) > limit_bytes:
        raise BodyTooLarge(size_bytes=len(value), limit_bytes=limit_bytes)
    return value
