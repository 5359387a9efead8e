"""Which instants a cron expression names in a time zone. Pure.

Which wall times a cron expression names is cronsim's answer. What a time zone makes of them is decided here:

    fixed    neither minute nor hour begins with `*` ("30 2 * * *"): a time of day, once per day it names. A time that does not exist, because the clock was put forward over
             it, is due at the first instant that does (02:30 in Berlin on 2026-03-29: at 03:00); several such are due once. A time that comes twice is due the first time.
    flowing  minute or hour begins with `*` ("*/15 * * * *"): real time. Due whenever the clock shows it: in the hour that comes twice, twice; in one that is left out, never.

Source: Debian's cron, which tells these two kinds of expression apart in the same way, so that a daily task runs daily. cronsim knows the rule too, but works it out in
steps of whole hours, and so leaves out times where a change is half an hour (Lord Howe), and may answer with an instant before the one it was asked from; asked without a
zone it only counts wall times, which is what is used here. Proof: the table of cases in tests/core/test_schedule.py.
"""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec import Struct

from beltline.core.errors import ScheduleInvalid

if TYPE_CHECKING:  # imported where a zone is first needed: most programs that import an app never ask for an occurrence
    from zoneinfo import ZoneInfo

MAX_EXPRESSION = 200  # characters
DAY_S = 86400
MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


class Occurrence(Struct, frozen=True, gc=False):
    """`at`: seconds since 1970. `note`: what a change of the clock made of it, "" = nothing."""

    at: float
    note: str = ""


def expression(name: str, text: str) -> str:
    """Five fields, one space between them. `name`: of the schedule, for the message. Raises ScheduleInvalid."""
    from cronsim import CronSim, CronSimError

    help = (
        'Five fields: minute hour day-of-month month day-of-week, as in "30 2 * * *" or "*/15 8-18 * * MON-FRI"; or @daily and its like; or every=….'
    )
    if not isinstance(text, str) or len(text) > MAX_EXPRESSION:
        raise ScheduleInvalid(name, f"A cron expression is a text of at most {MAX_EXPRESSION} characters.", help=help)
    words = MACROS.get(text.strip().lower(), text).upper().split()
    if len(words) != 5:
        known = f"The names known here: {', '.join(MACROS)}." if text.strip().startswith("@") else f"It has {len(words)} fields."
        why = "It has 6 fields, and there is none for seconds: every=… counts those." if len(words) == 6 else known
        raise ScheduleInvalid(name, f"{text!r} is no cron expression: five fields are wanted. {why}", help=help)
    try:
        CronSim(" ".join(words), datetime(2000, 1, 1, tzinfo=UTC))
    except (CronSimError, ValueError, AssertionError) as error:
        raise ScheduleInvalid(name, f"{text!r} is no cron expression: {str(error).lower() or 'it cannot be read'}.", help=help) from None
    return " ".join(words)


def zone(name: str, tz: str) -> "ZoneInfo":
    """Raises ScheduleInvalid."""
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(tz)
    except (KeyError, ValueError, OSError, TypeError):
        raise ScheduleInvalid(name, f"There is no time zone {tz!r}.", help=_near_zone(tz)) from None


def instants(cron: str, zone: "ZoneInfo", after: float) -> Iterator[Occurrence]:
    """All behind `after`, in order. `cron`: as `expression` gives it."""
    minute, hour, *_ = cron.split()
    flowing = minute.startswith("*") or hour.startswith("*")
    return (_flowing if flowing else _fixed)(cron, zone, int(after // 1))


def _near_zone(name: object) -> str:
    from difflib import get_close_matches
    from zoneinfo import available_timezones

    zones = sorted(available_timezones())
    named = 'A name of the IANA database, for example "Europe/Berlin".'
    if "/" not in str(name) and str(name).isupper():  # CEST: what looks like it (EST) is another continent's
        return f"{named} Abbreviations mean different zones in different countries."
    near = get_close_matches(str(name)[:80], zones, n=1) or [zone for zone in zones if zone.rpartition("/")[2].lower() == str(name).lower()]
    return f"Did you mean {near[0]!r}?" if near else named


# --------------------------------------------------------------------------------------------------------------- two kinds
def _fixed(cron: str, zone: "ZoneInfo", after: int) -> Iterator[Occurrence]:
    """Wall times in order give instants in order, so whatever is not behind the one before is the same hour again, or the same gap."""
    last = after
    for wall in _walls(cron, _wall(after, zone)):
        local = wall.replace(tzinfo=zone)
        at = int(local.timestamp())
        note = ""
        if _wall(at, zone) != wall:
            change = _change(zone, at - _shift(local), at)
            assert change is not None  # the clock was put forward over it: that is why nobody ever reads it
            at, note = change, f"{wall:%H:%M} does not exist on this day"
        elif _shift(local):
            note = f"{wall:%H:%M} comes twice on this day: the first"
        if at > last:
            yield Occurrence(float(at), note)
            last = at


def _shift(local: datetime) -> int:
    """Seconds between the two readings of a wall time that comes twice, or not at all."""
    return abs(int(_offset(local.replace(fold=1)) - _offset(local.replace(fold=0))))


def _flowing(cron: str, zone: "ZoneInfo", after: int) -> Iterator[Occurrence]:
    """From change to change: between two of them wall time flows like real time."""
    at, least = after, after + 1
    while True:
        offset, change = _offset_at(at, zone), None
        for wall in _walls(cron, _wall(least - 1, zone, offset)):
            due = int(wall.timestamp()) - offset
            change = _change(zone, at, due)
            if change is not None:
                break
            yield Occurrence(float(due))
            at = due
        if change is None:
            return
        at = least = change


def _walls(cron: str, after: datetime) -> Iterator[datetime]:
    """The wall times an expression names, behind `after`; every one is labelled UTC, which has no changes."""
    from cronsim import CronSim

    with suppress(OverflowError):  # behind the year 9999 there are no more
        yield from CronSim(cron, after)


def _wall(at: int, zone: "ZoneInfo", offset: int | None = None) -> datetime:
    """What the clock shows, or would show under this offset, labelled UTC."""
    return datetime.fromtimestamp(at + (_offset_at(at, zone) if offset is None else offset), UTC)


def _offset_at(at: int, zone: "ZoneInfo") -> int:
    return _offset(datetime.fromtimestamp(at, zone))


def _offset(local: datetime) -> int:
    offset = local.utcoffset()
    assert offset is not None  # it has a zone
    return round(offset.total_seconds())


def _change(zone: "ZoneInfo", after: int, until: int) -> int | None:
    """The first instant behind `after`, and not behind `until`, from which another offset holds. Looks at every day: no zone has gone forth and back within one."""
    offset, low = _offset_at(after, zone), after
    while low < until:
        high = min(low + DAY_S, until)
        if _offset_at(high, zone) != offset:
            while high - low > 1:
                middle = (low + high) // 2
                if _offset_at(middle, zone) == offset:
                    low = middle
                else:
                    high = middle
            return high
        low = high
    return None
