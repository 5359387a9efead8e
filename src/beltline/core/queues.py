"""A queue as it is declared, and what is in it."""

import math

from msgspec import Struct

from beltline.core.flow import KillSwitch
from beltline.core.names import QueueName
from beltline.core.policy import MAX_DELIVERIES

AGEING_S = 60.0
HIGH_WATER = 10_000
COUNTED = 10_000  # messages that could start: up to here engines say exactly how many


class Feed(Struct, frozen=True, array_like=True, gc=False):
    """This queue hands on to `queue`, up to `fan_out` messages for each of its own."""

    queue: QueueName
    fan_out: int = 1


class QueueSpec(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """A queue, declared once. Declaring it again changes the numbers, never the messages.

    `max_backlog`   a send that would lift ready + delayed + leased above it is refused with QueueFull (hand-offs never are).
    `high_water`    while ready + what is on its way from the stages before exceeds it, those stages receive nothing; again below `low_water`.
    `ageing_s`      one priority point is worth this many seconds of waiting, so nothing starves; inf = strict priorities.
    `max_deliveries` unanswered deliveries before a message is dead-lettered as poison.
    `on_dead`       what a dead head does to its FIFO group: "hold" it until redriven or cancelled, or "skip" to the next.
    `feeds`         the queues of the next stages.
    `target_s`      a message should not wait longer than this: what the fleet is sized for; inf = nothing was said.
    `limits`        names of limits that every start in this queue uses up (key "", cost 1). `kill_switch`: None = it never stops by itself.
    """

    name: QueueName
    max_backlog: float = math.inf
    high_water: float = math.inf
    low_water: float = math.inf
    ageing_s: float = AGEING_S
    max_deliveries: int = MAX_DELIVERIES
    on_dead: str = "hold"
    feeds: tuple[Feed, ...] = ()
    target_s: float = math.inf
    limits: tuple[str, ...] = ()
    kill_switch: KillSwitch | None = None


class Counts(Struct, frozen=True, kw_only=True):
    """How many messages of a queue are in which state, exactly. `ready` includes those behind their group's head and those whose lease or delay is over.

    `held`: those of `ready` that no further slot would let start now, so `ready - held` is what more slots would hand out: they are behind their group's head or its
    lease, behind a closed limit, beyond what the limits of the queue still allow, or the queue is paused, snoozed or tripped. Up to COUNTED the difference is exact.
    `snoozed_until`, `tripped_until` (by its kill switch), as instants, 0.0 = not; `trying`: the kill switch lets a few through to see.
    `done` counts all that ended here since the queue exists (it does not sink when history is dropped). `oldest_ready_s`: how long the oldest ready message waits; 0.0 = none.
    """

    ready: int = 0
    delayed: int = 0
    leased: int = 0
    dead: int = 0
    done: int = 0
    parked: int = 0
    oldest_ready_s: float = 0.0
    paused: bool = False
    held: int = 0
    snoozed_until: float = 0.0
    tripped_until: float = 0.0
    trying: bool = False


def held_back(ready: int, free: float, room: float, *, shut: bool) -> int:
    """Counts.held. `free`: of the ready ones those that neither their group nor a closed lane holds; `room`: starts that limits and kill switch of the queue allow now;
    `shut`: nothing at all is handed out.
    """
    return ready if shut else ready - int(max(0, min(ready, free, room)))


def rank(now: float, priority: int, ageing_s: float) -> float:
    """The place of a message in its queue: lowest first. Priority is a head start in seconds, so waiting always wins in the end.

    With strict priorities (`ageing_s` = inf) the head start is a thousand years a point.
    """
    return now - priority * (ageing_s if ageing_s < math.inf else 3.2e10)
