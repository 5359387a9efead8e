"""Unique keys: which message of a queue stands for a new one with the same key. The rule is that of core.flow.Unique; what the newest one replaces is in sending.py.

Of the messages with one key only the last stored one is remembered (table `same`). It is looked up after the id and the dedup key; hand-offs ignore it.
"""

from collections.abc import Iterable
from math import inf

from beltline.core.flow import Unique
from beltline.core.lifecycle import State
from beltline.core.message import Message
from beltline.engines.sqlite.ledger import Ledger, Queue
from beltline.engines.sqlite.times import ceil_ms

FIND = "SELECT m.id, m.state, m.due, m.sent FROM same s CROSS JOIN message m ON m.seq = s.seq WHERE s.queue = ? AND s.key = ? AND m.queue = s.queue AND m.state <> 5"


def unique_of(message: Message) -> Unique | None:
    return None if message.flow is None else message.flow.unique


def stands(tx: Ledger, queue: Queue, unique: Unique) -> str | None:
    """The id of the stored message that stands for a new one."""
    row = tx.sql(FIND, (queue.n, unique.key)).get
    if row is None:
        return None
    key, state, due, sent = row
    if unique.window_s < inf and tx.now >= sent + ceil_ms(unique.window_s):
        return None
    if state == State.DELAYED and due <= tx.now:
        state = State.READY
    return key.hex() if State(state).word in unique.states else None


def stands_in_batch(unique: Unique, *, delayed: bool) -> bool:
    """Whether an earlier message of the same send stands for this one."""
    return ("delayed" if delayed else "ready") in unique.states and unique.window_s > 0


def remember(tx: Ledger, keys: Iterable[tuple[int, str, int]]) -> None:
    """(queue, key, seq) of what was stored."""
    tx.many("INSERT OR REPLACE INTO same(queue, key, seq) VALUES(?, ?, ?)", keys)
