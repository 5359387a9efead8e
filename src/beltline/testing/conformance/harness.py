"""What the author of an engine says about it, and what the tests are handed."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

from beltline.core.capabilities import Durability
from beltline.core.clock import Clock
from beltline.core.limits import MAX_BODY_BYTES
from beltline.engines.protocol import Browse, Control, Engine, Explain, Fleet, Limits, Results, Runs, Schedules, Sizes, Upkeep
from beltline.testing.clock import ManualClock


class Full(Engine, Browse, Results, Control, Runs, Fleet, Sizes, Schedules, Limits, Explain, Upkeep, Protocol):
    """An engine with every power; a law says which of them it uses (`needs`)."""


class Harness(ABC):
    """One store, fresh for every test. `folder` is an empty directory, `clock` stands still.

    `url`  an engine URL under which another process finds the same store ("" when the store dies with the process).
    """

    url: str = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()

    @abstractmethod
    def engine(self, *, clock: Clock | None = None, max_body: int = MAX_BODY_BYTES) -> Engine:
        """A new engine object on this harness's store, not open. `clock` None = its own, the real one.

        An engine whose time is the server's takes the clock as an offset to it, for tests only.
        """

    async def restart(self, engine: Engine) -> Engine:
        """Close `engine` and open the same store again, as after a new start of the process. A store in memory goes on in the same object."""
        await engine.close()
        again = engine if engine.capabilities.durability == Durability.MEMORY else self.engine(clock=self.clock)
        await again.open()
        return again


class Time:
    """Moves the clock of the engine under test."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def set_back(self, seconds: float) -> None:
        self.clock.set_back(seconds)
