"""SqliteEngine: the contract's verbs as operations for the writer thread and looks for the reader thread of one file.

All engines of one process on one file share those two threads (sharing.py), so there is one writer per process; flock makes it one
at a time per host. Usable from any event loop and thread. After a fork the child may not use it: SQLite's locks do not survive one.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from beltline.core import limits
from beltline.core.capabilities import Capabilities, Durability
from beltline.core.clock import Clock
from beltline.core.errors import BodyTooLarge, HandleMisused, NameInvalid, ValueInvalid
from beltline.core.flow import Limit
from beltline.core.lifecycle import State
from beltline.core.limits import MAX_BODY_BYTES, MAX_LEASE_S
from beltline.core.message import Delivery, Gather, Message, Receipt
from beltline.core.names import MessageId, QueueName, RunId, WorkerId
from beltline.core.outcome import Release, Sent, Settled, Settlement
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
    ResultView,
    RunCounts,
    RunView,
    ScheduleView,
    SchemaView,
    Standing,
    WorkerView,
)
from beltline.engines.moving import Level, MovedPage, Seal, Section
from beltline.engines.sqlite import browsing, control, fleets, flow, moving, place, schedules, schema, settling, sharing, upkeep
from beltline.engines.sqlite.ledger import Ledger
from beltline.engines.sqlite.operations import Chore, Operation, Wait
from beltline.engines.sqlite.reader import Look
from beltline.engines.sqlite.receiving import receive
from beltline.engines.sqlite.sending import send
from beltline.engines.sqlite.sharing import Shared
from beltline.engines.sqlite.standing import standing
from beltline.engines.sqlite.times import Ratchet, WallClock, ceil_ms
from beltline.engines.sqlite.transactions import AsyncSqliteTransaction, SqliteTransaction, checked, refuse_holding, send_in

T = TypeVar("T")


class SqliteEngine:
    """Queues in one file of this host: durable, exact, atomic hand-off. See docs/decisions and the modules of this package for how.

    `durability` DISK: a send that returned survives a power cut; OS: a killed process; MEMORY: nothing is synced at all. `audit` writes every move into the
    table `audit`, in the same transactions. Raises ValueInvalid.
    """

    name = "sqlite"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Durability = Durability.DISK,
        clock: Clock | None = None,
        max_body: int = MAX_BODY_BYTES,
        audit: bool = False,
    ) -> None:
        limits.integer("max_body", max_body, least=1, most=limits.MAX_BODY_CEILING)
        self.path = Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would follow a link that may not exist yet
        self.capabilities = Capabilities(
            send_batch=inf, send_atomic=inf, receive_batch=inf, settle_atomic=inf, max_body=max_body, durability=Durability(durability)
        )
        self._max_body = max_body
        self._audit = audit
        self._clock = clock
        self._time = Ratchet(clock or WallClock())
        self._shared: Shared | None = None
        self._real: Path | None = None
        self._closed = False
        self._pid = os.getpid()
        self._unsubscribe: Callable[[], None] | None = None

    # ------------------------------------------------------------------------------------------------ open and close
    async def open(self) -> None:
        """Raises EngineUnavailable, EngineForeign, EngineTooNew, EngineUnsafe, HandleMisused."""
        self._check_process()
        if self._shared is not None:
            return
        place.check_library()
        real = place.prepare(self.path)
        if sharing.carried(real):
            raise HandleMisused(
                f"{real} was open in the parent when this process was forked.",
                why="SQLite cannot be opened again here.",
                help="Start processes with spawn or forkserver, or close the engine before the fork.",
            )
        shared = self._join(real)
        if shared is None:
            return
        level = self.capabilities.durability
        try:
            await self._chore(shared, lambda: shared.writer.open(level, self._time))
        except BaseException:
            await self._let_go()
            raise
        subscribe = getattr(self._clock, "subscribe", None)
        if subscribe is not None:
            self._unsubscribe = subscribe(shared.writer.look_again)

    def _join(self, real: Path) -> Shared | None:
        """Become a user of the file's threads; None if another task of this process has just done it."""
        with sharing.lock:
            if self._shared is not None:
                return None
            self._shared = sharing.join(real, audited=self._audit)
            self._real = real
            return self._shared

    async def close(self) -> None:
        self._check_process()
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        await self._let_go()

    async def _let_go(self) -> None:
        with sharing.lock:
            shared, self._shared = self._shared, None
            if shared is None:
                return
            last = sharing.leave(shared)
        await self._chore(shared, lambda: self._leave(shared, last))

    def _leave(self, shared: Shared, last: bool) -> None:
        shared.writer.end_waits(self)
        shared.writer.note_time(self._time)
        if last:
            shared.desks.close()
            shared.reader.stop()
            shared.writer.close()

    async def _chore(self, shared: Shared, do: Callable[[], None]) -> None:
        chore = Chore(do)
        shared.writer.submit(chore)
        await chore.future

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise HandleMisused(
                "A SQLite engine was carried over a fork.",
                why="Its locks belong to the parent: using it here would damage the file.",
                help="Make an engine in the child, and start processes with spawn or forkserver.",
            )

    def _in_use(self) -> Shared:
        shared = self._shared
        if shared is None or os.getpid() != self._pid:
            self._check_process()
            raise HandleMisused("The SQLite engine is not open.", help="Call open() first, and nothing after close().")
        return shared

    async def _write(
        self, run: Callable[[Ledger], T], *, wait: Wait | None = None, undo: Callable[[Any], None] | None = None, allowed: Level = Level.OPEN
    ) -> T:
        """`allowed`: the highest seal of a move under which it is run."""
        shared = self._in_use()
        refuse_holding(self._real)
        operation = Operation(run, self, self._time, wait=wait, undo=undo, allowed=allowed)
        shared.writer.submit(operation)
        value: T = await operation.answer()
        return value

    async def _read(self, run: Callable[[Ledger], T]) -> T:
        shared = self._in_use()
        look = Look(run, self._time)
        shared.reader.submit(look)
        value: T = await look.future
        return value

    # ---------------------------------------------------------------------------------------------------------- Engine
    async def now(self) -> float:
        self._in_use()
        return await self._read(lambda tx: tx.now / 1000)

    async def declare(self, specs: Sequence[QueueSpec]) -> None:
        await self._write(lambda tx: control.declare(tx, specs))

    async def send(self, messages: Sequence[Message], *, gathers: Sequence[Gather] = ()) -> list[Sent]:
        shared = self._in_use()
        self._check(messages)
        refuse_holding(self._real)
        operation = Operation(lambda tx: send(tx, messages, gathers), self, self._time, messages=None if gathers else messages)
        shared.writer.submit(operation)
        sent: list[Sent] = await operation.answer()
        return sent

    def _check(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if len(message.body) > self._max_body:
                raise BodyTooLarge(size_bytes=len(message.body), limit_bytes=self._max_body)
            if len(message.id) != 32:
                raise NameInvalid(kind="id", name=message.id)

    async def receive(
        self, queues: Sequence[QueueName], *, limit: int, lease_s: float, wait_s: float = 0.0, worker: WorkerId = WorkerId("")
    ) -> list[Delivery]:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        lease_ms = ceil_ms(limits.seconds("lease_s", lease_s, most=MAX_LEASE_S))
        limits.seconds("wait_s", wait_s, most=MAX_LEASE_S)
        queues = tuple(queues)
        wait = Wait(wait_s, bool, queues=queues) if wait_s > 0 else None
        return await self._write(lambda tx: receive(tx, queues, limit, lease_ms, worker), wait=wait, undo=self._give_back)

    def _give_back(self, deliveries: list[Delivery]) -> None:
        """Whoever asked for them was cancelled while they were being leased: nobody will ever hold them."""
        shared = self._shared
        if shared is not None and deliveries:
            back = [Settlement(delivery.receipt, Release()) for delivery in deliveries]
            shared.writer.submit(Operation(lambda tx: settling.settle(tx, back), self, self._time, answered=False, allowed=Level.SEALED))

    async def renew(self, receipts: Sequence[Receipt], *, lease_s: float) -> list[Settled]:
        lease_ms = ceil_ms(limits.seconds("lease_s", lease_s, most=MAX_LEASE_S))
        return await self._write(lambda tx: settling.renew(tx, receipts, lease_ms), allowed=Level.SEALED)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        return await self._write(lambda tx: settling.settle(tx, settlements), allowed=Level.SEALED)

    async def counts(self, queue: QueueName) -> Counts:
        return await self._read(lambda tx: browsing.counts(tx, queue))

    async def purge(self, queue: QueueName) -> int:
        before = await self._write(lambda tx: (tx.queue(queue), tx.next_seq)[1])
        total, more = 0, True
        while more:
            count, more = await self._write(lambda tx: control.purge(tx, queue, before))
            total += count
        return total

    # ---------------------------------------------------------------------------------------------------------- Browse
    async def queues(self) -> list[QueueSpec]:
        return await self._read(browsing.queues)

    async def get(self, id: MessageId) -> MessageView:
        return await self._read(lambda tx: browsing.get(tx, id))

    async def browse(self, where: MessageFilter, *, limit: int = 100, cursor: str = "") -> Page:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        return await self._read(lambda tx: browsing.browse(tx, where, limit, cursor))

    # --------------------------------------------------------------------------------------------------------- Results
    async def results(self, ids: Sequence[str]) -> list[ResultView | None]:
        return await self._read(lambda tx: browsing.results(tx, ids))

    async def await_results(self, ids: Sequence[str], *, wait_s: float) -> list[ResultView | None]:
        limits.seconds("wait_s", wait_s, most=MAX_LEASE_S)

        def enough(views: list[ResultView | None]) -> bool:
            return any(view is None or view.state in ("done", "dead") for view in views)

        ids = tuple(ids)
        if not ids:
            return []
        return await self._write(lambda tx: browsing.results(tx, ids), wait=Wait(wait_s, enough, ids=ids), allowed=Level.SEALED)

    async def progress(self, notes: Sequence[tuple[Receipt, bytes]]) -> list[Settled]:
        return await self._write(lambda tx: settling.progress(tx, notes), allowed=Level.SEALED)

    # --------------------------------------------------------------------------------------------------------- Control
    async def pause(self, queue: QueueName) -> None:
        await self._write(lambda tx: control.pause(tx, queue, True))

    async def resume(self, queue: QueueName) -> None:
        await self._write(lambda tx: control.pause(tx, queue, False))

    async def cancel(self, ids: Sequence[MessageId], *, reason: str = "") -> list[State | None]:
        return await self._write(lambda tx: control.cancel(tx, ids, reason))

    async def cancel_asked(self, receipts: Sequence[Receipt]) -> list[Receipt]:
        return await self._read(lambda tx: settling.cancel_asked(tx, receipts))

    async def hurry(self, ids: Sequence[MessageId]) -> int:
        return await self._write(lambda tx: control.hurry(tx, ids))

    async def redrive(self, where: MessageFilter, *, limit: int, queue: QueueName | None = None) -> list[MessageId]:
        _some_condition(where)
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        ids: list[MessageId] = []
        after = 0
        while len(ids) < limit:
            moved, after = await self._write(
                partial(control.redrive, where=where, limit=min(limit - len(ids), control.PIECE), target=queue, after=after)
            )
            ids += moved
            if not after:
                break
        return ids

    async def edit(self, id: MessageId, *, body: bytes) -> None:
        await self._write(lambda tx: control.edit(tx, id, body, self._max_body))

    async def delete(self, where: MessageFilter, *, limit: int) -> int:
        _some_condition(where)
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        total = 0
        while total < limit:
            piece = min(limit - total, control.PIECE)
            count = await self._write(partial(control.delete, where=where, limit=piece))
            total += count
            if count < piece:
                break
        return total

    # ------------------------------------------------------------------------------------------------------------ Runs
    async def run(self, id: RunId) -> RunView:
        return await self._read(lambda tx: browsing.run(tx, id))

    async def runs(self, chain: str, *, state: str = "", limit: int = 100, cursor: str = "") -> list[RunView]:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        return await self._read(lambda tx: browsing.runs(tx, chain, state, limit, cursor))

    async def run_counts(self, chain: str) -> RunCounts:
        return await self._read(lambda tx: browsing.run_counts(tx, chain))

    async def gathers(self, run: RunId) -> list[GatherView]:
        return await self._read(lambda tx: browsing.gathers(tx, run))

    async def cancel_run(self, id: RunId, *, reason: str = "") -> RunView:
        await self._write(lambda tx: control.cancel_run(tx, id, reason))
        return await self.run(id)

    # ----------------------------------------------------------------------------------------------------------- Fleet
    async def beat(self, worker: WorkerView) -> None:
        await self._write(lambda tx: browsing.beat(tx, worker), allowed=Level.SEALED)

    async def forget(self, worker: WorkerId) -> None:
        await self._write(lambda tx: browsing.forget(tx, worker), allowed=Level.FILLING)

    async def workers(self) -> list[WorkerView]:
        return await self._read(browsing.workers)

    # ------------------------------------------------------------------------------------------------------- Schedules
    async def put_schedules(self, specs: Sequence[Schedule], *, origin: str, owner: str = "", replace: bool = True) -> list[bool]:
        return await self._write(lambda tx: schedules.put(tx, specs, origin, owner, replace))

    async def schedules(self, *, limit: int = 1000, after: str = "") -> list[ScheduleView]:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        return await self._read(lambda tx: schedules.schedules(tx, limit, after))

    async def schedule(self, name: str) -> ScheduleView:
        return await self._read(lambda tx: schedules.schedule(tx, name))

    async def pause_schedule(self, name: str, paused: bool) -> ScheduleView:
        return await self._write(lambda tx: schedules.pause(tx, name, paused))

    async def remove_schedule(self, name: str) -> None:
        await self._write(lambda tx: schedules.remove(tx, name))

    async def due_schedules(self, *, limit: int = 100) -> DueSchedules:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        return await self._read(lambda tx: schedules.due(tx, limit))

    async def step_schedules(self, steps: Sequence[Step]) -> list[Stepped]:
        for step in steps:
            self._check(step.messages)
        return await self._write(lambda tx: schedules.step(tx, steps))

    # --------------------------------------------------------------------------------------------------- Transactional
    def send_with(self, connection: Any, messages: Sequence[Message], *, gathers: Sequence[Gather] = ()) -> list[Sent]:
        """`connection`: an apsw.Connection to this very file, in an open transaction."""
        self._in_use()
        self._check(messages)
        assert self._real is not None
        return send_in(connection, self._real, self.capabilities.durability, self._time, messages, gathers, audited=self._audit)

    async def asend_with(self, connection: Any, messages: Sequence[Message], *, gathers: Sequence[Gather] = ()) -> list[Sent]:
        """The same: its statements wait for nothing, because the caller's transaction has the file already."""
        return self.send_with(connection, messages, gathers=gathers)

    def transaction(self, connection: Any = None) -> SqliteTransaction:
        """While it is open nobody else writes to the file: ask for it late, return soon. Raises EngineUnavailable when the file cannot be had in 30 s."""
        transaction = self._transaction(connection)
        transaction.begin()
        transaction.hold()
        return transaction

    async def atransaction(self, connection: Any = None) -> AsyncSqliteTransaction:
        transaction = AsyncSqliteTransaction(self._transaction(connection))
        await transaction.begin()
        return transaction

    def _transaction(self, connection: Any) -> SqliteTransaction:
        shared = self._in_use()
        refuse_holding(self._real)
        given = None if connection is None else checked(connection, shared.desks.path, self.capabilities.durability)
        return SqliteTransaction(shared.desks, self.capabilities.durability, self._time, given)

    # ---------------------------------------------------------------------------------------------------------- Upkeep
    async def sweep(self) -> int:
        return await self._write(upkeep.sweep)

    async def retain(self, *, history_s: float, limit: int = 5000) -> int:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        history_ms = ceil_ms(min(limits.seconds("history_s", history_s), 1e12))
        return await self._write(lambda tx: upkeep.retain(tx, history_ms, limit))

    # ---------------------------------------------------------------------------------------------------------- Sizes
    async def sizes(self) -> list[Size]:
        return await self._read(fleets.sizes)

    async def set_size(self, queue: QueueName, *, turn: int, slots: int, state: bytes, log: Decision | None = None) -> bool:
        return await self._write(lambda tx: fleets.set_size(tx, queue, turn, slots, state, log))

    async def set_range(self, queue: QueueName, least: int, most: int) -> None:
        check_range(least, most)
        await self._write(lambda tx: fleets.set_range(tx, queue, least, most))

    async def clear_range(self, queue: QueueName) -> None:
        await self._write(lambda tx: fleets.clear_range(tx, queue))

    async def decisions(self, queue: QueueName | None = None, *, limit: int = 100) -> list[Decision]:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        return await self._read(lambda tx: fleets.decisions(tx, queue, limit))

    # ------------------------------------------------------------------------------------------------- Limits, Explain
    async def declare_limits(self, given: Sequence[Limit]) -> None:
        await self._write(lambda tx: flow.declare(tx, given))

    async def set_limit(self, limit: Limit) -> None:
        await self._write(lambda tx: flow.give(tx, limit))

    async def reset_limit(self, name: str) -> None:
        await self._write(lambda tx: flow.reset(tx, name))

    async def limits(self) -> list[LimitView]:
        return await self._read(flow.limits)

    async def buckets(self, name: str, *, limit: int = 100) -> list[BucketView]:
        limits.integer("limit", limit, least=1, most=sys.maxsize)
        return await self._read(lambda tx: flow.buckets(tx, name, limit))

    async def snooze(self, queue: QueueName, *, seconds: float) -> float:
        limits.seconds("seconds", seconds, most=limits.MAX_DELAY_S)
        return await self._write(lambda tx: flow.snooze(tx, tx.queue(queue), seconds))

    async def standing(self, id: MessageId) -> Standing:
        stalled = self._in_use().writer.stalled
        return await self._read(lambda tx: standing(tx, id, stalled))

    # ------------------------------------------------------------------------------------------------------ Migratable
    async def schema(self) -> SchemaView:
        return schema.look(self.path)

    async def migrate(self, *, wait_s: float = 60.0, tell: Callable[[str], None] = lambda _: None) -> list[str]:
        """Opening the file does it, in one transaction behind the side lock."""
        missing = schema.look(self.path).missing
        opened = self._shared is not None
        await self.open()
        if not opened:
            await self.close()
        for name in missing:
            tell(f"{name} taken")
        return list(missing)

    # --------------------------------------------------------------------------------------------------------- Movable
    @property
    def shown(self) -> str:
        return f"sqlite:///{self.path}"

    async def seal(self) -> Seal | None:
        return await self._write(lambda tx: tx.seal, allowed=Level.FILLING)

    async def set_seal(self, before: Seal | None, after: Seal | None) -> bool:
        done = await self._write(lambda tx: moving.set_seal(tx, before, after), allowed=Level.FILLING)
        self._in_use().writer.look_again()  # whoever waits learns of it
        return done

    async def underway(self) -> frozenset[str]:
        """Nothing ever is: one transaction writes at a time, and each reads the seal first."""
        return frozenset()

    async def leased(self) -> int:
        return await self._read(moving.leased)

    async def empty(self) -> bool:
        return await self._read(moving.empty)

    async def take(self, section: Section, after: str, limit: int) -> MovedPage:
        return await self._read(lambda tx: moving.take(tx, section, after, limit))

    async def put(self, page: MovedPage, before: Seal, after: Seal) -> bool:
        return await self._write(lambda tx: moving.put(tx, page, before, after), allowed=Level.FILLING)


def _some_condition(where: MessageFilter) -> None:
    if where.empty:
        raise ValueInvalid(name="where", value=where, allowed="at least one condition (a queue, a task, ids, …)")
