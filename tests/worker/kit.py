"""What the worker tests need: an engine with the app's queues, a worker around it, and waiting that ends."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from beltline.core.codec import unpack
from beltline.core.message import Message
from beltline.core.names import MessageId, QueueName
from beltline.core.queues import Counts
from beltline.core.views import MessageView, ResultView
from beltline.engines.memory import MemoryEngine
from beltline.worker.config import WorkerConfig
from beltline.worker.host import Memory, memory
from beltline.worker.supervisor import Supervisor
from tests.worker import lines

APP = "tests.worker.lines:app"
ROOT = str(Path(__file__).parents[2])
WITHIN_S = 20.0


async def until(true: Callable[[], Any] | Callable[[], Awaitable[Any]], *, within_s: float = WITHIN_S, what: str = "") -> Any:
    """Poll until it is true; its value. Fails after `within_s`."""
    deadline = time.monotonic() + within_s
    while True:
        value = true()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"did not happen within {within_s:g} s: {what or true}"
        await asyncio.sleep(0.01)


async def new_engine() -> MemoryEngine:
    engine = MemoryEngine()
    await engine.open()
    await engine.declare(lines.app.specs())
    return engine


@asynccontextmanager
async def worker(
    engine: MemoryEngine, *queues: str, processes: bool = False, free: Callable[[], Memory] = memory, **options: Any
) -> AsyncIterator[Supervisor]:
    """A worker with 4 slots for each of the queues. In-process unless `processes`. `free`: what it is told about the host's memory."""
    options = {
        "app": APP,
        "app_dir": ROOT,
        "queues": dict.fromkeys(queues, (4, 4)),
        "grace_s": 0.3,
        "drain_s": 5.0,
        "log_level": "WARNING",
        **options,
    }
    supervisor = Supervisor(WorkerConfig(in_process=not processes, **options), app=None if processes else lines.app, engine=engine, free=free)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(supervisor.run())
        try:
            async with asyncio.timeout(WITHIN_S):
                await supervisor.wait_ready()
            yield supervisor
        finally:
            supervisor.drain()
            async with asyncio.timeout(WITHIN_S):
                await running


async def send(engine: MemoryEngine, *calls: Any, **changes: Any) -> list[MessageId]:
    """Send bound calls (`task.call(…)`), all or none; their ids."""
    messages: list[Message] = [msgspec.structs.replace(call.message, **changes) for call in calls]
    return [sent.id for sent in await engine.send(messages)]


async def ended(engine: MemoryEngine, id: MessageId, *, within_s: float = WITHIN_S) -> ResultView:
    """Its view once it is done or dead."""

    async def look() -> ResultView | None:
        [view] = await engine.results([id])
        return view if view is not None and view.state in ("done", "dead") else None

    view: ResultView = await until(look, within_s=within_s, what=f"the end of {id}")
    return view


async def result(engine: MemoryEngine, id: MessageId, *, within_s: float = WITHIN_S) -> Any:
    view = await ended(engine, id, within_s=within_s)
    assert view.outcome == "succeeded", f"{view.state} {view.outcome}: {view.why} {view.failure}"
    assert view.result is not None
    return unpack(view.result)


async def run(engine: MemoryEngine, call: Any, **changes: Any) -> Any:
    """The result of one call."""
    [id] = await send(engine, call, **changes)
    return await result(engine, id)


async def outcomes(engine: MemoryEngine, id: MessageId) -> list[str]:
    """How each of its deliveries ended."""
    view: MessageView = await engine.get(id)
    return [attempt.outcome for attempt in view.attempts]


async def counts(engine: MemoryEngine, queue: str) -> Counts:
    return await engine.counts(QueueName(queue))


def started(directory: Path) -> list[str]:
    """The marks of deliveries that have started and wait at the gate."""
    return sorted(path.name for path in directory.glob("started-*"))
