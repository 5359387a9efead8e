"""The SQLite engine keeps every law, at both levels that outlive a process."""

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
