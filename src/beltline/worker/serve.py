"""A worker as a program (`serve`) and as a part of another one (`Worker`)."""

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from beltline.app import App
from beltline.core.errors import UsageError
from beltline.portal import Portal
from beltline.worker.config import WorkerConfig
from beltline.worker.supervisor import Supervisor

log = logging.getLogger("beltline.worker")


async def serve(
    config: WorkerConfig, *, on_ready: Callable[[Supervisor], None] | None = None, stop: asyncio.Event | None = None, reload: bool = False
) -> int:
    """Run one worker until it is told to stop; the exit code: 0 drained, 130 or 143 stopped by force, 2 the app or the configuration, 4 the store, 1 otherwise.

    SIGTERM and SIGINT drain, a second one stops at once (in the main thread only). `stop` set from outside drains too. `reload`: see reload.py.
    """
    supervisor = Supervisor(config, on_ready=lambda: on_ready(supervisor) if on_ready else None)
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()

    def on_signal(number: int) -> None:
        if supervisor.draining:
            log.warning("%s again: stopping at once", signal.Signals(number).name)
            supervisor.stop_now(128 + number)
        else:
            supervisor.drain()

    for number in signals:
        loop.add_signal_handler(number, on_signal, number)
    try:
        async with asyncio.TaskGroup() as group:
            beside = []
            if stop is not None:
                beside.append(group.create_task(_drain_on(stop, supervisor)))
            if reload:
                from beltline.worker.reload import watch_and_restart

                beside.append(group.create_task(watch_and_restart(supervisor)))
            code = await supervisor.run()
            for task in beside:
                task.cancel()
            return code
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def _drain_on(stop: asyncio.Event, supervisor: Supervisor) -> None:
    await stop.wait()
    supervisor.drain()


class Worker:
    """A worker inside your program: `with` or `async with Worker(app, in_process=True): …`, or start() and stop(). Both may be called twice.

    `app`: an App, or where to find one. Options are those of WorkerConfig. With an App and `in_process` the runner uses that very App and its engine;
    with processes the runners load it anew from `app.spec`.
    """

    def __init__(self, app: App | str, **options: Any) -> None:
        spec = app if isinstance(app, str) else app.spec
        config = WorkerConfig(app=spec or "<this process>", **options)
        if isinstance(app, App) and not config.in_process and not app.spec:
            raise UsageError(
                "Runners are processes of their own and must find the app.", help='Name it: Worker("module:app"), or use in_process=True.'
            )
        if isinstance(app, App) and not config.url:
            config = replace(config, url=app.url)
        self.config = config
        self._app = app if isinstance(app, App) else None
        self._portal = Portal()
        self.supervisor: Supervisor | None = None
        self._task: asyncio.Task[int] | None = None

    async def start(self) -> None:
        """Returns when messages are being received. Raises UsageError when the worker cannot start."""
        if self._task is not None:
            return
        engine = await self._app.ready() if self._app is not None else None
        app = self._app if self.config.in_process else None
        self.supervisor = Supervisor(self.config, app=app, engine=engine)
        self._task = asyncio.get_running_loop().create_task(self.supervisor.run(), name="beltline-worker")
        await self.supervisor.wait_ready()
        if self.supervisor.problem:
            await self.stop()
            raise UsageError("The worker cannot start.", why=self.supervisor.problem)

    async def stop(self) -> int:
        """Drain; the exit code."""
        task, self._task = self._task, None
        if task is None or self.supervisor is None:
            return 0
        self.supervisor.drain()
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self.supervisor.stop_now()
            await asyncio.wait([task])
            raise

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        """For synchronous code: the worker runs in an event loop of its own thread."""
        self._portal.run(self.start())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._portal.run(self.stop())
        self._portal.stop()
