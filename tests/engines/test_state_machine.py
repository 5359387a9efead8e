"""Random histories: memory against the invariants, every other engine against memory as well. BELTLINE_EXAMPLES=2000 tries more of them."""

from beltline.testing import machine
from tests.engines.test_memory import MemoryHarness
from tests.engines.test_sqlite import SqliteHarness

TestMemory = machine.case(MemoryHarness)
TestSqlite = machine.case(SqliteHarness, oracle=MemoryHarness)
