"""The atomic way to end: the task's own writes and the settle of its delivery in one transaction, written by the runner.

    current().transaction() -> open -> the task returns -> settle in it -> COMMIT -> Written (the supervisor only tells)
                                    -> raises, is halted ------------> ROLLBACK -> Done    (the supervisor settles, as always)
                                    -> settle says LEASE_LOST -------> ROLLBACK -> Written (nothing to settle: it is somebody else's)

Exactly once   the store commits both or neither. A runner that dies before COMMIT leaves nothing; its lease runs out, and the message is handed out again.
               One that dies after it has left a message that is done: whatever the supervisor settles for the dead runner is refused by the epoch.
Unknown        a COMMIT that raised may have happened. Settling again would be wrong: if it had not happened, the message would be acknowledged *without* the task's
               writes. So the store is asked, and by a write, not by a look: `renew` of the same receipt. It waits for whatever still holds the row, so it sees the
               end of a COMMIT that the server is carrying out behind a cut connection. Renewed: the lease was still ours, so the transaction is gone, and the delivery
               has failed. LEASE_LOST: done, if the message says so under our epoch; otherwise somebody else's. No answer within ASK_S: nothing more is written by
               anybody here, and the end of the lease decides.
Halts          are held off while a transaction begins (a stop in the middle would leave a lock behind) and once the task has returned: from there on it has ended, and
               a COMMIT that hangs is ended by killing the runner, which is safe.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from beltline.context import Current
from beltline.core.errors import EngineUnavailable, HandleMisused, NotFound, UsageError
from beltline.core.outcome import Ack, Cause, DeadLetter, Ended, Failure, Outcome, Settled, Settlement
from beltline.engines import guests
from beltline.engines.protocol import AsyncTransaction, Browse, Transaction
from beltline.handles import Host
from beltline.sending import transactional

T = TypeVar("T")

log = logging.getLogger("beltline.runner")

ASK_S = 30.0
RENEWED_S = 60.0  # longer than a settle takes; what follows a renewal here ends the delivery anyway
PAUSE_LEAST_S, PAUSE_MOST_S = 0.05, 1.0

Ending = tuple[Outcome, Settled | None]  # how it ended; the store's answer, None = still to be settled


class Slot(Protocol):
    """What the transactions of a slot need of it."""

    @property
    def app(self) -> Host: ...

    @property
    def in_thread(self) -> bool: ...

    def runs(self, current: Current) -> bool: ...

    def no_halts(self) -> AbstractContextManager[None]: ...


class Atomic:
    """The transactions of one slot's deliveries, at most one at a time. `opened`: the one of the delivery that runs now."""

    def __init__(self, slot: Slot) -> None:
        self.opened: _Blocking | AsyncTransaction | None = None
        self._slot = slot

    # ---- for the task

    def transaction(self, current: Current, connection: Any) -> Any:
        """In the task's thread."""
        self._check(current, connection)
        if not self._slot.in_thread:
            raise UsageError("transaction() would stop the event loop of an async def task.", help="Use: await current().atransaction()")
        if self.opened is None:
            app = self._slot.app
            with self._slot.no_halts():
                engine = transactional(app.blocking(app.ready(connection)))
                self.opened = _Blocking(engine.transaction(connection))
        return self.opened.connection

    async def atransaction(self, current: Current, connection: Any) -> Any:
        """In the task's event loop."""
        self._check(current, connection)
        if self._slot.in_thread:
            raise UsageError("atransaction() is for async def tasks.", help="Use: current().transaction()")
        if self.opened is None:
            engine = transactional(await self._slot.app.ready(connection))
            if self.opened is not None:
                raise HandleMisused("Two transactions of one delivery were begun at the same time.", help="Ask for it once, and pass it on.")
            self.opened = await engine.atransaction(connection)
        return self.opened.connection

    def _check(self, current: Current, connection: Any) -> None:
        if not self._slot.runs(current):
            raise HandleMisused("The task that this delivery was for has ended.", help="Ask for the transaction while the task runs.")
        if self.opened is not None and connection is not None and connection is not self.opened.connection:
            raise HandleMisused("This delivery has a transaction already, on another connection.", help="One delivery, one transaction.")
        if self._slot.in_thread and guests.kind(connection) in guests.ASYNC:
            guests.guest(connection)  # says what is wrong with it
        elif not self._slot.in_thread and guests.kind(connection) in guests.BLOCKING:
            guests.async_guest(connection)

    # ---- for the slot

    def conclude_in_thread(self, settlement: Settlement, failed: Callable[[BaseException], Outcome]) -> Ending:
        """`conclude` in the task's thread: every step of it blocks, so it never really waits."""
        app = self._slot.app

        async def ask(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
            return app.blocking(work())

        async def pause(seconds: float) -> None:
            time.sleep(seconds)  # noqa: ASYNC251 - a thread of its own

        concluding = self._conclude(settlement, failed, ask, pause)
        try:
            concluding.send(None)
        except StopIteration as end:
            ending: Ending = end.value
            return ending
        finally:
            concluding.close()
        raise AssertionError("a blocking conclusion has waited")

    async def conclude(self, settlement: Settlement, failed: Callable[[BaseException], Outcome]) -> Ending:
        """Commit with the settle, or roll back. `failed`: the outcome of a delivery that failed by this error."""

        async def ask(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
            return await work()

        return await self._conclude(settlement, failed, ask, asyncio.sleep)

    async def _conclude(
        self,
        settlement: Settlement,
        failed: Callable[[BaseException], Outcome],
        ask: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Awaitable[Any]],
        pause: Callable[[float], Awaitable[None]],
    ) -> Ending:
        transaction, self.opened = self.opened, None
        assert transaction is not None
        outcome = settlement.outcome
        committing = False
        try:
            if type(outcome) is not Ack or outcome.ended is not Ended.SUCCEEDED:
                return outcome, None
            if await transaction.settle(settlement) is not Settled.DONE:
                return outcome, Settled.LEASE_LOST
            committing = True
            await transaction.commit()
            return outcome, Settled.DONE
        except UsageError as error:  # it cannot be written as it is (a queue nobody has declared): trying again gives the same
            failure = Failure(Cause.ERROR, f"{type(error).__module__}.{type(error).__qualname__}", str(error))
            return DeadLetter(reason=error.what, failure=failure, ran_s=outcome.ran_s if isinstance(outcome, Ack) else 0.0), None
        except Exception as error:  # noqa: BLE001 - of the store, or of the user's own library: it ends this delivery, not the slot
            await transaction.rollback()  # first of all: what is asked next may wait for it
            if not committing:
                return failed(error), None
            return await self._find_out(settlement, failed(error), ask, pause)
        finally:
            await transaction.rollback()

    async def _find_out(
        self,
        settlement: Settlement,
        rolled_back: Outcome,
        ask: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Awaitable[Any]],
        pause: Callable[[float], Awaitable[None]],
    ) -> Ending:
        """Whether a COMMIT that raised has happened; see above."""
        receipt = settlement.receipt
        until, pause_s = time.monotonic() + ASK_S, PAUSE_LEAST_S
        while time.monotonic() < until:
            try:
                engine = await ask(self._slot.app.ready)
                [answer] = await ask(lambda engine=engine: engine.renew([receipt], lease_s=RENEWED_S))  # type: ignore[misc]
                if answer is not Settled.LEASE_LOST:
                    return rolled_back, None
                view = await ask(lambda engine=engine: engine.get(receipt.id)) if isinstance(engine, Browse) else None  # type: ignore[misc]
            except EngineUnavailable:
                await pause(pause_s)
                pause_s = min(PAUSE_MOST_S, pause_s * 2)
            except NotFound:
                return settlement.outcome, Settled.LEASE_LOST
            else:
                ours = view is not None and view.state == "done" and view.epoch == receipt.epoch
                return settlement.outcome, Settled.DONE if ours else Settled.LEASE_LOST
        log.error("whether the transaction of message %s was committed is not known: the end of its lease will tell", receipt.id)
        return settlement.outcome, Settled.LEASE_LOST


class _Blocking:
    """A synchronous transaction in the clothes of an asynchronous one."""

    def __init__(self, inner: Transaction) -> None:
        self._inner = inner
        self.connection = inner.connection

    async def settle(self, settlement: Settlement) -> Settled:
        return self._inner.settle(settlement)

    async def commit(self) -> None:
        self._inner.commit()

    async def rollback(self) -> None:
        self._inner.rollback()


__all__ = ["Atomic", "Ending"]
