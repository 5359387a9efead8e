"""The line that is tortured: three stages that write down, before anything else, that they were started."""

import os
import random
import time
from pathlib import Path

from beltline import App, Retry, current

app = App(os.environ.get("CHAOS_URL", "memory://chaos"))
for _queue in ("one", "two", "three"):
    app.queue(_queue, max_deliveries=1000)  # the murderer is outside: nobody here is poison
LOG = os.environ.get("CHAOS_LOG", "")
WORK_S = float(os.environ.get("CHAOS_WORK_S", "0.01"))  # mean seconds of work in each message


def started(number: int) -> None:
    """One line in one write to a file opened for appending: whole or absent, whoever is killed."""
    here = current()
    line = f"{here.stage} {number} {here.message_id} {here._delivery.receipt.epoch} {os.getpid()}\n"
    descriptor = os.open(Path(LOG) / "starts.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
    time.sleep(random.uniform(0.0, 2 * WORK_S))


@app.task(retry=Retry(attempts=1))
def one(number: int) -> int:
    started(number)
    return number + 1


@app.task(retry=Retry(attempts=1))
def two(number: int, part: int) -> int:
    started(number)
    return number * part


@app.task(retry=Retry(attempts=1))
def three(numbers: list[int]) -> int:
    started(numbers[0])
    return sum(numbers)


@app.task(retry=Retry(attempts=1), queue="two")
def plain_two(number: int) -> int:
    started(number)
    return number


@app.task(retry=Retry(attempts=1), queue="three")
def plain_three(number: int) -> int:
    started(number)
    return number


plain = app.chain("plain", one >> plain_two >> plain_three)
split = app.chain("split", one >> two.each(part=[1, 2]) >> three.gather())
