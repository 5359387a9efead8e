"""What a running task can know of its own delivery: `current()`.

A fence protects an outside resource only if that resource checks it: pass `fence` along and refuse smaller numbers there. `idempotency_key` is the
same on every attempt of the same message: use it wherever an outside service takes one. `transaction` is stronger than both, for writes to the engine's own store.
"""

import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from typing import Any, Protocol

from beltline.core.codec import pack
from beltline.core.errors import NoDelivery
from beltline.core.message import Delivery


class Station(Protocol):
    """What a running task's slot offers it."""

    def transaction(self, current: "Current", connection: Any) -> Any: ...

    async def atransaction(self, current: "Current", connection: Any) -> Any: ...


_current: ContextVar["Current | None"] = ContextVar("beltline_current", default=None)


class Current:
    """The delivery a task is running for. Read-only, but for `progress` and `transaction`."""

    __slots__ = ("_delivery", "_report", "_station", "_stop_asked", "worker")

    def __init__(self, delivery: Delivery, *, worker: str, report_progress: Callable[[bytes], None], station: Station) -> None:
        self._delivery = delivery
        self._report = report_progress
        self._station = station
        self._stop_asked = False
        self.worker = worker

    @property
    def message_id(self) -> str:
        return self._delivery.message.id

    @property
    def task(self) -> str:
        return self._delivery.message.task

    @property
    def queue(self) -> str:
        return self._delivery.message.queue

    @property
    def headers(self) -> Mapping[str, str]:
        return self._delivery.message.headers

    @property
    def attempt(self) -> int:
        """Which try this is, from 1."""
        return self._delivery.attempt

    @property
    def run(self) -> str | None:
        """The run's id, or None outside of a chain."""
        place = self._delivery.message.place
        return place.run if place else None

    @property
    def stage(self) -> str | None:
        place = self._delivery.message.place
        return place.stage if place else None

    @property
    def fence(self) -> int:
        """Grows at every hand-out of this message (in a FIFO group: of the group). Never sinks."""
        return self._delivery.group_epoch or self._delivery.receipt.epoch

    @property
    def idempotency_key(self) -> str:
        """The same on every attempt: the message id."""
        return self._delivery.message.id

    @property
    def sent_at(self) -> float:
        """Seconds since 1970 on the engine's clock."""
        return self._delivery.sent_at

    @property
    def stop_asked(self) -> bool:
        """True once the worker wants this delivery to stop (cancelled, timed out, lease lost). Work in threads should look at it in its loops."""
        return self._stop_asked

    def ask_stop(self) -> None:
        """For the worker: make `stop_asked` true."""
        self._stop_asked = True

    def progress(self, value: object) -> None:
        """Let callers see how far it is: any value a queue can carry, the newest wins. Costs no write of its own."""
        self._report(pack(value))

    def transaction(self, connection: Any = None) -> Any:
        """Begin a transaction on the engine's store and return the connection to write with (psycopg.Connection, apsw.Connection). For plain `def` tasks.

        When the task returns, the settle of its delivery (result, hand-off, everything) is written into the same transaction, and it is committed; when it raises, is
        stopped, or has lost its lease, all is rolled back. So what is written through it happens exactly once. Do not commit it. The second call returns the same.
        `connection`: your own instead (psycopg, SQLAlchemy Connection or Session, Django; on SQLite an apsw.Connection), given back as it is.
        Outside calls belong before it: nobody should hold a transaction while he waits for something else.
        Raises Unsupported (the engine has none), HandleMisused, EngineUnavailable.
        """
        return self._station.transaction(self, connection)

    async def atransaction(self, connection: Any = None) -> Any:
        """`transaction` for `async def` tasks: psycopg.AsyncConnection, SQLAlchemy AsyncConnection or AsyncSession; apsw.Connection."""
        return await self._station.atransaction(self, connection)

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger named after the task whose records carry message_id, run_id, attempt, queue and worker."""
        return logging.LoggerAdapter(logging.getLogger(self.task), self.log_fields())

    def log_fields(self) -> dict[str, Any]:
        return {
            "message_id": self.message_id,
            "run_id": self.run,
            "stage": self.stage,
            "queue": self.queue,
            "task": self.task,
            "attempt": self.attempt,
            "worker": self.worker,
        }


def current() -> Current:
    """The delivery of the running task. Raises NoDelivery outside of one."""
    found = _current.get()
    if found is None:
        raise NoDelivery
    return found


def enter(delivery: Current) -> Token["Current | None"]:
    """For the worker: make `delivery` current in this context."""
    return _current.set(delivery)


def leave(token: Token["Current | None"]) -> None:
    _current.reset(token)
