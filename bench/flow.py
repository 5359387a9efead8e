"""Flow control in figures: how exact a limit is, what closed limits cost those who are not limited, and how long a tenant waits behind another's million."""

import argparse
import json
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable
from contextlib import ExitStack

from bench import rig

APP = "bench.flow_tasks:app"
PACE_PER_S = 50.0
BURST = 10  # what 50/s yields in 0.2 s

SEND = """
from bench.flow_tasks import app, {task} as task
with app:
    for lo in range(0, {count}, 10_000):
        task.send_many(task.call({arguments}) for n in range(lo, min(lo + 10_000, {count})))
"""


def send(at: rig.Place, task: str, count: int, arguments: str = "n") -> None:
    rig.python(at, SEND.format(task=task, count=count, arguments=arguments))


def most_over(starts: list[float], rate: float, burst: float) -> float:
    """By how many starts the fullest window is above burst + rate * T; at most 0 when the bound holds everywhere. In O(n), by the greatest rise of i - rate * t_i."""
    lowest, most = float("inf"), float("-inf")
    for index, at in enumerate(sorted(starts)):
        lowest = min(lowest, index - rate * at)
        most = max(most, index + 1 - rate * at - lowest)
    return most - burst


def figure_limiter(given: argparse.Namespace) -> None:
    """Four workers with free slots and a limit of 50/s: starts in 60 s, and the fullest window of all."""
    seconds, workers = given.seconds, 4
    count = int(PACE_PER_S * (seconds + 10))
    with rig.place(given.engine, given.durability, count) as at, ExitStack() as stack:
        send(at, "paced", count)
        processes = [stack.enter_context(rig.worker(at, ["paced:10"], runners=1, app=APP)) for _ in range(workers)]
        began = at.await_marks(0, 1, processes[0])[0]
        time.sleep(max(0.0, 2.0 + began + seconds - time.monotonic()))
        starts = sorted(at.times(0, count))
    began = starts[0] + 1.0  # the burst of the beginning is not part of the rate
    inside = bisect_right(starts, began + seconds) - bisect_right(starts, began)
    figures: dict[str, object] = {"per_s": inside / seconds, "error": inside / seconds / PACE_PER_S - 1, "starts": inside}
    figures["over_the_bound"] = most_over(starts, PACE_PER_S, BURST)  # of starts as tasks see them: a little late, so sometimes a little close
    rig.tell(
        "limiter", figures, target="within 2 % of 50/s", settings=rig.settings(given, workers=workers, slots=40, seconds=seconds, rate=PACE_PER_S)
    )


def figure_behind_limits(given: argparse.Namespace) -> None:
    """The drain of 20,000 no-ops behind 100,000 messages that may not start: none, all of one bucket, each of its own; and through a limit that is always open.

    Medians of drains one after the other: right behind a hundred thousand sends a server is busy with itself.
    """
    count, stuck, rounds = 20_000, given.stuck, 5
    rates: dict[str, list[float]] = {}
    firsts: dict[str, float] = {}
    for name, ahead, task in (
        ("clean", "", "free"),
        ("one_bucket", "behind_one", "free"),
        ("own_buckets", "behind_its_own", "free"),
        ("open_limit", "", "limited"),
    ):
        with rig.place(given.engine, given.durability, count * rounds) as at:
            if ahead:
                send(at, ahead, stuck)
            for number in range(rounds):
                send(at, task, count, f"{number * count} + n")
                launched = time.monotonic()
                with rig.worker(at, ["belt:10"], app=APP) as process:
                    starts = at.await_marks(number * count, count, process)
                rates.setdefault(name, []).append(count / (max(starts) - min(starts)))
                firsts.setdefault(name, min(starts) - launched)
    middle = {name: statistics.median(each) for name, each in rates.items()}
    figures: dict[str, object] = {f"{name}_per_s": rate for name, rate in middle.items()}
    figures |= {f"{name}_all": [round(rate) for rate in each] for name, each in rates.items()}
    figures |= {f"{name}_share": middle[name] / middle["clean"] for name in ("one_bucket", "own_buckets", "open_limit")}
    figures |= {f"{name}_first_s": first for name, first in firsts.items()}
    settings = rig.settings(given, count=count, stuck=stuck, runners=2, slots=10, rounds=rounds)
    rig.tell("drain_behind_limits", figures, target=">= 80 % of clean", settings=settings)


