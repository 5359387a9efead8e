"""Other processes on the harness's store, for the laws that need some: see `child` for what they can be told to do."""

import asyncio
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Harness
from beltline.testing.conformance.kit import QUEUES


@contextmanager
def child(harness: Harness, what: str) -> Generator["subprocess.Popen[str]"]:
    """A process that is killed at the end of the block, whatever it is doing."""
    assert harness.url, "an engine whose store outlives the process has a URL under which another process finds it"
    command = [sys.executable, "-m", "beltline.testing.conformance.child", harness.url, what]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own module, started at once
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def lines(process: "subprocess.Popen[str]", number: int) -> list[str]:
    def read() -> list[str]:
        assert process.stdout is not None
        return [process.stdout.readline().strip() for _ in range(number)]

    return await asyncio.to_thread(read)


async def opened(harness: Harness) -> Full:
    engine: Full = harness.engine()  # type: ignore[assignment]  # the powers have been looked at
    await engine.open()
    await engine.declare([kit.specs(name) for name in QUEUES])
    return engine
