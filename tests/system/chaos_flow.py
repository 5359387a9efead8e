"""The line with flow control, for `--chain flow`: three stages under limits that overlap, and beside them unique messages and a schedule.

    narrow   tenants with weights; at most 2 at a time for each of 5 keys (`pair`), and of the limit of the whole queue (`crowd`), which `steady` shares
    steady   so many starts in a second (`pace`), and of `crowd`
    frail    sticky keys, and a kill switch: while the nemesis lets an outage last, everything here fails
    single   unique messages by four rules                              tick   what the schedule sends

A third of the items go in FIFO groups. The numbers change while all this runs (chaos_knobs.py); `LIMITS` are those of the code.

CHAOS_LIE=roomy: the limits that the store is told are wider than those that the checker knows, so that the rig can be seen to notice.
"""

import os
from pathlib import Path

from beltline import KillSwitch, Limited, Retry, Unique
from beltline.core.flow import Limit
from tests.system.chaos_line import LOG, app, started

KEYS = 5
TENANTS = 3
TRIES = 3
ROOMY = 2.0 if os.environ.get("CHAOS_LIE") == "roomy" else 1.0
PACE = float(os.environ.get("CHAOS_PACE", "100"))  # starts in a second
QUEUES = ("narrow", "steady", "frail", "single", "tick")
QUEUE_LIMITS: dict[str, tuple[str, ...]] = {"narrow": ("crowd",), "steady": ("crowd",)}
SPACED_S = 1.0
RULES = ("newest", "once", "recent", "spaced")  # of the unique messages; the names of their tasks too
AGAIN = Retry(attempts=1000, base_s=0.1, cap_s=0.5)


def limits(pace: float) -> list[Limit]:
    """What the code says of them, and the checker knows."""
    return [Limit(name="pair", concurrency=2), Limit(name="crowd", concurrency=8), Limit(name="pace", rate=pace, burst=3.0)]


def outage() -> Path:
    """While this file exists, whatever runs in `frail` fails."""
    return Path(LOG) / "outage"


def key_of(number: int) -> str:
    return f"key-{number % KEYS}"


for _limit in limits(PACE):
    app.limit(_limit.name, rate=_limit.rate * ROOMY, burst=_limit.burst * ROOMY or None, concurrency=_limit.concurrency * ROOMY)
for _queue in QUEUES:
    app.queue(
        _queue,
        max_deliveries=1000,
        on_dead="skip",
        limits=QUEUE_LIMITS.get(_queue, ()),
        kill_switch=KillSwitch(share=0.5, least=5, window_s=4.0, pause_s=1.0, tries=TRIES) if _queue == "frail" else False,
    )


@app.task(retry=AGAIN, limits=[Limited("pair", key=key_of)], tenant=lambda number: f"tenant-{number % TENANTS}")
def narrow(number: int) -> int:
    started()
    return number + 1


@app.task(retry=AGAIN, limits=["pace"])
def steady(number: int) -> int:
    started()
    return number


@app.task(retry=AGAIN, sticky=key_of)
def frail(number: int) -> list[int]:
    epoch = started()
    if outage().exists():
        raise ConnectionError("out of order")
    return [number, epoch]


@app.task(queue="single", retry=AGAIN, unique_key=Unique("key", newest=True))
def newest(key: str, number: int) -> None:
    started(number)


@app.task(queue="single", retry=AGAIN, unique_key="key")
def once(key: str, number: int) -> None:
    started(number)


@app.task(queue="single", retry=AGAIN, unique_key=Unique("key", window=SPACED_S))
def recent(key: str, number: int) -> None:
    started(number)


@app.task(queue="single", retry=AGAIN, throttle=("key", SPACED_S))
def spaced(key: str, number: int) -> None:
    started(number)


@app.task(retry=AGAIN)
def tick() -> None:
    started()


flow = app.chain("flow", narrow >> steady >> frail)
