"""What callers hand to the writer thread, and how the answers come back into their event loops."""

import asyncio
import contextlib
import copy
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from beltline.core.message import Message
from beltline.engines.moving import Level
from beltline.engines.sqlite.ledger import Ledger
from beltline.engines.sqlite.times import Ratchet


class Wait:
    """What an operation waits for: something in a queue, or the end of messages and runs. `enough(value)`: it need not wait any longer."""

    __slots__ = ("deadline", "enough", "keys", "until_ms")

    def __init__(self, wait_s: float, enough: Callable[[Any], bool], *, queues: Iterable[str] = (), ids: Iterable[str] = ()) -> None:
        self.deadline = time.monotonic() + wait_s
        self.until_ms: int | None = None  # the same on the engine's clock; whichever is over first
        self.enough = enough
        self.keys = (*dict.fromkeys("q" + name for name in queues), *dict.fromkeys("i" + id for id in ids))


class Operation:
    """One verb: what to do with the ledger, and who waits for the answer. Made in the caller's loop.

    `messages`  of a send without gathers, which may be written together with its neighbours, and is refused while the disk is full.
    `allowed`   the highest seal of a move (engines/moving.py) under which it is run.
    `undo`      what to do with an answer that nobody takes any more, because the caller was cancelled or its loop closed.
    """

    __slots__ = ("allowed", "error", "future", "messages", "owner", "run", "time", "undo", "value", "wait")

    def __init__(
        self,
        run: Callable[[Ledger], Any],
        owner: object,
        time: Ratchet,
        *,
        wait: Wait | None = None,
        undo: Callable[[Any], None] | None = None,
        messages: Sequence[Message] | None = None,
        answered: bool = True,
        allowed: Level = Level.OPEN,
    ) -> None:
        self.run, self.owner, self.time, self.wait, self.undo, self.messages = run, owner, time, wait, undo, messages
        self.allowed = allowed
        self.future: asyncio.Future[Any] | None = asyncio.get_running_loop().create_future() if answered else None
        self.value: Any = None
        self.error: BaseException | None = None

    async def answer(self) -> Any:
        assert self.future is not None
        try:
            return await self.future
        except asyncio.CancelledError:
            if self.future.done() and not self.future.cancelled():
                _undo(self)  # the answer had come, but its caller was cancelled before it could take it
            raise

    @property
    def given_up(self) -> bool:
        """Its caller was cancelled: nobody wants the answer."""
        return self.future is not None and self.future.cancelled()

    @property
    def short(self) -> bool:
        """It has found too little, and is one that may wait for more."""
        return self.wait is not None and self.error is None and not self.wait.enough(self.value)


class Chore:
    """Something else for the thread to do, between two batches: open, close."""

    __slots__ = ("_do", "future")

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def do(self) -> None:
        error: BaseException | None = None
        try:
            self._do()
        except Exception as caught:  # noqa: BLE001 - whatever it is, it belongs to the caller
            error = caught
        with contextlib.suppress(RuntimeError):  # its loop is closed
            self.future.get_loop().call_soon_threadsafe(_set, self.future, None, error)


def answer(operations: Iterable[Operation]) -> None:
    """Hand over the answers: one call into each loop, however many of them."""
    groups: dict[asyncio.AbstractEventLoop, list[Operation]] = {}
    for operation in operations:
        if operation.future is not None:
            groups.setdefault(operation.future.get_loop(), []).append(operation)
    for loop, group in groups.items():
        try:
            loop.call_soon_threadsafe(_deliver, group)
        except RuntimeError:  # the loop is closed: nobody is there to take them
            for operation in group:
                _undo(operation)


def _deliver(operations: list[Operation]) -> None:
    for operation in operations:
        future = operation.future
        assert future is not None
        if future.done():
            _undo(operation)
        else:
            # Each caller its own error: one object raised in several tasks would gather all their tracebacks.
            error = operation.error if len(operations) == 1 else copy.copy(operation.error)
            _set(future, operation.value, error)


def _set(future: "asyncio.Future[Any]", value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


def _undo(operation: Operation) -> None:
    if operation.undo is not None and operation.error is None:
        operation.undo(operation.value)
