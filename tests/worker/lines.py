"""The app of the worker tests: tasks that do well, that fail in every way there is, and that ruin the process they run in.

Runner processes load this file by its path, so everything a task and a test say to each other goes through files in a directory given as argument.
"""

import asyncio
import contextlib
import ctypes
import os
import re
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextvars import ContextVar
from pathlib import Path

from beltline import App, Cancel, Reject, Retry, RetryLater, Snooze, branch, current, inject

app = App("memory://")
leftover: ContextVar[str] = ContextVar("leftover", default="clean")
hoard: list[bytearray] = []
opened: list[str] = []


@app.resource
async def greeting() -> AsyncIterator[str]:
    opened.append("open")
    yield "hello"
    opened.append("closed")


@app.task(queue="work")
async def double(n: int) -> int:
    return 2 * n


@app.task(queue="work")
def triple(n: int) -> int:
    return 3 * n


@app.task(queue="work")
async def pause_then(n: int, pause_s: float) -> int:
    await asyncio.sleep(pause_s)
    return n


app.queue("murdered", max_deliveries=1000)  # whoever is killed here is killed from outside, and no poison however slow the machine is


@app.task(queue="murdered")
async def pause_among_kills(n: int, pause_s: float) -> int:
    await asyncio.sleep(pause_s)
    return n


@app.task(queue="work")
async def leave_behind(word: str) -> str:
    before = leftover.get()
    leftover.set(word)
    await asyncio.sleep(0)
    return f"{before} {leftover.get()} {current().attempt}"


@app.task(queue="work")
def leave_behind_in_thread(word: str) -> str:
    before = leftover.get()
    leftover.set(word)
    return f"{before} {current().message_id}"


@app.task(queue="work")
async def greet(name: str, word: str = inject(greeting)) -> str:
    return f"{word} {name}"


@app.task(queue="work", retry=Retry(attempts=2, base_s=0.0))
async def boom(text: str) -> None:
    raise ValueError(text)


@app.task(queue="work", retry=False)
def leave_by_exit() -> None:
    sys.exit("not today")


@app.task(queue="work", retry=Retry(attempts=3, base_s=0.0, never=("LookupError",)))
def look_up() -> None:
    raise KeyError("gone")


@app.task(queue="work", retry=Retry(attempts=2))
async def later() -> int:
    if current().attempt == 1:
        raise RetryLater(0.0)
    return current().attempt


@app.task(queue="work")
async def snooze(directory: str) -> int:
    mark = Path(directory) / current().message_id
    if not mark.exists():
        mark.touch()
        raise Snooze(0.0)
    return current().attempt


@app.task(queue="work")
async def cancel() -> None:
    raise Cancel("no longer needed")


@app.task(queue="work")
def reject() -> None:
    raise Reject("the file is no photo")


@app.task(queue="work", retry=False)
async def carry_nothing() -> object:
    return object()


@app.task(queue="work")
async def tell(value: int, directory: str) -> None:
    current().progress(value)
    await gate_open(Path(directory))


@app.task(queue="once_each", retry=False)
async def once_each(directory: str, pause_s: float) -> None:
    """Fails where the same message is run a second time."""
    (Path(directory) / current().message_id).touch(exist_ok=False)
    await asyncio.sleep(pause_s)


@app.task(queue="once_each", retry=False)
def once_each_in_thread(directory: str, pause_s: float) -> None:
    (Path(directory) / current().message_id).touch(exist_ok=False)
    time.sleep(pause_s)


# ---- what takes its time: it says that it has started, and waits until the test opens the gate


async def gate_open(directory: Path) -> None:
    (directory / f"started-{current().message_id}-{current().attempt}").write_text(f"{os.getpid()}")
    while not (directory / "go").exists():  # noqa: ASYNC110  # the gate is a file: the test is another process
        await asyncio.sleep(0.01)


@app.task(queue="gate", retry=Retry(attempts=3, base_s=0.0))
async def gate(directory: str) -> int:
    try:
        await gate_open(Path(directory))
    except asyncio.CancelledError:
        (Path(directory) / f"stopped-{current().message_id}").touch()
        raise
    return os.getpid()


