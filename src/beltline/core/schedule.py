"""When a recurring message is due. Pure: instants in, instants out; whose clock they are read from is the engine's business.

    Schedule    what is sent, when, and what becomes of what was missed     occurrence   one due instant; its message's id is derived from name and instant
    stood_at    the instant up to which all has been decided. A step moves it: compare and set, in one write with the sends (engines/protocol.py)

    cron     core/cron.py: what an expression means, and what changes of the clock make of it
    every    multiples of the interval since `anchor_at` (1970-01-01 00:00 UTC). No clock on a wall matters to it

What was missed (nobody looked, or the clock leapt): `once` sends the newest occurrence that is due and skips those before it; `all` sends the newest `catch_up_limit` of
them, oldest first; `skip` sends the newest if it is at most LATE_S late. So no outage and no clock, however wrong, makes a storm.
"""

from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import IntEnum
from itertools import islice
from math import inf, isfinite
from typing import Any

from msgspec import Struct, structs

from beltline.core import limits
from beltline.core.cron import Occurrence, expression, instants, zone
from beltline.core.errors import ScheduleInvalid
from beltline.core.message import Message
from beltline.core.names import MessageId, RunId, check_name, derive_id

CATCH_UP = ("once", "all", "skip")
CATCH_UP_LIMIT = 100
MAX_CATCH_UP = 1000  # messages of one step: they are one write
LATE_S = 60.0
LEFT_S = 180.0  # workers name their schedules every NAMED_S; one that nobody has named for so long is in no code any more
NAMED_S = 60.0
SKIPPED_COUNTED = 1000  # occurrences of a cron expression that are counted one by one; beyond it the count is "at least"
LEAST_EVERY_S, MOST_EVERY_S = 1.0, 366 * 86400.0
NO_ID = MessageId("0" * 32)  # of a template: an occurrence has its own
OF, DUE = "beltline-schedule", "beltline-due"  # headers of what a schedule sends: its name, and the instant (ISO 8601, UTC)


