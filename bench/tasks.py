"""The work that is measured: tasks that do nothing but mark, in shared memory, when they were started."""

import mmap
import os
import struct
import time
from pathlib import Path

from beltline import App

app = App(os.environ["BENCH_URL"], durability=os.environ.get("BENCH_DURABILITY") or None)
_mark = struct.Struct("<d").pack_into


def _marks() -> mmap.mmap | bytearray:
    name = os.environ.get("BENCH_MARKS")
    if not name:
        return bytearray(8 * 1_000_000)
    with Path(name).open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)


marks = _marks()


@app.task
async def noop(n: int) -> None:
    """Marks slot `n` with the instant of its start (CLOCK_MONOTONIC is one clock for all processes of a host)."""
    _mark(marks, 8 * n, time.monotonic())


@app.task
def noop_def(n: int) -> None:
    _mark(marks, 8 * n, time.monotonic())


@app.task
async def echo(n: int, sent: float) -> None:
    """Marks slot `n` with the seconds since `sent`."""
    _mark(marks, 8 * n, time.monotonic() - sent)


@app.task
async def first(n: int) -> int:
    if n == 0:
        _mark(marks, 0, time.monotonic())
    return n


@app.task
async def second(n: int) -> int:
    return n


@app.task
async def third(n: int) -> int:
    _mark(marks, 8 * (n + 1), time.monotonic())
    return n


BUSY_S = 0.6


@app.task
def busy(n: int) -> None:
    """Marks slot `n` with the instant of its start and keeps its slot for BUSY_S."""
    _mark(marks, 8 * n, time.monotonic())
    time.sleep(BUSY_S)


app.queue("busy", target=float(os.environ.get("BENCH_TARGET_S", "5")))

line = app.chain("bench", first >> second >> third)