@app.task(queue="gate", retry=Retry(attempts=3, base_s=0.0))
def gate_in_thread(directory: str) -> str:
    (Path(directory) / f"started-{current().message_id}-{current().attempt}").write_text(f"{os.getpid()}")
    while not (Path(directory) / "go").exists():
        time.sleep(0.01)
    return threading.current_thread().name


@app.task(queue="short", timeout=0.3, retry=Retry(attempts=2, base_s=0.0))
async def wait_for_ever() -> None:
    await asyncio.Event().wait()


@app.task(queue="short", timeout=0.3, retry=Retry(attempts=1))
def loop_for_ever() -> None:
    while True:
        pass


@app.task(queue="short", timeout=0.3, retry=Retry(attempts=1))
def sleep_in_c() -> None:
    time.sleep(600)


@app.task(queue="short", timeout=0.3, retry=Retry(attempts=1))
async def swallow() -> None:
    while True:
        with contextlib.suppress(BaseException):
            await asyncio.sleep(600)


@app.task(queue="short", timeout=0.3, retry=Retry(attempts=2, base_s=0.0))
def look_at_stop_asked(directory: str) -> str:
    try:
        while not current().stop_asked:
            time.sleep(0.01)
    finally:
        (Path(directory) / "asked").touch()
    return "stopped by itself"


@app.task(queue="lock", timeout=60, retry=False)
def hold_the_lock() -> bool:
    """A regular expression that backtracks for seconds and holds the interpreter lock all the while."""
    started = time.monotonic()
    while time.monotonic() - started < 2.5:
        re.match(r"(a+)+$", "a" * 22 + "b")
    return True


# ---- what ruins its runner


@app.task(queue="ruin")
async def die(code: int) -> None:
    os._exit(code)


@app.task(queue="ruin")
def segfault() -> None:
    ctypes.string_at(0)


@app.task(queue="ruin")
async def die_when_asked(directory: str) -> None:
    await gate_open(Path(directory))
    os._exit(7)


@app.task(queue="ruin")
async def innocent(directory: str) -> int:
    await gate_open(Path(directory))
    return current().attempt


@app.task(queue="ruin")
def write_into_every_file() -> None:
    for fd in range(3, 64):
        with contextlib.suppress(OSError):
            os.write(fd, b"\xff" * 64)
    time.sleep(600)


@app.task(queue="ruin")
def fork_away() -> str:
    return "parent" if os.fork() else "child"


@app.task(queue="ruin")
async def fork_away_async() -> str:
    word = "parent" if os.fork() else "child"
    await asyncio.sleep(0)
    return word


app.queue("once", max_deliveries=1)


@app.task(queue="once")
async def die_once(directory: str) -> None:
    await gate_open(Path(directory))
    os._exit(7)


@app.task(queue="once")
async def innocent_once(directory: str) -> int:
    await gate_open(Path(directory))
    return current().attempt


@app.task(queue="ruin")
def close_all_files() -> None:
    os.closerange(3, 256)
    time.sleep(600)


@app.task(queue="leak")
def leak(mib: int) -> int:
    hoard.append(bytearray(b"x" * (mib << 20)))
    return os.getpid()


@app.task(queue="leak")
async def my_runner() -> int:
    return os.getpid()


@app.task(queue="process", kind="process")
def in_a_process_of_its_own(directory: str) -> int:
    (Path(directory) / f"process-{os.getpid()}").touch()
    while not (Path(directory) / "go").exists():
        time.sleep(0.01)
    return os.getpid()


# ---- chains


@app.task
async def begin(n: int) -> int:
    return n


@app.task
def widen(n: int, by: int) -> int:
    return n * by


@app.task
async def add_up(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
async def is_even(n: int) -> str:
    return "even"


@app.task
async def is_odd(n: int) -> str:
    return "odd"


app.chain("sums", begin >> widen.each(by=[1, 10, 100]) >> add_up.gather())
app.chain("parity", begin.stage(name="look") >> branch(lambda n: "even" if n % 2 == 0 else "odd", even=is_even, odd=is_odd))


# ---- flow control

app.limit("narrow", concurrency=1)


@app.task(queue="narrow", limits=["narrow"])
async def narrow(n: int) -> int:
    return n
