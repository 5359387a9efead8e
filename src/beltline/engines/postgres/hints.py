"""Wake-ups: hints that something may be there. Polling is the truth, so a lost one costs a moment and nothing else.

Who waits in this process is poked directly, in whatever event loop. Other processes hear a NOTIFY, never two within PERIOD_S (the longer, the more there are) and never inside a transaction that
stores something: every transaction with a NOTIFY takes one lock of the whole server at its commit. Behind a pooler that hands out connections per transaction
LISTEN hears nothing, and polling is all there is.
"""

import asyncio
import concurrent.futures
import contextlib
import random
import threading
from collections.abc import Awaitable, Callable, Generator, Iterable
from hashlib import blake2b

import psycopg

from beltline.core.errors import BeltlineError
from beltline.engines.postgres.address import Address
from beltline.engines.postgres.desk import GONE_S, Desk, Greeting
from beltline.engines.postgres.wire import statement

ENDED = "!"  # instead of a queue's name: a message or run has ended
EVERYTHING = "*"
PERIOD_S = (0.005, 0.05)  # between two NOTIFYs: after a rest, and while they keep coming
POLL_S = (0.05, 2.0)  # between two looks: at first, at most
RECONNECT_S = (0.1, 5.0)
GRACE_S = 2.0  # for the statement under way when it is told to stop
STOP_S = 10.0
MAX_PAYLOAD = 7000  # PostgreSQL allows 8,000 bytes


def channel(address: Address) -> str:
    """One for each schema; the database is the server's business."""
    return "beltline_" + blake2b(address.schema.encode(), digest_size=6).hexdigest()


class Waiter:
    """One receive, or one wait for results, between two looks."""

    __slots__ = ("event", "names")

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self.event = asyncio.Event()


class Waiters:
    """Those of one event loop."""

    def __init__(self) -> None:
        self._waiters: set[Waiter] = set()

    @contextlib.contextmanager
    def waiting(self, names: Iterable[str]) -> Generator[Waiter]:
        """Register before looking, so that what comes between the look and the wait is not missed."""
        waiter = Waiter(names)
        self._waiters.add(waiter)
        try:
            yield waiter
        finally:
            self._waiters.discard(waiter)

    def poke(self, names: frozenset[str]) -> None:
        """In their loop."""
        for waiter in self._waiters:
            if EVERYTHING in names or not waiter.names.isdisjoint(names):
                waiter.event.set()


class Herald:
    """One thread of an engine that carries hints between processes, begun when the first is told or awaited. It has connections of its own.

    A thread, because the engine's callers may come from event loops that end at any moment and must leave nothing behind.
    """

    def __init__(self, address: Address, greet: Greeting, tell: Callable[[frozenset[str]], None]) -> None:
        self._address = address
        self._greet = greet
        self._tell = tell
        self._channel = channel(address)
        self._lock = threading.Lock()
        self._pending: set[str] = set()
        self._chores: list[Callable[[Desk], Awaitable[object]]] = []
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._home: Callable[[], None] | None = None
        self._listens = False
        self._stopped = False
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()

    # ------------------------------------------------------------------------------------------------ from any thread
    def hint(self, names: Iterable[str]) -> None:
        if self._address.listen:
            with self._lock:
                self._pending.update(names)
            self._stir()

    def listen(self) -> None:
        """Somebody waits here from now on."""
        if self._address.listen and not self._listens:
            self._listens = True
            self._stir()

    def do(self, chore: Callable[[Desk], Awaitable[object]]) -> None:
        """Something that may be done beside the calls, or not at all."""
        with self._lock:
            self._chores.append(chore)
        self._stir()

    def _stir(self) -> None:
        with self._lock:
            if self._stopped:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="beltline-herald", daemon=True)
                self._thread.start()
            loop, wake = self._loop, self._wake
        if loop is not None and wake is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended
                loop.call_soon_threadsafe(wake.set)

    async def stop(self) -> None:
        """Idempotent. Waits for the thread: it has at most one short statement to finish, and hangs up on a server that is silent."""
        with self._lock:
            self._stopped = True
            thread, loop, home = self._thread, self._loop, self._home
        if thread is None:
            return
        if loop is not None and home is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended
                loop.call_soon_threadsafe(home)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await asyncio.shield(asyncio.wrap_future(self._ended))
            thread.join(STOP_S)

    # ------------------------------------------------------------------------------------------------ in the thread
    def _run(self) -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):  # sent home while it waited for a server
                asyncio.run(self._live())
        finally:
            self._ended.set_result(None)

    async def _live(self) -> None:
        wake = asyncio.Event()
        desk = Desk(self._address, self._greet)
        loop, life = asyncio.get_running_loop(), asyncio.current_task()
        assert life is not None

        def home() -> None:
            wake.set()
            loop.call_later(GRACE_S, desk.hang_up)
            loop.call_later(GRACE_S + GONE_S, life.cancel)

        with self._lock:
            self._loop, self._wake, self._home = loop, wake, home
        wake.set()
        listening: asyncio.Task[None] | None = None
        period = PERIOD_S[0]
        try:
            while not self._stopped:
                await wake.wait()
                wake.clear()
                if self._listens and listening is None:
                    listening = desk.own(self._listen(desk))
                with self._lock:
                    chores, self._chores = self._chores, []
                    names, self._pending = self._pending, set()
                with contextlib.suppress(BeltlineError):  # hints, and what may be left undone
                    if names:
                        await self._notify(desk, names)
                    for chore in chores:
                        await chore(desk)
                if names and not self._stopped:
                    await asyncio.sleep(period)
                    period = min(period * 2, PERIOD_S[1]) if self._pending else PERIOD_S[0]
        finally:
            if listening is not None:
                listening.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await listening
            await desk.close()

    async def _notify(self, desk: Desk, names: set[str]) -> None:
        text = " ".join(sorted(names))
        await desk.ask("SELECT pg_notify(%s, %s)", (self._channel, text if len(text) < MAX_PAYLOAD else EVERYTHING))

    async def _listen(self, desk: Desk) -> None:
        pause = RECONNECT_S[0]
        while True:
            try:
                connection = await desk.connect()
                try:
                    if desk.pooled:
                        return  # nothing would ever be heard
                    with desk.patience(connection):
                        await connection.execute(statement(f"LISTEN {self._channel}"))
                    pause = RECONNECT_S[0]
                    self._tell(frozenset([EVERYTHING]))  # what came before is looked for now
                    async for note in connection.notifies():
                        self._tell(frozenset(note.payload.split(" ")))
                finally:
                    await desk.discard(connection)
            except (psycopg.Error, BeltlineError):
                await asyncio.sleep(pause * (0.5 + random.random()))  # noqa: S311 - jitter
                pause = min(pause * 2, RECONNECT_S[1])


class Pause:
    """How long to wait between two looks: short at first, longer the longer nothing comes."""

    def __init__(self) -> None:
        self._next_s = POLL_S[0]

    def seconds(self) -> float:
        now_s = self._next_s * (0.75 + 0.5 * random.random())  # noqa: S311 - jitter
        self._next_s = min(self._next_s * 1.5, POLL_S[1])
        return now_s
