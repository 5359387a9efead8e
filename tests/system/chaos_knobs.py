"""What an operator does while the line with flow control is tortured: limits change, a queue is snoozed, an outage trips the kill switch, a schedule sends beside it all.

Every act is written down with when it was asked for and when the store had answered: the numbers of a limit change somewhere in between (chaos_flow_checker.py).
"""

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import apsw
import psycopg
from msgspec import structs

from beltline.core.flow import Limit
from beltline.core.names import QueueName
from beltline.core.schedule import DUE, OF, schedule
from beltline.core.views import MessageView
from beltline.engines.protocol import Engine, Limits, Schedules
from tests.system import chaos_flow
from tests.system.history import NONE, History, Journal, Occurrence, Span

T = TypeVar("T")
TICK = "tick"
EVERY_S = 1.0
SNOOZE_S = 0.6
OUTAGE_S = (1.5, 3.0)
WATCHED = QueueName("frail")
# What would leak where no view of ours could see it.
HOLDS = {"postgresql": "SELECT count(*) FROM beltline.flow_hold", "sqlite": "SELECT count(*) FROM hold"}


class Asks(Protocol):
    def ask(self, question: Callable[[Engine], Awaitable[T]]) -> T: ...


class Knobs:
    """The operator. `trips`: instants until which the kill switch was seen to be tripped."""

    def __init__(self, desk: Asks, folder: Path, url: str, *, pace: float, seed: int) -> None:
        self.desk = desk
        self.url = url
        self.journal = Journal(folder, "operator")
        self.outage = folder / chaos_flow.outage().name
        self.limits = {limit.name: limit for limit in chaos_flow.limits(pace)}
        self.rng = random.Random(seed)
        self.turned: Counter[str] = Counter()
        self.trips: set[float] = set()
        self._after_at = 0.0
        self._outage_until = 0.0

    def prepare(self) -> None:
        """Before the first process."""
        for limit in self.limits.values():
            self._write(limit, 0.0)
            self.desk.ask(lambda engine, limit=limit: _limits(engine).declare_limits([_told(limit)]))  # type: ignore[misc]
        spec = schedule(TICK, chaos_flow.tick.call().message, every=EVERY_S, catch_up="all", catch_up_limit=1000)
        assert all(self.desk.ask(lambda engine: _schedules(engine).put_schedules([spec], origin="operator")))
        self._after_at = self.desk.ask(lambda engine: _schedules(engine).schedule(TICK)).stood_at
        self.outage.touch()

    def turn(self) -> None:
        """One act, drawn; and a look at the kill switch."""
        act = self.rng.choice((self._set, self._set, self._reset, self._snooze, self._break))
        self.turned[act.__name__[1:]] += 1
        act()
        self.watch()

    def watch(self) -> None:
        if self.trips and time.monotonic() > self._outage_until:  # the first outage lasts until it is noticed
            self.outage.unlink(missing_ok=True)
        until = self.desk.ask(lambda engine: engine.counts(WATCHED)).tripped_until
        if until and until not in self.trips:
            self.trips.add(until)
            self.journal.write("shut", queue=WATCHED, until=until, tries=chaos_flow.TRIES)

    def heal(self) -> None:
        """As the code has it; nothing more is due."""
        for name in self.limits:
            self._reset(name)
        self._outage_until = 0.0
        self.desk.ask(lambda engine: _schedules(engine).pause_schedule(TICK, True))

    def close(self) -> None:
        self.journal.close()

    # ---- acts

    def _set(self) -> None:
        limit = self.limits[self.rng.choice(sorted(self.limits))]
        if limit.name == "pace":
            times = self.rng.choice((0.5, 1.0, 2.0))
            limit = structs.replace(limit, rate=limit.rate * times, burst=self.rng.choice((1.0, 5.0, 20.0)))
        else:
            limit = structs.replace(limit, concurrency=self.rng.choice((0, 1, 2, 3) if limit.name == "pair" else (3, 8, 12)))
        asked_t = time.monotonic()
        self.desk.ask(lambda engine: _limits(engine).set_limit(_told(limit)))
        self._write(limit, asked_t)

    def _reset(self, name: str = "") -> None:
        name = name or self.rng.choice(sorted(self.limits))
        asked_t = time.monotonic()
        self.desk.ask(lambda engine: _limits(engine).reset_limit(name))
        self._write(self.limits[name], asked_t)

    def _snooze(self) -> None:
        queue = QueueName(self.rng.choice(("narrow", "steady", "single")))
        until = self.desk.ask(lambda engine: _limits(engine).snooze(queue, seconds=SNOOZE_S))
        self.journal.write("shut", queue=queue, until=until)

    def _break(self) -> None:
        if not self.outage.exists():
            self._outage_until = time.monotonic() + self.rng.uniform(*OUTAGE_S)
            self.outage.touch()

    def _write(self, limit: Limit, asked_t: float) -> None:
        """0.0: it was so before anything began."""
        numbers = {"concurrency": limit.concurrency, "rate": limit.rate / limit.per_s, "burst": limit.most_at_once}
        at = {"asked_t": asked_t} if asked_t else {"asked_t": 0.0, "t": 0.0}
        self.journal.write("bound", name=limit.name, **{name: min(float(number), NONE) for name, number in numbers.items()}, **at)

    # ---- at the end

    def testify(self, history: History, ticks: list[MessageView]) -> None:
        history.queue_limits = chaos_flow.QUEUE_LIMITS
        history.occurrences = [
            Occurrence(
                schedule=view.message.headers[OF],
                due_at=datetime.fromisoformat(view.message.headers[DUE]).timestamp(),
                sent_at=view.sent_at,
                id=view.message.id,
            )
            for view in ticks
        ]
        until_at = self.desk.ask(lambda engine: _schedules(engine).schedule(TICK)).stood_at
        history.spans = [Span(schedule=TICK, after_at=self._after_at, until_at=until_at, every_s=EVERY_S)]
        history.left = self.desk.ask(self._left)
        if places := self._places():
            history.left.append(f"{places} places are held in the store's own tables")

    async def _left(self, engine: Engine) -> list[str]:
        limits = await _limits(engine).limits()
        counts = [(queue, await engine.counts(QueueName(queue))) for queue in chaos_flow.QUEUES]
        return [
            *(f"limit {view.name}: {view.running} running, {view.waiting} waiting" for view in limits if view.running or view.waiting),
            *(f"queue {queue}: {count.held} held" for queue, count in counts if count.held),
        ]

    def _places(self) -> int:
        if self.url.startswith("postgresql"):
            with psycopg.connect(self.url.partition("?")[0]) as connection:
                row: Any = connection.execute(HOLDS["postgresql"]).fetchone()
        else:
            file = apsw.Connection(self.url.removeprefix("sqlite:///").partition("?")[0], flags=apsw.SQLITE_OPEN_READONLY)
            row = file.execute(HOLDS["sqlite"]).fetchone()
            file.close()
        return int(row[0])


def _told(limit: Limit) -> Limit:
    """What the store hears; CHAOS_LIE=roomy: more than what is written down."""
    times = chaos_flow.ROOMY
    return structs.replace(limit, rate=limit.rate * times, burst=limit.burst * times, concurrency=limit.concurrency * times)


def _limits(engine: Engine) -> Limits:
    assert isinstance(engine, Limits)
    return engine


def _schedules(engine: Engine) -> Schedules:
    assert isinstance(engine, Schedules)
    return engine
