"""The blocking face: one thread with one event loop, through which every synchronous call runs the asynchronous one. Never a second implementation."""

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Portal:
    """Started by the first call, restarted in a forked child; `stop` is safe to call twice. The thread is a daemon: it holds nothing that must be saved."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in the portal's loop and wait for it. An interrupt (ctrl-c) cancels it and is raised again."""
        loop = self._running_loop()
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("A blocking Beltline call was made inside its own event loop. Use the a… variant (asend, aresult).")
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._pid != os.getpid():
                started = threading.Event()
                self._loop = loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_spin, args=(loop, started), name="beltline-portal", daemon=True)
                self._thread.start()
                self._pid = os.getpid()
                started.wait()
            return self._loop

    def stop(self) -> None:
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None and self._pid == os.getpid():
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout=10)


def _spin(loop: asyncio.AbstractEventLoop, started: threading.Event) -> None:
    asyncio.set_event_loop(loop)
    loop.call_soon(started.set)
    try:
        loop.run_forever()
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
