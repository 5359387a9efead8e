"""Floor 6: the kit for tests. Shipped for users and for authors of engines; nothing that runs in production imports it.

clock        a clock that stands still until it is told to move
conformance  the laws of the engine contract, one file per promise, for every engine
machine      a Hypothesis state machine that drives two engines with the same steps and compares them
"""

from beltline.testing.clock import ManualClock

__all__ = ["ManualClock"]
