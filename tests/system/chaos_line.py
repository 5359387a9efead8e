"""The line that is tortured: three stages that write down, before anything else, that they were started.

The last stage returns the right value with the epoch it ran under, so that a result can be told from that of another delivery.
"""

import os
import random
import time
from functools import cache
from pathlib import Path

from beltline import App, Retry, current
from tests.system.history import Journal

QUEUES = ("one", "two", "three")
SHAPES = {
    "plain": {"one": 1, "plain_two": 1, "plain_three": 1},
    "split": {"one": 1, "two": 2, "three": 1},
    "flow": {"narrow": 1, "steady": 1, "frail": 1},  # chaos_flow.py
}
PARTS = (1, 2)

app = App(os.environ.get("CHAOS_URL", "memory://chaos"))
for _queue in QUEUES:
    app.queue(_queue, max_deliveries=1000)  # the murderer is outside: nobody here is poison
LOG = os.environ.get("CHAOS_LOG", "")
WORK_S = float(os.environ.get("CHAOS_WORK_S", "0.01"))  # mean seconds of work in each message


def value(chain: str, number: int) -> int:
    """What item `number` must come to."""
    return (number + 1) * sum(PARTS) if chain == "split" else number + 1


@cache
def journal(pid: int) -> Journal:
    return Journal(Path(LOG), "runner")


def started(said: int = -1) -> int:
    """Note it, work for a while, note the end, say under which epoch. `said`: what the message asks for, where that may change."""
    receipt = current()._delivery.receipt
    journal(os.getpid()).write("start", message=receipt.id, epoch=receipt.epoch, said=said)
    time.sleep(random.uniform(0.0, 2 * WORK_S))
    journal(os.getpid()).write("end", message=receipt.id, epoch=receipt.epoch)
    return receipt.epoch


@app.task(retry=Retry(attempts=1))
def one(number: int) -> int:
    started()
    return number + 1


@app.task(retry=Retry(attempts=1))
def two(number: int, part: int) -> int:
    started()
    return number * part


@app.task(retry=Retry(attempts=1))
def three(numbers: list[int]) -> list[int]:
    return [sum(numbers), started()]


@app.task(retry=Retry(attempts=1), queue="two")
def plain_two(number: int) -> int:
    started()
    return number


@app.task(retry=Retry(attempts=1), queue="three")
def plain_three(number: int) -> list[int]:
    return [number, started()]


plain = app.chain("plain", one >> plain_two >> plain_three)
split = app.chain("split", one >> two.each(part=list(PARTS)) >> three.gather())
