"""PostgresEngine: the contract's verbs, each one call of one function of the database, on a connection of the caller's event loop.

All rules are in sql/; here batches become columns, rows become values, and answers that nobody takes any more are given back.
"""

import sys
from collections.abc import Callable, Coroutine, Sequence
from math import inf
from typing import Any, TypeVar

import psycopg

from beltline.core import limits
from beltline.core.errors import BodyTooLarge, NameInvalid, ValueInvalid
from beltline.core.flow import Limit
from beltline.core.lifecycle import State
from beltline.core.limits import MAX_LEASE_S
from beltline.core.message import Delivery, Gather, Message, Receipt
from beltline.core.names import MessageId, QueueName, RunId, WorkerId
from beltline.core.outcome import Ack, Release, Sent, Settled, Settlement
from beltline.core.queues import Counts, QueueSpec
from beltline.core.scaling import Decision, Size, check_range
from beltline.core.schedule import Schedule, Step, Stepped
from beltline.core.views import (
    BucketView,
    DueSchedules,
    GatherView,
    LimitView,
    MessageFilter,
    MessageView,
    Page,
    Remark,
    ResultView,
    RunCounts,
    RunView,
    ScheduleView,
    SchemaView,
    Standing,
    WorkerView,
)
from beltline.engines.moving import MovedPage, Seal, Section
from beltline.engines.postgres import browsing, control, fleets, inspection, moving, schedules, schema, trouble, wire
from beltline.engines.postgres import limits as limiting
from beltline.engines.postgres.batches import SEND, SETTLE, Batch, Parcel
from beltline.engines.postgres.desk import Connection, Desk, Row
from beltline.engines.postgres.hints import ENDED, EVERYTHING
from beltline.engines.postgres.session import Session
from beltline.engines.postgres.transactions import AsyncPostgresTransaction, PostgresTransaction, asend, send
from beltline.engines.rows import message as as_message

T = TypeVar("T")

RECEIVE = "SELECT * FROM beltline.receive(%s, %s, %s, %s, %s)"
RENEW = "SELECT * FROM beltline.renew(%s, %s, %s, %s)"
ROLL_UP_AFTER = 500  # calls that may have left a row in `delta`: where nobody sweeps (senders alone), the counters are summed up by who counts


