"""The reader: a second connection in a thread of its own, for everything that only looks. A long browse never holds up the writer."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw

from beltline.core.capabilities import Durability
from beltline.core.errors import BeltlineError
from beltline.engines.sqlite.ledger import Ledger
from beltline.engines.sqlite.place import connect
from beltline.engines.sqlite.times import Ratchet
from beltline.engines.sqlite.trouble import explain


class Look:
    __slots__ = ("future", "loop", "run", "time")

    def __init__(self, run: Callable[[Ledger], Any], time: Ratchet) -> None:
        self.run, self.time = run, time
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()


class Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._inbox: queue.SimpleQueue[Look | None] = queue.SimpleQueue()
        self._ledger: Ledger | None = None
        self._stale = False
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def submit(self, look: Look) -> None:
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._main, name="beltline-sqlite-reader", daemon=True)
                    self._thread.start()
        self._inbox.put(look)

    def distrust(self) -> None:
        """The writer met a storage error: open anew before the next look."""
        self._stale = True

    def stop(self) -> None:
        """Ends the thread after what it has been asked so far. Waits for it."""
        if self._thread is not None:
            self._inbox.put(None)
            self._thread.join()
            self._thread = None

    def _main(self) -> None:
        while (look := self._inbox.get()) is not None:
            value: Any = None
            error: Exception | None = None
            try:
                value = self._look(look)
            except BeltlineError as caught:
                error = caught
            except apsw.Error as caught:
                self._close()
                error = explain(caught, str(self.path), committing=False)
            except Exception as caught:  # noqa: BLE001 - whatever it is, it belongs to the caller
                error = caught
            with contextlib.suppress(RuntimeError):  # its loop is closed
                look.loop.call_soon_threadsafe(_deliver, look, value, error)
        self._close()

    def _look(self, look: Look) -> Any:
        if self._stale:
            self._stale = False
            self._close()
        if self._ledger is None:
            self._ledger = Ledger(connect(self.path, Durability.OS, read_only=True))
        ledger = self._ledger
        ledger.look(look.time.now_ms())
        look.time.lift(ledger.now)
        try:
            return look.run(ledger)
        finally:
            ledger.sql("COMMIT")

    def _close(self) -> None:
        if self._ledger is not None:
            with contextlib.suppress(apsw.Error):
                self._ledger.db.close(True)
            self._ledger = None


def _deliver(look: Look, value: Any, error: BaseException | None) -> None:
    if look.future.done():
        return
    if error is None:
        look.future.set_result(value)
    else:
        look.future.set_exception(error)
