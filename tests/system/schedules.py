"""Several schedulers on one store, killed at the instant something is due, and then the question whether each occurrence was sent once and none early.

    python -m tests.system.schedules --items 10000 [--schedulers 3] [--kills 100] [--engine sqlite|postgres] [--seed N]
    python -m tests.system.schedules --idle-s 60        nothing is killed: how late is a single schedule?

The schedulers are the product's own (`beltline upkeep --only scheduler`), real processes that get a real SIGKILL, mostly within the tenth of a second after a whole one, when
all schedules are due together; whoever was killed is started again. Every schedule is due each second and catches up all it has missed, so the number of occurrences is known
beforehand. Messages are told by the header that names schedule and instant, not by their ids: a doubled one would be seen.

The answer is one JSON line; exit code 1 if anything was found.
"""

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from beltline.core.message import Message
from beltline.core.names import QueueName, TaskName
from beltline.core.queues import QueueSpec
from beltline.core.schedule import DUE, NO_ID, OF, Schedule, occurrence_id, schedule
from beltline.core.views import MessageFilter, MessageView
from beltline.engines.registry import make_engine
from tests.system.chaos import postgres

QUEUE = QueueName("tick")
STOP_S = 20.0
LONG_S = 120.0  # nothing here waits longer for the last occurrences
EVIDENCE = 5


class Crowd:
    """The schedulers."""

    def __init__(self, url: str, number: int, output: Path) -> None:
        self._command = [sys.executable, "-m", "beltline", "upkeep", "--only", "scheduler", "--quiet", "--url", url]
        self._output = output.open("ab")
        self._all: list[subprocess.Popen[bytes] | None] = [None] * number
        self.killed = 0
        self.fallen: list[str] = []

    def start_missing(self) -> None:
        for place, child in enumerate(self._all):
            if child is None or child.poll() is not None:
                if child is not None and child.returncode != -signal.SIGKILL:
                    self.fallen.append(f"scheduler {place} ended by itself with {child.returncode}")
                self._all[place] = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output)

    def kill_one(self, rng: random.Random) -> None:
        awake = [child for child in self._all if child is not None and child.poll() is None]
        if awake:
            victim = rng.choice(awake)
            victim.kill()
            victim.wait()
            self.killed += 1

    def stop(self) -> None:
        for child in self._all:
            if child is not None and child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for child in self._all:
            if child is not None:
                try:
                    child.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    self.fallen.append("a scheduler did not end when it was told to")
                    child.kill()
                    child.wait()
        self._all = []
        self._output.close()


def specs(number: int) -> list[Schedule]:
    message = Message(id=NO_ID, queue=QUEUE, task=TaskName("tick"), body=b"\x80")
    return [schedule(f"s{place:04}", message, every=1, catch_up="all", catch_up_limit=1000) for place in range(number)]


