"""The supervisor's hold on the engine: every call has a bound, an outage is told once, and an engine that hangs is built anew.

Two ways to be out of order. The store says so (EngineUnavailable): calls are repeated with growing, jittered pauses for as long as it takes, and work in
hand goes on. The store says nothing: after PATIENCE_S the call counts as unanswered; after two such in a row the engine is closed and made again; when
REBUILDS of those have not brought an answer either, the worker ends, so that whoever watches it can start it elsewhere.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from random import uniform
from time import monotonic
from typing import TypeVar

from beltline.core.errors import EngineError, EngineUnavailable
from beltline.core.flow import Limit
from beltline.core.queues import QueueSpec
from beltline.engines.protocol import Engine
from beltline.limiting import limits_of

T = TypeVar("T")

log = logging.getLogger("beltline.worker")

PATIENCE_S = 30.0
REBUILDS = 3


class StoreStuck(Exception):
    """The engine does not answer and building it anew did not help: the worker ends."""


class Backoff:
    """Pauses that double from `least_s` to `most_s`, each drawn from its upper half, so that many workers do not come back at once."""

    def __init__(self, least_s: float = 0.05, most_s: float = 2.0) -> None:
        self._least_s, self._most_s = least_s, most_s
        self._next_s = least_s

    async def pause(self) -> None:
        await asyncio.sleep(uniform(self._next_s / 2, self._next_s))  # noqa: S311  # spreads load, guards nothing
        self._next_s = min(self._most_s, self._next_s * 2)

    def reset(self) -> None:
        self._next_s = self._least_s


class Store:
    """`rebuild` makes a new, unopened engine; None = the engine belongs to somebody else and is never replaced or closed."""

    def __init__(self, engine: Engine, rebuild: Callable[[], Engine] | None, *, patience_s: float = PATIENCE_S) -> None:
        self.engine = engine
        self.answered_at = monotonic()
        self.down = False
        self._rebuild = rebuild
        self._patience_s = patience_s
        self._specs: list[QueueSpec] = []
        self._limits: list[Limit] = []
        self._silent = 0
        self._rebuilt = 0

    async def ask(self, what: str, work: Callable[[Engine], Awaitable[T]], *, wait_s: float = 0.0) -> T:
        """One call, unanswered after `wait_s` and our patience. Raises EngineUnavailable, StoreStuck, and what the engine raises."""
        try:
            async with asyncio.timeout(wait_s + self._patience_s):
                answer = await work(self.engine)
        except TimeoutError:
            error = EngineUnavailable(f"The store has not answered to {what} for {self._patience_s:g} s.", effect="unknown")
            self._report(error)
            await self._silence()
            raise error from None
        except EngineUnavailable as error:
            self._silent = 0
            self._report(error)
            raise
        self._silent = self._rebuilt = 0
        self.answered_at = monotonic()
        if self.down:
            self.down = False
            log.warning("the store answers again")
        return answer

    def _report(self, error: EngineUnavailable) -> None:
        if not self.down:
            self.down = True
            log.warning("the store does not answer: %s Running tasks go on; trying again until it does", error.what)

    async def _silence(self) -> None:
        self._silent += 1
        if self._silent < 2 or self._rebuild is None:
            return
        self._silent = 0
        self._rebuilt += 1
        if self._rebuilt > REBUILDS:
            raise StoreStuck(f"The store has not answered for {monotonic() - self.answered_at:.0f} s, and building the engine anew has not helped.")
        log.error("the store stays silent: building the engine anew (%d of %d)", self._rebuilt, REBUILDS)
        old, self.engine = self.engine, self._rebuild()
        for step in (old.close, self.engine.open, self._declare):
            try:
                async with asyncio.timeout(self._patience_s):
                    await step()
            except (TimeoutError, EngineError) as error:
                log.error("while building the engine anew: %r", error)

    async def _declare(self) -> None:
        if self._limits:
            await limits_of(self.engine).declare_limits(self._limits)
        await self.engine.declare(self._specs)

    async def open(self) -> None:
        await self.ask("open", lambda engine: engine.open())

    async def declare(self, specs: list[QueueSpec], limits: list[Limit]) -> None:
        """Only what is new or changed; limits before the queues that name them."""
        if limits != self._limits:
            await self.ask("declare limits", lambda engine: limits_of(engine).declare_limits(limits))
            self._limits = limits
        if specs != self._specs:
            await self.ask("declare", lambda engine: engine.declare(specs))
            self._specs = specs

    async def close(self) -> None:
        if self._rebuild is None:
            return
        try:
            async with asyncio.timeout(self._patience_s):
                await self.engine.close()
        except (TimeoutError, EngineError) as error:
            log.error("closing the engine: %r", error)
