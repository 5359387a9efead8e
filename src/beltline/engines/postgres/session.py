"""An open engine in this process: its connections per event loop, its lender and its herald, and how a verb asks and waits."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, TypeVar

import psycopg

from beltline.core import limits
from beltline.core.capabilities import Capabilities, Durability
from beltline.core.clock import Clock
from beltline.core.errors import EngineUnavailable, EngineUnsafe, HandleMisused
from beltline.core.limits import MAX_BODY_BYTES
from beltline.core.message import Gather, Message
from beltline.core.outcome import Sent
from beltline.engines.postgres import schema, trouble, wire
from beltline.engines.postgres.address import Address
from beltline.engines.postgres.address import read as read_address
from beltline.engines.postgres.desk import CLOSE_S, Connection, Desk, Row
from beltline.engines.postgres.hints import EVERYTHING, Herald, Pause, Waiter, Waiters
from beltline.engines.postgres.sends import Sends
from beltline.engines.postgres.transactions import AsyncLender, Lender

T = TypeVar("T")

SET_UP_S = 60.0  # for the tables of an empty database, or for another process that is making them


class _Place:
    """What one event loop has of this engine."""

    def __init__(self, desk: Desk, sends: Sends) -> None:
        self.desk, self.sends, self.waiters = desk, sends, Waiters()
        self.lender = AsyncLender(desk.connect, desk.discard)


class Session:
    """`clock`: for tests; else the time is the server's. Raises UrlInvalid, ValueInvalid."""

    def __init__(
        self,
        url: str,
        *,
        durability: Durability = Durability.DISK,
        clock: Clock | None = None,
        max_body: int = MAX_BODY_BYTES,
        shown: str = "",
        history: schema.History | None = None,
    ) -> None:
        limits.integer("max_body", max_body, least=1, most=limits.MAX_BODY_CEILING)
        self.address: Address = read_address(url, shown or url)
        self.capabilities = Capabilities(
            send_batch=inf, send_atomic=inf, receive_batch=inf, settle_atomic=inf, max_body=max_body, durability=Durability(durability)
        )
        self._max_body = max_body
        self._history = history or schema.history()
        self._clock = clock
        self._open = False
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._places: dict[asyncio.AbstractEventLoop, _Place] = {}
        self._herald: Herald | None = None
        self._lender: Lender | None = None
        self.store = ""
        self._texts: dict[str, str] = {}
        self._unsubscribe: Callable[[], None] | None = None
        self._uncounted = 0

    # ------------------------------------------------------------------------------------------------ open and close
    async def open(self) -> None:
        """Raises EngineUnavailable, EngineForeign, EngineTooNew, EngineTooOld, EngineUnsafe, HandleMisused."""
        self._check_process()
        place = self._place()
        connection = await place.desk.connect()
        try:
            with place.desk.patience(connection, max(self.address.timeout_s, SET_UP_S)):
                found = await schema.version(connection, self.address.schema)
                if found == (0, 0):
                    await schema.migrate(connection, self.address, self._history)
                    found = await schema.version(connection, self.address.schema)
            schema.check(found, self.address, self._history)
            [[self.store]] = await (
                await connection.execute(wire.statement(f"SELECT value FROM {self.address.schema}.meta WHERE key = 'store'"))
            ).fetchall()
        except psycopg.Error as error:
            await self._leave(asyncio.get_running_loop(), place)
            raise trouble.asking(error, self.address.shown, self.address.schema) from error
        except BaseException:
            await self._leave(asyncio.get_running_loop(), place)
            raise
        finally:
            await place.desk.discard(connection)
        subscribe = getattr(self._clock, "subscribe", None)
        if subscribe is not None and self._unsubscribe is None:
            self._unsubscribe = subscribe(lambda: self._tell(frozenset([EVERYTHING])))
        if self._lender is None:
            self._lender = Lender(self.address)
        if self._herald is None:
            self._herald = Herald(self.address, self._greet, self._tell)
        self._open = True

    async def close(self) -> None:
        self._check_process()
        self._open = False
        herald, self._herald = self._herald, None
        lender, self._lender = self._lender, None
        if lender is not None:
            lender.close()
        if herald is not None:
            await herald.stop()
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        with self._lock:
            places = list(self._places.items())
        here = asyncio.get_running_loop()
        for loop, place in places:
            if loop is here:
                await self._leave(loop, place)
            else:
                await self._leave_there(loop, place)

    async def _leave(self, loop: asyncio.AbstractEventLoop, place: _Place) -> None:
        with self._lock:
            if self._places.get(loop) is place:
                del self._places[loop]
        place.waiters.poke(frozenset([EVERYTHING]))
        await place.desk.close()

    async def _leave_there(self, loop: asyncio.AbstractEventLoop, place: _Place) -> None:
        """In a loop of another thread, which may end before it has heard of it."""
        if loop.is_running():
            leaving = asyncio.run_coroutine_threadsafe(self._leave(loop, place), loop)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2 * CLOSE_S):
                    await asyncio.wrap_future(leaving)
        place.desk.abandon()
        with self._lock:
            if self._places.get(loop) is place:
                del self._places[loop]

    def _place(self) -> _Place:
        loop = asyncio.get_running_loop()
        place = self._places.get(loop)
        if place is None:
            place = _Place(Desk(self.address, self._greet, self._recheck), Sends(self._send_now))
            with self._lock:
                self._places[loop] = place
                for other in [other for other in self._places if other.is_closed()]:  # a loop that ended without closing the engine
                    self._places.pop(other).desk.abandon()
        return place

    async def _greet(self, connection: Connection) -> bool:
        """What every new connection must be: to a server that can be written, and that keeps what it says it has stored. Whether its session is ours alone:
        a pooler does not tell the number of the server's process, since it will not stay the same."""
        [[recovering, sync, fsync, pid]] = await (
            await connection.execute("SELECT pg_is_in_recovery(), current_setting('synchronous_commit'), current_setting('fsync'), pg_backend_pid()")
        ).fetchall()
        if recovering and self._open:  # it was the primary, or its place was: a promotion is under way
            raise EngineUnavailable(f"{self.address.shown} is a standby now.", effect="none", help="It is tried again until there is a primary.")
        if recovering:
            raise EngineUnsafe(
                f"{self.address.shown} is a read replica.",
                why="A replica lags behind, and nothing can be stored in it.",
                help="Give the URL of the primary, or of all servers: postgresql://one,two/database",
            )
        if self.capabilities.durability is Durability.DISK and (fsync == "off" or (sync == "off" and not self._open)):
            setting = "synchronous_commit" if sync == "off" else "fsync"
            raise EngineUnsafe(
                f"{self.address.shown} has {setting} = off.",
                why="What it says it has stored may be lost in a crash: durability disk cannot be kept.",
                help=f"Set {setting} = on for this role and database, or ask for less: ?durability=os",
            )
        return bool(pid == connection.pgconn.backend_pid)

    async def _recheck(self, connection: Connection) -> None:
        """A function is not there: was the schema changed under this process? Raises EngineTooNew, EngineTooOld."""
        schema.check(await schema.version(connection, self.address.schema), self.address, self._history)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise HandleMisused(
                "A PostgreSQL engine was carried over a fork.",
                why="Two processes would speak through the same connections.",
                help="Make an engine in the child, and start processes with spawn or forkserver.",
            )

    def _check_open(self) -> None:
        if not self._open or os.getpid() != self._pid:
            self._check_process()
            raise HandleMisused("The PostgreSQL engine is not open.", help="Call open() first, and nothing after close().")

    def _in_use(self) -> _Place:
        self._check_open()
        return self._place()

    # ------------------------------------------------------------------------------------------------ asking
    def sql(self, text: str) -> str:
        found = self._texts.get(text)
        if found is None:
            found = schema.in_schema(text, self.address.schema)
            if len(self._texts) < 1000:
                self._texts[text] = found
        return found

    @property
    def now_ms(self) -> int | None:
        """None: the server's time."""
        return None if self._clock is None else round(self._clock.now() * 1000)

    async def _ask(self, sql: str, params: Sequence[object] = ()) -> list[Row]:
        """One statement to its end, even if the caller is cancelled."""
        desk = self._in_use().desk
        return await desk.finish(desk.ask(self.sql(sql), params))

    def _tell(self, names: frozenset[str]) -> None:
        """Poke whoever waits in this process, in whatever loop."""
        with self._lock:
            places = list(self._places.items())
        for loop, place in places:
            try:
                if loop is asyncio._get_running_loop():
                    place.waiters.poke(names)
                else:
                    loop.call_soon_threadsafe(place.waiters.poke, names)
            except RuntimeError:  # its loop has ended
                continue

    def _hint(self, names: Sequence[str]) -> None:
        """Something may be received from these queues, or (ENDED) has ended: tell whoever waits, here and elsewhere."""
        self._tell(frozenset(names))
        if self._herald is not None:
            self._herald.hint(names)

    async def _look_until(self, names: Sequence[str], wait_s: float, look: Callable[[], Any], found: Callable[[Any], bool]) -> Any:
        """Look, and look again when something may be there, until `found(value)`, or `wait_s` is over here or on the engine's clock. Closed meanwhile: the last value."""
        place = self._in_use()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        until = None if self._clock is None else self._clock.now() + wait_s
        pause = Pause()
        if self._herald is not None:
            self._herald.listen()
        with place.waiters.waiting(names) as waiter:
            value, due_s = await look()
            while self._open and not found(value):
                left = deadline - loop.time()
                if left <= 0 or (until is not None and self._clock is not None and self._clock.now() >= until):
                    break
                await _until(waiter, min(left, pause.seconds(), due_s))
                waiter.event.clear()
                if self._is_open():
                    value, due_s = await look()
        return value

    def _is_open(self) -> bool:
        """Asked again after a wait."""
        return self._open

    async def _send_now(self, messages: Sequence[Message], gathers: Sequence[Gather] = ()) -> list[Sent]:
        """One send, on a connection of this loop."""
        raise NotImplementedError  # pragma: no cover: the engine's


async def _until(waiter: Waiter, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await waiter.event.wait()
    except TimeoutError:
        pass
