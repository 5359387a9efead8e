"""What `beltline bench` measures, on this machine, with this engine: sends one by one, sends in batches, then a real worker that drains them all."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

APP = "beltline.demo.noop:app"
BATCH = 1000
SINGLES = 200


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds, and messages a second. `send_one_p50_s`: one send after the other, each durable when it returned. `drain_s`: worker start to empty queue."""

    messages: int
    slots: int
    send_one_p50_s: float
    send_one_p99_s: float
    send_many_per_s: float
    start_s: float
    drain_s: float
    drain_per_s: float


async def measure(url: str, *, messages: int, slots: int, runners: int | None, durability: str | None, said: Callable[[str], None]) -> Measured:
    """Uses the queue `beltline-bench` of the engine and empties it. `messages` at least 1."""
    from beltline.loading import load_app
    from beltline.worker.config import WorkerConfig
    from beltline.worker.serve import serve

    app = load_app(APP)
    app.use_url(url, durability=durability)
    noop = app.tasks["beltline.demo.noop.noop"]
    try:
        await app.ready()
        singles = []
        said(f"sending {min(SINGLES, messages)} messages one after the other")
        for number in range(min(SINGLES, messages)):
            began = time.perf_counter()
            await noop.asend(number)
            singles.append(time.perf_counter() - began)
        many = messages - len(singles)
        said(f"sending {many} in batches of {BATCH}")
        began = time.perf_counter()
        for start in range(0, many, BATCH):
            await noop.asend_many([noop.call(number) for number in range(start, min(many, start + BATCH))])
        sending_s = time.perf_counter() - began
    finally:
        await app.aclose()
    said("draining")
    ready_at = 0.0

    def ready(*_: object) -> None:
        nonlocal ready_at
        ready_at = time.perf_counter()

    config = WorkerConfig(
        app=APP, url=url, queues={"beltline-bench": (slots, slots)}, runners=runners, durability=durability, burst=True, log_level="ERROR"
    )
    began = time.perf_counter()
    await serve(config, on_ready=ready)
    ended = time.perf_counter()
    singles.sort()
    ready_at = ready_at or began
    return Measured(
        messages=messages,
        slots=slots,
        send_one_p50_s=singles[len(singles) // 2],
        send_one_p99_s=singles[min(len(singles) - 1, int(len(singles) * 0.99))],
        send_many_per_s=many / sending_s if many else 0.0,
        start_s=ready_at - began,
        drain_s=ended - ready_at,
        drain_per_s=messages / (ended - ready_at),
    )


async def left_over(url: str, durability: str | None) -> int:
    """What is in the bench's queue before it starts: somebody else's, or an earlier bench that was cut off."""
    from beltline.core.names import QueueName
    from beltline.loading import load_app

    app = load_app(APP)
    app.use_url(url, durability=durability)
    try:
        counts = await (await app.ready()).counts(QueueName("beltline-bench"))
        return counts.ready + counts.delayed + counts.leased + counts.dead
    finally:
        await app.aclose()


def file_url(folder: Path) -> str:
    return f"sqlite:///{(folder / 'bench.db').absolute()}"
