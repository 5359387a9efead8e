"""The work that flow control is measured with: tasks that mark, in shared memory, when they were started (see bench/tasks.py)."""

import asyncio
import os
import time

from beltline import App, Limited
from bench.tasks import _mark, marks

app = App(os.environ["BENCH_URL"], durability=os.environ.get("BENCH_DURABILITY") or None)
app.limit("pace", rate=float(os.environ.get("BENCH_RATE") or 50.0))
app.limit("shut", concurrency=0)
app.limit("wide", concurrency=1_000_000)


@app.task(limits=["pace"])
async def paced(n: int) -> None:
    _mark(marks, 8 * n, time.monotonic())


@app.task(queue="belt")
async def free(n: int) -> None:
    _mark(marks, 8 * n, time.monotonic())


@app.task(queue="belt", limits=["shut"])
async def behind_one(n: int) -> None:
    raise AssertionError(f"{n} cannot start")


@app.task(queue="belt", limits=[Limited("shut", key="n")])
async def behind_its_own(n: int) -> None:
    raise AssertionError(f"{n} cannot start")


@app.task(queue="belt", limits=["wide"])
async def limited(n: int) -> None:
    """Subject to a limit that never stops it: what looking costs."""
    _mark(marks, 8 * n, time.monotonic())


@app.task(queue="shared", tenant="tenant")
async def shared(tenant: str, n: int, sent: float = 0.0, pause_s: float = 0.0) -> None:  # noqa: ARG001  # the tenant is what the send looks at
    """Marks the instant of its start, or, where `sent` is given, how long it has waited."""
    _mark(marks, 8 * n, time.monotonic() - sent)
    await asyncio.sleep(pause_s)