FAIR = """
import asyncio, json, statistics, time
from bench.flow_tasks import app, shared
async def main(count={count}):
    async with app:
        engine = await app.ready()
        for lo in range(0, count, 10_000):
            await shared.asend_many(shared.call("big", 0) for n in range(min(10_000, count - lo)))
        taken = await engine.receive([shared.queue], limit=20, lease_s=600)  # slots that the big one has
        late = await shared.asend("small", 0)
        before, took = 0, []
        while True:
            began = time.monotonic()
            [one] = await engine.receive([shared.queue], limit=1, lease_s=600)
            took.append(1000 * (time.monotonic() - began))
            if one.receipt.id == late.id:
                break
            before += 1
        for _ in range(200):
            began = time.monotonic()
            assert len(await engine.receive([shared.queue], limit=10, lease_s=600)) == 10
            took.append(1000 * (time.monotonic() - began))
        print(json.dumps({{"before": before, "receive_ms": statistics.median(took), "receive_p99_ms": sorted(took)[int(0.99 * len(took))]}}))
asyncio.run(main())
"""


def figure_fair(given: argparse.Namespace) -> None:
    """A tenant sends 1,000,000 messages, then another one single message: how many deliveries go before it, and what a receive takes."""
    found = {}
    for count in sorted({10_000, given.messages}):
        with rig.place(given.engine, given.durability, 1) as at:
            found[count] = json.loads(rig.python(at, FAIR.format(count=count)))
    least, most = found[min(found)], found[max(found)]
    figures: dict[str, object] = dict(most)
    figures["against_1e4"] = most["receive_ms"] / least["receive_ms"]
    rig.tell("fair_share", figures, target="a few deliveries before it", settings=rig.settings(given, messages=max(found)))


SMALL = 50
PAUSE_S = 0.005


def figure_fair_worker(given: argparse.Namespace) -> None:
    """The same with a working worker: how long single messages of other tenants wait, sent one by one beside its backlog, in ms."""
    count = min(given.messages, 100_000)
    code = f"""
import time
from bench.flow_tasks import app, shared
with app:
    for n in range({SMALL}):
        shared.send(f"small-{{n}}", n, time.monotonic(), {PAUSE_S})
        time.sleep(0.05)
"""
    with rig.place(given.engine, given.durability, count + SMALL) as at:
        send(at, "shared", count, arguments=f'"big", {SMALL} + n, 0.0, {PAUSE_S}')
        with rig.worker(at, ["shared:10"], app=APP) as process:
            at.await_marks(SMALL, 100, process)
            rig.python(at, code)
            waits = [1000 * wait for wait in at.await_marks(0, SMALL, process)]
            left = count - len(at.times(SMALL, count))
    figures: dict[str, object] = {f"p{int(100 * share)}_ms": rig.percentile(waits, share) for share in (0.5, 0.9, 0.99)}
    figures["left_of_the_big"] = left  # 0: it was done before the small ones were sent, and the figure says nothing
    rig.tell(
        "fair_share_worker", figures, target="a few deliveries", settings=rig.settings(given, messages=count, small=SMALL, slots=10, task_s=PAUSE_S)
    )


FIGURES: dict[str, Callable[[argparse.Namespace], None]] = {
    "limiter": figure_limiter,
    "behind_limits": figure_behind_limits,
    "fair": figure_fair,
    "fair_worker": figure_fair_worker,
}
