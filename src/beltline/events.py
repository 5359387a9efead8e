"""Past-tense facts, emitted only after the engine said DONE. Listeners get plain values, in batches; a listener that fails is logged and costs nobody else."""

import logging
from collections.abc import Callable, Sequence

from msgspec import Struct

log = logging.getLogger("beltline.events")


class MessageSettled(Struct, frozen=True, kw_only=True, gc=False):
    """A delivery has ended. `outcome`: ack, retry, release, dead_letter, cancelled. `ran_s`: task code only. `next_s`: delay of a retry or release."""

    message_id: str
    queue: str
    task: str
    attempt: int
    outcome: str
    ran_s: float
    run_id: str | None = None
    stage: str | None = None
    cause: str = ""
    why: str = ""
    next_s: float = 0.0


Listener = Callable[[Sequence[MessageSettled]], None]


class Events:
    """A list of listeners. Empty costs nothing: ask `wanted` before building events."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    @property
    def wanted(self) -> bool:
        return bool(self._listeners)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Add a listener; the answer removes it again."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def emit(self, events: Sequence[MessageSettled]) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(events)
            except Exception:
                log.exception("a listener of settled messages failed")
