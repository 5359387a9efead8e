"""Random histories: memory against the invariants, every other engine against memory as well. BELTLINE_EXAMPLES=2000 tries more of them."""

import pytest

from beltline.testing import machine
from tests.engines.postgres_kit import PostgresHarness
from tests.engines.test_memory import MemoryHarness
from tests.engines.test_sqlite import SqliteHarness

pytestmark = pytest.mark.timeout(3600)  # as long as the histories asked for take; each step has a limit of its own

TestMemory = machine.case(MemoryHarness)
TestSqlite = machine.case(SqliteHarness, oracle=MemoryHarness)
TestPostgres = machine.case(PostgresHarness, oracle=MemoryHarness)
