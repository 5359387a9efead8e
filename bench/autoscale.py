"""python -m bench.autoscale [--plot docs/explanation/autoscaling.svg]: a step load on a real worker whose slots are a range, on SQLite.

1 message a second for 10 s, then 10 a second for 40 s, then none until the fleet is back at nothing. Each keeps its slot for 0.6 s; none should wait longer than 5 s.
Prints how long after the step the last message was late, how far the size went above what the load needs, and how many deliveries did not end by themselves.
"""

import argparse
import asyncio
import math
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench import rig
from bench.plot import Panel, svg

RATES = ((10.0, 1.0), (40.0, 10.0))  # seconds, messages a second
RANGE = "0..24"
QUIET_S = 300.0  # for the fleet to go back to nothing: cool-down, steps, and what a busy machine adds
UTILISATION = 0.75


class Watch:
    """What was seen, with seconds since the first send. `sent`: instant of each message; `seen`: (at, decided, there, busy, runners)."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.sent: list[float] = []
        self.seen: list[tuple[float, int, int, int, int]] = []

    @property
    def at(self) -> float:
        return time.monotonic() - self.began

    async def send(self, task: Any) -> None:
        for seconds, per_s in RATES:
            until = self.at + seconds
            due = self.at
            while due < until:
                await asyncio.sleep(max(0.0, due - self.at))
                self.sent.append(self.at)
                await task.asend(len(self.sent) - 1)
                due += 1 / per_s

    async def look(self, engine: Any) -> tuple[int, int]:
        """The size decided and the slots there."""
        sizes = {size.queue: size.slots for size in await engine.sizes()}
        workers = await engine.workers()
        runners = [runner for worker in workers for runner in worker.detail["runners"]]
        there = sum(worker.queues.get("busy", 0) for worker in workers)
        self.seen.append((self.at, sizes.get("busy", 0), there, sum(runner["busy"] for runner in runners), len(runners)))
        return self.seen[-1][1], there

    async def look_until_nothing_is_left(self, engine: Any, process: Any) -> None:
        ends = sum(seconds for seconds, _ in RATES)
        while self.at < ends + QUIET_S:
            if process.poll() is not None:
                raise RuntimeError(f"the worker has ended: {process.poll()}")
            size = await self.look(engine)
            if self.at > ends and self.seen[-1][1:] == (0, 0, 0, 0):
                return
            note = f"{self.at:5.0f} s  {len(self.sent)} sent, {size[0]} slots decided, {size[1]} there"
            print(f"\r{note}", end="", file=sys.stderr, flush=True)
            await asyncio.sleep(1.0)
        raise RuntimeError(f"the fleet was not back at nothing {QUIET_S:g} s after the last message")


async def measure(at: rig.Place, process: Any, target_s: float) -> tuple[Watch, list[float], dict[str, object]]:
    """The watch, the wait of every message, and the figures."""
    from beltline.core.views import MessageFilter
    from bench.tasks import BUSY_S, app, busy

    engine = await app.ready()
    watch = Watch()
    async with asyncio.TaskGroup() as group:
        group.create_task(watch.send(busy))
        group.create_task(watch.look_until_nothing_is_left(engine, process))
    print(file=sys.stderr)
    starts = at.await_marks(0, len(watch.sent), process)
    waits = [start - watch.began - sent for start, sent in zip(starts, watch.sent, strict=True)]
    views: list[Any] = []
    cursor = ""
    while True:
        page = await engine.browse(MessageFilter(queues=("busy",)), limit=500, cursor=cursor)  # type: ignore[attr-defined]
        views += page.messages
        cursor = page.cursor
        if not cursor:
            break
    decisions = await engine.decisions(limit=1000)  # type: ignore[attr-defined]
    await app.aclose()

    step_s = RATES[0][0]
    late = [sent + wait - step_s for sent, wait in zip(watch.sent, waits, strict=True) if wait > target_s]
    peak = max(size for _, size, _, _, _ in watch.seen)
    needed = math.ceil(RATES[1][1] * BUSY_S / UTILISATION)
    killed = sum(view.lost + (view.epoch - 1) + (view.outcome != "succeeded") for view in views)
    emptied = next((seen for seen, size, there, _, runners in watch.seen if seen > RATES[0][0] and not size and not there and not runners), None)
    figures: dict[str, object] = {
        "messages": len(waits),
        "time_to_target_s": max(late, default=0.0),
        "late": len(late),
        "longest_wait_s": max(waits),
        "first_wait_s": waits[0],
        "time_to_size_s": next(seen for seen, _, there, *_ in watch.seen if seen > step_s and there >= RATES[1][1] * BUSY_S) - step_s,
        "slots_peak": peak,
        "slots_needed": needed,
        "overshoot": peak / needed - 1,
        "busy_killed": killed,
        "decisions": len(decisions),
        "empty_after_s": None if emptied is None else emptied - sum(seconds for seconds, _ in RATES),
    }
    return watch, waits, figures


def plot(watch: Watch, waits: list[float], target_s: float) -> str:
    ends = [sum(seconds for seconds, _ in RATES[: index + 1]) for index in range(len(RATES))]
    most = watch.seen[-1][0]
    load = [(0.0, RATES[0][1]), (ends[0], RATES[0][1]), (ends[0], RATES[1][1]), (ends[1], RATES[1][1]), (ends[1], 0.0), (most, 0.0)]
    times = [seen for seen, *_ in watch.seen]
    return svg(
        [
            Panel("sent per second", {"": load}, step=True),
            Panel(
                f"slots (range {RANGE})",
                {
                    "decided": list(zip(times, (float(size) for _, size, *_ in watch.seen), strict=True)),
                    "there": list(zip(times, (float(there) for _, _, there, *_ in watch.seen), strict=True)),
                    "busy": list(zip(times, (float(busy) for *_, busy, _ in watch.seen), strict=True)),
                },
                step=True,
            ),
            Panel(f"wait of each message, seconds (target {target_s:g})", {"": list(zip(watch.sent, waits, strict=True))}, line=target_s, dots=True),
        ],
        most,
        "seconds since the first message",
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.autoscale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="write the picture there")
    parser.add_argument("--target", type=float, default=5.0, help="seconds a message may wait")
    given = parser.parse_args()
    os.environ["BENCH_TARGET_S"] = str(given.target)
    rig.ENVIRON["BENCH_TARGET_S"] = str(given.target)
    settings = rig.settings(SimpleNamespace(shown="sqlite", durability="disk"), range=RANGE, target_s=given.target, rates=RATES, runners=2)  # type: ignore[arg-type]
    with rig.place("", "disk", 4000) as at:
        rig.adopt(at)
        with rig.worker(at, [f"busy:{RANGE}"]) as process:
            time.sleep(5.0)  # the worker is up and asleep: its first message comes to a fleet of nothing
            watch, waits, figures = asyncio.run(measure(at, process, given.target))
    rig.tell("autoscale", figures, target="busy_killed 0", settings=settings)
    if given.plot is not None:
        given.plot.write_text(plot(watch, waits, given.target), encoding="utf-8")
        print(f"wrote {given.plot}", file=sys.stderr)


if __name__ == "__main__":
    main()
