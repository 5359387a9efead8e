"""kill -9 at random points of a running line, and then the question whether everything is where it must be.

    python -m tests.system.chaos --items 5000 --kills 100 [--chain plain|split] [--seed N] [--url URL]

Runs senders and workers as processes of their own, kills runners, supervisors and senders (real SIGKILL, a seeded script decides), starts them again,
lets the line drain and checks, from three independent records (what senders saw acknowledged, what task code wrote at its start, what the store says):

    lost         acknowledged, but its run is not done
    phantom      in the store, but never tried by a sender
    stuck        still open after the drain
    doubled      a (message, epoch) started twice, or a start beyond the first without a recorded lost, released or retried delivery before it
    misplaced    a run with a stage message missing, doubled or not done
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from beltline import App
from beltline.core.names import QueueName
from beltline.core.views import MessageFilter, MessageView
from beltline.engines.protocol import Browse, Runs
from tests.system.chaos_sender import item_id

ROOT = Path(__file__).parent.parent.parent
QUEUES = ("one", "two", "three")
DRAIN_S = 90.0  # after the last kill


class Theatre:
    """The processes of one run: one sender, two workers. Whatever is killed is started again."""

    def __init__(self, url: str, log: Path, chain: str, items: int, work_s: float) -> None:
        self.environ = {
            "CHAOS_WORK_S": str(work_s),
            **os.environ,
            "CHAOS_URL": url,
            "CHAOS_LOG": str(log),
            "PYTHONPATH": str(ROOT),
            "BELTLINE_LEASE_S": "4",
            "BELTLINE_LOG_LEVEL": "error",
        }
        self.log, self.chain, self.items = log, chain, items
        self.workers: list[subprocess.Popen[bytes] | None] = [None, None]
        self.sender: subprocess.Popen[bytes] | None = None
        self.output = (log / "output.log").open("ab")
        self.orphans: list[psutil.Process] = []

    def start_missing(self) -> None:
        for number, process in enumerate(self.workers):
            if process is None or process.poll() is not None:
                queues = [part for queue in QUEUES for part in ("-q", f"{queue}:5")]
                command = [sys.executable, "-m", "beltline", "worker", "tests.system.chaos_line:app", *queues, "--runners", "2"]
                self.workers[number] = subprocess.Popen(command, env=self.environ, cwd=ROOT, stdout=self.output, stderr=self.output)
        if self.sender is None or self.sender.poll() not in (None, 0):
            command = [sys.executable, "-m", "tests.system.chaos_sender", self.chain, str(self.items)]
            self.sender = subprocess.Popen(command, env=self.environ, cwd=ROOT, stdout=self.output, stderr=self.output)

    def kill_one(self, rng: random.Random) -> str:
        """One random process of a random sort."""
        sort = rng.choice(("runner", "runner", "supervisor", "sender"))
        if sort == "sender" and self.sender is not None and self.sender.poll() is None:
            self.sender.kill()
            self.sender.wait()
            return sort
        alive = [w for w in self.workers if w is not None and w.poll() is None]
        if not alive:
            return "nobody"
        worker = rng.choice(alive)
        children = psutil.Process(worker.pid).children(recursive=True)
        if sort == "runner" and children:
            rng.choice(children).kill()
            return sort
        self.orphans += children
        worker.kill()
        worker.wait()
        return "supervisor"

    def stop(self) -> int:
        """End everything in good order. Returns how many runners had outlived their supervisor (none may)."""
        for process in [*self.workers, self.sender]:
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in [*self.workers, self.sender]:
            if process is not None:
                try:
                    process.wait(timeout=40)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self.output.close()
        left = [p for p in self.orphans if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        for process in left:
            process.kill()
        return len(left)


async def drained(app: App, chain: str, items: int) -> bool:
    engine = await app.ready()
    assert isinstance(engine, Runs)
    counts = await engine.run_counts(chain)
    return counts.entered == items and counts.running == 0


async def all_messages(app: App) -> list[MessageView]:
    """Every message of the line, with its attempts."""
    engine = await app.ready()
    assert isinstance(engine, Browse)
    found, cursor = [], ""
    where = MessageFilter(queues=QUEUES)
    while True:
        page = await engine.browse(where, limit=1000, cursor=cursor)
        found += page.messages
        cursor = page.cursor
        if not cursor:
            return [await engine.get(view.message.id) if view.epoch > 1 else view for view in found]


async def left_over(app: App) -> list[str]:
    """A few messages that have not ended well, in words, for whoever has to find out why."""
    engine = await app.ready()
    assert isinstance(engine, Browse)
    page = await engine.browse(MessageFilter(queues=QUEUES, states=("delayed", "ready", "leased", "dead")), limit=5)
    views = [await engine.get(view.message.id) for view in page.messages]
    return [
        f"{v.message.id} {v.message.queue} {v.state} epoch {v.epoch} worker {v.worker} why {v.why!r} {[a.outcome + ' ' + a.worker for a in v.attempts]}"
        for v in views
    ]


async def check(app: App, chain: str, items: int, log: Path) -> dict[str, int]:
    """The three records against each other; all findings must be 0."""
    engine = await app.ready()
    assert isinstance(engine, Runs)
    views = await all_messages(app)
    runs = {run.id: run for run in await engine.runs(chain, limit=10 * items)}
    expected = {item_id(number) for number in range(items)}
    acknowledged = {item_id(int(line)) for line in (log / "acknowledged.log").read_text().split()}
    starts = [line.split() for line in (log / "starts.log").read_text().splitlines()]
    started = Counter(message for _, _, message, _, _ in starts)
    twice = sum(count - 1 for count in Counter((message, epoch) for _, _, message, epoch, _ in starts).values())
    excused = {view.message.id: len([a for a in view.attempts if a.outcome in ("lost", "release", "retry")]) for view in views}
    doubled = twice + sum(1 for message, count in started.items() if count > 1 + excused.get(message, 0))
    shape = Counter({"one": 1, "plain_two": 1, "plain_three": 1} if chain == "plain" else {"one": 1, "two": 2, "three": 1})
    stages: dict[str, Counter[str]] = {}
    for view in views:
        place = view.message.place
        assert place is not None
        stages.setdefault(place.run, Counter())[place.stage] += 1
    misplaced = sum(1 for run in runs if stages.get(run) != shape) + sum(1 for view in views if (view.state, view.outcome) != ("done", "succeeded"))
    counts = [await engine.counts(QueueName(queue)) for queue in QUEUES]
    return {
        "lost": sum(1 for id in acknowledged if id not in runs or runs[id].state != "done"),  # type: ignore[comparison-overlap]
        "phantom": sum(1 for id in runs if id not in expected),
        "stuck": sum(1 for run in runs.values() if run.state != "done") + sum(c.ready + c.delayed + c.leased + c.dead for c in counts),
        "doubled": doubled,
        "misplaced": misplaced,
        "miscounted": abs(sum(c.done for c in counts) - len(views)),
        "never started": sum(1 for view in views if started[view.message.id] == 0),
    }


def run(
    *, items: int, kills: int, chain: str = "plain", seed: int = 0, url: str = "", pause_s: tuple[float, float] = (0.2, 0.9)
) -> dict[str, object]:
    """One whole performance. Returns findings (all must be 0) and facts (how many kills of which sort, starts, repeats, seconds)."""
    rng, began = random.Random(seed), time.monotonic()
    killed: Counter[str] = Counter()
    while_running = 0
    with tempfile.TemporaryDirectory(prefix="beltline-chaos-") as name:
        log = Path(name)
        for file in ("starts.log", "acknowledged.log"):
            (log / file).touch()
        url = url or f"sqlite:///{log}/chaos.db"
        # The line shall run for about as long as the killing: two workers with 15 slots each, of which crashes take their share.
        work_s = kills * sum(pause_s) / 2 * 30 * 0.5 / (items * 3)
        theatre = Theatre(url, log, chain, items, work_s)
        try:
            theatre.start_missing()
            with App(url) as app:
                from tests.system.chaos_line import app as line

                app.blocking(_declare(app, line))
                while killed.total() < kills:
                    time.sleep(rng.uniform(*pause_s))
                    while_running += not app.blocking(drained(app, chain, items))
                    if (victim := theatre.kill_one(rng)) != "nobody":
                        killed[victim] += 1
                    theatre.start_missing()
                until = time.monotonic() + DRAIN_S
                while not app.blocking(drained(app, chain, items)) and time.monotonic() < until:
                    theatre.start_missing()
                    time.sleep(0.2)
                left = app.blocking(left_over(app))
                outlived = theatre.stop()
                findings = app.blocking(check(app, chain, items, log))
        finally:
            theatre.stop()
        starts = len((log / "starts.log").read_text().splitlines())
        tail = (log / "output.log").read_text(errors="replace")[-3000:] if any(findings.values()) else ""
    facts = {
        "items": items,
        "chain": chain,
        "seed": seed,
        "kills": dict(killed),
        "kills_while_running": while_running,
        "starts": starts,
        "seconds": round(time.monotonic() - began, 1),
    }
    return {"findings": {**findings, "outlived": outlived}, **facts, "left": left, "output": tail}


async def _declare(app: App, line: App) -> None:
    await (await app.ready()).declare(line.specs())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--chain", choices=["plain", "split"], default="plain")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--url", default="")
    given = parser.parse_args()
    print(f"seed {given.seed}", file=sys.stderr)
    outcome = run(items=given.items, kills=given.kills, chain=given.chain, seed=given.seed, url=given.url)
    print(json.dumps(outcome))
    raise SystemExit(1 if any(outcome["findings"].values()) else 0)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
