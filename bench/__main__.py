"""python -m bench [--only NAME …] [--engine URL] [--durability disk|os|memory] [--depth 7]: every figure of docs/explanation/performance.md.

--engine postgres starts a server of its own on this disk (--server: which version); a postgresql:// URL uses a schema of its own for each figure.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from bench import flow, postgres, rig

FIGURES: dict[str, Callable[[argparse.Namespace], None]] = {}


def figure(fn: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
    FIGURES[fn.__name__.removeprefix("figure_")] = fn
    return fn


settings = rig.settings


SEND = """
import time
from bench.tasks import app, {task} as task
with app:
    began = time.monotonic()
    calls = (task.call(n) for n in range({count}))
    import itertools
    while batch := list(itertools.islice(calls, 1000)):
        task.send_many(batch)
    print(time.monotonic() - began)
"""


def drain(at: rig.Place, task: str, count: int) -> tuple[float, float, float]:
    """Send `count`, start a worker with 2 runners x 5 slots, wait for the last start: seconds to send, to drain, launch to last start."""
    sent_s = float(rig.python(at, SEND.format(task=task, count=count)))
    launched = time.monotonic()
    with rig.worker(at, [f"{task}:10"]) as process:
        starts = at.await_marks(0, count, process)
    return sent_s, max(starts) - min(starts), max(starts) - launched


@figure
def figure_drain(given: argparse.Namespace) -> None:
    """20,000 no-ops at concurrency 10: drain/s (first to last start) and total/s (send + launch to last start)."""
    count, rounds = 20_000, 5
    for task in ("noop", "noop_def"):
        drains, totals = [], []
        for _ in range(rounds):
            with rig.place(given.engine, given.durability, count) as at:
                sent_s, drained_s, total_s = drain(at, task, count)
            drains.append(count / drained_s)
            totals.append(count / (sent_s + total_s))
        figures: dict[str, object] = {"drain_per_s": statistics.median(drains), "drain_least": min(drains), "drain_most": max(drains)}
        figures |= {"total_per_s": statistics.median(totals), "total_least": min(totals), "total_most": max(totals)}
        chosen = settings(given, count=count, runners=2, slots=10, rounds=rounds)
        target = "drain >= 15,000/s" if given.engine.startswith("postgres") else "drain >= 30,000/s, total >= 12,000/s"
        rig.tell(f"drain_{task}", figures, target=target, settings=chosen)


@figure
def figure_send(given: argparse.Namespace) -> None:
    """send_many from one process, and 100 concurrent asend."""
    many = """
import time, statistics
from bench.tasks import app, noop
rates = []
with app:
    for _ in range(5):
        began = time.monotonic()
        for lo in range(0, 50_000, 5_000):
            noop.send_many(noop.call(n) for n in range(lo, lo + 5_000))
        rates.append(50_000 / (time.monotonic() - began))
print(statistics.median(rates))
"""
    one = """
import asyncio, time, statistics
from bench.tasks import app, noop
async def sender(count):
    for n in range(count):
        await noop.asend(n)
async def main():
    async with app:
        rates = []
        for _ in range(3):
            began = time.monotonic()
            await asyncio.gather(*(sender(200) for _ in range(100)))
            rates.append(20_000 / (time.monotonic() - began))
        return statistics.median(rates)
print(asyncio.run(main()))
"""
    with rig.place(given.engine, given.durability, 1) as at:
        rig.tell("send_many", {"per_s": float(rig.python(at, many))}, target=">= 100,000/s", settings=settings(given, batch=5000))
    with rig.place(given.engine, given.durability, 1) as at:
        rig.tell("asend_100", {"per_s": float(rig.python(at, one))}, target=">= 30,000/s", settings=settings(given, senders=100))


@figure
def figure_chain(given: argparse.Namespace) -> None:
    """Items through a chain of three stages, atomic hand-off."""
    count = 10_000
    with rig.place(given.engine, given.durability, count + 1) as at:
        rig.python(at, SEND.format(task="line", count=count))
        with rig.worker(at, ["first:10", "second:10", "third:10"]) as process:
            ends = at.await_marks(1, count, process)
            began = at.times(0, 1)[0]
    rig.tell("chain_3", {"items_per_s": count / (max(ends) - began)}, target=">= 5,000/s", settings=settings(given, count=count, runners=2, slots=30))


@figure
def figure_latency(given: argparse.Namespace) -> None:
    """Another process sends to an idle worker: send() called until the task starts, in ms."""
    count = 500
    code = f"""
import time
from bench.tasks import app, echo
with app:
    for n in range(-20, {count}):
        time.sleep(0.01)
        echo.send(max(n, 0), time.monotonic())
"""
    with rig.place(given.engine, given.durability, count) as at, rig.worker(at, ["echo:10"]) as process:
        time.sleep(2)
        rig.python(at, code)
        waits = [1000 * wait for wait in at.await_marks(1, count - 1, process)]
    figures: dict[str, object] = {f"p{int(100 * share)}_ms": rig.percentile(waits, share) for share in (0.5, 0.9, 0.99)}
    rig.tell("latency_idle", figures, target="p50 <= 1.0 ms, p99 <= 6 ms", settings=settings(given, count=count))


@figure
def figure_depth(given: argparse.Namespace) -> None:
    """receive(10) with 1e4, 1e6 (and 1e7 with --depth 7) messages waiting."""
    code = """