class PostgresEngine(Session):
    """Queues in one schema of a PostgreSQL database, for any number of hosts."""

    name = "postgresql"

    # ---------------------------------------------------------------------------------------------------------- Engine
    async def now(self) -> float:
        [[ms]] = await self._ask("SELECT beltline._now(%s, 9)", (self.now_ms,))
        return int(ms) / 1000

    async def declare(self, specs: Sequence[QueueSpec]) -> None:
        self._stir(await control.declare(self._ask, self.now_ms, specs))

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
        rows = await self._in_use().desk.ask(self.sql(SEND), (self.now_ms, False, *parcel.arguments))
        if parcel.refused(rows):
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
            arguments = (self.now_ms, wire.texts(names), min(limit, 1_000_000), lease_ms, wire.clean(worker))
            rows = await place.desk.finish(place.desk.ask(self.sql(RECEIVE), arguments), undo=lambda rows: self._give_back(place.desk, rows))
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

    async def _give_back(self, desk: Desk, rows: list[Row]) -> None:
        """Whoever asked for them was cancelled while they were being leased: nobody will ever hold them. Also while the engine is being closed."""
        back = [Settlement(Receipt(row[2], row[4]), Release()) for row in rows if row[0] == 0]
        if back:
            await desk.ask(self.sql(SETTLE), (self.now_ms, False, *Batch(back).arguments))
            self._hint([EVERYTHING])

    async def renew(self, receipts: Sequence[Receipt], *, lease_s: float) -> list[Settled]:
        lease_ms = wire.ceil_ms(limits.seconds("lease_s", lease_s, most=MAX_LEASE_S))
        ordered = sorted({(receipt.id, receipt.epoch) for receipt in receipts})
        ids, epochs = wire.known_ids([id for id, _ in ordered]), wire.numbers([epoch for _, epoch in ordered])
        held = {}
        for place, asked in await self._ask(RENEW, (self.now_ms, ids, epochs, lease_ms)):
            held[ordered[place - 1]] = Settled.CANCEL_ASKED if asked else Settled.DONE
        return [held.get((receipt.id, receipt.epoch), Settled.LEASE_LOST) for receipt in receipts]

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        batch = Batch(settlements)
        rows = await self._ask(SETTLE, (self.now_ms, False, *batch.arguments))
        if batch.refused(rows):
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
            now = self.now_ms
            self._herald.do(lambda desk: control.rollup(lambda sql, params: desk.ask(self.sql(sql), params), now))

    async def counts(self, queue: QueueName) -> Counts:
        return await browsing.counts(self._ask, self.now_ms, queue)

    async def purge(self, queue: QueueName) -> int:
        return self._stirred(*await control.purge(self._ask, self.now_ms, queue))

    # ---------------------------------------------------------------------------------------------------------- Browse
    async def queues(self) -> list[QueueSpec]:
        return await browsing.queues(self._ask)

    async def get(self, id: MessageId) -> MessageView:
        return await browsing.get(self._ask, self.now_ms, id)

    async def browse(self, where: MessageFilter, *, limit: int = 100, cursor: str = "") -> Page:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        return await browsing.browse(self._ask, self.now_ms, where, limit, cursor)

    # --------------------------------------------------------------------------------------------------------- Results
    async def results(self, ids: Sequence[str]) -> list[ResultView | None]:
        return await browsing.results(self._ask, self.now_ms, ids)

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
        self._stir(await control.pause(self._ask, self.now_ms, queue, True))

    async def resume(self, queue: QueueName) -> None:
        self._stir(await control.pause(self._ask, self.now_ms, queue, False))

    async def cancel(self, ids: Sequence[MessageId], *, reason: str = "") -> list[State | None]:
        return self._stirred(*await control.cancel(self._ask, self.now_ms, ids, reason))

    async def cancel_asked(self, receipts: Sequence[Receipt]) -> list[Receipt]:
        return await control.cancel_asked(self._ask, receipts)

    async def hurry(self, ids: Sequence[MessageId]) -> int:
        return self._stirred(*await control.hurry(self._ask, self.now_ms, ids))

    async def redrive(self, where: MessageFilter, *, limit: int, queue: QueueName | None = None) -> list[MessageId]:
        _some_condition(where)
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        return self._stirred(*await control.redrive(self._ask, self.now_ms, where, limit, queue))

    async def edit(self, id: MessageId, *, body: bytes) -> None:
        await control.edit(self._ask, self.now_ms, id, body, self._max_body)

    async def delete(self, where: MessageFilter, *, limit: int) -> int:
        _some_condition(where)
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        return self._stirred(*await control.delete(self._ask, self.now_ms, where, limit))

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
        self._stir(await control.cancel_run(self._ask, self.now_ms, id, reason))
        return await self.run(id)

    # ----------------------------------------------------------------------------------------------------------- Fleet
    async def beat(self, worker: WorkerView) -> None:
        await control.beat(self._ask, self.now_ms, worker)

    async def forget(self, worker: WorkerId) -> None:
        await control.forget(self._ask, self.now_ms, worker)

    async def workers(self) -> list[WorkerView]:
        return await browsing.workers(self._ask, self.now_ms)

    # ---------------------------------------------------------------------------------------------------------- Sizes
    async def sizes(self) -> list[Size]:
        return await fleets.sizes(self._ask)

    async def set_size(self, queue: QueueName, *, turn: int, slots: int, state: bytes, log: Decision | None = None) -> bool:
        return await fleets.set_size(self._ask, self.now_ms, queue, turn, slots, state, log)

    async def set_range(self, queue: QueueName, least: int, most: int) -> None:
        check_range(least, most)
        await fleets.set_range(self._ask, self.now_ms, queue, least, most)

    async def clear_range(self, queue: QueueName) -> None:
        await fleets.set_range(self._ask, self.now_ms, queue, None, None)

    async def decisions(self, queue: QueueName | None = None, *, limit: int = 100) -> list[Decision]:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        return await fleets.decisions(self._ask, queue, limit)

    # ------------------------------------------------------------------------------------------------------- Schedules
    async def put_schedules(self, specs: Sequence[Schedule], *, origin: str, owner: str = "", replace: bool = True) -> list[bool]:
        return await schedules.put(self._ask, self.now_ms, specs, origin, owner, replace)

    async def schedules(self, *, limit: int = 1000, after: str = "") -> list[ScheduleView]:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        return await schedules.schedules(self._ask, limit, after)

    async def schedule(self, name: str) -> ScheduleView:
        return await schedules.schedule(self._ask, name)

    async def pause_schedule(self, name: str, paused: bool) -> ScheduleView:
        return await schedules.pause(self._ask, self.now_ms, name, paused)

    async def remove_schedule(self, name: str) -> None:
        await schedules.remove(self._ask, self.now_ms, name)

    async def due_schedules(self, *, limit: int = 100) -> DueSchedules:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        return await schedules.due(self._ask, self.now_ms, limit)

    async def step_schedules(self, steps: Sequence[Step]) -> list[Stepped]:
        for step in steps:
            self._check_messages(step.messages)
        answers = await schedules.step(self._ask, self.now_ms, steps)
        self._hint([*{message.queue for step in steps for message in step.messages}])
        return answers

    # ------------------------------------------------------------------------------------------------- Limits, Explain
    async def declare_limits(self, given: Sequence[Limit]) -> None:
        self._stir(await limiting.put(self._ask, self.now_ms, given, operator=False))

    async def set_limit(self, limit: Limit) -> None:
        self._stir(await limiting.put(self._ask, self.now_ms, [limit], operator=True))

    async def reset_limit(self, name: str) -> None:
        self._stir(await limiting.reset(self._ask, self.now_ms, name))

    async def limits(self) -> list[LimitView]:
        return await limiting.limits(self._ask, self.now_ms)

    async def buckets(self, name: str, *, limit: int = 100) -> list[BucketView]:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        return await limiting.buckets(self._ask, self.now_ms, name, limit)

    async def snooze(self, queue: QueueName, *, seconds: float) -> float:
        ms = wire.ceil_ms(limits.seconds("seconds", seconds, most=limits.MAX_DELAY_S))
        return await limiting.snooze(self._ask, self.now_ms, queue, ms)

    async def standing(self, id: MessageId) -> Standing:
        return await limiting.standing(self._ask, self.now_ms, id)

    # ------------------------------------------------------------------------------------------------------ Migratable
    async def schema(self) -> SchemaView:
        return await self._aside(self._look_at_schema)

    async def _look_at_schema(self, connection: Connection) -> SchemaView:
        have, min_reader = await schema.version(connection, self.address.schema)
        missing = tuple(step.name for step in self._history.missing(have))
        return SchemaView(have=have, newest=self._history.newest, oldest=self._history.oldest, min_reader=min_reader, missing=missing)

    async def migrate(self, *, wait_s: float = 60.0, tell: Callable[[str], None] = lambda _: None) -> list[str]:
        return await self._aside(lambda connection: schema.migrate(connection, self.address, self._history, wait_s=wait_s, tell=tell))

    async def _aside(self, work: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
        """On a connection of its own, whether the engine is open or not."""
        self._check_process()
        desk = Desk(self.address, self._greet)
        try:
            connection = await desk.connect()
            return await work(connection)
        except psycopg.Error as error:
            raise trouble.asking(error, self.address.shown, self.address.schema) from error
        finally:
            await desk.close()

    async def inspect(self) -> list[Remark]:
        return await self._aside(lambda connection: inspection.inspect(connection, self.address, self._history))

    # --------------------------------------------------------------------------------------------------------- Movable
    @property
    def shown(self) -> str:
        return self.address.shown

    async def seal(self) -> Seal | None:
        return await moving.seal(self._ask)

    async def set_seal(self, before: Seal | None, after: Seal | None) -> bool:
        done = await moving.set_seal(self._ask, before, after)
        self._hint([EVERYTHING])  # whoever waits learns of it
        return done

    async def underway(self) -> frozenset[str]:
        return await moving.underway(self._ask)

    async def leased(self) -> int:
        return await moving.leased(self._ask, self.now_ms)

    async def empty(self) -> bool:
        return await moving.empty(self._ask)

    async def take(self, section: Section, after: str, limit: int) -> MovedPage:
        return await moving.take(self._ask, section, after, limit)

    async def put(self, page: MovedPage, before: Seal, after: Seal) -> bool:
        return await moving.put(self._ask, self.now_ms, page, before, after)

    # --------------------------------------------------------------------------------------------------- Transactional
    def send_with(self, connection: Any, messages: Sequence[Message], *, gathers: Sequence[Gather] = ()) -> list[Sent]:
        self._in_use_by_guest(messages)
        return send(self, connection, messages, gathers)

    async def asend_with(self, connection: Any, messages: Sequence[Message], *, gathers: Sequence[Gather] = ()) -> list[Sent]:
        self._in_use_by_guest(messages)
        return await asend(self, connection, messages, gathers)

    def _in_use_by_guest(self, messages: Sequence[Message]) -> None:
        self._check_open()
        self._check_messages(messages)

    def transaction(self, connection: Any = None) -> PostgresTransaction:
        self._check_open()
        assert self._lender is not None
        if connection is not None:
            return PostgresTransaction(self, connection, None)
        return PostgresTransaction(self, self._lender.lend(), self._lender.take_back)

    async def atransaction(self, connection: Any = None) -> AsyncPostgresTransaction:
        place = self._in_use()
        if connection is not None:
            transaction = AsyncPostgresTransaction(self, connection, None)
        else:
            transaction = AsyncPostgresTransaction(self, await place.lender.lend(), place.lender.take_back)
        await transaction.begin()
        return transaction

    # ---------------------------------------------------------------------------------------------------------- Upkeep
    async def sweep(self) -> int:
        await control.rollup(self._ask, self.now_ms)
        return self._stirred(*await control.sweep(self._ask, self.now_ms))

    async def retain(self, *, history_s: float, limit: int = 5000) -> int:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        history_ms = wire.ceil_ms(min(limits.seconds("history_s", history_s), wire.FOREVER_S))
        return await control.retain(self._ask, self.now_ms, history_ms, limit)


def _deliveries(names: Sequence[str], rows: list[Row]) -> list[Delivery]:
    return [
        Delivery(as_message(id, names[int(queue) - 1], task, head, body), Receipt(id, epoch), failed, lost, sent / 1000, until / 1000, group_epoch)
        for _, queue, id, task, epoch, failed, lost, sent, until, group_epoch, head, body in rows
    ]


def _then(settlement: Settlement) -> tuple[Message, ...]:
    return settlement.outcome.then if isinstance(settlement.outcome, Ack) else ()


def _some_condition(where: MessageFilter) -> None:
    if where.empty:
        raise ValueInvalid(name="where", value=where, allowed="at least one condition (a queue, a task, ids, …)")