def run(*, items: int, schedulers: int = 3, kills: int = 0, number: int = 0, seed: int = 0, url: str = "", awake_s: float = 0.0) -> dict[str, Any]:
    """`number` schedules of a second each, until `items` occurrences are over. Returns `findings` (all must be 0), `evidence` for them, and facts.

    `awake_s`: how long the schedulers have been up before there is a schedule.
    """
    number = number or max(1, min(200, items // 25))
    rounds = -(-items // number)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="beltline-schedules-")))
        url = url or f"sqlite:///{folder}/schedules.db?durability=os"
        crowd = Crowd(url, schedulers, folder / "output.log")
        stack.callback(crowd.stop)
        began = time.monotonic()
        if awake_s:
            crowd.start_missing()
            time.sleep(awake_s)
        stood = asyncio.run(_put(url, specs(number)))
        last = {name: int(at) + rounds for name, at in stood.items()}  # due at every whole second behind where it stands
        _harm(crowd, random.Random(seed), kills=kills, rounds=rounds, until=max(last.values()), url=url)
        crowd.stop()
        output = (folder / "output.log").read_text(errors="replace")
        found = asyncio.run(_sent(url))
    verdict = _judge(found, stood, last)
    findings = {**verdict.pop("findings"), "fallen": crowd.fallen}
    return {
        "findings": {name: len(texts) for name, texts in findings.items()},
        "occurrences": sum(last[name] - int(at) for name, at in stood.items()),
        "schedules": number,
        "schedulers": schedulers,
        "kills": crowd.killed,
        "seed": seed,
        **verdict,
        "seconds": round(time.monotonic() - began, 1),
        "evidence": {name: texts[:EVIDENCE] for name, texts in findings.items() if texts},
        "output": output[-2000:] if any(findings.values()) else "",
    }


def _harm(crowd: Crowd, rng: random.Random, *, kills: int, rounds: int, until: int, url: str) -> None:
    """Kills are spread over the whole time. Returns when every schedule stands at `until` or behind it."""
    end = time.monotonic() + rounds + LONG_S
    crowd.start_missing()
    while time.monotonic() < end:
        if crowd.killed < kills:
            left_s = max(0.3, until - time.time())
            pause_s = min(1.0, left_s / (kills - crowd.killed))
            whole = time.time() + rng.uniform(0.2, 1.8) * pause_s
            # three of four within the first tenth of a second, when schedulers are at it
            at = int(whole) + rng.uniform(0.0, 0.1) if rng.random() < 0.75 else whole
            time.sleep(max(0.01, at - time.time()))
            crowd.kill_one(rng)
        else:
            time.sleep(0.2)
        crowd.start_missing()
        if crowd.killed >= kills and time.time() > until and asyncio.run(_done(url, until)):
            return
    raise AssertionError(f"the occurrences have not been sent within {rounds + LONG_S:.0f} s")


async def _put(url: str, given: list[Schedule]) -> dict[str, float]:
    engine: Any = make_engine(url)
    await engine.open()
    try:
        await engine.declare([QueueSpec(name=QUEUE)])
        assert all(await engine.put_schedules(given, origin="operator"))
        return {view.schedule.name: view.stood_at for view in await engine.schedules(limit=len(given))}
    finally:
        await engine.close()


async def _done(url: str, until: int) -> bool:
    engine: Any = make_engine(url)
    await engine.open()
    try:
        return all(view.stood_at >= until for view in await engine.schedules(limit=100_000))
    finally:
        await engine.close()


async def _sent(url: str) -> list[MessageView]:
    engine: Any = make_engine(url)
    await engine.open()
    try:
        found: list[MessageView] = []
        cursor = ""
        while True:
            page = await engine.browse(MessageFilter(queues=(QUEUE,)), limit=5000, cursor=cursor)
            found += page.messages
            cursor = page.cursor
            if not cursor:
                return found
    finally:
        await engine.close()


def _judge(found: list[MessageView], stood: dict[str, float], last: dict[str, int]) -> dict[str, Any]:
    """What was sent against what had to be, up to `last`."""
    times: Counter[tuple[str, float]] = Counter()
    early, strange, late_s = [], [], []
    for view in found:
        name, due = view.message.headers[OF], datetime.fromisoformat(view.message.headers[DUE]).timestamp()
        if due > last[name]:
            continue  # sent while the last ones were waited for
        times[name, due] += 1
        late_s.append(view.sent_at - due)
        if view.sent_at < due:
            early.append(f"{name} due at {due}, sent at {view.sent_at}")
        if view.message.id != occurrence_id(name, due):
            strange.append(f"{name} due at {due} has the id {view.message.id}")
    wanted = {(name, float(due)) for name, at in stood.items() for due in range(int(at) + 1, last[name] + 1)}
    late_s.sort()
    return {
        "findings": {
            "missing": [f"{name} at {due}" for name, due in sorted(wanted - times.keys())],
            "doubled": [f"{name} at {due}: {count} times" for (name, due), count in times.items() if count > 1],
            "never due": [f"{name} at {due}" for name, due in sorted(times.keys() - wanted)],
            "early": early,
            "strange id": strange,
        },
        "sent": sum(times.values()),
        "late_s": {f"p{part}": round(late_s[min(len(late_s) - 1, len(late_s) * part // 100)], 3) for part in (50, 99, 100)} if late_s else {},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--schedulers", type=int, default=3)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--idle-s", type=int, default=0, help="instead: one schedule for so long, and nothing is killed")
    parser.add_argument("--engine", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    print(f"seed {given.seed}", file=sys.stderr)
    with ExitStack() as stack:
        url = stack.enter_context(postgres(""))[0] if given.engine == "postgres" else ""
        if given.idle_s:
            outcome = run(items=given.idle_s, schedulers=given.schedulers, number=1, seed=given.seed, url=url, awake_s=5.0)
        else:
            outcome = run(items=given.items, schedulers=given.schedulers, kills=given.kills, seed=given.seed, url=url)
    print(json.dumps(outcome))
    raise SystemExit(1 if any(outcome["findings"].values()) else 0)


if __name__ == "__main__":
    main()
