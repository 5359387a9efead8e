"""What the writer must know of a message to end it or to send it back: its row without body, read by id or place."""

from collections.abc import Iterable, Sequence
from typing import Any

import apsw

from beltline.core.message import Part, Place
from beltline.core.names import MessageId
from beltline.engines.rows import key_of, place_of, priority_of
from beltline.engines.sqlite.ledger import Ledger

COLUMNS = "seq, id, queue, state, epoch, due, rank, since, failed, lost, started, worker, group_key, run, why, head, lane"
BY_ID = f"SELECT {COLUMNS} FROM message WHERE state <> 5 AND id IN (SELECT value FROM carray(?))"


class Fact:
    """One row as it was read; whoever changes the row changes `state` here too."""

    __slots__ = (
        "_place",
        "due",
        "epoch",
        "failed",
        "group",
        "head",
        "key",
        "lane",
        "lost",
        "queue",
        "rank",
        "run",
        "seq",
        "since",
        "started",
        "state",
        "why",
        "worker",
    )

    def __init__(
        self,
        seq: int,
        key: bytes,
        queue: int,
        state: int,
        epoch: int,
        due: int,
        rank: int,
        since: int,
        failed: int,
        lost: int,
        started: int | None,
        worker: int | None,
        group: str | None,
        run: int | None,
        why: str | None,
        head: bytes | None,
        lane: int | None,
    ) -> None:
        self.seq, self.key, self.queue, self.state, self.epoch, self.due, self.rank, self.since = seq, key, queue, state, epoch, due, rank, since
        self.failed, self.lost, self.started, self.worker, self.group, self.run, self.why = failed, lost, started, worker, group, run, why
        self.head, self.lane = head, lane
        self._place: Place | None = None

    @property
    def id(self) -> MessageId:
        return MessageId(self.key.hex())

    @property
    def priority(self) -> int:
        return priority_of(self.head)

    @property
    def place(self) -> Place | None:
        if self.run is not None and self._place is None:
            self._place = place_of(self.head)
        return self._place

    @property
    def part(self) -> Part | None:
        """Its answer is awaited by this gather (the innermost one)."""
        place = self.place
        return place.parts[-1] if place is not None and place.parts else None


def by_id(tx: Ledger, ids: Sequence[str]) -> dict[str, Fact]:
    """The messages of these ids, as far as they are known."""
    keys = tuple(key for id in ids if (key := key_of(id)) is not None)
    if not keys:
        return {}
    rows = tx.sql(BY_ID, (apsw.carray(keys),)).fetchall()
    return {row[1].hex(): Fact(*row) for row in rows}


def select(tx: Ledger, where: str, bindings: Iterable[Any]) -> list[Fact]:
    """All rows `where` (SQL of this package, never a user's) finds, read before anything is changed."""
    return [Fact(*row) for row in tx.sql(f"SELECT {COLUMNS} FROM message {where}", tuple(bindings)).fetchall()]


def current(tx: Ledger, fact: Fact) -> bool:
    """Whether the row still is as it was read. Only the end of a message of a run can change others of the same list."""
    if fact.run is not None:
        state = tx.sql("SELECT state FROM message WHERE seq = ?", (fact.seq,)).get
        return bool(state == fact.state)
    return True
