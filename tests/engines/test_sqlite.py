"""The SQLite engine keeps every law."""

from beltline.core.capabilities import Durability
from beltline.core.clock import Clock
from beltline.engines.sqlite import SqliteEngine
from beltline.testing import conformance


class SqliteHarness(conformance.Harness):
    durability = Durability.OS

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder}/queue.db?durability={self.durability.name.lower()}"

    def engine(self, *, clock: Clock | None = None, max_body: int = conformance.MAX_BODY_BYTES) -> SqliteEngine:
        return SqliteEngine(self.folder / "queue.db", durability=self.durability, clock=clock, max_body=max_body)


conformance.suite(globals(), SqliteHarness)


class SqliteOnDisk(SqliteHarness):
    durability = Durability.DISK


def test_the_level_disk_keeps_the_laws_about_what_is_acknowledged():
    outcomes = conformance.check(SqliteOnDisk, only=("L01", "L02", "L04"))
    assert {name: error for name, error in outcomes.items() if error is not None} == {}
