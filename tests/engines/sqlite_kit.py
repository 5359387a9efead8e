"""What the tests of the SQLite engine alone share: an open engine, plain messages, and processes of their own with a bound on everything."""

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from beltline.core.message import Message
from beltline.core.names import MessageId, QueueName, TaskName
from beltline.core.queues import QueueSpec
from beltline.engines.sqlite import SqliteEngine

WORK, NEXT = QueueName("work"), QueueName("next")
BOUND_S = 20.0

_numbers = itertools.count(1)


def message(queue: str = WORK, body: bytes = b"\x80", **fields: Any) -> Message:
    number = next(_numbers)
    return Message(
        id=MessageId(f"{0x019000000000 + number:012x}70008{number:015x}"), queue=QueueName(queue), task=TaskName("resize"), body=body, **fields
    )


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[SqliteEngine]:
    engine = SqliteEngine(path, **options)
    await engine.open()
    try:
        await engine.declare([QueueSpec(name=WORK), QueueSpec(name=NEXT)])
        yield engine
    finally:
        await engine.close()


def child(program: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that runs `program`; whoever starts it kills it."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def output(process: subprocess.Popen[str]) -> str:
    """What it printed, after a good end."""
    out, err = process.communicate(timeout=BOUND_S)
    assert process.returncode == 0, err
    return out


async def until(probe: Callable[[], bool]) -> None:
    """Poll, because another process cannot be awaited."""
    end = time.monotonic() + BOUND_S
    while not probe():
        assert time.monotonic() < end, "it never happened"
        await asyncio.sleep(0.01)
