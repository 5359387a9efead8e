"""The PostgreSQL engine keeps every law, on the server of the system, the oldest we test on."""

from beltline.testing import conformance
from tests.engines.postgres_kit import OlderPostgresHarness

conformance.suite(globals(), OlderPostgresHarness)