class Schedule(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """`cron` (five fields or @daily …, in `tz`) or `every_s`, the other is empty. `message`: the template of what is sent; of a chain, with its place.

    These values cross process borders and are stored: add fields at the end, with defaults.
    """

    name: str
    message: Message
    cron: str = ""
    every_s: float = 0.0
    anchor_at: float = 0.0
    tz: str = "UTC"
    catch_up: str = "once"
    catch_up_limit: int = CATCH_UP_LIMIT

    @property
    def timing(self) -> tuple[object, ...]:
        """What decides when it is due. While it stays the same, so does where the schedule stands."""
        return (self.cron, self.every_s, self.anchor_at, self.tz)

    @property
    def when(self) -> str:
        return self.cron or f"every {self.every_s:.15g} s"


class Step(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """It stood at `stood_at`: send these, and let it stand at `stands_at`. Done only if it stands there, its spec is still `revision`, and it is active.

    `next_at`: nobody need look before this instant; inf = never again. `error`: why its occurrences are not sent, "" = they are.
    """

    name: str
    revision: int
    stood_at: float
    stands_at: float
    next_at: float
    messages: tuple[Message, ...] = ()
    skipped: int = 0
    error: str = ""


class Stepped(IntEnum):
    """The answer to a step. Nothing was written unless it is DONE."""

    DONE = 0
    STALE = 1  # somebody else was first, or it was changed, paused or removed
    EARLY = 2  # `stands_at` has not come yet
    QUEUE_FULL = 3
    NOT_DECLARED = 4  # the queue


# ------------------------------------------------------------------------------------------------------------------- made
def schedule(
    name: str,
    message: Message,
    *,
    cron: str | None = None,
    every: limits.Seconds | None = None,
    start: datetime | None = None,
    tz: str = "UTC",
    catch_up: str = "once",
    catch_up_limit: int = CATCH_UP_LIMIT,
) -> Schedule:
    """A checked schedule. `every`: from a second to a year; `start`: what its multiples are counted from. Raises ScheduleInvalid, NameInvalid, ValueInvalid."""
    check_name("schedule", name)
    if (cron is None) == (every is None):
        raise ScheduleInvalid(name, "Say when it is due: by a cron expression, or by every=…, not both.")
    if catch_up not in CATCH_UP:
        raise ScheduleInvalid(name, f"catch_up = {catch_up!r} is unknown.", help=f"One of {', '.join(CATCH_UP)}.")
    if message.ready_at is not None:
        raise ScheduleInvalid(name, "A schedule says itself when its messages are ready: at=… has no place in it.", help="delay=… is possible.")
    every_s, anchor_at = 0.0, 0.0
    if every is not None:
        every_s = round(limits.seconds("every", every, least=LEAST_EVERY_S, most=MOST_EVERY_S), 3)
        anchor_at = 0.0 if start is None else round(limits.instant("start", start), 3)
    elif start is not None:
        raise ScheduleInvalid(name, "start= is for every=…: a cron expression says itself when it is due.")
    made = Schedule(
        name=name,
        message=template(message),
        cron="" if cron is None else expression(name, cron),
        every_s=every_s,
        anchor_at=anchor_at,
        tz=tz,
        catch_up=catch_up,
        catch_up_limit=limits.integer("limit", catch_up_limit, least=1, most=MAX_CATCH_UP),
    )
    check(made)
    return made


def template(message: Message) -> Message:
    """A message as what every occurrence is made from."""
    place = message.place
    return structs.replace(message, id=NO_ID, place=None if place is None else structs.replace(place, run=RunId(NO_ID)))


def check(schedule: Schedule) -> None:
    """Whether its occurrences can be worked out here. Raises ScheduleInvalid."""
    if schedule.cron:
        expression(schedule.name, schedule.cron)
        if next_after(schedule, 0.0) == inf:
            raise ScheduleInvalid(schedule.name, f"{schedule.cron!r} is never due.", help="No date in fifty years fits it.")
    elif not (isfinite(schedule.every_s) and schedule.every_s >= LEAST_EVERY_S):
        raise ScheduleInvalid(schedule.name, f"every = {schedule.every_s!r} is not allowed.", help="Seconds, from 1.")


# -------------------------------------------------------------------------------------------------------------------- due
def next_after(schedule: Schedule, after: float) -> float:
    """The first occurrence behind `after`; inf = there is none. Raises ScheduleInvalid (a zone this host does not know)."""
    return next((each.at for each in occurrences(schedule, after)), inf)


def occurrences(schedule: Schedule, after: float) -> Iterator[Occurrence]:
    """All behind `after`, in order, perhaps without end. Raises ScheduleInvalid."""
    if not schedule.cron:
        return _multiples(schedule, after)
    return instants(schedule.cron, zone(schedule.name, schedule.tz), after)


def newest(schedule: Schedule, after: float, until: float, count: int) -> list[float]:
    """The last `count` occurrences behind `after` and not behind `until`, oldest first. What it costs grows with `count`, not with the time between."""
    if not schedule.cron:
        every, anchor, last = _ms(schedule.every_s), _ms(schedule.anchor_at), _ms(until)
        most = (last - anchor) // every
        least = max(0, (_ms(after) - anchor) // every + 1, most - count + 1)
        return [(anchor + place * every) / 1000 for place in range(least, most + 1)]
    span_s = 3600.0
    while True:
        start = max(after, until - span_s)
        found = deque(_between(schedule, start, until), maxlen=count)
        if len(found) == count or start == after:
            return list(found)
        span_s *= 4


class Plan(Struct, frozen=True, kw_only=True):
    """What a look at `now` decides: these are sent, oldest first, so many are skipped, all up to `stands_at` is decided."""

    due: tuple[float, ...]
    skipped: int
    stands_at: float
    next_at: float


def plan(schedule: Schedule, stood_at: float, now: float) -> Plan:
    """Raises ScheduleInvalid."""
    found = newest(schedule, stood_at, now, schedule.catch_up_limit if schedule.catch_up == "all" else 1)
    if not found:
        return Plan(due=(), skipped=0, stands_at=stood_at, next_at=next_after(schedule, stood_at))
    stands_at = found[-1]
    due = () if schedule.catch_up == "skip" and now - stands_at > LATE_S else tuple(found)
    return Plan(
        due=due, skipped=max(0, _count(schedule, stood_at, stands_at) - len(due)), stands_at=stands_at, next_at=next_after(schedule, stands_at)
    )


def _count(schedule: Schedule, after: float, until: float) -> int:
    if not schedule.cron:
        return len(range(*_places(schedule, after, until)))
    return sum(1 for _ in islice(_between(schedule, after, until), SKIPPED_COUNTED))


def _places(schedule: Schedule, after: float, until: float) -> tuple[int, int]:
    every, anchor = _ms(schedule.every_s), _ms(schedule.anchor_at)
    return max(0, (_ms(after) - anchor) // every + 1), (_ms(until) - anchor) // every + 1


def _between(schedule: Schedule, after: float, until: float) -> Iterator[float]:
    for each in occurrences(schedule, after):
        if each.at > until:
            return
        yield each.at


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


# -------------------------------------------------------------------------------------------------------------------- every
def _multiples(schedule: Schedule, after: float) -> Iterator[Occurrence]:
    place, _ = _places(schedule, after, after)
    every, anchor = _ms(schedule.every_s), _ms(schedule.anchor_at)
    while True:
        yield Occurrence((anchor + place * every) / 1000)
        place += 1


# ------------------------------------------------------------------------------------------------------------------- sent
def occurrence_id(name: str, due: float) -> MessageId:
    """The same for every scheduler. It begins with the instant, so that ids sort by it."""
    return MessageId(derive_id(f"{_ms(due):012x}", "schedule", name))


def occurrence(schedule: Schedule, due: float) -> Message:
    """What is sent for this instant."""
    return _message(schedule, occurrence_id(schedule.name, due), {OF: schedule.name, DUE: _iso(due)})


def triggered(schedule: Schedule, id: MessageId) -> Message:
    """What is sent by hand: no occurrence, and so with an id of the caller's."""
    return _message(schedule, id, {OF: schedule.name})


def _message(schedule: Schedule, id: MessageId, headers: dict[str, str]) -> Message:
    changes: dict[str, Any] = {"id": id, "headers": {**schedule.message.headers, **headers}}
    if schedule.message.place is not None:
        changes["place"] = structs.replace(schedule.message.place, run=RunId(id))
    return structs.replace(schedule.message, **changes)


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def step(schedule: Schedule, revision: int, stood_at: float, now: float) -> Step:
    """What a scheduler asks of the engine after a look. Raises ScheduleInvalid."""
    planned = plan(schedule, stood_at, now)
    return Step(
        name=schedule.name,
        revision=revision,
        stood_at=stood_at,
        stands_at=planned.stands_at,
        next_at=planned.next_at,
        messages=tuple(occurrence(schedule, due) for due in planned.due),
        skipped=planned.skipped,
    )