import asyncio, statistics, time
from bench.tasks import app, noop
async def main(depth):
    async with app:
        engine = await app.ready()
        for lo in range(0, depth, 10_000):
            await noop.asend_many(noop.call(0) for n in range(min(10_000, depth - lo)))
        took = []
        for _ in range(200):
            began = time.monotonic()
            got = await engine.receive([noop.queue], limit=10, lease_s=60)
            took.append(time.monotonic() - began)
            assert len(got) == 10
        return statistics.median(took) * 1000
print(asyncio.run(main({depth})))
"""
    base = 0.0
    for exponent in (4, 6, 7)[: 3 if given.depth >= 7 else 2]:
        with rig.place(given.engine, given.durability, 1) as at:
            took = float(rig.python(at, code.replace("{depth}", str(10**exponent))))
        base = base or took
        rig.tell(f"receive_at_1e{exponent}", {"ms": took, "against_1e4": took / base}, target="<= 1.2x of 1e4", settings=settings(given, limit=10))


@figure
def figure_stuck(given: argparse.Namespace) -> None:
    """The drain again with 100,000 messages that cannot run ahead of it: half delayed, half behind the leased head of their group."""
    count, stuck = 20_000, 100_000
    code = """
import asyncio
from bench.tasks import app, noop
async def main():
    async with app:
        engine = await app.ready()
        blocked, delayed = noop.with_options(group="one", priority=50), noop.with_options(delay=36000, priority=50)
        for _ in range(10):
            await noop.asend_many(blocked.call(0) for _ in range({half} // 10))
            await noop.asend_many(delayed.call(0) for _ in range({half} // 10))
        [head] = await engine.receive([noop.queue], limit=1, lease_s=36000)
        assert head.message.group == "one"
asyncio.run(main())
""".replace("{half}", str(stuck // 2))
    rates = []
    for ahead in (False, True):
        with rig.place(given.engine, given.durability, count) as at:
            if ahead:
                rig.python(at, code)
            rates.append(count / drain(at, "noop", count)[1])
    figures: dict[str, object] = {"clean_per_s": rates[0], "behind_100k_per_s": rates[1], "share": rates[1] / rates[0]}
    rig.tell("drain_behind_stuck", figures, target=">= 80 % of clean", settings=settings(given, count=count, stuck=stuck))


@figure
def figure_memory(given: argparse.Namespace) -> None:
    """An idle worker with 2 runners, proportional memory of all its processes."""
    with rig.place(given.engine, given.durability, 1) as at, rig.worker(at, ["noop:10"]) as process:
        time.sleep(3)
        rig.tell("memory_idle", {"pss_mb": rig.pss_mb(process.pid)}, target="<= 80 MB", settings=settings(given, runners=2))


@figure
def figure_start(given: argparse.Namespace) -> None:
    """`import beltline` and `beltline --help`, whole processes, medians of 9; beside a bare interpreter."""

    def took(*command: str) -> float:
        times = []
        for _ in range(9):
            began = time.monotonic()
            subprocess.run([sys.executable, *command], check=True, capture_output=True, timeout=30, env=rig.ENVIRON)
            times.append(time.monotonic() - began)
        return rig.percentile(times, 0.5)

    figures: dict[str, object] = {"bare_s": took("-c", ""), "import_s": took("-c", "import beltline"), "help_s": took("-m", "beltline", "--help")}
    rig.tell("start", figures, target="import <= 0.15 s, --help <= 0.25 s", settings=settings(given))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", nargs="*", choices=sorted([*FIGURES, *flow.FIGURES, *postgres.FIGURES]))
    parser.add_argument("--engine", default="", help="URL of the engine, or `postgres` (default: a fresh SQLite file for each figure)")
    parser.add_argument("--server", default="wheel", choices=["wheel", "system"], help="which PostgreSQL `--engine postgres` starts")
    parser.add_argument("--pinned", type=float, default=60.0, help="seconds for which `pinned` holds vacuum back")
    parser.add_argument("--durability", default="disk", choices=["disk", "os", "memory"])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long `limiter` looks")
    parser.add_argument("--stuck", type=int, default=100_000, help="messages behind closed limits in `behind_limits`")
    parser.add_argument("--messages", type=int, default=1_000_000, help="of one tenant in `fair`")
    parser.add_argument("--depth", type=int, default=6, choices=[4, 6, 7], help="7 also loads 10,000,000 messages")
    given = parser.parse_args()
    with postgres.engine(given):
        known = FIGURES | flow.FIGURES | (postgres.FIGURES if given.engine.startswith("postgres") else {})
        for name in given.only or known:
            try:
                known[name](given)
            except Exception as error:
                rig.tell(name, {"error": f"{type(error).__name__}: {error}"[-2000:]}, target="", settings=settings(given))
                raise SystemExit(1) from error


if __name__ == "__main__":
    main()
