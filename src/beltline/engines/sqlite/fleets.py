"""The size of every queue's fleet, and the log of the decisions that made it."""

import msgspec

from beltline.core.scaling import LOGGED, Decision, Size
from beltline.engines.sqlite.ledger import Ledger

_decision = msgspec.msgpack.Decoder(Decision).decode


def sizes(tx: Ledger) -> list[Size]:
    rows = tx.sql("SELECT q.name, f.turn, f.slots, f.decided, f.state, f.least, f.most FROM fleet f JOIN queue q ON q.n = f.queue ORDER BY q.name")
    return [
        Size(
            queue=name,
            turn=turn,
            slots=slots,
            decided_at=decided / 1000,
            state=state,
            ordered=None if least is None else (least, most),
        )
        for name, turn, slots, decided, state, least, most in rows
    ]


def set_size(tx: Ledger, queue: str, turn: int, slots: int, state: bytes, log: Decision | None) -> bool:
    """Raises QueueNotDeclared."""
    n = tx.queue(queue).n
    stands = tx.sql("SELECT turn FROM fleet WHERE queue = ?", (n,)).get
    if (stands or 0) != turn:
        return False
    tx.sql(
        "INSERT INTO fleet(queue, turn, slots, decided, state) VALUES(?1, ?2, ?3, ?4, ?5)"
        " ON CONFLICT(queue) DO UPDATE SET turn = ?2, slots = ?3, decided = ?4, state = ?5",
        (n, turn + 1, slots, tx.now, state),
    )
    if log is not None:
        tx.sql("INSERT INTO decision(queue, data) VALUES(?, ?)", (n, msgspec.msgpack.encode(log)))
        tx.sql(
            "DELETE FROM decision WHERE queue = ?1 AND n <= (SELECT n FROM decision WHERE queue = ?1 ORDER BY n DESC LIMIT 1 OFFSET ?2)", (n, LOGGED)
        )
    return True


def set_range(tx: Ledger, queue: str, least: int, most: int) -> None:
    """Raises QueueNotDeclared."""
    tx.sql(
        "INSERT INTO fleet(queue, turn, slots, decided, state, least, most) VALUES(?1, 0, 0, 0, x'', ?2, ?3)"
        " ON CONFLICT(queue) DO UPDATE SET least = ?2, most = ?3, decided = 0",
        (tx.queue(queue).n, least, most),
    )


def clear_range(tx: Ledger, queue: str) -> None:
    """Raises QueueNotDeclared."""
    tx.sql("UPDATE fleet SET least = NULL, most = NULL, decided = 0 WHERE queue = ?", (tx.queue(queue).n,))


def decisions(tx: Ledger, queue: str | None, limit: int) -> list[Decision]:
    """Raises QueueNotDeclared."""
    if queue is None:
        rows = tx.sql("SELECT data FROM decision ORDER BY n DESC LIMIT ?", (limit,))
    else:
        rows = tx.sql("SELECT data FROM decision WHERE queue = ? ORDER BY n DESC LIMIT ?", (tx.queue(queue).n, limit))
    return [_decision(data) for (data,) in rows]
