"""How task code is entered: in a context of its own, from a coroutine or from a thread, and how a thread is made to leave it.

Fork    the child of a task that forks may run what it likes, but never comes back into the slot: it would answer a second time for its parent. `forked` says
        which of the two we are.
"""

import ctypes
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from typing import Any

from beltline.context import Current, enter

forked = False


def _on_fork() -> None:
    global forked  # noqa: PLW0603  # a fact about the process
    forked = True


os.register_at_fork(after_in_child=_on_fork)


class InContext(Awaitable[Any]):
    """Drives a coroutine that has begun in `context` to its end there, while the slot's own asyncio task waits for what it waits for.

    Why: a context of its own for each delivery without the price of an asyncio task for each (about 10 µs).
    """

    __slots__ = ("_context", "_waits_for", "_work")

    def __init__(self, work: Coroutine[Any, Any, Any], context: Context, waits_for: Any) -> None:
        self._work = work
        self._context = context
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, Any]:
        work, run, waits_for = self._work, self._context.run, self._waits_for
        try:
            while True:
                if forked:
                    os._exit(0)  # the event loop belongs to the parent
                try:
                    sent = yield waits_for
                except BaseException as error:  # noqa: BLE001  # it belongs to the coroutine inside
                    waits_for = run(work.throw, error)
                else:
                    waits_for = run(work.send, sent)
        except StopIteration as end:
            return end.value
        finally:
            work.close()


def begin(current: Current, fn: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Run a coroutine to its first wait. Raises StopIteration with its value if it has none."""
    enter(current)
    work = fn(*args, **kwargs)
    return work, work.send(None)


def call(current: Current, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    enter(current)
    return fn(*args, **kwargs)


def raise_in_thread(kind: type[BaseException] | None, ident: int = 0) -> None:
    """Have `kind` raised in a thread at its next bytecode; None takes back what has not been raised yet."""
    thread = ctypes.c_ulong(ident or threading.get_ident())
    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None if kind is None else ctypes.py_object(kind))
