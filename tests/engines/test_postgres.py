"""The PostgreSQL engine keeps every law, on the newest server we test on."""

from beltline.testing import conformance
from tests.engines.postgres_kit import PostgresHarness

conformance.suite(globals(), PostgresHarness)
