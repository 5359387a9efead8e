"""The memory engine, the executable specification, keeps every law."""

from beltline.core.clock import Clock
from beltline.engines.memory import MemoryEngine
from beltline.testing import conformance


class MemoryHarness(conformance.Harness):
    def engine(self, *, clock: Clock | None = None, max_body: int = conformance.MAX_BODY_BYTES) -> MemoryEngine:
        return MemoryEngine(clock=clock, max_body=max_body)


conformance.suite(globals(), MemoryHarness)
