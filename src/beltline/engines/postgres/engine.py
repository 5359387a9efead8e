"""PostgresEngine: the contract's verbs, each one call of one function of the database, on a connection of the caller's event loop.

All rules are in sql/; here batches become columns, rows become values, and answers that nobody takes any more are given back.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, TypeVar

from beltline.core import limits
from beltline.core.capabilities import Capabilities, Durability
from beltline.core.clock import Clock
from beltline.core.errors import BodyTooLarge, EngineUnsafe, HandleMisused, NameInvalid, QueueFull, ValueInvalid
from beltline.core.lifecycle import State
from beltline.core.limits import MAX_BODY_BYTES, MAX_LEASE_S
from beltline.core.message import Delivery, Gather, Message, Receipt
from beltline.core.names import MessageId, QueueName, RunId, WorkerId
from beltline.core.outcome import Ack, Admission, Release, Sent, Settled, Settlement
from beltline.core.queues import Counts, QueueSpec
from beltline.core.views import GatherView, MessageFilter, MessageView, Page, ResultView, RunCounts, RunView, WorkerView
from beltline.engines.postgres import browsing, control, schema, wire
from beltline.engines.postgres.address import Address
from beltline.engines.postgres.address import read as read_address
from beltline.engines.postgres.desk import Connection, Desk, Row
from beltline.engines.postgres.hints import ENDED, EVERYTHING, Herald, Pause, Waiter, Waiters
from beltline.engines.postgres.sends import Sends
from beltline.engines.rows import message as as_message

T = TypeVar("T")

SEND = f"SELECT * FROM beltline.send({', '.join(['%s'] * 34)})"
RECEIVE = "SELECT * FROM beltline.receive(%s, %s, %s, %s, %s)"
SETTLE = f"SELECT * FROM beltline.settle({', '.join(['%s'] * 52)})"
RENEW = "SELECT * FROM beltline.renew(%s, %s, %s, %s)"
ROLL_UP_AFTER = 500  # calls that may have left a row in `delta`: where nobody sweeps (senders alone), the counters are summed up by who counts


class _Place:
    """What one event loop has of this engine."""

    def __init__(self, desk: Desk, sends: Sends) -> None:
        self.desk, self.sends, self.waiters = desk, sends, Waiters()


class PostgresEngine:
    """Queues in one schema of a PostgreSQL database, for any number of hosts. `clock`: for tests; else the time is the server's. Raises UrlInvalid, ValueInvalid."""

    name = "postgresql"

    def __init__(
        self, url: str, *, durability: Durability = Durability.DISK, clock: Clock | None = None, max_body: int = MAX_BODY_BYTES, shown: str = ""
    ) -> None:
        limits.integer("max_body", max_body, least=1, most=limits.MAX_BODY_CEILING)
        self.address: Address = read_address(url, shown or url)
        self.capabilities = Capabilities(
            send_batch=inf, send_atomic=inf, receive_batch=inf, settle_atomic=inf, max_body=max_body, durability=Durability(durability)
        )
        self._max_body = max_body
        self._clock = clock
        self._open = False
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._places: dict[asyncio.AbstractEventLoop, _Place] = {}
        self._herald: Herald | None = None
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
            found = await schema.version(connection, self.address.schema)
            if found == (0, 0):
                await schema.migrate(connection, self.address)
                found = await schema.version(connection, self.address.schema)
            schema.check(found, self.address)
        except BaseException:
            await self._leave(asyncio.get_running_loop(), place)
            raise
        finally:
            await place.desk.discard(connection)
        subscribe = getattr(self._clock, "subscribe", None)
        if subscribe is not None and self._unsubscribe is None:
            self._unsubscribe = subscribe(lambda: self._tell(frozenset([EVERYTHING])))
        if self._herald is None:
            self._herald = Herald(self.address, self._greet, self._tell)
        self._open = True

    async def close(self) -> None:
        self._check_process()
        self._open = False
        herald, self._herald = self._herald, None
        if herald is not None:
            herald.stop()
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        with self._lock:
            places = list(self._places.items())
        here = asyncio.get_running_loop()
        for loop, place in places:
            if loop is here:
                await self._leave(loop, place)
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._leave(loop, place), loop))
            else:
                place.desk.abandon()
                with self._lock:
                    self._places.pop(loop, None)

    async def _leave(self, loop: asyncio.AbstractEventLoop, place: _Place) -> None:
        with self._lock:
            if self._places.get(loop) is place:
                del self._places[loop]
        place.desk.closed = True
        place.waiters.poke(frozenset([EVERYTHING]))
        await place.desk.close()

    def _place(self) -> _Place:
        loop = asyncio.get_running_loop()
        place = self._places.get(loop)
        if place is None:
            place = _Place(Desk(self.address, self._greet), Sends(self._send_now))
            with self._lock:
                self._places[loop] = place
                for other in [other for other in self._places if other.is_closed()]:  # a loop that ended without closing the engine
                    self._places.pop(other).desk.abandon()
        return place

    async def _greet(self, connection: Connection) -> None:
        """What every new connection must be: to a server that can be written, and that keeps what it says it has stored."""
        [[recovering, sync, fsync]] = await (
            await connection.execute("SELECT pg_is_in_recovery(), current_setting('synchronous_commit'), current_setting('fsync')")
        ).fetchall()
        if recovering:
            raise EngineUnsafe(
                f"{self.address.shown} is a read replica.",
                why="A replica lags behind, and nothing can be stored in it.",
                help="Give the URL of the primary, or of all servers: postgresql://one,two/database",
            )
        if self.capabilities.durability is Durability.DISK and "off" in (sync, fsync):
            setting = "synchronous_commit" if sync == "off" else "fsync"
            raise EngineUnsafe(
                f"{self.address.shown} has {setting} = off.",
                why="What it says it has stored may be lost in a crash: durability disk cannot be kept.",
                help=f"Set {setting} = on for this role and database, or ask for less: ?durability=os",
            )

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise HandleMisused(
                "A PostgreSQL engine was carried over a fork.",
                why="Two processes would speak through the same connections.",
                help="Make an engine in the child, and start processes with spawn or forkserver.",
            )

    def _in_use(self) -> _Place:
        if not self._open or os.getpid() != self._pid:
            self._check_process()
            raise HandleMisused("The PostgreSQL engine is not open.", help="Call open() first, and nothing after close().")
        return self._place()

    # ------------------------------------------------------------------------------------------------ asking
    def _sql(self, text: str) -> str:
        found = self._texts.get(text)
        if found is None:
            found = schema.in_schema(text, self.address.schema)
            if len(self._texts) < 1000:
                self._texts[text] = found
        return found

    @property
    def _now(self) -> int | None:
        """None: the server's time."""
        return None if self._clock is None else round(self._clock.now() * 1000)

    async def _ask(self, sql: str, params: Sequence[object] = ()) -> list[Row]:
        """One statement to its end, even if the caller is cancelled."""
        desk = self._in_use().desk
        return await desk.finish(desk.ask(self._sql(sql), params))

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
            while True:
                waiter.event.clear()
                value, due_s = await look()
                left = deadline - loop.time()
                if found(value) or left <= 0 or not self._open or (until is not None and self._clock is not None and self._clock.now() >= until):
                    return value
                await _until(waiter, min(left, pause.seconds(), due_s))
                if not self._open:
                    return value

    # ---------------------------------------------------------------------------------------------------------- Engine
    async def now(self) -> float:
        [[ms]] = await self._ask("SELECT beltline._now(%s)", (self._now,))
        return int(ms) / 1000

    async def declare(self, specs: Sequence[QueueSpec]) -> None:
        self._stir(await control.declare(self._ask, self._now, specs))

    async def send(self, messages: Sequence[Message], *, gathers: Sequence[Gather] = ()) -> list[Sent]:
        self._check_messages(messages)
        place = self._in_use()
        if gathers:
            return await place.desk.finish(self._send_now(messages, gathers))
        return await place.sends.send(place.desk, messages)

    def _check_messages(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if len(message.body) > self._max_body:
                raise BodyTooLarge(size_bytes=len(message.body), limit_bytes=self._max_body)
            if len(message.id) != 32:
                raise NameInvalid(kind="id", name=message.id)

    async def _send_now(self, messages: Sequence[Message], gathers: Sequence[Gather] = ()) -> list[Sent]:
        parcel = Parcel(messages, gathers)
        rows = await self._in_use().desk.ask(self._sql(SEND), (self._now, False, *parcel.arguments))
        if rows and rows[0][0] == 10:
            raise await browsing.not_declared(self._ask, rows[0][3])
        answer = parcel.read(rows)
        self._hint(parcel.queues)
        self._count()
        return answer

    async def receive(
        self, queues: Sequence[QueueName], *, limit: int, lease_s: float, wait_s: float = 0.0, worker: WorkerId = WorkerId("")
    ) -> list[Delivery]:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        lease_ms = wire.ceil_ms(limits.seconds("lease_s", lease_s, most=MAX_LEASE_S))
        limits.seconds("wait_s", wait_s, most=MAX_LEASE_S)
        names = list(dict.fromkeys(queues))
        place = self._in_use()

        async def look() -> tuple[list[Delivery], float]:
            arguments = (self._now, wire.texts(names), min(limit, 1_000_000), lease_ms, worker)
            rows = await place.desk.finish(place.desk.ask(self._sql(RECEIVE), arguments), undo=self._give_back)
            if rows and rows[0][0] == 1:
                raise await browsing.not_declared(self._ask, rows[0][3])
            if rows and rows[0][0] == 2:
                _, _, _, _, _, _, _, at, due, *_ = rows[0]
                return [], inf if due is None else max(0.0, (due - at) / 1000)
            return _deliveries(names, rows), 0.0

        if wait_s <= 0:
            return (await look())[0]
        deliveries: list[Delivery] = await self._look_until(names, wait_s, look, bool)
        return deliveries

    def _give_back(self, rows: list[Row]) -> Any:
        """Whoever asked for them was cancelled while they were being leased: nobody will ever hold them."""
        back = [Settlement(Receipt(row[2], row[4]), Release()) for row in rows if row[0] == 0]
        return self.settle(back) if back and self._open else None

    async def renew(self, receipts: Sequence[Receipt], *, lease_s: float) -> list[Settled]:
        lease_ms = wire.ceil_ms(limits.seconds("lease_s", lease_s, most=MAX_LEASE_S))
        ordered = sorted({(receipt.id, receipt.epoch) for receipt in receipts})
        ids, epochs = wire.ids([id for id, _ in ordered]), wire.numbers([epoch for _, epoch in ordered])
        held = {}
        for place, asked in await self._ask(RENEW, (self._now, ids, epochs, lease_ms)):
            held[ordered[place - 1]] = Settled.CANCEL_ASKED if asked else Settled.DONE
        return [held.get((receipt.id, receipt.epoch), Settled.LEASE_LOST) for receipt in receipts]

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        batch = Batch(settlements)
        rows = await self._ask(SETTLE, (self._now, False, *batch.arguments))
        if rows[0][2] is not None:
            raise await browsing.not_declared(self._ask, rows[0][2])
        answers = batch.read(rows)
        names = {EVERYTHING} if batch.stirred else {message.queue for settlement in settlements for message in _then(settlement)}
        self._hint([*names, ENDED])
        self._count()
        return answers

    def _count(self) -> None:
        self._uncounted += 1
        if self._uncounted >= ROLL_UP_AFTER and self._herald is not None:
            self._uncounted = 0
            now = self._now
            self._herald.do(lambda desk: control.rollup(lambda sql, params: desk.ask(self._sql(sql), params), now))

    async def counts(self, queue: QueueName) -> Counts:
        return await browsing.counts(self._ask, self._now, queue)

    async def purge(self, queue: QueueName) -> int:
        return self._stirred(*await control.purge(self._ask, self._now, queue))

    # ---------------------------------------------------------------------------------------------------------- Browse
    async def queues(self) -> list[QueueSpec]:
        return await browsing.queues(self._ask)

    async def get(self, id: MessageId) -> MessageView:
        return await browsing.get(self._ask, self._now, id)

    async def browse(self, where: MessageFilter, *, limit: int = 100, cursor: str = "") -> Page:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        return await browsing.browse(self._ask, self._now, where, limit, cursor)

    # --------------------------------------------------------------------------------------------------------- Results
    async def results(self, ids: Sequence[str]) -> list[ResultView | None]:
        return await browsing.results(self._ask, self._now, ids)

    async def await_results(self, ids: Sequence[str], *, wait_s: float) -> list[ResultView | None]:
        limits.seconds("wait_s", wait_s, most=MAX_LEASE_S)
        if not ids:
            return []

        async def look() -> tuple[list[ResultView | None], float]:
            return await self.results(ids), inf

        def enough(views: list[ResultView | None]) -> bool:
            return any(view is None or view.state in ("done", "dead") for view in views)

        views: list[ResultView | None] = await self._look_until([ENDED], wait_s, look, enough)
        return views

    async def progress(self, notes: Sequence[tuple[Receipt, bytes]]) -> list[Settled]:
        return await control.progress(self._ask, notes)

    # --------------------------------------------------------------------------------------------------------- Control
    async def pause(self, queue: QueueName) -> None:
        self._stir(await control.pause(self._ask, self._now, queue, True))

    async def resume(self, queue: QueueName) -> None:
        self._stir(await control.pause(self._ask, self._now, queue, False))

    async def cancel(self, ids: Sequence[MessageId], *, reason: str = "") -> list[State | None]:
        return self._stirred(*await control.cancel(self._ask, self._now, ids, reason))

    async def cancel_asked(self, receipts: Sequence[Receipt]) -> list[Receipt]:
        return await control.cancel_asked(self._ask, receipts)

    async def hurry(self, ids: Sequence[MessageId]) -> int:
        return self._stirred(*await control.hurry(self._ask, self._now, ids))

    async def redrive(self, where: MessageFilter, *, limit: int, queue: QueueName | None = None) -> list[MessageId]:
        _some_condition(where)
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        return self._stirred(*await control.redrive(self._ask, self._now, where, limit, queue))

    async def edit(self, id: MessageId, *, body: bytes) -> None:
        await control.edit(self._ask, self._now, id, body, self._max_body)

    async def delete(self, where: MessageFilter, *, limit: int) -> int:
        _some_condition(where)
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        return self._stirred(*await control.delete(self._ask, self._now, where, limit))

    def _stir(self, woken: str) -> None:
        """Rare verbs: if anything may be received now, whoever waits looks again."""
        self._hint([EVERYTHING] if woken else [ENDED])

    def _stirred(self, value: T, woken: str) -> T:
        self._stir(woken)
        return value

    # ------------------------------------------------------------------------------------------------------------ Runs
    async def run(self, id: RunId) -> RunView:
        return await browsing.run(self._ask, id)

    async def runs(self, chain: str, *, state: str = "", limit: int = 100, cursor: str = "") -> list[RunView]:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        return await browsing.runs(self._ask, chain, state, limit, cursor)

    async def run_counts(self, chain: str) -> RunCounts:
        return await browsing.run_counts(self._ask, chain)

    async def gathers(self, run: RunId) -> list[GatherView]:
        return await browsing.gathers(self._ask, run)

    async def cancel_run(self, id: RunId, *, reason: str = "") -> RunView:
        self._stir(await control.cancel_run(self._ask, self._now, id, reason))
        return await self.run(id)

    # ----------------------------------------------------------------------------------------------------------- Fleet
    async def beat(self, worker: WorkerView) -> None:
        await control.beat(self._ask, self._now, worker)

    async def forget(self, worker: WorkerId) -> None:
        await control.forget(self._ask, self._now, worker)

    async def workers(self) -> list[WorkerView]:
        return await browsing.workers(self._ask, self._now)

    # ---------------------------------------------------------------------------------------------------------- Upkeep
    async def sweep(self) -> int:
        await control.rollup(self._ask, self._now)
        return self._stirred(*await control.sweep(self._ask, self._now))

    async def retain(self, *, history_s: float, limit: int = 5000) -> int:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        history_ms = wire.ceil_ms(min(limits.seconds("history_s", history_s), wire.FOREVER_S))
        return await control.retain(self._ask, self._now, history_ms, limit)


class Parcel:
    """One send: the arguments behind p_guest, and what the answer means. Repeated ids in a batch go once."""

    def __init__(self, messages: Sequence[Message], gathers: Sequence[Gather]) -> None:
        self._messages = messages
        once = list({message.id: message for message in reversed(messages)}.values())[::-1]
        self._once = once
        follow = wire.templates(gathers)
        queues, tasks, chains, columns = wire.sent([*once, *follow]) if once or follow else ("{}", "{}", "{}", wire.NOTHING_SENT)
        self.arguments: tuple[Any, ...] = (queues, tasks, chains, len(follow), *columns, *wire.opened(gathers, None, len(once) + 1))
        self.queues = list({message.queue for message in messages})

    def read(self, rows: list[Row]) -> list[Sent]:
        """Raises QueueFull."""
        other: dict[str, Sent] = {}
        for code, ord_, id, text, number in rows:
            if code == 11:
                raise QueueFull(queue=text, bound=int(number))
            other[self._once[ord_ - 1].id] = Sent(MessageId(id), Admission.SAME_ID if code == 1 else Admission.DEDUPLICATED)
        if not other and len(self._once) == len(self._messages):
            return [Sent(message.id) for message in self._messages]
        answers: list[Sent] = []
        seen: set[str] = set()
        for message in self._messages:
            again = message.id in seen and message.id not in other
            answers.append(Sent(message.id, Admission.SAME_ID) if again else other.get(message.id, Sent(message.id)))
            seen.add(message.id)
        return answers


class Batch:
    """One settle: of two receipts of one message only the first can have an effect, so only it goes."""

    def __init__(self, settlements: Sequence[Settlement]) -> None:
        first: dict[tuple[str, int], int] = {}
        for place, settlement in enumerate(settlements):
            first.setdefault((settlement.receipt.id, settlement.receipt.epoch), place)
        self._size = len(settlements)
        self._places = sorted(first.values(), key=lambda place: settlements[place].receipt.id)
        chosen = [settlements[place] for place in self._places]
        self.arguments = wire.Ends(chosen).arguments if chosen else wire.Ends(()).arguments
        self.stirred = any(type(settlement.outcome) is not Ack for settlement in chosen)

    def read(self, rows: list[Row]) -> list[Settled]:
        [[done, woken, _]] = rows
        if woken:
            self.stirred = True
        answers = [Settled.LEASE_LOST] * self._size
        for place in done:
            answers[self._places[place - 1]] = Settled.DONE
        return answers


def _deliveries(names: Sequence[str], rows: list[Row]) -> list[Delivery]:
    return [
        Delivery(as_message(id, names[queue - 1], task, head, body), Receipt(id, epoch), failed, lost, sent / 1000, until / 1000, group_epoch)
        for _, queue, id, task, epoch, failed, lost, sent, until, group_epoch, head, body in rows
    ]


def _then(settlement: Settlement) -> tuple[Message, ...]:
    return settlement.outcome.then if isinstance(settlement.outcome, Ack) else ()


async def _until(waiter: Waiter, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await waiter.event.wait()
    except TimeoutError:
        pass


def _some_condition(where: MessageFilter) -> None:
    if where.empty:
        raise ValueInvalid(name="where", value=where, allowed="at least one condition (a queue, a task, ids, …)")
