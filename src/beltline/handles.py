"""A handle: where a message or a run stands, for the one who sent it. It holds an id and nothing else that could grow old."""

import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, Protocol, TypeVar

from beltline.core.codec import unpack
from beltline.core.errors import NotFound, ResultExpired, ResultTimeout, TaskFailed, Unsupported
from beltline.core.lifecycle import State
from beltline.core.limits import MAX_DELAY_S, Seconds, seconds
from beltline.core.names import MessageId
from beltline.core.views import ResultView
from beltline.engines.protocol import Control, Engine, Results, Runs

R = TypeVar("R")
T = TypeVar("T")

LOOK_S = 5.0  # how long one look at the store may wait before the deadline is checked again
ENDED = frozenset({"done", "dead", "failed", "cancelled"})


class Host(Protocol):
    """What handles and sends need of an App."""

    async def ready(self, connection: object | None = None) -> Engine: ...

    def blocking(self, work: Coroutine[Any, Any, T]) -> T: ...


class Handle(Generic[R]):
    """`id` is the message's, for a chain the run's. `new` is False when the send met a message that was there already (same id, dedup key or unique key)."""

    __slots__ = ("_app", "_read", "id", "new")

    def __init__(self, app: Host, id: str, read: Callable[[bytes], Any] = unpack, new: bool = True) -> None:
        self._app = app
        self._read = read
        self.id = id
        self.new = new

    def __repr__(self) -> str:
        return f"Handle({self.id!r})"

    async def aview(self) -> ResultView:
        """Everything known about the outcome. Raises NotFound for an id that was never sent."""
        [view] = await (await self._results()).results([self.id])
        if view is None:
            raise NotFound(kind="message or run", name=self.id)
        return view

    def view(self) -> ResultView:
        return self._app.blocking(self.aview())

    async def astatus(self) -> str:
        """delayed, ready, leased, running (a run), done, dead, failed or cancelled. Raises NotFound."""
        view = await self.aview()
        return view.outcome if view.state == "done" and view.outcome == "cancelled" else view.state

    def status(self) -> str:
        return self._app.blocking(self.astatus())

    async def aprogress(self) -> Any:
        """The newest value the task reported, or None."""
        view = await self.aview()
        return None if view.progress is None else unpack(view.progress)

    def progress(self) -> Any:
        return self._app.blocking(self.aprogress())

    async def aresult(self, *, timeout: Seconds | None = None) -> R:
        """Wait for the end and return the result.

        Raises TaskFailed (dead, cancelled, expired; carries the remote failure as text), ResultTimeout (it goes on), ResultExpired, NotFound.
        `timeout` in seconds; None waits as long as it takes; 0 looks once.
        """
        bound_s = None if timeout is None else seconds("timeout", timeout, most=MAX_DELAY_S)
        until = None if bound_s is None else time.monotonic() + bound_s
        results = await self._results()
        left_s = 0.0
        while True:
            [view] = await results.await_results([self.id], wait_s=left_s)
            if view is None:
                raise NotFound(kind="message or run", name=self.id)
            if view.state in ENDED:
                return self._value(view)
            left_s = LOOK_S if until is None else min(LOOK_S, until - time.monotonic())
            if left_s <= 0:
                raise ResultTimeout(self.id, state=view.state, timeout_s=bound_s or 0.0)

    def result(self, *, timeout: Seconds | None = None) -> R:
        """`aresult` for synchronous code."""
        return self._app.blocking(self.aresult(timeout=timeout))

    def _value(self, view: ResultView) -> R:
        if view.state == "done" and view.outcome in ("", "succeeded"):
            if view.expired:
                raise ResultExpired(self.id)
            value: R = None if view.result is None else self._read(view.result)  # type: ignore[assignment]  # no stored result means None
            return value
        failure = view.failure
        outcome = view.outcome if view.state == "done" else view.state
        if failure is None:
            raise TaskFailed(self.id, outcome=outcome, text=view.why)
        raise TaskFailed(self.id, outcome=outcome, type=failure.type, text=failure.text or view.why, traceback=failure.traceback)

    async def acancel(self, *, reason: str = "") -> str:
        """Ask for the end: a waiting message is cancelled at once, a running one is stopped by its worker. Returns the status now. Raises NotFound."""
        engine = await self._app.ready()
        if not isinstance(engine, Control):
            raise Unsupported(feature="cancel", need=1, have=0, engine=engine.name)
        [state] = await engine.cancel([MessageId(self.id)], reason=reason)
        if isinstance(engine, Runs):
            try:
                await engine.cancel_run(self.id, reason=reason)  # type: ignore[arg-type]  # a run's id is that of its first message
            except NotFound:
                if state is None:
                    raise
        elif state is None:
            raise NotFound(kind="message or run", name=self.id)
        return "leased" if state is State.LEASED else await self.astatus()

    def cancel(self, *, reason: str = "") -> str:
        return self._app.blocking(self.acancel(reason=reason))

    async def _results(self) -> Results:
        engine = await self._app.ready()
        if not isinstance(engine, Results):
            raise Unsupported(feature="results", need=1, have=0, engine=engine.name)
        return engine
